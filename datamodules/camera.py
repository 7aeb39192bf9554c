"""Camera frames: a data module for driving pictures with masks, in the field's usual folder layouts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from datamodules.augment import Augment
from datamodules.batch import Item, Sample, Window
from datamodules.classes import Classes, ClassSpec, Colour, Legend, Value
from datamodules.datamodule import SegmentationDataModule
from datamodules.datasets import EvaluationDataset
from datamodules.drives import DriveModule
from datamodules.errors import DataError
from datamodules.frame_layouts import FrameLayoutName, FrameOptions, LabelForm, choose_layout
from datamodules.frames import FrameInspector, FrameReader
from datamodules.layouts import Listing, MaskSource, pairs
from datamodules.sampling import Region
from datamodules.sizes import FrameCheck, SizedModule
from datamodules.splits import FolderSplit, Split, Splits


def _make_classes(
    name: str, legend: Legend, specs: Sequence[ClassSpec] | None, ignore: Sequence[Value]
) -> Classes:
    """The classes given, else the layout's own but for those that are to be ignored."""
    if specs is None and not legend.classes:
        raise DataError(f"layout '{name}' has no classes of its own: give each class's name and label values")
    if specs is None:
        specs = [spec for spec in legend.classes if not {spec.name, *spec.values} & {*ignore}]
    return Classes(specs, ignore=ignore, legend=legend)


class CameraFrameDataModule(DriveModule, SizedModule, SegmentationDataModule):
    """Frames and masks below `root`: whole frames for evaluation, augmented crops for training."""

    label_word = "mask"

    def __init__(
        self,
        root: str | Path,
        *,
        layout: FrameLayoutName = "pairs",
        images: str | None = None,
        labels: str | None = None,
        annotations: str | None = None,
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
        """images, labels, annotations: for layouts that take them, see `datamodules.frame_layouts.FrameOptions`.
        label_form: how masks are coded; default: the layout's own, for 'pairs' as the classes are given.
        classes: default: the layout's own, without those that `ignore` names.
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
        self.layout = choose_layout(layout, FrameOptions(images, labels, annotations))
        self.label_form = self.layout.choose_form(label_form, classes)
        self._given = classes, tuple(ignore)
        self._model_names: tuple[str, ...] | None = None
        legend = self.layout.layout.legends[self.label_form]
        if legend is not None:
            self._set_classes(legend)
        self.bands = ("red", "green", "blue")
        self.has_folders = self.layout.has_folders
        self.own_pattern = self.layout.layout.drive_pattern
        self._sources: dict[str, MaskSource] = {}
        self._declared: list[Legend | None] = []
        self._beside: set[str] = set()
        self.split = split
        self.size = size
        self.crop = crop
        self.drive_pattern = drive_pattern

    def scan(self) -> None:
        """Finds, pairs and splits the frames, and looks into each once (what it finds there is cached)."""
        self.notes, self.unmatched = [], []
        splits = self._survey()
        frames = [item for items in splits.values() for item in items]
        reader = FrameReader(self.classes, None, self._sources)
        self.settle(splits, self._check_frames(frames, reader, facts=self._mask_facts()))

    def _survey(self) -> Splits:
        self._sources, self._declared, self._beside = {}, [], set()
        splits = self._split()
        legend = pairs.agreed_legend(self._declared)
        if legend is not None:
            self._set_classes(legend)
        return splits

    def inspector(self) -> FrameInspector:
        """See the base."""
        return FrameInspector(self.classes, self._sources)

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

    def set_class_names(self, names: Sequence[str], colours: Sequence[Colour] | None = None) -> None:
        """The classes of a model, in its order, where label files that needn't be there any more declared them."""
        self._model_names = tuple(names)
        if not hasattr(self, "classes"):
            shown = [None] * len(names) if colours is None else colours
            self.classes = Classes(
                [ClassSpec(name, (k,), colour) for k, (name, colour) in enumerate(zip(names, shown, strict=True))]
            )

    # ---------------------------------------------------------------- for the base

    def _listing(self, folder: str | None) -> Listing:
        listing = self.layout.scan(self.root, folder, self.label_form)
        self._sources.update(listing.sources)
        self._declared.append(listing.declared)
        self._beside.update(listing.beside)
        return listing

    def _reader(self) -> FrameReader:
        return FrameReader(self.classes, self.size, self._sources)

    def _training_regions(self) -> list[Region]:
        height, width = self.frame_size
        window = Window(0, 0, height, width)
        return [Region(item, window, area=float(height * width)) for item in self.items["train"]]

    def _facts(self) -> dict[str, object]:
        return {"size": self.size, **self._mask_facts()}

    # ---------------------------------------------------------------- inside

    def _set_classes(self, legend: Legend) -> None:
        self.classes = _make_classes(self.layout.name, legend, *self._given)
        if self.classes.are_colours != (self.label_form == "colour"):
            given = "'#rrggbb' colours" if self.classes.are_colours else "pixel values"
            raise DataError(f"label_form is '{self.label_form}', but the classes are given as {given}")
        if self._model_names not in (None, self.classes.names):
            raise DataError(
                f"{self.root}: the label files declare the classes {', '.join(self.classes.names)}, but the model "
                f"has {', '.join(self._model_names)}"
            )

    def _mask_facts(self) -> dict[str, object]:
        """What changes the masks, beside images, label files and classes."""
        states = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in sorted(self._beside)]
        return {"layout": self.layout.name, "label_form": self.label_form, "beside": states}

    def _check_crop(self) -> None:
        """Crops centred on rare classes must be smaller than the frame, too."""
        super()._check_crop()
        if self.rare_class_crops and self.chip == self.frame_size and self.augment.scale[1] <= 1:
            raise DataError(
                "rare_class_crops does nothing as long as a crop shows the whole frame: "
                "set `crop` below the frames' size, or augment.scale above 1"
            )


