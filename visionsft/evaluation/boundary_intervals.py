"""Boundary intervals: how far boundary and object scores would move on other groups; see `intervals`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.boundaries import BoundaryCounts, boundary_f1, boundary_iou
from visionsft.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    SEED,
    ClassIntervals,
    Ends,
    Intervals,
    Unit,
    effective_groups,
    group_sums,
    interval,
    pair,
    resample,
    show_span,
    too_few,
)
from visionsft.evaluation.metrics.classification import mean_of_defined
from visionsft.evaluation.metrics.segmentation import ratio

Numbers = dict[str, NDArray[np.float64]]
_TITLES = {"mean_boundary_iou": "boundary IoU", "mean_boundary_f1": "boundary F1", "object_recall": "object recall"}
_TOTALS = {"mean_boundary_iou": "boundary_iou", "mean_boundary_f1": "boundary_f1", "object_recall": "object_recall"}
"""Metrics over all classes, and those of a class that they are of."""
_COUNTED = {"boundary_iou": "pixels", "boundary_f1": "pixels", "object_recall": "objects"}


def boundary_margins(counts: BoundaryCounts) -> NDArray[np.int64]:
    """All that the scores read, (..., K, 8): regions, edges, and objects of any size; sums of samples add up."""
    return np.concatenate([counts.regions, counts.edges, counts.objects.sum(axis=-2)], axis=-1)


def boundary_scores(margins: NDArray[Any]) -> tuple[Numbers, Numbers]:
    """(..., K, 8) -> (...) of all classes and (..., K) of each: boundary IoU and F1, and recall of objects."""
    objects = margins[..., 6:]
    classes = {
        "boundary_iou": boundary_iou(margins[..., :2]),
        "boundary_f1": boundary_f1(margins[..., 2:6])[..., 2],
        "object_recall": ratio(objects[..., 1], objects[..., 0]),
    }
    totals = {
        "mean_boundary_iou": np.asarray(mean_of_defined(classes["boundary_iou"])),
        "mean_boundary_f1": np.asarray(mean_of_defined(classes["boundary_f1"])),
        "object_recall": ratio(objects[..., 1].sum(axis=-1), objects[..., 0].sum(axis=-1)),
    }
    return totals, classes


class BoundaryIntervals(Intervals):
    """Over all classes: mean_boundary_iou, mean_boundary_f1, object_recall; of a class: the same without mean."""

    def lines(self, totals: Numbers) -> list[str]:
        """The numbers over all classes, in lines of text; only the reason where there is no interval."""
        lines = []
        for metric, value in totals.items():
            span = show_span(float(value), self.metrics[metric])
            lines.append(f"{_TITLES[metric]:24} {span} (mean over classes)" if "mean" in metric else
                         f"{_TITLES[metric]:24} {span} (share of all objects of which half is found)")  # fmt: skip
        return [*lines, f"  {self._title()}" if self.note is None else f"  no {self._title()}: {self.note}"]


def boundary_intervals(
    counts: BoundaryCounts, groups: Sequence[str], names: Sequence[str], *, unit: Unit = "group"
) -> BoundaryIntervals:
    """Bootstrap by group: counts of N samples, N group names, K class names."""
    _, sums = group_sums(boundary_margins(counts), groups)
    drawn = resample(sums)
    (totals, classes), (all_draws, class_draws) = (boundary_scores(each) for each in (sums.sum(axis=0), drawn))
    weights = {
        "boundary_iou": sums[..., 1],
        "boundary_f1": sums[..., 2] + sums[..., 4],
        "object_recall": sums[..., 6],
    }
    metrics: dict[str, Ends | None] = {}
    notes = []
    for metric, of in _TOTALS.items():
        whole = weights[of].sum(axis=-1)
        effective = float(effective_groups(whole))
        notes.append(too_few(int((whole > 0).sum()), effective, unit, counted=_COUNTED[of]))
        ends = interval(all_draws[metric], totals[metric], groups=effective)
        metrics[metric] = None if notes[-1] else pair(*ends)
    return BoundaryIntervals(
        level=LEVEL,
        resamples=RESAMPLES,
        seed=SEED,
        method="logit-t",
        unit=unit,
        groups=len(sums),
        note=next(filter(None, notes), None),
        metrics=metrics,
        per_class=_of_classes(classes, class_draws, weights, names, unit),
    )


def _of_classes(
    scores: Numbers, draws: Numbers, weights: dict[str, NDArray[np.int64]], names: Sequence[str], unit: Unit
) -> tuple[ClassIntervals, ...]:
    """weights: (G, K) of each metric."""
    rows = []
    for k, name in enumerate(names):
        found: dict[str, Ends | None] = {}
        notes = {}
        for metric, counted in _COUNTED.items():
            own = weights[metric][:, k]
            effective = float(effective_groups(own))
            notes[metric] = too_few(int((own > 0).sum()), effective, unit, counted=counted)
            ends = interval(draws[metric][:, k], scores[metric][k], groups=effective)
            found[metric] = None if notes[metric] else pair(*ends)
        present = int((weights["object_recall"][:, k] > 0).sum())
        rows.append(ClassIntervals(name, present, notes["object_recall"], found))
    return tuple(rows)
