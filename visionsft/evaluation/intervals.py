"""Intervals: how far a metric would move if other scenes or drives of the same kind had been tested.

The unit that is resampled is the group (a scene, a drive, or a single image): pixels of one group share its
errors, and an interval that takes them for independent is several times too narrow. The sums of each group are
drawn with replacement (the bootstrap; Efron & Tibshirani 1993). The spread of a metric over the draws is its
standard error, and the interval lies at Student's t around the metric, for shares on the logit scale, which
keeps it inside 0..1. Both are corrected for few and for unequal groups by their effective number (Kish 1965):
percentile and BCa intervals of the same draws cover 81-92 % instead of 95 % at 10-20 groups (Hesterberg 2015
finds the same), these 93-97 %; ``tests/visionsft/evaluation/test_intervals.py`` has the simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from visionsft.evaluation.metrics import (
    SegmentationScores,
    class_fractions,
    class_scores,
    marginal_counts,
    total_scores,
)

Number = TypeVar("Number", np.int64, np.float64)
Method = Literal["logit-t", "t"]
"""How an interval is laid: "logit-t" for shares in 0..1, "t" for anything else, such as a difference."""

Unit = Literal["group", "image"]
"""What is resampled: a scene or drive, or a single sample (a frame, or a window of a scene)."""

LEVEL, RESAMPLES, SEED = 0.95, 2000, 0

FEW_GROUPS = 5
"""Fewest groups for an interval. In the simulation one of mean IoU is 0.2-0.3 wide with five groups (and covers
95-96 %), with three it spans half of 0..1, which is no evidence and reads as if it were."""

FEW_EFFECTIVE = 2.0
"""Fewest effective groups: below, one group holds most of the pixels, and there is no spread to measure."""

_SHOWN = ("iou", "recall", "precision")
"""Class metrics in the text table."""

_MAX_LOGIT = 700.0
"""Just below where exp overflows."""

_CHUNK = 4_000_000
"""Weights that are held at once; 8 bytes each."""


# -------------------------------------------------------------------------------------------- resampling


def group_sums(values: NDArray[Number], groups: Sequence[str]) -> tuple[list[str], NDArray[Number]]:
    """Add up samples by group: (N, ...) and N names -> (G sorted names, (G, ...) sums of the same dtype)."""
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} samples, but {len(groups)} group names")
    names, index = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    sums = np.zeros((len(names), *values.shape[1:]), values.dtype)
    np.add.at(sums, index, values)
    return names.tolist(), sums


def resample(sums: NDArray[Any], *, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """Totals over G groups drawn with replacement, `resamples` times: ``(G, ...) -> (R, ...) float64``.

    The same seed and G give the same draws: two models' resamples over the same (sorted) groups are paired.
    """
    count = len(sums)
    flat = sums.reshape(count, -1).astype(np.float64)
    totals = np.empty((resamples, flat.shape[1]))
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        totals[start : start + rows] = draw_weights(rng, rows, count) @ flat
    return totals.reshape(resamples, *sums.shape[1:])


def draw_weights(rng: np.random.Generator, rows: int, count: int) -> NDArray[np.float64]:
    """How often each of `count` groups is among `count` draws with replacement: (rows, count)."""
    drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


# --------------------------------------------------------------------------------------------- intervals


def effective_groups(weights: NDArray[Any]) -> NDArray[np.float64]:
    """Equal groups that would say as much (Kish 1965): (G, ...) weights, in pixels say -> (...), 0..G.

    ``(sum w)^2 / sum w^2``: G where all weigh the same, near 1 where one group has nearly all the pixels.
    """
    weights = weights.astype(np.float64)
    total, squares = weights.sum(axis=0), (weights**2).sum(axis=0)
    return np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)


def interval(
    values: NDArray[np.float64],
    estimate: NDArray[np.float64] | float,
    *,
    groups: NDArray[np.float64] | float,
    level: float = LEVEL,
    method: Method = "logit-t",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends, (...) each, of the metric `estimate` (...) with the resampled `values` (R, ...).

    groups: their effective number (...), which gives the degrees of freedom; below `FEW_EFFECTIVE` the ends
    are nan, as they are where the estimate is. A share of exactly 0 or 1 has no spread: its open end is that
    of Clopper and Pearson (1934) for as many groups that all agree.
    """
    estimate, count = np.asarray(estimate, np.float64), np.asarray(groups, np.float64)
    count = np.where(count >= FEW_EFFECTIVE, count, np.nan)
    quantile = stdtrit(count - 1, (1 + level) / 2)
    reach = quantile * _deviation(values) * np.sqrt(count / (count - 1))
    if method == "t":
        return estimate - reach, estimate + reach
    inside = (estimate > 0) & (estimate < 1)
    share = np.where(inside, estimate, 0.5)
    # the error of the logit by its derivative: resamples at exactly 0 or 1 have no logit of their own
    factor = np.exp(np.minimum(reach / (share * (1 - share)), _MAX_LOGIT))
    low = np.where(inside, share / (share + (1 - share) * factor), estimate)
    high = np.where(inside, share / (share + (1 - share) / factor), estimate)
    agreed = ((1 - level) / 2) ** (1 / count)
    return np.where(estimate == 1, agreed, low), np.where(estimate == 0, 1 - agreed, high)


