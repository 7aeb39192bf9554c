"""Blending: overlapping tiles over a scene, and the weights with which they become one map without seams.

Along each dimension tiles of one size stand at multiples of one stride, so that at most two cover any pixel. In
their overlap the outer quarter on each side is context only, and between the quarters the weight moves from one
tile to the next by a raised cosine. Two weights of a pixel sum to one, and the weights of a tile are the product
of both dimensions': they sum to one everywhere, corners and edges included, without any division.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.batch import Window


@dataclass(frozen=True, slots=True)
class Axis:
    """Tiles along one dimension; tile i covers ``start(i)`` to ``start(i) + size``, the last perhaps more."""

    length: int
    size: int
    overlap: int
    """Pixels that neighbours have in common; at most half of `size`."""
    count: int

    @property
    def stride(self) -> int:
        return self.size - self.overlap

    def start(self, index: int) -> int:
        return index * self.stride

    def own(self, index: int) -> tuple[int, int]:
        """First and last + 1 of the pixels that are complete once tile `index` is added: they cover 0..length once."""
        return self.start(index), self.length if index == self.count - 1 else self.start(index + 1)

    def index(self, pixel: int) -> int:
        """The tile whose own pixels begin at `pixel`; `count` for the length."""
        return self.count if pixel == self.length else pixel // self.stride

    def ramp(self) -> Tensor:
        """(overlap,) float32: weight of the later of two tiles over their overlap; the earlier has one minus it."""
        context = self.overlap // 4
        positions = torch.arange(self.overlap, dtype=torch.float32) + 0.5 - context
        share = (positions / max(self.overlap - 2 * context, 1)).clamp(0, 1)
        return 0.5 - 0.5 * torch.cos(torch.pi * share)


def plan_axis(length: int, *, size: int, overlap: int, multiple: int = 1) -> Axis:
    """The fewest tiles of at most `size` pixels over `length`, shrunk until they stick out as little as they can.

    Tiles begin at a multiple of `multiple`, a model's coarsest stride: only then do two tiles see the same ground
    in the same phase of their grid. `size` and `overlap` are rounded up to it.
    """
    if not 0 <= 2 * overlap <= size:
        raise ValueError(f"overlap {overlap} of tiles of {size} pixels; allowed: 0 to {size // 2}")
    overlap = _up(overlap, multiple)
    stride = max(_up(size, multiple) - overlap, overlap, multiple)
    if length <= stride + overlap:
        return Axis(length, _up(length, multiple), 0, 1)
    count = -(-(length - overlap) // stride)
    stride = max(_up(-(-(length - overlap) // count), multiple), overlap)
    return Axis(length, stride + overlap, overlap, -(-(length - overlap) // stride))


@dataclass(frozen=True, slots=True)
class Grid:
    """Tiles over a scene, row by row."""

    rows: Axis
    cols: Axis

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the scene."""
        return self.rows.length, self.cols.length

    @property
    def tile(self) -> tuple[int, int]:
        """(h, w) of every tile."""
        return self.rows.size, self.cols.size

    def window(self, row: int, col: int) -> Window:
        """What tile (row, col) sees, cut at the scene's lower and right edge."""
        top, left = self.rows.start(row), self.cols.start(col)
        return Window(
            top,
            left,
            min(self.rows.size, self.rows.length - top),
            min(self.cols.size, self.cols.length - left),
        )

    def own(self, row: int, col: int) -> Window:
        """What is complete once the tile is added: these windows cover the scene once."""
        (top, bottom), (left, right) = self.rows.own(row), self.cols.own(col)
        return Window(top, left, bottom - top, right - left)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(row, col) of the tiles in the order in which they are added."""
        return ((row, col) for row in range(self.rows.count) for col in range(self.cols.count))

    @property
    def pixels(self) -> int:
        """Computed in all, those that tiles have in common for each of them."""
        return self.rows.count * self.cols.count * self.tile[0] * self.tile[1]


def plan_grid(shape: tuple[int, int], *, size: int, overlap: int, multiple: int = 1) -> Grid:
    """Tiles over a scene of shape (H, W)."""
    rows, cols = (plan_axis(side, size=size, overlap=overlap, multiple=multiple) for side in shape)
    return Grid(rows, cols)


class Blender:
    """Adds up tiles row by row and gives out each pixel once, when the last tile that covers it has come.

    Holds no more than the strip that two rows of tiles share, and the one between two tiles.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._down, self._across = grid.rows.ramp(), grid.cols.ramp()
        self._shared: Tensor | None = None
        """(K, overlap, W): what the row of tiles above gives to the pixels that it shares with this row. From left to
        right, once read, it becomes what this row gives to those of the row below."""
        self._first = True
        """No row of tiles is complete yet."""
        self._left: Tensor | None = None
        """(K, h, overlap): what the tile on the left gives."""

    @torch.inference_mode()
    def add(self, row: int, col: int, values: Tensor) -> Tensor:
        """values: (K, h, w) of the tile's window, changed in place -> (K, h', w') of its `Grid.own`, complete.

        Tiles come in the grid's order, from the first one of any row on; the first row's upper strip is
        complete only if it is the scene's first row.
        """
        rows, cols = self.grid.rows, self.grid.cols
        values = self._join_left(col, values)
        left, right = cols.own(col)
        complete = values[:, :, : right - left]
        if rows.overlap and not self._first:
            assert self._shared is not None, "tiles come from above"
            ramp = self._down.to(complete)[:, None]
            complete[:, : rows.overlap].mul_(ramp).add_(self._shared[:, :, left:right])
        if row < rows.count - 1:
            self._keep_below(left, right, complete)
        top, bottom = rows.own(row)
        own = complete[:, : bottom - top]
        if col == cols.count - 1:
            self._first = False
        return own

    def _join_left(self, col: int, values: Tensor) -> Tensor:
        cols = self.grid.cols
        if not cols.overlap:
            return values
        ramp = self._across.to(values)
        if col > 0:
            assert self._left is not None, "tiles come from the left"
            values[:, :, : cols.overlap].mul_(ramp).add_(self._left)
        if col < cols.count - 1:
            self._left = values[:, :, cols.stride :] * (1 - ramp)
        return values

    def _keep_below(self, left: int, right: int, complete: Tensor) -> None:
        rows = self.grid.rows
        if not rows.overlap:
            return
        if self._shared is None:
            self._shared = complete.new_empty((len(complete), rows.overlap, self.grid.cols.length))
        ramp = self._down.to(complete)[:, None]
        torch.mul(complete[:, rows.stride :], 1 - ramp, out=self._shared[:, :, left:right])


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
