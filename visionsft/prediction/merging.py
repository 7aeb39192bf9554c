"""Merging: the detections of overlapping tiles as those of one scene, in memory that doesn't grow with it.

What two tiles find of one object is recognised in three ways, always within a class and never within a tile, whose
own detections the detector has already judged:

- Rejoined: a box that ends at the border of its tile, and one of a neighbouring tile that ends at that tile's facing
  border, both through the strip that the tiles share and alike across it, are two parts of an object that is larger
  than the strip. Chains of parts span any number of tiles; a side has one partner per seam, the one most like it.
- Dropped: a box that still ends at a border without a partner and lies in a larger box of another tile.
- Duplicates: boxes of high intersection over union, by non-maximum suppression or weighted boxes fusion (Solovyev,
  Wang, Gabruseva 2021, arXiv:1910.13302; but a tile that didn't find the object doesn't lower its score, as it may
  have seen little of what is around it).

Boxes that none of the three links can't change each other. So linked groups are decided one by one, as soon as no
tile to come can link anything to them; held are those that reach the next row of tiles, as they were found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from visionsft.errors import ConfigError
from visionsft.prediction.blending import Grid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Place = tuple[int, int]
"""Row and column of a tile."""
Iou = Callable[[Tensor, Tensor], Tensor]
"""(N, 5), (M, 5) float32 turned boxes -> (N, M) intersection over union."""

LEFT, TOP, RIGHT, BOTTOM = range(4)
"""Columns of `Parts.cut`, and of boxes; the facing side is two further."""
SLACK, RELATIVE_SLACK = 1.0, 0.03
"""A box ends at a border if it is as near as this: in pixels, or of its side if that is more."""
ALIGNED = 0.3
"""Of the shorter of two parts, across the seam, that the other must cover."""
CONTAINED = 0.8
"""Of a cut box that must lie in another one."""


@dataclass(frozen=True)
class Merging:
    """How detections of several tiles become one."""

    kind: Literal["nms", "wbf"] = "nms"
    """Of duplicates the most certain one, or their mean weighted by score."""
    iou: float = 0.5
    """From which on two boxes of different tiles are duplicates."""
    turned_iou: Iou | None = None
    """For turned boxes; None: that of the upright boxes around them."""
    adds: bool = False
    """Whether a fused box has the sum of its boxes' scores, and not their mean."""

    def __post_init__(self) -> None:
        if self.kind not in ("nms", "wbf"):
            raise ConfigError(f"merge is {self.kind!r}; allowed: nms, wbf")
        if not 0 < self.iou <= 1:
            raise ConfigError(f"iou is {self.iou:g}; allowed: above 0, to 1")


@dataclass(frozen=True)
class Parts:
    """What tiles show of objects, on the scene's pixels."""

    boxes: Floats
    """(N, 4) x1, y1, x2, y2."""
    scores: Floats
    """(N,)"""
    labels: Ints
    """(N,)"""
    cut: NDArray[np.bool_]
    """(N, 4): left, top, right, bottom end at a border of the tile that is inside the scene."""
    tiles: Ints
    """(N, 2): row and column of the tile."""
    turned: Floats | None = None
    """(N, 5), see `datamodules.objects.Objects.turned`."""
    outlines: NDArray[np.object_] | None = None
    """(N,) shapely polygons."""

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, index: NDArray[np.generic]) -> Parts:
        """Those of these indices, or where a mask (N,) is True."""
        optional = (None if each is None else each[index] for each in (self.turned, self.outlines))
        required = (self.boxes, self.scores, self.labels, self.cut, self.tiles)
        return Parts(*(each[index] for each in required), *optional)

    @classmethod
    def none(cls) -> Parts:
        """Nothing found."""
        return cls(
            np.empty((0, 4)), np.empty(0), np.empty(0, np.int64), np.empty((0, 4), bool), np.empty((0, 2), np.int64)
        )  # fmt: skip


def concatenate(parts: Sequence[Parts]) -> Parts:
    """All of them, in their order; empty ones may lack what the others have."""
    filled = [each for each in parts if len(each)]
    if len(filled) < 2:
        return filled[0] if filled else Parts.none()
    required = [
        np.concatenate([getattr(each, name) for each in filled])
        for name in ("boxes", "scores", "labels", "cut", "tiles")
    ]
    optional = [
        None if getattr(filled[0], name) is None else np.concatenate([getattr(each, name) for each in filled])
        for name in ("turned", "outlines")
    ]
    return Parts(*required, *optional)


