"""Overlaps: which of many grids show the same ground, whatever their coordinate systems.

Candidates are found by spheres around the grids in space (so the date line and the poles are places like any
other), then one grid's outline is clipped with the other's rectangle (Sutherland and Hodgman 1974), in the
pixels of the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from math import hypot
from typing import cast

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from scipy.spatial import cKDTree

from datamodules.raster import LONLAT, Grid, project

EARTH = 6_371_008.8
"""Mean radius in metres."""
STEPS = 16
"""Points along each edge of a grid, which is bent in another coordinate system."""
LOOKED_AT = 64
"""Points a side at which common ground is looked at for valid pixels."""
EDGE_ERROR = 0.01
"""Pixels by which an edge may be misplaced: neighbours that touch don't overlap."""

Points = NDArray[np.float64]
"""(n, 2) or (n, 3)."""


class Ground:
    """Where grids lie; all of them have a CRS."""

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.grids = list(grids)
        self._systems, self._crs = _number_systems(self.grids)
        """Each grid's place in the list of CRSs."""
        self._counts_degrees = [crs.is_geographic for crs in self._crs]
        self._outlines = np.array([_along_edges(grid) for grid in self.grids]).reshape(-1, 4 * STEPS, 2)
        """(N, 4 * STEPS, 2) coordinates in each grid's own CRS."""
        self._lonlat = self._project(np.arange(len(self.grids)), LONLAT)
        """(N, 4 * STEPS, 2) degrees; not finite where a CRS has no longitude and latitude."""
        self._seen: dict[tuple[int, int], Points] = {}
        """Outlines by grid and by another one's CRS."""
        self._trees: dict[tuple[int, ...], list[tuple[float, NDArray[np.int64], cKDTree]]] = {}

    def _project(self, which: NDArray[np.int64], target: CRS) -> Points:
        """(n, 4 * STEPS, 2): the outlines of some grids in a CRS; NaN where one has none there."""
        found = np.full((len(which), 4 * STEPS, 2), np.nan)
        for system, crs in enumerate(self._crs):
            of_it = np.flatnonzero(np.array([self._systems[i] for i in which]) == system)
            outlines = self._outlines[which[of_it]]
            there = np.stack(project(crs, target, *outlines.reshape(-1, 2).T), axis=1).reshape(outlines.shape)
            for i in np.flatnonzero(~np.isfinite(there).all(axis=(1, 2))):  # one without a place spoils all
                there[i] = np.stack(project(crs, target, *outlines[i].T), axis=1)
            found[of_it] = there
        if target.is_geographic:
            found[..., 0] = _continuous(found[..., 0])
        return found

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
        """For each grid of `of` those of `among` that may lie within `margin` metres of it, the nearest first."""
        centres, radii = self._spheres
        known = [i for i in of if np.isfinite(radii[i])]
        found: dict[int, list[int]] = {i: [] for i in of}
        if known:
            for largest, members, tree in self._levels(tuple(among)):
                # chords are shorter than the way on the ground, and the Earth is no sphere
                reach = (radii[known] + largest + margin) * 1.01 + 1
                for i, hits in zip(known, tree.query_ball_point(centres[known], reach), strict=True):
                    found[i] += [int(members[hit]) for hit in hits if members[hit] != i]
        for i, others in found.items():
            apart = ((centres[others] - centres[i]) ** 2).sum(axis=1)
            found[i] = [others[place] for place in np.argsort(apart, kind="stable")]
        self._see(found)
        yield from found.items()

    def _see(self, pairs: Mapping[int, Sequence[int]]) -> None:
        """Projects the outlines that pairs need, many at once."""
        wanted: dict[int, set[int]] = defaultdict(set)
        for i, others in pairs.items():
            wanted[self._systems[i]].update(others)
        for system, members in wanted.items():
            which = np.array([i for i in sorted(members) if self._systems[i] != system], np.int64)
            for i, outline in zip(which.tolist(), self._project(which, self._crs[system]), strict=True):
                self._seen[i, system] = outline

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
        if self._lie_apart(one, other, margin):
            return None
        grid = self.grids[other]
        outline = self._outline_in(one, other)
        left, top = outline.min(axis=0).tolist()
        right, bottom = outline.max(axis=0).tolist()
        width, height = grid.width + margin, grid.height + margin
        # False for NaN, too
        if not (left < width and top < height and right > -margin and bottom > -margin):
            return None
        polygon = _clip(outline, np.array([-margin, -margin]), np.array([width, height]))
        if len(polygon) < 3:
            return None
        border = float(np.sqrt(((polygon - np.roll(polygon, 1, axis=0)) ** 2).sum(axis=1)).sum())
        return polygon if area(polygon) > EDGE_ERROR * border else None

    def distance(self, one: int, other: int) -> float:
        """From `one` to `other`, as the crow flies, in pixels of `other`."""
        grid = self.grids[other]
        outline = shapely.Polygon(self._outline_in(one, other))
        return float(shapely.distance(outline, shapely.box(0, 0, grid.width, grid.height)))

    def _lie_apart(self, one: int, other: int, margin: float) -> bool:
        """Whether a glance tells that grids in metres of one CRS don't meet."""
        if self._systems[one] != self._systems[other] or self._counts_degrees[self._systems[other]]:
            return False
        step = self.grids[other].transform
        grown = margin * max(hypot(step.a, step.d), hypot(step.b, step.e))
        (west, south), (east, north) = self._corners[one]
        (left, low), (right, up) = self._corners[other]
        return bool(west >= right + grown or east <= left - grown or south >= up + grown or north <= low - grown)

    @cached_property
    def _corners(self) -> list[list[list[float]]]:
        """Of each grid: smallest and largest coordinates in its CRS."""
        ends = np.stack([self._outlines.min(axis=1), self._outlines.max(axis=1)], axis=1)
        return cast(list[list[list[float]]], ends.tolist())

    def _outline_in(self, one: int, other: int) -> Points:
        """(n, 2) x, y in `other`'s pixels."""
        system = self._systems[other]
        if self._systems[one] == system:
            points = self._outlines[one, ::STEPS]  # straight edges stay straight
        else:
            if (one, system) not in self._seen:
                self._see({other: [one]})
            points = self._seen[one, system]
        return self._to_pixels(points, other, turns=self._turns(points[:, 0].mean(), other))

    def to_other(self, points: Points, one: int, other: int) -> Points:
        """(n, 2) x, y in pixels of `one` -> in pixels of `other`."""
        there = _apply(self.grids[one].transform, points)
        if self._systems[one] != self._systems[other]:
            crs = (self._crs[self._systems[i]] for i in (one, other))
            there = np.stack(project(*crs, *there.T), axis=1)
        return self._to_pixels(there, other, turns=self._turns(there[:, 0], other))

    def _turns(self, x: NDArray[np.float64] | np.float64, other: int) -> NDArray[np.float64] | float:
        """Whole turns around the Earth by which longitudes differ from those that a grid counts."""
        if not self._counts_degrees[self._systems[other]]:
            return 0.0
        return np.asarray(np.round((x - self._outlines[other, :, 0].mean()) / 360))

    def _to_pixels(self, points: Points, other: int, *, turns: NDArray[np.float64] | float) -> Points:
        moved = points - np.stack([360 * np.broadcast_to(turns, len(points)), np.zeros(len(points))], axis=1)
        return _apply(~self.grids[other].transform, moved)


