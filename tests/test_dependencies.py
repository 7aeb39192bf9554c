"""Dependencies: every module can be imported with what `pip install visionsft` brings, but for those of an extra."""

from __future__ import annotations

import importlib.metadata as metadata
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OPTIONAL = {
    "datamodules.vectors": "pyogrio",
    "visionsft.training.studies": "optuna",
    "visionsft.training.studyreport": "optuna",
    "visionsft.training.trials": "optuna",
    "visionsft.training.tuning": "optuna",
}
"""Modules that import a package of an extra; whoever imports them says which extra is missing."""

IMPORT_ALL = """
import importlib, pkgutil, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        return None if name in BLOCKED else self.finder.find_spec(name, *rest)

sys.meta_path[:] = map(Without, sys.meta_path)
for root in ("backbones", "datamodules", "visionsft"):
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, f"{root}."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except Exception as error:
            cause = error.__cause__ or error
            if not isinstance(cause, ModuleNotFoundError):
                raise
            print(module.name, cause.name)
"""


def packages_of_extras() -> set[str]:
    """Packages that only an extra names, here or among the development tools."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {canonicalize_name(Requirement(text).name) for texts in extras.values() for text in texts}
    named -= {canonicalize_name(Requirement(text).name) for text in project["dependencies"]} | {"visionsft"}
    owners = metadata.packages_distributions().items()
    return {package for package, names in owners if named & {canonicalize_name(name) for name in names}}


def test_modules_need_no_extra() -> None:
    blocked = packages_of_extras()
    assert {"pyogrio", "optuna", "sklearn"} <= blocked  # else this test sees nothing
    answer = subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {blocked!r}{IMPORT_ALL}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert dict(line.split() for line in answer.stdout.splitlines()) == OPTIONAL
