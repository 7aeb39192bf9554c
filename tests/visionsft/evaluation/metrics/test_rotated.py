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


def difficult_rows(seed: int) -> list[ImageBoxes]:
    """Ships far apart, some of them difficult, each found several times and shifted."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(6):
        count = int(rng.integers(1, 7))
        ships = np.column_stack([
            200.0 * np.arange(count), np.full(count, 50.0), rng.uniform(30, 80, count),
            rng.uniform(8, 30, count), rng.uniform(-1.5, 1.5, count),
        ])  # fmt: skip
        labels, hard = rng.integers(0, 2, count), rng.random(count) < 0.4
        found = np.repeat(ships, 3, axis=0) + rng.normal(0, (6, 6, 4, 2, 0.1), (3 * count, 5))
        guesses = np.where(rng.random(3 * count) < 0.2, 1 - np.repeat(labels, 3), np.repeat(labels, 3))
        scores = rng.permutation(3 * count) / (3 * count)
        row = (ships[~hard], labels[~hard], ships[hard], found, scores, guesses)
        rows.append(ImageBoxes(*row, ignored_labels=labels[hard]))
    return rows


def devkit_marks(row: ImageBoxes, label: int, iou: float) -> dict[float, str]:
    """DOTA_devkit's voc_eval on one image, with shapely: what each detection is, by its score."""
    own, hard = row.truth_labels == label, row.ignored_labels == label
    boxes = np.concatenate([row.truth[own], row.ignored[hard]])
    shapes, difficult = shapely.polygons(turned_corners(boxes)), np.arange(len(boxes)) >= own.sum()
    taken, marks = set(), {}
    for i in sorted(np.flatnonzero(row.labels == label), key=lambda i: -row.scores[i]):
        polygon = shapely.polygons(turned_corners(row.found[i : i + 1]))[0]
        ious = shapely.area(shapely.intersection(polygon, shapes)) / shapely.area(shapely.union(polygon, shapes))
        best = int(ious.argmax()) if len(ious) else -1
        if best < 0 or ious[best] <= iou:
            marks[row.scores[i]] = "false"
        elif not difficult[best]:
            marks[row.scores[i]] = "false" if best in taken else "hit"
            taken.add(best)
        else:
            marks[row.scores[i]] = "neither"
    return marks


@pytest.mark.parametrize("seed", range(4))
def test_difficult_objects_set_aside_what_dotas_devkit_does(seed: int) -> None:
    for row in difficult_rows(seed):
        (matches,) = evaluate([row], 2, thresholds=[0.5])
        kinds = np.select([matches.hits[0], matches.ignored[0]], ["hit", "neither"], "false")
        for label in (0, 1):
            own = matches.labels == label
            found = dict(zip(matches.scores[own], kinds[own], strict=True))
            assert found == devkit_marks(row, label, 0.5)


def test_a_difficult_object_is_no_region(cases: Any) -> None:
    """A small detection inside lies in a region, but does not find a difficult object; nor does another class."""
    box = np.array([[50, 50, 60, 40, 0.3]])
    found = np.array([[50, 50, 10, 6, 0.3], [50, 50, 60, 38, 0.3], [50, 50, 58, 40, 0.3], [50, 50, 60, 40, 0.3]])
    row = ImageBoxes(
        np.empty((0, 5)), np.empty(0, np.int64), box, found, np.array([0.9, 0.8, 0.7, 0.6]),
        np.array([0, 0, 0, 1]), ignored_labels=np.array([0]),
    )  # fmt: skip
    (matches,) = evaluate([row], 2, thresholds=[0.5])
    assert matches.ignored.tolist() == [[False, True, True, False]]
    (matches,) = evaluate([dataclasses.replace(row, ignored_labels=np.array([-1]))], 2, thresholds=[0.5])
    assert matches.ignored.tolist() == [[True, True, True, True]]
