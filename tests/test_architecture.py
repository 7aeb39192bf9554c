"""The three packages' direction, and what each loads when it is imported alone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_contracts_between_the_packages() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout


def test_the_contracts_cover_both_packages_that_stand_alone() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    forbidden = {
        tuple(contract["source_modules"]): set(contract["forbidden_modules"]) for contract in contracts
    }
    assert forbidden["backbones",] >= {"datamodules", "visionsft"}
    assert forbidden["datamodules",] >= {"backbones", "visionsft"}


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        ("visionsft", {"torch", "backbones", "datamodules"}),
        ("visionsft.cli", {"torch", "backbones", "datamodules"}),
        ("visionsft.config", {"torch", "backbones", "datamodules"}),
        ("backbones", {"rasterio", "lightning", "albumentations", "peft", "datamodules", "visionsft"}),
        ("datamodules", {"timm", "peft", "backbones", "visionsft"}),
    ],
)
def test_a_package_loads_nothing_foreign(package: str, foreign: set[str]) -> None:
    code = f"import sys, {package}; print('\\n'.join(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert foreign.isdisjoint(answer.stdout.splitlines())
