"""Turned boxes: rectangles at any angle, what they have in common, and the best of those that show one object.

A turned box is cx, cy, w, h, angle as in `datamodules.objects.Objects.turned`: radians by which the side w is turned
from the x axis towards the y axis. (w, h, angle) and (h, w, angle + pi/2) are the same rectangle.

torchvision has `box_iou(..., fmt="cxcywhr")` since 0.29 (compiled, angles in degrees, the other way round). It isn't
used: earlier ones lack it, and even in float64 it gives many boxes that are nearly the same, turned by 1e-7 against each
other as float32 rounds, 0.6, and boxes with sides of 1e-3 pixels 0.3 with themselves: benchmarks/rotated.py. It has no
non-maximum suppression for turned boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PAIRS = 2**16
"""Pairs of boxes whose common area is computed at once: some 20 MB."""
CELLS = 2**22
"""Pairs of boxes whose extents are compared at once."""
BLOCK = 128
"""Boxes that are compared with each other at once in non-maximum suppression."""

AROUND = ((-1, -1), (1, -1), (1, 1), (-1, 1))
"""Corners in units of half sides, in their order around the box."""


# ------------------------------------------------------------------------------------------------- geometry


def to_corners(turned: Tensor) -> Tensor:
    """(..., 5) turned boxes -> (..., 4, 2) x, y in order around each, starting at -w/2, -h/2."""
    cos, sin = turned[..., 4].cos(), turned[..., 4].sin()
    along = torch.stack([cos, sin], -1) * turned[..., 2:3] / 2
    across = torch.stack([-sin, cos], -1) * turned[..., 3:4] / 2
    return torch.stack([turned[..., :2] + a * along + b * across for a, b in AROUND], -2)


def from_corners(corners: Tensor) -> Tensor:
    """(..., 4, 2) corners of rectangles, in order around each -> (..., 5) turned boxes as `canonicalise` writes them.

    Corners of a parallelogram give a rectangle of its middle, its longer side and its area; for the smallest
    rectangle around any outline see `datamodules.layouts.dota.turned_box`.
    """
    first, second = corners[..., 1, :] - corners[..., 0, :], corners[..., 3, :] - corners[..., 0, :]
    area = (first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]).abs()
    longer = torch.where((first.norm(dim=-1) >= second.norm(dim=-1))[..., None], first, second)
    width, angle = longer.norm(dim=-1), torch.atan2(longer[..., 1], longer[..., 0])
    height = area / width.where(width > 0, 1.0)
    sides = torch.stack([width, torch.minimum(height, width), angle], -1)
    return canonicalise(torch.cat([corners.mean(-2), sides], -1))


def canonicalise(turned: Tensor) -> Tensor:
    """(..., 5) -> (..., 5): the same rectangles with w >= h, angles in [-pi/2, pi/2), or [-pi/4, pi/4) where w = h."""
    width, height, angle = turned[..., 2], turned[..., 3], turned[..., 4]
    angle = torch.where(width < height, angle + math.pi / 2, angle)
    angle = torch.where(width == height, _wrap(angle, math.pi / 2), _wrap(angle, math.pi))
    sides = torch.stack([torch.maximum(width, height), torch.minimum(width, height), angle], -1)
    return torch.cat([turned[..., :2], sides], -1)


def _wrap(angle: Tensor, period: float) -> Tensor:
    """In [-period / 2, period / 2), after rounding too."""
    wrapped = torch.remainder(angle + period / 2, period) - period / 2
    return torch.where(wrapped >= torch.tensor(period / 2, dtype=angle.dtype), -period / 2, wrapped)


def enclose(turned: Tensor) -> Tensor:
    """(..., 5) -> (..., 4): x1, y1, x2, y2 of the upright boxes around turned ones."""
    cos, sin = turned[..., 4].cos().abs(), turned[..., 4].sin().abs()
    width, height = turned[..., 2], turned[..., 3]
    half = torch.stack([width * cos + height * sin, width * sin + height * cos], -1) / 2
    return torch.cat([turned[..., :2] - half, turned[..., :2] + half], -1)


# ----------------------------------------------------------------------------------------------------- overlap


@torch.no_grad()
def rotated_iou(first: Tensor, second: Tensor) -> Tensor:
    """(N, 5), (M, 5) -> (N, M) intersection over union, in `first`'s dtype; computed in float64.

    Only pairs whose upright boxes meet are looked at. Boxes without area have 0 with all.
    """
    a, b = first.double(), second.double()
    iou = torch.zeros((len(a), len(b)), dtype=torch.float64, device=a.device)
    rows, columns = _meeting(enclose(a), enclose(b))
    common = intersect(a[rows], b[columns])
    union = _areas(a)[rows] + _areas(b)[columns] - common
    iou[rows, columns] = torch.where(union > 0, common / union.where(union > 0, 1.0), 0.0)
    return iou.to(first.dtype)


def _areas(turned: Tensor) -> Tensor:
    return turned[:, 2] * turned[:, 3]


def _meeting(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 4), (M, 4) -> (P,), (P,) indices of upright boxes that have ground in common."""
    step = max(CELLS // max(len(second), 1), 1)
    found = [torch.empty((0, 2), dtype=torch.int64, device=first.device)]
    for start in range(0, len(first), step):
        some = first[start : start + step, None]
        meets = ((some[..., :2] < second[:, 2:]) & (some[..., 2:] > second[:, :2])).all(-1)
        found.append(meets.nonzero() + torch.tensor([start, 0], device=first.device))
    rows, columns = torch.cat(found).unbind(1)
    return rows, columns


@torch.no_grad()
def intersect(first: Tensor, second: Tensor) -> Tensor:
    """Common area of each pair of rows: (P, 5), (P, 5) -> (P,) float64."""
    parts = zip(first.double().split(PAIRS), second.double().split(PAIRS), strict=True)
    common = torch.cat([_common_area(a, b) for a, b in parts])
    return torch.minimum(common, torch.minimum(_areas(first), _areas(second)).double()).clamp_min(
        0
    )  # rounding


def _common_area(first: Tensor, second: Tensor) -> Tensor:
    """(P, 5), (P, 5) -> (P,), exact.

    Seen from the first box, which is upright then, each side of the second one adds the integral of its y over
    its x, both held within the first box. No case is special: the sum changes steadily with the boxes, also where
    corners or sides of both coincide, unlike the usual search for crossings and corners.
    """
    cos, sin = first[:, 4].cos(), first[:, 4].sin()
    away = second[:, :2] - first[:, :2]
    along, across = away[:, 0] * cos + away[:, 1] * sin, away[:, 1] * cos - away[:, 0] * sin
    seen = torch.stack([along, across, second[:, 2], second[:, 3], second[:, 4] - first[:, 4]], 1)
    corners = to_corners(seen)
    half = first[:, None, 2:4] / 2
    start, end = corners, corners.roll(-1, 1)  # (P, 4, 2): the four sides
    left, right, entry, leave = _held(start[..., 0], end[..., 0], half[..., 0])
    rise = end[..., 1] - start[..., 1]
    height = _mean_held(start[..., 1] + entry * rise, start[..., 1] + leave * rise, half[..., 1])
    return -(height * (right - left)).sum(1)


def _held(start: Tensor, end: Tensor, half: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Start and end held within -half..half, and the shares of the way between them gone at entry and exit."""
    length = end - start
    safe = length.where(length != 0, 1.0)
    first, last = start.clamp(-half, half), end.clamp(-half, half)
    return first, last, ((first - start) / safe).clamp(0, 1), ((last - start) / safe).clamp(0, 1)


def _mean_held(start: Tensor, end: Tensor, half: Tensor) -> Tensor:
    """Mean of the values from start to end, each held within -half..half."""
    first, last, entry, leave = _held(start, end, half)
    return first * entry + (first + last) / 2 * (leave - entry) + last * (1 - leave)


# ------------------------------------------------------------------------------------------------- suppression


@torch.no_grad()
def rotated_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Indices of the boxes that stay, the most certain first: of each class greedily, as torchvision.ops.batched_nms.

    boxes: (N, 5); scores: (N,); labels: (N,) int. A box goes if its IoU with a more certain one that stays is above
    `iou`; of equal scores the first is the more certain one.
    """
    order = scores.argsort(descending=True, stable=True)
    turned = _part_classes(boxes[order].double(), labels[order])
    kept = []
    while len(order):
        block, rest = turned[:BLOCK], turned[BLOCK:]
        stays = _choose((rotated_iou(block, block) > iou).cpu()).to(boxes.device)
        kept.append(order[:BLOCK][stays])
        left = ~(rotated_iou(block[stays], rest) > iou).any(0)
        order, turned = order[BLOCK:][left], rest[left]
    return torch.cat([*kept, order])


def _part_classes(turned: Tensor, labels: Tensor) -> Tensor:
    """(N, 5) -> (N, 5): moved so that boxes of different classes never meet."""
    if not len(turned):
        return turned
    around = enclose(turned)
    span = around[:, 2].max() - around[:, 0].min() + 1
    moved = turned.clone()
    moved[:, 0] += labels * span
    return moved


def _choose(similar: Tensor) -> Tensor:
    """similar: (N, N) bool, the most certain first -> (K,) indices of those that no chosen one before is similar to."""
    gone = torch.zeros(len(similar), dtype=torch.bool)
    chosen = []
    for i, row in enumerate(similar):
        if not gone[i]:
            chosen.append(i)
            gone |= row
    return torch.tensor(chosen, dtype=torch.int64)
