"""All numbers of a split against pycocotools and on a case counted by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from visionsft.evaluation.detection_scores import (
    precision_recall_curves,
    score_detections,
    size_ranges,
)


def test_scores_by_hand(cases: Any) -> None:
    """Two images: a car found, a car missed, a false car; a pedestrian that is found badly; a van nowhere."""
    rows = [
        cases.image(
            truth=[(0, 0, 20, 20, 0), (100, 0, 140, 40, 0)],
            found=[(0, 0, 20, 20, 0, 0.9), (0, 50, 20, 70, 0, 0.6)],
        ),
        cases.image(
            truth=[(0, 0, 20, 20, 1)],
            ignored=[(50, 50, 90, 90)],
            found=[(0, 0, 20, 12, 1, 0.4), (60, 60, 70, 70, 1, 0.8)],
        ),
    ]
    counts = cases.counts(("car", "pedestrian", "van"), rows)
    scores = score_detections(counts)
    car, pedestrian, van = scores.per_class
    assert (car.ap, car.ap50) == pytest.approx((51 / 101, 51 / 101))  # precision 1 up to recall 0.5
    assert (pedestrian.ap50, pedestrian.ap) == pytest.approx((1, 3 / 10))  # IoU 0.6
    assert (scores.map, scores.ap50, scores.ap75) == pytest.approx(
        ((51 / 101 + 0.3) / 2, (51 / 101 + 1) / 2, 51 / 202)
    )
    assert scores.ar == pytest.approx((0.5 + 0.3) / 2)
    assert (scores.recall, scores.precision) == pytest.approx((1 / 3, 1 / 2))  # from score 0.5 on
    assert (car.best_score, car.best_recall, car.best_precision) == pytest.approx((0.9, 0.5, 1))
    assert scores.recall_at_fppi == pytest.approx({"0.1": 1 / 3, "1": 2 / 3})
    assert (scores.images, scores.objects, scores.ignored, scores.detections) == (2, 3, 1, 4)
    assert (scores.classes_present, pedestrian.detections, van.objects) == (2, 1, 0)
    assert math.isnan(van.ap)
    assert [(row.name, row.objects) for row in scores.by_size] == [
        ("0-32 px", 2),
        ("32-96 px", 1),
        ("from 96 px", 0),
    ]


def test_totals_and_sizes_are_pycocotools(cases: Any) -> None:
    rows = cases.random(7, images=20, classes=3)
    counts = cases.counts(("a", "b", "c"), rows)
    scores = score_detections(counts, size_limits=(20, 35), max_detections=5)
    sizes = [(0, 1e10), (0, 400), (400, 1225), (1225, 1e10)]
    expected = cases.coco(rows, 3, sizes=sizes, max_detections=5).eval

    def mean(values: np.ndarray) -> float:
        return values[values > -1].mean()

    precision, recall = expected["precision"][..., 0], expected["recall"][..., 0]
    assert (scores.map, scores.ap50, scores.ap75, scores.ar) == pytest.approx(
        (
            *(mean(precision[..., 0]), mean(precision[0, ..., 0]), mean(precision[5, ..., 0])),
            mean(recall[..., 0]),
        )
    )
    for a, row in enumerate(scores.by_size, 1):
        assert (row.ap, row.ar) == pytest.approx((mean(precision[..., a]), mean(recall[..., a])))
    for k, row in enumerate(scores.per_class):
        if row.objects:
            assert (row.ap, row.ap50) == pytest.approx(
                (precision[:, :, k, 0].mean(), precision[0, :, k, 0].mean())
            )


def test_the_table_and_json_say_everything(cases: Any) -> None:
    counts = cases.counts(("car", "never"), cases.random(1, images=8, classes=2))
    scores = score_detections(counts, iou=0.6, score=0.3)
    text = scores.table()
    assert f"mAP 0.50:0.95           {scores.map:.4f}" in text
    assert "1 of 2 classes), all detections that the model gives" in text
    assert "with COCO's limit" not in text
    assert "IoU 0.6, score >= 0.3" in text
    assert (
        f"counted on              8 images: {scores.objects:,} objects, {scores.ignored:,} ignored regions"
        in text
    )
    kept = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert kept["per_class"][1]["ap"] is None
    assert kept["map"] == scores.map
    assert kept["by_size"][2]["largest"] is None


def test_crowded_images_are_not_cut_short(cases: Any) -> None:
    """150 cars, all found: COCO's own limit of 100 would call a third of them missed."""
    cars = [(20 * (i % 15), 20 * (i // 15), 20 * (i % 15) + 15, 20 * (i // 15) + 15, 0) for i in range(150)]
    counts = cases.counts(("car",), [cases.image(cars, found=[(*car, 0.9) for car in cars])])
    scores = score_detections(counts)
    assert (scores.map, scores.max_detections) == (1, None)
    expected = cases.coco(counts.boxes, 1).eval["precision"].mean()
    assert scores.map_at_100 == pytest.approx(expected, abs=1e-6)
    assert f"with COCO's limit of 100 detections an image and class: {expected:.4f}" in scores.table()
    assert score_detections(counts, max_detections=100).map == pytest.approx(expected, abs=1e-6)


def test_no_images_have_no_numbers(cases: Any) -> None:
    scores = score_detections(cases.counts(("car",), []))
    assert math.isnan(scores.map)
    assert "0 images: 0 objects" in scores.table()


def test_curves_are_of_the_classes_in_truth(cases: Any) -> None:
    counts = cases.counts(("a", "b", "never"), cases.random(2, classes=3))
    curves = precision_recall_curves(counts, iou=0.75)
    assert list(curves) == ["a", "b"]
    best = score_detections(counts, iou=0.75).per_class[0]
    assert max(curves["a"].f1) == best.best_f1


@pytest.mark.parametrize("limits", [(96, 32), (0, 32), (32, 32)])
def test_size_limits_rise(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be above 0 and rising"):
        size_ranges(limits)
