"""Overlaps: which of many grids show the same ground, whatever their coordinate systems.

Candidates are found by spheres around the grids in space (so the date line and the poles are places like any
other), then one grid's outline is clipped with the other's rectangle (Sutherland and Hodgman 1974), in the
pixels of the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from scipy.spatial import cKDTree

from datamodules.raster import LONLAT, Grid, project

EARTH = 6_371_008.8
"""Mean radius in metres."""
STEPS = 16
"""Points along each edge of a grid, which is bent in another coordinate system."""
EDGE_ERROR = 0.01
"""Pixels by which an edge may be misplaced: neighbours that touch don't overlap."""

Points = NDArray[np.float64]
"""(n, 2) or (n, 3)."""


class Ground:
    """Where grids lie; all of them have a CRS."""

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.grids = list(grids)
        self._lonlat = _outlines(self.grids)
        """(N, 4 * STEPS, 2) degrees; not finite where a CRS has no longitude and latitude."""
        self._seen: dict[tuple[int, int], Points] = {}
        self._trees: dict[tuple[int, ...], list[tuple[float, NDArray[np.int64], cKDTree]]] = {}

    @cached_property
    def _spheres(self) -> tuple[Points, NDArray[np.float64]]:
        """(N, 3) centres in metres from the Earth's, (N,) radii."""
        points = _in_space(self._lonlat)
        centres = points.mean(axis=1)
        radii = np.sqrt(((points - centres[:, None]) ** 2).sum(axis=2)).max(axis=1, initial=0)
        return centres, radii

    @cached_property
    def pixel(self) -> NDArray[np.float64]:
        """(N,) side of a pixel in metres, roughly."""
        corners = _in_space(self._lonlat[:, ::STEPS])  # in turn around the grid
        sides = np.sqrt(((corners - np.roll(corners, 1, axis=1)) ** 2).sum(axis=2))
        lengths = np.array([[grid.height, grid.width, grid.height, grid.width] for grid in self.grids])
        return np.asarray((sides / lengths).mean(axis=1), np.float64)

    def near(
        self, of: Sequence[int], among: Sequence[int], *, margin: float = 0.0
    ) -> Iterator[tuple[int, list[int]]]:
        """For each grid of `of` those of `among` that may lie within `margin` metres of it."""
        centres, radii = self._spheres
        known = [i for i in of if np.isfinite(radii[i])]
        found: dict[int, list[int]] = {i: [] for i in of}
        if known:
            for largest, members, tree in self._levels(tuple(among)):
                # chords are shorter than the way on the ground, and the Earth is no sphere
                reach = (radii[known] + largest + margin) * 1.01 + 1
                for i, hits in zip(known, tree.query_ball_point(centres[known], reach), strict=True):
                    found[i] += [int(members[hit]) for hit in hits if members[hit] != i]
        yield from found.items()

    def _levels(self, among: tuple[int, ...]) -> list[tuple[float, NDArray[np.int64], cKDTree]]:
        """(largest radius, members, tree) of grids of about one size: few small ones are near a large one."""
        if among not in self._trees:
            centres, radii = self._spheres
            levels: dict[int, list[int]] = defaultdict(list)
            for i in among:
                if np.isfinite(radii[i]):
                    levels[int(np.frexp(radii[i])[1])].append(i)
            self._trees[among] = [
                (float(radii[members].max()), np.array(members), cKDTree(centres[members]))
                for members in levels.values()
            ]
        return self._trees[among]

    def shared(self, one: int, other: int, *, margin: float = 0.0) -> Points | None:
        """What `one` shows of `other` grown by `margin` of its pixels: a polygon (n, 2) of x, y in `other`'s pixels.

        None if they do no more than touch.
        """
        grid = self.grids[other]
        low, high = np.array([-margin, -margin]), np.array([grid.width + margin, grid.height + margin])
        outline = self._outline_in(one, other)
        if not np.isfinite(outline).all() or (outline.min(0) >= high).any() or (outline.max(0) <= low).any():
            return None
        polygon = _clip(outline, low, high)
        if len(polygon) < 3:
            return None
        border = float(np.sqrt(((polygon - np.roll(polygon, 1, axis=0)) ** 2).sum(axis=1)).sum())
        return polygon if area(polygon) > EDGE_ERROR * border else None

    def _outline_in(self, one: int, other: int) -> Points:
        """(n, 2) x, y in `other`'s pixels."""
        grid, target = self.grids[one], self.grids[other]
        if grid.crs == target.crs:
            points = np.stack(_apply(grid.transform, *_corners(grid).T), axis=1)
        else:
            key = one, id(target.crs)
            if key not in self._seen:
                self._seen[key] = _transform(self._lonlat[one], target)
            points = self._seen[key]
        return _to_pixels(points, target, turns=_turns(points.mean(axis=0)[0], target))

    def to_other(self, points: Points, one: int, other: int) -> Points:
        """(n, 2) x, y in pixels of `one` -> in pixels of `other`."""
        grid, target = self.grids[one], self.grids[other]
        there = np.stack(_apply(grid.transform, *points.T), axis=1)
        if grid.crs != target.crs:
            there = _transform(np.stack(grid.to_lonlat(points[:, 1], points[:, 0]), axis=1), target)
        return _to_pixels(there, target, turns=_turns(there[:, 0], target))


