"""Objects: what the labels of a detection sample are, and the batch that a detector trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.batch import Item

Rings = tuple[NDArray[np.float32], ...]
"""The outline of one object: polygons of (n, 2) x, y in pixels; what lies in an odd number of them is inside."""


@dataclass(frozen=True)
class Objects:
    """The objects of one picture or window; coordinates in its pixels, (0, 0) its upper left corner."""

    boxes: NDArray[np.float32]
    """(N, 4) x1, y1, x2, y2 with x2 > x1 and y2 > y1."""
    labels: NDArray[np.int64]
    """(N,) class index from 0; 0 where ignored."""
    ignored: NDArray[np.bool_]
    """(N,) a region that is neither an object nor background: crowds, KITTI's DontCare, difficult objects."""
    shapes: tuple[Rings, ...] | None = None
    """The outline of each object; None where the labels have none."""
    turned: NDArray[np.float32] | None = None
    """(N, 5) cx, cy, w, h in pixels and the angle in radians by which the side w is turned from the x axis
    towards the y axis (so clockwise as seen on a screen), in [-pi/2, pi/2); None where the labels are upright."""
    difficult: NDArray[np.int64] | None = None
    """(N,) the class of an object that is ignored because it is difficult (DOTA), -1 for others; None: there are no
    such objects."""

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def none(cls, *, shapes: bool = False, turned: bool = False) -> Objects:
        """No objects: a picture that was looked at and is empty."""
        return cls(
            np.empty((0, 4), np.float32),
            np.empty(0, np.int64),
            np.empty(0, np.bool_),
            () if shapes else None,
            np.empty((0, 5), np.float32) if turned else None,
        )

    def take(self, index: NDArray[Any]) -> Objects:
        """The objects of these indices, or where a mask (N,) is True."""
        chosen = np.flatnonzero(index) if index.dtype == np.bool_ else index
        return Objects(
            self.boxes[chosen],
            self.labels[chosen],
            self.ignored[chosen],
            None if self.shapes is None else tuple(self.shapes[i] for i in chosen.tolist()),
            None if self.turned is None else self.turned[chosen],
            None if self.difficult is None else self.difficult[chosen],
        )


class Target(TypedDict):
    """What a detector should find in one image of a batch."""

    boxes: Tensor
    """(N, 4) float32 x1, y1, x2, y2 in pixels."""
    labels: Tensor
    """(N,) int64, class index from 0."""
    ignored: Tensor
    """(M, 4) float32: boxes of regions that are neither objects nor background."""
    masks: NotRequired[Tensor]
    """(N, H, W) bool, for instance segmentation."""
    turned: NotRequired[Tensor]
    """(N, 5) float32, see `Objects.turned`."""


class DetectionSample(TypedDict):
    """One picture or window with its objects."""

    image: Tensor
    """(C, H, W) float32, normalised; 0 where invalid."""
    valid: Tensor
    """(H, W) bool: the pixel was measured."""
    target: Target
    item: Item


class DetectionBatch(TypedDict):
    """Samples of one or of several sizes, padded at the right and below to the largest."""

    image: Tensor
    """(B, C, H, W) float32, normalised; 0 where invalid and in the padding."""
    valid: Tensor
    """(B, H, W) bool; False in the padding."""
    sizes: list[tuple[int, int]]
    """(height, width) of each image without its padding."""
    target: list[Target]
    item: list[Item]


def collate_detection(samples: Sequence[DetectionSample]) -> DetectionBatch:
    """Pads at the right and below; coordinates stay as they are."""
    sizes = [(int(sample["valid"].shape[0]), int(sample["valid"].shape[1])) for sample in samples]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    bands = samples[0]["image"].shape[0]
    image = torch.zeros((len(samples), bands, height, width))
    valid = torch.zeros((len(samples), height, width), dtype=torch.bool)
    for i, (sample, (rows, columns)) in enumerate(zip(samples, sizes, strict=True)):
        image[i, :, :rows, :columns], valid[i, :rows, :columns] = sample["image"], sample["valid"]
    return DetectionBatch(
        image=image,
        valid=valid,
        sizes=sizes,
        target=[_padded(sample["target"], height, width) for sample in samples],
        item=[sample["item"] for sample in samples],
    )


def _padded(target: Target, height: int, width: int) -> Target:
    masks = target.get("masks")
    if masks is None or masks.shape[1:] == (height, width):
        return target
    padded = torch.zeros((len(masks), height, width), dtype=torch.bool)
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    return Target(**{**target, "masks": padded})  # type: ignore[typeddict-item]


def detection_to_device(batch: DetectionBatch, device: torch.device) -> DetectionBatch:
    """The batch with its tensors on `device`."""
    targets: list[Any] = [
        {name: tensor.to(device, non_blocking=True) for name, tensor in target.items()}  # type: ignore[attr-defined]
        for target in batch["target"]
    ]
    return DetectionBatch(
        image=batch["image"].to(device, non_blocking=True),
        valid=batch["valid"].to(device, non_blocking=True),
        sizes=batch["sizes"],
        target=targets,
        item=batch["item"],
    )
