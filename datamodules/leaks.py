"""Leaks: what splits have in common that lets a score look better than the model is.

A split that is given (folders, lists) may leak, and people have their reasons; so these are findings with
numbers, not errors. Names and ground are looked at each time; pixels and labels only if asked.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.batch import Item
from datamodules.datamodule import DataModule
from datamodules.overlaps import Ground, Points, holds, lattice
from datamodules.scenes import SceneModule

Kind = Literal["ground", "near", "drive", "neighbour", "identical", "duplicate", "contradiction"]

PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))
"""The first is learned from (or chosen by), the second is judged by."""
NEIGHBOURS = 30
"""Frame numbers up to which two frames of a drive are neighbours: a second of most cameras."""
SHOWN = 5
"""Examples at most of a finding."""
LOOKED_AT = 64
"""Points a side at which two scenes' common ground is looked at for valid pixels."""

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


def find_leaks(module: DataModule, *, hashes: bool) -> list[Leak]:
    """What the splits of a data module, of any task and kind, have in common.

    hashes: also looks into the files (identical, duplicate, contradiction), which takes as long as reading
    them once.
    """
    if not module.items:
        module.scan()
    leaks = find_shared_drives(module.items)
    if isinstance(module, SceneModule):
        leaks += _find_shared_ground(module)
    return leaks


def describe(leaks: Sequence[Leak]) -> list[str]:
    """A line for each pair of splits that leaks."""
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for leak in leaks:
        texts[leak.splits].append(leak.text)
    return [f"{first} leaks into {second}: {'; '.join(found)}" for (first, second), found in texts.items()]


# -------------------------------------------------------------------------------------- drives


def find_shared_drives(splits: dict[str, list[Item]]) -> list[Leak]:
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
    text = f"{count} of {total} {splits[1]} frames {verb} of drives that {splits[0]} has, too ({listed}{more})"
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


# -------------------------------------------------------------------------------------- ground


def _find_shared_ground(module: SceneModule) -> list[Leak]:
    """Items with a CRS that show the same ground, or ground less than a chip away."""
    pairs = [(split, item) for split, group in module.items.items() for item in group]
    grids = [module.grid_of(item) for _, item in pairs]
    known = [(*pair, grid) for pair, grid in zip(pairs, grids, strict=True) if grid.crs is not None]
    owned: dict[str, list[int]] = defaultdict(list)
    for i, (split, _, _) in enumerate(known):
        owned[split].append(i)
    look = _Look(module, [item for _, item, _ in known], Ground([grid for _, _, grid in known]))
    chip = float(max(module.chip))
    leaks = []
    for first, second in PAIRS:
        if owned[first] and owned[second]:
            total = len(module.items[second])
            leaks += look.compare((first, second), owned[first], owned[second], chip=chip, total=total)
    return leaks


class _Look:
    """Which items of one split show ground of another one's."""

    def __init__(self, module: SceneModule, items: Sequence[Item], ground: Ground) -> None:
        self.module = module
        self.items = items
        self.ground = ground
        self._footprints: dict[int, np.ndarray] = {}

    def compare(
        self, splits: tuple[str, str], learned: Sequence[int], judged: Sequence[int], *, chip: float, total: int
    ) -> list[Leak]:
        """chip: pixels."""
        pixel = self.ground.pixel
        reach = chip * float(np.nanmax(pixel))
        shared: list[Example] = []
        near: list[Example] = []
        for i, candidates in self.ground.near(judged, learned, margin=reach):
            found = next((j for j in candidates if self._share(j, i)), None)
            if found is not None:
                shared.append(Example(self.items[found].id, self.items[i].id))
                continue
            margins = ((j, chip * max(pixel[i], pixel[j]) / pixel[i]) for j in candidates)
            close = next((j for j, margin in margins if self.ground.shared(j, i, margin=margin) is not None), None)
            if close is not None:
                near.append(Example(self.items[close].id, self.items[i].id))
        first, second = splits
        leaks = []
        if shared:
            text = f"{len(shared)} of {total} {second} samples show ground that {first} shows, too"
            leaks.append(Leak("ground", splits, len(shared), total, tuple(shared[:SHOWN]), text))
        if near:
            text = f"{len(near)} of {total} {second} samples lie less than a chip ({chip:g} pixels) from {first} ground"
            leaks.append(Leak("near", splits, len(near), total, tuple(near[:SHOWN]), text))
        return leaks

    def _share(self, one: int, other: int) -> bool:
        """Whether any ground is valid in both."""
        polygon = self.ground.shared(one, other)
        return polygon is not None and self._any_valid(polygon, one, other)

    def _any_valid(self, polygon: Points, one: int, other: int) -> bool:
        if self._footprint(one).all() and self._footprint(other).all():
            return True
        points = lattice(polygon, count=LOOKED_AT)
        there = self.ground.to_other(points, other, one)
        valid = holds(self._footprint(other), points, self.ground.grids[other])
        return bool((valid & holds(self._footprint(one), there, self.ground.grids[one])).any())

    def _footprint(self, index: int) -> np.ndarray:
        if index not in self._footprints:
            self._footprints[index] = self.module.footprint_of(self.items[index])
        return self._footprints[index]
