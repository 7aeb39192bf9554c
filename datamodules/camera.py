"""Camera frames: a data module for driving pictures with masks, in the field's usual folder layouts."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from datamodules.augment import Augment
from datamodules.batch import Item, Sample, Window
from datamodules.classes import Classes, ClassSpec, Legend, Value
from datamodules.datamodule import SegmentationDataModule
from datamodules.datasets import EvaluationDataset
from datamodules.errors import DataError
from datamodules.frames import FrameReader
from datamodules.layouts import Listing, bdd100k, camvid, cityscapes, kitti, pairs
from datamodules.sampling import Region
from datamodules.splits import (
    DriveSplit,
    FolderSplit,
    ListSplit,
    PlaceSplit,
    SceneSplit,
    Split,
    Splits,
    group_by_drive,
    split_by_drive,
    split_by_folder,
    split_by_list,
    split_by_scene,
)
from datamodules.statistics import cached, fingerprint

LayoutName = Literal["pairs", "camvid", "cityscapes", "bdd100k", "kitti"]
LabelForm = Literal["index", "colour", "polygons"]

SHOWN = 5
"""Files at most that one message names."""


@dataclass(frozen=True)
class Layout:
    """What the data module knows of a layout before it looks at the disk."""

    scan: Callable[[Path, str | None, str], Listing]
    """(root, folder of a split or None for all, label form) -> pairs."""
    legends: Mapping[str, Legend]
    """The layout's own classes for each label form; the first is the usual one."""
    drive_pattern: str | None
    """None: every frame is its own group."""
    has_folders: bool = True


def _scan_camvid(root: Path, folder: str | None, form: str) -> Listing:
    assert form == "index"
    return camvid.scan(root, folder=folder)


def _scan_cityscapes(root: Path, folder: str | None, form: str) -> Listing:
    return cityscapes.scan(root, folder=folder, label_form=form)


def _scan_bdd100k(root: Path, folder: str | None, form: str) -> Listing:
    return bdd100k.scan(root, folder=folder, label_form=form)


def _scan_kitti(root: Path, folder: str | None, form: str) -> Listing:
    assert folder is None
    return kitti.scan(root, label_form=form)


LAYOUTS: dict[str, Layout] = {
    "bdd100k": Layout(_scan_bdd100k, bdd100k.LEGENDS, None),
    "camvid": Layout(_scan_camvid, camvid.LEGENDS, camvid.DRIVE_PATTERN),
    "cityscapes": Layout(_scan_cityscapes, cityscapes.LEGENDS, cityscapes.DRIVE_PATTERN),
    "kitti": Layout(_scan_kitti, kitti.LEGENDS, None, has_folders=False),
}
"""Beside 'pairs', which the user describes."""


@dataclass(frozen=True)
class _ScanPairs:
    images: str
    labels: str

    def __call__(self, root: Path, folder: str | None, form: str) -> Listing:
        return pairs.scan(root, images=self.images, labels=self.labels, folder=folder)


def _choose_layout(name: str, images: str | None, labels: str | None) -> Layout:
    if name == "pairs":
        if images is None or labels is None:
            raise DataError(
                "layout 'pairs' needs `images`, e.g. 'images/{split}/*.png', "
                "and `labels`, e.g. 'masks/{split}/{name}.png'"
            )
        legends = {form: Legend(()) for form in pairs.LABEL_FORMS}
        return Layout(_ScanPairs(images, labels), legends, None, has_folders="{split}" in images)
    if name not in LAYOUTS:
        raise DataError(f"no layout '{name}': there are pairs, {', '.join(LAYOUTS)}{_nearest(name, LAYOUTS)}")
    if images is not None or labels is not None:
        raise DataError(
            f"layout '{name}' knows its own folders: `images` and `labels` are for the layout 'pairs'"
        )
    return LAYOUTS[name]


def _choose_form(name: str, layout: Layout, form: str | None, classes: Sequence[ClassSpec] | None) -> str:
    if form is None:
        values = [value for spec in classes or () for value in spec.values]
        coloured = any(isinstance(value, str) and value.startswith("#") for value in values)
        return "colour" if coloured and "colour" in layout.legends else next(iter(layout.legends))
    if form not in layout.legends:
        raise DataError(f"layout '{name}' has no label form '{form}': there are {', '.join(layout.legends)}")
    return form


def _make_classes(
    name: str, legend: Legend, specs: Sequence[ClassSpec] | None, ignore: Sequence[Value]
) -> Classes:
    if specs is None and not legend.classes:
        raise DataError(f"layout '{name}' has no classes of its own: give each class's name and label values")
    return Classes(legend.classes if specs is None else specs, ignore=ignore, legend=legend)


