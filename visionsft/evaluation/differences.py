"""Differences: how far two models' metrics are apart on the same samples, with intervals and p-values.

Both models have judged the same pixels, so their difference is known far better than either number: what makes a
scene hard is hard for both. It is resampled in pairs (the same groups for both) for an interval. The p-value is of
a paired permutation test: were the two equally good, exchanging their predictions on any of the groups would change
the difference by chance only, so it is compared with those after random exchanges. Unlike a test on the groups' own
scores this needs no additive metric; the observed case is counted as one of the permutations (Phipson & Smyth 2010).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.intervals import (
    FEW_GROUPS,
    RESAMPLES,
    SEED,
    draw_weights,
    effective_groups,
    interval,
)
from visionsft.evaluation.paired import PERMUTATIONS, Metric, Samples, Scorer, Scores

_TIE = 1e-12
"""Differences below are rounding."""
_CHUNK = 500
"""Draws that are held at once."""

METHOD = (
    "B - A: the second run minus the first. Interval: 95 %, paired bootstrap of whole groups. p: two-sided paired "
    "permutation test, in which the runs exchange their predictions on whole groups (in all ways, or in "
    "{permutations:,} drawn at random); p_holm: corrected (Holm 1979) within each metric, over its classes and over "
    "all runs that are compared with the first"
)
"""With the number of permutations left open."""


@dataclass(frozen=True)
class Difference:
    """One metric of both runs; nan where it isn't defined."""

    metric: str
    of: str | None
    """The class; None over all classes."""
    first: float
    second: float
    difference: float
    """second - first."""
    ends: tuple[float, float] | None
    """Of its 95 % interval; None with too few groups."""
    p: float
    """Two-sided."""
    p_holm: float = math.nan


def differences(first: Samples, second: Samples, *, tested: bool = True) -> tuple[Difference, ...]:
    """Every metric of two comparable runs, over all classes and class by class.

    tested: with p-values, which take most of the time; nan without.
    """
    score, truth = first.scorer(second), first.weights()
    estimates = first.estimates(), second.estimates()
    found = _subtract(*estimates)
    ends = _ends(_draw(score, len(truth)), found, truth=truth)
    p = {metric: np.full(values.shape, np.nan) for metric, values in found.items()}
    if tested:
        p = permutation_test(score, len(truth), permutations=first.permutations)
    rows = []
    for key, values in found.items():
        metric, by_class = key
        names = first.classes if by_class else (None,)
        columns = [estimates[0][key], estimates[1][key], values, *ends[key], p[key]]
        numbers = np.stack(columns, axis=-1).reshape(-1, 6).tolist()
        for name, (one, other, gap, low, high, chance) in zip(names, numbers, strict=True):
            pair = None if math.isnan(low) else (low, high)
            rows.append(Difference(metric, name, one, other, gap, pair, chance))
    return tuple(rows)


def _subtract(first: Scores, second: Scores) -> Scores:
    """Of what both have."""
    return {metric: second[metric] - first[metric] for metric in first if metric in second}


def _both(score: Scorer, first: NDArray[np.float64], second: NDArray[np.float64]) -> Scores:
    """Differences between two draws (R, 2 G) each: (R,) and (R, K)."""
    return _subtract(score(first), score(second))


def _draw(score: Scorer, groups: int) -> Scores:
    """The differences of resampled groups, the same ones of both runs."""
    rng, parts = np.random.default_rng(SEED), []
    for start in range(0, RESAMPLES, _CHUNK):
        weights = draw_weights(rng, min(_CHUNK, RESAMPLES - start), groups)
        none = np.zeros_like(weights)
        parts.append(_both(score, np.hstack([weights, none]), np.hstack([none, weights])))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _ends(
    drawn: Scores, found: Scores, *, truth: NDArray[np.int64]
) -> dict[Metric, tuple[NDArray[np.float64], ...]]:
    """Intervals of the differences; nan with too few groups. truth: (G, K) of what the labels have."""
    ends: dict[Metric, tuple[NDArray[np.float64], ...]] = {}
    for metric, values in found.items():
        weights = truth if values.ndim else truth.sum(axis=1)
        enough = (weights > 0).sum(axis=0) >= FEW_GROUPS
        groups = np.where(enough, effective_groups(weights), 0.0)
        ends[metric] = interval(drawn[metric], values, groups=groups, method="t")
    return ends


def permutation_test(score: Scorer, groups: int, *, permutations: int = PERMUTATIONS) -> Scores:
    """p of each metric's difference: how often exchanging whole groups gives as large a one."""
    found: Scores = {}
    extreme: Scores = {}
    count = 0
    for exchanged in _exchanges(groups, permutations):
        kept = 1 - exchanged
        chance = _both(score, np.hstack([kept, exchanged]), np.hstack([exchanged, kept]))
        if not found:  # the first row exchanges nothing
            found = {metric: values[0] for metric, values in chance.items()}
        for metric, values in found.items():
            below = np.abs(chance[metric]) < np.abs(values) - _TIE  # False for nan
            extreme[metric] = extreme.get(metric, np.zeros(values.shape)) + (~below).sum(axis=0)
        count += len(exchanged)
    return {metric: np.where(np.isnan(found[metric]), np.nan, hits / count) for metric, hits in extreme.items()}


def _exchanges(groups: int, permutations: int) -> Iterator[NDArray[np.float64]]:
    """Which groups to exchange, (R, G) of 0 and 1 at a time: all ways if they are few, else drawn at random.

    The first row exchanges nothing: the observed case counts as one of the permutations.
    """
    if 2**groups <= permutations:
        ways = np.array(list(product((0.0, 1.0), repeat=groups)))
        yield from np.array_split(ways, -(-len(ways) // _CHUNK))
        return
    rng = np.random.default_rng(0)
    yield np.zeros((1, groups))
    for start in range(0, permutations, _CHUNK):
        rows = min(_CHUNK, permutations - start)
        yield rng.integers(0, 2, (rows, groups)).astype(np.float64)


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p-values (Holm 1979): the chance of any false one among them stays below each; nan is left out."""
    corrected = [math.nan] * len(p)
    order = sorted((index for index, value in enumerate(p) if not math.isnan(value)), key=p.__getitem__)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p[index] * (len(order) - rank)))
        corrected[index] = largest
    return corrected
