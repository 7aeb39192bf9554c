"""COCO segmentation: masks drawn from the polygons and run lengths of a JSON file a split (Lin et al. 2014).

A pixel without an annotation is background. One that annotations of two classes claim is ignored: the file
doesn't say which of them is in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.batch import Item
from datamodules.classes import ClassSpec, Legend
from datamodules.errors import DataError
from datamodules.layouts import Listing, pairs
from datamodules.layouts.coco import (
    LARGEST,
    decode_runs,
    identity,
    read_classes,
    read_images,
    read_polygon,
    read_runs,
)
from datamodules.layouts.outlining import rasterise_polygons
from datamodules.layouts.parsing import (
    IMAGES,
    entry,
    read_json,
    refuse_unused_folder,
    shorten,
    split_file,
    split_names,
)

BACKGROUND = "background"
DISPUTED = "disputed"

ANNOTATIONS = "annotations/instances_{split}.json"
PICTURES = "{split}"

HIGHEST = (1 << 31) - 3
"""Number that a category has at most."""


def scan(
    root: Path, *, annotations: str = ANNOTATIONS, images: str = PICTURES, folder: str | None = None
) -> Listing:
    """The pictures of `annotations`, a path below `root`, whose names are below the folder `images`.

    folder: what ``{split}`` stands for in both; None: every file that `annotations` fits.
    """
    refuse_unused_folder(folder, annotations)
    if folder is None and "{split}" in annotations:
        splits = split_names(root, annotations, layout="coco")
        return pairs.merge(scan(root, annotations=annotations, images=images, folder=each) for each in splits)
    path = split_file(root, annotations, folder or "", layout="coco")
    return _read(root, path, root / images.replace("{split}", folder or ""))


def _read(root: Path, path: Path, pictures: Path) -> Listing:
    content = read_json(path, largest=LARGEST)
    classes = check_numbers(path, read_classes(path, entry(content, "categories", list, str(path))))
    known = read_images(path, pictures, entry(content, "images", list, str(path)))
    background, disputed = free_numbers(classes)
    areas: dict[int, list[Area]] = {number: [] for number in known}
    for index, record in enumerate(entry(content, "annotations", list, str(path))):
        where = f"{path}, annotations[{index}]"
        image, category = (identity(record, key, where) for key in ("image_id", "category_id"))
        if image not in known:
            raise DataError(f"{where}: image_id {image} is no image of this file")
        if category not in classes:
            raise DataError(f"{where}: category_id {category} is none of {shorten(str(sorted(classes)))}")
        areas[image].append(_area(record, category, known[image][1], where))
    named = {file for file, _ in known.values()}
    there = {number: (file, size) for number, (file, size) in known.items() if file.is_file()}
    ids = {number: file.relative_to(root).as_posix() for number, (file, _) in there.items()}
    return Listing(
        items=sorted(
            (Item(ids[number], ids[number], str(file), str(path)) for number, (file, _) in there.items()),
            key=lambda item: item.id,
        ),
        images_without_label=[str(each) for each in sorted(pictures.rglob(IMAGES)) if each not in named],
        labels_without_image=[f"{path}: {file}" for file in sorted(named) if not file.is_file()],
        sources={
            str(file): DrawnMask(size, tuple(areas[number]), background, disputed)
            for number, (file, size) in there.items()
        },
        declared=_legend(classes, background, disputed),
    )


@dataclass(frozen=True)
class Area:
    """What one annotation covers."""

    category: int
    polygons: tuple[NDArray[np.float32], ...]
    """(n, 2) x, y each; what lies in any of them is covered."""
    runs: NDArray[np.uint32] | None
    """Run lengths of 0 and 1 in turn, columns first; None: there are polygons."""

    def drawn(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(H, W) bool."""
        if self.runs is None:
            return rasterise_polygons(self.polygons, size)
        return decode_runs(self.runs, size)


@dataclass(frozen=True)
class DrawnMask:
    """One picture's annotations; see `datamodules.layouts.MaskSource`."""

    size: tuple[int, int]
    """(height, width), as the JSON file has it."""
    areas: tuple[Area, ...]
    background: int
    disputed: int

    def codes(self, path: str) -> NDArray[np.int32]:
        """(H, W) numbers of categories."""
        mask = np.full(self.size, self.background, np.int32)
        taken = np.zeros(self.size, np.bool_)
        for area in self.areas:
            inside = area.drawn(self.size)
            contested = inside & taken & (mask != area.category)
            mask[inside] = area.category
            mask[contested] = self.disputed
            taken |= inside
        return mask


def _area(record: Any, category: int, size: tuple[int, int], where: str) -> Area:
    segmentation = entry(record, "segmentation", (list, dict), where)
    if isinstance(segmentation, dict):
        return Area(category, (), read_runs(segmentation, size, where).astype(np.uint32))
    polygons = [read_polygon(each, where) for each in segmentation]
    if not all(np.isfinite(polygon).all() for polygon in polygons):
        raise DataError(f"{where}: a polygon has a point that is not finite")
    return Area(category, tuple(polygon.astype(np.float32) for polygon in polygons), None)


def check_numbers(path: Path, classes: dict[int, str]) -> dict[int, str]:
    """Categories whose numbers fit into a mask of 32 bits."""
    if not classes:
        raise DataError(f"{path}: has no categories")
    if max(classes) > HIGHEST:
        raise DataError(f"{path}: a category has the id {max(classes)}; allowed: at most {HIGHEST}")
    return classes


def free_numbers(classes: dict[int, str]) -> tuple[int, int]:
    """Of the background (that of a category of this name, if there is one) and of what two classes claim."""
    own = [number for number, name in classes.items() if name == BACKGROUND]
    background = own[0] if own else 0 if 0 not in classes else max(classes) + 1
    return background, max(*classes, background) + 1


def _legend(classes: dict[int, str], background: int, disputed: int) -> Legend:
    numbers = {BACKGROUND: background} | {name: number for number, name in classes.items()}
    specs = tuple(ClassSpec(name, (number,)) for name, number in numbers.items())
    return Legend(specs, ignore=(disputed,), names=numbers | {DISPUTED: disputed})
