"""Detection slices: average precision and recall by samples and by the size of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.detection_intervals import DrawnCurve
from visionsft.evaluation.detection_scores import size_ranges
from visionsft.evaluation.intervals import (
    RESAMPLES,
    SEED,
    Ends,
    Unit,
    draw_weights,
    effective_groups,
    group_sums,
    interval,
    pair,
    too_few,
)
from visionsft.evaluation.metrics.boxes import BoxTable, count_labels
from visionsft.evaluation.metrics.classification import mean_of_defined
from visionsft.evaluation.metrics.detection import average_precisions, mean
from visionsft.evaluation.metrics.detection_curves import detection_curve
from visionsft.evaluation.metrics.matching import ALL_SIZES, Matches, Range, match_detections
from visionsft.evaluation.metrics.segmentation import ratio, without_nan
from visionsft.evaluation.slices import OBJECT_SIZE, Finding, Metadata, Part, Shown, Slice, Slices, cut

PARTS = (OBJECT_SIZE,)
"""Slices that are parts of every image."""

_CHUNK = 200
"""Draws that are held at once."""


@dataclass(frozen=True)
class _Judge:
    """Scores images by their detections of objects of one range of sizes."""

    iou: float
    score: float
    """As in `score_detections`."""
    size: Range = ALL_SIZES

    def __call__(self, part: DetectionCounts, unit: Unit, level: float) -> Finding:
        table = part.table()
        (matches,) = match_detections(table, sizes=(self.size,))
        (given,) = match_detections(table, thresholds=(self.iou,), sizes=(self.size,))
        precisions, pooled = average_precisions(matches), detection_curve(given, None, iou=self.iou)
        ap50 = precisions[matches.threshold(0.5)]
        ends, note = ap50_interval(matches, part.names(unit), mean(ap50), unit=unit, level=level)
        objects = int(matches.positives.sum())
        numbers = {
            "objects": objects,
            "map": mean(precisions),
            "ap50": mean(ap50),
            "recall": pooled.at(self.score).recall,
            "precision": pooled.at(self.score).precision,
            "per_class": self._of_classes(part.classes, given, table, ap50),
        }
        return Finding(mean(ap50), objects, ends, note, without_nan(numbers))

    def _of_classes(
        self, names: Sequence[str], given: Matches, table: BoxTable, ap50: NDArray[np.float64]
    ) -> dict[str, Any]:
        rows = given.hits[0] & (given.scores >= np.float32(self.score))
        found = count_labels(given.image[rows], given.labels[rows], images=table.images, classes=table.classes)
        recall = ratio(found.sum(axis=0), given.positives.sum(axis=0))
        columns = {"ap50": ap50, "recall": recall}
        return {name: dict(zip(names, values.tolist(), strict=True)) for name, values in columns.items()}


def slice_detections(
    counts: DetectionCounts,
    kinds: Sequence[str],
    *,
    iou: float = 0.5,
    score: float = 0.5,
    size_limits: Sequence[float] = (32.0, 96.0),
    metadata: Metadata | None = None,
    unit: Unit = "group",
) -> Slices | None:
    """All slices of a split; iou, score and size_limits as in `score_detections`."""
    parts: list[Part] = []
    if OBJECT_SIZE in kinds:
        parts = [partial(_of_size, counts, _Judge(iou, score, limits), unit) for limits in size_ranges(size_limits)]
    shown = Shown("AP50", "objects", f"AP50 is over the classes in the slice's truth; recall at IoU {iou:g}")
    kinds = [kind for kind in kinds if kind not in PARTS]
    return cut(counts, kinds, _Judge(iou, score), shown=shown, parts=parts, metadata=metadata, unit=unit)


def _of_size(counts: DetectionCounts, judge: _Judge, unit: Unit, level: float) -> Slice:
    low, high = (float(np.sqrt(limit)) for limit in judge.size)
    value = f"from {low:g} px" if np.isinf(high) else f"{low:g} to {high:g} px"
    (matches,) = match_detections(counts.table(), thresholds=(0.5,), sizes=(judge.size,))
    with_any = matches.positives.sum(axis=1) > 0
    groups = {group for group, one in zip(counts.groups, with_any.tolist(), strict=True) if one}
    return Slice(OBJECT_SIZE, value, int(with_any.sum()), len(groups), judge(counts, unit, level))


def ap50_interval(
    matches: Matches, names: Sequence[str], estimate: float, *, unit: Unit, level: float
) -> tuple[Ends | None, str | None]:
    """Of AP50 over all classes, resampled by N names of groups; or why there is none."""
    _, objects = group_sums(matches.positives, names)
    sizes = objects.sum(axis=1)
    effective = effective_groups(sizes)
    note = too_few(int((sizes > 0).sum()), float(effective), unit, counted="objects")
    if note:
        return None, note
    owners = np.unique(np.asarray(names, np.str_), return_inverse=True)[1]
    level_50, present = matches.threshold(0.5), np.flatnonzero(objects.sum(axis=0)).tolist()
    curves = [DrawnCurve.of(matches, level_50, k, owners, len(objects)) for k in present]
    rng, values = np.random.default_rng(SEED), []
    for start in range(0, RESAMPLES, _CHUNK):
        weights = draw_weights(rng, min(_CHUNK, RESAMPLES - start), len(objects))
        drawn = weights @ objects[:, present]
        each = [curve.average_precision(weights, drawn[:, i]) for i, curve in enumerate(curves)]
        values.append(mean_of_defined(np.stack(each, axis=-1)))
    return pair(*interval(np.concatenate(values), estimate, groups=effective, level=level)), None
