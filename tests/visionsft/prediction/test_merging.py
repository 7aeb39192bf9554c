"""Merging: of what two tiles saw of the same objects, what is left, beside torchvision's suppression."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from visionsft.prediction.blending import Grid, plan_grid
from visionsft.prediction.merging import (
    Links,
    Merging,
    Parts,
    _choose,
    find_cuts,
    find_links,
    merge_tiles,
    resolve,
)

SIDE, OVERLAP = 60, 24


def make_parts(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, grid: Grid, place: tuple[int, int]
) -> Parts:
    window = grid.window(*place)
    edges = (window.col, window.row, window.col + window.width, window.row + window.height)
    low, high = np.tile(edges[:2], 2), np.tile(edges[2:], 2)
    own = boxes.clip(low, high)
    seen = (own[:, 2:] > own[:, :2]).all(1)
    own = own[seen]
    tiles = np.tile(np.array(place, np.int64), (len(own), 1))
    return Parts(own, scores[seen], labels[seen], find_cuts(own, edges, grid.shape), tiles)


def draw(seed: int, grid: Grid, *, whole: bool) -> Iterator[tuple[tuple[int, int], Parts]]:
    """Small boxes of two classes, shaken a little for each tile that shows them; whole: none is cut by a border."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, np.array(grid.shape[::-1]) - 9, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(3, 9, (60, 2))], axis=1)
    labels = rng.integers(0, 2, 60)
    for place in grid:
        window = grid.window(*place)
        shaken = boxes + rng.uniform(-0.7, 0.7, boxes.shape)
        shaken = shaken.clip(0, np.tile(np.array(grid.shape[::-1]), 2))
        inside = np.ones(60, bool)
        if whole:
            low = np.array([window.col, window.row])
            high = low + np.array([window.width, window.height])
            inside = ((shaken[:, :2] > low + 1.5) & (shaken[:, 2:] < high - 1.5)).all(1)
        yield place, make_parts(shaken[inside], rng.uniform(0.1, 1, 60)[inside], labels[inside], grid, place)


def suppressed(parts: Parts, iou: float) -> Parts:
    """As torchvision does it, within tiles, too."""
    kept = batched_nms(*map(torch.from_numpy, (parts.boxes, parts.scores, parts.labels)), iou)
    return parts.take(np.sort(kept.numpy()))


def rows(parts: Parts) -> np.ndarray:
    whole = np.column_stack([parts.boxes, parts.scores, parts.labels])
    return whole[np.lexsort(whole.T)]


@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.7]))
@settings(max_examples=60, deadline=None)
def test_of_uncut_boxes_merging_is_suppression(seed: int, iou: float) -> None:
    grid = plan_grid((150, 130), size=SIDE, overlap=OVERLAP)
    # no two boxes of one tile are alike, as a detector leaves them
    tiles = [(place, suppressed(parts, iou)) for place, parts in draw(seed, grid, whole=True)]
    found = [parts for parts in merge_tiles(iter(tiles), grid, Merging(iou=iou)) if len(parts)]
    merged = np.concatenate([rows(parts) for parts in found])
    boxes, scores, labels = (
        np.concatenate([getattr(parts, name) for _, parts in tiles]) for name in ("boxes", "scores", "labels")
    )
    kept = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), iou).numpy()
    wanted = np.column_stack([boxes, scores, labels])[kept]
    np.testing.assert_array_equal(merged[np.lexsort(merged.T)], wanted[np.lexsort(wanted.T)])


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_groups_decided_together_are_as_decided_one_by_one(seed: int) -> None:
    """Cut boxes, too, as long as none is joined."""
    grid = plan_grid((SIDE, 96), size=SIDE, overlap=OVERLAP)
    (_, first), (_, second) = draw(seed, grid, whole=False)
    links = find_links(first, second, grid, Merging())
    plain = links.take(links.sides < 0)
    pairs = plain.pairs + np.array([0, len(first)])
    names = ("boxes", "scores", "labels", "cut", "tiles")
    both = Parts(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in names))
    linked = Links(pairs, plain.sides, plain.likeness, plain.alike)
    np.testing.assert_array_equal(rows(_choose(both, linked)), rows(resolve_by_class(both, linked)))


def resolve_by_class(parts: Parts, links: Links) -> Parts:
    """`resolve` is for parts of one class."""
    found = []
    for label in np.unique(parts.labels):
        members = np.flatnonzero(parts.labels == label)
        own = links.take(parts.labels[links.pairs[:, 0]] == label)
        local = Links(np.searchsorted(members, own.pairs), own.sides, own.likeness, own.alike)
        found.append(resolve(parts.take(members), local, Merging()))
    return Parts(*(np.concatenate([getattr(each, name) for each in found])
                   for name in ("boxes", "scores", "labels", "cut", "tiles")))  # fmt: skip
