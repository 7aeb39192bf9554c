"""Views: what windows, zooms, turns and flips do to the objects in a picture, and what of them a model is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.batch import Window
from datamodules.objects import Objects, Rings, Target

Move = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""(N, 2) x, y -> (N, 2) x, y; a shift, a zoom along each axis, a flip or a right-angle turn."""

Frame = tuple[float, float, float, float]
"""x1, y1, x2, y2 of a rectangle in pixels."""

VISIBLE = 1e-3
"""Pixels of a box's side below which nothing of it is seen."""


def move(objects: Objects, points: Move) -> Objects:
    """The objects where their points go. Upright boxes stay exact; so do turned ones unless the zoom differs
    between the axes: then a turned box keeps its centre, one side's direction, and its area."""
    ends = points(objects.boxes.reshape(-1, 2).astype(np.float64)).reshape(-1, 2, 2)
    boxes = np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1).astype(np.float32)
    shapes = None if objects.shapes is None else tuple(_move_rings(rings, points) for rings in objects.shapes)
    turned = None if objects.turned is None else _move_turned(objects.turned, points)
    return replace(objects, boxes=boxes, shapes=shapes, turned=turned)


def shift(objects: Objects, x: float, y: float) -> Objects:
    """The objects as seen from a window whose upper left corner is at x, y."""
    return move(objects, lambda points: points - (x, y))


def zoom(objects: Objects, x: float, y: float) -> Objects:
    """The objects in a picture x times as wide and y times as high."""
    return move(objects, lambda points: points * (x, y))


def _move_rings(rings: Rings, points: Move) -> Rings:
    return tuple(points(ring.astype(np.float64)).astype(np.float32) for ring in rings)


def _move_turned(turned: NDArray[np.float32], points: Move) -> NDArray[np.float32]:
    corners = points(turned_corners(turned).reshape(-1, 2)).reshape(-1, 4, 2)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]
    width = np.hypot(first[:, 0], first[:, 1])
    area = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    angle = _half_turn(np.arctan2(first[:, 1], first[:, 0]))
    height = area / np.maximum(width, 1e-12)
    return np.column_stack([corners.mean(axis=1), width, height, angle]).astype(np.float32)


def turned_corners(turned: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, 5) turned boxes -> (N, 4, 2) x, y, in order around each."""
    cx, cy, width, height, angle = turned.astype(np.float64).T
    along = np.stack([np.cos(angle), np.sin(angle)], axis=1) * width[:, None] / 2
    across = np.stack([-np.sin(angle), np.cos(angle)], axis=1) * height[:, None] / 2
    centre = np.stack([cx, cy], axis=1)
    around = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return np.stack([centre + a * along + b * across for a, b in around], axis=1)


def _half_turn(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same direction of a side within [-pi/2, pi/2), in float32 as well."""
    angle = np.mod(angle + np.pi / 2, np.pi) - np.pi / 2
    return np.where(angle.astype(np.float32) >= np.float32(np.pi / 2), -np.pi / 2, angle)


def clip(
    objects: Objects, frame: Frame, *, min_visible: float, valid: NDArray[np.bool_] | None = None
) -> Objects:
    """What is seen of the objects inside a frame.

    Boxes are cut at its edges, outlines too: the box of a cut outline is around what is left of it. Turned
    boxes stay whole. An object of whose area less than `min_visible` is seen becomes an ignored region:
    a model is asked neither to find it from what is left, nor to call that background. What isn't seen
    at all is dropped. valid: (H, W); what lies on other pixels isn't seen, either.
    """
    low, high = np.array(frame[:2], np.float32), np.array(frame[2:], np.float32)
    boxes = np.clip(objects.boxes, np.tile(low, 2), np.tile(high, 2))
    cut = np.flatnonzero((boxes != objects.boxes).any(axis=1)).tolist()
    share = _areas(boxes) / np.maximum(_areas(objects.boxes), 1e-12)
    shapes = objects.shapes
    if shapes is not None:
        pieces = {i: _clip_rings(shapes[i], frame) for i in cut}
        for i, rings in pieces.items():
            share[i] = _ring_area(rings) / max(_ring_area(shapes[i]), 1e-12)
            if rings:
                boxes[i] = _overlap(boxes[i], _bounds(rings))
        shapes = tuple(pieces.get(i, rings) for i, rings in enumerate(shapes))
    elif objects.turned is not None:
        corners = turned_corners(objects.turned[cut]).astype(np.float32)
        for i, ring in zip(cut, corners, strict=True):
            share[i] = _ring_area(_clip_rings((ring,), frame)) / max(_ring_area((ring,)), 1e-12)
    seen = (boxes[:, 2:] - boxes[:, :2] >= VISIBLE).all(axis=1)
    if valid is not None and not valid.all():
        share[seen] *= _valid_shares(boxes[seen], valid)
    # rounding must not cost an object that is wholly inside
    clipped = replace(objects, boxes=boxes, shapes=shapes)
    return set_aside(clipped, share < min_visible - 1e-6).take(seen & (share > 0))


def set_aside(objects: Objects, outside: NDArray[np.bool_]) -> Objects:
    """The objects (N,) of which some become ignored regions."""
    ignored = objects.ignored | outside
    return replace(objects, ignored=ignored, labels=np.where(ignored, 0, objects.labels))


