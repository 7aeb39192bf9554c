"""Readers: how datasets get at pixels and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from datamodules.batch import Item


@dataclass(frozen=True)
class RawSample:
    """What a reader finds in the files: native values, not normalised."""

    values: np.ndarray
    """(C, H, W), the files' own dtype; arbitrary where not valid."""
    valid: np.ndarray
    """(H, W) bool: measured."""
    mask: np.ndarray
    """(H, W) uint8 class index; 255 where unlabelled, nodata or not valid."""


class Reader(Protocol):
    """Reads an item's pixels; picklable, and without open files until a process reads for the first time."""

    def read(self, item: Item) -> RawSample:
        """The item's window, or its whole file; the mask is all 255 where the item has no label."""

    def read_mask(self, item: Item) -> np.ndarray:
        """(H, W) uint8: the mask alone."""
