"""Operating points on cases counted by hand, and the miss rate against Dollár's definition written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from visionsft.evaluation.metrics.boxes import BoxTable
from visionsft.evaluation.metrics.detection_curves import DetectionCurve, detection_curve
from visionsft.evaluation.metrics.matching import match_detections


def curve(outcomes: str, *, positives: int, images: int) -> DetectionCurve:
    """Detections of falling scores 0.9, 0.8...: 'x' finds an object, '-' doesn't."""
    hits = np.array([each == "x" for each in outcomes], np.int64)
    scores = (0.9 - 0.1 * np.arange(len(outcomes))).astype(np.float32).astype(np.float64)
    return DetectionCurve(scores, hits.cumsum(), (1 - hits).cumsum(), positives, images)


def test_recall_at_false_positives_per_image_by_hand() -> None:
    found = curve("xx-x--x", positives=5, images=10)  # false positives per image: 0 0 .1 .1 .2 .3 .3
    assert found.recall_at_fppi(0.05) == pytest.approx(2 / 5)
    assert found.recall_at_fppi(0.1) == pytest.approx(3 / 5)
    assert found.recall_at_fppi(0.2) == pytest.approx(3 / 5)
    assert found.recall_at_fppi(0.3) == pytest.approx(4 / 5)
    assert found.recall_at_fppi(1) == pytest.approx(4 / 5)  # the curve ends before


def test_a_certain_false_positive_leaves_no_recall_below_its_rate() -> None:
    assert curve("-xx", positives=2, images=5).recall_at_fppi(0.1) == 0


def test_rounding_does_not_lose_a_false_positive() -> None:
    assert curve("---x", positives=1, images=30).recall_at_fppi(0.1) == 1


def test_log_average_miss_rate_by_hand() -> None:
    # 100 images: the first false positive is at 0.01 = the first of the nine rates, the second at 0.02
    found = curve("x-x-x", positives=4, images=100)
    # at 0.01 (1 allowed): 2 of 4; from 0.0178 (still 1): 2 of 4; from 0.0316 on (3 allowed): 3 of 4
    expected = math.exp((2 * math.log(0.5) + 7 * math.log(0.25)) / 9)
    assert found.log_average_miss_rate() == pytest.approx(expected)


def test_log_average_miss_rate_ends() -> None:
    assert curve("", positives=3, images=10).log_average_miss_rate() == 1
    assert curve("xxx", positives=3, images=10).log_average_miss_rate() == pytest.approx(1e-10)
    assert math.isnan(curve("--", positives=0, images=10).log_average_miss_rate())


def test_points_by_hand() -> None:
    found = curve("xx-x", positives=4, images=2)
    assert vars(found.at(0.75)) == pytest.approx(
        {"score": 0.75, "recall": 0.5, "precision": 1, "f1": 2 / 3, "fppi": 0}
    )
    assert [found.at(score).recall for score in (0.9, 0.8, 0.6)] == [0.25, 0.5, 0.75]  # itself included
    best = found.best_f1()
    assert (best.score, best.recall, best.precision, best.f1, best.fppi) == pytest.approx(
        (0.6, 0.75, 0.75, 0.75, 0.5)
    )
    nothing = found.at(0.95)
    assert (nothing.recall, nothing.fppi) == (0, 0)
    assert math.isnan(nothing.precision)


def test_without_truth_or_detections_there_is_no_best_score() -> None:
    assert math.isnan(curve("--", positives=0, images=1).best_f1().score)
    assert math.isnan(curve("", positives=2, images=1).best_f1().score)
    assert curve("", positives=2, images=1).at(0.5).recall == 0


@given(outcomes=st.text("x-", min_size=1, max_size=30), images=st.integers(1, 40), missed=st.integers(0, 5))
def test_more_false_positives_never_find_less(outcomes: str, images: int, missed: int) -> None:
    found = curve(outcomes, positives=max(1, outcomes.count("x") + missed), images=images)
    recalls = [found.recall_at_fppi(fppi) for fppi in (0, 0.01, 0.1, 0.5, 1, 10, 100)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == pytest.approx(found.recall[-1])
    assert found.best_f1().f1 == max(found.f1)
    assert 1 - recalls[4] - 1e-9 <= found.log_average_miss_rate() <= max(1 - recalls[1], 1e-10) + 1e-9


def test_curve_is_scikit_learns_with_ties_where_every_object_is_found(cases: Any) -> None:
    truth = [(30 * i, 0, 30 * i + 20, 20, 0) for i in range(12)]
    found = [(*box, (1 + i % 4) / 4) for i, box in enumerate(truth)]
    found += [(30 * i, 50, 30 * i + 20, 70, 0, (1 + i % 3) / 4) for i in range(9)]
    table = BoxTable.gather([cases.image(truth, [], found), cases.image()], 1)
    (matches,) = match_detections(table, thresholds=(0.5,))
    one = detection_curve(matches, 0, iou=0.5)
    precision, recall, scores = precision_recall_curve(matches.hits[0], matches.scores)
    np.testing.assert_allclose(one.precision[::-1], precision[:-1])
    np.testing.assert_allclose(one.recall[::-1], recall[:-1])
    np.testing.assert_allclose(one.scores[::-1], scores)
    assert one.images == 2


def test_ignored_detections_are_in_no_curve(cases: Any) -> None:
    one = cases.image(
        [(0, 0, 20, 20, 0)], [(30, 0, 90, 60)], [(30, 0, 50, 20, 0, 0.9), (0, 0, 20, 20, 0, 0.5)]
    )
    (matches,) = match_detections(BoxTable.gather([one], 2), thresholds=(0.5,))
    found = detection_curve(matches, None, iou=0.5)
    assert (found.scores.tolist(), found.hits.tolist(), found.false.tolist()) == ([0.5], [1], [0])
    with pytest.raises(ValueError, match=r"no matches at IoU 0\.75; there are"):
        detection_curve(matches, 0, iou=0.75)
