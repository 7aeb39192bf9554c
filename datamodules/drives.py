"""Drives: what data modules of camera frames share for every task: folders, drives, splits, a look into each file."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from datamodules.batch import Item
from datamodules.datamodule import DataModule
from datamodules.datasets import Reader
from datamodules.errors import DataError
from datamodules.frames import FrameInspector
from datamodules.layouts import Listing
from datamodules.sizes import FrameCheck
from datamodules.splitfiles import split_by_file
from datamodules.splits import (
    DriveSplit,
    FileSplit,
    FolderSplit,
    ListSplit,
    PlaceSplit,
    Split,
    Splits,
    describe_missing,
    group_by_drive,
    group_by_table,
    split_by_folder,
    split_by_group,
    split_by_list,
)
from datamodules.statistics import cached, fingerprint

SHOWN = 5
"""Files at most that one message names."""


class DriveModule(DataModule):
    """The part of a data module that finds frames, groups them by drive and looks into each.

    A subclass sets the attributes and says what lies on disk (`_listing`).
    """

    split: Split
    drive_pattern: str | None
    """Regular expression on a frame's stem whose first group is the drive."""
    own_pattern: str | None
    """The layout's; None: every frame is its own group."""
    label_word: str
    """What a frame's label is called in messages."""
    has_folders: bool
    """Whether the layout has a folder for each split."""

    @abstractmethod
    def _listing(self, folder: str | None) -> Listing:
        """Frames and their labels; folder: that of a split, None: all."""

    def foreign(
        self, paths: Sequence[str]
    ) -> tuple[list[Item], Callable[[], FrameInspector], list[tuple[str, str]]]:
        """See the base."""
        items = [Item(id=path, group=path, image=path) for path in paths]
        return items, partial(FrameInspector, None), []

    def _split(self) -> Splits:
        split, self.found = self.split, []
        if isinstance(split, PlaceSplit):
            raise DataError(
                "split by place needs georeferenced scenes; camera frames: folder, list, scene, drive"
            )
        if isinstance(split, FolderSplit):
            folders = self._scan_folders(split)
            return split_by_folder(folders, val_fraction=split.val_fraction, seed=self.seed)
        items = self._accept(self._listing(None))
        if isinstance(split, ListSplit):
            return split_by_list(items, root=self.root, train=split.train, val=split.val, test=split.test)
        if isinstance(split, FileSplit):
            return split_by_file(items, root=self.root, path=split.path, size=None)
        groups = [replace(item, group=item.id) for item in items]
        if isinstance(split, DriveSplit):
            groups = self._group_by_split(items, split)
        count = self._class_amounts if split.stratify else None
        drawn = split_by_group(groups, val=split.val, test=split.test, seed=split.seed, count=count)
        if count is not None:
            self.notes += describe_missing(drawn, count, self.classes.names)
        return drawn if isinstance(split, DriveSplit) else {name: self._group(drawn[name]) for name in drawn}

    def _group_by_split(self, items: Sequence[Item], split: DriveSplit) -> list[Item]:
        if split.table is None:
            return group_by_drive(items, pattern=self._split_pattern(split))
        return group_by_table(items, root=self.root, table=split.table, column=split.column)

    def _split_pattern(self, split: DriveSplit) -> str:
        """The module's drive pattern, unless the split has one of its own."""
        if self.drive_pattern is None:
            return split.pattern
        if split.pattern not in (DriveSplit.pattern, self.drive_pattern):
            raise DataError(
                f"two patterns for drives: {self.drive_pattern!r} and the split's {split.pattern!r}"
            )
        return self.drive_pattern

    def _scan_folders(self, split: FolderSplit) -> Splits:
        if not self.has_folders:
            raise DataError(
                f"{self.root}: this layout has no split folders ('pairs': no {{split}} in `images`); "
                "split by scene, list or drive"
            )
        folders = {"train": split.train, "val": split.val, "test": split.test}
        found: Splits = {}
        for name, folder in folders.items():
            if folder is None:
                continue
            listing = self._listing(folder)
            if listing.items or listing.unmatched:
                found[name] = self._accept(listing)
            else:
                self._miss_folder(name, folder)
        return found

    def _miss_folder(self, name: str, folder: str) -> None:
        """A split's folder has no images: a note if it bears the usual name, an error if it was chosen."""
        if name != "train" and folder == getattr(FolderSplit, name):
            self.notes.append(f"there is no folder '{folder}' with images: the {name} split is empty")
            return
        everything = self._listing(None)
        parts = sorted({part for item in everything.items for part in Path(item.id).parent.parts})
        raise DataError(
            f"{self.root}: the {name} split's folder '{folder}' has no images; "
            f"folders with frames: {', '.join(parts) or 'none'}{nearest(folder, parts)}"
        )

    def _accept(self, listing: Listing) -> list[Item]:
        """The items of a listing, grouped by drive; files without a partner stop or are noted."""
        self._accepted.append(listing)
        if not listing.items and not listing.unmatched:
            raise DataError(f"{self.root}: no images found")
        if listing.unmatched and self.on_error == "stop":
            raise DataError(_describe_unmatched(self.root, listing, self.label_word))
        self.unmatched += [path for path in listing.unmatched if path not in self.unmatched]
        items = self._group(listing.items)
        self.found += items
        return items

    def _group(self, items: Sequence[Item]) -> list[Item]:
        pattern = self.drive_pattern or self.own_pattern
        return list(items) if pattern is None else group_by_drive(items, pattern=pattern)

    def _check_frames(
        self, items: Sequence[Item], reader: Reader, *, facts: Mapping[str, object] | None = None
    ) -> dict[str, FrameCheck]:
        """What `reader` finds in every frame, by path. Done again only when files, classes or facts change."""
        own = {"classes": self.classes.specs, "ignore": self.classes.ignore}
        key = fingerprint(items, root=self.root, facts={**own, **(facts or {})})

        def build() -> list[FrameCheck]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return list(pool.map(partial(_check, reader), items))

        checks = cached(
            self._cache_path(f"frames-{key[:16]}.json"),
            build,
            load=lambda file: [FrameCheck(**row) for row in json.load(file)],
            save=lambda value, file: file.write(json.dumps([vars(check) for check in value]).encode()),
        )
        return {item.image: check for item, check in zip(items, checks, strict=True)}

    def _take_usable(self, splits: Splits, problems: Mapping[str, str]) -> None:
        """Frames with problems (by path) stop, or are left out and named."""
        count = sum(len(items) for items in splits.values())
        if problems and self.on_error == "stop":
            raise DataError(
                f"{self.root}: {len(problems)} of {count} frames can't be used:{lines(problems.values())}"
            )
        self.skipped = list(problems.items())
        self.items = {
            name: [item for item in items if item.image not in problems] for name, items in splits.items()
        }
        if not self.items["train"]:
            raise DataError(f"{self.root}: no training frame can be used{lines(problems.values())}")


def _check(reader: Reader, item: Item) -> FrameCheck:
    try:
        raw = reader.read(item)
    except DataError as error:
        return FrameCheck(0, 0, "", str(error))
    height, width = raw.mask.shape
    return FrameCheck(height, width, str(raw.values.dtype), None)


def _describe_unmatched(root: Path, listing: Listing, word: str) -> str:
    images, labels = listing.images_without_label, listing.labels_without_image
    text = f"{root}: {len(images)} images have no {word}, {len(labels)} {word}s have no image"
    text += f"; {len(listing.items)} pairs have the same name.{lines(images)}{lines(labels)}\n"
    if not listing.items and not labels:
        return text + f"If this split has no {word}s, set its folder to null"
    return text + "on_error: skip leaves them out"


def nearest(name: str, names: Iterable[str]) -> str:
    found = get_close_matches(name, names, n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


def lines(texts: Iterable[str]) -> str:
    """The first few texts, each on a line of its own."""
    every = list(texts)
    shown = [f"\n  {text}" for text in every[:SHOWN]]
    return "".join(shown) + (f"\n  and {len(every) - SHOWN} more" if len(every) > SHOWN else "")
