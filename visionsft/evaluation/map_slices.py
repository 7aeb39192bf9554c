"""Map slices: of segmentation, by samples, by the size of the true objects, and by the distance to a label's edge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.boundaries import DISTANCES, SIZES, BoundaryCounts
from visionsft.evaluation.counts import Counts
from visionsft.evaluation.intervals import (
    LEVEL,
    Unit,
    effective_groups,
    group_sums,
    interval,
    pair,
    resample,
    too_few,
    total_intervals,
)
from visionsft.evaluation.metrics.segmentation import (
    class_scores,
    marginal_counts,
    ratio,
    total_scores,
    without_nan,
)
from visionsft.evaluation.slices import (
    EDGE_DISTANCE,
    OBJECT_SIZE,
    Finding,
    Metadata,
    Part,
    Shown,
    Slice,
    Slices,
    cut,
)

PARTS = (OBJECT_SIZE, EDGE_DISTANCE)
"""Slices that are parts of every sample; they need the counts of boundaries."""

_SHOWN = Shown("mean IoU", "pixels", "mean IoU is over the classes that occur in the slice")
_MEANING = (
    f"; by {OBJECT_SIZE} the score is the share of the objects (connected pixels of one class in truth) of which at "
    f"least half is found, by number of pixels; by {EDGE_DISTANCE} it is mean IoU of the pixels of that distance"
)


def slice_counts(
    counts: Counts,
    kinds: Sequence[str],
    *,
    boundaries: BoundaryCounts | None = None,
    metadata: Metadata | None = None,
    unit: Unit = "group",
    level: float = LEVEL,
) -> Slices | None:
    """All slices of a split; boundaries: counts of each sample, for the kinds in `PARTS`."""
    parts: list[Part] = []
    if boundaries is not None and OBJECT_SIZE in kinds:
        parts += [partial(_of_size, counts, boundaries, s, unit) for s in range(len(SIZES) + 1)]
    if boundaries is not None and EDGE_DISTANCE in kinds:
        parts += [partial(_of_distance, counts, boundaries, d, unit) for d in range(len(DISTANCES) + 1)]
    shown = Shown(_SHOWN.score, _SHOWN.counted, _SHOWN.meaning + _MEANING) if parts else _SHOWN
    kinds = [kind for kind in kinds if kind not in PARTS]
    return cut(counts, kinds, _judge, shown=shown, parts=parts, metadata=metadata, unit=unit, level=level)


def _judge(part: Counts, unit: Unit, level: float) -> Finding:
    return _score(marginal_counts(part.confusions), part.names(unit), part.classes, unit, level)


def _score(
    margins: NDArray[np.int64], groups: Sequence[str], names: Sequence[str], unit: Unit, level: float
) -> Finding:
    """margins: (N, 3, K) of samples, with their N group names."""
    _, sums = group_sums(margins, groups)
    ends, note = total_intervals(sums, resample(sums), unit=unit, level=level)
    whole = sums.sum(axis=0)
    totals = {name: float(value) for name, value in total_scores(whole).items()}
    pixels = int(whole[1].sum())
    numbers = {
        "pixels": pixels,
        "mean_iou": totals["mean_iou"],
        "classes_present": int((whole[1] + whole[2] > 0).sum()),
        "pixel_accuracy": totals["pixel_accuracy"],
        "mean_recall": totals["mean_recall"],
    }
    classes = {
        metric: dict(zip(names, class_scores(whole)[metric].tolist(), strict=True))
        for metric in ("recall", "iou")
    }
    return Finding(totals["mean_iou"], pixels, ends["mean_iou"], note, without_nan({**numbers, **classes}))


def _of_distance(counts: Counts, boundaries: BoundaryCounts, d: int, unit: Unit, level: float) -> Slice:
    """The pixels between two of DISTANCES from an edge."""
    margins = np.moveaxis(boundaries.trimap[:, d], -1, -2)
    found = _score(margins, counts.names(unit), counts.classes, unit, level)
    first = DISTANCES[d - 1] if d else 0
    value = f"from {first} px" if d == len(DISTANCES) else f"{first} to {DISTANCES[d]} px"
    return _part(EDGE_DISTANCE, value, margins[:, 1].sum(axis=1), counts, found)


def _of_size(counts: Counts, boundaries: BoundaryCounts, s: int, unit: Unit, level: float) -> Slice:
    """The objects whose number of pixels is between two of SIZES."""
    objects = boundaries.objects[:, :, s]  # (N, K, 2)
    _, sums = group_sums(objects.sum(axis=1), counts.names(unit))
    drawn, (total, hits) = resample(sums), sums.sum(axis=0)
    share = float(ratio(hits, total))
    effective = effective_groups(sums[:, 0])
    note = too_few(int((sums[:, 0] > 0).sum()), float(effective), unit, counted="objects")
    ends = interval(ratio(drawn[:, 1], drawn[:, 0]), share, groups=effective, level=level)
    classes = ratio(objects[..., 1].sum(axis=0), objects[..., 0].sum(axis=0)).tolist()
    numbers: dict[str, Any] = {"objects": int(total), "mean_iou": None, "object_recall": share}
    numbers["recall"] = dict(zip(counts.classes, classes, strict=True))
    found = Finding(share, int(total), None if note else pair(*ends), note, without_nan(numbers))
    start = SIZES[s - 1] if s else 1
    value = f"from {start:,} px" if s == len(SIZES) else f"{start:,} to {SIZES[s] - 1:,} px"
    return _part(OBJECT_SIZE, value, objects[..., 0].sum(axis=1), counts, found)


def _part(by: str, value: str, weights: NDArray[np.int64], counts: Counts, found: Finding) -> Slice:
    """weights: (N,) what each sample has of the slice."""
    groups = {group for group, weight in zip(counts.groups, weights.tolist(), strict=True) if weight}
    return Slice(by, value, int((weights > 0).sum()), len(groups), found)
