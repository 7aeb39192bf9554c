"""Outlines: the polygons of a class map that arrives in row bands, traced in whole pixels.

The borders between pixels of different classes form a planar graph on the pixels' corners. A *node* is a
corner where a border turns or branches, a *link* the straight border between two nodes, a *junction* a node
where three or four links meet, and an *arc* the border from junction to junction (or back to itself), with one
polygon on each side all along. A polygon is a 4-connected component of pixels of one class, as in GDAL's
polygonize; its rings are sequences of arcs, so neighbours share their border point by point.

Only borders are kept: the arcs of the polygons that reach the last row seen, and the last row itself. All steps
are array operations over the links of a band; points are (col, row) int32, the corner of the first pixel is
(0, 0), and an arc runs with the higher class on its left (rows grow downwards, left as seen on the picture).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules.batch import IGNORE

Ints = NDArray[np.signedinteger[Any]]

_NORTH, _EAST, _SOUTH, _WEST = range(4)  # clockwise
_LINKS = np.array([bin(bits).count("1") for bits in range(16)], np.uint8)
"""Number of links of a corner whose bit d is set where a border leaves in direction d."""
_STRAIGHT = (1 << _NORTH | 1 << _SOUTH, 1 << _EAST | 1 << _WEST)
_IS_NODE = (_LINKS > 0) & ~np.isin(np.arange(16), _STRAIGHT)


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons in pixels; a polygon's first ring is its outer one."""

    points: Ints
    """(P, 2) int32 (col, row), ring by ring, the first point again at the end; the polygon is on the left."""
    rings: Ints
    """(R + 1,) where each ring starts in `points`."""
    polygons: Ints
    """(N + 1,) where each polygon starts in `rings`."""
    classes: NDArray[np.uint8]
    """(N,)"""
    areas: NDArray[np.float64]
    """(R,) pixels inside each ring before simplification; negative for holes."""


