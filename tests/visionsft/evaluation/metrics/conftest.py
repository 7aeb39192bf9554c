"""Made-up boxes, and what pycocotools makes of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visionsft.evaluation.metrics.boxes import ImageBoxes


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


@pytest.fixture(scope="session")
def cases() -> SimpleNamespace:
    """The functions of this file: importlib mode has no way to import them into tests."""
    return SimpleNamespace(image=image, random=random_images, coco=coco_evaluation)
