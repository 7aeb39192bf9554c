"""Boundaries: how well a prediction follows the edges of the labels, and which objects it finds.

Everything is counted sample by sample into sums (`BoundaryCounts`), which add up to those of a split and can be
resampled; `describe` turns sums into numbers. Masks are ``(H, W) uint8`` class indices. Pixels whose truth is
255 are left out of truth and prediction alike, and the step from a label to such a pixel is no edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.batch import IGNORE
from visionsft.evaluation.metrics.segmentation import ratio, without_nan

Mask = NDArray[np.uint8]

DILATION_RATIO = 0.02
"""Width of the boundary region of boundary IoU, in image diagonals (Cheng et al. 2021)."""
TOLERANCE_RATIO = 0.0075
"""Distance within which two boundary pixels match, in image diagonals (Csurka et al. 2013)."""
DISTANCES = (1, 2, 4, 8, 16, 32)
"""Pixels from a label edge, of the trimap curve."""
SIZES = (64, 256, 1024, 4096, 16384)
"""Pixels of a labelled object, from which the next size begins."""

DEFINITIONS = {
    "boundary_iou": f"Cheng et al. 2021: IoU of the pixels within {DILATION_RATIO} image diagonals (in the chessboard "
    "distance) inside the edge of the class's mask, in truth and prediction; the image's border is an edge. "
    "From sums over the split",
    "boundary_f1": "a pixel of a class is on its boundary if one of its four neighbours has another class; precision: "
    f"share of the predicted boundary within {TOLERANCE_RATIO} image diagonals of the true one, recall: the "
    "other way round (Csurka et al. 2013). From sums over the split, where Csurka averages images",
    "trimap": "scores of the labelled pixels nearer than `distance` to a label edge; 1 is the pixels on its two sides",
    "objects": "connected pixels (8 neighbours) of one class in truth, by their number; found if at least half "
    "are predicted as the class",
    "ignored": "pixels without label are left out, and the step from a label to them is no edge",
}
"""What each number means; written beside the numbers."""


@dataclass(frozen=True)
class BoundaryCounts:
    """Sums of one sample; with a leading dimension, of many."""

    regions: NDArray[np.int64]
    """(K, 2): intersection and union of the boundary regions."""
    edges: NDArray[np.int64]
    """(K, 4): predicted boundary pixels, those of them near a true one, true boundary pixels, those near
    a predicted one."""
    trimap: NDArray[np.int64]
    """(D + 1, K, 3): right, true and predicted pixels between one of DISTANCES and the next; the last is
    beyond all."""
    objects: NDArray[np.int64]
    """(K, S + 1, 2): objects and found objects of each size."""

    @classmethod
    def stack(cls, counts: Sequence[Self]) -> Self:
        """Those of samples along a new first dimension."""
        return cls(*(np.stack([getattr(each, field.name) for each in counts]) for field in fields(cls)))

    def sum(self) -> Self:
        """Over the first dimension."""
        return type(self)(*(getattr(self, field.name).sum(axis=0) for field in fields(self)))


def count_boundaries(prediction: Mask, truth: Mask, num_classes: int) -> BoundaryCounts:
    """Count one sample: two ``(H, W) uint8``; truth 255 = left out."""
    prediction, truth = np.ascontiguousarray(prediction), np.ascontiguousarray(truth)
    prediction = np.where(truth == IGNORE, truth, prediction)
    diagonal = math.hypot(*truth.shape)
    width, tolerance = max(1, round(DILATION_RATIO * diagonal)), max(1.0, TOLERANCE_RATIO * diagonal)
    return BoundaryCounts(
        regions=_count_regions(prediction, truth, num_classes, width=width),
        edges=_count_edges(prediction, truth, num_classes, tolerance=tolerance),
        trimap=_count_trimap(prediction, truth, num_classes),
        objects=_count_objects(prediction, truth, num_classes),
    )


# -------------------------------------------------------------------------------------------- boundary IoU


def boundary_region(mask: Mask, width: int) -> Mask:
    """The mask, 255 where a pixel is farther than `width` inside its class.

    The published code erodes each class's mask by itself, from the image's border too. A pixel outlives that if
    its whole neighbourhood has one class: if the smallest class there is the largest. So two filters serve all
    classes; ignored pixels are passed over, which makes them neutral.
    """
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    smallest = cv2.erode(mask, square)
    largest = cv2.dilate(np.where(mask == IGNORE, np.uint8(0), mask), square)
    inside = smallest == largest
    inside[:width], inside[-width:], inside[:, :width], inside[:, -width:] = (False,) * 4
    return np.where(inside, np.uint8(IGNORE), mask)


def _count_regions(prediction: Mask, truth: Mask, num_classes: int, *, width: int) -> NDArray[np.int64]:
    predicted, true = boundary_region(prediction, width), boundary_region(truth, width)
    common = _count(np.where(predicted == true, true, np.uint8(IGNORE)), num_classes)
    union = _count(predicted, num_classes) + _count(true, num_classes) - common
    return np.stack([common, union], axis=-1)


def _count(mask: Mask, num_classes: int) -> NDArray[np.int64]:
    """Pixels of each class."""
    return _bincount(mask, 256)[:num_classes]


def _bincount(codes: NDArray[Any], size: int) -> NDArray[np.int64]:
    """numpy's copies the codes to int64 first, which takes most of its time."""
    return torch.bincount(torch.from_numpy(codes).ravel(), minlength=size).numpy()


