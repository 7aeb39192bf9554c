"""Scores by class for a wanted recall or precision, against trying every score."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from datamodules import DataError
from visionsft.evaluation.detection_scores import curves_by_class, price_scores
from visionsft.evaluation.metrics.detection_curves import DetectionCurve
from visionsft.evaluation.operating import AppliedPoint
from visionsft.evaluation.score_thresholds import choose
from visionsft.evaluation.thresholds import Requirement


def curve(hits: list[int], scores: list[float], positives: int) -> DetectionCurve:
    """hits: 1 where the detection finds an object; the most certain first."""
    right = np.array(hits, np.int64)
    return DetectionCurve(np.array(scores), right.cumsum(), (1 - right).cumsum(), positives, 3)


def test_a_recall_gets_the_highest_score_and_a_precision_the_lowest() -> None:
    made = curve([1, 1, 0, 1, 0, 0], [0.9, 0.8, 0.7, 0.6, 0.5, 0.2], 4)
    found = choose(made, Requirement("recall", "car", 0.5))
    assert (found.value, found.recall, found.precision) == (pytest.approx(0.75), 0.5, 1.0)
    found = choose(made, Requirement("precision", "car", 0.75))
    assert (found.value, found.recall, found.precision) == (pytest.approx(0.55), 0.75, 0.75)
    assert choose(made, Requirement("precision", "car", 0.5)).value == pytest.approx(0.1)


@pytest.mark.parametrize("metric", ["recall", "precision"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_no_other_score_would_be_better(cases: SimpleNamespace, metric: str, k: int) -> None:
    counts = cases.counts("abcd", cases.random(5, images=20))
    made = curves_by_class(counts, iou=0.5)[k]
    found = choose(made, Requirement(metric, "abcd"[k], 0.25))  # type: ignore[arg-type]
    assert made.at(found.value).recall == pytest.approx(found.recall)
    meets = [score for score in made.scores if getattr(made.at(score), metric) >= 0.25]
    best = max(meets) if metric == "recall" else min(meets)
    assert made.at(best).recall == pytest.approx(found.recall)


def test_what_can_not_be_met_is_said() -> None:
    made = curve([1, 0], [0.9, 0.8], 4)
    with pytest.raises(DataError, match=r"recall\[car\] >= 0.9: on the validation split the best is 0.2500"):
        choose(made, Requirement("recall", "car", 0.9))
    with pytest.raises(DataError, match="no object of the validation split is labelled as car"):
        choose(curve([0], [0.9], 0), Requirement("recall", "car", 0.9))
    with pytest.raises(DataError, match="nothing is found"):
        choose(curve([], [], 2), Requirement("recall", "car", 0.9))


def test_the_price_is_that_of_each_classs_curve(cases: SimpleNamespace) -> None:
    counts = cases.counts("abcd", cases.random(5, images=20))
    point = AppliedPoint(((1, 0.25),), tuple("abcd"), "r", 1.0, "0")
    price = price_scores(counts, point, iou=0.5, score=0.6)
    curves = curves_by_class(counts, iou=0.5)
    assert price.per_class[1].recall == (curves[1].at(0.6).recall, curves[1].at(0.25).recall)
    assert price.per_class[0].precision == (curves[0].at(0.6).precision,) * 2
    assert price.without == "score >= 0.6, IoU 0.5"
