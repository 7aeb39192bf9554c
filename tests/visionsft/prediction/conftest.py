"""A run folder as training leaves it, with random weights, in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from visionsft.build import build_backbone, build_model
from visionsft.config import SegmentationConfig
from visionsft.runs import Run

BANDS = ("red", "green", "nir")


@pytest.fixture
def write_run() -> Callable[..., Run]:
    """write_run(folder, head=None): a run on uint16 scenes of the bands red, green, nir and three classes."""
    return _write_run


def _write_run(folder: Path, *, head: dict[str, Any] | None = None) -> Run:
    torch.manual_seed(0)
    classes = [{"name": name, "values": value} for value, name in enumerate(("low", "middle", "high"))]
    config = SegmentationConfig.model_validate(
        {
            "name": "run",
            "runs": folder,
            "data": {"kind": "geotiff", "root": folder, "classes": classes, "chip": 64, "normalise": "data"},
            "backbone": {"name": "test_efficientnet", "weights": "none"},
            "head": head or {"name": "fpn", "width": 16},
            "trainer": {"precision": "32"},
        }
    )
    run = Run.create(config)
    model = build_model(config, build_backbone(config, BANDS, pretrained=False), len(classes))
    for weights in model.head.parameters():
        if weights.dim() == 4:
            weights.data.normal_(0, 0.5)  # a new head is certain of nothing: all its maps look alike
    run.checkpoints.mkdir()
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "callbacks": {}}, run.checkpoints / "best.ckpt")
    card = {
        "bands": BANDS,
        "dtype": "uint16",
        "classes": [each["name"] for each in classes],
        "normalisation": {"mean": [3000.0] * 3, "std": [1000.0] * 3},
    }
    run.path.joinpath("data.json").write_text(json.dumps(card))
    return run
