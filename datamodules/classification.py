"""The classification data module: what camera pictures and GeoTIFF patches with labels share, from names to loaders."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.augment import Augment, resize_sample
from datamodules.batch import Item, Sample
from datamodules.classes import Classes, ClassSpec, Legend, Value
from datamodules.datasets import EvaluationDataset, RawSample, Reader, TrainingDataset
from datamodules.errors import DataError
from datamodules.labelled import (
    Label,
    LabelledBatch,
    LabelledDataset,
    LabelledSample,
    collate_labelled,
    labelled_to_device,
)
from datamodules.layouts import classfolders, labeltable
from datamodules.layouts.classfolders import LabelListing
from datamodules.objects_reading import class_indices
from datamodules.sampling import BalancedPlan
from datamodules.sizes import SizedModule
from datamodules.splits import FolderSplit, PlaceSplit, Split
from datamodules.statistics import IMAGE_LIMIT, Statistics, collect

LabelLayoutName = Literal["folders", "csv"]

_IGNORED = -1
"""What `class_indices` says of ignored labels."""


class ClassificationDataModule(SizedModule):
    """Images with one label each, or with any number of them (`multi_label`).

    A subclass finds the files and their size; their labels are read here.
    """

    counted = "images"
    split: Split
    has_folders: bool

    def __init__(
        self,
        root: str | Path,
        *,
        layout: LabelLayoutName,
        images: str | None,
        annotations: str | None,
        classes: Sequence[ClassSpec] | None,
        ignore: Sequence[Value],
        multi_label: bool,
        split: Split,
        size: tuple[int, int] | None,
        crop: tuple[int, int] | None,
        augment: Augment,
        balance: float,
        normalise: Literal["weights", "data"],
        scale: float | None,
        batch_size: int,
        eval_batch_size: int | None,
        workers: int,
        on_error: Literal["stop", "skip"],
        seed: int,
        cache_dir: str | Path | None,
    ) -> None:
        """layout: 'folders': a folder for each class, in `images`; 'csv': the table `annotations`, see
        `datamodules.layouts.labeltable`, of pictures below the folder `images`.
        images, annotations: below `root`, perhaps with '{split}'. Default of `images`: '{split}' for folders that
        are split by folder, else `root` itself; of `annotations`: '{split}.csv' likewise, else 'labels.csv'.
        classes: default: those of the labels, sorted by name. ignore: their names that count for nothing; an image
        that has no other label is left out (with `multi_label` it is one of no class).
        size: (height, width) to which images are resized; default: their own, which must agree.
        crop: (height, width) of training samples; default: size. It replaces the augmentation's own crop.
        balance: share of the training samples whose class is drawn uniformly, and then one of its images.
        An epoch has as many samples as there are training images. The other options are those of the base.
        """
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
        if not 0 <= balance <= 1:
            raise DataError(f"balance is {balance:g}; allowed: 0 to 1")
        if isinstance(split, PlaceSplit):
            raise DataError("split by place would cut labelled images; allowed: folder, list, scene, drive")
        self.source = _choose_source(layout, images, annotations, split)
        self.images = self.source.images
        self.has_folders = self.source.has_folders
        self.split = split
        self.multi_label = multi_label
        self.size = size
        self.crop = crop
        self.augment = replace(augment, crop=crop or size)
        self.balance = balance
        self._ignored = tuple(ignore)
        self._owns_classes = classes is None
        self._listings: list[LabelListing] = []
        self._labels: dict[str, Label] = {}
        if classes is not None:
            self._set_classes(classes)

    # ---------------------------------------------------------------- what a subclass says

    @abstractmethod
    def prediction_dataset(self, paths: Sequence[str | Path]) -> Dataset[Sample]:
        """Whole images without labels, in the order given, at `size` if there is one (mask all 255)."""

    # ---------------------------------------------------------------- labels

    def set_class_names(self, names: Sequence[str]) -> None:
        """The classes of a model, in its order, where none were given: not those that the labels happen to have."""
        if self._owns_classes:
            self._set_classes([ClassSpec(name, (name,)) for name in names])
            self._owns_classes = False

    def label(self, item: Item) -> Label:
        """What an item of `items` shows."""
        self._scan_once()
        return self._labels[item.image]

    def _set_classes(self, specs: Sequence[ClassSpec]) -> None:
        """What labels call the classes is looked up where labels are read; a model knows their places alone."""
        if len(specs) < 2 and not self.multi_label:
            names = ", ".join(spec.name for spec in specs) or "none"
            raise DataError(f"{self.root}: classes: {names}; at least 2 are needed")
        self.specs = tuple(specs)
        numbered = [replace(spec, values=(index,)) for index, spec in enumerate(specs)]
        self.classes = Classes(numbered, fewest=1)

    def _list_labels(self, folder: str | None) -> LabelListing:
        listing = self.source.scan(self.root, folder, several=self.multi_label)
        self._listings.append(listing)
        return listing

    def _read_labels(self, splits: Mapping[str, Sequence[Item]]) -> dict[str, str]:
        """Fills the labels of all items, without those that have ignored labels alone; returns problems by path."""
        owners = self._owners()
        labels = {id: found for each in self._listings for id, found in each.labels.items()}
        places = {id: place for each in self._listings for id, place in each.places.items()}
        problems: dict[str, str] = {}
        self._labels, without = {}, 0
        for item in (item for items in splits.values() for item in items):
            unknown = [name for name in labels[item.id] if name not in owners]
            if unknown:
                problems[item.image] = f"{places[item.id]}: {_describe_unknown(unknown[0], owners)}"
                continue
            indices = sorted({owners[name] for name in labels[item.id]} - {_IGNORED})
            if self.multi_label:
                label = np.zeros(len(self.classes), np.float32)
                label[indices] = 1
                self._labels[item.image] = label
            elif indices:
                self._labels[item.image] = indices[0]
            else:
                without += 1
        if without:
            self.notes.append(f"{without} images have an ignored label: they are left out")
        return problems

    def _owners(self) -> dict[str, int]:
        """Index of the class that every label means; sets the classes where none were given."""
        if self._owns_classes:
            names = sorted(
                {name for each in self._listings for name in each.names} - {str(v) for v in self._ignored}
            )
            self._set_classes([ClassSpec(name, (name,)) for name in names])
        meanings = class_indices(self.specs, ignore=self._ignored, legend=Legend(()))
        return {str(value): index for value, index in meanings.items()}

    def _class_amounts(self, items: Sequence[Item]) -> np.ndarray:
        """See the base; labels that mean no class count for nothing: others complain."""
        owners = self._owners()
        labels = {id: found for each in self._listings for id, found in each.labels.items()}
        amounts = np.zeros((len(items), len(self.classes)), np.int64)
        for row, item in zip(amounts, items, strict=True):
            row[[k for name in labels[item.id] if (k := owners.get(name, _IGNORED)) >= 0]] = 1
        return amounts

    def _sized_reader(self) -> ResizedReader:
        return ResizedReader(self._reader(), self.size)

    # ---------------------------------------------------------------- for the base

    def training_dataset(self) -> LabelledDataset:
        """Indexed by `SampleKey`; an epoch has len() of them."""
        self._scan_once()
        items = self.items["train"]
        members: list[list[int]] = [[] for _ in self.classes.names]
        for index, item in enumerate(items):
            for k in self._indices(item):
                members[k].append(index)
        images = TrainingDataset(
            plan=BalancedPlan(items, [np.array(each, np.int64) for each in members], share=self.balance),
            reader=self._sized_reader(),
            augment=self.augment,
            normalisation=self.normalisation,
        )
        return LabelledDataset(images, self._labels)

    def _evaluation_dataset(self, split: str) -> LabelledDataset:
        images = EvaluationDataset(
            self.items[split], reader=self._sized_reader(), normalisation=self.normalisation
        )
        return LabelledDataset(images, self._labels)

    def _collate(self, samples: Sequence[LabelledSample]) -> LabelledBatch:
        return collate_labelled(samples)

    def _to_device(self, batch: LabelledBatch, device: torch.device) -> LabelledBatch:
        return labelled_to_device(batch, device)

    def _collect(self, key: str) -> Statistics:
        items = self.items["train"]
        drawn = np.random.default_rng(0).permutation(len(items))[:IMAGE_LIMIT].tolist()
        figures = collect(
            [items[i] for i in drawn],
            self._sized_reader(),
            bands=len(self.bands),
            num_classes=0,
            fingerprint=key,
        )
        counts = np.zeros(len(self.classes), np.int64)
        for item in items:
            counts[self._indices(item)] += 1
        return replace(figures, class_counts=counts, windows=len(items))

    def _facts(self) -> dict[str, object]:
        return {"size": self.size, "labels": self.labels_digest("train")}

    def labels_digest(self, split: str) -> str:
        """Changes with any label of the split."""
        rows = [(item.id, self._indices(item)) for item in self.items.get(split, ())]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def _indices(self, item: Item) -> list[int]:
        label = self._labels[item.image]
        return [label] if isinstance(label, int) else np.flatnonzero(label).tolist()


@dataclass(frozen=True)
class ResizedReader:
    """Images of another reader, at one size; see `datamodules.datasets.Reader`."""

    reader: Reader
    size: tuple[int, int] | None
    """(height, width); None: as they are."""

    def read(self, item: Item) -> RawSample:
        """The item's image."""
        raw = self.reader.read(item)
        if self.size is None or raw.valid.shape == self.size:
            return raw
        pixels = np.ascontiguousarray(raw.values.transpose(1, 2, 0))  # (H, W, C) for OpenCV
        pixels, mask, valid = resize_sample(pixels, raw.mask, raw.valid, size=self.size)
        return RawSample(pixels.transpose(2, 0, 1), valid, mask)

    def read_mask(self, item: Item) -> np.ndarray:
        """(H, W), all 255."""
        return self.read(item).mask


