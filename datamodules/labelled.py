"""Labelled images: what a classification sample is, the batch that a classifier trains on, and the dataset of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.batch import Item, Sample

Label = int | NDArray[np.float32]
"""The class index of an image; of several labels (K,) float32, 1 where it has the class."""


class LabelledSample(TypedDict):
    """One image with its label."""

    image: Tensor
    """(C, H, W) float32, normalised; 0 where invalid."""
    valid: Tensor
    """(H, W) bool: the pixel was measured."""
    label: Tensor
    """() int64 class index; of several labels (K,) float32, 1 where the image has the class."""
    item: Item


class LabelledBatch(TypedDict):
    """Samples of one size, stacked along a new first dimension."""

    image: Tensor
    """(B, C, H, W) float32, normalised; 0 where invalid."""
    valid: Tensor
    """(B, H, W) bool."""
    label: Tensor
    """(B,) int64 class index; of several labels (B, K) float32, 1 where the image has the class."""
    item: list[Item]


class LabelledDataset(Dataset[LabelledSample]):
    """The images of another dataset, in its order and with its augmentation, each with its label."""

    def __init__(self, images: Dataset[Sample], labels: Mapping[str, Label]) -> None:
        """labels: by path of the image."""
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> LabelledSample:
        sample = self.images[key]
        item = sample["item"]
        label = torch.as_tensor(self.labels[item.image])
        return LabelledSample(image=sample["image"], valid=sample["valid"], label=label, item=item)


def collate_labelled(samples: Sequence[LabelledSample]) -> LabelledBatch:
    """Stacks samples of one size."""
    return LabelledBatch(
        image=default_collate([sample["image"] for sample in samples]),
        valid=default_collate([sample["valid"] for sample in samples]),
        label=default_collate([sample["label"] for sample in samples]),
        item=[sample["item"] for sample in samples],
    )


def labelled_to_device(batch: LabelledBatch, device: torch.device) -> LabelledBatch:
    """The batch with its tensors on `device`."""
    return LabelledBatch(
        image=batch["image"].to(device, non_blocking=True),
        valid=batch["valid"].to(device, non_blocking=True),
        label=batch["label"].to(device, non_blocking=True),
        item=batch["item"],
    )