# -------------------------------------------------------------------------------------------------- edges


def edge_map(mask: Mask) -> NDArray[np.bool_]:
    """Pixels that have another class above, below, left or right of them."""
    edges = np.zeros(mask.shape, bool)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        a, b = mask[here], mask[there]
        step = (a != b) & (a != IGNORE) & (b != IGNORE)
        edges[here] |= step
        edges[there] |= step
    return edges


def _count_edges(prediction: Mask, truth: Mask, num_classes: int, *, tolerance: float) -> NDArray[np.int64]:
    predicted, true = (np.where(edge_map(mask), mask, np.uint8(IGNORE)) for mask in (prediction, truth))
    counts = np.zeros((num_classes, 4), np.int64)
    counts[:, 0], counts[:, 2] = _count(predicted, num_classes), _count(true, num_classes)
    disk = _disk(tolerance)
    for k in np.flatnonzero((counts[:, 0] > 0) & (counts[:, 2] > 0)):
        mine, other = ((edges == k).view(np.uint8) for edges in (predicted, true))
        counts[k, 1] = cv2.countNonZero(mine & cv2.dilate(other, disk))
        counts[k, 3] = cv2.countNonZero(other & cv2.dilate(mine, disk))
    return counts


@cache
def _disk(radius: float) -> Mask:
    """Every offset of at most `radius`, as a structuring element."""
    reach = np.arange(-int(radius), int(radius) + 1)
    return (reach**2 + reach[:, None] ** 2 <= radius**2).astype(np.uint8)


# ------------------------------------------------------------------------------------------------- trimap