def find_cuts(boxes: Floats, window: tuple[int, int, int, int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(N, 4) bool, see `Parts.cut`. window: x1, y1, x2, y2 of the tile; shape: (H, W) of the scene."""
    edges = (0, 0, shape[1], shape[0])
    inner = np.array([own != edge for own, edge in zip(window, edges, strict=True)])
    slack = np.tile(_slack(boxes), 2)
    return (np.abs(boxes - np.array(window, float)) <= slack) & inner


def _slack(boxes: Floats) -> Floats:
    """(N, 2) along x and y."""
    return np.maximum(SLACK, RELATIVE_SLACK * (boxes[:, 2:] - boxes[:, :2]))


# --------------------------------------------------------------------------------------------------- links


@dataclass(frozen=True)
class Links:
    """Pairs of parts that may show one object."""

    pairs: Ints
    """(L, 2) indices of parts."""
    sides: Ints
    """(L,) the first one's side where the two may be joined; -1: there is none."""
    likeness: Floats
    """(L,) of the parts across the seam, in 0..1."""
    alike: NDArray[np.bool_]
    """(L,) of high intersection over union."""

    def take(self, index: NDArray[np.generic]) -> Links:
        return Links(self.pairs[index], self.sides[index], self.likeness[index], self.alike[index])


def find_links(first: Parts, second: Parts, grid: Grid, merging: Merging) -> Links:
    """Between the parts of two neighbouring tiles; `second` is the later one."""
    if not (len(first) and len(second)):
        return _concatenate_links([])
    same = first.labels[:, None] == second.labels
    alike = _alike(first, second, merging)
    low = np.maximum(first.boxes[:, None, :2], second.boxes[:, :2])
    common = np.minimum(first.boxes[:, None, 2:], second.boxes[:, 2:]) - low
    inside = (_share(first.boxes[:, None], second.boxes) >= CONTAINED) & first.cut.any(1, keepdims=True)
    inside |= (_share(second.boxes, first.boxes[:, None]) >= CONTAINED) & second.cut.any(1)
    found = [_listed(alike | (same & inside), -1, np.ones(same.shape), alike)]
    steps = second.tiles[0] - first.tiles[0]
    for axis, step, strip in ((0, steps[1], grid.cols.overlap), (1, steps[0], grid.rows.overlap)):
        if step:
            side = (RIGHT if step > 0 else LEFT) + axis
            likeness, joined = _facing(first, second, common, same, axis=axis, side=side, strip=strip)
            found.append(_listed(joined, side, likeness, alike))
    return Links(*(np.concatenate(each) for each in zip(*found, strict=True)))


def _alike(first: Parts, second: Parts, merging: Merging) -> NDArray[np.bool_]:
    """(N, M) of one class and of high intersection over union."""
    same = first.labels[:, None] == second.labels
    return np.asarray(same & (_iou(first, second, merging) >= merging.iou), np.bool_)


def _facing(
    first: Parts,
    second: Parts,
    common: Floats,
    same: NDArray[np.bool_],
    *,
    axis: int,
    side: int,
    strip: int,
) -> tuple[Floats, NDArray[np.bool_]]:
    """(N, M) each: likeness of parts, and whether they end at the facing borders of their tiles.

    common: (N, M, 2) of their extents, negative: a gap.
    """
    across = 1 - axis
    a, b = (parts.boxes[:, across + 2] - parts.boxes[:, across] for parts in (first, second))
    shared: Floats = common[..., across]
    shorter = np.maximum(np.minimum(a[:, None], b), 1e-6)
    # both reach through the strip that their tiles have in common
    gap = _slack(first.boxes)[:, None, axis] + _slack(second.boxes)[:, axis]
    through = common[..., axis] >= strip / 2 - gap
    facing = first.cut[:, side][:, None] & second.cut[:, (side + 2) % 4]
    joined = same & facing & through & (shared >= ALIGNED * shorter)
    return shared / np.maximum(a[:, None] + b - shared, 1e-6), joined


def _listed(
    linked: NDArray[np.bool_], side: int, likeness: Floats, alike: NDArray[np.bool_]
) -> tuple[Ints, Ints, Floats, NDArray[np.bool_]]:
    pairs = np.argwhere(linked)
    return pairs, np.full(len(pairs), side), likeness[linked], alike[linked]


def _share(boxes: Floats, others: Floats) -> Floats:
    """(..., 4), (..., 4) -> (...) share of each box that lies in the other one, that a little enlarged."""
    low = np.maximum(boxes[..., :2], others[..., :2] - SLACK)
    shared = (np.minimum(boxes[..., 2:], others[..., 2:] + SLACK) - low).clip(0).prod(-1)
    return np.asarray(shared / _areas(boxes), np.float64)


def _areas(boxes: Floats) -> Floats:
    return np.maximum((boxes[..., 2:] - boxes[..., :2]).clip(0).prod(-1), 1e-6)


def _iou(first: Parts, second: Parts, merging: Merging) -> Floats:
    """(N, M)"""
    if first.turned is not None and second.turned is not None and merging.turned_iou is not None:
        pair = (torch.from_numpy(each.turned).float() for each in (first, second))
        return merging.turned_iou(*pair).double().numpy()
    return box_iou(first.boxes, second.boxes)


def box_iou(first: Floats, second: Floats) -> Floats:
    """(N, 4), (M, 4) -> (N, M) intersection over union; in float64, as scenes are larger than images."""
    low = np.maximum(first[:, None, :2], second[:, :2])
    shared = (np.minimum(first[:, None, 2:], second[:, 2:]) - low).clip(0).prod(2)
    return np.asarray(shared / (_areas(first)[:, None] + _areas(second) - shared), np.float64)


def _reach(parts: Parts, window: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """(N,) bool: a box that may have a link to one in this window."""
    left, top, right, bottom = window
    x1, y1, x2, y2 = parts.boxes.T
    inside = (x1 <= right + SLACK) & (x2 >= left - SLACK) & (y1 <= bottom + SLACK) & (y2 >= top - SLACK)
    return np.asarray(inside | parts.cut.any(1), np.bool_)


# --------------------------------------------------------------------------------------------------- merger


class Merger:
    """Takes the tiles of a grid row by row and gives out what no later tile can change."""

    def __init__(self, grid: Grid, merging: Merging = Merging()) -> None:
        self.grid = grid
        self.merging = merging
        self._parts: list[Parts] = []
        self._links: list[Links] = []
        self._count = 0
        self._at: dict[Place, tuple[int, Parts]] = {}
        """Of the tiles of this row and the one above: index of the first part, and the parts."""

    @property
    def held(self) -> int:
        """Parts that are kept."""
        return self._count

    def add(self, place: Place, parts: Parts) -> None:
        """The parts of the next tile."""
        if not len(parts):
            return
        if self.merging.kind == "wbf":
            _refuse_turned(parts)
        row, col = place
        for before in ((row - 1, col - 1), (row - 1, col), (row - 1, col + 1), (row, col - 1)):
            if before in self._at:
                start, others = self._at[before]
                mine = np.flatnonzero(_reach(parts, self._window(before)))
                theirs = np.flatnonzero(_reach(others, self._window(place)))
                links = find_links(others.take(theirs), parts.take(mine), self.grid, self.merging)
                first, second = links.pairs.T
                pairs = np.stack([theirs[first] + start, mine[second] + self._count], axis=1)
                self._links.append(replace(links, pairs=pairs))
        self._at[place] = self._count, parts
        self._parts.append(parts)
        self._count += len(parts)

    def _window(self, place: Place) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2"""
        window = self.grid.window(*place)
        return window.col, window.row, window.col + window.width, window.row + window.height

    def finish_row(self, row: int) -> Parts:
        """Everything that is final once row `row` of the tiles has been added."""
        parts, links = concatenate(self._parts), _concatenate_links(self._links)
        if not len(parts):
            return parts
        groups = _group(links.pairs, len(parts))
        stays = np.zeros(len(parts), bool)
        if row < self.grid.rows.count - 1:
            stays = parts.cut[:, BOTTOM] | (parts.boxes[:, 3] >= self.grid.rows.start(row + 1) - SLACK)
            stays &= parts.tiles[:, 0] == row
            stays = np.isin(groups, groups[stays])
        ready, done = np.flatnonzero(~stays), ~stays[links.pairs[:, 0]]
        final = _decide(parts, links.take(done), groups, ready, self.merging)
        self._hold(parts, links.take(~done), np.flatnonzero(stays), row)
        return final

    def _hold(self, parts: Parts, links: Links, stays: Ints, row: int) -> None:
        """Keep these parts; only those of row `row` can get new links."""
        number = np.full(len(parts), -1)
        number[stays] = np.arange(len(stays))
        self._links = [replace(links, pairs=number[links.pairs])]
        kept = parts.take(stays)  # still tile by tile
        self._parts, self._count, self._at = [kept], len(kept), {}
        for col in np.unique(kept.tiles[kept.tiles[:, 0] == row, 1]).tolist():
            inside = np.flatnonzero((kept.tiles == (row, col)).all(1))
            self._at[row, col] = int(inside[0]), kept.take(inside)


def merge_tiles(
    tiles: Iterable[tuple[Place, Parts]], grid: Grid, merging: Merging = Merging()
) -> Iterator[Parts]:  # fmt: skip
    """tiles: all of the grid in its order -> for each row of them what became final, the most certain first."""
    merger = Merger(grid, merging)
    for (row, col), parts in tiles:
        merger.add((row, col), parts)
        if col == grid.cols.count - 1:
            yield _in_order(merger.finish_row(row))


def merge_views(views: Sequence[Parts], merging: Merging = Merging()) -> Parts:
    """What several views of one image show together, the most certain first: duplicates alone, as nothing is cut.

    views: of each, whose number is the column in `Parts.tiles`. With wbf an object that some views miss is as much
    less certain, as in the paper: all of them have looked at it.
    """
    if merging.kind == "wbf":
        _refuse_turned(concatenate(views))
        views = [replace(each, scores=each.scores / len(views)) for each in views]
        merging = replace(merging, adds=True)
    parts, starts = concatenate(views), np.cumsum([0, *map(len, views)])
    links = []
    for (start, first), (other, second) in combinations(zip(starts, views, strict=False), 2):
        if len(first) and len(second):
            alike = _alike(first, second, merging)
            found = Links(*_listed(alike, -1, np.ones(alike.shape), alike))
            links.append(replace(found, pairs=found.pairs + np.array([start, other])))
    together = _concatenate_links(links)
    groups = _group(together.pairs, len(parts))
    return _in_order(_decide(parts, together, groups, np.arange(len(parts)), merging))


def _in_order(parts: Parts) -> Parts:
    """By score, and by place where it is the same."""
    keys = (*parts.boxes.T[::-1], parts.labels, -parts.scores)
    return parts.take(np.lexsort(keys))


def _concatenate_links(links: Sequence[Links]) -> Links:
    if not links:
        return Links(np.empty((0, 2), np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0, bool))
    names = ("pairs", "sides", "likeness", "alike")
    return Links(*(np.concatenate([getattr(each, name) for each in links]) for name in names))


def _group(pairs: Ints, count: int) -> Ints:
    """(count,) number of the group of each that pairs link, in the order of their first members."""
    ones = np.ones(len(pairs), np.int8)
    return np.asarray(connected_components(coo_array((ones, pairs.T), (count, count)), directed=False)[1])


def _refuse_turned(parts: Parts) -> None:
    if parts.turned is not None:
        raise ConfigError("merge is 'wbf', which is for upright boxes; for turned boxes use nms")


# ------------------------------------------------------------------------------------------------- decisions


def _decide(parts: Parts, links: Links, groups: Ints, ready: Ints, merging: Merging) -> Parts:
    """The objects of the groups to which the parts `ready` belong."""
    joins = links.sides >= 0
    if merging.kind == "wbf":
        joins[:] = True  # boxes change there, too
    slow = np.zeros(len(parts), bool)  # by the number of a group, of which there are no more than parts
    slow[groups[links.pairs[joins, 0]]] = True
    plain = ready[~slow[groups[ready]]]
    number = np.full(len(parts), -1)
    number[plain] = np.arange(len(plain))
    own = links.take(~slow[groups[links.pairs[:, 0]]])
    found = [_choose(parts.take(plain), replace(own, pairs=number[own.pairs]))]
    order = ready[slow[groups[ready]]]
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    by_group = np.argsort(groups[links.pairs[:, 0]], kind="stable")
    owners = groups[links.pairs[by_group, 0]]
    for members in np.split(order, starts[1:]) if len(order) else ():
        first, last = np.searchsorted(owners, groups[members[0]] + np.arange(2))
        own = links.take(by_group[first:last])
        local = replace(own, pairs=np.searchsorted(members, own.pairs))
        found.append(resolve(parts.take(members), local, merging))
    return concatenate(found)


def _choose(parts: Parts, links: Links) -> Parts:
    """What `resolve` leaves of parts that are only dropped, of any number of groups at once.

    Their boxes stay as they are, so that all they have to do with each other is in the links.
    """
    first, second = links.pairs.T
    rank = _fullness(parts)
    gone = np.zeros(len(parts), bool)
    for inner, outer in ((first, second), (second, first)):
        inside = _share(parts.boxes[inner], parts.boxes[outer]) >= CONTAINED
        gone[inner[inside & parts.cut[inner].any(1) & (rank[inner] < rank[outer])]] = True
    place = np.empty(len(parts), np.int64)
    place[_by_certainty(parts)] = np.arange(len(parts))
    better = np.where(place[first] < place[second], first, second)[links.alike]
    worse = (first + second)[links.alike] - better
    open_ = ~gone[better] & ~gone[worse]
    while open_.any():
        better, worse = better[open_], worse[open_]
        beaten = np.zeros(len(parts), bool)
        beaten[worse] = True
        gone[worse[~beaten[better]]] = True  # by one that nothing beats
        open_ = ~gone[better] & ~gone[worse]
    return parts.take(~gone)


def resolve(parts: Parts, links: Links, merging: Merging) -> Parts:
    """The objects that linked parts of one class show."""
    joined, owners = _join(parts, links)
    seen = _tiles_of(parts, owners)
    kept = _fullest(joined, seen)
    joined, seen = joined.take(kept), seen[kept]
    apart = np.asarray(seen @ seen.T == 0, np.bool_)
    duplicates = (_iou(joined, joined, merging) >= merging.iou) & apart
    order = _by_certainty(joined)
    if merging.kind == "nms":
        return joined.take(_suppress(order, duplicates))
    return _fuse(joined, seen, order, merging.iou, adds=merging.adds)


def _join(parts: Parts, links: Links) -> tuple[Parts, Ints]:
    """Parts with their partners as one, sides that have found one no longer cut; and which one each became."""
    seams = np.flatnonzero(links.sides >= 0)
    first, second = links.pairs[seams].T
    order = np.lexsort((second, first, -links.likeness[seams].round(6)))
    taken: set[tuple[int, int]] = set()
    partners = []
    for link in seams[order].tolist():
        (a, b), side = links.pairs[link].tolist(), int(links.sides[link])
        ends = {(a, side), (b, (side + 2) % 4)}
        if not ends & taken:
            taken |= ends
            partners.append((a, b))
    open_sides = parts.cut.copy()
    for index, side in taken:
        open_sides[index, side] = False
    owners = _group(np.array(partners, np.int64).reshape(-1, 2), len(parts))
    members = [np.flatnonzero(owners == owner) for owner in range(owners.max() + 1)]
    return concatenate([_union(parts.take(each), open_sides[each]) for each in members]), owners


def _union(parts: Parts, open_sides: NDArray[np.bool_]) -> Parts:
    """One object of all its parts, as certain as the most certain of them."""
    best = int(parts.scores.argmax())
    one = parts.take(np.array([best]))
    cut = np.array(open_sides.any(0, keepdims=True))
    if len(parts) == 1:
        return Parts(one.boxes, one.scores, one.labels, cut, one.tiles, one.turned, one.outlines)
    box = np.concatenate([parts.boxes[:, :2].min(0), parts.boxes[:, 2:].max(0)])[None]
    turned = None if parts.turned is None else _turned_union(parts.turned)
    outlines = None if parts.outlines is None else _outline_union(parts.outlines)
    return Parts(box, one.scores, one.labels, cut, one.tiles, turned, outlines)


def _turned_union(turned: Floats) -> Floats:
    """(1, 5): around turned boxes (N, 5), in the direction of the largest, which shows most of the object."""
    angle = turned[turned[:, 2:4].prod(1).argmax(), 4]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.concatenate([corners_of(each) for each in turned]) @ turn  # along w and h
    low, high = corners.min(0), corners.max(0)
    return np.array([[*turn @ ((low + high) / 2), *(high - low), angle]])


def corners_of(turned: Floats) -> Floats:
    """(5,) cx, cy, w, h, angle -> (4, 2) corners x, y."""
    x, y, w, h, angle = turned
    across = np.array([np.cos(angle), np.sin(angle)]) * w / 2
    down = np.array([-np.sin(angle), np.cos(angle)]) * h / 2
    middle = np.array([x, y])
    return np.stack(
        [middle - across - down, middle + across - down, middle + across + down, middle - across + down]
    )


def _outline_union(outlines: NDArray[np.object_]) -> NDArray[np.object_]:
    import shapely

    union = np.empty(1, object)
    union[0] = shapely.union_all(outlines)
    return union


def _tiles_of(parts: Parts, owners: Ints) -> NDArray[np.int64]:
    """(G, T) 1 where a joined object has a part in the tile."""
    _, tile = np.unique(parts.tiles, axis=0, return_inverse=True)
    seen = np.zeros((owners.max() + 1, tile.max() + 1), np.int64)
    seen[owners, tile.ravel()] = 1
    return seen


def _fullest(parts: Parts, seen: Ints) -> NDArray[np.bool_]:
    """(N,) bool: not a cut box that lies in a larger one of another tile. seen: see `_tiles_of`."""
    cut, rank = parts.cut.any(1), _fullness(parts)
    elsewhere = (seen.sum(1) - seen @ seen.T) > 0  # [i, j]: j has a part in a tile where i has none
    inside = _share(parts.boxes[:, None], parts.boxes) >= CONTAINED
    return ~(cut & (inside & (rank[:, None] < rank) & elsewhere).any(1))


def _fullness(parts: Parts) -> Ints:
    """(N,) rank of each by size; of equal ones those that aren't cut are fuller, and then the more certain ones."""
    rank = np.empty(len(parts), np.int64)
    rank[np.lexsort((parts.scores, ~parts.cut.any(1), _areas(parts.boxes)))] = np.arange(len(parts))
    return rank


def _by_certainty(parts: Parts) -> Ints:
    """Indices, the most certain first, and by place where it is the same."""
    return np.lexsort((*parts.boxes.T[::-1], -parts.scores))


def _suppress(order: Ints, duplicates: NDArray[np.bool_]) -> Ints:
    """Indices, in the order given, without those that duplicate an earlier one which is kept."""
    kept: list[int] = []
    gone = np.zeros(len(order), bool)
    for index in order.tolist():
        if not gone[index]:
            kept.append(index)
            gone |= duplicates[index]
    return np.array(kept, np.int64)


def _fuse(parts: Parts, seen: Ints, order: Ints, iou: float, *, adds: bool) -> Parts:
    """Weighted boxes fusion: each box joins the fused box that it overlaps most, if no tile would be there twice."""
    fused: list[Floats] = []
    members: list[list[int]] = []
    for index in order.tolist():
        overlap = box_iou(parts.boxes[[index]], np.array(fused).reshape(-1, 4))[0]
        for number, cluster in enumerate(members):
            if (seen[cluster] & seen[index]).any():
                overlap[number] = 0
        best = int(overlap.argmax()) if len(overlap) else -1
        if best < 0 or overlap[best] < iou:
            fused.append(parts.boxes[index])
            members.append([index])
            continue
        members[best].append(index)
        fused[best] = np.average(
            parts.boxes[members[best]], axis=0, weights=parts.scores[members[best]] + 1e-9
        )
    leaders = parts.take(np.array([cluster[0] for cluster in members]))
    scores = np.array([parts.scores[cluster].sum() for cluster in members])
    if not adds:
        scores /= [len(cluster) for cluster in members]
    return Parts(
        np.array(fused), scores, leaders.labels, leaders.cut, leaders.tiles, leaders.turned, leaders.outlines
    )
