"""Super-tiles: training windows that share a read, because unpacking blocks is what reading costs.

An epoch visits rectangles of whole blocks; each is read once, and the windows that lie in it are cut from
it. Rectangles are a partition of a region's blocks whose offset is drawn anew in every epoch, and a position
that few offsets leave whole counts for more, so that in the long run a window lies anywhere with the same
probability, over the edges of blocks, too.

Batches are dealt to LANES in turn, and a super-tile's windows stay in one lane: whatever the number of
loader processes that divides LANES, each of them reads its own super-tiles, and batches are the same.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from datamodules.batch import Item, Window
from datamodules.readers import RawSample, Reader
from datamodules.sampling import TRIES, ClassPositions, Region, SampleKey, WindowPlan

BUDGET = 384 * 2**20
"""Bytes of super-tiles that a process holds."""
LANES = 4
"""Loader processes (times ranks) that never read a super-tile of another one's; fewer if memory is short."""
OPEN = 8
"""Super-tiles from which a batch is mixed; at least LEAST."""
LEAST = 4
DENSITY = 1.5
"""Windows per area of the ground that is read in an epoch far too short to see all of it: unpacking costs more
than cutting, and the rest is seen in other epochs."""


@dataclass(frozen=True)
class Store:
    """How a region's file is stored, in pixels of the scene's grid."""

    block: tuple[int, int]
    """(H, W) of a block; as wide as the file if it is striped."""
    extent: tuple[int, int]
    """(H, W) of the scene."""
    pixel: int
    """Bytes of a pixel with its label and validity, unpacked."""

    def cell(self, size: tuple[int, int], limit: float) -> tuple[int, int]:
        """(down, across): blocks of a super-tile from which windows of `size` are cut, `limit` bytes large.

        Four windows each way, fewer if that is too large; a window fits in whatever its place in a block.
        """
        axes = list(zip(size, self.block, self.extent, strict=True))
        least = [1 if block >= whole else 1 + -(-(side - 1) // block) for side, block, whole in axes]
        cell = [
            max(fewest, -(-4 * min(side, whole) // block))
            for fewest, (side, block, whole) in zip(least, axes, strict=True)
        ]
        while cell != least and self._bytes(cell) > limit:
            axis = 0 if cell[0] - least[0] >= cell[1] - least[1] else 1
            if cell[axis] <= least[axis]:
                break
            cell[axis] -= 1
        return cell[0], cell[1]

    def divided(self) -> Store:
        """Blocks that are too large to be held as a super-tile (a file in a single strip) count as several."""
        (height, width), most = self.block, BUDGET // (4 * LANES * LEAST * self.pixel)
        height = max(1, min(height, most // min(width, most)))
        return Store((height, min(width, most)), self.extent, self.pixel)

    def _bytes(self, cell: Sequence[int]) -> int:
        height, width = (min(cell[axis] * self.block[axis], self.extent[axis]) for axis in (0, 1))
        return height * width * self.pixel


@dataclass(frozen=True)
class Group:
    """Windows of one region that are cut from one read."""

    region: int
    tile: Window | None
    """The super-tile in which windows are drawn; None: they are all about pixels."""
    members: np.ndarray
    """(n,) indices of the samples: first those drawn in the tile, then those about pixels."""
    pixels: np.ndarray
    """(m, 2) row, col of the scene: the pixels of the last m members."""


@dataclass(frozen=True)
class Drawing:
    """The windows of a group."""

    windows: list[tuple[Window, tuple[int, int] | None]]
    """Each with the pixel to centre a crop on."""
    shared: Item | None
    """The super-tile from which they are cut; None: they are better read alone."""


@dataclass(frozen=True)
class Epoch:
    """What is drawn once an epoch."""

    groups: list[Group]
    of: np.ndarray
    """(length,) group of every sample."""
    place: np.ndarray
    """(length,) its place in the group."""
    order: np.ndarray
    """(length,) samples in the order in which they are shown."""


class SuperTilePlan(WindowPlan):
    """As WindowPlan, but windows that lie close together are drawn together; see the module's docstring."""

    def __init__(
        self,
        regions: Sequence[Region],
        stores: Sequence[Store],
        *,
        size: tuple[int, int],
        length: int,
        batch_size: int,
        min_valid: float = 0.0,
        positions: ClassPositions | None = None,
        rare_share: float = 0.0,
    ) -> None:
        """stores: of each region's file; batch_size: of which batches are dealt to lanes."""
        super().__init__(
            regions,
            size=size,
            length=length,
            min_valid=min_valid,
            positions=positions,
            rare_share=rare_share,
        )
        self.batch_size = batch_size
        self.stores = list(stores)
        self.cells = np.array([store.cell(size, BUDGET / (2 * LANES * LEAST)) for store in self.stores])
        largest = max(map(self._bytes, range(len(self.regions))))
        self.lanes = LANES
        while self.lanes > 1 and self.lanes * (LEAST + 1) * largest > BUDGET:
            self.lanes //= 2
        self.open = int(min(max(BUDGET // (self.lanes * largest) - 1, LEAST), OPEN))
        self.budget = max(BUDGET, (self.open + 1) * largest)
        self._blocks = np.array([store.block for store in self.stores])
        corners = np.array([(r.window.row, r.window.col) for r in self.regions])
        sides = np.array([(r.window.height, r.window.width) for r in self.regions])
        # of the ground, for each place that a window can have
        self._area_of_place = (sides / (sides - np.minimum(size, sides) + 1)).prod(axis=1)
        self._first = corners // self._blocks
        count = -(-(corners + sides) // self._blocks) - self._first
        # what isn't larger than a super-tile is one
        self._whole = sides <= self.cells * self._blocks
        self._count = np.where(self._whole, 1, count)
        self._epoch: tuple[tuple[int, int], Epoch] | None = None
        self._drawn: OrderedDict[tuple[int, int, int], Drawing] = OrderedDict()

    def draw(self, key: SampleKey, rng: np.random.Generator) -> tuple[Item, tuple[int, int] | None]:
        """See WindowPlan; rng isn't used: windows are drawn together."""
        epoch = self.epoch(key.seed, key.epoch)
        group = int(epoch.of[key.index])
        window, centre = self._drawing(key, group).windows[epoch.place[key.index]]
        region = self.regions[epoch.groups[group].region]
        name = f"{region.item.id}@{window.row},{window.col}"
        return replace(self._item(region), id=name, window=window), centre

    def shared(self, key: SampleKey) -> Item | None:
        """The super-tile from which the sample is cut; None: it is better read alone."""
        group = int(self.epoch(key.seed, key.epoch).of[key.index])
        return self._drawing(key, group).shared

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """(length,) samples in the order in which they are shown."""
        return self.epoch(seed, epoch).order

    def epoch(self, seed: int, epoch: int) -> Epoch:
        """What all processes draw alike; the last one is kept."""
        if self._epoch is None or self._epoch[0] != (seed, epoch):
            self._epoch = (seed, epoch), self._plan(np.random.default_rng((seed, epoch, 0, 3)))
            self._drawn.clear()
        return self._epoch[1]

    # ---------------------------------------------------------------- an epoch

    def _plan(self, rng: np.random.Generator) -> Epoch:
        located = self._located(rng)
        alone = np.flatnonzero(located[:, 0] < 0)
        offsets = np.where(self._whole, 0, rng.integers(self.cells))
        tiles = self._tiles(len(alone), offsets, rng)
        if len(alone) and not sum(weight for *_, weight in tiles):
            # only cut-off tiles, too small for a window: without an offset there is a whole one
            offsets = np.zeros_like(offsets)
            tiles = self._tiles(len(alone), offsets, rng)
        owners = _systematic(np.array([weight for *_, weight in tiles]), len(alone), rng)
        keys: dict[tuple[int, int, int], tuple[Window | None, list[int], list[int]]] = {}
        for sample, owner in zip(rng.permutation(alone).tolist(), owners.tolist(), strict=True):
            region, cell, tile, _ = tiles[owner]
            keys.setdefault((region, *cell), (tile, [], []))[1].append(sample)
        for sample in np.flatnonzero(located[:, 0] >= 0).tolist():
            region, *pixel = located[sample].tolist()
            cell = self._cell_of(region, pixel, offsets[region])
            keys.setdefault((region, *cell), (None, [], []))[2].append(sample)
        groups = [
            Group(region, tile, np.array(drawn + about, np.int64), located[about, 1:])
            for (region, *_), (tile, drawn, about) in keys.items()
        ]
        of, place = np.empty(self.length, np.int64), np.empty(self.length, np.int64)
        for index, group in enumerate(groups):
            of[group.members], place[group.members] = index, np.arange(len(group.members))
        return Epoch(groups, of, place, self._order([group.members for group in groups], rng))

    def _located(self, rng: np.random.Generator) -> np.ndarray:
        """(length, 3) region, row, col of the pixels near which windows lie; region -1: anywhere."""
        located = np.full((self.length, 3), -1, np.int64)
        if self.regions[0].labelled is not None:
            for sample, region in enumerate(self.slots(*rng.integers(2**31, size=2).tolist()).tolist()):
                labelled = self.regions[region].labelled
                assert labelled is not None
                pixel = labelled[rng.integers(len(labelled))]
                # a quarter of the side: the label is still seen after zooming in twice
                reach = np.array(self.size) // 4
                located[sample] = region, *(pixel + rng.integers(-reach, reach + 1))
        if self.positions is not None:
            for sample in np.flatnonzero(rng.random(self.length) < self.rare_share).tolist():
                located[sample] = self.positions.draw(rng) or located[sample]
        return located

    def _tiles(
        self, windows: int, offsets: np.ndarray, rng: np.random.Generator
    ) -> list[tuple[int, tuple[int, int], Window, float]]:
        """Super-tiles of an epoch of so many windows: region, cell, pixels, and weight.

        All of them if the windows cover the ground; else so many that each is worth reading.
        """
        counts = -(
            -(self._count + np.where(self._whole, 0, (self.cells - offsets) % self.cells)) // self.cells
        )
        counts = np.where(self._whole, 1, counts)
        shuffled = rng.permutation(len(self.regions))
        edges = np.cumsum(counts[shuffled].prod(axis=1))
        total = int(edges[-1])
        share = windows * self.size[0] * self.size[1] / max(float(self.area.sum()), 1.0)
        share = min(share, 1.0)
        density = share + (1 - share) * DENSITY
        number = min(total, max(int(np.ceil(share * total / density)), self.lanes * self.open))
        chosen = np.unique(((rng.random() + np.arange(number)) * total / number).astype(np.int64))
        owner = np.searchsorted(edges, chosen, side="right")
        tiles = []
        for index, place in zip(shuffled[owner].tolist(), (edges[owner] - 1 - chosen).tolist(), strict=True):
            cell = divmod(place, int(counts[index, 1]))
            tile, weight = self._tile(index, cell, offsets[index])
            tiles.append((index, cell, tile, weight))
        return tiles

    def _tile(self, index: int, cell: tuple[int, int], offset: np.ndarray) -> tuple[Window, float]:
        """A super-tile's pixels, and how many windows it should get of those that the region gets."""
        window, spans, weight = self.regions[index].window, [], float(self._area_of_place[index])
        sides = ((window.row, window.height), (window.col, window.width))
        for axis, (start, length) in enumerate(sides):
            low, high = start, start + length
            if not self._whole[index, axis]:
                blocks, block = int(self.cells[index, axis]), int(self._blocks[index, axis])
                lead = (blocks - int(offset[axis])) % blocks
                edge = (int(self._first[index, axis]) + cell[axis] * blocks - lead) * block
                low, high = max(low, edge), min(high, edge + blocks * block)
            spans.append((low, high - low))
            weight *= self._weights(index, axis, low, high - low)[-1]
        tile = Window(spans[0][0], spans[1][0], spans[0][1], spans[1][1])
        return tile, weight * self.regions[index].valid_share(tile) if weight else 0.0

    def _weights(self, index: int, axis: int, start: int, length: int) -> np.ndarray:
        """Cumulative weight of the places that a window can have in a span; [0.] if it doesn't fit."""
        window = self.regions[index].window
        size = min(self.size[axis], (window.height, window.width)[axis])
        block = int(self._blocks[index, axis])
        cell = 0 if self._whole[index, axis] else int(self.cells[index, axis])
        return _cumulated(start % block, length, size, block, cell)

    def _cell_of(self, index: int, pixel: Sequence[int], offset: np.ndarray) -> tuple[int, int]:
        lead = (self.cells[index] - offset) % self.cells[index]
        cell = (np.array(pixel) // self._blocks[index] - self._first[index] + lead) // self.cells[index]
        row, col = np.where(self._whole[index], 0, cell).tolist()
        return row, col

    def _order(self, groups: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Batches in turn from every lane; a lane's from `open` groups at a time, evenly mixed."""
        # a group that is most of the epoch (labels all in one place) is shared out
        largest = max(1, self.length // (2 * self.lanes))
        parts = [group[at : at + largest] for group in groups for at in range(0, len(group), largest)]
        totals = [0] * self.lanes
        lanes: list[list[np.ndarray]] = [[] for _ in totals]
        # the largest first, so that lanes are equally long
        shuffled = rng.permutation(len(parts)).tolist()
        for part in sorted(shuffled, key=lambda part: -len(parts[part])):
            lane = totals.index(min(totals))
            lanes[lane].append(parts[part])
            totals[lane] += len(parts[part])
        streams = [self._mixed(lane, rng) for lane in lanes]
        rounds = min(map(len, streams)) // self.batch_size
        whole = rounds * self.batch_size
        head = [stream[:whole].reshape(rounds, self.batch_size) for stream in streams]
        # lane by lane: what is mixed of all lanes would be read by all processes
        return np.concatenate([np.stack(head, axis=1).ravel(), *(stream[whole:] for stream in streams)])

    def _mixed(self, groups: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """The members of groups: the first ones, `open` at most, evenly mixed, then the next ones."""
        if not groups:
            return np.empty(0, np.int64)
        groups = [groups[index] for index in rng.permutation(len(groups)).tolist()]
        rounds = -(-len(groups) // self.open)  # of nearly as many groups each
        place = [
            index * rounds // len(groups) + (np.arange(len(group)) + rng.random(len(group))) / len(group)
            for index, group in enumerate(groups)
        ]
        members = np.concatenate([rng.permutation(group) for group in groups])
        return members[np.argsort(np.concatenate(place), kind="stable")]

    # ---------------------------------------------------------------- a group's windows

    def _drawing(self, key: SampleKey, index: int) -> Drawing:
        """Of a group; the last ones are kept."""
        known = (key.seed, key.epoch, index)
        if known not in self._drawn:
            group = self.epoch(key.seed, key.epoch).groups[index]
            windows = self._draw_group(group, np.random.default_rng((*known, 4)))
            self._drawn[known] = Drawing(windows, self._shared(group, [window for window, _ in windows]))
            if len(self._drawn) > 4 * LANES * OPEN:
                self._drawn.popitem(last=False)
        return self._drawn[known]

    def _shared(self, group: Group, windows: Sequence[Window]) -> Item | None:
        """What windows are cut from; None where most of it would be read for nothing."""
        row, col = min(each.row for each in windows), min(each.col for each in windows)
        bottom = max(each.row + each.height for each in windows)
        right = max(each.col + each.width for each in windows)
        area = (bottom - row) * (right - col)
        if len(windows) == 1 or 2 * sum(each.height * each.width for each in windows) < area:
            return None
        return replace(
            self._item(self.regions[group.region]), window=Window(row, col, bottom - row, right - col)
        )

    def _draw_group(
        self, group: Group, rng: np.random.Generator
    ) -> list[tuple[Window, tuple[int, int] | None]]:
        region = self.regions[group.region]
        found: list[tuple[Window, tuple[int, int] | None]] = []
        if group.tile is not None:
            for _ in range(len(group.members) - len(group.pixels)):
                found.append((self._in_tile(group.region, group.tile, rng), None))
        for row, col in group.pixels.tolist():
            window = self._around(region, row, col)
            found.append((window, (row - window.row, col - window.col)))
        return found

    def _in_tile(self, index: int, tile: Window, rng: np.random.Generator) -> Window:
        """The first of TRIES random windows with min_valid valid pixels, else the best of them."""
        region = self.regions[index]
        height, width = min(self.size[0], region.window.height), min(self.size[1], region.window.width)
        rows = self._weights(index, 0, tile.row, tile.height)
        cols = self._weights(index, 1, tile.col, tile.width)
        best, best_share = None, -1.0
        for _ in range(TRIES):
            row, col = (
                int(np.searchsorted(each, rng.random() * each[-1], side="right")) for each in (rows, cols)
            )
            window = Window(tile.row + row, tile.col + col, height, width)
            share = region.valid_share(window)
            if share > best_share:
                best, best_share = window, share
            if share >= self.min_valid and share > 0:
                break
        assert best is not None
        return best

    def _item(self, region: Region) -> Item:
        return replace(region.item, labelled=None if region.ground is None else region.window)

    def _bytes(self, index: int) -> int:
        """Of one of a region's super-tiles."""
        (down, across), window = self.cells[index].tolist(), self.regions[index].window
        block = self.stores[index].block
        return (
            min(down * block[0], window.height)
            * min(across * block[1], window.width)
            * self.stores[index].pixel
        )


class SuperTiles:
    """The super-tiles that a process has read, the last used ones within a byte budget."""

    def __init__(self, plan: SuperTilePlan, reader: Reader) -> None:
        self.plan = plan
        self.reader = reader
        self._process = os.getpid()
        self._held: OrderedDict[Item, RawSample] = OrderedDict()
        self._bytes = 0
        self.reads = 0

    def __reduce__(self) -> tuple[type[SuperTiles], tuple[SuperTilePlan, Reader]]:
        return SuperTiles, (self.plan, self.reader)

    def read(self, key: SampleKey, item: Item) -> RawSample:
        """The sample's item, cut from its super-tile."""
        shared = self.plan.shared(key)
        if shared is None:
            self.reads += 1
            return self.reader.read(item)
        raw = self._tile(shared)
        assert shared.window is not None
        assert item.window is not None
        row, col = item.window.row - shared.window.row, item.window.col - shared.window.col
        inside = np.s_[row : row + item.window.height, col : col + item.window.width]
        # whoever gets a sample may change what is small; pixels are copied by what is done to them
        values = raw.values[:, *inside]
        values.flags.writeable = False
        return RawSample(values, raw.valid[inside].copy(), raw.mask[inside].copy())

    def _tile(self, item: Item) -> RawSample:
        if self._process != os.getpid():
            self._process, self._bytes = os.getpid(), 0
            self._held.clear()
        if item not in self._held:
            self.reads += 1
            raw = self._held[item] = self.reader.read(item)
            self._bytes += _size(raw)
            while self._bytes > self.plan.budget and len(self._held) > 1:
                self._bytes -= _size(self._held.popitem(last=False)[1])
        self._held.move_to_end(item)
        return self._held[item]


def _size(raw: RawSample) -> int:
    return raw.values.nbytes + raw.valid.nbytes + raw.mask.nbytes


@lru_cache(maxsize=4096)
def _cumulated(phase: int, length: int, size: int, block: int, cell: int) -> np.ndarray:
    """Cumulative weights of the places 0..length-size of a window in a span that starts at `phase` of a block.

    Of the `cell` offsets that a partition into cells of so many blocks can have, cell - n leave whole a window
    that crosses n edges of blocks: its weight is cell / (cell - n), 1 on average. cell 0: there is no partition.
    """
    if length < size:
        return np.zeros(1)
    if not cell:
        return np.arange(1.0, length - size + 2)
    start = phase + np.arange(length - size + 1)
    crossed = (start + size - 1) // block - start // block
    return np.cumsum(cell / (cell - crossed))


def _systematic(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) indices, each floor or ceil of count x its share of the weight times."""
    edges = np.cumsum(weights)
    if not count:
        return np.empty(0, np.int64)
    points = (rng.random() + np.arange(count)) / count * edges[-1]
    return np.minimum(np.searchsorted(edges, points, side="right"), len(weights) - 1)
