"""Datasets: from a window to a normalised sample; one for training, one for evaluation and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from datamodules.augment import Augment
from datamodules.batch import IGNORE, Batch, Item, Sample, Window
from datamodules.objects import DetectionSample, Objects
from datamodules.readers import RawSample as RawSample
from datamodules.readers import Reader as Reader
from datamodules.sampling import SampleKey
from datamodules.statistics import Normalisation
from datamodules.supertiles import SuperTilePlan, SuperTiles
from datamodules.views import clip, frame_of, meeting, middles_inside, move, set_aside, shift, to_target


class TrainingDataset(Dataset[Sample]):
    """Augmented windows, drawn by a plan; indexed by `SampleKey`."""

    def __init__(
        self, *, plan: Plan, reader: Reader, augment: Augment, normalisation: Normalisation
    ) -> None:
        self.plan = plan
        self.reader = reader
        self.augment = augment
        self.normalisation = normalisation
        self.tiles = SuperTiles(plan, reader) if isinstance(plan, SuperTilePlan) else None

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = key.rng()
        item, centre = self.plan.draw(key, rng)
        raw = self.read(key, item)
        pixels = np.ascontiguousarray(raw.values.transpose(1, 2, 0))  # (H, W, C) for OpenCV
        pixels, mask, valid = self.augment.geometry(pixels, raw.mask, raw.valid, rng=rng, centre=centre)
        image = self.normalisation(pixels.transpose(2, 0, 1), valid)
        image = self.augment.photometry(image, valid, rng=rng)
        return to_sample(image, mask, valid, item)

    def read(self, key: SampleKey, item: Item) -> RawSample:
        """The native pixels of a sample's item, as the plan has drawn it."""
        return self.reader.read(item) if self.tiles is None else self.tiles.read(key, item)


class EvaluationDataset(Dataset[Sample]):
    """Items in their order, without randomness; indexed by int."""

    def __init__(
        self,
        items: Sequence[Item],
        *,
        reader: Reader,
        normalisation: Normalisation,
        size: tuple[int, int] | None = None,
        cores: Sequence[Window] | None = None,
    ) -> None:
        """size: (H, W) to which smaller samples are padded (right and below, invalid).
        cores: the part of each item's window that is scored there, in pixels of the window; the
        rest is scored in another window, so its mask is 255."""
        self.items = list(items)
        self.reader = reader
        self.normalisation = normalisation
        self.size = size
        self.cores = cores

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        raw = self.reader.read(item)
        mask = raw.mask if self.cores is None else _only(raw.mask, self.cores[index])
        image = self.normalisation(raw.values, raw.valid)
        size = self.size or raw.valid.shape
        return to_sample(
            _padded(image, 0, size), _padded(mask, IGNORE, size), _padded(raw.valid, 0, size), item
        )


class Plan(Protocol):
    """Says what each training sample of an epoch shows."""

    def __len__(self) -> int:
        """Samples an epoch."""

    def draw(self, key: SampleKey, rng: np.random.Generator) -> tuple[Item, tuple[int, int] | None]:
        """The item and the pixel (row, col of its window) to centre a crop on, if any."""


@dataclass(frozen=True)
class ObjectTable:
    """The objects of all pictures, and how they are shown to a model."""

    by_image: Mapping[str, Objects]
    """By path, in pixels of the whole picture as its reader gives it; none where a path is missing."""
    min_visible: float
    """See `datamodules.views.clip`."""
    masks: bool
    turned: bool

    def near(self, item: Item) -> Objects:
        """Those that an item's window shows any part of, in its pixels, not cut at its edges."""
        objects = self.by_image.get(item.image) or Objects.none(shapes=self.masks, turned=self.turned)
        window = item.window
        if window is None:
            return objects
        near = objects.take(meeting(objects.boxes, frame_of(window)))
        return shift(near, window.col, window.row)

    def seen(self, item: Item, size: tuple[int, int], core: Window | None = None) -> Objects:
        """What an item of this size (H, W) shows, cut at its edges.

        core: in pixels of the item's window, default: all of it; objects whose middle lies elsewhere belong to
        another window or part of the scene, and are ignored regions here: so each is scored once."""
        whole = Window(0, 0, *size)
        objects = self.near(item)
        objects = set_aside(objects, ~middles_inside(objects.boxes, frame_of(core or whole)))
        return clip(objects, frame_of(whole), min_visible=self.min_visible)


