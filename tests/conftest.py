"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer release otherwise
os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.load_profile("ci")  # the same examples each time; `--hypothesis-profile default` looks for new ones


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and weights beside the checkout; tests that need it skip elsewhere."""
    path = Path(os.environ.get("VISIONSFT_SHARED", Path(__file__).parents[2] / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no real data: {path} does not exist")
    return path
