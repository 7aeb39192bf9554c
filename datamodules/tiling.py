"""Tiling: windows over a scene, as pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from datamodules.batch import Window


@dataclass(frozen=True, slots=True)
class Tile:
    """A window to look at, and its core: the part that belongs to it and to no other tile."""

    window: Window
    """In pixels of the scene."""
    core: Window
    """In pixels of the window."""

    @property
    def own(self) -> Window:
        """The core in pixels of the scene."""
        row, col = self.window.row + self.core.row, self.window.col + self.core.col
        return Window(row, col, self.core.height, self.core.width)


def tile(region: Window, *, size: tuple[int, int], overlap: float = 0.0) -> list[Tile]:
    """Tiles of `size` (H, W) over a region, row by row; they stay inside it and their cores cover it once.

    overlap: smallest share of a tile that neighbours have in common. Tiles are spread evenly, so that
    the last ones don't stick out; a region smaller than a tile gets one tile, as small as the region.
    """
    rows = _spans(region.height, size[0], overlap)
    cols = _spans(region.width, size[1], overlap)
    return [
        Tile(
            Window(region.row + row.start, region.col + col.start, row.size, col.size),
            Window(row.first, col.first, row.last - row.first, col.last - col.first),
        )
        for row in rows
        for col in cols
    ]


def spread(height: int, width: int, *, size: int, count: int = 4) -> list[Window]:
    """Up to count x count windows of `size`, spread evenly over height x width: a look here and there."""
    steps = [index / max(count - 1, 1) for index in range(count)]
    rows, cols = (sorted({int(step * max(side - size, 0)) for step in steps}) for side in (height, width))
    return [Window(row, col, min(size, height), min(size, width)) for row in rows for col in cols]


def widen(tile: Tile, size: tuple[int, int], scene: Window) -> Tile:
    """The tile with a window of `size` (H, W) about its core, which shows more of the scene around it."""
    own = tile.own
    row, height = _about(own.row, own.height, size[0], scene.row, scene.height)
    col, width = _about(own.col, own.width, size[1], scene.col, scene.width)
    return Tile(Window(row, col, height, width), Window(own.row - row, own.col - col, own.height, own.width))


def _about(start: int, length: int, size: int, low: int, total: int) -> tuple[int, int]:
    """The span of `size` (or `total`, if that is less) about start..start+length, inside low..low+total."""
    size = min(size, total)
    return min(max(start + length // 2 - size // 2, low), low + total - size), size


@dataclass(frozen=True, slots=True)
class _Span:
    """One dimension of a tile; its core reaches from `first` to before `last`, counted from `start`."""

    start: int
    size: int
    first: int
    last: int


def _spans(length: int, size: int, overlap: float) -> list[_Span]:
    """Each position belongs to the span in which it is farthest from the edges."""
    size = min(size, length)
    stride = max(1, int(size * (1 - overlap)))
    count = -(-(length - size) // stride) + 1
    starts = [index * (length - size) // max(count - 1, 1) for index in range(count)]
    # neighbours share their overlap half and half
    cuts = [0, *((left + size + right) // 2 for left, right in pairwise(starts)), length]
    return [
        _Span(start, size, first - start, last - start)
        for start, (first, last) in zip(starts, pairwise(cuts), strict=True)
    ]
