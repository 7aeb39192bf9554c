"""Readers: how datasets get at pixels and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from datamodules.batch import Item
from datamodules.surveying import Inspection


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


class Inspector(Protocol):
    """Reads items for a check; one thread's own, since it may hold open files."""

    def pieces(self, item: Item) -> list[Item]:
        """The item in parts that fit in memory, each with its window if there are several."""

    def inspect(self, item: Item) -> Inspection:
        """A piece's pixels and labels, with what is wrong with them; it raises nothing because of the data."""
