"""Splits: which samples train, which choose the model and which judge it, without a leak between them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import ceil, cos, floor, radians
from pathlib import Path
from typing import Protocol

import numpy as np

from datamodules.batch import Item, Window
from datamodules.errors import DataError
from datamodules.layouts.parsing import read_table
from datamodules.stratification import find_missing, stratify

Splits = dict[str, list[Item]]
"""'train', 'val' and 'test'; the last two may be empty."""

METRES_PER_DEGREE = 111_320.0
"""Of latitude, and of longitude at the equator (WGS84, within 0.6 %)."""


@dataclass(frozen=True)
class FolderSplit:
    """The folders say it: what `{split}` in the paths stands for."""

    train: str = "train"
    val: str | None = "val"
    test: str | None = "test"
    val_fraction: float = 0.0
    """Where there is no val folder: share of the training groups that is held out as val."""


@dataclass(frozen=True)
class ListSplit:
    """One text file a split, a sample's path or name a line."""

    train: Path
    val: Path | None = None
    test: Path | None = None


@dataclass(frozen=True)
class SceneSplit:
    """Whole scenes (or frames), drawn at random."""

    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    stratify: bool = False
    """Whether rare classes are shared out first, so that they reach every split."""


@dataclass(frozen=True)
class PlaceSplit:
    """Blocks of ground: no split has ground of another one's block."""

    block: float
    """Side of a block, in metres."""
    gap: float | None = None
    """Metres left out on each side between blocks of different splits; None: half a chip, so that a chip lies
    between the ground of two splits."""
    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    stratify: bool = False


@dataclass(frozen=True)
class DriveSplit:
    """Whole drives, or any other group that the pattern finds in a file's name or a table knows."""

    pattern: str = r"^([^_]+)"
    table: Path | None = None
    """A CSV file whose first column names the samples, in place of a pattern."""
    column: str = "drive"
    """Of the table: what must not be divided."""
    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    stratify: bool = False


@dataclass(frozen=True)
class FileSplit:
    """A table that says it, as `visionsft split` and every run write one; see `datamodules.splitfiles`."""

    path: Path


Split = FolderSplit | ListSplit | SceneSplit | PlaceSplit | DriveSplit | FileSplit

Count = Callable[[Sequence[Item]], np.ndarray]
"""Items -> (N, K): how much of each class they hold, in whatever is counted."""


def split_by_folder(folders: Mapping[str, Sequence[Item]], *, val_fraction: float, seed: int) -> Splits:
    """folders: the items of 'train', 'val' and 'test'. Without val items, training groups are held out."""
    train, val, test = (list(folders.get(name, ())) for name in ("train", "val", "test"))
    if val_fraction and not val:
        held = split_by_group(train, val=val_fraction, test=0.0, seed=seed)
        train, val = held["train"], held["val"]
    splits = {"train": train, "val": val, "test": test}
    refuse_leaks(splits, groups=False)
    return splits


def split_by_scene(
    items: Sequence[Item], *, val: float, test: float, seed: int, count: Count | None = None
) -> Splits:
    """Whole scenes: an item's group is its image, or several that show the same ground."""
    return split_by_group(items, val=val, test=test, seed=seed, count=count)


def split_by_drive(
    items: Sequence[Item], *, pattern: str, val: float, test: float, seed: int, count: Count | None = None
) -> Splits:
    """Whole drives: the group is what the pattern's first group finds in the file's stem."""
    return split_by_group(group_by_drive(items, pattern=pattern), val=val, test=test, seed=seed, count=count)


