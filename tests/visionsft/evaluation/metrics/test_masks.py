"""Masks as runs of pixels against arrays, and average precision of masks against pycocotools' "segm"."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datamodules.batch import Item
from datamodules.objects import Objects
from datamodules.views import draw_shape
from visionsft.evaluation.detection_counts import (
    DetectionCounts,
    load_detection_counts,
    save_detection_counts,
)
from visionsft.evaluation.detection_scores import score_detections
from visionsft.evaluation.metrics.boxes import ImageBoxes
from visionsft.evaluation.metrics.detection import average_precisions, largest_recalls
from visionsft.evaluation.metrics.masks import (
    ImageMasks,
    MaskTable,
    common_pixels,
    count_pixels,
    draw_runs,
    mask_runs,
    outline_runs,
    run_bounds,
)
from visionsft.evaluation.metrics.matching import match_detections
from visionsft.models.detections import Detections

SIZE = (40, 50)
AREAS = ((0.0, 1e10), (0.0, 60.0), (60.0, 200.0), (200.0, 1e10))
Masks = NDArray[np.bool_]


def blobs(rng: np.random.Generator, count: int) -> list[Masks]:
    """Ellipses, some with a hole or noise, some empty."""
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = []
    for _ in range(count):
        y, x, a, b = rng.uniform((0, 0, 1, 1), (SIZE[0], SIZE[1], 14, 14))
        mask = ((rows - y) / a) ** 2 + ((cols - x) / b) ** 2 < 1
        if rng.random() < 0.3:
            mask &= rng.random(SIZE) < 0.8
        masks.append(mask & (rng.random() > 0.1))
    return masks


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_areas_common_pixels_and_bounds_are_those_of_arrays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = blobs(rng, 2) if rng.random() < 0.8 else (np.ones(SIZE, bool), rng.random(SIZE) < 0.5)
    runs = [mask_runs(mask, SIZE[1]) for mask in (one, other)]
    assert [count_pixels(each) for each in runs] == [one.sum(), other.sum()]
    assert common_pixels(*runs) == common_pixels(*runs[::-1]) == (one & other).sum()
    box = run_bounds(runs[0], SIZE[1])
    rows, cols = np.nonzero(one)
    assert box.tolist() == ([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1] if len(rows) else [0] * 4)


def test_a_part_of_an_image_has_the_runs_of_the_whole() -> None:
    mask = np.zeros(SIZE, bool)
    mask[5:9, 30:] = True
    mask[9, :3] = True  # follows on row 8 in memory
    part = mask[4:12, 20:]
    own = mask_runs(part, SIZE[1], left=20, top=4)
    mask[9, :3] = False
    np.testing.assert_array_equal(own, mask_runs(mask, SIZE[1]))
    assert mask_runs(np.ones(SIZE, bool), SIZE[1]).tolist() == [[0, SIZE[0] * SIZE[1]]]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_outlines_are_drawn_as_in_training(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(-5, 50, 2), rng.uniform(0.2, 30)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    ring = (centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(np.float32)
    ends = np.clip(ring, 0, SIZE[::-1])
    box = np.array([*ends.min(0), *ends.max(0)], np.float32)
    if (box[2:] - box[:2] < 1e-3).any():
        return
    inside = np.clip(ring, 0, SIZE[::-1]).astype(np.float32)
    drawn = draw_shape((inside,), SIZE, box)
    np.testing.assert_array_equal(draw_runs((inside,), box, SIZE), mask_runs(drawn, SIZE[1]))


def test_a_polygon_around_pixels_gives_them_back() -> None:
    mask = blobs(np.random.default_rng(3), 1)[0]
    mask[20, 20] ^= True
    cells = [shapely.box(x, y, x + 1, y + 1) for y, x in zip(*np.nonzero(mask), strict=True)]
    np.testing.assert_array_equal(outline_runs(shapely.union_all(cells), SIZE), mask_runs(mask, SIZE[1]))
    assert outline_runs(shapely.Polygon(), SIZE).shape == (0, 2)


# ----------------------------------------------------------------------------------------------- pycocotools

Row = dict[str, Any]
"""truth: [(mask, class)], ignored: [mask], found: [(mask, class, score)]"""


def random_row(rng: np.random.Generator, classes: int) -> Row:
    truth = [(mask, int(rng.integers(classes))) for mask in blobs(rng, int(rng.integers(0, 6)))]
    truth = [(mask, k) for mask, k in truth if mask.any()]
    found = []
    for mask, k in truth * 2:
        moved = np.roll(mask, tuple(rng.integers(-2, 3, 2)), (0, 1))
        label = int(rng.integers(classes)) if rng.random() < 0.2 else k
        found.append((moved, label, float(rng.integers(1, 9)) / 8))
    found += [(mask, int(rng.integers(classes)), float(rng.random())) for mask in blobs(rng, 2)]
    ignored = [mask for mask in blobs(rng, int(rng.integers(0, 2))) if mask.any()]
    return {"truth": truth, "ignored": ignored, "found": found}


def tables(rows: Sequence[Row], classes: int) -> MaskTable:
    boxes, masks = [], []
    for row in rows:
        truth, ignored, found = (row.get(name, []) for name in ("truth", "ignored", "found"))
        runs = [[mask_runs(each, SIZE[1]) for each in kind] for kind in (
            [m for m, _ in truth], ignored, [m for m, _, _ in found])]  # fmt: skip
        masks.append(ImageMasks(*(tuple(each) for each in runs)))
        shapes = [np.zeros((len(each), 4), np.float32) for each in runs]
        labels = [np.array([each[1] for each in kind], np.int64) for kind in (truth, found)]
        scores = np.array([score for _, _, score in found], np.float32)
        boxes.append(ImageBoxes(shapes[0], labels[0], shapes[1], shapes[2], scores, labels[1]))
    return MaskTable.of(boxes, masks, [SIZE] * len(rows), classes)


def coco_segm(rows: Sequence[Row], classes: int) -> COCOeval:
    annotations, results = [], []
    for number, row in enumerate(rows, 1):
        true = [(mask, k, 0) for mask, k in row.get("truth", [])]
        true += [(mask, k, 1) for mask in row.get("ignored", []) for k in range(classes)]
        for mask, k, crowd in true:
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": k + 1, "iscrowd": crowd}
            annotations.append({**entry, "segmentation": encode(mask), "area": float(mask.sum())})
        for mask, k, score in row.get("found", []):
            entry = {"id": len(results) + 1, "image_id": number, "category_id": k + 1}
            score = float(np.float32(score))
            results.append({**entry, "segmentation": encode(mask), "area": float(mask.sum()), "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for listed in (annotations, results):
            side = COCO()
            side.dataset = {
                "images": [{"id": i + 1, "height": SIZE[0], "width": SIZE[1]} for i in range(len(rows))],
                "categories": [{"id": k + 1} for k in range(classes)],
                "annotations": listed,
            }
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, "segm")
        evaluation.params.areaRng = [list(area) for area in AREAS]
        evaluation.params.areaRngLbl = [str(area) for area in AREAS]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def encode(mask: Masks) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def assert_like_coco(rows: Sequence[Row], classes: int) -> None:
    expected = coco_segm(rows, classes)
    for a, matches in enumerate(match_detections(tables(rows, classes), sizes=AREAS)):
        precision, recall = expected.eval["precision"][:, :, :, a, 0], expected.eval["recall"][:, :, a, 0]
        absent = recall == -1
        wanted = np.where(absent, np.nan, precision.mean(axis=1))
        np.testing.assert_allclose(average_precisions(matches), wanted, atol=1e-6)
        np.testing.assert_allclose(largest_recalls(matches), np.where(absent, np.nan, recall), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 8), classes=st.integers(1, 3))
def test_average_precision_of_masks_is_pycocotools(seed: int, images: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    assert_like_coco([random_row(rng, classes) for _ in range(images)], classes)


def block(top: int, left: int, bottom: int, right: int) -> Masks:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


HARD: dict[str, Row] = {
    "nothing": {},
    "no detections": {"truth": [(block(0, 0, 9, 9), 0)]},
    "no truth": {"found": [(block(0, 0, 9, 9), 0, 0.5)]},
    "an empty detection": {"truth": [(block(0, 0, 9, 9), 0)], "found": [(block(0, 0, 0, 0), 0, 0.9)]},
    "only a crowd": {"ignored": [block(0, 0, 20, 20)], "found": [(block(2, 2, 9, 9), 0, 0.5)]},
    "crowd takes any number": {
        "truth": [(block(0, 0, 9, 9), 0)],
        "ignored": [block(10, 10, 40, 40)],
        "found": [(block(12, 12, 20, 20), 0, 0.9), (block(13, 13, 25, 25), 0, 0.8), (block(0, 0, 9, 9), 0, 0.7)],
    },
    "one box, two shapes": {
        "truth": [(np.tri(*SIZE, dtype=bool), 0)],
        "found": [(~np.tri(*SIZE, dtype=bool), 0, 0.9), (np.tri(*SIZE, dtype=bool), 0, 0.8)],
    },
    "exactly the threshold": {"truth": [(block(0, 0, 10, 10), 0)], "found": [(block(0, 0, 10, 5), 0, 0.9)]},
    "whole rows": {"truth": [(block(3, 0, 9, 50), 1)], "found": [(block(4, 0, 9, 50), 1, 0.9)]},
    "equal overlaps": {
        "truth": [(block(0, 0, 10, 10), 0), (block(0, 4, 10, 14), 0)],
        "found": [(block(0, 2, 10, 12), 0, 0.9), (block(0, 4, 10, 14), 0, 0.8)],
    },
}


@pytest.mark.parametrize("name", HARD)
def test_hard_cases_are_pycocotools(name: str) -> None:
    other = {"truth": [(block(20, 20, 30, 30), 1)], "found": [(block(20, 20, 30, 29), 1, 0.6)]}
    assert_like_coco([HARD[name]], 2)
    assert_like_coco([HARD[name], other], 2)


def test_masks_of_a_split_are_kept_and_come_back(tmp_path: Path) -> None:
    """A triangle found as the square around it: right as a box, too little as a mask."""
    triangle = (np.array([[0, 0], [20, 0], [0, 20]], np.float32),)
    box = np.array([[0, 0, 20, 20]], np.float32)
    counts = DetectionCounts(("roof",))
    for i, outline in enumerate((shapely.box(0, 0, 20, 20), shapely.Polygon(triangle[0]))):
        objects = Objects(box, np.zeros(1, np.int64), np.zeros(1, bool), (triangle,))
        found = Detections(torch.from_numpy(box), torch.ones(1), torch.zeros(1, dtype=torch.int64))
        outlines = np.array([outline], object)
        counts.add_objects(found, objects, item=Item(f"{i}", f"{i}", ""), size=(40, 50), outlines=outlines)
    empty = Objects.none(shapes=True)
    counts.add_objects(
        Detections.none(), empty, item=Item("2", "2", ""), size=(40, 50), outlines=np.empty(0, object)
    )
    save_detection_counts(counts, tmp_path)
    for each in (counts, load_detection_counts(tmp_path), counts.take(np.array([0, 1, 2]))):
        assert score_detections(each).map == 1
        assert score_detections(each, masks=True).ap75 == pytest.approx(0.5 * 51 / 101)  # the false one ranks first
    assert count_pixels(counts.masks[0].truth[0]) == pytest.approx(200, abs=12)
