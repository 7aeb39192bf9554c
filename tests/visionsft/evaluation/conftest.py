"""Run folders with an evaluation in them, and runs whose model gives back what it is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules.batch import Item
from visionsft.config import Backbone, CameraData, SegmentationConfig
from visionsft.evaluation.counts import Counts, save_counts
from visionsft.evaluation.metrics import summarise
from visionsft.runs import Run

WriteRun = Callable[..., Run]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """write_run(name, confusions (N, K, K), groups=..., ids=..., classes=..., **more of scores.json, config=...)."""

    def write(
        name: str,
        confusions: np.ndarray,
        *,
        groups: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        config: dict[str, Any] | None = None,
        **scores: Any,
    ) -> Run:
        count = len(confusions)
        groups = groups or [f"drive{i}" for i in range(count)]
        ids = ids or [f"{i:04}.png" for i in range(count)]
        classes = classes or ["road", "car", "person"][: confusions.shape[1]]
        data, backbone = CameraData(kind="camera", root=tmp_path), Backbone(name="resnet18", weights="none")
        run = Run.create(
            SegmentationConfig(name=name, runs=tmp_path / "runs", data=data, backbone=backbone, **config or {})
        )
        run.write_json("data.json", {"classes": list(classes)})
        run.write_environment({"weights": {"source": "none"}})
        folder = run.evaluation("test")
        items = tuple(Item(id=id, group=group, image=id) for id, group in zip(ids, groups, strict=True))
        save_counts(Counts(items, tuple(classes), confusions, np.zeros(count)), folder)
        report = {
            "split": "test",
            "checkpoint": {"name": "best"},
            "classes": list(classes),
            "groups": len(set(groups)),
            "scores": summarise(confusions.sum(axis=0), classes).as_dict(),
            **scores,
        }
        (folder / "scores.json").write_text(json.dumps(report))
        return run

    return write


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
        config = SegmentationConfig(
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
