"""Camera frames with objects: a data module for detection in driving pictures, in the field's usual layouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.augment import Augment
from datamodules.batch import Item
from datamodules.classes import ClassSpec, Value
from datamodules.datasets import DetectionEvaluationDataset
from datamodules.detection import DetectionDataModule
from datamodules.drives import DriveModule
from datamodules.errors import DataError
from datamodules.frames import Fit, FrameInspector, PictureReader
from datamodules.layouts import Listing
from datamodules.object_layouts import LayoutOptions, ObjectLayoutName, choose_layout
from datamodules.objects_reading import class_indices, count_objects
from datamodules.sampling import SampleKey
from datamodules.sizes import FrameCheck
from datamodules.splits import FolderSplit, Split, Splits
from datamodules.views import zoom


class CameraDetectionDataModule(DriveModule, DetectionDataModule):
    """Frames and their objects below `root`: whole frames for evaluation, augmented ones or crops for training."""

    label_word = "label"

    def __init__(
        self,
        root: str | Path,
        *,
        layout: ObjectLayoutName,
        images: str | None = None,
        labels: str | None = None,
        annotations: str | None = None,
        first_pixel: Literal[0, 1] | None = None,
        empty_without_label: bool | None = None,
        classes: Sequence[ClassSpec] | None = None,
        ignore: Sequence[Value] = (),
        split: Split = FolderSplit(),  # noqa: B008 (frozen)
        size: tuple[int, int] | None = None,
        longest: int | None = None,
        crop: tuple[int, int] | None = None,
        drive_pattern: str | None = None,
        min_visible: float = 0.4,
        masks: bool = False,
        turned: bool = False,
        augment: Augment = Augment("driving", photometric=0.3),  # noqa: B008 (frozen)
        normalise: Literal["weights", "data"] = "weights",
        scale: float | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        workers: int = 1,
        on_error: Literal["stop", "skip"] = "stop",
        seed: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        """layout, and the options that belong to one: see `datamodules.object_layouts.LayoutOptions`.
        classes: default: those that the label files declare or use. ignore: their names whose objects
        become ignored regions.
        size: (height, width) inside which frames are resized, longest: length of their longer side; both keep
        the proportions. Default: frames stay as they are. Frames may differ: batches are padded.
        crop: (height, width) of training samples, in pixels of the resized frame; default: all of it. It
        replaces the augmentation's own crop.
        drive_pattern: regular expression on a frame's stem whose first group is the drive.
        An epoch has as many samples as there are training frames. The other options are those of the base.
        """
        super().__init__(
            root,
            augment=replace(augment, crop=crop),
            min_visible=min_visible,
            masks=masks,
            turned=turned,
            normalise=normalise,
            scale=scale,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            workers=workers,
            on_error=on_error,
            seed=seed,
            cache_dir=cache_dir,
        )
        if size is not None and longest is not None:
            raise DataError(f"size {size} and longest {longest} are given: choose one of them")
        options = LayoutOptions(images, labels, annotations, first_pixel, empty_without_label)
        self.layout = choose_layout(layout, options)
        self.has_folders = self.layout.has_folders
        self.own_pattern = None
        if classes is not None:
            self._set_classes(classes, ignore)
        self._given = classes, tuple(ignore)
        self.bands = ("red", "green", "blue")
        self.split = split
        self.fit = Fit(size, longest)
        self.crop = crop
        self.drive_pattern = drive_pattern
        self._frame_sizes: dict[str, tuple[int, int]] = {}

    def scan(self) -> None:
        """Finds and splits the frames, reads their labels, looks into each frame once (which is cached)."""
        self.notes, self.unmatched = [], []
        splits = self._survey()
        frames = [item for items in splits.values() for item in items]
        self.settle(splits, self._check_frames(frames, PictureReader(Fit(None, None))))

    def _survey(self) -> Splits:
        self._listings = []
        splits = self._split()
        self._use_own_classes()
        return splits

    def inspector(self) -> FrameInspector:
        """See the base."""
        return FrameInspector(None)

    def settle(self, splits: Splits, checks: Mapping[str, FrameCheck]) -> None:
        """See the base."""
        problems = {path: check.problem for path, check in checks.items() if check.problem is not None}
        problems |= self._settle_type({path: check for path, check in checks.items() if path not in problems})
        self._take_usable(splits, problems)
        self._frame_sizes = {path: (check.height, check.width) for path, check in checks.items()}
        self._find_objects([item for items in self.items.values() for item in items])
        self._check_crop()
        self._require_objects()

    def prediction_dataset(self, paths: Sequence[str | Path]) -> DetectionEvaluationDataset:
        """Frames without labels, in the order given, resized as those of training."""
        items = [Item(id=str(path), group=str(path), image=str(path)) for path in paths]
        for item in items:
            if not Path(item.image).is_file():
                raise DataError(f"{item.image}: no such file")
        reader = self._reader()
        self._check_inputs(items, reader)
        return DetectionEvaluationDataset(
            items, reader=reader, table=self._empty_table(), normalisation=self.normalisation
        )

    def prepare(
        self, picture: NDArray[Any], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """A frame in memory as `prediction_dataset` gives those of files: image (3, h, w) and valid (h, w).

        picture: (H, W, 3) red green blue; valid: (H, W).
        """
        if picture.dtype != self.dtype:
            raise DataError(
                f"the frames are {picture.dtype}, and the run was trained on frames of {self.dtype}"
            )
        raw = self._reader().resize(picture, valid)
        return self.normalisation(raw.values, raw.valid), raw.valid

    # ---------------------------------------------------------------- for the base

    def _reader(self) -> PictureReader:
        return PictureReader(self.fit)

    def _plan(self) -> FramePlan:
        return FramePlan(tuple(self.items["train"]))

    def _training_windows(self) -> list[Item]:
        return self.items["train"]

    def _size(self, item: Item) -> tuple[int, int]:
        return self.fit(self._frame_sizes[item.image])

    def _class_amounts(self, items: Sequence[Item]) -> np.ndarray:
        """See the base: objects as the label files name them."""
        self._use_own_classes()
        listing = self._together()
        owners = class_indices(self.specs, ignore=self.ignore, legend=listing.legend)
        found = [listing.annotations[item.id] for item in items]
        return np.array([count_objects(each, owners, classes=len(self.classes)) for each in found])

    def _facts(self) -> dict[str, object]:
        own = {"size": self.fit.size, "longest": self.fit.longest, "layout": vars(self.layout.options)}
        return super()._facts() | own

    # ---------------------------------------------------------------- inside

    def _listing(self, folder: str | None) -> Listing:
        listing = self.layout.scan(self.root, folder)
        self._listings.append(listing)
        return listing

    def _use_own_classes(self) -> None:
        """Without classes given, those of the labels."""
        classes, ignore = self._given
        if classes is None:
            own = [spec for spec in self._together().legend.classes if not {spec.name, *spec.values} & {*ignore}]
            if not own:
                raise DataError(f"{self.root}: the labels name no class: give each class's name and values")
            self._set_classes(own, ignore)

    def _settle_type(self, checks: Mapping[str, FrameCheck]) -> dict[str, str]:
        """Sets the frames' number type; names the frames that differ."""
        if not checks:
            return {}
        usual = Counter(check.dtype for check in checks.values()).most_common(1)[0][0]
        self.dtype = np.dtype(usual)
        return {
            path: f"{path}: its pixels are {check.dtype}, most frames' {usual}"
            for path, check in checks.items()
            if check.dtype != usual
        }

    def _find_objects(self, items: Sequence[Item]) -> None:
        found = self._resolve(items, {item.id: self._frame_sizes[item.image] for item in items})
        self._objects = {}
        for item in items:
            height, width = self._frame_sizes[item.image]
            rows, cols = self.fit((height, width))
            self._objects[item.image] = zoom(found[item.id], cols / width, rows / height)

    def _check_crop(self) -> None:
        """A crop larger than every frame would show padding in each sample."""
        if self.crop is None:
            return
        sizes = [self._size(item) for item in self.items["train"]]
        height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
        if self.crop[0] > height or self.crop[1] > width:
            raise DataError(
                f"crop {self.crop[0]} x {self.crop[1]} is larger than the frames, at most {height} x {width}"
            )


@dataclass(frozen=True)
class FramePlan:
    """Every training frame once an epoch, see `datamodules.datasets.Plan`."""

    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.items)

    def draw(self, key: SampleKey, rng: np.random.Generator) -> tuple[Item, None]:
        """The frame of this number; a crop of it may lie anywhere."""
        return self.items[key.index], None
