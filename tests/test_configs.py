"""Every shipped configuration loads, and its first lines say how to run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visionsft.config import schema
from visionsft.loading import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.y*ml"))

SCHEMA = ROOT / "configs" / "schema.json"
"""What the configurations name for editors that complete and check."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def header(path: Path) -> list[str]:
    """The comment lines before the first line that is none, without their '#'."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:end]]


def test_no_file_is_missed() -> None:
    files = {path for path in (ROOT / "configs").rglob("*") if path.is_file()}
    lists = {path for path in files if path.suffix == ".txt" and path.parent.with_suffix(".yaml") in CONFIGS}
    assert files == {*CONFIGS, SCHEMA, *lists}
    assert ROOT / "configs" / "demo.yaml" in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_loads(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert not config.runs.is_absolute()


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_header_has_the_command_and_the_result(path: Path) -> None:
    lines = header(path)
    assert any(line.startswith(f"visionsft fit {name(path)}") for line in lines), lines
    assert any(line.startswith("Result:") for line in lines), lines


def test_schema_is_the_current_one() -> None:
    """Made by: visionsft config schema --out configs/schema.json"""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema()


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_names_the_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == SCHEMA
