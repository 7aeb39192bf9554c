"""Leaks: what splits have in common that lets a score look better than the model is.

A split that is given (folders, lists) may leak, and people have their reasons; so these are findings with
numbers, not errors. Names and ground are looked at each time; pixels and labels only if asked.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from datamodules.batch import IGNORE, Item, Window
from datamodules.datamodule import DataModule, SegmentationDataModule
from datamodules.errors import DataError
from datamodules.lookalikes import SIDE, Looks, find_identical, find_twins, look_at, shrink
from datamodules.overlaps import LOOKED_AT, Points, ValidGround, holds, lattice
from datamodules.scenes import READ_SIDE, SceneModule, SceneReader
from datamodules.tiling import spread

Kind = Literal["ground", "near", "drive", "neighbour", "identical", "duplicate", "contradiction"]

PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))
"""The first is learned from (or chosen by), the second is judged by."""
NEIGHBOURS = 30
"""Frame numbers up to which two frames of a drive are neighbours: a second of most cameras."""
SHOWN = 5
"""Examples at most of a finding."""
CONTRADICTING = 0.05
"""Share of common labelled ground from which on labels contradict: less may be edges that are drawn otherwise."""
METRES_ERROR = 0.01
"""Share by which a distance may be short and still be a chip: blocks of ground are exact to 0.6 %."""
COMPARED = 20
"""Scenes at most with whose labels one scene's are compared."""
LARGEST_READ = 2048
"""Side in pixels of what is read at once of a scene that is much finer than the other."""

_LAST_NUMBER = re.compile(r"^(.*?)(\d+)(\D*)$")


@dataclass(frozen=True)
class Example:
    """Two samples that have something in common."""

    first: str
    """Id of an item of the first split, as `Item.id`..."""
    second: str
    """...and of the second."""
    note: str = ""
    """What and how much, in words."""


@dataclass(frozen=True)
class Leak:
    """Something that two splits have in common."""

    kind: Kind
    """'ground': the same ground; 'near': ground less than a chip away; 'drive': frames of one drive; 'neighbour':
    frames of one drive up to NEIGHBOURS numbers apart; 'identical': files with the same content; 'duplicate':
    pictures that look the same; 'contradiction': labels that disagree about the same ground."""
    splits: tuple[str, str]
    """Of 'contradiction' they may be the same one."""
    count: int
    """Items of the second split that it is about..."""
    total: int
    """...of so many."""
    examples: tuple[Example, ...]
    """A few of them."""
    text: str
    """A sentence with the numbers."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def find_leaks(module: DataModule, *, pictures: bool = False, labels: bool = False) -> list[Leak]:
    """What the splits of a data module, of any task and kind, have in common.

    pictures: also looks into the images (identical, duplicate), which takes as long as reading them once.
    labels: also into the label maps of common ground (contradiction).
    """
    if not module.items:
        module.scan()
    leaks = find_shared_drives(module.items)
    ground = _Ground(module) if isinstance(module, SceneModule) else None
    if ground is not None:
        leaks += ground.find_shared_ground()
    if pictures:
        leaks += find_same_pictures(module)
    if labels and ground is not None and isinstance(module, SegmentationDataModule):
        leaks += ground.find_contradictions()
    return leaks


def describe(leaks: Sequence[Leak]) -> list[str]:
    """A line for each pair of splits that leaks, and one for each in which labels contradict."""
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    lines = []
    for leak in leaks:
        if leak.kind == "contradiction":
            lines.append(leak.text)
        else:
            texts[leak.splits].append(leak.text)
    return [
        f"{first} leaks into {second}: {'; '.join(found)}" for (first, second), found in texts.items()
    ] + lines


# -------------------------------------------------------------------------------------- drives


def find_shared_drives(splits: Mapping[str, Sequence[Item]]) -> list[Leak]:
    """Drives in two splits, and how near their frames come; of items whose group isn't just themselves."""
    leaks = []
    for first, second in PAIRS:
        groups = {split: _by_drive(splits.get(split, ())) for split in (first, second)}
        shared = sorted(groups[first].keys() & groups[second].keys())
        if not shared:
            continue
        total = len(splits[second])
        leaks.append(_describe_drives((first, second), groups[first], groups[second], shared, total))
        near = _find_neighbours(groups[first], groups[second], shared)
        if near:
            text = f"{len(near)} of {total} {second} frames lie within {NEIGHBOURS} frame numbers of a {first} frame"
            leaks.append(Leak("neighbour", (first, second), len(near), total, tuple(near[:SHOWN]), text))
    return leaks


