"""Counts: what one pass over a split leaves of each sample, enough to remake every number without the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules import Normalisation
from datamodules.batch import Batch, Item
from datamodules.labelled import LabelledBatch
from visionsft.errors import RunError
from visionsft.evaluation.intervals import Unit
from visionsft.files import atomic_path

FILE = "per_sample.npz"
"""In the folder of an evaluation."""


@dataclass(frozen=True)
class Counts:
    """What was counted, sample by sample, in the loader's order."""

    items: tuple[Item, ...]
    """From a file: without label and window."""
    classes: tuple[str, ...]
    """K names."""
    confusions: NDArray[np.int64]
    """(N, K, K), rows = truth."""
    brightness: NDArray[np.float64]
    """(N,), see `mean_brightness`."""

    @property
    def groups(self) -> list[str]:
        """N names of scenes or drives."""
        return [item.group for item in self.items]

    @property
    def ids(self) -> list[str]:
        """N names of the samples."""
        return [item.id for item in self.items]

    def names(self, unit: Unit) -> list[str]:
        """N names of what is resampled: groups, or the samples themselves."""
        return self.groups if unit == "group" else self.ids

    def take(self, index: NDArray[np.intp]) -> Counts:
        """The samples of these indices."""
        items = tuple(self.items[i] for i in index)
        return Counts(items, self.classes, self.confusions[index], self.brightness[index])


def mean_value(sums: NDArray[Any], pixels: int, normalisation: Normalisation) -> float:
    """Mean of all bands in the files' own units, from the sums (C,) of a normalised image that is 0 where invalid."""
    if not pixels:
        return math.nan
    return float((sums.astype(np.float64) / pixels * normalisation.std + normalisation.mean).mean())


def mean_brightness(batch: Batch | LabelledBatch, normalisation: Normalisation) -> NDArray[np.float64]:
    """Mean of all bands over each sample's valid pixels: (B,) in the files' own units; nan without any."""
    sums = batch["image"].sum((2, 3))  # invalid pixels are 0
    # a tenth of the time of a sum
    pixels = torch.tensor([np.count_nonzero(each) for each in batch["valid"].numpy()], dtype=torch.int64)
    mean, std = (torch.tensor(each, dtype=torch.float64) for each in (normalisation.mean, normalisation.std))
    found: NDArray[np.float64] = (sums.double() / pixels[:, None] * std + mean).mean(1).numpy()
    return found


def save_counts(counts: Counts, folder: Path, *, details: Mapping[str, Any] | None = None) -> None:
    """Write ``per_sample.npz``; details: further arrays, by sample, see `visionsft.evaluation.details`."""
    with atomic_path(folder / FILE) as path:
        np.savez_compressed(
            path,
            ids=np.array(counts.ids),
            groups=np.array(counts.groups),
            images=np.array([item.image for item in counts.items]),
            classes=np.array(counts.classes),
            confusions=counts.confusions,
            brightness=counts.brightness,
            **(details or {}),
        )


def load_counts(folder: str | Path) -> Counts:
    """Read ``per_sample.npz`` of an evaluation's folder, ``<run>/evaluation/<split>``."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise RunError(f"{path} does not exist: evaluate the run first (visionsft evaluate RUN)")
    with np.load(path, allow_pickle=False) as kept:
        missing = {"ids", "groups", "images", "classes", "confusions", "brightness"} - set(kept)
        if missing:
            raise RunError(
                f"{path} has no {', '.join(sorted(missing))}: an older version wrote it; evaluate it again"
            )
        names = (kept[key].tolist() for key in ("ids", "groups", "images"))
        items = tuple(Item(id=id, group=group, image=image) for id, group, image in zip(*names, strict=True))
        return Counts(items, tuple(kept["classes"].tolist()), kept["confusions"], kept["brightness"])