def _deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over the first axis of what is defined; nan where less than half of it is."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    enough = 2 * count > len(values)
    mean = np.where(defined, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    squares = (np.where(defined, values - mean, 0.0) ** 2).sum(axis=0)
    return np.sqrt(np.where(enough, squares / np.maximum(count - 1, 1), np.nan))


# ------------------------------------------------------------------------------------------ segmentation

Ends = tuple[float, float]


@dataclass(frozen=True)
class ClassIntervals:
    """The intervals of one class; None where there is none, and `note` says why."""

    name: str
    groups: int
    """Groups with the class in their truth."""
    note: str | None
    ends: dict[str, Ends | None]
    """By metric of a class."""


@dataclass(frozen=True)
class Intervals:
    """The intervals of a task's metrics."""

    level: float
    resamples: int
    seed: int
    method: Method
    unit: Unit
    groups: int
    note: str | None
    """Why there is no interval, or what speaks against it."""
    metrics: dict[str, Ends | None]
    """By metric over all classes."""
    per_class: tuple[ClassIntervals, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: classes by name, intervals as [low, high] or None."""
        classes = {
            row.name: {**_lists(row.ends), "groups": row.groups, "note": row.note} for row in self.per_class
        }
        return {
            "level": self.level,
            "resamples": self.resamples,
            "seed": self.seed,
            "method": self.method,
            "unit": self.unit,
            "groups": self.groups,
            "note": self.note,
            "metrics": _lists(self.metrics),
            "per_class": classes,
        }

    def _title(self) -> str:
        return f"{self.level:.0%} intervals, {self.resamples:,} resamples of {self.groups:,} {self.unit}s"


@dataclass(frozen=True)
class SegmentationIntervals(Intervals):
    """The intervals of every metric of a confusion matrix.

    Over all classes: mean_iou, frequency_weighted_iou, pixel_accuracy, mean_recall; of a class: iou, recall,
    precision, f1.
    """

    def table(self, scores: SegmentationScores) -> str:
        """A text table of the numbers with their intervals; only the reason where there are none."""
        if not any(self.metrics.values()):
            return f"no {self._title()}: {self.note}"
        width = max(len("frequency-weighted IoU"), *(len(row.name) for row in self.per_class))
        lines = [self._title() + (f"; {self.note}" if self.note else "")]
        for metric, ends in self.metrics.items():
            title = metric.replace("_", " ").replace("frequency ", "frequency-").replace("iou", "IoU")
            lines.append(f"{title:{width}}  {show_span(getattr(scores, metric), ends)}")
        lines.append(f"{'class':{width}}  {'IoU':<22}  {'recall':<22}  precision")
        for row, score in zip(self.per_class, scores.per_class, strict=True):
            spans = [show_span(getattr(score, metric), row.ends[metric]) for metric in _SHOWN]
            lines.append(f"{row.name:{width}}  {row.note or '  '.join(spans)}".rstrip())
        return "\n".join(lines)


def segmentation_intervals(
    confusions: NDArray[np.int64],
    groups: Sequence[str],
    names: Sequence[str],
    *,
    unit: Unit = "group",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> SegmentationIntervals:
    """Bootstrap by group: per-sample (N, K, K) matrices, N group names and K class names -> all intervals."""
    _, sums = group_sums(marginal_counts(confusions), groups)
    drawn = resample(sums, resamples=resamples, seed=seed)
    metrics, note = total_intervals(sums, drawn, unit=unit, level=level)
    return SegmentationIntervals(
        level=level,
        resamples=resamples,
        seed=seed,
        method="logit-t",
        unit=unit,
        groups=len(sums),
        note=note,
        metrics=metrics,
        per_class=_class_intervals(sums, drawn, names, unit=unit, level=level),
    )


def total_intervals(
    sums: NDArray[np.int64], drawn: NDArray[np.float64], *, unit: Unit, level: float
) -> tuple[dict[str, Ends | None], str | None]:
    """Of the metrics over all classes, and why there are none, if so.

    From marginal counts of G groups (G, 3, K) and of R resamples (R, 3, K).
    """
    scores, values = total_scores(sums.sum(axis=0)), total_scores(drawn)
    labelled = sums[:, 1].sum(axis=-1)
    effective = effective_groups(labelled)
    note = too_few(int((labelled > 0).sum()), float(effective), unit)
    if note:
        return dict.fromkeys(scores), note
    ends = {
        metric: pair(*interval(values[metric], scores[metric], groups=effective, level=level))
        for metric in scores
    }
    return ends, None


def _class_intervals(
    sums: NDArray[np.int64], drawn: NDArray[np.float64], names: Sequence[str], *, unit: Unit, level: float
) -> tuple[ClassIntervals, ...]:
    """From marginal counts of G groups (G, 3, K) and of R resamples (R, 3, K)."""
    scores, values = class_scores(sums.sum(axis=0)), class_scores(drawn)
    wholes = {metric: whole for metric, (_, whole) in class_fractions(sums).items()}
    ends = {
        metric: interval(values[metric], scores[metric], groups=effective_groups(wholes[metric]), level=level)
        for metric in scores
    }
    truth = sums[:, 1]
    present, effective = (truth > 0).sum(axis=0), effective_groups(truth)
    rows = []
    for k, name in enumerate(names):
        note = too_few(int(present[k]), effective[k], unit)
        found = {metric: None if note else pair(low[k], high[k]) for metric, (low, high) in ends.items()}
        rows.append(ClassIntervals(name, int(present[k]), note, found))
    return tuple(rows)


def too_few(groups: int, effective: float, unit: Unit, *, counted: str = "pixels") -> str | None:
    """Why so many groups give no interval; None where they do. `counted` is what a group's weight is."""
    if groups < FEW_GROUPS:
        return f"only {groups} {unit}{'' if groups == 1 else 's'}"
    return f"nearly all {counted} in one of {groups} {unit}s" if effective < FEW_EFFECTIVE else None


def pair(low: Any, high: Any) -> Ends | None:
    """Both ends of an interval; None where they aren't defined."""
    return None if math.isnan(low) or math.isnan(high) else (float(low), float(high))


def show_span(value: float, ends: Ends | None) -> str:
    """A number and its interval in a table."""
    number = "-" if math.isnan(value) else f"{value:.4f}"
    return f"{number:<6}  {'-' if ends is None else '[{:.3f}, {:.3f}]'.format(*ends):<14}"


def _lists(ends: dict[str, Ends | None]) -> dict[str, list[float] | None]:
    return {metric: None if pair is None else list(pair) for metric, pair in ends.items()}