def edge_distance(truth: Mask) -> NDArray[Any]:
    """(H, W) float32: pixels to the nearest one on a label edge; very large where the mask has none."""
    return cv2.distanceTransform((~edge_map(truth)).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _count_trimap(prediction: Mask, truth: Mask, num_classes: int) -> NDArray[np.int64]:
    # DISTANCES are whole numbers, so a distance cut to one lies between the same two of them
    cut = np.minimum(edge_distance(truth), DISTANCES[-1]).astype(np.uint8)
    starts = np.searchsorted(DISTANCES, np.arange(DISTANCES[-1] + 1), side="right").astype(np.int16) * 256
    bands, size = starts[cut], (len(DISTANCES) + 1) * 256
    right = np.where(prediction == truth, truth, np.uint8(IGNORE))
    counts = [_bincount(bands + mask, size) for mask in (right, truth, prediction)]
    return np.stack(counts, axis=-1).reshape(-1, 256, 3)[:, :num_classes]


# ------------------------------------------------------------------------------------------------ objects


def _count_objects(prediction: Mask, truth: Mask, num_classes: int) -> NDArray[np.int64]:
    ids = np.zeros(truth.shape, np.int32)  # 0 is no object; the objects of each class follow those before
    owners = [np.zeros(0, np.int64)]
    total = 0
    for k in np.flatnonzero(_count(truth, num_classes)):
        own = truth == k
        count, labels = cv2.connectedComponents(own.view(np.uint8), connectivity=8)
        np.add(labels, total, out=ids, where=own)
        total += count - 1
        owners.append(np.full(count - 1, k))
    pixels = _bincount(ids, total + 1)[1:]
    hits = _bincount(np.where(prediction == truth, ids, 0), total + 1)[1:]
    sizes = np.searchsorted(SIZES, pixels, side="right")
    found = np.stack([np.ones_like(hits), 2 * hits >= pixels], axis=-1)
    counts = np.zeros((num_classes, len(SIZES) + 1, 2), np.int64)
    np.add.at(counts, (np.concatenate(owners), sizes), found)
    return counts


# ------------------------------------------------------------------------------------------------ reading


def boundary_iou(regions: NDArray[np.int64]) -> NDArray[np.float64]:
    """``(..., K, 2) -> (..., K)``; nan for a class that is nowhere."""
    return ratio(regions[..., 0], regions[..., 1])


def boundary_f1(edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """``(..., K, 4) -> (..., K, 3)``: precision, recall and F1; nan where not defined."""
    precision, recall = ratio(edges[..., 1], edges[..., 0]), ratio(edges[..., 3], edges[..., 2])
    p, r = np.nan_to_num(precision), np.nan_to_num(recall)
    f1 = np.where(edges[..., 0] + edges[..., 2] > 0, np.nan_to_num(ratio(2 * p * r, p + r)), np.nan)
    return np.stack([precision, recall, f1], axis=-1)


def describe(counts: BoundaryCounts, names: Sequence[str]) -> dict[str, Any]:
    """The numbers of a split's sums, for scores.json."""
    iou = boundary_iou(counts.regions)
    edges = [
        dict(zip(("precision", "recall", "f1"), row, strict=True))
        for row in boundary_f1(counts.edges).tolist()
    ]
    report = {
        "mean_boundary_iou": _mean(iou),
        "mean_boundary_f1": _mean(boundary_f1(counts.edges)[:, 2]),
        "boundary_iou": dict(zip(names, iou.tolist(), strict=True)),
        "boundary_f1": dict(zip(names, edges, strict=True)),
        "trimap": _trimap(counts.trimap),
        "objects": {name: _sizes(row) for name, row in zip(names, counts.objects, strict=True)},
        "object_recall": _found_share(counts.objects.sum(axis=(0, 1))),
        "object_recall_per_class": {
            name: _found_share(row.sum(axis=0)) for name, row in zip(names, counts.objects, strict=True)
        },
        "definition": DEFINITIONS,
    }
    return without_nan(report)


def summary(counts: BoundaryCounts) -> list[str]:
    """The trimap's numbers over all classes, in a line of text."""
    near = " · ".join(f"{row['distance']} px {row['mean_iou']:.4f}" for row in _trimap(counts.trimap))
    return [f"mean IoU near label edges, within {near}"]


def _trimap(counts: NDArray[np.int64]) -> list[dict[str, float]]:
    """counts: (D + 1, K, 3)."""
    rows = []
    for distance, sums in zip(DISTANCES, counts.cumsum(axis=0)[:-1], strict=True):
        right, true, predicted = sums.T
        pixels = int(true.sum())
        rows.append(
            {
                "distance": distance,
                "mean_iou": _mean(ratio(right, true + predicted - right)),
                "pixel_accuracy": int(right.sum()) / pixels if pixels else math.nan,
                "pixels": pixels,
            }
        )
    return rows


def _sizes(counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """counts: (S + 1, 2) of one class."""
    ends = [*(size - 1 for size in SIZES), None]
    return [
        {
            "from": start,
            "to": end,
            "objects": objects,
            "found": found,
            "recall": found / objects if objects else None,
        }
        for start, end, (objects, found) in zip((1, *SIZES), ends, counts.tolist(), strict=True)
    ]


def _found_share(counts: NDArray[np.int64]) -> float:
    """counts: (2,) objects and found ones; nan without any."""
    return float(ratio(counts[1], counts[0]))


def _mean(values: NDArray[np.float64]) -> float:
    """Of those that are defined."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
