"""Average precision of turned boxes: pycocotools' at angle 0, and the same however the image is turned."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datamodules.batch import Item
from datamodules.objects import Target
from datamodules.views import turned_corners
from visionsft.evaluation.detection_counts import load_detection_counts, save_detection_counts
from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes, box_areas
from visionsft.evaluation.metrics.detection import average_precisions, largest_recalls
from visionsft.evaluation.metrics.matching import match_detections
from visionsft.evaluation.metrics.rotated import rotated_intersections
from visionsft.models.detections import Detections

SIZES = ((0.0, 1e10), (20.0**2, 35.0**2))


def turn(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """(N, 4) upright -> (N, 5) of angle 0."""
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    return np.column_stack([(low + high) / 2, high - low, np.zeros(len(boxes))])


def turned_rows(rows: list[ImageBoxes]) -> list[ImageBoxes]:
    return [dataclasses.replace(row, truth=turn(row.truth), found=turn(row.found)) for row in rows]


def rotate(boxes: NDArray[Any], angle: float) -> NDArray[np.float64]:
    """(N, 5) as seen after the image was turned about its origin; in float64, so that no IoU crosses a threshold."""
    x, y, w, h, own = boxes.T
    cos, sin = math.cos(angle), math.sin(angle)
    return np.column_stack([x * cos - y * sin, x * sin + y * cos, w, h, own + angle])


def evaluate(rows: list[ImageBoxes], classes: int, **options: Any) -> list[Any]:
    return match_detections(BoxTable.gather(rows, classes), **options)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), limit=st.sampled_from([3, 100]))
def test_at_angle_0_average_precision_is_pycocotools(cases: Any, seed: int, limit: int) -> None:
    rows = cases.random(seed, images=8, classes=3)
    expected = cases.coco(rows, 3, sizes=SIZES, max_detections=limit)
    for a, matches in enumerate(evaluate(turned_rows(rows), 3, sizes=SIZES, max_detections=limit)):
        precision, recall = expected.eval["precision"][:, :, :, a, 0], expected.eval["recall"][:, :, a, 0]
        absent = recall == -1
        wanted = np.where(absent, np.nan, precision.mean(axis=1))
        np.testing.assert_allclose(average_precisions(matches), wanted, atol=1e-9)
        np.testing.assert_allclose(largest_recalls(matches), np.where(absent, np.nan, recall), atol=1e-9)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), angle=st.floats(-3, 3))
def test_turning_the_image_changes_nothing(cases: Any, seed: int, angle: float) -> None:
    rng = np.random.default_rng(seed)
    upright = []
    for row in cases.random(seed, images=4, classes=2):  # no two overlaps or scores alike
        shaken = {
            name: getattr(row, name) + rng.uniform(-0.1, 0.1, (len(getattr(row, name)), 1))
            for name in ("truth", "found", "ignored")
        }
        scores = row.scores + rng.uniform(0, 0.01, len(row.scores)).astype(np.float32)
        upright.append(dataclasses.replace(row, **shaken, scores=scores))
    plain = [dataclasses.replace(row, ignored=turn(row.ignored)) for row in turned_rows(upright)]
    turned = [
        dataclasses.replace(
            row, **{name: rotate(getattr(row, name), angle) for name in ("truth", "found", "ignored")}
        )
        for row in plain
    ]
    (before,), (after,) = evaluate(upright, 2), evaluate(turned, 2)
    np.testing.assert_allclose(average_precisions(after), average_precisions(before), atol=1e-9)
    assert before.ignored.sum() == after.ignored.sum()


def test_boxes_within_one_upright_box_are_told_apart() -> None:
    one, other = [50, 50, 60, 8, math.pi / 4], [50, 50, 60, 8, -math.pi / 4]
    row = ImageBoxes(
        truth=np.array([one], np.float32),
        truth_labels=np.zeros(1, np.int64),
        ignored=np.array([[200, 200, 260, 260]], np.float32),
        found=np.array([other, one, [230, 230, 50, 8, 0.5]], np.float32),
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        labels=np.zeros(3, np.int64),
    )
    (matches,) = evaluate([row], 1, thresholds=[0.5])
    assert matches.hits.tolist() == [[False, True, False]]
    assert matches.ignored.tolist() == [[False, False, True]]  # the third lies in the ignored region
    assert average_precisions(matches).item() == pytest.approx(0.5)


@given(st.integers(0, 2**32 - 1))
def test_common_area_of_turned_and_upright_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turned = np.column_stack([rng.uniform(0, 50, (9, 2)), rng.uniform(2, 40, (9, 2)), rng.uniform(-4, 4, 9)])
    corner = rng.uniform(0, 50, (9, 2))
    upright = np.column_stack([corner, corner + rng.uniform(2, 40, (9, 2))])
    shapes = shapely.polygons(turned_corners(turned)), shapely.box(*upright.T)
    expected = shapely.area(shapely.intersection(*shapes))
    np.testing.assert_allclose(rotated_intersections(turned, upright), expected, atol=1e-9)
    np.testing.assert_allclose(rotated_intersections(upright, turned), expected, atol=1e-9)
    np.testing.assert_allclose(box_areas(turned), shapely.area(shapes[0]))


def test_turned_boxes_of_a_detector_are_kept_and_come_back(cases: Any, tmp_path: Path) -> None:
    counts = cases.counts(["ship"], [])
    truth = torch.tensor([[50, 50, 60, 8, 0.5]])
    target = Target(
        boxes=torch.tensor([[20.0, 30, 80, 70]]),
        labels=torch.tensor([0]),
        ignored=torch.empty(0, 4),
        turned=truth,
    )
    for found in (truth, torch.empty(0, 5)):
        count = len(found)
        detections = Detections(
            torch.zeros(count, 4), torch.ones(count), torch.zeros(count, dtype=torch.int64), turned=found
        )
        counts.add(detections, target, item=Item("a.png", "a", "/made/up/a.png"), size=(100, 100))
    save_detection_counts(counts, tmp_path)
    table = load_detection_counts(tmp_path).table()
    np.testing.assert_array_equal(table.found, truth.numpy())
    (matches,) = match_detections(table)
    assert largest_recalls(matches).tolist() == [[0.5]] * 10
