"""Sampling: which windows a training epoch shows, in which order: a function of (seed, epoch, index).

Nothing here depends on the number of loader processes, so an epoch can be replayed exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

import numpy as np
from torch.utils.data.distributed import DistributedSampler

from datamodules.batch import IGNORE, Item, Window
from datamodules.statistics import load_arrays
from datamodules.views import frame_of, meeting

if TYPE_CHECKING:
    from datamodules.readers import Reader

TRIES = 10
"""Windows drawn at most until one has enough valid pixels."""
CELL = 64
"""Side in pixels of the cells in which classes are looked up for rare-class crops."""
POSITIONS = 100_000
"""Pixels kept for each class at most."""


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Names one training sample: everything random in it comes from `rng`."""

    seed: int
    epoch: int
    index: int

    def rng(self) -> np.random.Generator:
        """A fresh generator, the same in every process."""
        return np.random.default_rng((self.seed, self.epoch, self.index))


class EpochSampler(DistributedSampler[SampleKey]):
    """Keys of one epoch in an order determined by (seed, epoch), shared out among the ranks.

    It is a DistributedSampler so that Lightning calls `set_epoch` and doesn't wrap it in a second one.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        batch_size: int = 1,
        order: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        """order: (seed, epoch) -> (length,) indices; default: a random permutation.
        batch_size: ranks take batches of the order in turn, not single samples."""
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.length = len(dataset)
        self.batch_size = batch_size
        self.order = order or self._permutation

    def __iter__(self) -> Iterator[SampleKey]:  # type: ignore[override]
        order = np.resize(self.order(self.seed, self.epoch), self.total_size)
        whole = self.total_size // (self.num_replicas * self.batch_size) * self.num_replicas * self.batch_size
        batches = order[:whole].reshape(-1, self.num_replicas, self.batch_size)[:, self.rank].ravel()
        rest = order[whole + self.rank :: self.num_replicas]
        for index in (*batches.tolist(), *rest.tolist()):
            yield SampleKey(self.seed, self.epoch, index)

    def _permutation(self, seed: int, epoch: int) -> np.ndarray:
        # the trailing 1 keeps this stream apart from the samples' own: numpy fills (s, e, i) up with zeros
        return np.random.default_rng((seed, epoch, 0, 1)).permutation(self.length)


@dataclass(frozen=True)
class Region:
    """A rectangle of a scene (or a whole frame) from which training windows are drawn."""

    item: Item
    window: Window
    """In pixels of the scene."""
    area: float
    """Valid pixels."""
    footprint: np.ndarray | None = None
    """(h, w) bool: a coarse picture of which pixels of `window` are valid; None: all are."""
    ground: Window | None = None
    """What windows may show, where only the labels of `window` count; None: of `window` alone."""
    labelled: np.ndarray | None = None
    """(n, 2) int64: row, col (of the scene) of pixels near which windows lie; None: they lie anywhere."""

    def valid_share(self, window: Window) -> float:
        """Share of valid pixels of a window inside the region, from the footprint."""
        if self.footprint is None:
            return 1.0
        height, width = self.footprint.shape
        rows = _cells(window.row - self.window.row, window.height, self.window.height, height)
        cols = _cells(window.col - self.window.col, window.width, self.window.width, width)
        return float(self.footprint[rows, cols].mean())


def _cells(start: int, length: int, total: int, cells: int) -> slice:
    """Footprint cells that pixels start..start+length of `total` touch."""
    return slice(start * cells // total, -(-(start + length) * cells // total))


@dataclass(frozen=True)
class ClassPositions:
    """Where classes occur in the training labels, coarsely: a pixel a class and cell of 64 x 64 pixels."""

    pixels: tuple[np.ndarray, ...]
    """One (n, 3) int64 array a class: region index, row, col (of the scene)."""

    def draw(self, rng: np.random.Generator) -> tuple[int, int, int] | None:
        """A class drawn uniformly over those that occur, then one of its pixels: (region, row, col)."""
        present = [pixels for pixels in self.pixels if len(pixels)]
        if not present:
            return None
        pixels = present[rng.integers(len(present))]
        region, row, col = pixels[rng.integers(len(pixels))]
        return int(region), int(row), int(col)

    def save(self, file: IO[bytes]) -> None:
        """As npz, one array a class."""
        np.savez_compressed(file, *self.pixels)

    @classmethod
    def load(cls, file: IO[bytes]) -> ClassPositions:
        """The inverse of `save`."""
        return cls(tuple(load_arrays(file)))


def find_classes(
    windows: Sequence[Sequence[Item]], reader: Reader, *, num_classes: int, limit: int = POSITIONS
) -> ClassPositions:
    """Looks through the labels of all windows (one list a region); keeps `limit` pixels a class at most."""
    found: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    rng = np.random.default_rng(0)
    for region, items in enumerate(windows):
        for item in items:
            corner = (item.window.row, item.window.col) if item.window else (0, 0)
            for index, pixels in enumerate(class_pixels(reader.read_mask(item), num_classes, rng=rng)):
                rows = np.empty((len(pixels), 3), np.int64)
                rows[:, 0], rows[:, 1:] = region, pixels + corner
                found[index].append(rows)
    merged = [np.concatenate([*rows, np.empty((0, 3), np.int64)]) for rows in found]
    return ClassPositions(tuple(rng.permutation(rows)[:limit] for rows in merged))


def near_labels(regions: Sequence[Region], positions: ClassPositions) -> list[Region]:
    """Regions of scenes that are mostly unlabelled: windows lie near labels; the area is that of labelled cells."""
    pixels = np.concatenate(positions.pixels)
    found = [pixels[pixels[:, 0] == index, 1:] for index in range(len(regions))]
    return [
        replace(region, labelled=labelled, area=float(CELL * CELL * len(labelled)))
        for region, labelled in zip(regions, found, strict=True)
    ]


def class_pixels(mask: np.ndarray, num_classes: int, *, rng: np.random.Generator) -> list[np.ndarray]:
    """For each class, one pixel of every cell of the mask (H, W) that holds it: (n, 2) row, col."""
    height, width = (-(-side // CELL) * CELL for side in mask.shape)
    padded = np.full((height, width), IGNORE, np.uint8)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    cells = padded.reshape(height // CELL, CELL, width // CELL, CELL).swapaxes(1, 2).reshape(-1, CELL * CELL)
    # a different start in every scan, so that the first hit isn't always the cell's upper left
    start = int(rng.integers(CELL * CELL))
    found = []
    for index in range(num_classes):
        hits = np.roll(cells == index, -start, axis=1)
        cell = np.flatnonzero(hits.any(axis=1))
        inside = (hits[cell].argmax(axis=1) + start) % (CELL * CELL)
        row = cell // (width // CELL) * CELL + inside // CELL
        col = cell % (width // CELL) * CELL + inside % CELL
        found.append(np.stack([row, col], axis=1))
    return found


@dataclass(frozen=True)
class BalancedPlan:
    """Draws the images of an epoch: each once, or in place of it one of a class drawn uniformly.

    Of a plan for images with labels; see `datamodules.datasets.Plan`.
    """

    items: Sequence[Item]
    members: Sequence[np.ndarray]
    """For each class the (n,) indices of its items."""
    share: float
    """Of the samples whose class is drawn."""

    def __len__(self) -> int:
        return len(self.items)

    def draw(self, key: SampleKey, rng: np.random.Generator) -> tuple[Item, None]:
        """The image of this number, or of a class; a crop of it may lie anywhere."""
        if self.share and rng.random() < self.share:
            present = [each for each in self.members if len(each)]
            if present:
                chosen = present[rng.integers(len(present))]
                return self.items[int(chosen[rng.integers(len(chosen))])], None
        return self.items[key.index], None


class WindowPlan:
    """Draws the training windows of an epoch: by valid area over regions, at random inside a region.

    The regions of an epoch are a systematic sample, not independent draws: a region with the share p of
    the valid area gets floor or ceil of p * length windows in every epoch.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        *,
        size: tuple[int, int],
        length: int,
        min_valid: float = 0.0,
        positions: ClassPositions | None = None,
        rare_share: float = 0.0,
    ) -> None:
        """size: (H, W) of a window; it is cut at its region's edges. length: windows an epoch."""
        self.regions = list(regions)
        self.size = size
        self.min_valid = min_valid
        self.positions = positions
        self.rare_share = rare_share
        self.area = np.array([region.area for region in self.regions], np.float64)
        self.length = length
        self._slots: tuple[tuple[int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        return self.length

    def draw(self, key: SampleKey, rng: np.random.Generator) -> tuple[Item, tuple[int, int] | None]:
        """The sample's item, with its window, and the pixel (row, col of the window) to centre a crop on.

        rng: the sample's own generator.
        """
        rare: tuple[int, int, int] | None = None
        centre: tuple[int, int] | None = None
        if self.positions is not None and rng.random() < self.rare_share:
            rare = self.positions.draw(rng)
        if rare is not None:
            index, row, col = rare
            region = self.regions[index]
            window = self._around(region, row, col)
            centre = (row - window.row, col - window.col)
        else:
            region = self.regions[self.slots(key.seed, key.epoch)[key.index]]
            if region.labelled is None:
                window = self._enough_valid(region, rng)
            else:
                window, centre = self._near_label(region, region.labelled, rng)
        return _item(region, window), centre

    def slots(self, seed: int, epoch: int) -> np.ndarray:
        """(length,) region index of every sample of the epoch."""
        if self._slots is None or self._slots[0] != (seed, epoch):
            rng = np.random.default_rng((seed, epoch, 0, 2))
            order = rng.permutation(len(self.regions))
            edges = np.cumsum(self.area[order])
            points = (rng.random() + np.arange(self.length)) / self.length * edges[-1]
            found = np.minimum(np.searchsorted(edges, points, side="right"), len(order) - 1)
            self._slots = ((seed, epoch), order[found])
        return self._slots[1]

    def _near_label(
        self, region: Region, labelled: np.ndarray, rng: np.random.Generator
    ) -> tuple[Window, tuple[int, int]]:
        """A window that shows a labelled pixel anywhere near its middle, and the pixel in its middle."""
        row, col = labelled[rng.integers(len(labelled))].tolist()
        # a quarter of the side: the label is still seen after zooming in twice
        row += int(rng.integers(-(self.size[0] // 4), self.size[0] // 4 + 1))
        col += int(rng.integers(-(self.size[1] // 4), self.size[1] // 4 + 1))
        window = self._around(region, row, col)
        return window, (row - window.row, col - window.col)

    def _enough_valid(self, region: Region, rng: np.random.Generator) -> Window:
        """The first of TRIES random windows with min_valid valid pixels, else the best of them.

        The second half of the tries is centred on valid ground, for scenes that are mostly nodata.
        """
        best, best_share = None, -1.0
        for attempt in range(TRIES):
            if attempt < TRIES // 2 or region.footprint is None:
                window = self._anywhere(region, rng)
            else:
                window = self._around(region, *_valid_pixel(region, rng))
            share = region.valid_share(window)
            if share > best_share:
                best, best_share = window, share
            if share >= self.min_valid and share > 0:
                break
        assert best is not None
        return best

    def _anywhere(self, region: Region, rng: np.random.Generator) -> Window:
        row, height = _random_span(region.window.row, region.window.height, self.size[0], rng)
        col, width = _random_span(region.window.col, region.window.width, self.size[1], rng)
        return Window(row, col, height, width)

    def _around(self, region: Region, row: int, col: int) -> Window:
        ground = region.ground or region.window
        top, height = _centred_span(ground.row, ground.height, self.size[0], row)
        left, width = _centred_span(ground.col, ground.width, self.size[1], col)
        return Window(top, left, height, width)


class ObjectPlan(WindowPlan):
    """Draws training windows for detection: most around an object, the others on ground without any.

    An object lies anywhere in its window, wholly if it is small enough. All objects are drawn equally often.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        boxes: Sequence[np.ndarray],
        *,
        size: tuple[int, int],
        crop: tuple[int, int],
        largest_zoom: float,
        length: int,
        min_valid: float,
        empty_share: float,
    ) -> None:
        """boxes: (N, 4) float x1, y1, x2, y2 of each region's objects, in pixels of the scene.
        size: (H, W) of a window; crop: of what a sample shows of it at zoom 1.
        empty_share: share of samples without an object, as far as there is such ground: of a few crops
        drawn the one with the fewest."""
        super().__init__(regions, size=size, length=length, min_valid=min_valid)
        self.boxes = [each.reshape(-1, 4) for each in boxes]
        self.owner = np.repeat(np.arange(len(boxes)), [len(each) for each in self.boxes])
        self.all_boxes = np.concatenate([*self.boxes, np.empty((0, 4))])
        self.crop = crop
        self.largest_zoom = largest_zoom
        self.empty_share = empty_share

    def draw(self, key: SampleKey, rng: np.random.Generator) -> tuple[Item, tuple[int, int] | None]:
        """See `WindowPlan.draw`."""
        if len(self.all_boxes) and rng.random() >= self.empty_share:
            chosen = int(rng.integers(len(self.all_boxes)))
            region = self.regions[self.owner[chosen]]
            left, top, right, bottom = self.all_boxes[chosen].tolist()
            row = _near_middle(top, bottom, int(self.crop[0] / self.largest_zoom), rng)
            col = _near_middle(left, right, int(self.crop[1] / self.largest_zoom), rng)
            window = self._around(region, row, col)
            return _item(region, window), (row - window.row, col - window.col)
        return self._emptiest(int(self.slots(key.seed, key.epoch)[key.index]), rng)

    def _emptiest(self, index: int, rng: np.random.Generator) -> tuple[Item, tuple[int, int]]:
        """Of TRIES random crops of a region the first without an object even when zoomed out, else the one
        with the fewest."""
        region, found, fewest = self.regions[index], None, (len(self.all_boxes) + 1, 0)
        for _ in range(TRIES):
            window = self._enough_valid(region, rng)
            row, height = _random_span(window.row, window.height, self.crop[0], rng)
            col, width = _random_span(window.col, window.width, self.crop[1], rng)
            middle = row + height // 2, col + width // 2
            around = self._around(region, *middle)
            shown = (Window(row, col, height, width), around)
            crop, wide = (int(meeting(self.boxes[index], frame_of(each)).sum()) for each in shown)
            if (crop, wide) < fewest:
                found = _item(region, around), (middle[0] - around.row, middle[1] - around.col)
                fewest = crop, wide
            if wide == 0:
                break
        assert found is not None
        return found


def samples_to_cover(regions: Sequence[Region], chip: tuple[int, int]) -> int:
    """Samples that cover the valid ground once, at zoom 1, and every region once."""
    area = sum(region.area for region in regions)
    return max(len(regions), int(np.ceil(area / (chip[0] * chip[1]))))


def _item(region: Region, window: Window) -> Item:
    """The region's item with a window."""
    labelled = None if region.ground is None else region.window
    name = f"{region.item.id}@{window.row},{window.col}"
    return replace(region.item, id=name, window=window, labelled=labelled)


def _near_middle(low: float, high: float, size: int, rng: np.random.Generator) -> int:
    """A position on which a span of `size` is centred so that it still holds all of low..high."""
    slack = max(0, int((size - (high - low)) / 2) - 1)
    return int((low + high) / 2) + int(rng.integers(-slack, slack + 1))


def _valid_pixel(region: Region, rng: np.random.Generator) -> tuple[int, int]:
    """A random pixel of a random valid cell of the footprint."""
    assert region.footprint is not None
    cells = np.argwhere(region.footprint)
    if len(cells) == 0:
        return region.window.row, region.window.col
    share = (cells[rng.integers(len(cells))] + rng.random(2)) / region.footprint.shape
    row, col = (share * (region.window.height, region.window.width)).astype(int)
    return region.window.row + int(row), region.window.col + int(col)


def _random_span(start: int, length: int, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """A random span of `size` inside start..start+length, which is taken whole where it is shorter."""
    size = min(size, length)
    return start + int(rng.integers(length - size + 1)), size


def _centred_span(start: int, length: int, size: int, centre: int) -> tuple[int, int]:
    """The span of `size` nearest to `centre` inside start..start+length."""
    size = min(size, length)
    return min(max(centre - size // 2, start), start + length - size), size
