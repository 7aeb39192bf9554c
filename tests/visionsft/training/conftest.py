"""A tiny driving dataset and a configuration that trains on it in a second or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from visionsft.config import ClassificationConfig, Config, SegmentationConfig


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of 64x64 whose two classes, dark and bright, are separable by colour."""
    root = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((64, 64), np.uint8)
            row, col = rng.integers(0, 32, 2)
            mask[row : row + 32, col : col + 32] = 1
            image = np.where(mask[..., None] == 1, 190, 60) + rng.normal(0, 10, (64, 64, 3))
            name = f"{split}{index}_000"
            cv2.imwrite(str(root / "images" / split / f"{name}.png"), image.clip(0, 255).astype(np.uint8))
            cv2.imwrite(str(root / "masks" / split / f"{name}.png"), mask)
    return root


@pytest.fixture
def values(frames: Path, tmp_path: Path) -> dict[str, Any]:
    """The configuration as plain values, for changes by `make`."""
    return {
        "name": "run",
        "runs": tmp_path / "runs",
        "task": {"loss": {"name": "cross_entropy", "class_weights": "inverse"}},
        "data": {
            "kind": "camera",
            "root": frames,
            "images": "images/{split}/*.png",
            "labels": "masks/{split}/{name}.png",
            "classes": [{"name": "dark", "values": 0}, {"name": "bright", "values": 1}],
            "crop": [48, 48],
            "batch_size": 2,
            "workers": 0,
            "normalise": "data",
            "augment": {"pipeline": "driving", "scale": [0.8, 1.3]},
        },
        "backbone": {"name": "test_efficientnet", "weights": "none", "drop_path_rate": 0.2},
        "head": {"name": "fpn", "width": 16, "dropout": 0.2},
        "strategy": {"kind": "full", "lr": 0.01, "backbone_lr_factor": 1.0},
        "trainer": {"epochs": 2, "ema": 0.9, "accelerator": "cpu", "precision": "32"},
    }


@pytest.fixture
def make() -> Callable[..., Config]:
    """A configuration with some sections changed: make(values, trainer={"epochs": 4})."""

    def changed(values: dict[str, Any], **sections: dict[str, Any]) -> Config:
        kind = ClassificationConfig if values["task"].get("kind") == "classification" else SegmentationConfig
        return kind.model_validate(
            {**values, **{key: {**values[key], **new} for key, new in sections.items()}}
        )

    return changed