class Simplifier(Protocol):
    """Drops points of arcs; see `visionsft.prediction.generalising`."""

    def remember(self, nodes: NDArray[np.bool_]) -> None:
        """nodes: (h, W + 1), the corners of the next rows where a border turns or branches."""

    def simplify(self, points: Ints, offsets: Ints, closed: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Fewer points, and where each arc starts in them; `closed`: the arcs without a junction.

        Arc i is points[offsets[i] : offsets[i + 1]], its last point included.
        """

    def forget(self, row: int) -> None:
        """No arc above this row will come any more."""


class Tracer:
    """Traces the polygons of a class map, band by band."""

    def __init__(self, width: int, *, simplifier: Simplifier | None = None) -> None:
        """width: pixels of a row."""
        self.width = width
        self._simplifier = simplifier
        self._row = 0
        self._last = np.full(width + 2, IGNORE, np.uint8)
        self._components: Ints = np.zeros(1, np.int32)
        """The component of each run of the last row."""
        self._pieces = _Pieces.none()
        self._pending: list[_Arcs] = []

    def add(self, cells: NDArray[np.uint8]) -> Polygons:
        """cells: (h, W), the next rows, 255 = nothing; returns the polygons that end above the last of them."""
        outside = np.full((len(cells), 1), IGNORE, np.uint8)
        grid = np.concatenate([self._last[None], np.concatenate([outside, cells, outside], axis=1)])
        runs = _Runs(grid, self._components)
        arcs, nodes = self._trace(grid, runs)
        if self._simplifier:
            arcs = self._simplify(arcs, nodes, self._simplifier)
        self._row, self._last = self._row + len(cells), grid[-1]
        return _assemble(self._close(arcs, runs))

    def finish(self) -> Polygons:
        """The polygons that reach the last row."""
        return self.add(np.full((1, self.width), IGNORE, np.uint8))

    def _trace(self, grid: NDArray[np.uint8], runs: _Runs) -> tuple[_Arcs, NDArray[np.bool_]]:
        """The arcs that end in this band, and where its nodes are; what goes on below becomes a piece."""
        net = _Net(grid, self._row)
        chains = net.chain(self._pieces)
        self._pieces = chains.pieces()
        return chains.arcs(runs), net.is_node

    def _simplify(self, arcs: _Arcs, nodes: NDArray[np.bool_], simplifier: Simplifier) -> _Arcs:
        simplifier.remember(nodes)
        points, offsets = simplifier.simplify(arcs.points, arcs.offsets, arcs.ends[:, 0] < 0)
        simplifier.forget(self._pieces.top(self.width + 1, self._row + len(nodes)))
        return replace(arcs, points=points, offsets=offsets)

    def _close(self, arcs: _Arcs, runs: _Runs) -> _Halves:
        """The sides of the components that don't reach the last row; the others' arcs stay pending."""
        last, self._components = np.unique(runs.last, return_inverse=True)
        still_open = np.full(runs.count, -1, np.int32)
        still_open[last] = np.arange(len(last))
        done, pending = [], []
        for block in [*(block.on(runs.inherited) for block in self._pending), arcs]:
            done.append(block.halves((block.sides >= 0) & (still_open[block.sides] < 0)))
            rest = block.on(still_open).compact()
            if len(rest.sides):
                pending.append(rest)
        self._pending = pending
        return _Halves.concatenate(done)


# ---------------------------------------------------------------------------------------------- components


class _Runs:
    """Stretches of one class in a row of the padded grid, joined to 4-connected components."""

    def __init__(self, grid: NDArray[np.uint8], components: Ints) -> None:
        """grid: (h + 1, W + 2), its first row the last one of the band before; components: of that row's runs."""
        starts = np.ones(grid.shape, bool)
        np.not_equal(grid[:, 1:], grid[:, :-1], out=starts[:, 1:])
        self.of = np.cumsum(starts, dtype=np.int32).reshape(grid.shape) - 1
        """Index of each pixel's run."""
        touching = (grid[1:] == grid[:-1]) & (starts[1:] | starts[:-1])
        total, known = int(self.of[-1, -1]) + 1, int(components.max()) + 1
        first = np.concatenate([self.of[:-1][touching], np.arange(len(components))])
        second = np.concatenate([self.of[1:][touching], total + components])
        self.count, labels = _connect(first, second, total + known)
        self._labels = labels[:total]
        self.inherited = labels[total:]
        """New numbers of the components of the band before."""
        self.last = self._labels[self.of[-1, 0] :]
        """Component of each run of the last row."""

    def component(self, pixels: Ints) -> Ints:
        """pixels: flat indices into the padded grid."""
        return self._labels[self.of.ravel()[pixels]]


def _connect(first: Ints, second: Ints, count: int) -> tuple[int, Ints]:
    """Number of connected components of a graph, and each vertex's."""
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)


