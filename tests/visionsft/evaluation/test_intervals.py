"""Intervals: the draws against scipy, coverage by simulation, and what few groups are told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from visionsft.evaluation.intervals import (
    effective_groups,
    group_sums,
    interval,
    resample,
    segmentation_intervals,
)
from visionsft.evaluation.metrics import (
    class_fractions,
    class_scores,
    marginal_counts,
    summarise,
    total_scores,
)

RARE = 2
"""The class of one pixel in ten."""


def simulate(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Confusion matrices (*shape, 3, 3) of groups with sizes, class mixtures and error rates of their own."""
    pixels = 10_000 * rng.lognormal(0, 0.5, shape)
    mixture = rng.dirichlet((3.6, 1.8, 0.6), shape)
    truth = np.round(pixels[..., None] * mixture).astype(np.int64)
    errors = [rng.dirichlet(30 * np.array(row), shape) for row in
              ((0.95, 0.03, 0.02), (0.1, 0.8, 0.1), (0.15, 0.15, 0.7))]  # fmt: skip
    return rng.multinomial(truth, np.stack(errors, axis=-2))


def scores_of(margins: np.ndarray) -> dict[str, np.ndarray]:
    return {**total_scores(margins), **{k: v[..., RARE] for k, v in class_scores(margins).items()}}


def weights_of(margins: np.ndarray) -> dict[str, np.ndarray]:
    """The pixels by which a group counts in each metric, as `segmentation_intervals` takes them."""
    labelled = dict.fromkeys(total_scores(margins), margins[..., 1, :].sum(axis=-1))
    return {**labelled, **{k: whole[..., RARE] for k, (_, whole) in class_fractions(margins).items()}}


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """The metrics of so many groups that chance plays no part."""
    return scores_of(marginal_counts(simulate(np.random.default_rng(1), 200_000).sum(axis=0)))


@pytest.mark.parametrize("groups", [10, 20, 50, 200])
def test_coverage(groups: int, expected: dict[str, np.ndarray]) -> None:
    """Of 95 % intervals over groups with errors of their own, 93-97 % hold the truth; of naive ones, few do."""
    simulations = 1000  # a share of them near 95 % has a standard error of 0.7 %
    margins = marginal_counts(simulate(np.random.default_rng(groups), groups, simulations))  # (G, S, 3, 3)
    estimates, values = scores_of(margins.sum(axis=0)), scores_of(resample(margins, resamples=1000))
    for metric, weights in weights_of(margins).items():
        low, high = interval(values[metric], estimates[metric], groups=effective_groups(weights))
        assert 0.93 - 0.007 <= covers(low, high, expected[metric]) <= 0.97 + 0.007, metric
    right, pixels = margins.sum(axis=0)[:, :2].sum(axis=-1).T
    naive = 1.96 * np.sqrt(right / pixels * (1 - right / pixels) / pixels)  # every pixel for itself
    accuracy = estimates["pixel_accuracy"]
    assert covers(accuracy - naive, accuracy + naive, expected["pixel_accuracy"]) < 0.3


