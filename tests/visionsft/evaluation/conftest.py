"""Run folders with an evaluation in them, as if a model had been trained and scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.batch import Item
from visionsft.config import Backbone, CameraData, Config
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
            Config(name=name, runs=tmp_path / "runs", data=data, backbone=backbone, **config or {})
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
