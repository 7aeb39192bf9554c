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
from typing import Any

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
    names, groups = np.unique(np.asarray(counts.names(unit), np.str_), return_inverse=True)
    sums = GroupDetections.of(
        counts,
        groups,
        scores=np.full(len(counts), score),
        iou=iou,
        max_detections=max_detections,
        masks=masks,
    )
    rng = np.random.default_rng(seed)
    steps = [min(_CHUNK, resamples - start) for start in range(0, resamples, _CHUNK)]
    drawn = [sums.scores_of(draw_weights(rng, rows, len(names))) for rows in steps]
    (totals, classes), estimates = _join(drawn), sums.exact()
    objects = sums.margins[:, 1]
    told = {metric: estimates[0][metric] for metric in ("map", "ap50", "recall")}
    metrics, note = _total_intervals(totals, told, objects.sum(axis=1), unit=unit, level=level)
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
            classes,
            {metric: estimates[1][metric] for metric in ("ap50", "recall")},
            objects,
            counts.classes,
            unit=unit,
            level=level,
        ),
    )


# ------------------------------------------------------------------------------------------------- drawing


Drawn = tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]
"""(R,) each of the metrics over all classes, map, ap50, recall, precision and f1; (R, K) each of a class's, all but
map."""


@dataclass(frozen=True)
class GroupDetections:
    """What G groups add to the scores of a split: to the curves of its classes, and to the counts at one score."""

    matches: Matches
    curves: dict[tuple[int, int], DrawnCurve]
    """By place in `DRAWN_IOUS` and class, of the classes in truth."""
    margins: NDArray[np.int64]
    """(G, 3, K): objects found, all objects and all detections, from the given score and IoU on."""

    @classmethod
    def of(
        cls,
        counts: DetectionCounts,
        groups: NDArray[np.intp],
        *,
        scores: NDArray[np.float64],
        iou: float,
        max_detections: int | None = None,
        masks: bool = False,
    ) -> GroupDetections:
        """groups, scores: (I,) each image's group, and from which score on its detections count."""
        table, count = counts.table(masks=masks), int(groups.max(initial=-1)) + 1
        (matches,) = match_detections(table, max_detections=max_detections)
        (given,) = match_detections(table, thresholds=(iou,), max_detections=max_detections)
        present = np.flatnonzero(matches.positives.sum(axis=0)).tolist()
        levels = [matches.threshold(each) for each in DRAWN_IOUS]
        curves = {
            (place, k): DrawnCurve.of(matches, t, k, groups, count)
            for place, t in enumerate(levels)
            for k in present
        }
        margins = image_margins(given, table, scores)
        return cls(matches, curves, _sum_groups(margins, groups, count))

    def exact(self) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
        """The metrics of all groups together, with every point of every curve: () each and (K,) each."""
        precisions = average_precisions(self.matches)
        ap50 = precisions[self.matches.threshold(0.5)]
        margins = self.margins.sum(axis=0)
        pooled = {name: float(value) for name, value in shares(*margins.sum(axis=-1)).items()}
        return {"map": mean(precisions), "ap50": mean(ap50), **pooled}, {"ap50": ap50, **shares(*margins)}

    def scores_of(self, weights: NDArray[np.float64]) -> Drawn:
        """The metrics of R draws, in which each group counts so often: weights (R, G)."""
        count = len(self.margins)
        drawn = (weights @ self.margins.reshape(count, -1)).reshape(len(weights), *self.margins.shape[1:])
        parts = np.moveaxis(drawn, 1, 0)
        objects = drawn[:, 1]
        precisions = np.full((len(DRAWN_IOUS), *objects.shape), np.nan)
        for (place, k), curve in self.curves.items():
            precisions[place, :, k] = curve.average_precision(weights, objects[:, k])
        ap50 = precisions[0]
        totals = {"map": _row_means(precisions.mean(axis=0)), "ap50": _row_means(ap50)}
        return totals | shares(*parts.sum(axis=-1)), {"ap50": ap50, **shares(*parts)}


def image_margins(matches: Matches, table: BoxTable, scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """(I, 3, K) objects found, objects, and detections of at least the image's score (I,), at the matches' only IoU."""
    certain = matches.scores >= scores.astype(np.float32)[matches.image]
    rows = (matches.hits[0] & certain, ~matches.ignored[0] & certain)
    found, taken = (
        count_labels(matches.image[row], matches.labels[row], images=table.images, classes=table.classes)
        for row in rows
    )
    return np.stack([found, matches.positives, taken], axis=1)


def _sum_groups(values: NDArray[np.int64], groups: NDArray[np.intp], count: int) -> NDArray[np.int64]:
    """Add up images by group: (I, ...) and the group's index of each (I,) -> (G, ...)."""
    sums = np.zeros((count, *values.shape[1:]), np.int64)
    np.add.at(sums, groups, values)
    return sums


def shares(
    right: NDArray[Any], objects: NDArray[Any], taken: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    """Recall, precision and F1 of any shape."""
    return {
        "recall": ratio(right, objects),
        "precision": ratio(right, taken),
        "f1": ratio(2 * right, objects + taken),
    }


def _join(drawn: Sequence[Drawn]) -> Drawn:
    """One after the other."""
    totals, classes = (
        {name: np.concatenate([part[kind][name] for part in drawn]) for name in drawn[0][kind]}
        for kind in (0, 1)
    )
    return totals, classes


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