class DetectionTrainingDataset(Dataset[DetectionSample]):
    """Augmented windows or frames with their objects, drawn by a plan; indexed by `SampleKey`."""

    def __init__(
        self,
        *,
        plan: Plan,
        reader: Reader,
        table: ObjectTable,
        augment: Augment,
        normalisation: Normalisation,
    ) -> None:
        self.plan = plan
        self.reader = reader
        self.table = table
        self.augment = augment
        self.normalisation = normalisation

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, key: SampleKey) -> DetectionSample:
        rng = key.rng()
        item, centre = self.plan.draw(key, rng)
        raw = self.reader.read(item)
        pixels = np.ascontiguousarray(raw.values.transpose(1, 2, 0))  # (H, W, C) for OpenCV
        view = self.augment.draw(raw.valid.shape, rng=rng, centre=centre)
        placed = view.pixels(pixels, raw.mask, raw.valid)
        pixels, _, valid = self.augment.occlude(*placed, rng=rng)
        objects = move(self.table.near(item), view.points)
        objects = clip(objects, view.frame, min_visible=self.table.min_visible, valid=valid)
        image = self.normalisation(pixels.transpose(2, 0, 1), valid)
        image = self.augment.photometry(image, valid, rng=rng)
        return to_detection_sample(image, valid, objects, item, masks=self.table.masks)


class DetectionEvaluationDataset(Dataset[DetectionSample]):
    """Items with their objects in their order, at their own size, without randomness; indexed by int."""

    def __init__(
        self,
        items: Sequence[Item],
        *,
        reader: Reader,
        table: ObjectTable,
        normalisation: Normalisation,
        cores: Sequence[Window] | None = None,
    ) -> None:
        """cores: the part of each item's window whose objects are scored there, see `ObjectTable.seen`."""
        self.items = list(items)
        self.reader = reader
        self.table = table
        self.normalisation = normalisation
        self.cores = cores

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> DetectionSample:
        item = self.items[index]
        raw = self.reader.read(item)
        height, width = raw.valid.shape
        objects = self.table.seen(item, (height, width), None if self.cores is None else self.cores[index])
        image = self.normalisation(raw.values, raw.valid)
        return to_detection_sample(image, raw.valid, objects, item, masks=self.table.masks)


def to_detection_sample(
    image: np.ndarray, valid: np.ndarray, objects: Objects, item: Item, *, masks: bool
) -> DetectionSample:
    """image (C, H, W) float32; valid (H, W) bool; masks: whether outlines are drawn."""
    height, width = valid.shape
    return DetectionSample(
        image=torch.from_numpy(np.ascontiguousarray(image)),
        valid=torch.from_numpy(np.ascontiguousarray(valid)),
        target=to_target(objects, (height, width), masks=masks),
        item=item,
    )


def to_sample(image: np.ndarray, mask: np.ndarray, valid: np.ndarray, item: Item) -> Sample:
    """image (C, H, W) float32; mask (H, W) uint8; valid (H, W) bool. Invalid pixels are never labelled."""
    target = np.where(valid, mask, np.uint8(IGNORE)).astype(np.int64)
    return Sample(
        image=torch.from_numpy(np.ascontiguousarray(image)),
        mask=torch.from_numpy(target),
        valid=torch.from_numpy(np.ascontiguousarray(valid)),
        item=item,
    )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples of one size; a loader process does so in the memory that it shares."""
    return Batch(
        image=default_collate([sample["image"] for sample in samples]),
        mask=default_collate([sample["mask"] for sample in samples]),
        valid=default_collate([sample["valid"] for sample in samples]),
        item=[sample["item"] for sample in samples],
    )


def _only(mask: np.ndarray, core: Window) -> np.ndarray:
    kept = np.full_like(mask, IGNORE)
    inside = np.s_[core.row : core.row + core.height, core.col : core.col + core.width]
    kept[inside] = mask[inside]
    return kept


def _padded(array: np.ndarray, fill: int, size: tuple[int, ...]) -> np.ndarray:
    """The array (..., h, w) in the upper left of (..., H, W)."""
    height, width = array.shape[-2:]
    if (height, width) == size:
        return array
    padded = np.full((*array.shape[:-2], *size), fill, array.dtype)
    padded[..., :height, :width] = array
    return padded
