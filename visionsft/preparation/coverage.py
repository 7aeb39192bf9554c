"""Coverage: which images, in which order, best add to those that are there already, by their features.

The greedy solution of the k-centre problem (Gonzalez 1985), as active learning uses it ("core-set": Sener and Savarese
2018): the next image is always the one that is farthest from all that is known or chosen. Here its distance is
multiplied by a weight, the model's uncertainty, so that neither outliers of which the model is certain nor doubtful
twins of what is there come first; the lengths that BADGE (Ash et al. 2020) spreads out are such products, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 8192
"""Rows that are compared at a time."""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Cover:
    """What was chosen, and how far the rows are from what is known or chosen."""

    chosen: list[int]
    """Rows, best first."""
    distances: list[float]
    """Of each chosen one when it was chosen, to the nearest known or chosen one; inf where there was none."""
    nearest: list[int | None]
    """That one: known row j as -1 - j, row i as i."""
    known: NDArray[np.float32]
    """(N,) distance of every row to the nearest known one; inf where nothing was known."""
    left: NDArray[np.float32]
    """(N,) the same with the chosen ones known, too; 0 for these themselves."""


class Distances:
    """Distances of rows (N, D) to points, in units of the root mean squared distance of all of them to their mean.

    So 1.4 is usual for two rows that have nothing to do with each other, whatever the features' scale.
    """

    def __init__(self, rows: Floats, known: Floats) -> None:
        self.rows = rows
        count = len(rows) + len(known)
        self.mean = sum(block.sum(axis=0, dtype=np.float64) for block in _blocks(rows, known)) / count
        squares = sum(float(np.square(block - self.mean).sum()) for block in _blocks(rows, known))
        self.unit = float(np.sqrt(squares / count)) or 1.0

    def to(self, points: Floats) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """points: (M, D), M small -> slices of the rows, with distances (rows of the slice, M)."""
        others = self._scale(points)
        lengths = np.square(others).sum(axis=1)
        for start in range(0, len(self.rows), BLOCK):
            own = self._scale(self.rows[start : start + BLOCK])
            squared = np.square(own).sum(axis=1)[:, None] + lengths - 2 * own @ others.T
            yield slice(start, start + len(own)), np.sqrt(squared.clip(min=0)).astype(np.float32)

    def _scale(self, rows: Floats) -> NDArray[np.float64]:
        # in single precision near duplicates would lie as far apart as its rounding
        return (rows.astype(np.float64) - self.mean) / self.unit


def choose(rows: Floats, weights: Floats, *, known: Floats, count: int, closest: float) -> Cover:
    """At most `count` rows, each with the largest product of weight and distance to all known and chosen ones.

    rows: (N, D), weights: (N,) from 0 up (all 0: alike), known: (M, D). closest: rows at most so far from a known or
    chosen one aren't chosen at all. Of equals the first is taken; where nothing is known the first one by weight alone.
    """
    weights = weights if weights.any() else np.ones(len(rows))
    distances = Distances(rows, known)
    left, nearest = np.full(len(rows), np.inf, np.float32), np.full(len(rows), len(rows), np.int64)
    for start in range(0, len(known), BLOCK // 8):
        _approach(left, nearest, distances, known[start : start + BLOCK // 8], first=-1 - start, step=-1)
    cover = Cover([], [], [], left.copy(), left)
    for _ in range(min(count, len(rows))):
        far = left > closest
        if not far.any():
            break
        merits = np.where(far, weights * np.where(np.isinf(left), 1.0, left), -1.0)
        index = int(merits.argmax())
        cover.chosen.append(index)
        cover.distances.append(float(left[index]))
        cover.nearest.append(None if nearest[index] == len(rows) else int(nearest[index]))
        _approach(left, nearest, distances, rows[index : index + 1], first=index, step=1)
        left[index] = 0
    return cover


def _approach(
    left: NDArray[np.float32],
    nearest: NDArray[np.int64],
    distances: Distances,
    points: Floats,
    *,
    first: int,
    step: int,
) -> None:
    """Takes the distances and numbers (`first`, `first + step`...) of points that are nearer."""
    for part, found in distances.to(points):
        best = found.argmin(axis=1)
        least = found[np.arange(len(best)), best]
        nearer = least < left[part]
        left[part][nearer] = least[nearer]
        nearest[part][nearer] = first + step * best[nearer]


def _blocks(*tables: Floats) -> Iterator[NDArray[np.float64]]:
    for rows in tables:
        for start in range(0, len(rows), BLOCK):
            yield rows[start : start + BLOCK].astype(np.float64)
