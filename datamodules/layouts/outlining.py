"""Outlining masks: polygons along pixel edges, so that drawing them gives the mask again."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from rasterio.features import rasterize

from datamodules.layouts.objects import Outline


def outline_mask(mask: NDArray[np.bool_]) -> Outline:
    """Polygons along the edges of a (H, W) mask's pixels, holes too: by the even-odd rule they are the mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return ()
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    # OpenCV's contours run through the middles of pixels: in a picture of twice the size those of a pixel's
    # four quarters, 2x and 2x + 1, stand for its left and right edges, x and x + 1
    double = np.repeat(np.repeat(part.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return tuple(_corners((contour[:, 0].astype(np.int64) + 1) // 2 + (left, top)) for contour in contours)


def _corners(points: NDArray[np.integer]) -> NDArray[np.float64]:
    """The closed line without the points that lie on straight pieces of it."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return points[turns].astype(np.float64)


def unite_polygons(polygons: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> Outline:
    """One outline of what lies in any of the polygons.

    Where two of them overlap, the even-odd rule would leave a hole: they are drawn on a picture of `size`
    (height, width) and outlined together.
    """
    if not _may_overlap(polygons):
        return tuple(polygons)
    shapes = [rasterise_polygons([polygon], size) for polygon in polygons]
    united = np.any(shapes, axis=0)
    if (united == np.logical_xor.reduce(shapes)).all():
        return tuple(polygons)
    return outline_mask(united)


def _may_overlap(polygons: Sequence[NDArray[np.float64]]) -> bool:
    bounds = [(polygon.min(axis=0), polygon.max(axis=0)) for polygon in polygons]
    return all(np.isfinite(polygon).all() for polygon in polygons) and any(
        (a_low < b_high).all() and (b_low < a_high).all()
        for index, (a_low, a_high) in enumerate(bounds)
        for b_low, b_high in bounds[:index]
    )


def rasterise_polygons(polygons: Sequence[NDArray[np.floating]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool: the pixel's middle lies in one of the polygons, (n, 2) x, y each."""
    rings = [[*polygon.tolist(), polygon[0].tolist()] for polygon in polygons]
    shapes = [({"type": "Polygon", "coordinates": [ring]}, 1) for ring in rings]
    if not shapes:
        return np.zeros(size, np.bool_)
    return np.asarray(rasterize(shapes, out_shape=size, dtype="uint8"), np.bool_)
