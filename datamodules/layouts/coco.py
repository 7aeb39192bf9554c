"""COCO: one JSON file a split with its images, classes and objects (Lin et al. 2014).

Outlines are polygons or run-length codes of a mask, columns first, as counts or in pycocotools' compressed
text. Crowds (iscrowd) are ignored regions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError, one_record
from datamodules.layouts.objects import (
    ObjectListing,
    Outline,
    Row,
    annotate,
    box_around,
    legend_of,
    list_pictures,
    merge,
)
from datamodules.layouts.outlining import outline_mask, unite_polygons
from datamodules.layouts.parsing import (
    IMAGES,
    entry,
    numbers,
    path_below,
    read_json,
    refuse_unused_folder,
    shorten,
    split_file,
    split_names,
)

LARGEST = 4 << 30
"""Bytes; instances_train2017.json has 450 MB."""

_MOST_PIXELS = 1 << 30


def scan(
    root: Path,
    *,
    annotations: str = "annotations/instances_{split}.json",
    images: str = "{split}",
    folder: str | None = None,
) -> ObjectListing:
    """The images of `annotations`, a path below `root`, whose names are below the folder `images`.

    folder: what ``{split}`` stands for in both; None: every file that `annotations` fits. An image without
    objects is an empty picture; a name whose file is missing is a label without image.
    """
    refuse_unused_folder(folder, annotations)
    if folder is not None or "{split}" not in annotations:
        path = split_file(root, annotations, folder or "", layout="coco")
        return _read(root, path, root / images.replace("{split}", folder or ""))
    splits = split_names(root, annotations, layout="coco")
    return merge(scan(root, annotations=annotations, images=images, folder=split) for split in splits)


def _read(root: Path, path: Path, pictures: Path) -> ObjectListing:
    content = read_json(path, largest=LARGEST)
    classes = read_classes(path, entry(content, "categories", list, str(path)))
    known = read_images(path, pictures, entry(content, "images", list, str(path)))
    rows: dict[int, list[Row]] = {number: [] for number in known}
    seen: set[int] = set()
    for index, record in enumerate(entry(content, "annotations", list, str(path))):
        with one_record():
            where = f"{path}, annotations[{index}]"
            place = identity(record, "id", where)
            if place in seen:
                raise DataError(f"{where}: the id {place} is given twice")
            seen.add(place)
            image = identity(record, "image_id", where)
            if image not in known:
                raise DataError(f"{where}: image_id {image} is no image of this file")
            rows[image].append(_row(record, place, known[image][1], classes, where))
    named = {file for file, _ in known.values()}
    return list_pictures(
        root,
        [
            (file, annotate(str(path), "annotation", rows[number], size=size))
            for number, (file, size) in known.items()
            if file.is_file()
        ],
        legend=legend_of({name: number for number, name in classes.items()}),
        images_without_label=[str(each) for each in sorted(pictures.rglob(IMAGES)) if each not in named],
        labels_without_image=[f"{path}: {file}" for file in sorted(named) if not file.is_file()],
    )


def read_classes(path: Path, records: Sequence[Any]) -> dict[int, str]:
    """The categories' names by number; numbers may leave gaps."""
    classes: dict[int, str] = {}
    for index, record in enumerate(records):
        where = f"{path}, categories[{index}]"
        number, name = identity(record, "id", where), entry(record, "name", str, where)
        if number in classes or name in classes.values():
            raise DataError(
                f"{where}: the class {number} '{shorten(name)}' has the id or name of one before it"
            )
        classes[number] = name
    return classes


def read_images(
    path: Path, pictures: Path, records: Sequence[Any]
) -> dict[int, tuple[Path, tuple[int, int]]]:
    """(file, (height, width)) of the images by number."""
    known: dict[int, tuple[Path, tuple[int, int]]] = {}
    for index, record in enumerate(records):
        where = f"{path}, images[{index}]"
        number = identity(record, "id", where)
        if number in known:
            raise DataError(f"{where}: the id {number} is given twice")
        file = path_below(pictures, entry(record, "file_name", str, where), where)
        height, width = (entry(record, side, int, where) for side in ("height", "width"))
        if height < 1 or width < 1 or height * width > _MOST_PIXELS:
            raise DataError(f"{where}: {width} x {height} pixels are no picture's size")
        known[number] = file, (height, width)
    counts = Counter(file for file, _ in known.values())
    twice = next((file for file, count in counts.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: two images have the file name {twice}")
    return known


def identity(record: Any, key: str, where: str) -> int:
    """The number that stands for an image, a category or an annotation."""
    number: int = entry(record, key, int, where)
    if not 0 <= number < 1 << 63:
        raise DataError(f"{where}: '{key}' is {shorten(str(number))}; allowed: whole numbers from 0")
    return number


def _row(record: Any, place: int, size: tuple[int, int], classes: dict[int, str], where: str) -> Row:
    number = identity(record, "category_id", where)
    if number not in classes:
        raise DataError(f"{where}: category_id {number} is none of {shorten(str(sorted(classes)))}")
    outline = _outline(record.get("segmentation"), size, where)
    if "bbox" in record:
        x, y, width, height = numbers(record["bbox"], 4, "bbox", where)
        box = (x, y, x + width, y + height)
    elif outline:
        box = box_around(np.concatenate(outline))
    else:
        raise DataError(f"{where}: has neither 'bbox' nor 'segmentation'")
    crowd = record.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd is {shorten(crowd)}; allowed: 0 or 1")
    return Row(place, classes[number], box, ignored=crowd == 1, outline=outline)


def _outline(segmentation: Any, size: tuple[int, int], where: str) -> Outline:
    if segmentation is None or segmentation == []:
        return ()
    if isinstance(segmentation, dict):
        return outline_mask(decode_runs(read_runs(segmentation, size, where), size))
    if not isinstance(segmentation, list):
        raise DataError(f"{where}: segmentation is {shorten(segmentation)}; allowed: polygons or run lengths")
    return unite_polygons([read_polygon(each, where) for each in segmentation], size)


def read_polygon(values: Any, where: str) -> NDArray[np.float64]:
    """(n, 2) x, y of a list of coordinates in turn."""
    if not isinstance(values, list) or len(values) < 6 or len(values) % 2:
        raise DataError(f"{where}: a polygon is {shorten(values)}; allowed: x, y of 3 or more points")
    return np.array(numbers(values, len(values), "a polygon", where)).reshape(-1, 2)


def read_runs(code: dict[str, Any], size: tuple[int, int], where: str) -> NDArray[np.int64]:
    """Run lengths of 0 and 1 in turn, columns first, of a mask of this (height, width)."""
    height, width = size
    if code.get("size") != [height, width]:
        found = shorten(code.get("size"))
        raise DataError(f"{where}: segmentation's size is {found}, its image's [{height}, {width}]")
    counts = entry(code, "counts", (list, str), where)
    runs = _runs(counts, where) if isinstance(counts, str) else counts
    if (
        not all(isinstance(run, int) and 0 <= run <= height * width for run in runs)
        or sum(runs) != height * width
    ):
        raise DataError(f"{where}: the run lengths don't add up to {height} x {width} pixels")
    return np.array(runs, np.int64)


def decode_runs(runs: NDArray[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) mask of run lengths."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[::-1]).T


def _runs(text: str, where: str) -> list[int]:
    """Run lengths of pycocotools' text: 5 bits a character, each run from the fourth on less the one two before."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError(f"{where}: {shorten(repr(text))} is no run-length code")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise DataError(f"{where}: {shorten(repr(text))} is a truncated run-length code")
    return runs
