"""Detection counts: what a pass over a split leaves of each image, enough to remake every number without the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.batch import Item
from datamodules.objects import Target
from visionsft.errors import RunError
from visionsft.evaluation.intervals import Unit
from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes
from visionsft.files import atomic_path
from visionsft.models.detections import Detections

FILE = "per_image_boxes.npz"
"""In the folder of an evaluation."""

_COLUMNS = {"truth": 0, "truth_labels": 0, "ignored": 1, "found": 2, "scores": 2, "labels": 2}
"""The arrays of `ImageBoxes`, and which of an image's three lengths is theirs."""


class DetectionCounts:
    """Truth and detections image by image, in the loader's order; upright or turned boxes, no masks."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        """K names."""
        self.items: list[Item] = []
        """From a file: without label and window."""
        self.sizes: list[tuple[int, int]] = []
        """(height, width) of each image in pixels."""
        self.boxes: list[ImageBoxes] = []

    def __len__(self) -> int:
        return len(self.items)

    def add(self, detections: Detections, target: Target, *, item: Item, size: tuple[int, int]) -> None:
        """Take in one image; size is (height, width) without padding."""
        self._append(item, size, ImageBoxes.of(detections, target))

    def _append(self, item: Item, size: tuple[int, int], boxes: ImageBoxes) -> None:
        self.items.append(item)
        self.sizes.append(size)
        self.boxes.append(boxes)

    def extend(self, other: DetectionCounts) -> None:
        """Take in the images of others, of the same classes."""
        self.items += other.items
        self.sizes += other.sizes
        self.boxes += other.boxes

    @property
    def groups(self) -> list[str]:
        """N names of scenes or drives."""
        return [item.group for item in self.items]

    @property
    def ids(self) -> list[str]:
        """N names of the images."""
        return [item.id for item in self.items]

    def names(self, unit: Unit) -> list[str]:
        """N names of what is resampled: groups, or the images themselves."""
        return self.groups if unit == "group" else self.ids

    def table(self) -> BoxTable:
        """All boxes, for the metrics."""
        return BoxTable.gather(self.boxes, len(self.classes))

    def take(self, index: NDArray[np.intp]) -> DetectionCounts:
        """The images of these indices."""
        chosen = DetectionCounts(self.classes)
        for i in index.tolist():
            chosen._append(self.items[i], self.sizes[i], self.boxes[i])
        return chosen


def save_detection_counts(counts: DetectionCounts, folder: Path) -> Path:
    """Write ``per_image_boxes.npz`` and say where; boxes float32, labels int64, without pickle."""
    rows = counts.boxes or [ImageBoxes.none()]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(row, name) for row in rows]) for name in _COLUMNS
    }
    lengths = [[len(row.truth), len(row.ignored), len(row.found)] for row in counts.boxes]
    with atomic_path(folder / FILE) as path:
        np.savez_compressed(
            path,
            ids=np.array(counts.ids, np.str_),
            groups=np.array(counts.groups, np.str_),
            images=np.array([item.image for item in counts.items], np.str_),
            classes=np.array(counts.classes, np.str_),
            sizes=np.array(counts.sizes, np.int64).reshape(-1, 2),
            lengths=np.array(lengths, np.int64).reshape(-1, 3),
            **columns,
        )
    return folder / FILE


def load_detection_counts(folder: str | Path) -> DetectionCounts:
    """Read ``per_image_boxes.npz`` of an evaluation's folder, ``<run>/evaluation/<split>``."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise RunError(f"{path} does not exist: evaluate the run first (visionsft evaluate RUN)")
    with np.load(path, allow_pickle=False) as kept:
        missing = {"ids", "groups", "images", "classes", "sizes", "lengths", *_COLUMNS} - set(kept)
        if missing:
            raise RunError(f"{path} has no {', '.join(sorted(missing))}: evaluate the run again")
        arrays = {name: kept[name] for name in kept.files}
    counts = DetectionCounts(arrays["classes"].tolist())
    names = (arrays[name].tolist() for name in ("ids", "groups", "images"))
    parts = {name: _split(arrays[name], arrays["lengths"][:, part]) for name, part in _COLUMNS.items()}
    for i, (id, group, image) in enumerate(zip(*names, strict=True)):
        height, width = arrays["sizes"][i].tolist()
        boxes = ImageBoxes(**{name: rows[i] for name, rows in parts.items()})
        counts._append(Item(id=id, group=group, image=image), (height, width), boxes)
    return counts


def _split(rows: NDArray[Any], lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
    """The rows of each image: as many as `lengths` says, one after the other."""
    return np.split(rows, lengths.cumsum()[:-1]) if len(lengths) else []
