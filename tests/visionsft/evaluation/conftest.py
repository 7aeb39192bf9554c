"""Run folders with an evaluation in them, runs whose model gives back what it is shown, and made-up boxes."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from datamodules.batch import Item
from visionsft.config import Backbone, CameraData, SegmentationConfig
from visionsft.evaluation.counts import Counts, save_counts
from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.metrics import summarise
from visionsft.evaluation.metrics.boxes import ImageBoxes
from visionsft.models.detections import Detections
from visionsft.models.inference import compute_logits
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
        model = Mirror().eval()
        loaded = SimpleNamespace(
            model=model,
            data=Batches(names, splits),
            logits=partial(compute_logits, model, precision=None, channels_last=False),
            views={"scales": (1.0,), "symmetry": "none"},
        )
        loading = SimpleNamespace(load_run=lambda run, checkpoint: loaded)
        monkeypatch.setitem(sys.modules, "visionsft.training.loading", loading)
        return run

    return make


# ------------------------------------------------------------------------------------------------ boxes


def image(truth: Any = (), ignored: Any = (), found: Any = ()) -> ImageBoxes:
    """One image of (x1, y1, x2, y2, class), (x1, y1, x2, y2) and (x1, y1, x2, y2, class, score)."""
    truth, ignored, found = (
        np.asarray(rows, np.float64).reshape(-1, width)
        for rows, width in ((truth, 5), (ignored, 4), (found, 6))
    )
    return ImageBoxes(
        truth[:, :4].astype(np.float32),
        truth[:, 4].astype(np.int64),
        ignored.astype(np.float32),
        found[:, :4].astype(np.float32),
        found[:, 5].astype(np.float32),
        found[:, 4].astype(np.int64),
    )


def random_images(seed: int, *, images: int = 12, classes: int = 4, boxes: int = 12) -> list[ImageBoxes]:
    """Whole coordinates and few different scores, so that IoU and scores tie; the last class is never true."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(images):
        corner = rng.integers(0, 90, (boxes, 2))
        size = rng.integers(1, 60, (boxes, 2))
        truth = np.hstack([corner, corner + size, rng.integers(0, max(1, classes - 1), (boxes, 1))])
        moved = np.repeat(truth, 2, axis=0)
        moved[:, :4] += rng.integers(-4, 5, moved[:, :4].shape)
        moved[:, 2:4] = np.maximum(moved[:, 2:4], moved[:, :2] + 1)
        wrong = rng.random(len(moved)) < 0.2
        moved[wrong, 4] = rng.integers(0, classes, wrong.sum())
        scores = rng.integers(1, 9, (len(moved), 1)) / 8
        found = np.hstack([moved, scores])[rng.random(len(moved)) < 0.7]
        crowd = rng.random(boxes) < 0.15
        kept = rng.random(boxes) < rng.choice([0.0, 0.8, 1.0])
        found = found[: rng.integers(0, len(found) + 1)]
        rows.append(image(truth[~crowd & kept], truth[crowd][:, :4], found))
    return rows


def coco_evaluation(
    rows: Sequence[ImageBoxes],
    classes: int,
    *,
    sizes: Sequence[tuple[float, float]] = ((0, 1e10),),
    max_detections: int = 100,
) -> COCOeval:
    """pycocotools' accumulated evaluation; an ignored region is a crowd of each class."""
    annotations, results = [], []
    for number, row in enumerate(rows, 1):
        true = [(box, int(k), 0) for box, k in zip(row.truth, row.truth_labels, strict=True)]
        true += [(box, k, 1) for box in row.ignored for k in range(classes)]
        for box, k, crowd in true:
            entry = {**_box(box), "id": len(annotations) + 1, "image_id": number, "category_id": k + 1}
            annotations.append({**entry, "iscrowd": crowd})
        for box, k, score in zip(row.found, row.labels, row.scores, strict=True):
            results.append(
                {**_box(box), "image_id": number, "category_id": int(k) + 1, "score": float(score)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": number + 1} for number in range(len(rows))],
            "categories": [{"id": k + 1} for k in range(classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        found = COCO()
        found.dataset = {**truth.dataset, "annotations": [{**r, "id": i} for i, r in enumerate(results, 1)]}
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng = [list(size) for size in sizes]
        evaluation.params.areaRngLbl = [str(size) for size in sizes]
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _box(box: np.ndarray) -> dict[str, object]:
    x1, y1, x2, y2 = box.tolist()
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def detection_counts(
    classes: Sequence[str], rows: Sequence[ImageBoxes], groups: Sequence[str] | None = None
) -> DetectionCounts:
    """Counts of these images; each is its own group, if none are given."""
    counts = DetectionCounts(classes)
    for i, row in enumerate(rows):
        ids = (f"{i}.png", groups[i] if groups else f"{i}", f"/made/up/{i}.png")
        tensors = (torch.from_numpy(each) for each in (row.found, row.scores, row.labels))
        truth = {"boxes": row.truth, "labels": row.truth_labels, "ignored": row.ignored}
        target = {name: torch.from_numpy(each) for name, each in truth.items()}
        counts.add(Detections(*tensors), target, item=Item(*ids), size=(150, 150))
    return counts


@pytest.fixture(scope="session")
def cases() -> SimpleNamespace:
    """The functions of this file: importlib mode has no way to import them into tests."""
    return SimpleNamespace(image=image, random=random_images, coco=coco_evaluation, counts=detection_counts)