@dataclass(frozen=True)
class _Source:
    """Where images and labels lie below the root."""

    layout: LabelLayoutName
    images: str
    annotations: str
    """Of the layout 'csv'."""

    @property
    def has_folders(self) -> bool:
        return "{split}" in (self.images if self.layout == "folders" else self.annotations)

    def scan(self, root: Path, folder: str | None, *, several: bool) -> LabelListing:
        """folder: that of a split, None: all."""
        if self.layout == "folders":
            return classfolders.scan(root, images=self.images, folder=folder)
        if folder is not None and not (root / self.annotations.replace("{split}", folder)).exists():
            return LabelListing()  # as a split without a folder is in the other layout
        return labeltable.scan(
            root, annotations=self.annotations, images=self.images, folder=folder, several=several
        )


def _choose_source(layout: str, images: str | None, annotations: str | None, split: Split) -> _Source:
    if layout not in ("folders", "csv"):
        near = get_close_matches(layout, ("folders", "csv"), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise DataError(f"no layout '{layout}': there are folders, csv{hint}")
    if layout == "folders" and annotations is not None:
        raise DataError("annotations is for layout 'csv'; in layout 'folders' the folders are the labels")
    by_folder = isinstance(split, FolderSplit)
    if layout == "folders":
        return _Source("folders", ("{split}" if by_folder else "") if images is None else images, "")
    return _Source("csv", images or "", annotations or ("{split}.csv" if by_folder else "labels.csv"))


def _describe_unknown(name: str, owners: Mapping[str, int]) -> str:
    nearest = get_close_matches(name, owners, n=1)
    hint = f"nearest: {nearest[0]}" if nearest else f"known: {', '.join(owners)}"
    return (
        f"the label {name!r} is none of the classes, {hint}; add it to the class's values or to data.ignore"
    )
