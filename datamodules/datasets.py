"""Datasets: from a window to a normalised sample; one for training, one for evaluation and prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.augment import Augment
from datamodules.batch import IGNORE, Batch, Item, Sample, Window
from datamodules.readers import RawSample as RawSample
from datamodules.readers import Reader as Reader
from datamodules.sampling import SampleKey, WindowPlan
from datamodules.statistics import Normalisation
from datamodules.supertiles import SuperTilePlan, SuperTiles


class TrainingDataset(Dataset[Sample]):
    """Augmented windows, drawn by a plan; indexed by `SampleKey`."""

    def __init__(
        self, *, plan: WindowPlan, reader: Reader, augment: Augment, normalisation: Normalisation
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
    """Stacks samples of one size."""
    return Batch(
        image=torch.stack([sample["image"] for sample in samples]),
        mask=torch.stack([sample["mask"] for sample in samples]),
        valid=torch.stack([sample["valid"] for sample in samples]),
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
