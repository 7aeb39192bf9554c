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
    sums = LabelSums.of(probabilities, truth, decided, owners, single=thresholds is None)
    estimates, class_estimates = sums.scores_of(np.ones((1, len(sizes))))
    draws = draw_weights(np.random.default_rng(SEED), RESAMPLES, len(sizes))
    values, class_values = sums.scores_of(draws)
    metrics = {
        name: pair(*interval(values[name], estimates[name][0], groups=effective)) for name in estimates
    }
    return LabelIntervals(
        unit, len(sizes), None, metrics, _of_classes(class_values, class_estimates, sums.margins, names)
    )


@dataclass(frozen=True)
class LabelSums:
    """What G groups add to the scores of a split."""

    margins: NDArray[np.float64]
    """(G, 3, K): images that are right, in truth and predicted, by class."""
    hits: dict[str, NDArray[np.float64]]
    """(G,) images that are right by each metric that is a share of images."""
    images: NDArray[np.int64]
    """(G,)"""
    probabilities: NDArray[Any]
    """(N, K), for average precision, which has no sums."""
    truth: NDArray[np.bool_]
    """(N, K)"""
    owners: NDArray[np.intp]
    """(N,) the group of each image."""

    @classmethod
    def of(
        cls,
        probabilities: NDArray[Any],
        truth: NDArray[np.bool_],
        decided: NDArray[np.bool_],
        owners: NDArray[np.intp],
        *,
        single: bool,
    ) -> LabelSums:
        """(N, K) each, owners (N,); single: an image has one class, so that the most probable ones have a rank."""
        count = int(owners.max()) + 1
        margins = np.zeros((count, 3, truth.shape[1]))
        np.add.at(margins, owners, label_counts(decided, truth))
        top = top_hits(probabilities, truth) if single else {}
        hits = {"accuracy": (decided == truth).all(axis=1), **{f"top_k.{k}": found for k, found in top.items()}}
        sums = {name: np.bincount(owners, found, count).astype(np.float64) for name, found in hits.items()}
        return cls(margins, sums, np.bincount(owners, minlength=count), probabilities, truth, owners)

    def scores_of(
        self, weights: NDArray[np.float64]
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        """(R,) each of the metrics over all classes and (R, K) of a class's, of R draws: weights (R, G)."""
        count = len(self.images)
        drawn = (weights @ self.margins.reshape(count, -1)).reshape(len(weights), *self.margins.shape[1:])
        images = weights @ self.images
        shares = {name: weights @ found / images for name, found in self.hits.items()}
        classes = {name: value for name, value in class_scores(drawn).items() if name in _CLASS_METRICS}
        classes["average_precision"] = self._precisions(weights)
        means = {
            "macro_f1": mean_of_defined(classes["f1"]),
            "mean_recall": mean_of_defined(classes["recall"]),
            "mean_average_precision": mean_of_defined(classes["average_precision"]),
        }
        return {**shares, **means}, classes

    def _precisions(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R, K) average precision."""
        step = max(1, _CHUNK // len(self.owners))
        parts = [
            class_average_precisions(
                self.probabilities, self.truth, weights[start : start + step, self.owners]
            )
            for start in range(0, len(weights), step)
        ]
        return np.concatenate(parts)


def _of_classes(
    values: dict[str, NDArray[np.float64]],
    estimates: dict[str, NDArray[np.float64]],
    sums: NDArray[np.float64],
    names: Sequence[str],
) -> dict[str, dict[str, Ends | None]]:
    """sums: (G, 3, K)."""
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
