"""What `import backbones` gives, and what it must not load."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import backbones


def test_all_is_sorted_and_is_what_the_package_exports() -> None:
    public = {
        name
        for name, value in vars(backbones).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }
    assert sorted(public, key=str) == sorted(backbones.__all__, key=str)
    classes = [name for name in backbones.__all__ if name[0].isupper()]
    functions = [name for name in backbones.__all__ if name[0].islower()]
    assert backbones.__all__ == sorted(classes) + sorted(functions)


def test_errors_end_a_command_with_exit_code_2() -> None:
    for error in (backbones.BackboneError, backbones.WeightsError):
        assert issubclass(error, ValueError)
        assert error.exit_code == 2


def test_a_fresh_import_loads_no_heavy_or_foreign_package() -> None:
    unwanted = ["rasterio", "lightning", "albumentations", "peft", "datamodules", "visionsft"]
    code = f"import backbones, sys; print([m for m in {unwanted} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
