"""Detection counts: what a pass over a split leaves of each image, enough to remake every number without the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.batch import Item
from datamodules.objects import Objects, Target
from visionsft.errors import RunError
from visionsft.evaluation.intervals import Unit
from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes, own_classes
from visionsft.evaluation.metrics.masks import ImageMasks, MaskTable
from visionsft.files import atomic_path
from visionsft.models.detections import Detections

FILE = "per_image_boxes.npz"
"""In the folder of an evaluation."""

_COLUMNS = {
    "truth": 0, "truth_labels": 0, "ignored": 1, "ignored_labels": 1, "found": 2, "scores": 2, "labels": 2
}  # fmt: skip
"""The arrays of `ImageBoxes`, and which of an image's three lengths is theirs."""

_MASKS = {"truth": 0, "ignored": 1, "found": 2}
"""Those of `ImageMasks`, likewise."""


class DetectionCounts:
    """Truth and detections image by image, in the loader's order: upright or turned boxes, and masks if there are."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        """K names."""
        self.items: list[Item] = []
        """From a file: without label and window."""
        self.sizes: list[tuple[int, int]] = []
        """(height, width) of each image in pixels."""
        self.boxes: list[ImageBoxes] = []
        self.masks: list[ImageMasks] = []
        """Of every image, or of none."""
        self.brightness: list[float] = []
        """Mean of all bands over each image's valid pixels, in the files' own units; nan where it isn't known."""

    def __len__(self) -> int:
        return len(self.items)

    def add(self, detections: Detections, target: Target, *, item: Item, size: tuple[int, int]) -> None:
        """Take in one image; size is (height, width) without padding."""
        self._append(item, size, ImageBoxes.of(detections, target))

    def add_objects(
        self,
        detections: Detections,
        objects: Objects,
        *,
        item: Item,
        size: tuple[int, int],
        outlines: NDArray[np.object_] | None = None,
        brightness: float = math.nan,
    ) -> None:
        """Take in one image with what its labels say. outlines: (D,) shapely geometries where masks are compared."""
        masks = None if outlines is None else ImageMasks.seen(outlines, objects, size)
        self._append(item, size, ImageBoxes.seen(detections, objects), masks, brightness)

    def _append(
        self,
        item: Item,
        size: tuple[int, int],
        boxes: ImageBoxes,
        masks: ImageMasks | None = None,
        brightness: float = math.nan,
    ) -> None:
        self.items.append(item)
        self.sizes.append(size)
        self.boxes.append(boxes)
        self.brightness.append(brightness)
        if masks is not None:
            self.masks.append(masks)

    def extend(self, other: DetectionCounts) -> None:
        """Take in the images of others, of the same classes."""
        self.items += other.items
        self.sizes += other.sizes
        self.boxes += other.boxes
        self.masks += other.masks
        self.brightness += other.brightness

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

    def table(self, *, masks: bool = False) -> BoxTable:
        """All boxes, or all masks, for the metrics."""
        if masks:
            return MaskTable.of(self.boxes, self.masks, self.sizes, len(self.classes))
        return BoxTable.gather(self.boxes, len(self.classes))

    def take(self, index: NDArray[np.intp]) -> DetectionCounts:
        """The images of these indices."""
        chosen = DetectionCounts(self.classes)
        for i in index.tolist():
            masks = self.masks[i] if self.masks else None
            chosen._append(self.items[i], self.sizes[i], self.boxes[i], masks, self.brightness[i])
        return chosen


def save_detection_counts(counts: DetectionCounts, folder: Path) -> Path:
    """Write ``per_image_boxes.npz`` and say where; boxes float32, labels int64, without pickle."""
    rows = counts.boxes or [ImageBoxes.none()]
    columns: dict[str, Any] = {
        name: np.concatenate([_column(row, name) for row in rows]) for name in _COLUMNS
    }
    for name in _MASKS if counts.masks else ():
        runs = [each for row in counts.masks for each in getattr(row, name)]
        columns[f"{name}_runs"] = np.concatenate([np.empty((0, 2), np.int64), *runs])
        columns[f"{name}_run_counts"] = np.array([len(each) for each in runs], np.int64)
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
            brightness=np.array(counts.brightness, np.float64),
            **columns,
        )
    return folder / FILE


def load_detection_counts(folder: str | Path) -> DetectionCounts:
    """Read ``per_image_boxes.npz`` of an evaluation's folder, ``<run>/evaluation/<split>``."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise RunError(f"{path} does not exist: evaluate the run first (visionsft evaluate RUN)")
    with np.load(path, allow_pickle=False) as kept:
        names = {"ids", "groups", "images", "classes", "sizes", "lengths", "brightness", *_COLUMNS}
        missing = names - set(kept)
        if missing:
            raise RunError(f"{path} has no {', '.join(sorted(missing))}: evaluate the run again")
        arrays = {name: kept[name] for name in kept.files}
    counts = DetectionCounts(arrays["classes"].tolist())
    columns = (arrays[name].tolist() for name in ("ids", "groups", "images", "brightness"))
    masks = _load_masks(arrays) if "found_runs" in arrays else [None] * len(arrays["ids"])
    parts = {name: _split(arrays[name], arrays["lengths"][:, part]) for name, part in _COLUMNS.items()}
    for i, (id, group, image, brightness) in enumerate(zip(*columns, strict=True)):
        height, width = arrays["sizes"][i].tolist()
        boxes = ImageBoxes(**{name: rows[i] for name, rows in parts.items()})
        item = Item(id=id, group=group, image=image)
        counts._append(item, (height, width), boxes, masks[i], brightness)
    return counts


def _column(row: ImageBoxes, name: str) -> NDArray[Any]:
    values: NDArray[Any] = own_classes(row) if name == "ignored_labels" else getattr(row, name)
    return values


def _load_masks(arrays: dict[str, NDArray[Any]]) -> list[ImageMasks | None]:
    """Of each image."""
    kinds = {}
    for name, part in _MASKS.items():
        runs = _split(arrays[f"{name}_runs"], arrays[f"{name}_run_counts"])
        ends = arrays["lengths"][:, part].cumsum().tolist()
        kinds[name] = [tuple(runs[start:end]) for start, end in pairwise([0, *ends])]
    return [ImageMasks(*row) for row in zip(*(kinds[name] for name in _MASKS), strict=True)]


def _split(rows: NDArray[Any], lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
    """The rows of each image: as many as `lengths` says, one after the other."""
    return np.split(rows, lengths.cumsum()[:-1]) if len(lengths) else []