def area(polygon: Points) -> float:
    """Of (n, 2) x, y."""
    x, y = polygon.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def lattice(polygon: Points, *, count: int) -> Points:
    """About `count` x `count` points (n, 2), spread evenly over the box around a polygon, in pixels' middles."""
    (left, top), (right, bottom) = np.floor(polygon.min(axis=0)), np.ceil(polygon.max(axis=0))
    xs, ys = (
        np.unique(np.floor(low + (np.arange(count) + 0.5) / count * (high - low))) + 0.5
        for low, high in ((left, right), (top, bottom))
    )
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)
    return grid.reshape(-1, 2)


def holds(footprint: np.ndarray, points: Points, grid: Grid) -> NDArray[np.bool_]:
    """footprint (h, w) bool, points (n, 2) x, y in the grid's pixels -> (n,) bool: inside of it, and valid."""
    height, width = footprint.shape
    cols, rows = points[:, 0] / grid.width * width, points[:, 1] / grid.height * height
    inside = (cols >= 0) & (rows >= 0) & (cols < width) & (rows < height)
    found = np.zeros(len(points), np.bool_)
    found[inside] = footprint[rows[inside].astype(np.int64), cols[inside].astype(np.int64)]
    return found


def _outlines(grids: Sequence[Grid]) -> Points:
    """(N, 4 * STEPS, 2) longitude, latitude; one call for all grids of a CRS."""
    found = np.full((len(grids), 4 * STEPS, 2), np.nan)
    members: dict[str, list[int]] = defaultdict(list)
    texts: dict[int, str] = {}  # by object: writing a CRS takes longer than all else
    for i, grid in enumerate(grids):
        assert grid.crs is not None
        if id(grid.crs) not in texts:
            texts[id(grid.crs)] = grid.crs.to_wkt()
        members[texts[id(grid.crs)]].append(i)
    for indices in members.values():
        along = np.stack([_along_edges(grids[i]) for i in indices])
        found[indices] = _degrees(grids[indices[0]].crs, along.reshape(-1, 2)).reshape(along.shape)
        for i, edges in zip(indices, along, strict=True):
            if not np.isfinite(found[i]).all():  # one of them spoils all
                found[i] = _degrees(grids[i].crs, edges)
    found[~np.isfinite(found).all(axis=(1, 2))] = np.nan
    found[..., 0] = _continuous(found[..., 0])
    return found


def _degrees(crs: CRS | None, points: Points) -> Points:
    return np.stack(project(crs, LONLAT, *points.T), axis=1)


def _corners(grid: Grid) -> Points:
    return np.array([(0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height)], np.float64)


def _along_edges(grid: Grid) -> Points:
    """(4 * STEPS, 2) coordinates in the grid's CRS, in turn around it."""
    corners = _corners(grid)
    share = np.arange(STEPS)[:, None] / STEPS
    edges = [
        one + share * (two - one) for one, two in zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ]
    return np.stack(_apply(grid.transform, *np.concatenate(edges).T), axis=1)


def _continuous(lons: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes (..., n) of points side by side, without a jump at the date line."""
    first = lons[..., :1]
    return np.asarray(lons - 360 * np.round((lons - first) / 360))


def _in_space(lonlat: Points) -> Points:
    """(..., 2) degrees -> (..., 3) metres from the middle of a spherical Earth."""
    lon, lat = np.radians(lonlat[..., 0]), np.radians(lonlat[..., 1])
    return EARTH * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _transform(lonlat: Points, target: Grid) -> Points:
    return np.stack(project(LONLAT, target.crs, *lonlat.T), axis=1)


def _turns(x: NDArray[np.float64] | np.float64, target: Grid) -> NDArray[np.float64] | np.float64:
    """Whole turns around the Earth by which longitudes differ from those that the target counts."""
    if target.crs is None or not target.crs.is_geographic:
        return np.zeros_like(x)
    middle = target.transform.c + (target.transform.a * target.width + target.transform.b * target.height) / 2
    return np.asarray(np.round((x - middle) / 360))


def _to_pixels(points: Points, target: Grid, *, turns: NDArray[np.float64] | np.float64) -> Points:
    return np.stack(_apply(~target.transform, points[:, 0] - 360 * turns, points[:, 1]), axis=1)


def _apply(
    transform: Affine, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def _clip(polygon: Points, low: Points, high: Points) -> Points:
    """The part of a polygon (n, 2) between two corners, which may be joined by edges without area."""
    for axis in (0, 1):
        for sign, limit in ((1, low[axis]), (-1, high[axis])):
            distance = sign * (polygon[:, axis] - limit)
            polygon = _clip_half(polygon, distance)
            if len(polygon) < 3:
                return polygon
    return polygon


def _clip_half(polygon: Points, distance: NDArray[np.float64]) -> Points:
    """Keeps the side on which the points' `distance` (n,) from a line is positive."""
    if (distance >= 0).all():
        return polygon
    following, ahead = np.roll(polygon, -1, axis=0), np.roll(distance, -1)
    crosses = (distance >= 0) != (ahead >= 0)
    share = np.divide(distance, distance - ahead, out=np.zeros_like(distance), where=crosses)
    crossings = polygon + share[:, None] * (following - polygon)
    # each point, then where the way to the next one crosses the line
    both = np.stack([polygon, crossings], axis=1).reshape(-1, 2)
    return both[np.stack([distance >= 0, crosses], axis=1).ravel()]
