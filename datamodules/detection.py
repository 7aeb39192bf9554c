"""The detection data module: what GeoTIFF scenes and camera frames with objects share, from labels to loaders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.augment import Augment
from datamodules.batch import Item
from datamodules.classes import Classes, ClassSpec, Value
from datamodules.datamodule import DataModule
from datamodules.datasets import (
    DetectionEvaluationDataset,
    DetectionTrainingDataset,
    ObjectTable,
    Plan,
    RawSample,
    Reader,
)
from datamodules.errors import DataError
from datamodules.layouts.dota import turned_box
from datamodules.layouts.objects import ObjectListing, merge
from datamodules.objects import (
    DetectionBatch,
    DetectionSample,
    Objects,
    collate_detection,
    detection_to_device,
)
from datamodules.objects_reading import Form, resolve
from datamodules.statistics import IMAGE_LIMIT, Statistics, collect

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class DetectionDataModule(DataModule):
    """Pictures or windows with the objects in them: boxes, and outlines (`masks`) or turned boxes (`turned`).

    A subclass also says what a training epoch shows (`_plan`), which whole pictures or windows the training
    split is made of (`_training_windows`), and fills `_objects` in `scan`.
    """

    counted = "objects"
    augment: Augment

    def __init__(
        self,
        root: str | Path,
        *,
        augment: Augment,
        min_visible: float,
        masks: bool,
        turned: bool,
        normalise: Literal["weights", "data"],
        scale: float | None,
        batch_size: int,
        eval_batch_size: int | None,
        workers: int,
        on_error: Literal["stop", "skip"],
        seed: int,
        cache_dir: str | Path | None,
    ) -> None:
        """min_visible: smallest share of an object's area that a window must show for it to be one there; of
        others, what is seen is an ignored region. masks, turned: what targets hold beside upright boxes."""
        super().__init__(
            root,
            normalise=normalise,
            scale=scale,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            workers=workers,
            on_error=on_error,
            seed=seed,
            cache_dir=cache_dir,
        )
        if not 0 <= min_visible <= 1:
            raise DataError(f"min_visible is {min_visible:g}; allowed: 0 to 1")
        if masks and turned:
            raise DataError("masks and turned: choose one of them")
        self.augment = augment
        self.min_visible = min_visible
        self.masks = masks
        self.turned = turned
        self.ignore: tuple[Value, ...] = ()
        self._objects: dict[str, Objects] = {}
        self._listings: list[ObjectListing] = []

    # ---------------------------------------------------------------- what a subclass says

    @abstractmethod
    def prediction_dataset(self, paths: Sequence[str | Path]) -> Dataset[DetectionSample]:
        """Whole files without labels, in the order given, as samples of their own size without objects."""

    @abstractmethod
    def _plan(self) -> Plan:
        """What the training samples of an epoch show."""

    @abstractmethod
    def _training_windows(self) -> list[Item]:
        """The training split in pieces that fit in memory and lie side by side, for the statistics."""

    @abstractmethod
    def _size(self, item: Item) -> tuple[int, int]:
        """(H, W) of an item's pixels as the model sees them at zoom 1."""

    # ---------------------------------------------------------------- objects

    def read(self, item: Item) -> RawSample:
        """The item's pixels as the model sees them, not normalised."""
        return self.reader().read(item)

    def reader(self) -> Reader:
        """Reads the pixels of items."""
        self._scan_once()
        return self._reader()

    def objects_of(self, item: Item) -> Objects:
        """What an item (of `items`, or a window of one) shows, in its pixels as the model sees them.

        Objects whose middle lies outside of its window are ignored regions, as are those of which less than
        `min_visible` is seen."""
        self._scan_once()
        return self._table().seen(item, self._size(item))

    def objects(self, split: str) -> list[tuple[Item, Objects]]:
        """The frames, or parts of scenes, of a split with all that is to be found in each."""
        self._scan_once()
        return [(item, self.objects_of(item)) for item in self.items[split]]

    def evaluation_regions(self, split: str) -> list[tuple[Item, int]]:
        """The items of a split, each with the number of its samples in the evaluation loader's order.

        What is found in the samples of an item, moved by their windows' corners and merged, is to be compared
        with `objects_of(item)`.
        """
        self._scan_once()
        return [(item, 1) for item in self.items[split]]

    def training_boxes(self) -> NDArray[np.float32]:
        """(N, 2) width and height of every training object, in pixels that the model sees at zoom 1."""
        boxes = [objects.boxes[~objects.ignored] for _, objects in self.objects("train")]
        together = np.concatenate([*boxes, np.empty((0, 4), np.float32)])
        return np.asarray(together[:, 2:] - together[:, :2], np.float32)

    def data_card(self) -> dict[str, Any]:
        """As the base's, and the sizes of objects, ignored regions and pictures without objects."""
        card = super().data_card()
        found = {split: [objects for _, objects in self.objects(split)] for split in self.items}
        boxes = self.training_boxes()
        return card | {
            "objects": {split: sum(int((~each.ignored).sum()) for each in found[split]) for split in found},
            "ignored_regions": {
                split: sum(int(each.ignored.sum()) for each in found[split]) for split in found
            },
            "images_without_objects": {
                split: sum(len(each) == 0 for each in found[split]) for split in found
            },
            "images_all_ignored": {
                split: sum(len(each) > 0 and bool(each.ignored.all()) for each in found[split])
                for split in found
            },
            "box_sizes": _quantiles(np.sqrt(boxes[:, 0] * boxes[:, 1])),
            "box_sizes_are": "square root of a box's area, in pixels that the model sees at zoom 1, train",
            "box_aspect_ratios": _quantiles(boxes[:, 0] / boxes[:, 1]),
            "box_aspect_ratios_are": "width over height, train",
        }

    # ---------------------------------------------------------------- for the base

    def training_dataset(self) -> DetectionTrainingDataset:
        """Indexed by `SampleKey`; an epoch has len() of them."""
        self._scan_once()
        return DetectionTrainingDataset(
            plan=self._plan(),
            reader=self._reader(),
            table=self._table(),
            augment=self.augment,
            normalisation=self.normalisation,
        )

    def _evaluation_dataset(self, split: str) -> DetectionEvaluationDataset:
        return DetectionEvaluationDataset(
            self.items[split], reader=self._reader(), table=self._table(), normalisation=self.normalisation
        )

    def _collate(self, samples: Sequence[DetectionSample]) -> DetectionBatch:
        return collate_detection(samples)

    def _to_device(self, batch: DetectionBatch, device: torch.device) -> DetectionBatch:
        return detection_to_device(batch, device)

    def _collect(self, key: str) -> Statistics:
        windows = self._training_windows()
        drawn = np.random.default_rng(0).permutation(len(windows))[:IMAGE_LIMIT].tolist()
        figures = collect(
            [windows[i] for i in drawn],
            self._reader(),
            bands=len(self.bands),
            num_classes=0,
            fingerprint=key,
        )
        counts = np.zeros(len(self.classes), np.int64)
        for _, objects in self.objects("train"):
            counts += np.bincount(objects.labels[~objects.ignored], minlength=len(counts))
        return replace(figures, class_counts=counts, windows=len(windows))

    def _facts(self) -> dict[str, object]:
        return {
            "min_visible": self.min_visible,
            "form": [self.masks, self.turned],
            "values": [spec.values for spec in self.specs],
            "ignored": self.ignore,
        }

    # ---------------------------------------------------------------- inside

    def _set_classes(self, specs: Sequence[ClassSpec], ignore: Sequence[Value]) -> None:
        """What labels call the classes is looked up where labels are read; a model knows their places alone."""
        self.specs, self.ignore = tuple(specs), tuple(ignore)
        numbered = [replace(spec, values=(index,)) for index, spec in enumerate(specs)]
        self.classes = Classes(numbered, fewest=1)

    def _object_listing(self) -> ObjectListing | None:
        return self._together() if self._listings else None

    def _together(self) -> ObjectListing:
        """What `scan` has listed, of all splits."""
        return self._listings[0] if len(self._listings) == 1 else merge(self._listings)

    def _resolve(self, items: Sequence[Item], sizes: Mapping[str, tuple[int, int]]) -> dict[str, Objects]:
        """The objects of listed items by id, in pixels of their files; sizes: (H, W) by id."""
        listing = replace(self._together(), items=list(items))
        reading = resolve(
            listing,
            classes=self.specs,
            ignore=self.ignore,
            sizes=sizes,
            form=self.form_of(listing),
            on_error=self.on_error,
        )
        self.skipped += listing.unreadable
        if reading.repairs.counts:
            self.notes += reading.repairs.describe().splitlines()
        return {name: self._as_wanted(objects) for name, objects in reading.objects.items()}

    def form_of(self, listing: ObjectListing) -> Form:
        """What is read of each label: turned boxes follow from outlines where files have none."""
        if not self.turned:
            return "outlines" if self.masks else "boxes"
        found = [listing.annotations[item.id] for item in listing.items]
        has_outlines = any(each.outlines is not None for each in found)
        return "outlines" if has_outlines and all(each.turned is None for each in found) else "turned"

    def _require_objects(self) -> None:
        """Pictures without objects are fine, a training split without any is not."""
        if not any((~self._objects[item.image].ignored).any() for item in self.items["train"]):
            ignored = sum(len(self._objects[item.image]) for item in self.items["train"])
            raise DataError(f"{self.root}: the training split has no object (ignored regions: {ignored})")

    def _empty_table(self) -> ObjectTable:
        """For pictures without labels."""
        return replace(self._table(), by_image={})

    def _table(self) -> ObjectTable:
        return ObjectTable(
            self._objects, min_visible=self.min_visible, masks=self.masks, turned=self.turned
        )

    def _as_wanted(self, objects: Objects) -> Objects:
        """With what targets hold, and no more; turned boxes are fitted to outlines where labels have none."""
        shapes, turned = objects.shapes, objects.turned
        if self.turned and turned is None:
            assert shapes is not None
            rows = [turned_box(np.concatenate(rings).astype(np.float64)) for rings in shapes]
            turned = np.array(rows, np.float32).reshape(-1, 5)
        return replace(objects, shapes=shapes if self.masks else None, turned=turned if self.turned else None)


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    """By the share of values below, as text for JSON; none where there are no values."""
    if len(values) == 0:
        return {}
    return {f"{share:g}": float(np.quantile(values, share)) for share in QUANTILES}