class ValidGround(Ground):
    """Where grids lie that may have holes."""

    def __init__(self, grids: Sequence[Grid], footprint: Callable[[int], np.ndarray]) -> None:
        """footprint: index -> (h, w) bool, a coarse picture of a grid's valid pixels; called where it matters."""
        super().__init__(grids)
        self._look = footprint
        self._footprints: dict[int, np.ndarray] = {}

    def share(self, one: int, other: int) -> bool:
        """Whether any ground is valid in both."""
        polygon = self.shared(one, other)
        if polygon is None:
            return False
        if self._footprint(one).all() and self._footprint(other).all():
            return True
        points = lattice(polygon, count=LOOKED_AT)
        valid = holds(self._footprint(other), points, self.grids[other])
        there = self.to_other(points[valid], other, one)
        return bool(holds(self._footprint(one), there, self.grids[one]).any())

    def clusters(self) -> list[int]:
        """For each grid the first of those that it shares ground with, directly or by way of others."""
        everything = range(len(self.grids))
        first = list(everything)
        for i, others in self.near(everything, everything):
            for j in others:
                if j < i and _root(first, i) != _root(first, j) and self.share(j, i):
                    one, other = sorted((_root(first, i), _root(first, j)))
                    first[other] = one
        return [_root(first, i) for i in everything]

    def _footprint(self, index: int) -> np.ndarray:
        if index not in self._footprints:
            self._footprints[index] = self._look(index)
        return self._footprints[index]


def _root(first: list[int], i: int) -> int:
    while first[i] != i:
        first[i] = first[first[i]]
        i = first[i]
    return i


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


def _number_systems(grids: Sequence[Grid]) -> tuple[list[int], list[CRS]]:
    """Each grid's place in the list of distinct CRSs, and that list."""
    texts: dict[int, str] = {}  # by object: writing a CRS takes longer than all else
    systems: dict[str, int] = {}
    found: list[CRS] = []
    places = []
    for grid in grids:
        assert grid.crs is not None
        if id(grid.crs) not in texts:
            texts[id(grid.crs)] = grid.crs.to_wkt()
        text = texts[id(grid.crs)]
        if text not in systems:
            systems[text] = len(found)
            found.append(grid.crs)
        places.append(systems[text])
    return places, found


def _along_edges(grid: Grid) -> Points:
    """(4 * STEPS, 2) coordinates in the grid's CRS, in turn around it from its first pixel's corner."""
    return _apply(grid.transform, _AROUND * (grid.width, grid.height))


def _around() -> Points:
    """(4 * STEPS, 2) in turn around the unit square."""
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], np.float64)
    share = np.arange(STEPS)[:, None] / STEPS
    return np.concatenate([a + share * (b - a) for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)])


_AROUND = _around()


def _continuous(lons: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes (..., n) of points side by side, without a jump at the date line."""
    return np.asarray(lons - 360 * np.round((lons - lons[..., :1]) / 360))


def _in_space(lonlat: Points) -> Points:
    """(..., 2) degrees -> (..., 3) metres from the middle of a spherical Earth."""
    lon, lat = np.radians(lonlat[..., 0]), np.radians(lonlat[..., 1])
    return EARTH * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _apply(transform: Affine, points: Points) -> Points:
    (x, y), (a, b, c, d, e, f) = points.T, tuple(transform)[:6]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


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
