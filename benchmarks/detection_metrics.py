"""What COCO's average precision costs here and in its reference.

    python benchmarks/detection_metrics.py [--quick]

Made-up truth of 50 boxes an image in 20 classes, and as many detections: moved truth, wrong classes and noise.
All start from boxes in memory and end with the average precision of every class, threshold and size. The peers
are pycocotools (the reference) and faster-coco-eval (the same in C++); `vs_pycocotools` is our seconds over its,
bound: 0.2. `bootstrap_seconds` is for all intervals, matching included. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import faster_coco_eval
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datamodules.batch import Item
from datamodules.objects import Target
from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.detection_intervals import bootstrap_detections
from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes
from visionsft.evaluation.metrics.detection import average_precisions
from visionsft.evaluation.metrics.matching import match_detections
from visionsft.models.detections import Detections

CLASSES, BOXES, GROUP, RESAMPLES = 20, 50, 25, 2000
SIZES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="300 images; under 50 s")
    images = 300 if parser.parse_args().quick else 5000
    rows = make_images(images)
    own, seconds = timed(lambda: measure_own(rows))
    result: dict[str, Any] = {
        "images": images,
        "boxes": BOXES,
        "classes": CLASSES,
        "seconds": round(seconds, 2),
    }
    peers = {
        "pycocotools": (COCO, COCOeval),
        "faster_coco_eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    }
    for name, (index, evaluation) in peers.items():
        peer, seconds = timed(lambda: measure_peer(rows, index, evaluation))  # noqa: B023
        assert abs(peer - own) < 1e-6, (name, peer, own)
        result[f"{name}_seconds"] = round(seconds, 2)
        print(f"{name:<18} {seconds:8.2f} s   mAP {peer:.6f}", flush=True)
    print(f"{'visionsft':<18} {result['seconds']:8.2f} s   mAP {own:.6f}")
    _, seconds = timed(lambda: measure_bootstrap(rows))
    result["bootstrap_seconds"] = round(seconds, 2)
    print(f"{'intervals':<18} {seconds:8.2f} s   {RESAMPLES:,} resamples of {len(rows) // GROUP:,} groups")
    result["vs_pycocotools"] = round(result["seconds"] / result["pycocotools_seconds"], 4)
    result["versions"] = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "pycocotools", "faster-coco-eval")},
    }
    print(json.dumps(result))


def timed(work: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        value = work()
    return value, time.perf_counter() - start


def measure_own(rows: Sequence[ImageBoxes]) -> float:
    """mAP at all sizes; the other sizes are computed, too."""
    found = match_detections(BoxTable.gather(rows, CLASSES), sizes=SIZES)
    precisions = [average_precisions(matches) for matches in found]
    return float(np.nanmean(precisions[0]))


def measure_bootstrap(rows: Sequence[ImageBoxes]) -> float:
    """All intervals, by groups of images."""
    counts = DetectionCounts([f"class {k}" for k in range(CLASSES)])
    for i, row in enumerate(rows):
        target = {"boxes": row.truth, "labels": row.truth_labels, "ignored": row.ignored}
        found = Detections(*(torch.from_numpy(each) for each in (row.found, row.scores, row.labels)))
        item = Item(f"{i}", f"{i // GROUP}", f"{i}.png")
        tensors = {name: torch.from_numpy(each) for name, each in target.items()}
        counts.add(found, Target(**tensors), item=item, size=(720, 1280))
    ends = bootstrap_detections(counts, resamples=RESAMPLES).metrics["map"]
    return ends[0] if ends else float("nan")


def measure_peer(rows: Sequence[ImageBoxes], index: type, evaluation: type) -> float:
    """The same of pycocotools or of its replacement; making its dictionaries isn't left out, as users pay it."""
    truth, found = index(), index()
    common = {
        "images": [{"id": i + 1, "width": 1280, "height": 720} for i in range(len(rows))],
        "categories": [{"id": k, "name": str(k)} for k in range(CLASSES)],
        "info": {},
    }
    for side, part in ((truth, "truth"), (found, "found")):
        side.dataset = {**common, "annotations": list(annotations(rows, part))}
        side.createIndex()
    judged = evaluation(truth, found, "bbox")
    judged.evaluate()
    judged.accumulate()
    precision = judged.eval["precision"][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def annotations(rows: Sequence[ImageBoxes], part: str) -> Any:
    number = 0
    for i, row in enumerate(rows):
        boxes, labels = (row.truth, row.truth_labels) if part == "truth" else (row.found, row.labels)
        scores = row.scores if part == "found" else np.ones(len(boxes))
        for (x1, y1, x2, y2), k, score in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True):
            number += 1
            box, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
            yield {"id": number, "image_id": i + 1, "category_id": k, "bbox": box, "area": area,
                   "iscrowd": 0, "score": score}  # fmt: skip


def make_images(images: int) -> list[ImageBoxes]:
    """Boxes of 8 to 200 pixels in frames of 1280 x 720."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(images):
        corner, size = rng.uniform(0, (1080, 520), (BOXES, 2)), np.exp(rng.uniform(2.1, 5.3, (BOXES, 2)))
        labels = rng.integers(0, CLASSES, BOXES)
        moved = np.hstack([corner, corner + size]) + np.tile(size, 2) * rng.normal(0, 0.08, (BOXES, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        guesses = np.where(rng.random(BOXES) < 0.2, rng.integers(0, CLASSES, BOXES), labels)
        truth, found = (b.astype(np.float32) for b in (np.hstack([corner, corner + size]), moved))
        scores = rng.random(BOXES).astype(np.float32)
        rows.append(ImageBoxes(truth, labels, np.empty((0, 4), np.float32), found, scores, guesses))
    return rows


if __name__ == "__main__":
    main()
