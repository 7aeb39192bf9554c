"""Overviews: a map at half its size, again and again, each pixel made from the two by two that it covers.

GDAL makes the same, in several times the time: for class maps it counts values pixel by pixel, and it packs and
unpacks every size once more on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from datamodules.batch import IGNORE

CHUNK = 2**20
"""Pixels that are halved at a time."""

Halve = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""(h, w) -> (h / 2, w / 2), rounded up: pixels beyond an odd edge are as those at it."""


def halve_classes(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The most frequent of four, of several the first in reading order; 255 only where all four are."""
    a, b, c, d = _quarters(classes)
    best = np.where(c == IGNORE, d, c)  # from the weakest claim to the strongest
    for one in (b, a):
        best = np.where(one == IGNORE, best, one)
    for one, others in ((c, (d,)), (b, (c, d)), (a, (b, c, d))):
        twice = np.logical_or.reduce([one == other for other in others]) & (one != IGNORE)
        best = np.where(twice, one, best)
    return best


def halve_shares(shares: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of those of four that aren't 255, rounded; 255 where all four are."""
    quarters = _quarters(shares)
    count, total = (np.zeros(quarters[0].shape, np.uint16) for _ in range(2))
    for one in quarters:
        count += one != IGNORE
        total += np.where(one == IGNORE, np.uint8(0), one)
    mean = (total + count // 2) // np.maximum(count, 1)
    return np.where(count == 0, IGNORE, mean).astype(np.uint8)


def overview_sizes(height: int, width: int, *, smallest: int) -> list[tuple[int, int]]:
    """(h, w) of all overviews, the last one being the first with no side longer than `smallest`."""
    sizes = []
    while max(height, width) > smallest:
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def write_half(source: Path, target: Path, shape: tuple[int, int, int], halve: Halve) -> None:
    """Plain bytes of a map of (bands, h, w) into those of its half."""
    with open(source, "rb") as file, open(target, "wb") as half:
        for rows in _read_rows(file, shape):
            half.write(halve(rows).data)


def _read_rows(file: BinaryIO, shape: tuple[int, int, int]) -> Iterator[NDArray[np.uint8]]:
    """(h', W) of each band from top to bottom, h' even but for the last."""
    bands, height, width = shape
    step = max(2, CHUNK // width // 2 * 2)
    for _ in range(bands):
        for row in range(0, height, step):
            rows = min(step, height - row)
            yield np.frombuffer(file.read(rows * width), np.uint8).reshape(rows, width)


def _quarters(maps: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Upper left, upper right, lower left and lower right pixel of every two by two."""
    height, width = maps.shape
    if height % 2 or width % 2:
        maps = np.pad(maps, ((0, height % 2), (0, width % 2)), mode="edge")
    return [np.ascontiguousarray(maps[row::2, col::2]) for row in (0, 1) for col in (0, 1)]
