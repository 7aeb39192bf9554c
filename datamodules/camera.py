"""Camera frames: a data module for driving pictures with masks, in the field's usual folder layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from datamodules.augment import Augment
from datamodules.batch import Item, Sample, Window
from datamodules.classes import Classes, ClassSpec, Legend, Value
from datamodules.datamodule import SegmentationDataModule
from datamodules.datasets import EvaluationDataset
from datamodules.drives import DriveModule, nearest
from datamodules.errors import DataError
from datamodules.frames import FrameInspector, FrameReader
from datamodules.layouts import Listing, bdd100k, camvid, cityscapes, kitti, pairs
from datamodules.sampling import Region
from datamodules.sizes import FrameCheck, SizedModule
from datamodules.splits import FolderSplit, Split, Splits

LayoutName = Literal["pairs", "camvid", "cityscapes", "bdd100k", "kitti"]
LabelForm = Literal["index", "colour", "polygons"]


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
        raise DataError(f"no layout '{name}': there are pairs, {', '.join(LAYOUTS)}{nearest(name, LAYOUTS)}")
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


class CameraFrameDataModule(DriveModule, SizedModule, SegmentationDataModule):
    """Frames and masks below `root`: whole frames for evaluation, augmented crops for training."""

    label_word = "mask"

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
        self.has_folders = self.layout.has_folders
        self.own_pattern = self.layout.drive_pattern
        self.split = split
        self.size = size
        self.crop = crop
        self.drive_pattern = drive_pattern

    def scan(self) -> None:
        """Finds, pairs and splits the frames, and looks into each once (what it finds there is cached)."""
        self.notes, self.unmatched = [], []
        splits = self._split()
        frames = [item for items in splits.values() for item in items]
        self.settle(splits, self._check_frames(frames, FrameReader(self.classes, None)))

    def _survey(self) -> Splits:
        return self._split()

    def inspector(self) -> FrameInspector:
        """See the base."""
        return FrameInspector(self.classes)

    def settle(self, splits: Splits, checks: Mapping[str, FrameCheck]) -> None:
        """See the base."""
        problems = {path: check.problem for path, check in checks.items() if check.problem is not None}
        problems |= self._settle_size({path: check for path, check in checks.items() if path not in problems})
        self._take_usable(splits, problems)
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

    def _listing(self, folder: str | None) -> Listing:
        return self.layout.scan(self.root, folder, self.label_form)

    def _reader(self) -> FrameReader:
        return FrameReader(self.classes, self.size)

    def _training_regions(self) -> list[Region]:
        height, width = self.frame_size
        window = Window(0, 0, height, width)
        return [Region(item, window, area=float(height * width)) for item in self.items["train"]]

    def _facts(self) -> dict[str, object]:
        return {"size": self.size, "label_form": self.label_form}

    # ---------------------------------------------------------------- inside

    def _check_crop(self) -> None:
        """Crops centred on rare classes must be smaller than the frame, too."""
        super()._check_crop()
        if self.rare_class_crops and self.chip == self.frame_size and self.augment.scale[1] <= 1:
            raise DataError(
                "rare_class_crops does nothing as long as a crop shows the whole frame: "
                "set `crop` below the frames' size, or augment.scale above 1"
            )


