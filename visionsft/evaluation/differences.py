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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.intervals import FEW_GROUPS, effective_groups, group_sums, interval, resample
from visionsft.evaluation.metrics import class_scores, marginal_counts, total_scores
from visionsft.evaluation.samples import Samples

PERMUTATIONS = 9999
_TIE = 1e-12
"""Differences below are rounding."""
_CHUNK = 500
"""Permutations that are held at once."""

METHOD = (
    "B - A: the second run minus the first. Interval: 95 %, paired bootstrap of whole groups. p: two-sided paired "
    "permutation test, in which the runs exchange their predictions on whole groups (in all ways, or in "
    f"{PERMUTATIONS:,} drawn at random); p_holm: corrected (Holm 1979) within each metric, over its classes and over "
    "all runs that are compared with the first"
)


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


Scores = dict[str, NDArray[np.float64]]


def differences(first: Samples, second: Samples) -> tuple[Difference, ...]:
    """Every metric of two comparable runs, over all classes and class by class."""
    sums = [group_sums(marginal_counts(each.confusions), each.groups)[1] for each in (first, second)]
    estimates = [_score(each.sum(axis=0)) for each in sums]
    drawn = _subtract(*(_score(resample(each)) for each in sums))
    found = _subtract(*estimates)
    ends = _ends(drawn, found, truth=sums[0][:, 1])
    p = permutation_test(*sums)
    rows = []
    for metric, values in found.items():
        names = (None,) if values.ndim == 0 else first.classes
        columns = [estimates[0][metric], estimates[1][metric], values, *ends[metric], p[metric]]
        numbers = np.stack(columns, axis=-1).reshape(-1, 6).tolist()
        for name, (one, other, gap, low, high, chance) in zip(names, numbers, strict=True):
            pair = None if math.isnan(low) else (low, high)
            rows.append(Difference(metric, name, one, other, gap, pair, chance))
    return tuple(rows)


def _score(margins: NDArray[Any]) -> Scores:
    """Marginal counts (..., 3, K) -> the totals (...) and class metrics (..., K) by name."""
    return total_scores(margins) | class_scores(margins)


def _subtract(first: Scores, second: Scores) -> Scores:
    return {metric: second[metric] - first[metric] for metric in first}


def _ends(
    drawn: Scores, found: Scores, *, truth: NDArray[np.int64]
) -> dict[str, tuple[NDArray[np.float64], ...]]:
    """Intervals of the differences; nan with too few groups. truth: (G, K) pixels."""
    ends: dict[str, tuple[NDArray[np.float64], ...]] = {}
    for metric, values in found.items():
        weights = truth if values.ndim else truth.sum(axis=1)
        enough = (weights > 0).sum(axis=0) >= FEW_GROUPS
        groups = np.where(enough, effective_groups(weights), 0.0)
        ends[metric] = interval(drawn[metric], values, groups=groups, method="t")
    return ends


def permutation_test(first: NDArray[np.int64], second: NDArray[np.int64]) -> Scores:
    """p of each metric's difference: how often exchanging whole groups' counts (G, 3, K) gives as large a one."""
    found = _subtract(_score(first.sum(axis=0)), _score(second.sum(axis=0)))
    gaps = (second - first).reshape(len(first), -1).astype(np.float64)
    totals = [each.sum(axis=0).astype(np.float64) for each in (first, second)]
    extreme = {metric: np.zeros(values.shape) for metric, values in found.items()}
    count = 0
    for exchanged in _exchanges(len(first)):
        moved = (exchanged @ gaps).reshape(-1, *totals[0].shape)
        chance = _subtract(_score(totals[0] + moved), _score(totals[1] - moved))
        for metric, values in found.items():
            below = np.abs(chance[metric]) < np.abs(values) - _TIE  # False for nan
            extreme[metric] += (~below).sum(axis=0)
        count += len(exchanged)
    return {
        metric: np.where(np.isnan(found[metric]), np.nan, hits / count) for metric, hits in extreme.items()
    }


def _exchanges(groups: int) -> Iterator[NDArray[np.float64]]:
    """Which groups to exchange, (R, G) of 0 and 1 at a time: all ways if they are few, else drawn at random.

    The first row exchanges nothing: the observed case counts as one of the permutations.
    """
    if 2**groups <= PERMUTATIONS:
        yield np.array(list(product((0.0, 1.0), repeat=groups)))
        return
    rng = np.random.default_rng(0)
    yield np.zeros((1, groups))
    for start in range(0, PERMUTATIONS, _CHUNK):
        rows = min(_CHUNK, PERMUTATIONS - start)
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
