"""Generalising: fewer points on the borders between polygons, without gaps, overlaps or crossings.

Visvalingam and Whyatt (1993), "Line generalisation by repeated elimination of points", on the arcs of
`visionsft.prediction.outlines`: the corner whose triangle with its two neighbours is smallest goes first, until
all triangles have more area than tolerance². It is the method and the scale of ``shapely.coverage_simplify``,
which however needs the whole coverage in memory. Each arc is simplified once, for the polygons on both its
sides, and the junctions at its ends stay. A corner stays, too, if its triangle holds any corner of the original
borders, its own removed ones excepted: then no arc can come to cross another one or to jump over it (de Berg,
van Kreveld and Schirra, 1998, "Topologically correct subdivision simplification using the bandwidth criterion").

So what becomes of an arc depends on the class map around it alone, not on the bands in which it came.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionsft.prediction.outlines import Ints, expand


class Generaliser:
    """Simplifies arcs; a `Simplifier` for `Tracer`."""

    def __init__(self, tolerance: float) -> None:
        """tolerance: in pixels; corners whose triangle has no more area than its square go."""
        self._limit = 2 * tolerance**2
        self._row = 0
        self._nodes: NDArray[np.uint8] | None = None
        """(rows from `_row` on, columns / 8): a bit for each corner where an original border turns."""

    def remember(self, nodes: NDArray[np.bool_]) -> None:
        """nodes: (h, W + 1), the corners of the next rows where a border turns or branches."""
        packed = np.packbits(nodes, axis=1)
        self._nodes = packed if self._nodes is None else np.concatenate([self._nodes, packed])

    def forget(self, row: int) -> None:
        """No arc above this row will come any more."""
        assert self._nodes is not None
        self._nodes, self._row = self._nodes[row - self._row :], row

    def simplify(self, points: Ints, offsets: Ints, closed: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Fewer points, and where each arc starts in them; `closed`: the arcs without a junction."""
        if not len(closed):
            return points, offsets
        lines = _Lines(points, offsets, closed)
        while len(lines.active):
            corners = lines.smallest(self._limit)
            lines.remove(corners, ~self._occupied(lines, corners))
        points, offsets = points[lines.keep], np.append(0, np.cumsum(lines.keep))[offsets]
        points[offsets[1:][closed] - 1] = points[offsets[:-1][closed]]  # end where they begin now
        return points, offsets

    def _occupied(self, lines: _Lines, corners: _Corners) -> NDArray[np.bool_]:
        """(n,) whether a triangle holds a corner of a border that stays, or of another arc."""
        occupied = np.zeros(len(corners.index), bool)
        # by Pick's theorem, a triangle of half a pixel holds no further corner
        large = np.flatnonzero(corners.doubled != 1)
        triangles = corners.triangles[large]
        owner, cols, rows = _lattice(triangles)
        hit = self._is_node(rows, cols)
        owner, cols, rows = owner[hit], cols[hit], rows[hit]
        own = (triangles[owner] == np.stack([cols, rows], axis=1)[:, None]).all(axis=2).any(axis=1)
        owner, cols, rows = owner[~own], cols[~own], rows[~own]
        gone = lines.has_removed(cols, rows, lines.arc[corners.index[large[owner]]])
        occupied[large[owner[~gone]]] = True
        return occupied

    def _is_node(self, rows: Ints, cols: Ints) -> NDArray[np.bool_]:
        assert self._nodes is not None
        packed = self._nodes[rows - self._row, cols >> 3]
        return (packed << (cols & 7).astype(np.uint8) & 0x80).astype(bool)


@dataclass(frozen=True, eq=False)
class _Corners:
    """Points that may go next."""

    index: Ints
    """(n,) in the points."""
    neighbours: Ints
    """(n, 2) the points before and after."""
    triangles: Ints
    """(n, 3, 2) col, row of the neighbours and the point."""
    doubled: Ints
    """(n,) twice the area of the triangle."""


