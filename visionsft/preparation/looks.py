"""Looks: what one pass over the data keeps of every image and its labels: a few kilobytes of figures each.

Everything that an audit says about pixels comes from these, so that each file is read once. Images are taken piece
by piece, so memory doesn't grow with their size.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.batch import Item, Window
from datamodules.classes import Unknown
from datamodules.readers import Inspector
from datamodules.sizes import FrameCheck
from datamodules.statistics import Moments, Statistics
from datamodules.surveying import Inspection, Problem

SIDE = 32
"""Cells a side of the small picture that is kept of an image."""
GRID = 16
"""Cells a side of the small map that is kept of its labels."""
LOW_HIGH = (0.5, 99.5)
"""Percentiles that stand for the darkest and brightest valid pixels."""
_STEP = 4
"""Every so many rows and columns are looked at for percentiles."""
_AHEAD = 4
"""Images for each thread that wait to be taken, at most."""


@dataclass
class Look:
    """What is kept of one item."""

    item: Item
    split: str
    size: tuple[int, int] = (0, 0)
    """(height, width) of the item; (0, 0) where nothing could be read."""
    dtype: str = ""
    problems: list[Problem] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    """Values in no class, with places in pixels of the item."""
    pixels: int = 0
    """Valid pixels."""
    moments: Moments | None = None
    """Of each band, over valid pixels."""
    low: NDArray[np.float64] | None = None
    """(C,) percentiles LOW_HIGH of each band, as the next; of several pieces the outermost."""
    high: NDArray[np.float64] | None = None
    top: NDArray[np.float64] | None = None
    """(C,) share of valid pixels at the largest value of the number type; of floats 0."""
    is_grey: bool = False
    """All bands hold the same."""
    sharpness: float = 0.0
    """Mean absolute Laplacian of the grey picture over its standard deviation."""
    small: NDArray[np.float32] | None = None
    """(C, SIDE, SIDE) mean values of its cells; nan where nothing is valid."""
    counts: NDArray[np.int64] | None = None
    """(K,) labelled pixels by class."""
    layout: NDArray[np.uint8] | None = None
    """(GRID, GRID) most frequent class of each cell; 255 where nothing is labelled."""

    @property
    def is_read(self) -> bool:
        """Whether its pixels could be read and any of them is valid."""
        return self.moments is not None and self.pixels > 0

    def check(self) -> FrameCheck:
        """As the data modules have it."""
        first = next((f"{each.file}: {each.text}" for each in self.problems), None)
        if first is None and self.unknown:
            value = self.unknown[0]
            first = f"{self.item.label}: label {value.value} ({value.pixels} pixels) in no class"
        return FrameCheck(*self.size, self.dtype, first)


def take_looks(
    items: Sequence[tuple[str, Item]], inspector: Callable[[], Inspector], *, classes: int, workers: int | None = None
) -> Iterator[Look]:
    """A look at every (split, item), in their order, taken by several threads.

    inspector: makes one; each thread has its own. classes: of the masks. workers: default: the cores.
    """
    own = threading.local()

    def look(split: str, item: Item) -> Look:
        if not hasattr(own, "inspector"):
            own.inspector = inspector()
        return take_look(split, item, own.inspector, classes=classes)

    workers = workers or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        yield from _in_order(pool, look, items, ahead=workers * _AHEAD)


def _in_order(
    pool: ThreadPoolExecutor, look: Callable[..., Look], items: Iterable[tuple[str, Item]], *, ahead: int
) -> Iterator[Look]:
    """Results in the items' order; no more than `ahead` of them wait."""
    waiting: deque[Future[Look]] = deque()
    try:
        for each in items:
            waiting.append(pool.submit(look, *each))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def take_look(split: str, item: Item, inspector: Inspector, *, classes: int) -> Look:
    """One item, piece by piece."""
    maker: _Maker | None = None
    look = Look(item, split)
    pieces = inspector.pieces(item)
    whole = _around(pieces)
    for piece in pieces:
        found = inspector.inspect(piece)
        known = {(each.check, each.file) for each in look.problems}
        look.problems += [each for each in found.problems if (each.check, each.file) not in known]
        window = piece.window or _window_of(found)
        if window is None:
            continue
        if maker is None:
            maker = _Maker(whole or window, classes)
        maker.add(found, window)
    if maker is not None:
        maker.finish(look)
    return look


