"""Label intervals: how far a classifier's scores would move on other images of the same kind; see `intervals`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    SEED,
    Ends,
    Unit,
    draw_weights,
    effective_groups,
    interval,
    pair,
    show_span,
    too_few,
)
from visionsft.evaluation.metrics import (
    ClassificationScores,
    class_average_precisions,
    class_fractions,
    class_scores,
    decide,
    label_counts,
    one_hot,
    top_hits,
)
from visionsft.evaluation.metrics.classification import mean_of_defined, title

_CLASS_METRICS = ("recall", "precision", "f1", "average_precision")
_CHUNK = 2_000_000
"""Weights of images that are held at once."""


@dataclass(frozen=True)
class LabelIntervals:
    """The intervals of every metric of a classifier; None where there is none."""

    unit: Unit
    groups: int
    note: str | None
    """Why there is no interval."""
    metrics: dict[str, Ends | None]
    """By metric over all classes, as `ClassificationScores.totals` names them."""
    per_class: dict[str, dict[str, Ends | None]]
    """By class and metric: recall, precision, f1, average_precision."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: intervals as [low, high] or None."""
        return {
            "level": LEVEL,
            "resamples": RESAMPLES,
            "seed": SEED,
            "method": "logit-t",
            "unit": self.unit,
            "groups": self.groups,
            "note": self.note,
            "metrics": self.metrics,
            "per_class": self.per_class,
        }

    def table(self, scores: ClassificationScores) -> str:
        """A text table of the numbers with their intervals; only the reason where there are none."""
        what = f"{LEVEL:.0%} intervals, {RESAMPLES:,} resamples of {self.groups:,} {self.unit}s"
        if self.note:
            return f"no {what}: {self.note}"
        width = max(len("mean average precision"), *(len(name) for name in self.per_class))
        lines = [what]
        totals = scores.totals()
        lines += [
            f"{title(name):{width}}  {show_span(totals[name], ends)}" for name, ends in self.metrics.items()
        ]
        lines.append(f"{'class':{width}}  {'recall':<22}  {'precision':<22}  F1")
        for row in scores.per_class:
            ends_of = self.per_class[row.name]
            spans = [show_span(getattr(row, name), ends_of[name]) for name in _CLASS_METRICS[:3]]
            lines.append(f"{row.name:{width}}  {'  '.join(spans)}".rstrip())
        return "\n".join(lines)


def label_intervals(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    groups: Sequence[str],
    names: Sequence[str],
    *,
    unit: Unit = "group",
    thresholds: NDArray[Any] | None = None,
) -> LabelIntervals:
    """Bootstrap by group. probabilities: (N, K); labels: (N,) or (N, K) with thresholds (K,); N group names."""
    truth, decided = one_hot(labels, len(names)), decide(probabilities, thresholds)
    owners = np.unique(np.asarray(groups, np.str_), return_inverse=True)[1]
    sizes = np.bincount(owners)
    effective = effective_groups(sizes)
    note = too_few(len(sizes), float(effective), unit, counted="images")
    if note:
        return LabelIntervals(unit, len(sizes), note, {}, {})
    draws = draw_weights(np.random.default_rng(SEED), RESAMPLES, len(sizes))
    margins, hits = label_counts(decided, truth), _hits(probabilities, truth, decided, thresholds)
    precisions = _draw_precisions(probabilities, truth, draws, owners)
    estimates = _scores(np.ones((1, len(sizes))), margins, hits, owners)
    values = _scores(draws, margins, hits, owners)
    estimates["average_precision"] = class_average_precisions(probabilities, truth)[None]
    estimates["mean_average_precision"] = mean_of_defined(estimates["average_precision"])
    values |= {"average_precision": precisions, "mean_average_precision": mean_of_defined(precisions)}
    metrics = {
        name: pair(*interval(values[name], estimates[name][0], groups=effective))
        for name in estimates
        if name not in _CLASS_METRICS
    }
    return LabelIntervals(
        unit, len(sizes), None, metrics, _of_classes(values, estimates, margins, owners, names)
    )


def _hits(
    probabilities: NDArray[Any],
    truth: NDArray[np.bool_],
    decided: NDArray[np.bool_],
    thresholds: NDArray[Any] | None,
) -> dict[str, NDArray[np.bool_]]:
    """(N,) by metric that is a share of images."""
    top = top_hits(probabilities, truth) if thresholds is None else {}
    return {"accuracy": (decided == truth).all(axis=1), **{f"top_k.{k}": found for k, found in top.items()}}


def _scores(
    weights: NDArray[np.float64],
    margins: NDArray[np.int64],
    hits: dict[str, NDArray[np.bool_]],
    owners: NDArray[np.intp],
) -> dict[str, NDArray[np.float64]]:
    """(R,) or (R, K) by metric, of R draws: weights (R, G) of the groups, margins (N, 3, K), owners (N,)."""
    count = weights.shape[1]
    sums = np.zeros((count, *margins.shape[1:]))
    np.add.at(sums, owners, margins)
    drawn = (weights @ sums.reshape(count, -1)).reshape(len(weights), *sums.shape[1:])
    images = weights @ np.bincount(owners, minlength=count)
    shares = {name: weights @ np.bincount(owners, found, count) / images for name, found in hits.items()}
    classes = {name: value for name, value in class_scores(drawn).items() if name in _CLASS_METRICS}
    means = {"macro_f1": mean_of_defined(classes["f1"]), "mean_recall": mean_of_defined(classes["recall"])}
    return {**shares, **means, **classes}


def _draw_precisions(
    probabilities: NDArray[Any],
    truth: NDArray[np.bool_],
    draws: NDArray[np.float64],
    owners: NDArray[np.intp],
) -> NDArray[np.float64]:
    """(R, K) average precision of each draw (R, G)."""
    step = max(1, _CHUNK // len(owners))
    parts = [
        class_average_precisions(probabilities, truth, draws[start : start + step, owners])
        for start in range(0, len(draws), step)
    ]
    return np.concatenate(parts)


def _of_classes(
    values: dict[str, NDArray[np.float64]],
    estimates: dict[str, NDArray[np.float64]],
    margins: NDArray[np.int64],
    owners: NDArray[np.intp],
    names: Sequence[str],
) -> dict[str, dict[str, Ends | None]]:
    sums = np.zeros((owners.max() + 1, *margins.shape[1:]))
    np.add.at(sums, owners, margins)
    wholes = {name: whole for name, (_, whole) in class_fractions(sums).items()}
    wholes["average_precision"] = sums[:, 1]
    ends = {
        name: interval(values[name], estimates[name][0], groups=effective_groups(wholes[name]))
        for name in _CLASS_METRICS
    }
    return {
        label: {name: pair(low[k], high[k]) for name, (low, high) in ends.items()}
        for k, label in enumerate(names)
    }