def covers(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> float:
    """Share of the intervals that hold `truth`, of those that are given."""
    return float(np.mean((low <= truth) & (truth <= high), where=~np.isnan(low)))


def test_the_draws_are_scipys_bootstrap() -> None:
    part, whole = np.random.default_rng(0).gamma(2, size=(2, 40))
    drawn = resample(np.stack([part, whole], axis=1), resamples=20_000)
    ratios = drawn[:, 0] / drawn[:, 1]
    reference = stats.bootstrap(
        (part, whole),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert ratios.std(ddof=1) == pytest.approx(reference.standard_error, rel=0.03)
    np.testing.assert_allclose(np.quantile(ratios, (0.025, 0.975)), reference.confidence_interval, rtol=0.02)


def test_with_many_equal_groups_the_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(3, 2, 60)
    mean = values.mean()
    draws = resample(values, resamples=20_000) / 60
    ends = interval(draws, mean, groups=effective_groups(np.ones(60)), method="t")
    expected = stats.t.interval(0.95, 59, loc=mean, scale=stats.sem(values))
    np.testing.assert_allclose(ends, expected, rtol=0.02)


def test_the_same_seed_draws_the_same_groups() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 99, (2, 7, 3, 3))
    both = resample(np.stack([first, second], axis=1), resamples=50, seed=4)
    np.testing.assert_array_equal(resample(first, resamples=50, seed=4), both[:, 0])
    np.testing.assert_array_equal(resample(second, resamples=50, seed=4), both[:, 1])
    assert not np.array_equal(resample(first, resamples=50, seed=5), both[:, 0])


def test_groups_are_summed_in_the_order_of_their_names() -> None:
    names, sums = group_sums(np.arange(8).reshape(4, 2), ["b", "a", "b", "c"])
    assert names == ["a", "b", "c"]
    assert sums.tolist() == [[2, 3], [4, 6], [6, 7]]


def test_effective_groups_are_equal_groups_that_say_as_much() -> None:
    assert effective_groups(np.full(9, 5)) == 9
    assert effective_groups(np.array([5, 5, 0, 0])) == 2
    assert effective_groups(np.array([1e6, 1, 1])) == pytest.approx(1, abs=1e-4)
    assert effective_groups(np.zeros(3)) == 0


def test_intervals_by_name_in_the_order_of_the_scores() -> None:
    confusions = simulate(np.random.default_rng(3), 60)
    groups = [f"drive {i % 12}" for i in range(60)]
    found = segmentation_intervals(confusions, groups, ["road", "car", "sign"])
    scores = summarise(confusions.sum(axis=0), ["road", "car", "sign"])
    assert (found.groups, found.unit, found.note) == (12, "group", None)
    for metric, ends in found.metrics.items():
        assert ends is not None
        assert 0 < ends[0] < getattr(scores, metric) < ends[1] < 1
    for row, score in zip(found.per_class, scores.per_class, strict=True):
        assert (row.name, row.groups, row.note) == (score.name, 12, None)
        assert all(ends[0] < getattr(score, metric) < ends[1] for metric, ends in row.ends.items() if ends)
    shuffled = np.random.default_rng(0).permutation(60)
    again = segmentation_intervals(
        confusions[shuffled], [groups[i] for i in shuffled], ["road", "car", "sign"]
    )
    assert again == found
    assert found.as_dict()["per_class"]["car"]["iou"] == list(found.per_class[1].ends["iou"] or ())


def test_a_class_in_few_groups_says_so_instead_of_giving_a_tight_interval() -> None:
    confusions = simulate(np.random.default_rng(3), 12)
    confusions[3:, RARE] = 0  # in the truth of three groups
    confusions[0, 1] *= 1000  # in all, but nearly all of it in one
    road, car, sign = segmentation_intervals(confusions, [str(i) for i in range(12)], list("abc")).per_class
    assert road.note is None
    assert car.note == "nearly all pixels in one of 12 groups"
    assert (sign.note, sign.groups) == ("only 3 groups", 3)
    assert set(car.ends.values()) == set(sign.ends.values()) == {None}


@pytest.mark.parametrize(("groups", "note"), [(1, "only 1 group"), (4, "only 4 groups")])
def test_few_groups_in_all_give_no_interval(groups: int, note: str) -> None:
    confusions = simulate(np.random.default_rng(3), 40)
    found = segmentation_intervals(confusions, [str(i % groups) for i in range(40)], list("abc"))
    assert found.note == note
    assert set(found.metrics.values()) == {None}
    assert all(row.note == note for row in found.per_class)


def test_a_share_of_one_in_every_group_is_no_certainty() -> None:
    low, high = interval(np.ones((500, 1)), np.ones(1), groups=20)
    assert (low.item(), high.item()) == (pytest.approx(stats.beta.ppf(0.025, 20, 1)), 1)
    low, high = interval(np.zeros((500, 1)), np.zeros(1), groups=20)
    assert (low.item(), high.item()) == (0, pytest.approx(stats.beta.ppf(0.975, 1, 20)))
    assert all(math.isnan(end) for end in interval(np.full((9, 1), np.nan), np.nan, groups=20)[0])
