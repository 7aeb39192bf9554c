"""Differences between two models: against scipy, by construction, and the size of the test by simulation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from visionsft.evaluation.differences import Difference, differences, holm, permutation_test
from visionsft.evaluation.map_samples import MapSamples
from visionsft.evaluation.metrics import mean_iou
from visionsft.runs import Run


def draw(rng: np.random.Generator, quality: np.ndarray, *, pixels: np.ndarray) -> np.ndarray:
    """(G, 3, 3): as many pixels of each class, right with the group's quality, else one of the other classes."""
    confusions = np.zeros((len(quality), 3, 3), np.int64)
    for group, (share, count) in enumerate(zip(quality, pixels, strict=True)):
        for truth in range(3):
            row = np.full(3, (1 - share) / 2)
            row[truth] = share
            confusions[group, truth] = rng.multinomial(count, row)
    return confusions


def scene(rng: np.random.Generator, count: int, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two models on the same groups, unequal in size and difficulty; the second is better by `gain` on average."""
    hard, pixels = rng.uniform(0.5, 0.9, count), rng.integers(500, 5000, count)
    own = rng.normal(0, 0.03, (2, count))  # how each model happens to fare in a group
    return tuple(draw(rng, (hard + own[i] + i * gain).clip(0, 1), pixels=pixels) for i in range(2))  # type: ignore[return-value]


def samples(confusions: np.ndarray) -> MapSamples:
    names = tuple(f"{i:03}" for i in range(len(confusions)))
    order = tuple(range(len(confusions)))
    return MapSamples(Run(Path("runs/x")), names, names, ("a", "b", "c"), order, confusions)


def mean_iou_test(first: np.ndarray, second: np.ndarray) -> float:
    """p of the difference of mean IoU."""
    score = samples(first).scorer(samples(second))
    return float(permutation_test(score, len(first))["mean_iou", False])


def total(rows: tuple[Difference, ...], metric: str) -> Difference:
    return next(row for row in rows if row.metric == metric)


@pytest.mark.parametrize("count", [7, 40])
def test_p_values_are_scipys(count: int) -> None:
    first, second = scene(np.random.default_rng(count), count, gain=0.01)
    both = np.concatenate([first, second])

    def gap(one: np.ndarray, other: np.ndarray) -> float:
        return float(mean_iou(both[other].sum(axis=0)) - mean_iou(both[one].sum(axis=0)))

    reference = stats.permutation_test(
        (np.arange(count), np.arange(count) + count),
        gap, permutation_type="samples", n_resamples=1999, vectorized=False, random_state=0,
    )  # fmt: skip
    found = mean_iou_test(first, second)
    assert found == pytest.approx(reference.pvalue, abs=1e-9 if count == 7 else 0.04)


def test_identical_models_do_not_differ() -> None:
    first, _ = scene(np.random.default_rng(0), 12)
    for row in differences(samples(first), samples(first)):
        assert (row.difference, row.p, row.ends) == (0, 1, (0, 0))


def test_a_better_model_is_found() -> None:
    rows = differences(*map(samples, scene(np.random.default_rng(1), 15, gain=0.05)))
    for row in rows:
        assert row.second - row.first == pytest.approx(row.difference)
        assert row.difference > 0
        assert row.p < 0.01
        assert row.ends is not None
        assert 0 < row.ends[0] < row.difference < row.ends[1]
    assert [row.of for row in rows if row.metric == "iou"] == ["a", "b", "c"]


def test_equal_models_are_told_apart_as_seldom_as_stated() -> None:
    """At 5 %, 400 comparisons of equally good models; 2.5 to 7.5 % is within 2.3 standard errors."""
    rng = np.random.default_rng(2)
    p = np.array([mean_iou_test(*scene(rng, 8)) for _ in range(400)])
    assert 0.025 < (p <= 0.05).mean() < 0.075
    assert 0.4 < (p <= 0.5).mean() < 0.6


def test_too_few_groups_have_no_interval_and_no_small_p() -> None:
    row = total(differences(*map(samples, scene(np.random.default_rng(3), 3, gain=0.09))), "mean_iou")
    assert row.ends is None
    assert row.p == 2 / 2**3  # the observed exchange and its mirror image


def test_a_class_that_is_nowhere_has_no_difference() -> None:
    first, second = scene(np.random.default_rng(4), 6)
    padded = [samples(np.pad(each, ((0, 0), (0, 1), (0, 1)))) for each in (first, second)]
    rows = differences(*(MapSamples(**{**vars(each), "classes": ("a", "b", "c", "d")}) for each in padded))
    absent = next(row for row in rows if (row.metric, row.of) == ("iou", "d"))
    assert math.isnan(absent.difference)
    assert math.isnan(absent.p)
    assert absent.ends is None


def test_holm() -> None:
    """The worked example of Holm's procedure: sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling."""
    assert holm([0.03, 0.01, math.nan, 0.04, 0.02]) == pytest.approx(
        [0.06, 0.04, math.nan, 0.06, 0.06], nan_ok=True
    )
    assert holm([0.7, 0.6]) == [1, 1]