# --------------------------------------------------------------------------------------------------- links


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Beginnings and ends of arcs that go on below the last row."""

    points: Ints
    """(P, 2) without the last one of the arc."""
    offsets: Ints
    ends: Ints
    """(n, 2) start and end as in `_Arcs`; -1 where it is not known yet."""
    columns: Ints
    """(n, 2) where start and end hang below the last row; -1 where they don't."""

    def top(self, corners: int, row: int) -> int:
        """The uppermost row of any point, at most `row`; corners: in a row."""
        known = self.ends[self.ends >= 0] >> 2
        return int(min(self.points[:, 1].min(initial=row), (known // corners).min(initial=row)))

    @classmethod
    def none(cls) -> _Pieces:
        nothing = np.zeros((0, 2), np.int64)
        return cls(np.zeros((0, 2), np.int32), np.zeros(1, np.int64), nothing, nothing)


class _Net:
    """The links of a band.

    A link's ends are *ports*: the band's nodes, then the top ports (columns where a vertical border comes in
    from the band before), then the bottom ports (where one leaves). A border just passes through top ports.
    """

    def __init__(self, grid: NDArray[np.uint8], row: int) -> None:
        self._grid, self._row, self._corners = grid, row, grid.shape[1] - 1
        vertical = grid[:, :-1] != grid[:, 1:]
        across = grid[:-1] != grid[1:]
        leaving = vertical[:-1], across[:, 1:], vertical[1:], across[:, :-1]  # north, east, south, west
        bits = np.zeros(leaving[0].shape, np.uint8)
        for direction, present in enumerate(leaving):
            bits |= present.view(np.uint8) << direction
        self.is_node = _IS_NODE[bits]
        self._rows, self._cols = np.nonzero(self.is_node)
        self._bits = bits[self.is_node]
        self._top, self._bottom = np.flatnonzero(vertical[0]), np.flatnonzero(vertical[-1])

    def chain(self, pieces: _Pieces) -> _Chains:
        """Links and pieces put end to end."""
        nodes, top = len(self._rows), len(self._top)
        links = _Links.concatenate(self._horizontal(), self._vertical())
        hanging = np.where(pieces.columns < 0, -1, nodes + np.searchsorted(self._top, pieces.columns))
        ports = np.concatenate([links.ports, hanging])
        below = ports >= nodes + top
        columns = np.full(ports.shape, -1)
        columns[below] = self._bottom[ports[below] - nodes - top]
        through = np.concatenate(
            [_LINKS[self._bits] == 2, np.ones(top, bool), np.zeros(len(self._bottom), bool)]
        )
        order, offsets = order_chains(_successor(ports, through))
        starts_at_node = links.ports[:, 0] < nodes
        corners = np.stack([self._cols, self._row + self._rows], axis=1).astype(np.int32)
        return _Chains(
            order=order,
            offsets=offsets,
            points=np.concatenate([corners, pieces.points]),
            first=np.concatenate([links.ports[:, 0], nodes + pieces.offsets[:-1]]),
            counts=np.concatenate([starts_at_node, np.diff(pieces.offsets)]),
            ends=np.concatenate([self._ends(links, through), pieces.ends]),
            columns=columns,
            pixels=links.pixels,
            grid=self._grid,
        )

    def _ends(self, links: _Links, through: NDArray[np.bool_]) -> Ints:
        """(L, 2) as in `_Arcs`; -1 where the port is no junction."""
        junction = (links.ports < len(self._rows)) & ~through[links.ports]
        node = np.where(junction, links.ports, 0)
        if not len(self._rows):
            return np.full(links.ports.shape, -1)
        key = (self._row + self._rows[node]) * self._corners + self._cols[node]
        return np.where(junction, key * 4 + links.directions, -1)

    def _horizontal(self) -> _Links:
        """Along a row, what leaves a node eastwards arrives at the next node that has a link to its west."""
        west, east = self._with(_EAST), self._with(_WEST)
        above = self._rows[west] * (self._corners + 1) + self._cols[west] + 1
        return self._directed(west, east, _EAST, left=above, right=above + self._corners + 1)

    def _vertical(self) -> _Links:
        nodes = len(self._rows)
        south, north = self._with(_SOUTH), self._with(_NORTH)
        upper = np.concatenate([nodes + np.arange(len(self._top)), south])
        lower = np.concatenate([north, nodes + len(self._top) + np.arange(len(self._bottom))])
        down_from = _by_column(np.concatenate([self._top, self._cols[south]]))
        up_from = _by_column(np.concatenate([self._cols[north], self._bottom]))
        rows = np.concatenate([np.zeros(len(self._top), np.int64), self._rows[south] + 1])
        cols = np.concatenate([self._top, self._cols[south]])
        west = (rows * (self._corners + 1) + cols)[down_from]
        return self._directed(upper[down_from], lower[up_from], _SOUTH, left=west + 1, right=west)

    def _with(self, direction: int) -> Ints:
        return np.flatnonzero(self._bits & (1 << direction))

    def _directed(self, first: Ints, second: Ints, direction: int, *, left: Ints, right: Ints) -> _Links:
        """Links between the ports, turned round where the pixel on the left has the lower class."""
        flat = self._grid.ravel()
        forward = (flat[left] > flat[right])[:, None]
        leave, arrive = direction, (direction + 2) % 4
        return _Links(
            ports=np.where(forward, np.stack([first, second], 1), np.stack([second, first], 1)),
            directions=np.where(forward, [leave, arrive], [arrive, leave]),
            pixels=np.where(forward, np.stack([left, right], 1), np.stack([right, left], 1)),
        )


@dataclass(frozen=True, eq=False)
class _Links:
    ports: Ints
    """(L, 2) from, to."""
    directions: Ints
    """(L, 2) in which the link leaves its two ports."""
    pixels: Ints
    """(L, 2) flat index of a pixel on the left, on the right."""

    @classmethod
    def concatenate(cls, one: _Links, other: _Links) -> _Links:
        return cls(
            np.concatenate([one.ports, other.ports]),
            np.concatenate([one.directions, other.directions]),
            np.concatenate([one.pixels, other.pixels]),
        )


def _by_column(columns: Ints) -> Ints:
    """Order by column, from top to bottom; 16 bits are sorted by radix."""
    narrow = columns.astype(np.uint16) if columns.max(initial=0) < 1 << 16 else columns
    return np.argsort(narrow, kind="stable")


def _successor(ports: Ints, through: NDArray[np.bool_]) -> Ints:
    """(n,) the element that goes on where each one ends; -1 where none does."""
    leaving = np.full(len(through) + 1, -1)  # the last place is for -1
    leaving[ports[:, 0]] = np.arange(len(ports))
    goes_on = np.append(through, False)[ports[:, 1]]
    return np.where(goes_on, leaving[ports[:, 1]], -1)


# -------------------------------------------------------------------------------------------------- chains


@dataclass(frozen=True, eq=False)
class _Chains:
    """Elements (links, then pieces) in the order in which they follow each other."""

    order: Ints
    """Elements, chain by chain."""
    offsets: Ints
    """(C + 1,) where each chain starts in `order`."""
    points: Ints
    first: Ints
    counts: Ints
    """Element i holds points[first[i] : first[i] + counts[i]]."""
    ends: Ints
    """(n, 2) of each element, as in `_Arcs`."""
    columns: Ints
    """(n, 2) of each element, as in `_Pieces`."""
    pixels: Ints
    """(L, 2) flat index of a pixel of `grid` on each link's left and right."""
    grid: NDArray[np.uint8]

    def arcs(self, runs: _Runs) -> _Arcs:
        """The chains that are complete."""
        chosen = np.flatnonzero((self._outer(self.columns) < 0).all(axis=1))
        points, offsets = self._points(chosen)
        ends = self._outer(self.ends)[chosen]
        row, col = np.divmod(ends[:, 1] >> 2, self.grid.shape[1] - 1)
        last = np.stack([col, row], axis=1).astype(np.int32)
        closed = ends[:, 1] < 0
        last[closed] = points[offsets[:-1][closed]]
        points, offsets = _append(points, offsets, last)
        pixels = self.pixels[self._links(chosen)]
        classes = self.grid.ravel()[pixels]
        return _Arcs(
            points=points,
            offsets=offsets,
            ends=ends,
            sides=np.where(classes == IGNORE, -1, runs.component(pixels)).astype(np.int32),
            classes=classes,
            doubled=_doubled_areas(points, offsets),
        )

    def pieces(self) -> _Pieces:
        """The chains that go on below."""
        chosen = np.flatnonzero((self._outer(self.columns) >= 0).any(axis=1))
        points, offsets = self._points(chosen)
        return _Pieces(points, offsets, self._outer(self.ends)[chosen], self._outer(self.columns)[chosen])

    def _outer(self, of_elements: Ints) -> Ints:
        """(C, 2) what the first element of each chain has at its start, and the last one at its end."""
        first, last = self.order[self.offsets[:-1]], self.order[self.offsets[1:] - 1]
        return np.stack([of_elements[first, 0], of_elements[last, 1]], axis=1)

    def _points(self, chains: Ints) -> tuple[Ints, Ints]:
        """Points of some chains, and where each chain starts in them."""
        places, starts = expand(self.offsets[chains], np.diff(self.offsets)[chains])
        elements = self.order[places]
        found, offsets = expand(self.first[elements], self.counts[elements])
        return self.points[found], offsets[starts]

    def _links(self, chains: Ints) -> Ints:
        """A link of each chain: the first element or, after a piece, the second."""
        first = self.offsets[chains]
        return self.order[first + (self.order[first] >= len(self.pixels))]


@dataclass(frozen=True, eq=False)
class _Arcs:
    """Complete arcs; components of its two sides are -1 where nothing is to be made of them (any more)."""

    points: Ints
    offsets: Ints
    ends: Ints
    """(A, 2) start and end: 4 x junction + direction in which the arc leaves it; -1: closed without one."""
    sides: Ints
    """(A, 2) component on the left, on the right."""
    classes: NDArray[np.uint8]
    """(A, 2) class on the left, on the right."""
    doubled: Ints
    """(A,) twice the area that the arc contributes to a ring, in pixels, before simplification."""

    def on(self, numbers: Ints) -> _Arcs:
        """With components numbered anew; -1 takes one out."""
        return replace(self, sides=np.where(self.sides < 0, -1, numbers[self.sides]))

    def compact(self) -> _Arcs:
        """Without the arcs that are done, once they are the majority."""
        alive = np.flatnonzero((self.sides >= 0).any(axis=1))
        if 2 * len(alive) > len(self.sides):
            return self
        found, offsets = expand(self.offsets[alive], np.diff(self.offsets)[alive])
        return _Arcs(
            self.points[found],
            offsets,
            self.ends[alive],
            self.sides[alive],
            self.classes[alive],
            self.doubled[alive],
        )

    def halves(self, chosen: NDArray[np.bool_]) -> _Halves:
        """chosen: (A, 2) arcs with the side that they are wanted for, which comes to lie on their left."""
        arc, side = np.nonzero(chosen)
        counts = np.diff(self.offsets)[arc] - 1
        first = np.where(side == 0, self.offsets[arc], self.offsets[arc + 1] - 1)
        found, offsets = expand(first, counts, 1 - 2 * side)
        return _Halves(
            points=self.points[found],
            offsets=offsets,
            leave=self.ends[arc, side],
            arrive=self.ends[arc, 1 - side],
            components=self.sides[arc, side],
            classes=self.classes[arc, side],
            doubled=self.doubled[arc] * (1 - 2 * side),
        )


# --------------------------------------------------------------------------------------------------- rings


@dataclass(frozen=True, eq=False)
class _Halves:
    """Arcs seen from one side, which lies on their left; each without its last point."""

    points: Ints
    offsets: Ints
    leave: Ints
    arrive: Ints
    """As an arc's ends."""
    components: Ints
    classes: NDArray[np.uint8]
    doubled: Ints

    @classmethod
    def concatenate(cls, parts: list[_Halves]) -> _Halves:
        shifts = np.cumsum([0, *(len(part.points) for part in parts)])
        offsets = [part.offsets[:-1] + shift for part, shift in zip(parts, shifts, strict=False)]
        return cls(
            np.concatenate([part.points for part in parts]),
            np.concatenate([*offsets, shifts[-1:]]),
            np.concatenate([part.leave for part in parts]),
            np.concatenate([part.arrive for part in parts]),
            np.concatenate([part.components for part in parts]),
            np.concatenate([part.classes for part in parts]),
            np.concatenate([part.doubled for part in parts]),
        )

    def successor(self) -> Ints:
        """The half that goes on where each one ends.

        Where four links meet and the polygon has two opposite pixels, its ring goes over to the other pixel's
        side: so rings touch at such corners and never cross themselves. Otherwise it takes the next link
        clockwise, which keeps to the same pixel.
        """
        order = np.argsort(self.leave)
        keys, following = self.leave[order], np.where(self.arrive < 0, np.arange(len(order)), -1)
        for turn in (3, 1, 2):
            wanted = self.arrive - self.arrive % 4 + (self.arrive + turn) % 4
            found = order[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)]
            fits = (self.leave[found] == wanted) & (self.components[found] == self.components)
            following = np.where((following < 0) & fits, found, following)
        return following


def _assemble(halves: _Halves) -> Polygons:
    """Rings and polygons of complete components."""
    order, starts = order_chains(halves.successor())
    doubled = sums(halves.doubled[order], starts)
    components = halves.components[order[starts[:-1]]]
    rings = np.lexsort((doubled < 0, components))
    places, first = expand(starts[rings], np.diff(starts)[rings])
    order = order[places]
    found, offsets = expand(halves.offsets[order], np.diff(halves.offsets)[order])
    points, offsets = halves.points[found], offsets[first]
    points, offsets = _append(points, offsets, points[offsets[:-1]])
    outer = np.flatnonzero(doubled[rings] > 0)
    return Polygons(
        points=points,
        rings=offsets,
        polygons=np.append(outer, len(rings)),
        classes=halves.classes[order[first[:-1]]][outer],
        areas=doubled[rings] / 2,
    )


# ------------------------------------------------------------------------------------------ ragged arrays


def order_chains(successor: Ints) -> tuple[Ints, Ints]:
    """Elements in the order of their chains, and where each chain starts in it.

    successor: (n,) the element after each one, -1 after the last one of a chain. A cycle starts anywhere.
    """
    n = len(successor)
    inner = np.flatnonzero(successor >= 0)
    count, chain = _connect(inner, successor[inner], n)
    predecessor = np.full(n, -1)
    predecessor[successor[inner]] = inner
    head = np.full(count, -1)
    head[chain[::-1]] = np.arange(n)[::-1]
    first = predecessor < 0
    head[chain[first]] = np.flatnonzero(first)
    jump = np.append(np.where(successor < 0, n, successor), n)
    jump[predecessor[head][predecessor[head] >= 0]] = n  # cycles are cut in front of their head
    # pointer doubling (Wyllie): how many elements are left to the chain's end, itself included
    left = np.append(np.ones(n, np.int64), 0)
    while (jump < n).any():
        left += left[jump]
        jump = jump[jump]
    lengths = np.bincount(chain, minlength=count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    order = np.empty(n, np.int64)
    order[offsets[chain] + lengths[chain] - left[:n]] = np.arange(n)
    return order, offsets


def expand(first: Ints, counts: Ints, step: Ints | int = 1) -> tuple[Ints, Ints]:
    """Indices first, first + step... (`counts` of them) of each slice, and where each slice starts in them."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    steps = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    if not isinstance(step, int):
        steps *= np.repeat(step, counts)
    return np.repeat(first, counts) + steps, offsets


def sums(values: NDArray[Any], offsets: Ints) -> NDArray[Any]:
    """Sum of each slice values[offsets[i] : offsets[i + 1]]."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[offsets])


def _append(points: Ints, offsets: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Every slice with one more point at its end."""
    return np.insert(points, offsets[1:], last, axis=0), offsets + np.arange(len(offsets))


def _doubled_areas(points: Ints, offsets: Ints) -> Ints:
    """Twice the area between each arc and the origin, positive where rings have their inside on the left."""
    x, y = points.T.astype(np.int64)
    cross = np.zeros(len(points), np.int64)
    cross[:-1] = x[1:] * y[:-1] - x[:-1] * y[1:]
    cross[offsets[1:] - 1] = 0  # from one arc to the next
    return sums(cross, offsets)