def _by_drive(items: Iterable[Item]) -> dict[str, list[Item]]:
    drives: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item.window is None and item.group != item.id:
            drives[item.group].append(item)
    return drives


def _describe_drives(
    splits: tuple[str, str],
    first: dict[str, list[Item]],
    second: dict[str, list[Item]],
    shared: Sequence[str],
    total: int,
) -> Leak:
    count = sum(len(second[drive]) for drive in shared)
    largest = sorted(shared, key=lambda drive: -len(second[drive]))
    listed = ", ".join(
        f"{drive}: {len(first[drive])} {splits[0]}, {len(second[drive])} {splits[1]}" for drive in largest[:3]
    )
    more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
    verb = "is" if count == 1 else "are"
    text = (
        f"{count} of {total} {splits[1]} frames {verb} of drives that {splits[0]} has, too ({listed}{more})"
    )
    examples = [Example(first[drive][0].id, second[drive][0].id, drive) for drive in largest[:SHOWN]]
    return Leak("drive", splits, count, total, tuple(examples), text)


def _find_neighbours(
    first: dict[str, list[Item]], second: dict[str, list[Item]], shared: Sequence[str]
) -> list[Example]:
    """For each frame of the second split with a neighbour in the first, the nearest; nearest first."""
    found: list[tuple[int, Example]] = []
    for drive in shared:
        learned, judged = _by_number(first[drive]), _by_number(second[drive])
        for sequence in judged.keys() & learned.keys():
            numbers = np.array(sorted(learned[sequence]))
            for number, item in judged[sequence].items():
                place = int(np.searchsorted(numbers, number))
                around = numbers[max(place - 1, 0) : place + 1]
                nearest = int(around[np.abs(around - number).argmin()])
                apart = abs(nearest - number)
                if apart <= NEIGHBOURS:
                    other = learned[sequence][nearest]
                    found.append((apart, Example(other.id, item.id, f"{apart} frame numbers apart")))
    return [example for _, example in sorted(found, key=lambda pair: (pair[0], pair[1].second))]


def _by_number(items: Sequence[Item]) -> dict[tuple[str, str], dict[int, Item]]:
    """By what stands around the last number of a file's name, then by that number."""
    found: dict[tuple[str, str], dict[int, Item]] = defaultdict(dict)
    for item in items:
        match = _LAST_NUMBER.match(Path(item.image).stem)
        if match is not None and len(match[2]) < 19:  # a hash is no number
            found[match[1].rstrip("0123456789"), match[3]][int(match[2])] = item
    return found


# ------------------------------------------------------------------------------------ pictures


def find_same_pictures(module: DataModule) -> list[Leak]:
    """Files with the same content, and pictures that look the same; see `datamodules.lookalikes`."""
    splits = module.items
    owners = {item.image: split for split, items in splits.items() for item in items}
    cut = {item.image for split, items in splits.items() for item in items if owners[item.image] != split}
    # what is cut between splits is a matter of ground
    files = {
        split: {item.image: item.id for item in items if item.image not in cut}
        for split, items in splits.items()
    }
    looks = {split: look_at_files(module, list(paths)) for split, paths in files.items()}
    same = find_identical([path for paths in files.values() for path in paths])
    leaks = []
    for pair in PAIRS:
        known = all(files.get(split) for split in pair)
        leaks += _compare_pictures(pair, files, looks, same, total=len(splits[pair[1]])) if known else []
    return leaks


