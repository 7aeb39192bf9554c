"""Detection intervals: how far average precision and recall would move on other scenes or drives of the same kind.

Groups are drawn with replacement, as in `visionsft.evaluation.intervals`, whose rules on few groups hold here,
too. How often a group is drawn multiplies its true and false positives in the ranking of all detections, and its
objects. What is drawn gives the spread alone; an interval lies around the exact number. So a draw may be coarse:
it reads a curve at no more than `MOST_POINTS` of its true positives, evenly by rank (which makes average precision
smaller by less than a hundredth, in every draw alike), and mAP at every second of COCO's thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.detection_scores import DetectionScores
from visionsft.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    SEED,
    ClassIntervals,
    Ends,
    Intervals,
    Unit,
    draw_weights,
    effective_groups,
    interval,
    pair,
    show_span,
    too_few,
)
from visionsft.evaluation.metrics.boxes import BoxTable, count_labels
from visionsft.evaluation.metrics.detection import (
    average_precisions,
    class_order,
    interpolated_precision,
    mean,
)
from visionsft.evaluation.metrics.matching import COCO_IOUS, Matches, match_detections
from visionsft.evaluation.metrics.segmentation import ratio

MOST_POINTS = 128
"""True positives at which a draw reads a class's curve."""

DRAWN_IOUS = COCO_IOUS[::2]
"""Thresholds of a draw's mAP: 0.5, 0.6 ... 0.9."""

_CHUNK = 200
"""Draws that are held at once."""


@dataclass(frozen=True)
class DetectionIntervals(Intervals):
    """Intervals over all classes of map, ap50 and recall; of a class of ap50 and recall."""

    def table(self, scores: DetectionScores) -> str:
        """A text table of the numbers with their intervals; only the reason where there are none."""
        if not any(self.metrics.values()):
            return f"no {self._title()}: {self.note}"
        width = max(len("class"), *(len(row.name) for row in self.per_class))
        lines = [self._title() + (f"; {self.note}" if self.note else "")]
        for metric, title in (("map", "mAP"), ("ap50", "AP50"), ("recall", "recall")):
            lines.append(f"{title:{width}}  {show_span(getattr(scores, metric), self.metrics[metric])}")
        lines.append(
            f"{'class':{width}}  {'AP50':<22}  recall (IoU {scores.iou:g}, score >= {scores.score:g})"
        )
        for row, score in zip(self.per_class, scores.per_class, strict=True):
            spans = [show_span(getattr(score, metric), ends) for metric, ends in row.ends.items()]
            lines.append(f"{row.name:{width}}  {row.note or '  '.join(spans)}".rstrip())
        return "\n".join(lines)


def bootstrap_detections(
    counts: DetectionCounts,
    *,
    iou: float = 0.5,
    score: float = 0.5,
    max_detections: int | None = None,
    unit: Unit = "group",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    masks: bool = False,
) -> DetectionIntervals:
    """Bootstrap by group; iou, score, max_detections and masks as in `score_detections`, whose numbers these are of."""
    table = counts.table(masks=masks)
    (matches,) = match_detections(table, max_detections=max_detections)
    (given,) = match_detections(table, thresholds=(iou,), max_detections=max_detections)
    names, groups = np.unique(np.asarray(counts.names(unit), np.str_), return_inverse=True)
    objects = _sum_groups(matches.positives, groups, len(names))
    found = _sum_groups(_found(given, table, score), groups, len(names))
    draws = _draw(matches, groups, (found, objects), resamples=resamples, seed=seed)
    precisions, share = average_precisions(matches), ratio(found.sum(axis=0), objects.sum(axis=0))
    estimates = {
        "map": mean(precisions),
        "ap50": mean(precisions[matches.threshold(0.5)]),
        "recall": float(ratio(found.sum(), objects.sum())),
    }
    metrics, note = _total_intervals(draws.totals, estimates, objects.sum(axis=1), unit=unit, level=level)
    return DetectionIntervals(
        level=level,
        resamples=resamples,
        seed=seed,
        method="logit-t",
        unit=unit,
        groups=len(names),
        note=note,
        metrics=metrics,
        per_class=_class_intervals(
            draws.classes,
            {"ap50": precisions[matches.threshold(0.5)], "recall": share},
            objects,
            counts.classes,
            unit=unit,
            level=level,
        ),
    )


def _sum_groups(values: NDArray[np.int64], groups: NDArray[np.intp], count: int) -> NDArray[np.int64]:
    """Add up images by group: (I, K) and the group's index of each (I,) -> (G, K)."""
    sums = np.zeros((count, values.shape[1]), np.int64)
    np.add.at(sums, groups, values)
    return sums


