"""Masks: the outlines of objects as runs of pixels, and what two of them have in common.

The runs of a mask take a few hundred bytes whatever the size of the image, and no mask is ever unpacked: the pixels
that two have in common are read from the running counts of one at the ends of the other's runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from datamodules.objects import Objects, Rings
from datamodules.views import draw_shape
from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes, intersections, shares

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

Runs = NDArray[np.int64]
"""(R, 2): first pixel of each run and the one after its last, counted row by row over the image; rising, apart."""

Size = tuple[int, int]
"""(height, width) of the image in pixels."""


@dataclass(frozen=True)
class ImageMasks:
    """The masks of one image, in the order of its `ImageBoxes`."""

    truth: tuple[Runs, ...]
    ignored: tuple[Runs, ...]
    found: tuple[Runs, ...]

    @classmethod
    def seen(cls, outlines: NDArray[np.object_], objects: Objects, size: Size) -> ImageMasks:
        """outlines: (D,) shapely geometries of what was found, in pixels; objects: with outlines."""
        assert objects.shapes is not None, "labels without outlines"
        drawn = [
            draw_runs(rings, box, size) for rings, box in zip(objects.shapes, objects.boxes, strict=True)
        ]
        sides = zip(drawn, objects.ignored.tolist(), strict=True)
        parts: tuple[list[Runs], list[Runs]] = ([], [])
        for runs, ignored in sides:
            parts[ignored].append(runs)
        return cls(tuple(parts[0]), tuple(parts[1]), tuple(outline_runs(each, size) for each in outlines))

    @classmethod
    def none(cls) -> ImageMasks:
        """Neither truth nor detections."""
        return cls((), (), ())


# -------------------------------------------------------------------------------------------------- drawing


def mask_runs(mask: NDArray[np.bool_], width: int, *, left: int = 0, top: int = 0) -> Runs:
    """Of a mask (h, w) whose upper left corner is at left, top of an image of that width."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).view(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    base = (rows + top) * width + left
    runs = np.stack([base + starts, base + ends], axis=1).astype(np.int64)
    parted = runs[1:, 0] != runs[:-1, 1]  # rows as wide as the image go on in the next one
    first, last = np.append(True, parted), np.append(parted, True)
    return np.stack([runs[first, 0], runs[last, 1]], axis=1) if len(runs) else runs


def draw_runs(rings: Rings, box: NDArray[np.float32], size: Size) -> Runs:
    """Of an outline, as training draws it (`datamodules.views.draw_shape`), but no more than its surroundings."""
    ends = np.concatenate([np.concatenate(rings), box.reshape(2, 2)])
    left, top = (int(side) for side in np.clip(np.floor(ends.min(axis=0)), 0, (size[1] - 1, size[0] - 1)))
    right, bottom = (int(side) for side in np.clip(np.ceil(ends.max(axis=0)), (left + 1, top + 1), size[::-1]))
    corner = np.array([left, top], np.float32)
    moved = tuple(ring - corner for ring in rings)
    drawn = draw_shape(moved, (bottom - top, right - left), box - np.tile(corner, 2))
    return mask_runs(drawn, size[1], left=left, top=top)


def outline_runs(outline: BaseGeometry, size: Size) -> Runs:
    """Of a shapely polygon, or several, in pixels; an empty one has no runs."""
    import shapely

    if outline.is_empty:
        return np.empty((0, 2), np.int64)
    polygons = [part for part in shapely.get_parts(outline) if part.geom_type == "Polygon"]
    rings = tuple(
        np.asarray(ring.coords)[:-1].astype(np.float32)
        for polygon in polygons
        for ring in (polygon.exterior, *polygon.interiors)
    )
    return draw_runs(rings, np.asarray(outline.bounds, np.float32), size)


# ------------------------------------------------------------------------------------------------- comparing


def count_pixels(runs: Runs) -> int:
    """The area of a mask."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def common_pixels(one: Runs, other: Runs) -> int:
    """Pixels that are in both masks."""
    if not len(one) or not len(other):
        return 0
    lengths = one[:, 1] - one[:, 0]
    until = np.stack([lengths.cumsum() - lengths, lengths.cumsum()], axis=1)
    before = np.interp(other.ravel(), one.ravel(), until.ravel())  # pixels of one before each end of the other's
    return int((before[1::2] - before[::2]).sum())


def run_bounds(runs: Runs, width: int) -> NDArray[np.float64]:
    """(4,) x1, y1, x2, y2 around a mask; all 0 without a pixel."""
    if not len(runs):
        return np.zeros(4)
    first, last = runs[:, 0], runs[:, 1] - 1
    one_row = first // width == last // width
    left, right = np.where(one_row, first % width, 0), np.where(one_row, last % width + 1, width)
    return np.array([left.min(), first[0] // width, right.max(), last[-1] // width + 1], np.float64)


@dataclass(frozen=True)
class MaskTable(BoxTable):
    """All masks of I images: a `BoxTable` whose areas and overlaps are counted in pixels of masks.

    Its boxes are those around the masks.
    """

    truth_runs: tuple[Runs, ...] = ()
    """N masks"""
    ignored_runs: tuple[Runs, ...] = ()
    """M masks"""
    found_runs: tuple[Runs, ...] = ()
    """D masks"""

    @classmethod
    def of(
        cls, rows: Sequence[ImageBoxes], masks: Sequence[ImageMasks], sizes: Sequence[Size], classes: int
    ) -> Self:
        """The masks of many images of these sizes, whose order stays."""
        plain = BoxTable.gather(rows, classes)
        known = {field.name: getattr(plain, field.name) for field in fields(BoxTable)}
        for kind in ("truth", "ignored", "found"):
            bounds = [
                run_bounds(runs, width)
                for each, (_, width) in zip(masks, sizes, strict=True)
                for runs in getattr(each, kind)
            ]
            known[kind] = np.array(bounds).reshape(-1, 4)
            known[f"{kind}_runs"] = tuple(runs for each in masks for runs in getattr(each, kind))
        return cls(**known)

    @property
    def truth_areas(self) -> NDArray[np.float64]:
        """(N,) in pixels."""
        return _areas(self.truth_runs)

    @property
    def found_areas(self) -> NDArray[np.float64]:
        """(D,) in pixels."""
        return _areas(self.found_runs)

    def overlaps(self, found: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
        """IoU of pairs: rows of detections and of objects (P,) each -> (P,)."""
        common = self._common(found, truth, self.truth, self.truth_runs)
        return shares(common, self.found_areas[found] + self.truth_areas[truth] - common)

    def ignored_overlaps(self, found: NDArray[np.int64], ignored: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of pairs (P,): the share of the detection's pixels that lies in a region."""
        common = self._common(found, ignored, self.ignored, self.ignored_runs)
        return shares(common, self.found_areas[found])

    def _common(
        self,
        found: NDArray[np.int64],
        others: NDArray[np.int64],
        bounds: NDArray[np.float64],
        runs: Sequence[Runs],
    ) -> NDArray[np.float64]:
        """Pixels that pairs have in common (P,); masks whose boxes lie apart have none."""
        common = np.zeros(len(found))
        near = np.flatnonzero(intersections(self.found[found], bounds[others]) > 0)
        pairs = zip(found[near].tolist(), others[near].tolist(), strict=True)
        common[near] = [common_pixels(self.found_runs[i], runs[j]) for i, j in pairs]
        return common


def _areas(masks: Sequence[Runs]) -> NDArray[np.float64]:
    return np.array([count_pixels(runs) for runs in masks], np.float64)