def _window_of(found: Inspection) -> Window | None:
    """All of a picture that is one piece."""
    array = found.valid if found.valid is not None else found.mask
    return None if array is None else Window(0, 0, *array.shape)


def _around(pieces: Sequence[Item]) -> Window | None:
    windows = [piece.window for piece in pieces if piece.window is not None]
    if not windows:
        return None
    top, left = min(each.row for each in windows), min(each.col for each in windows)
    bottom = max(each.row + each.height for each in windows)
    right = max(each.col + each.width for each in windows)
    return Window(top, left, bottom - top, right - left)


class _Maker:
    """Puts the pieces of one item together."""

    def __init__(self, whole: Window, classes: int) -> None:
        self.whole = whole
        self.classes = classes
        self.moments: Moments | None = None
        self.dtype = ""
        self.low: NDArray[np.float64] | None = None
        self.high: NDArray[np.float64] | None = None
        self.top: NDArray[np.float64] | None = None
        self.sums: NDArray[np.float64] | None = None
        self.cells = np.zeros((SIDE, SIDE))
        self.is_grey = True
        self.laplacian = 0.0
        self.grey = Moments(1)
        self.labels = np.zeros((GRID * GRID, classes + 1), np.int64)
        self.is_labelled = False
        self.unknown: dict[str, Unknown] = {}

    def add(self, found: Inspection, window: Window) -> None:
        if found.values is not None and found.valid is not None:
            self._add_pixels(found.values, found.valid, window)
        if found.mask is not None:
            self._add_labels(found.mask, window)
        for each in found.unknown:
            self._add_unknown(each, window)

    def finish(self, look: Look) -> None:
        """Fills in what was found."""
        look.size = (self.whole.height, self.whole.width)
        look.dtype, look.moments = self.dtype, self.moments
        look.unknown = sorted(self.unknown.values(), key=lambda each: -each.pixels)
        if self.is_labelled:
            look.counts = self.labels[:, : self.classes].sum(axis=0)
            look.layout = _most_frequent(self.labels[:, : self.classes]).reshape(GRID, GRID)
        if self.moments is None or self.sums is None or self.top is None or not self.moments.count:
            return
        look.pixels = self.moments.count
        look.low, look.high, look.top = self.low, self.high, self.top / look.pixels
        look.is_grey = self.is_grey and len(self.top) > 1
        look.sharpness = self.laplacian / look.pixels / max(float(self.grey.std[0]), 1e-9)
        empty = self.cells == 0
        small = self.sums / np.where(empty, 1, self.cells)
        look.small = np.where(empty, np.nan, small).astype(np.float32)

    def _add_pixels(self, values: np.ndarray, valid: np.ndarray, window: Window) -> None:
        bands = len(values)
        if self.moments is None or self.sums is None or self.top is None:
            self.moments, self.dtype = Moments(bands), str(values.dtype)
            self.sums, self.top = np.zeros((bands, SIDE, SIDE)), np.zeros(bands)
        if not valid.any():
            return
        values = np.ascontiguousarray(values)
        is_whole = bool(valid.all())
        _add_moments(self.moments, values, valid, is_whole=is_whole)
        floats = values.astype(np.float32)
        if not is_whole:
            floats[:, ~valid] = 0
        grey = np.asarray(cv2.transform(floats.transpose(1, 2, 0), np.full((1, bands), 1 / bands)), np.float32)
        grey = grey.reshape(valid.shape)
        _add_moments(self.grey, grey[None], valid, is_whole=is_whole)
        edges = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
        self.laplacian += float((edges if is_whole else edges[valid]).sum())
        self.is_grey = self.is_grey and all(np.array_equal(floats[0], band) for band in floats[1:])
        if values.dtype.kind in "iu":
            for band, pixels in enumerate(values):
                at_top = pixels == np.iinfo(values.dtype).max
                self.top[band] += np.count_nonzero(at_top if is_whole else at_top & valid)
        self._add_percentiles(values[:, ::_STEP, ::_STEP], valid[::_STEP, ::_STEP])
        rows, cols = _cells(window, self.whole, SIDE)
        self.sums += _sum_cells(floats, rows, cols)
        self.cells += _sum_cells(valid[None].astype(np.float32), rows, cols)[0]

    def _add_percentiles(self, values: np.ndarray, valid: np.ndarray) -> None:
        if not valid.any():
            return
        low, high = np.percentile(values[:, valid].astype(np.float64), LOW_HIGH, axis=1)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    def _add_labels(self, mask: np.ndarray, window: Window) -> None:
        if mask.shape != (window.height, window.width):  # a mask of another size than its image
            return
        self.is_labelled = True
        cells = _cell_numbers(window, self.whole)
        classes = np.minimum(mask, self.classes).astype(np.int64)
        codes = cells * (self.classes + 1) + classes
        self.labels += np.bincount(codes.ravel(), minlength=self.labels.size).reshape(self.labels.shape)

    def _add_unknown(self, found: Unknown, window: Window) -> None:
        row, col, height, width = found.box
        row, col = row + window.row - self.whole.row, col + window.col - self.whole.col
        known = self.unknown.get(found.value)
        if known is None:
            self.unknown[found.value] = Unknown(found.value, found.pixels, (row, col, height, width))
            return
        top, left = min(row, known.box[0]), min(col, known.box[1])
        bottom = max(row + height, known.box[0] + known.box[2])
        right = max(col + width, known.box[1] + known.box[3])
        around = (top, left, bottom - top, right - left)
        self.unknown[found.value] = Unknown(found.value, known.pixels + found.pixels, around)


