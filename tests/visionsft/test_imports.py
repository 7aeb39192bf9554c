"""What a fresh interpreter loads with each import: a mistake in a file shouldn't wait for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "timm", "lightning", "albumentations", "rasterio", "cv2", "numpy", "peft", "rich", "typer"}
LIGHT = ["visionsft", "visionsft.config", "visionsft.loading", "visionsft.runs", "visionsft.files"]


def loaded(code: str) -> set[str]:
    """Names of the heavy packages that are loaded after `code` has run in a new interpreter."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return HEAVY & set(answer.stdout.splitlines())


@pytest.mark.parametrize("module", LIGHT)
def test_light(module: str) -> None:
    assert loaded(f"import {module}") == set()


def test_the_command_line_loads_typer_only() -> None:
    assert loaded("import visionsft.cli") == {"typer"}


def test_names_of_the_door_that_need_nothing_heavy() -> None:
    assert loaded("from visionsft import Config, ConfigError, Run, RunError, load_config") == set()