def _found(matches: Matches, table: BoxTable, score: float) -> NDArray[np.int64]:
    """(I, K) objects that a detection of at least this score finds, at the only threshold of the matches."""
    rows = matches.hits[0] & (matches.scores >= np.float32(score))
    return count_labels(matches.image[rows], matches.labels[rows], images=table.images, classes=table.classes)


# ------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class _Draws:
    """The metrics of R draws."""

    totals: dict[str, NDArray[np.float64]]
    """(R,) each."""
    classes: dict[str, NDArray[np.float64]]
    """(R, K) each."""


def _draw(
    matches: Matches,
    groups: NDArray[np.intp],
    sums: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    resamples: int,
    seed: int,
) -> _Draws:
    """sums: found and all objects of G groups, (G, K) each."""
    found, objects = sums
    levels = [matches.threshold(iou) for iou in DRAWN_IOUS]
    present = np.flatnonzero(objects.sum(axis=0)).tolist()
    curves = {(t, k): DrawnCurve.of(matches, t, k, groups, len(objects)) for t in levels for k in present}
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, _CHUNK):
        weights = draw_weights(rng, min(_CHUNK, resamples - start), len(objects))
        drawn = weights @ objects
        precisions = np.full((len(levels), *drawn.shape), np.nan)
        for (t, k), curve in curves.items():
            precisions[levels.index(t), :, k] = curve.average_precision(weights, drawn[:, k])
        parts.append((precisions, weights @ found, drawn))
    precisions = np.concatenate([part[0] for part in parts], axis=1)
    hits, drawn = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    ap50 = precisions[0]
    return _Draws(
        {
            "map": _row_means(precisions.mean(axis=0)),
            "ap50": _row_means(ap50),
            "recall": ratio(hits.sum(axis=1), drawn.sum(axis=1)),
        },
        {"ap50": ap50, "recall": ratio(hits, drawn)},
    )


def _row_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes (R, K) -> (R,) that are in the draw; nan where none is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


@dataclass(frozen=True)
class DrawnCurve:
    """What each of G groups adds to a class's counts between one point of its curve and the next; J points."""

    hits: csr_array
    """(J, G)"""
    false: csr_array
    """(J, G)"""

    @classmethod
    def of(cls, matches: Matches, t: int, k: int, groups: NDArray[np.intp], count: int) -> DrawnCurve:
        order = class_order(matches, k)
        hits, owner = matches.hits[t, order], groups[matches.image[order]]
        points = np.flatnonzero(hits)
        if len(points) > MOST_POINTS:
            points = points[np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(np.int64)]
        step = np.searchsorted(points, np.arange(len(order)))
        false = ~hits & ~matches.ignored[t, order]
        parts = [
            (owner[kind & (step < len(points))], step[kind & (step < len(points))]) for kind in (hits, false)
        ]
        shape = (len(points), count)
        return cls(*(csr_array((np.ones(len(g)), (s, g)), shape=shape) for g, s in parts))

    def average_precision(
        self, weights: NDArray[np.float64], positives: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Of R draws: weights (R, G) and the class's objects (R,) -> (R,); nan where none was drawn."""
        drawn = positives > 0
        hits, false = ((part @ weights.T).cumsum(axis=0).T for part in (self.hits, self.false))
        values = interpolated_precision(hits, false, np.where(drawn, positives, 1.0))
        return np.where(drawn, values, np.nan)


# ------------------------------------------------------------------------------------------------- reading


def _total_intervals(
    draws: dict[str, NDArray[np.float64]],
    estimates: dict[str, float],
    objects: NDArray[np.int64],
    *,
    unit: Unit,
    level: float,
) -> tuple[dict[str, Ends | None], str | None]:
    """From the objects of G groups (G,)."""
    effective = effective_groups(objects)
    note = too_few(int((objects > 0).sum()), float(effective), unit, counted="objects")
    if note:
        return dict.fromkeys(estimates), note
    return {
        metric: pair(*interval(draws[metric], value, groups=effective, level=level))
        for metric, value in estimates.items()
    }, None


def _class_intervals(
    draws: dict[str, NDArray[np.float64]],
    estimates: dict[str, NDArray[np.float64]],
    objects: NDArray[np.int64],
    names: Sequence[str],
    *,
    unit: Unit,
    level: float,
) -> tuple[ClassIntervals, ...]:
    """From the objects of G groups (G, K)."""
    present, effective = (objects > 0).sum(axis=0), effective_groups(objects)
    ends = {
        metric: interval(draws[metric], value, groups=effective, level=level)
        for metric, value in estimates.items()
    }
    rows = []
    for k, name in enumerate(names):
        note = too_few(int(present[k]), float(effective[k]), unit, counted="objects")
        found = {metric: None if note else pair(low[k], high[k]) for metric, (low, high) in ends.items()}
        rows.append(ClassIntervals(name, int(present[k]), note, found))
    return tuple(rows)