def frame_of(window: Window) -> Frame:
    """A window's edges."""
    return (window.col, window.row, window.col + window.width, window.row + window.height)


def meeting(boxes: NDArray[np.float32], frame: Frame) -> NDArray[np.bool_]:
    """(N,) whether a box has ground in common with a frame."""
    x1, y1, x2, y2 = boxes.T
    return np.asarray((x1 < frame[2]) & (x2 > frame[0]) & (y1 < frame[3]) & (y2 > frame[1]))


def middles_inside(boxes: NDArray[np.float32], frame: Frame) -> NDArray[np.bool_]:
    """(N,) whether a box's middle lies in a frame, its lower edges included: in one of frames side by side."""
    x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
    return np.asarray((x >= frame[0]) & (x < frame[2]) & (y >= frame[1]) & (y < frame[3]))


def to_target(objects: Objects, size: tuple[int, int], *, masks: bool) -> Target:
    """As a detector is given it; size: (H, W) of its image; masks: whether the outlines are drawn."""
    found = objects.take(~objects.ignored)
    target = Target(
        boxes=torch.from_numpy(np.ascontiguousarray(found.boxes, np.float32)),
        labels=torch.from_numpy(np.ascontiguousarray(found.labels, np.int64)),
        ignored=torch.from_numpy(np.ascontiguousarray(objects.boxes[objects.ignored], np.float32)),
    )
    if masks:
        assert found.shapes is not None
        drawn = [draw_shape(rings, size, box) for rings, box in zip(found.shapes, found.boxes, strict=True)]
        target["masks"] = torch.from_numpy(np.stack(drawn) if drawn else np.zeros((0, *size), bool))
    if found.turned is not None:
        target["turned"] = torch.from_numpy(np.ascontiguousarray(found.turned, np.float32))
    return target


def draw_shape(rings: Rings, size: tuple[int, int], box: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels whose centre lies in an odd number of rings.

    box: (4,) of the object; where it holds no centre of a pixel, its middle pixel stands for the object.
    """
    height, width = size
    toggles = np.zeros((height, width + 1), np.int32)
    for ring in rings:
        _toggle(toggles, ring.astype(np.float64))
    drawn = np.asarray(np.cumsum(toggles, axis=1)[:, :width] % 2 == 1)
    if not drawn.any():
        col, row = ((box[:2] + box[2:]) / 2).astype(int).tolist()
        drawn[min(max(row, 0), height - 1), min(max(col, 0), width - 1)] = True
    return drawn


def _toggle(toggles: NDArray[np.int32], ring: NDArray[np.float64]) -> None:
    """Adds 1 at the first pixel centre right of each place where a row of centres crosses the ring."""
    height, columns = toggles.shape
    start, end = ring, np.roll(ring, -1, axis=0)
    low = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1]) - 0.5), 0, height).astype(int)
    high = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1]) - 0.5), 0, height).astype(int)
    edge = np.repeat(np.arange(len(ring)), high - low)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[edge]
    (x1, y1), (x2, y2) = start[edge].T, end[edge].T
    x = x1 + (row + 0.5 - y1) / (y2 - y1) * (x2 - x1)
    np.add.at(toggles, (row, np.clip(np.ceil(x - 0.5), 0, columns - 1).astype(int)), 1)


def _clip_rings(rings: Rings, frame: Frame) -> Rings:
    clipped = (_clip_ring(ring, frame) for ring in rings)
    return tuple(ring for ring in clipped if len(ring) > 2)


def _clip_ring(ring: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """The part of a polygon inside a frame: Sutherland and Hodgman 1974, all edges of a side at once."""
    points = ring.astype(np.float64)
    for axis, limit, sign in ((0, frame[0], 1), (0, frame[2], -1), (1, frame[1], 1), (1, frame[3], -1)):
        depth = sign * (points[:, axis] - limit)
        inside = depth >= 0
        if inside.all():
            continue
        if not inside.any():
            return np.empty((0, 2), np.float32)
        following = np.roll(depth, -1)
        crossing = inside != (following >= 0)
        step = np.divide(depth, depth - following, out=np.zeros_like(depth), where=crossing)
        crossed = points + step[:, None] * (np.roll(points, -1, axis=0) - points)
        both = np.stack([points, crossed], axis=1).reshape(-1, 2)
        points = both[np.stack([inside, crossing], axis=1).ravel()]
    return points.astype(np.float32)


def _ring_area(rings: Rings) -> float:
    """Sum of the rings' areas; a hole counts twice, once for what is around it."""
    total = 0.0
    for ring in rings:
        x, y = (ring - ring[0]).astype(np.float64).T
        total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return total


def _bounds(rings: Rings) -> NDArray[np.float32]:
    points = np.concatenate(rings)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])])


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    return np.asarray(sides[:, 0] * sides[:, 1])


def _valid_shares(boxes: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N,) share of valid pixels among those that each box touches."""
    sums = cv2.integral(valid.astype(np.uint8))
    left, top = np.floor(boxes[:, :2]).astype(int).T
    right, bottom = np.ceil(boxes[:, 2:]).astype(int).T
    count = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return np.asarray(count / np.maximum((bottom - top) * (right - left), 1))