def group_by_drive(items: Sequence[Item], *, pattern: str) -> list[Item]:
    """The items with the drive in their file's name as group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"drive pattern {pattern!r} is no regular expression: {error}") from error
    if compiled.groups < 1:
        raise DataError(f"drive pattern {pattern!r} has no group: put the drive in (brackets)")
    matches = [compiled.search(Path(item.id).stem) for item in items]
    missed = [item.id for item, match in zip(items, matches, strict=True) if match is None]
    if missed:
        raise DataError(f"drive pattern {pattern!r} finds nothing in {some(missed)}")
    return [replace(item, group=match.group(1)) for item, match in zip(items, matches, strict=True) if match]


def group_by_table(items: Sequence[Item], *, root: Path, table: Path, column: str) -> list[Item]:
    """The items with what a CSV file's `column` says as group; its first column names them as lists do."""
    header, rows = read_table(table)
    if column not in header[1:]:
        near = get_close_matches(column, header[1:], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{table}: no column {column!r} after the first; there are {', '.join(header[1:])}{hint}")
    names, place = name_items(items, root=root), header.index(column)
    groups: dict[str, str] = {}
    for line, fields in rows:
        item = find_named(fields[0], names, f"{table}, line {line}")
        if not fields[place]:
            raise DataError(f"{table}, line {line}: {item.id} has no {column}")
        if groups.setdefault(item.id, fields[place]) != fields[place]:
            raise DataError(f"{table}, line {line}: {item.id} has two of {column}: {groups[item.id]}, {fields[place]}")
    without = [item.id for item in items if item.id not in groups]
    if without:
        raise DataError(f"{table}: says nothing of {len(without)} of {len(items)} samples: {some(without)}")
    return [replace(item, group=groups[item.id]) for item in items]


def name_items(items: Sequence[Item], *, root: Path) -> dict[str, list[Item]]:
    """What an item may be called: its path (below the root or absolute), with or without suffix, name or stem."""
    names: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        path = Path(item.image)
        below = Path(item.id).with_suffix("").as_posix()
        for name in {item.id, below, path.name, path.stem, str(path), str(root.resolve() / item.id)}:
            names[name].append(item)
    return names


def find_named(name: str, names: Mapping[str, Sequence[Item]], place: str) -> Item:
    """The one item of that name, see `name_items`; place: file and line, for the message."""
    matches = names.get(name, ())
    if len(matches) != 1:
        near = [] if matches else get_close_matches(name, names, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        found = some([item.id for item in matches])
        raise DataError(f"{place}: {name!r} must name one sample, but names {len(matches)}: {found}{hint}")
    return matches[0]


def split_by_list(items: Sequence[Item], *, root: Path, train: Path, val: Path | None, test: Path | None) -> Splits:
    """A line is an image's path (below the root or absolute), name or stem; it must mean exactly one item."""
    names = name_items(items, root=root)
    lists = {"train": train, "val": val, "test": test}
    splits = {split: [] if file is None else _listed(file, names) for split, file in lists.items()}
    refuse_leaks(splits, groups=False)
    return splits


def split_by_group(
    items: Sequence[Item], *, val: float, test: float, seed: int, count: Count | None = None
) -> Splits:
    """Whole groups, as near to the shares of items as their sizes allow; the seed decides between equals.

    count: with it, rare classes are shared out first, see `datamodules.stratification`.
    """
    sizes = Counter(item.group for item in items)
    amounts = None if count is None else add_up(items, count(items))
    owner = share_out(dict(sizes), val=val, test=test, seed=seed, amounts=amounts)
    splits: Splits = {"train": [], "val": [], "test": []}
    for item in items:
        splits[owner[item.group]].append(item)
    return splits


def add_up(items: Sequence[Item], amounts: np.ndarray) -> dict[str, np.ndarray]:
    """amounts: (N, K) of the items -> (K,) by group."""
    found: dict[str, np.ndarray] = {}
    for item, amount in zip(items, amounts, strict=True):
        found[item.group] = found.get(item.group, 0) + amount
    return found


def share_out(
    sizes: Mapping[str, float],
    *,
    val: float,
    test: float,
    seed: int,
    amounts: Mapping[str, np.ndarray] | None = None,
) -> dict[str, str]:
    """The split of every group: the largest first, each to the split that lacks most.

    amounts: (K,) of each class by group; with it the rarest class comes first, not the largest group.
    """
    if val + test >= 1:
        raise DataError(f"split: val {val:g} and test {test:g} leave nothing to train on")
    shares = {"train": 1 - val - test, "val": val, "test": test}
    total = sum(sizes.values())
    lack = {split: share * total for split, share in shares.items() if share > 0}
    if len(sizes) < len(lack):
        raise DataError(
            f"split: {len(lack)} splits need as many groups, but there is only {some(list(sizes))}"
        )
    names = sorted(sizes)
    if amounts is not None:
        rows = np.array([amounts[name] for name in names], np.float64)
        parts = {split: share for split, share in shares.items() if share > 0}
        return stratify(names, [sizes[name] for name in names], rows, shares=parts, seed=seed)
    order = np.random.default_rng(seed).permutation(len(names))
    queue = sorted((names[i] for i in order), key=lambda name: -sizes[name])
    owner: dict[str, str] = {}
    for position, name in enumerate(queue):
        empty = [split for split in lack if split not in owner.values()]
        # the last groups are kept for splits that would get none
        choice = empty if len(empty) == len(queue) - position else list(lack)
        owner[name] = max(choice, key=lambda split: lack[split])
        lack[owner[name]] -= sizes[name]
    return owner


def describe_missing(splits: Splits, count: Count, classes: Sequence[str]) -> list[str]:
    """A sentence for each class that occurs, but doesn't reach every split that has samples."""
    items = [item for found in splits.values() for item in found]
    owner = {item.group: split for split, found in splits.items() for item in found}
    amounts = add_up(items, count(items))
    filled = [split for split, found in splits.items() if found]
    missing = find_missing(owner, list(amounts), np.array(list(amounts.values())), splits=filled)
    return [
        f"class '{classes[index]}' is in {holders} of {len(owner)} groups: none of it in {' and '.join(without)}"
        for index, holders, without in missing
    ]


def refuse_leaks(splits: Splits, *, groups: bool) -> None:
    """Stops where a file is in two splits, or (with `groups`) a group.

    Regions of one big scene may be in different splits: then the group is the block of ground.
    """
    owner: dict[tuple[str, Window | None], str] = {}
    group_owner: dict[str, str] = {}
    for split, items in splits.items():
        for item in items:
            if owner.setdefault((item.image, item.window), split) != split:
                raise DataError(f"{item.id} is in two splits: {owner[(item.image, item.window)]} and {split}")
            if groups and group_owner.setdefault(item.group, split) != split:
                other = group_owner[item.group]
                raise DataError(f"group '{item.group}' is in two splits: {other} and {split} ({item.id})")


def group_samples(splits: Splits) -> dict[str, dict[str, int]]:
    """Samples of each group by split; no groups where every sample is a group of its own."""
    counts = {split: Counter(item.group for item in items) for split, items in splits.items()}
    if all(count == 1 for groups in counts.values() for count in groups.values()):
        return {}
    return {split: dict(sorted(groups.items())) for split, groups in counts.items()}


def _listed(file: Path, names: Mapping[str, Sequence[Item]]) -> list[Item]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"split list {file} can't be read: {error}") from error
    found: dict[str, Item] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name:
            item = find_named(name, names, f"{file}, line {number}")
            found[item.id] = item
    if not found:
        raise DataError(f"split list {file} is empty")
    return list(found.values())


def some(names: Sequence[str]) -> str:
    """The first names, and how many there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}" if names else "none"


# ------------------------------------------------------------------------------------ by place


class Grid(Protocol):
    """A scene's pixel grid on the ground."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def to_lonlat(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel corners to degrees (WGS84)."""

    def to_pixel(self, lons: np.ndarray, lats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Degrees to fractional rows, cols."""


@dataclass(frozen=True, order=True)
class Block:
    """A square of ground: bands of latitude, cut into columns that are as wide as the band is high."""

    row: int
    col: int

    @classmethod
    def named(cls, group: str) -> Block:
        """The block of a group that `split_by_place` made."""
        row, col = group.removeprefix("block ").split(",")
        return cls(int(row), int(col))

    def edges(self, side: float) -> tuple[float, float, float, float]:
        """west, south, east, north in degrees; side: metres."""
        high, wide = _degrees(self.row, side)
        return self.col * wide, self.row * high, (self.col + 1) * wide, (self.row + 1) * high


def split_by_place(
    items: Sequence[Item],
    grids: Mapping[str, Grid],
    *,
    block: float,
    gap: float,
    val: float,
    test: float,
    seed: int,
    min_side: int = 1,
    amount: Callable[[Item], float] | None = None,
    count: Count | None = None,
) -> tuple[Splits, float]:
    """Cuts scenes at the edges of blocks of ground; returns the splits and the share of pixels left out.

    Every item's window lies wholly inside its block, so ground is never in two splits, whatever
    the scenes' CRSs and overlaps. Left out are the gaps, slivers at the blocks' edges (which are not
    parallel to the pixels) and pieces narrower than `min_side` pixels.
    An item with a window is cut into the blocks that its window meets. grids: by image path. amount: what
    is shared out between the splits, of an item with a window; default: its pixels; blocks with nothing of
    it are in no split. count: as for `split_by_group`; what lies in a block's margin, which may be left out,
    doesn't count.
    """
    if 2 * gap >= block:
        raise DataError(
            f"split by place: a gap of {gap:g} m on each side leaves nothing of a {block:g} m block"
        )
    cut = _free_meridian([_outline(grids[item.image], item.window) for item in items])
    pieces = [(item, place) for item in items for place in _blocks(grids[item.image], item.window, block, cut)]
    sizes: dict[Block, float] = defaultdict(float)
    for item, place in pieces:
        window = _inside(grids[item.image], place.edges(block))
        if window is not None:
            size = window.height * window.width
            sizes[place] += size if amount is None else amount(replace(item, window=window))
    filled = {_name(place): size for place, size in sorted(sizes.items()) if size}
    if not filled:
        raise DataError(f"split by place: no block of {block:g} m holds a whole pixel of any scene")
    amounts = None if count is None else _count_in_blocks(pieces, grids, filled, block, gap, min_side, count)
    owner = share_out(filled, val=val, test=test, seed=seed, amounts=amounts)
    splits: Splits = {"train": [], "val": [], "test": []}
    kept = 0
    for item, place in pieces:
        if _name(place) not in owner:
            continue
        window = _inside(grids[item.image], _shrunk(place, owner, block, gap))
        if window is None or min(window.height, window.width) < min_side:
            continue
        whole = (window.height, window.width) == (grids[item.image].height, grids[item.image].width)
        name = item.id if whole else f"{item.id}@{window.row},{window.col}"
        splits[owner[_name(place)]].append(replace(item, id=name, group=_name(place), window=window))
        kept += window.height * window.width
    refuse_leaks(splits, groups=True)
    total = sum(grids[item.image].height * grids[item.image].width for item in items)
    return splits, 1 - kept / total


def _count_in_blocks(
    pieces: Sequence[tuple[Item, Block]],
    grids: Mapping[str, Grid],
    filled: Mapping[str, float],
    block: float,
    gap: float,
    min_side: int,
    count: Count,
) -> dict[str, np.ndarray]:
    """(K,) by block: of what is left of it whatever its neighbours' splits are."""
    inner: list[Item] = []
    for item, place in pieces:
        window = _inside(grids[item.image], _drawn_in(place, block, gap, (True,) * 4))
        if _name(place) in filled and window is not None and min(window.height, window.width) >= min_side:
            inner.append(replace(item, group=_name(place), window=window))
    counts = count(inner)
    nothing = np.zeros(counts.shape[1])
    return dict.fromkeys(filled, nothing) | add_up(inner, counts)


def _name(block: Block) -> str:
    return f"block {block.row},{block.col}"


def _degrees(row: int, side: float) -> tuple[float, float]:
    """Height and width in degrees of the blocks in a band of latitude."""
    high = side / METRES_PER_DEGREE
    return high, high / max(cos(radians((row + 0.5) * high)), 0.01)


def _blocks(grid: Grid, window: Window | None, side: float, cut: float) -> list[Block]:
    """All blocks that a window of the scene (None: all of it) may touch; longitudes count from `cut`."""
    west, south, east, north = _outline(grid, window)
    turns = floor((west - cut) / 360)
    west, east = west - 360 * turns, east - 360 * turns
    high, _ = _degrees(0, side)
    found = []
    for row in range(floor(south / high), ceil(north / high)):
        wide = _degrees(row, side)[1]
        found += [Block(row, col) for col in range(floor(west / wide), ceil(east / wide))]
    return found


def _free_meridian(outlines: Sequence[tuple[float, float, float, float]]) -> float:
    """A longitude that no scene lies across: there blocks may end. -180, unless a scene crosses the date line."""
    spans = sorted((west % 360, east - west) for west, _, east, _ in outlines)
    if all(west + 180 - 360 * floor((west + 180) / 360) + length <= 360 for west, length in spans):
        return -180.0
    end = max(west + length for west, length in spans) - 360
    best, widest = 0.0, 0.0
    for west, length in spans:
        if west - end > widest:
            best, widest = (west + end) / 2, west - end
        end = max(end, west + length)
    if not widest:
        raise DataError("split by place: the scenes lie all around the Earth, without a meridian between them")
    return best


def _outline(grid: Grid, window: Window | None) -> tuple[float, float, float, float]:
    """west, south, east, north in degrees, from points along a window's edges (None: the grid's); east may be
    beyond 180."""
    window = window or Window(0, 0, grid.height, grid.width)
    steps = np.linspace(0, 1, 21)
    zero, one = np.zeros_like(steps), np.ones_like(steps)
    rows = window.row + np.concatenate([zero, one, steps, steps]) * window.height
    cols = window.col + np.concatenate([steps, steps, zero, one]) * window.width
    lons, lats = grid.to_lonlat(rows, cols)
    if not (np.isfinite(lons).all() and np.isfinite(lats).all()):
        raise DataError("split by place: a scene's corners have no longitude and latitude; is its CRS right?")
    lons = lons - 360 * np.round((lons - lons[0]) / 360)  # without a jump at the date line
    return float(lons.min()), float(lats.min()), float(lons.max()), float(lats.max())


def _shrunk(
    block: Block, owner: Mapping[str, str], side: float, gap: float
) -> tuple[float, float, float, float]:
    """The block's edges, drawn in by the gap where a neighbour belongs to another split."""
    own = owner[_name(block)]
    west, _, east, _ = block.edges(side)
    wide = gap / side * (east - west)

    def differs(row: int, low: float, up: float) -> bool:
        """Whether a block of the band between two longitudes is in another split."""
        width = _degrees(row, side)[1]
        columns = range(floor(low / width), ceil(up / width))
        return any(owner.get(_name(Block(row, col)), own) != own for col in columns)

    # two blocks above each other are as far apart as `wide` along the edge: so look that far to the sides
    return _drawn_in(
        block,
        side,
        gap,
        (
            differs(block.row, west - wide, west),
            differs(block.row - 1, west - wide, east + wide),
            differs(block.row, east, east + wide),
            differs(block.row + 1, west - wide, east + wide),
        ),
    )


def _drawn_in(
    block: Block, side: float, gap: float, which: tuple[bool, bool, bool, bool]
) -> tuple[float, float, float, float]:
    """The block's edges, of which some (west, south, east, north) are drawn in by the gap."""
    west, south, east, north = block.edges(side)
    high, wide = gap / METRES_PER_DEGREE, gap / side * (east - west)
    return west + wide * which[0], south + high * which[1], east - wide * which[2], north - high * which[3]


def _inside(grid: Grid, edges: tuple[float, float, float, float]) -> Window | None:
    """The largest window that lies wholly between the edges; None if there is no pixel."""
    west, south, east, north = edges
    steps = np.linspace(0, 1, 21)
    lons, lats = west + steps * (east - west), south + steps * (north - south)
    sides = [
        grid.to_pixel(np.full_like(steps, west), lats),
        grid.to_pixel(np.full_like(steps, east), lats),
        grid.to_pixel(lons, np.full_like(steps, south)),
        grid.to_pixel(lons, np.full_like(steps, north)),
    ]
    left, right = _between(sides[0][1], sides[1][1], grid.width)
    top, bottom = _between(sides[2][0], sides[3][0], grid.height)
    if right <= left or bottom <= top:
        return None
    return Window(top, left, bottom - top, right - left)


def _between(one: np.ndarray, other: np.ndarray, length: int) -> tuple[int, int]:
    """Whole pixels between two edges, whichever of them comes first."""
    low, high = sorted((one, other), key=lambda positions: float(positions.mean()))
    return max(0, ceil(low.max() - 1e-6)), min(length, floor(high.min() + 1e-6))
