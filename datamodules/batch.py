"""The batch: what every dataset yields and every model consumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

IGNORE = 255
"""Label value that no loss and no metric counts: unlabelled, nodata or out of bounds."""


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle in pixels of its scene; it may reach beyond the scene's edges."""

    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Item:
    """Identity of a sample, carried along so that every error can be found again."""

    id: str
    """Unique and stable: the file's path below the root, and the window if it is one of several."""
    group: str
    """What must not be divided between splits: the scene or the drive."""
    image: str
    """Path of the image file."""
    label: str | None = None
    """Path of the label file."""
    window: Window | None = None
    labelled: Window | None = None
    """Part of the scene whose labels count here, where the window shows more of it; None: all of the window."""


class Sample(TypedDict):
    """One training or evaluation sample."""

    image: Tensor
    """(C, H, W) float32, normalised; 0 where invalid."""
    mask: Tensor
    """(H, W) int64, class index; 255 (IGNORE) where unlabelled, nodata or out of bounds."""
    valid: Tensor
    """(H, W) bool: the pixel was measured (inside the scene and not nodata)."""
    item: Item


class Batch(TypedDict):
    """Samples stacked along a new first dimension."""

    image: Tensor
    """(B, C, H, W) float32, normalised; 0 where invalid."""
    mask: Tensor
    """(B, H, W) int64, class index; 255 (IGNORE) where unlabelled, nodata or out of bounds."""
    valid: Tensor
    """(B, H, W) bool."""
    item: list[Item]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; Lightning's own transfer refuses frozen dataclasses such as Item."""
    return Batch(
        image=batch["image"].to(device, non_blocking=True),
        mask=batch["mask"].to(device, non_blocking=True),
        valid=batch["valid"].to(device, non_blocking=True),
        item=batch["item"],
    )