def _nearest(name: str, names: Iterable[str]) -> str:
    found = get_close_matches(name, names, n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


@dataclass(frozen=True)
class FrameCheck:
    """What a look into a frame and its mask found."""

    height: int
    width: int
    dtype: str
    problem: str | None


class CameraFrameDataModule(SegmentationDataModule):
    """Frames and masks below `root`: whole frames for evaluation, augmented crops for training."""

    def __init__(
        self,
        root: str | Path,
        *,
        layout: LayoutName = "pairs",
        images: str | None = None,
        labels: str | None = None,
        label_form: LabelForm | None = None,
        classes: Sequence[ClassSpec] | None = None,
        ignore: Sequence[Value] = (),
        split: Split = FolderSplit(),  # noqa: B008 (frozen)
        size: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        drive_pattern: str | None = None,
        augment: Augment = Augment("driving", photometric=0.3),  # noqa: B008 (frozen)
        rare_class_crops: float = 0.0,
        normalise: Literal["weights", "data"] = "weights",
        scale: float | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        workers: int = 1,
        on_error: Literal["stop", "skip"] = "stop",
        seed: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        """images, labels: for the layout 'pairs', see `datamodules.layouts.pairs.scan`.
        label_form: how masks are coded; default: the layout's own, for 'pairs' as the classes are given.
        classes, ignore: default: the layout's own.
        size: (height, width) to which frames and masks are resized; default: their own, which must agree.
        crop: (height, width) of training samples; default: size. It replaces the augmentation's own crop.
        drive_pattern: regular expression on a frame's stem whose first group is the drive.
        rare_class_crops: share of training samples centred on a pixel of a class drawn uniformly.
        An epoch has as many samples as there are training frames. The other options are those of the base.
        """
        super().__init__(
            root,
            chip=crop or size,
            augment=replace(augment, crop=crop or size),
            rare_class_crops=rare_class_crops,
            samples_per_epoch=None,
            min_valid=0.0,
            normalise=normalise,
            scale=scale,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            workers=workers,
            on_error=on_error,
            seed=seed,
            cache_dir=cache_dir,
        )
        self.layout = _choose_layout(layout, images, labels)
        self.label_form = _choose_form(layout, self.layout, label_form, classes)
        self.classes = _make_classes(layout, self.layout.legends[self.label_form], classes, ignore)
        if self.classes.are_colours != (self.label_form == "colour"):
            given = "'#rrggbb' colours" if self.classes.are_colours else "pixel values"
            raise DataError(f"label_form is '{self.label_form}', but the classes are given as {given}")
        self.bands = ("red", "green", "blue")
        self.split = split
        self.size = size
        self.crop = crop
        self.drive_pattern = drive_pattern

    def scan(self) -> None:
        """Finds, pairs and splits the frames, and looks into each once (what it finds there is cached)."""
        self.notes, self.unmatched = [], []
        splits = self._split()
        checks = self._check_frames([item for items in splits.values() for item in items])
        problems = {path: check.problem for path, check in checks.items() if check.problem is not None}
        problems |= self._settle_size({path: check for path, check in checks.items() if path not in problems})
        if problems and self.on_error == "stop":
            count = f"{len(problems)} of {len(checks)}"
            raise DataError(f"{self.root}: {count} frames can't be used:{_lines(problems.values())}")
        self.skipped = list(problems.items())
        self.items = {
            name: [item for item in items if item.image not in problems] for name, items in splits.items()
        }
        if not self.items["train"]:
            raise DataError(f"{self.root}: no training frame can be used{_lines(problems.values())}")
        self.samples_per_epoch = len(self.items["train"])
        self._check_crop()

    def prediction_dataset(self, paths: Sequence[str | Path]) -> Dataset[Sample]:
        """Frames without labels, in the order given, at `size` if there is one, else at their own size."""
        items = [Item(id=str(path), group=str(path), image=str(path)) for path in paths]
        for item in items:
            if not Path(item.image).is_file():
                raise DataError(f"{item.image}: no such file")
        reader = self._reader()
        self._check_inputs(items, reader)
        return EvaluationDataset(items, reader=reader, normalisation=self.normalisation)

    # ---------------------------------------------------------------- for the base

    def _reader(self) -> FrameReader:
        return FrameReader(self.classes, self.size)

    def _training_regions(self) -> list[Region]:
        height, width = self.frame_size
        window = Window(0, 0, height, width)
        return [Region(item, window, area=float(height * width)) for item in self.items["train"]]

    def _facts(self) -> dict[str, object]:
        return {"size": self.size, "label_form": self.label_form}

    # ---------------------------------------------------------------- inside

    def _split(self) -> Splits:
        split = self.split
        if isinstance(split, PlaceSplit):
            raise DataError(
                "split by place needs georeferenced scenes; camera frames: folder, list, scene, drive"
            )
        if isinstance(split, FolderSplit):
            folders = self._scan_folders(split)
            return split_by_folder(folders, val_fraction=split.val_fraction, seed=self.seed)
        items = self._accept(self.layout.scan(self.root, None, self.label_form))
        if isinstance(split, ListSplit):
            return split_by_list(items, root=self.root, train=split.train, val=split.val, test=split.test)
        shares = {"val": split.val, "test": split.test}
        if isinstance(split, SceneSplit):
            frames = [replace(item, group=item.id) for item in items]
            drawn = split_by_scene(frames, **shares, seed=split.seed)
            return {name: self._group(drawn[name]) for name in drawn}
        return split_by_drive(items, pattern=self._split_pattern(split), **shares, seed=split.seed)

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
        if not self.layout.has_folders:
            raise DataError(
                f"{self.root}: this layout has no split folders ('pairs': no {{split}} in `images`); "
                "split by scene, list or drive"
            )
        folders = {"train": split.train, "val": split.val, "test": split.test}
        found: Splits = {}
        for name, folder in folders.items():
            if folder is None:
                continue
            listing = self.layout.scan(self.root, folder, self.label_form)
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
        everything = self.layout.scan(self.root, None, self.label_form)
        parts = sorted({part for item in everything.items for part in Path(item.id).parent.parts})
        raise DataError(
            f"{self.root}: the {name} split's folder '{folder}' has no images; "
            f"folders with frames: {', '.join(parts) or 'none'}{_nearest(folder, parts)}"
        )

    def _accept(self, listing: Listing) -> list[Item]:
        """The items of a listing, grouped by drive; files without a partner stop or are noted."""
        if not listing.items and not listing.unmatched:
            raise DataError(f"{self.root}: no images found")
        if listing.unmatched and self.on_error == "stop":
            raise DataError(_describe_unmatched(self.root, listing))
        self.unmatched += [path for path in listing.unmatched if path not in self.unmatched]
        return self._group(listing.items)

    def _group(self, items: Sequence[Item]) -> list[Item]:
        pattern = self.drive_pattern or self.layout.drive_pattern
        return list(items) if pattern is None else group_by_drive(items, pattern=pattern)

    def _check_frames(self, items: Sequence[Item]) -> dict[str, FrameCheck]:
        """Looks into every frame and mask; by item id. Done again only when files or classes change."""
        key = fingerprint(
            items, root=self.root, facts={"classes": self.classes.specs, "ignore": self.classes.ignore}
        )
        reader = FrameReader(self.classes, None)

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

    def _settle_size(self, checks: Mapping[str, FrameCheck]) -> dict[str, str]:
        """Sets what follows from the frames' size and number type; names the frames that differ."""
        if not checks:
            return {}
        sizes = Counter((check.height, check.width) for check in checks.values())
        dtypes = Counter(check.dtype for check in checks.values())
        (own, _), (dtype, _) = sizes.most_common(1)[0], dtypes.most_common(1)[0]
        self.frame_size = self.size or own
        self._note_squeezing(own)
        self.dtype = np.dtype(dtype)
        self.chip = self.crop or self.frame_size
        self.augment = replace(self.augment, crop=self.chip)
        problems = {}
        for path, check in checks.items():
            if self.size is None and (check.height, check.width) != own:
                problems[path] = (
                    f"{path}: {check.height} x {check.width} (height x width), "
                    f"most frames are {own[0]} x {own[1]}; `size` resizes all to one"
                )
            elif check.dtype != dtype:
                problems[path] = f"{path}: its pixels are {check.dtype}, most frames' {dtype}"
        return problems

    def _note_squeezing(self, own: tuple[int, int]) -> None:
        height, width = self.frame_size
        squeeze = own[0] * width / (own[1] * height)
        if abs(squeeze - 1) > 0.02:
            self.notes.append(
                f"frames of {own[0]} x {own[1]} (height x width) become {height} x {width}: "
                f"{squeeze:.2f} times as wide for their height"
            )

    def _check_crop(self) -> None:
        """A crop must fit into the frame, and crops centred on rare classes must be smaller than it."""
        (height, width), (rows, cols) = self.frame_size, self.chip
        if rows > height or cols > width:
            raise DataError(f"crop {rows} x {cols} is larger than the frames, {height} x {width}")
        if self.rare_class_crops and (rows, cols) == (height, width) and self.augment.scale[1] <= 1:
            raise DataError(
                "rare_class_crops does nothing as long as a crop shows the whole frame: "
                "set `crop` below the frames' size, or augment.scale above 1"
            )


def _check(reader: FrameReader, item: Item) -> FrameCheck:
    try:
        raw = reader.read(item)
    except DataError as error:
        return FrameCheck(0, 0, "", str(error))
    height, width = raw.mask.shape
    return FrameCheck(height, width, str(raw.values.dtype), None)


def _describe_unmatched(root: Path, listing: Listing) -> str:
    images, masks = listing.images_without_label, listing.labels_without_image
    text = f"{root}: {len(images)} images have no mask, {len(masks)} masks have no image"
    text += f"; {len(listing.items)} pairs have the same name.{_lines(images)}{_lines(masks)}\n"
    if not listing.items and not masks:
        return text + "If this split has no masks, set its folder to null"
    return text + "on_error: skip leaves them out"


def _lines(texts: Iterable[str]) -> str:
    """The first few texts, each on a line of its own."""
    every = list(texts)
    shown = [f"\n  {text}" for text in every[:SHOWN]]
    return "".join(shown) + (f"\n  and {len(every) - SHOWN} more" if len(every) > SHOWN else "")
