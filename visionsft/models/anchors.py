"""Anchors: the sizes and aspect ratios that fit the boxes of a training split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionsft.errors import ConfigError

Floats = NDArray[np.float64]

GOOD_IOU = 0.5
"""From this IoU on an anchor counts as an object's in RetinaNet."""


@dataclass(frozen=True)
class AnchorFit:
    """Anchors for the options `anchor_sizes` and `aspect_ratios` of a head, and how well they fit.

    The IoU is that of a box with the most similar anchor when both have one centre: an upper bound, since
    anchors lie a stride apart.
    """

    anchor_sizes: list[list[float]]
    """Square roots of areas in pixels, for each level, finest first."""
    aspect_ratios: list[float]
    """height / width."""
    boxes: int
    """How many boxes they were fitted to."""
    boxes_per_level: list[int]
    """Of them; a level that has fewer than sizes keeps the head's usual sizes."""
    mean_iou: float
    """Mean over the boxes of the best IoU."""
    good: float
    """Share of the boxes whose best IoU is at least GOOD_IOU."""


def fit_anchors(
    sizes: Floats,
    *,
    strides: Sequence[float],
    sizes_per_level: int = 3,
    ratios: int = 3,
    smallest: float = 4.0,
    seed: int = 0,
) -> AnchorFit:
    """Cluster boxes by 1 - IoU, as YOLOv2 does (Redmon & Farhadi 2017), into sizes per level and aspect ratios.

    sizes: (N, 2) widths and heights in pixels of what the model sees, after any resizing. strides: of the
    head's levels, finest first. A head's anchors are all combinations of a level's sizes and the ratios, so
    squares of the boxes' areas and boxes of unit area are clustered apart. A box belongs to the level whose
    usual anchors are nearest in size: `smallest` strides and up to an octave above (4 in RetinaNet, with three
    sizes; 8 in Faster R-CNN, with one).
    """
    sizes = _checked(sizes, max(sizes_per_level, ratios))
    side = np.sqrt(sizes.prod(1))
    octaves = np.log2(side / (smallest * strides[0])) + 1 / (2 * sizes_per_level)
    level = np.clip(np.floor(octaves), 0, len(strides) - 1).astype(int)
    usual = smallest * 2 ** (np.arange(sizes_per_level) / sizes_per_level)
    rng = np.random.default_rng(seed)
    anchor_sizes = [
        _rounded(_sizes(side[level == i], usual * stride, rng)) for i, stride in enumerate(strides)
    ]
    shapes = cluster_boxes(sizes / side[:, None], ratios, rng)
    aspect_ratios = _rounded(np.sort(shapes[:, 1] / shapes[:, 0]))
    best = best_ious(sizes, anchor_sizes, aspect_ratios)
    return AnchorFit(
        anchor_sizes=anchor_sizes,
        aspect_ratios=aspect_ratios,
        boxes=len(sizes),
        boxes_per_level=np.bincount(level, minlength=len(strides)).tolist(),
        mean_iou=float(best.mean()),
        good=float((best >= GOOD_IOU).mean()),
    )


def best_ious(
    sizes: Floats, anchor_sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float]
) -> Floats:
    """sizes: (N, 2) widths and heights -> (N,) IoU with the most similar anchor, centre on centre."""
    side = np.array([size for level in anchor_sizes for size in level])[:, None]
    root = np.sqrt(np.array(aspect_ratios))
    anchors = np.stack([(side / root).ravel(), (side * root).ravel()], axis=1)
    best: Floats = _ious(np.asarray(sizes, np.float64), anchors).max(1)
    return best


def cluster_boxes(sizes: Floats, k: int, rng: np.random.Generator, *, steps: int = 100) -> Floats:
    """k-means of (N, 2) widths and heights with the distance 1 - IoU -> (k, 2), the best of all steps."""
    centres = _spread(sizes, k, rng)
    best, best_iou, members = centres, -1.0, np.full(len(sizes), -1)
    for _ in range(steps):
        ious = _ious(sizes, centres)
        if (mean := ious.max(1).mean()) > best_iou:  # a mean needn't raise it, unlike for squared distances
            best, best_iou = centres, mean
        nearest = ious.argmax(1)
        if (nearest == members).all():
            break
        members = nearest
        own = [sizes[members == i] for i in range(k)]
        centres = np.stack(
            [each.mean(0) if len(each) else old for each, old in zip(own, centres, strict=True)]
        )
    return best


def _spread(sizes: Floats, k: int, rng: np.random.Generator) -> Floats:
    """k of the boxes, each drawn in proportion to its squared distance to those before (k-means++)."""
    chosen = sizes[[rng.integers(len(sizes))]]
    while len(chosen) < k:
        far = (1 - _ious(sizes, chosen).max(1)).clip(min=0) ** 2
        weights = far / far.sum() if far.sum() > 0 else None
        chosen = np.concatenate([chosen, sizes[[rng.choice(len(sizes), p=weights)]]])
    return chosen


def _sizes(side: Floats, usual: Floats, rng: np.random.Generator) -> Floats:
    """The sizes of one level, ascending; `usual` where it has too few boxes to say."""
    if len(side) < len(usual):
        return usual
    return np.sort(cluster_boxes(np.stack([side, side], axis=1), len(usual), rng)[:, 0])


def _rounded(values: Floats) -> list[float]:
    """To three digits, as somebody would write them into a config."""
    return [float(f"{value:.3g}") for value in values]


def _ious(first: Floats, second: Floats) -> Floats:
    """(N, 2) and (M, 2) widths and heights -> (N, M) IoU of the boxes with a common centre."""
    shared = np.minimum(first[:, None], second).prod(-1)
    ious: Floats = shared / (first.prod(-1)[:, None] + second.prod(-1) - shared)
    return ious


def _checked(sizes: Floats, least: int) -> Floats:
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    if len(sizes) < least:
        raise ConfigError(
            f"anchors: {len(sizes)} boxes in the training split; fitting needs at least {least}"
        )
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ConfigError(f"anchors: box {int((~(sizes > 0)).any(1).argmax())} has no width or height")
    return sizes