def _add_moments(moments: Moments, values: np.ndarray, valid: np.ndarray, *, is_whole: bool) -> None:
    """values (C, H, W); valid (H, W) bool, any. OpenCV is several times as fast as `Moments.add`, where it can."""
    if values.dtype not in (np.uint8, np.uint16, np.int16, np.float32):
        moments.add(values, valid)
        return
    mask = None if is_whole else valid.astype(np.uint8)
    count = int(valid.sum())
    found = [cv2.meanStdDev(band, mask=mask) for band in values]
    mean, std = (np.array([each[i][0, 0] for each in found]) for i in (0, 1))
    ends = np.array([cv2.minMaxLoc(band, mask=mask)[:2] for band in values])
    moments.merge(count, mean, std**2 * count, ends[:, 0], ends[:, 1])


def _cells(window: Window, whole: Window, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cell of each row, and of each column, of a window."""
    rows = (np.arange(window.row, window.row + window.height) - whole.row) * side // whole.height
    cols = (np.arange(window.col, window.col + window.width) - whole.col) * side // whole.width
    return np.clip(rows, 0, side - 1), np.clip(cols, 0, side - 1)


@lru_cache(maxsize=8)
def _cell_numbers(window: Window, whole: Window) -> NDArray[np.int64]:
    """(H, W) number of the cell of each pixel."""
    rows, cols = _cells(window, whole, GRID)
    return rows[:, None] * GRID + cols


def _sum_cells(values: NDArray[Any], rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.float64]:
    """values (C, H, W) -> (C, SIDE, SIDE) sums of the pixels in each cell; rows, cols: rising."""
    down, first_rows = np.unique(rows, return_index=True)
    across, first_cols = np.unique(cols, return_index=True)
    sums = np.add.reduceat(np.add.reduceat(values, first_rows, axis=1), first_cols, axis=2)
    found = np.zeros((len(values), SIDE, SIDE))
    found[:, down[:, None], across] = sums
    return found


def _most_frequent(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """counts (cells, K) -> class of each cell, 255 where there is none."""
    return np.where(counts.any(axis=1), counts.argmax(axis=1), 255).astype(np.uint8)


def layout_of(mask: NDArray[np.integer], classes: int) -> NDArray[np.uint8]:
    """(H, W) class indices -> (GRID, GRID) most frequent class of each cell, 255 where there is none."""
    window = Window(0, 0, *mask.shape)
    codes = _cell_numbers(window, window) * (classes + 1) + np.minimum(mask, classes)
    counts = np.bincount(codes.ravel(), minlength=GRID * GRID * (classes + 1)).reshape(-1, classes + 1)
    return _most_frequent(counts[:, :classes]).reshape(GRID, GRID)


def gather_statistics(looks: Iterable[Look], bands: int) -> Statistics | None:
    """Band figures over all valid pixels; None where there are none (Chan et al. 1979)."""
    total = Moments(bands)
    number = 0
    for look in looks:
        own = look.moments
        if own is None or not own.count or len(own.mean) != bands:
            continue
        number += 1
        total.merge(own.count, own.mean, own.squares, own.minimum, own.maximum)
    return total.summary(samples=number) if total.count else None