def _compare_pictures(
    pair: tuple[str, str],
    files: Mapping[str, Mapping[str, str]],
    looks: Mapping[str, Looks],
    same: Sequence[Sequence[str]],
    *,
    total: int,
) -> list[Leak]:
    first, second = pair
    learned, judged = files[first], files[second]
    identical = []
    for group in same:
        twin = next((path for path in group if path in learned), None)
        identical += [Example(learned[twin], judged[path]) for path in group if twin and path in judged]
    known = {example.second for example in identical}
    names, others = list(judged.values()), list(learned.values())
    twins = find_twins(looks[second], looks[first]).tolist()
    alike = [Example(others[j], names[i]) for i, j in twins if names[i] not in known]
    leaks = []
    if identical:
        text = f"{len(identical)} of {total} {second} files have the same content as a {first} file"
        leaks.append(Leak("identical", pair, len(identical), total, tuple(identical[:SHOWN]), text))
    if alike:
        text = f"{len(alike)} of {total} {second} pictures look like a {first} picture"
        leaks.append(Leak("duplicate", pair, len(alike), total, tuple(alike[:SHOWN]), text))
    return leaks


def look_at_files(module: DataModule, paths: Sequence[str]) -> Looks:
    """What files of a module look like; those that can't be read, of which others complain, are like no other."""
    if isinstance(module, SceneModule):
        reader = module.reader()
        return look_at([_scene_thumbnail(reader, path) for path in paths])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return look_at(list(pool.map(_frame_thumbnail, paths)))


