"""The survey: everything that a data module lists, flawed or not, as far as names and headers tell.

`DataModule.scan` stops at what can't be used, or leaves it out; a survey is for who wants to know all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.classes import Unknown
from datamodules.layouts.objects import ObjectListing
from datamodules.splits import Splits


@dataclass(frozen=True)
class Survey:
    """What was listed."""

    splits: Splits
    """'train', 'val' and 'test': every image with a label (file), whether its pixels can be read or not."""
    images_without_label: list[str]
    labels_without_image: list[str]
    unusable: list[tuple[str, str]]
    """(path, reason): what headers and label files already rule out; such images are in no split."""
    broken: list[str]
    """Records of label files that can't be read: file, place and reason."""
    notes: list[str]
    listing: ObjectListing | None = None
    """What the label files say of objects, where they aren't shapes on the ground."""
    problem: str | None = None
    """Why the listing could not be finished; the splits are then empty."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, found on reading it."""

    check: str
    """'image', 'label', 'form' (of the label), or 'size'."""
    file: str
    text: str


@dataclass(frozen=True)
class Inspection:
    """An item's pixels and labels, as far as they can be read."""

    values: np.ndarray | None
    """(C, H, W), the file's own dtype."""
    valid: np.ndarray | None
    """(H, W) bool."""
    mask: np.ndarray | None
    """(H, W) uint8 class index; 255 where unlabelled, not valid, or of a value in no class."""
    unknown: tuple[Unknown, ...] = ()
    problems: tuple[Problem, ...] = ()


def without_path(file: str, error: Any) -> str:
    """An error's text without the path that it begins with."""
    return str(error).removeprefix(f"{file}: ").removeprefix(file).strip()
