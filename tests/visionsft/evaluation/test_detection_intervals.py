"""A draw is what evaluating the drawn images gives, and intervals follow the rules of few groups."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.detection_intervals import DrawnCurve, bootstrap_detections
from visionsft.evaluation.detection_scores import score_detections
from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes
from visionsft.evaluation.metrics.detection import average_precisions
from visionsft.evaluation.metrics.matching import match_detections


def distinct(rows: list[ImageBoxes], seed: int) -> list[ImageBoxes]:
    """With scores that don't tie."""
    rng = np.random.default_rng(seed)
    return [replace(row, scores=rng.random(len(row.found)).astype(np.float32)) for row in rows]


@pytest.mark.parametrize("seed", range(5))
def test_a_draw_is_the_average_precision_of_the_drawn_images(cases: Any, seed: int) -> None:
    rows = distinct(cases.random(seed, images=10), seed)
    groups = np.arange(10) // 2
    (matches,) = match_detections(BoxTable.gather(rows, 4))
    weights = np.random.default_rng(seed).integers(0, 4, (6, 5))
    for t, k in ((0, 0), (0, 1), (4, 2)):
        drawn = [
            [row for i, row in enumerate(rows) for _ in range(weight[groups[i]])]
            for weight in weights.tolist()
        ]
        expected = [average_precisions(match_detections(BoxTable.gather(each, 4))[0])[t, k] for each in drawn]
        objects = np.array([matches.positives[groups == g, k].sum() for g in range(5)])
        curve = DrawnCurve.of(matches, t, k, groups, 5)
        found = curve.average_precision(weights.astype(float), weights @ objects)
        np.testing.assert_allclose(found, expected)


def test_few_points_move_a_draw_by_little(cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = distinct(cases.random(1, images=240, classes=2), 1)
    (matches,) = match_detections(BoxTable.gather(rows, 2))
    objects = matches.positives[:, 0]
    weights = np.random.default_rng(0).poisson(1, (50, 240)).astype(float)
    exact, coarse = [], []
    for points, values in ((10_000, exact), (128, coarse)):
        monkeypatch.setattr("visionsft.evaluation.detection_intervals.MOST_POINTS", points)
        curve = DrawnCurve.of(matches, 0, 0, np.arange(240), 240)
        values.extend(curve.average_precision(weights, weights @ objects))
    assert matches.hits[0].sum() > 200
    assert np.abs(np.array(exact) - coarse).max() < 0.01
    assert np.std(coarse) == pytest.approx(np.std(exact), rel=0.05)


def made(cases: Any, *, images: int, groups: int, seed: int = 0) -> DetectionCounts:
    rows = distinct(cases.random(seed, images=images, classes=3), seed)
    return cases.counts(("a", "b", "never"), rows, [f"drive{i % groups}" for i in range(images)])


def test_intervals_hold_the_scores(cases: Any) -> None:
    counts = made(cases, images=60, groups=12)
    scores, found = (
        score_detections(counts, score=0.4),
        bootstrap_detections(counts, score=0.4, resamples=300),
    )
    assert found.note is None
    for metric, ends in found.metrics.items():
        assert ends[0] < getattr(scores, metric) < ends[1]
        assert ends[1] - ends[0] < 0.5
    for row, score in zip(found.per_class[:2], scores.per_class, strict=False):
        assert row.groups == 12
        for metric, ends in row.ends.items():
            assert ends[0] < getattr(score, metric) < ends[1]
    assert found.per_class[2].note == "only 0 groups"
    assert f"{scores.map:.4f}  [{found.metrics['map'][0]:.3f}, " in found.table(scores)
    json.dumps(found.as_dict(), allow_nan=False)
    assert bootstrap_detections(counts, score=0.4, resamples=300) == found


def test_images_of_one_drive_are_no_evidence_of_their_own(cases: Any) -> None:
    """Drives that are one image shown ten times: by drive wide, by image too narrow."""
    rows = [row for row in distinct(cases.random(3, images=20, classes=3), 3) for _ in range(10)]
    counts = cases.counts(("a", "b", "never"), rows, [f"{i // 10}" for i in range(200)])
    widths = []
    for unit in ("group", "image"):
        low, high = bootstrap_detections(counts, unit=unit, resamples=300).metrics["ap50"]
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]


def test_few_groups_have_none(cases: Any) -> None:
    counts = made(cases, images=12, groups=4)
    found = bootstrap_detections(counts, resamples=20)
    assert found.metrics == {"map": None, "ap50": None, "recall": None}
    assert found.table(score_detections(counts)) == (
        "no 95% intervals, 20 resamples of 4 groups: only 4 groups"
    )


def test_a_perfect_detector_may_still_err(cases: Any) -> None:
    row = cases.image([(0, 0, 20, 20, 0)], [], [(0, 0, 20, 20, 0, 0.9)])
    low, high = bootstrap_detections(cases.counts(("a",), [row] * 20), resamples=50).metrics["map"]
    assert (low, high) == pytest.approx((0.025 ** (1 / 20), 1))  # Clopper and Pearson
