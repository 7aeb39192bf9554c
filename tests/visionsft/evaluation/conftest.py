"""Runs whose model gives back what it is shown, so that a test can choose the logits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from datamodules.batch import Item
from visionsft.config import Backbone, CameraData, Config
from visionsft.runs import Run


class Mirror(nn.Module):
    """image (B, K, H, W) -> itself, as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.weight


class Batches:
    """A data module of batches that are there already."""

    def __init__(self, names: tuple[str, ...], splits: dict[str, list[tuple[Tensor, Tensor]]]) -> None:
        """splits: (logits (B, K, H, W), mask (B, H, W)) of each batch."""
        self.classes = SimpleNamespace(names=names)
        self.splits = splits
        self.items = {split: splits.get(split, []) for split in ("train", "val", "test")}

    def setup(self, stage: str) -> None:
        """Nothing to do."""

    def evaluation_loader(self, split: str) -> list[dict]:
        return [
            {"image": logits, "mask": mask, "item": [Item("0", "0", "0.png")] * len(mask)}
            for logits, mask in self.splits[split]
        ]


@pytest.fixture
def mirror_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Makes a run that loads as a Mirror over the given batches."""

    def make(names: tuple[str, ...], **splits: list[tuple[Tensor, Tensor]]) -> Run:
        data = CameraData(kind="camera", root=tmp_path)
        config = Config(
            name="mirror", runs=tmp_path, data=data, backbone=Backbone(name="test_resnet", weights="none")
        )
        run = Run.create(config)
        run.checkpoints.mkdir()
        torch.save({}, run.checkpoints / "best.ckpt")
        loaded = SimpleNamespace(
            model=Mirror().eval(),
            data=Batches(names, splits),
            precision=None,
            channels_last=False,
            views={"scales": (1.0,), "symmetry": "none"},
        )
        loading = SimpleNamespace(load_run=lambda run, checkpoint: loaded)
        monkeypatch.setitem(sys.modules, "visionsft.training.loading", loading)
        return run

    return make
