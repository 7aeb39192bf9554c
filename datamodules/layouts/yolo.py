"""YOLO: a text file per picture, a line per object in fractions of the picture's width and height.

A line holds the class's number and a box, cx cy w h, or an outline, x1 y1 x2 y2 x3 y3..., as Ultralytics
describes for detection and segmentation; four points are an outline, not a turned box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from datamodules.classes import Value
from datamodules.errors import DataError, parse_each
from datamodules.layouts import Listing
from datamodules.layouts.objects import (
    Annotations,
    ObjectListing,
    Row,
    annotate,
    box_around,
    legend_of,
    list_pictures,
)
from datamodules.layouts.parsing import IMAGES, number, pair_files, read_each, read_size, read_text, shorten

_VARIANTS = (
    ("images/{split}/" + IMAGES, "labels/{split}/{name}.txt"),
    ("{split}/images/" + IMAGES, "{split}/labels/{name}.txt"),
    ("images/" + IMAGES, "labels/{name}.txt"),
)

_BEYOND = 1.5
"""A fraction above this is no box at the picture's edge but a number of pixels."""


def scan(
    root: Path,
    *,
    images: str | None = None,
    labels: str | None = None,
    folder: str | None = None,
    empty_without_label: bool = False,
) -> ObjectListing:
    """Pictures and their text files, paired by name; class names from data.yaml or classes.txt below `root`.

    images, labels: as in `pairs.scan`; None: `images` with `labels`, in or above a split's folder. Without
    class names an object's name is its number. empty_without_label: a picture without a text file is one
    without objects, as Ultralytics takes it; False: it is reported as unlabelled.
    """
    listing = pair_files(root, _VARIANTS, layout="yolo", images=images, labels=labels, folder=folder)
    path = _find_names(root)
    listing = _without(listing, path)
    names = None if path is None else _read_names(path)
    legend = None if names is None else legend_of({name: index for index, name in enumerate(names)})
    found = read_each(root, listing, partial(_read, names=names), legend=legend)
    return _take_empty(root, found) if empty_without_label else found


def _take_empty(root: Path, listing: ObjectListing) -> ObjectListing:
    pictures = [(Path(item.image), listing.annotations[item.id]) for item in listing.items]
    pictures += [(Path(path), annotate(path, "line", [])) for path in listing.images_without_label]
    together = list_pictures(root, pictures, legend=listing.legend)
    # such an item has no label file
    items = [replace(item, label=None) if item.label == item.image else item for item in together.items]
    return replace(listing, items=items, annotations=together.annotations, images_without_label=[])


def _find_names(root: Path) -> Path | None:
    """The file with the names of the classes."""
    places = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "labels/classes.txt")
    return next((root / place for place in places if (root / place).is_file()), None)


def _without(listing: Listing, path: Path | None) -> Listing:
    """A classes.txt among the labels is none of them."""
    others = [label for label in listing.labels_without_image if label != str(path)]
    return replace(listing, labels_without_image=others)


def _read_names(path: Path) -> list[str]:
    """Class names by number."""
    if path.suffix == ".txt":
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    else:
        names = _names_of_yaml(path)
    if len(set(names)) < len(names):
        raise DataError(f"{path}: names a class twice: {shorten(', '.join(names))}")
    return names


def _names_of_yaml(path: Path) -> list[str]:
    try:
        content: Any = yaml.safe_load(read_text(path, largest=1 << 20))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: not YAML: {error}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise DataError(
            f"{path}: 'names' is {shorten(names)}; allowed: class names as a list, or by number from 0"
        )
    return [str(name) for name in names]


def _read(image: Path, path: Path, *, names: Sequence[str] | None) -> Annotations:
    height, width = read_size(image)
    lines = [
        (f"{path}, line {place}", place, line.split(), (height, width), names)
        for place, line in enumerate(read_text(path).splitlines(), start=1)
        if line.strip()
    ]
    rows = parse_each(_row, lines)
    return annotate(str(path), "line", rows, size=(height, width))


def _row(
    where: str, place: int, fields: Sequence[str], size: tuple[int, int], names: Sequence[str] | None
) -> Row:
    if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
        raise DataError(
            f"{where}: {len(fields)} numbers ({shorten(' '.join(fields))}); YOLO has class cx cy w h, "
            "or class x1 y1 x2 y2 x3 y3..."
        )
    name = _class(fields[0], names, where)
    values = np.array([number(field, "a coordinate", where) for field in fields[1:]])
    if (np.abs(values[np.isfinite(values)]) > _BEYOND).any():
        raise DataError(
            f"{where}: {shorten(' '.join(fields))} looks like pixels; YOLO's coordinates are fractions of the "
            "picture's width and height"
        )
    values = values * np.tile((size[1], size[0]), len(values) // 2)
    if len(values) == 4:
        cx, cy, w, h = values.tolist()
        return Row(place, name, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    ring = values.reshape(-1, 2)
    return Row(place, name, box_around(ring), outline=(ring,))


def _class(field: str, names: Sequence[str] | None, where: str) -> Value:
    value = number(field, "the class", where)
    if not value.is_integer() or not 0 <= value < (len(names) if names is not None else 1 << 31):
        last = f"0 to {len(names) - 1}" if names is not None else "a whole number from 0"
        raise DataError(f"{where}: the class is {shorten(field)}; allowed: {last}")
    return int(value) if names is None else names[int(value)]