class _Lines:
    """Arcs of which points are removed."""

    def __init__(self, points: Ints, offsets: Ints, closed: NDArray[np.bool_]) -> None:
        self.points = points.astype(np.int64)
        self.arc = np.repeat(np.arange(len(closed)), np.diff(offsets))
        self.keep = np.ones(len(points), bool)
        self._closed = closed
        first, last = offsets[:-1], offsets[1:] - 1
        self._least = np.where(closed, 3, np.where((points[first] == points[last]).all(axis=1), 4, 2))
        """Points that an arc must keep, to have an area if it returns to its start."""
        self._fixed = np.zeros(len(points), bool)
        self._fixed[first[~closed]] = self._fixed[last[~closed]] = True
        self._blocked = np.zeros(len(points), bool)
        place = self._place(*self.points.T)
        self._tie = _scramble(place)
        self._outward = (_scramble(np.minimum.reduceat(place, first)) & np.uint64(1)).astype(bool)
        """Which of equal corners of a staircase go first, those to its left or to its right: one kind only, so
        that it becomes a line, but of each arc another kind, so that no class grows at the others' cost."""
        repeated = np.zeros(len(points), bool)
        repeated[last[closed]] = True
        self.active = np.flatnonzero(~repeated)
        """Points that stay so far, of the arcs that aren't done."""
        inner = self.active[~self._fixed[self.active]]
        self._by_place = inner[np.argsort(place[inner])]
        self._places = place[self._by_place]

    def smallest(self, limit: float) -> _Corners:
        """Corners with at most `limit`, twice the area, and less than both their neighbours."""
        index, arc = self.active, self.arc[self.active]
        before, after, count = self._around(arc)
        here, left, right = self.points[index], self.points[index[before]], self.points[index[after]]
        signed = _cross(left, here, right)
        doubled = np.abs(signed)
        may_go = (doubled <= limit) & ~self._fixed[index] & ~self._blocked[index] & (count > self._least[arc])
        only = may_go & (count == 3) & ~self._closed[arc]
        may_go[only] = _may_straighten(left[only], here[only], right[only])
        weight = np.where(may_go, doubled, np.iinfo(np.int64).max)
        later = ((signed > 0) ^ self._outward[arc]).astype(np.uint64) << np.uint64(63)
        tie = later | (self._tie[index] >> np.uint64(1))
        for other in (before, after):
            equal_or_less = weight[other] <= weight
            may_go &= ~equal_or_less | ((weight[other] == weight) & (tie < tie[other]))
        chosen = self._enough(np.flatnonzero(may_go), arc, count, weight)
        return _Corners(
            index=index[chosen],
            neighbours=np.stack([index[before[chosen]], index[after[chosen]]], axis=1),
            triangles=np.stack([left[chosen], here[chosen], right[chosen]], axis=1),
            doubled=doubled[chosen],
        )

    def remove(self, corners: _Corners, empty: NDArray[np.bool_]) -> None:
        """Takes out the corners with an empty triangle; arcs that had none to offer are done."""
        self._blocked[corners.index[~empty]] = True
        self.keep[corners.index[empty]] = False
        self._blocked[corners.neighbours[empty]] = False  # they have a new triangle
        going = np.zeros(len(self._closed), bool)
        going[self.arc[corners.index]] = True
        self.active = self.active[self.keep[self.active] & going[self.arc[self.active]]]

    def has_removed(self, cols: Ints, rows: Ints, arc: Ints) -> NDArray[np.bool_]:
        """Whether a place is a removed point of the arc."""
        wanted = self._place(cols, rows)
        position = np.minimum(np.searchsorted(self._places, wanted), len(self._places) - 1)
        found = self._by_place[position]
        return (self._places[position] == wanted) & (self.arc[found] == arc) & ~self.keep[found]

    def _around(self, arc: Ints) -> tuple[Ints, Ints, Ints]:
        """Positions in `active` of the points before and after, and the number of points of the arc."""
        ends = np.flatnonzero(np.diff(arc, append=-1))
        starts = np.append(0, ends[:-1] + 1)
        before, after = np.arange(len(arc)) - 1, np.arange(len(arc)) + 1
        before[starts], after[ends] = ends, starts
        return before, after, np.repeat(ends - starts + 1, ends - starts + 1)

    def _enough(self, chosen: Ints, arc: Ints, count: Ints, weight: Ints) -> Ints:
        """Only the smallest corner of arcs that would have too few points left."""
        offered = np.bincount(arc[chosen], minlength=len(self._closed))
        scarce = count[chosen] - offered[arc[chosen]] < self._least[arc[chosen]]
        few = chosen[scarce]
        few = few[np.lexsort((self._tie[self.active[few]], weight[few], arc[few]))]
        first = np.diff(arc[few], prepend=-1) > 0
        return np.sort(np.concatenate([chosen[~scarce], few[first]]))

    def _place(self, cols: Ints, rows: Ints) -> Ints:
        return rows << 32 | cols


def _may_straighten(start: Ints, corner: Ints, end: Ints) -> NDArray[np.bool_]:
    """Whether the last corner of an arc may go.

    Two arcs between the same junctions must not both become the straight line between them: of the corners on
    either side only those on the left may go, as seen from the junction of lower col; and none where another
    arc can have run straight from the beginning, along the grid. A corner on the line itself keeps others off.
    """
    turned = (start[:, 0] > end[:, 0])[:, None]
    first, last = np.where(turned, end, start), np.where(turned, start, end)
    side = _cross(first, last, corner)
    return (side == 0) | ((side > 0) & (first != last).all(axis=1))


def _cross(a: Ints, b: Ints, c: Ints) -> Ints:
    """Twice the signed area of triangles."""
    ab, ac = b - a, c - a
    return ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]


def _scramble(places: Ints) -> NDArray[np.uint64]:
    """Another number for each place: in their order, equal triangles along a border would go one by one."""
    mixed = places.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64, one to one
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _lattice(triangles: Ints) -> tuple[Ints, Ints, Ints]:
    """All whole (col, row) in or on triangles (n, 3, 2): the triangle's index, col, row of each."""
    top = triangles[:, :, 1].min(axis=1)
    rows, offsets = expand(top, triangles[:, :, 1].max(axis=1) - top + 1)
    owner = np.repeat(np.arange(len(triangles)), np.diff(offsets))
    left, right = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
    for corner in range(3):
        (x, y), (other_x, other_y) = triangles[owner, corner].T, triangles[owner, corner - 1].T
        meets = (np.minimum(y, other_y) <= rows) & (rows <= np.maximum(y, other_y))
        at = x + (other_x - x) * ((rows - y) / np.where(other_y == y, 1, other_y - y))
        left[meets] = np.minimum(left, at)[meets]
        right[meets] = np.maximum(right, at)[meets]
    first = np.ceil(left - 1e-9).astype(np.int64)
    cols, offsets = expand(first, np.maximum(np.floor(right + 1e-9).astype(np.int64) - first + 1, 0))
    counts = np.diff(offsets)
    return np.repeat(owner, counts), cols, np.repeat(rows, counts)