def _frame_thumbnail(path: str) -> np.ndarray | None:
    """Decoded at an eighth of its size where that is enough."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        return None
    picture = cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_8) if len(data) else None
    if picture is not None and min(picture.shape) < SIDE:
        picture = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    return None if picture is None else shrink(picture)


def _scene_thumbnail(reader: SceneReader, path: str) -> np.ndarray | None:
    """Grey levels are stretched to those of 8 bits."""
    try:
        raster = reader.read_thumbnail(path, side=2 * SIDE)
    except DataError:
        return None
    if not raster.valid.any():
        return None
    grey = raster.values.mean(axis=0, dtype=np.float32)
    grey[~raster.valid] = grey[raster.valid].mean()
    brightest = float(np.quantile(np.abs(grey), 0.98))
    return shrink(grey * (255 / brightest) if brightest and raster.values.dtype != np.uint8 else grey)


# -------------------------------------------------------------------------------------- ground


class _Ground:
    """The items of a module of scenes that have a CRS, and what they show of each other's ground."""

    def __init__(self, module: SceneModule) -> None:
        self.reader = module.reader()
        self.chip = float(max(module.chip))
        self.totals = {split: len(items) for split, items in module.items.items()}
        pairs = [(split, item) for split, items in module.items.items() for item in items]
        grids = [self.reader.grid(item) for _, item in pairs]
        known = [i for i, grid in enumerate(grids) if grid.crs is not None]
        self.owners = [pairs[i][0] for i in known]
        self.items = [pairs[i][1] for i in known]
        self.ground = ValidGround(
            [grids[i] for i in known], lambda index: self.reader.read_footprint(self.items[index])
        )

    def find_shared_ground(self) -> list[Leak]:
        """Items that show the same ground, or ground less than a chip away."""
        owned = {split: [i for i, owner in enumerate(self.owners) if owner == split] for split in self.totals}
        return [
            leak
            for pair in PAIRS
            if all(owned.get(split) for split in pair)
            for leak in self._compare(pair, owned[pair[0]], owned[pair[1]])
        ]

    def _compare(self, pair: tuple[str, str], learned: Sequence[int], judged: Sequence[int]) -> list[Leak]:
        pixel = self.ground.pixel
        shared: list[Example] = []
        near: list[Example] = []
        for i, candidates in self.ground.near(judged, learned, margin=self.chip * float(np.nanmax(pixel))):
            found = next((j for j in candidates if self.ground.share(j, i)), None)
            if found is not None:
                shared.append(Example(self.items[found].id, self.items[i].id))
                continue
            margins = ((j, self.chip * max(pixel[i], pixel[j]) / pixel[i]) for j in candidates)
            close = next((j for j, margin in margins if self._lie_within(margin, j, i)), None)
            if close is not None:
                near.append(Example(self.items[close].id, self.items[i].id))
        (first, second), total = pair, self.totals[pair[1]]
        leaks = []
        if shared:
            text = f"{len(shared)} of {total} {second} samples show ground that {first} shows, too"
            leaks.append(Leak("ground", pair, len(shared), total, tuple(shared[:SHOWN]), text))
        if near:
            chip = f"{self.chip:g} pixels"
            text = (
                f"{len(near)} of {total} {second} samples lie less than a chip ({chip}) from {first} ground"
            )
            leaks.append(Leak("near", pair, len(near), total, tuple(near[:SHOWN]), text))
        return leaks

    def _lie_within(self, margin: float, one: int, other: int) -> bool:
        """Whether `one` is less than `margin` pixels away; a rectangle that is grown reaches farther at its corners."""
        if self.ground.shared(one, other, margin=margin) is None:
            return False
        return self.ground.distance(one, other) < margin * (1 - METRES_ERROR)

    # ---------------------------------------------------------------- labels

    def find_contradictions(self) -> list[Leak]:
        """Scenes whose labels disagree about their common ground, in one split or in two."""
        found: dict[tuple[str, str], dict[int, list[Example]]] = defaultdict(lambda: defaultdict(list))
        worst: dict[tuple[str, str], float] = defaultdict(float)
        everything = range(len(self.items))
        for i, candidates in self.ground.near(everything, everything):
            others = [j for j in candidates if j < i and self.items[j].image != self.items[i].image]
            for j in sorted(others)[:COMPARED]:
                same, labelled = self._compare_labels(j, i)
                share = 1 - same / labelled if labelled else 0.0
                if share >= CONTRADICTING:
                    pair = self.owners[j], self.owners[i]
                    note = f"{share:.0%} of {labelled} common pixels looked at"
                    found[pair][i].append(Example(self.items[j].id, self.items[i].id, note))
                    worst[pair] = max(worst[pair], share)
        return [self._describe_contradictions(pair, by_item, worst[pair]) for pair, by_item in found.items()]

    def _describe_contradictions(
        self, pair: tuple[str, str], by_item: Mapping[int, Sequence[Example]], worst: float
    ) -> Leak:
        first, second = pair
        examples = [example for each in by_item.values() for example in each]
        text = (
            f"labels of {len(by_item)} of {self.totals[second]} {second} samples contradict those of {first} "
            f"about the same ground (up to {worst:.0%} of it, {examples[0].first} and {examples[0].second})"
        )
        return Leak("contradiction", pair, len(by_item), self.totals[second], tuple(examples[:SHOWN]), text)

    def _compare_labels(self, one: int, other: int) -> tuple[int, int]:
        """Of the ground that is labelled in both, looked at here and there: points that agree, and points."""
        polygon = self.ground.shared(one, other)
        if polygon is None:
            return 0, 0
        (left, top), (right, bottom) = np.floor(polygon.min(axis=0)), np.ceil(polygon.max(axis=0))
        finer = self.ground.pixel[other] / self.ground.pixel[one]
        side = int(max(1, min(READ_SIDE // 2, LARGEST_READ / max(finer, 1))))
        same = labelled = 0
        for window in spread(int(bottom - top), int(right - left), size=side):
            start = np.array([left + window.col, top + window.row])
            box = np.stack([start, start + np.array([window.width, window.height])])
            points = lattice(box, count=LOOKED_AT)
            there = self.ground.to_other(points, other, one)
            inside = holds(np.ones((1, 1), np.bool_), there, self.ground.grids[one])
            if inside.any():
                classes = [self._classes(i, at[inside]) for i, at in ((one, there), (other, points))]
                known = (classes[0] != IGNORE) & (classes[1] != IGNORE)
                labelled += int(known.sum())
                same += int((known & (classes[0] == classes[1])).sum())
        return same, labelled

    def _classes(self, index: int, points: Points) -> np.ndarray:
        """Of the pixels of an item that hold points (n, 2) x, y: (n,) uint8 class index or 255."""
        cols, rows = np.floor(points).astype(np.int64).T
        item = self.items[index]
        corner = (0, 0) if item.window is None else (item.window.row, item.window.col)
        top, left = int(rows.min()), int(cols.min())
        window = Window(
            corner[0] + top, corner[1] + left, int(rows.max()) - top + 1, int(cols.max()) - left + 1
        )
        return np.asarray(self.reader.read_mask(replace(item, window=window))[rows - top, cols - left])
