"""Calibration of detectors against a loop over the detections, as Küppers et al. 2020 define it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from visionsft.evaluation.calibration import BINS
from visionsft.evaluation.detection_calibration import LEAST, DetectionCalibration
from visionsft.evaluation.metrics.boxes import ImageBoxes


def iou(one: np.ndarray, two: np.ndarray) -> float:
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    common = float(sides.clip(0).prod())
    return common / float((one[2:] - one[:2]).prod() + (two[2:] - two[:2]).prod() - common)


def naive(rows: list[ImageBoxes], least: float, at: float) -> float:
    """In each image the most certain detections choose first; then bins of (0, 1/15], (1/15, 2/15]..."""
    answers: list[tuple[float, bool]] = []
    for row in rows:
        taken: set[int] = set()
        for index in np.argsort(-row.scores, kind="stable"):
            best, found = 0.0, None
            for other in range(len(row.truth)):
                if row.truth_labels[other] != row.labels[index] or other in taken:
                    continue
                value = iou(row.found[index].astype(float), row.truth[other].astype(float))
                if value >= at and value > best:
                    best, found = value, other
            if found is not None:
                taken.add(found)
            answers.append((float(row.scores[index]), found is not None))
    answers = [each for each in answers if each[0] >= least]
    error = 0.0
    for edge in range(BINS):
        inside = [each for each in answers if edge / BINS < each[0] <= (edge + 1) / BINS]
        if inside:
            scores, right = np.array(inside).T
            error += len(inside) / len(answers) * abs(right.mean() - scores.mean())
    return error


@pytest.fixture
def rows(cases: SimpleNamespace) -> list[ImageBoxes]:
    """Without ignored regions, and with scores that are all different."""
    rng, rows = np.random.default_rng(0), []
    for row in cases.random(3, images=20):
        scores = rng.uniform(0.01, 1, len(row.scores)).astype(np.float32)
        empty = np.empty((0, 4), np.float32)
        rows.append(ImageBoxes(row.truth, row.truth_labels, empty, row.found, scores, row.labels))
    return rows


def test_the_errors_are_those_of_the_loop(cases: SimpleNamespace, rows: list[ImageBoxes]) -> None:
    made = DetectionCalibration.of(cases.counts("abcd", rows), iou=0.5)
    found = made.as_dict()
    assert found["ece"] == pytest.approx(naive(rows, LEAST, 0.5), rel=1e-6)
    assert found["ece_all"] == pytest.approx(naive(rows, 0.0, 0.5), rel=1e-6)
    assert found["count"] == sum((row.scores >= np.float32(LEAST)).sum() for row in rows)
    assert sum(each["count"] for each in found["bins"]) == sum(len(row.scores) for row in rows)
    assert found["interval"][0] < found["ece"] < found["interval"][1]
    assert (found["iou"], found["least_score"]) == (0.5, LEAST)
    assert "D-ECE" in made.lines()[0]


def test_classes_are_those_of_their_own_detections(cases: SimpleNamespace, rows: list[ImageBoxes]) -> None:
    found = DetectionCalibration.of(cases.counts("abcd", rows), iou=0.5).as_dict()["ece_per_class"]
    for k, name in enumerate("abcd"):
        own = [
            ImageBoxes(
                row.truth, row.truth_labels, row.ignored, row.found[row.labels == k],
                row.scores[row.labels == k], row.labels[row.labels == k],
            )
            for row in rows
        ]  # fmt: skip
        assert found[name] == pytest.approx(naive(own, LEAST, 0.5), rel=1e-6)


def test_detections_in_ignored_regions_do_not_count(cases: SimpleNamespace) -> None:
    row = cases.image(truth=[(0, 0, 10, 10, 0)], ignored=[(50, 50, 90, 90)],
                      found=[(0, 0, 10, 10, 0, 0.9), (55, 55, 65, 65, 0, 0.8)])  # fmt: skip
    found = DetectionCalibration.of(cases.counts("a", [row] * 6), iou=0.5).as_dict()
    assert found["count"] == 6
    assert found["ece"] == pytest.approx(0.1, abs=1e-6)


def test_without_detections_there_is_no_number(cases: SimpleNamespace) -> None:
    made = DetectionCalibration.of(cases.counts("a", [cases.image(truth=[(0, 0, 10, 10, 0)])]), iou=0.5)
    found = made.as_dict()
    assert (found["ece"], found["ece_all"], found["interval"]) == (None, None, None)
    assert "no interval" in made.lines()[0]
