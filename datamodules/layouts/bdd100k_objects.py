"""BDD100K objects: frames with boxes and outlines in JSON, a file a split or a file a frame (Yu et al. 2020).

A file a split holds a list of frames with 'labels', as do the files a frame of 2020; those of 2018 hold
'frames' with 'objects'. Outlines (poly2d) are closed lines of vertices (L) and of control points (C) of cubic
Bezier curves. Open lines, such as lane marks, surround nothing: they are left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError, one_record
from datamodules.layouts import pairs
from datamodules.layouts.objects import (
    Annotations,
    Box,
    ObjectListing,
    Repairs,
    Row,
    annotate,
    box_around,
    list_pictures,
    merge,
)
from datamodules.layouts.parsing import (
    IMAGES,
    entry,
    number,
    numbers,
    path_below,
    read_each,
    read_json,
    refuse_unused_folder,
    shorten,
    split_file,
    split_names,
)

_FRAMES = "images/100k/{split}"
_FILES = (
    "labels/bdd100k_labels_images_{split}.json",
    "labels/det_20/det_{split}.json",
    "labels/100k/{split}/{name}.json",
)
"""Of the releases of 2018 and 2020, and a file a frame."""

OPEN_LINE = "open lines (poly2d that isn't closed, as lane marks) were left out"
NO_SHAPE = "labels without box2d and poly2d were left out"

LARGEST = 4 << 30

_STEPS = 8
"""Straight pieces that a Bezier curve is drawn with."""


def scan(
    root: Path, *, annotations: str | None = None, images: str | None = None, folder: str | None = None
) -> ObjectListing:
    """Frames with the objects of one split's folder, or of all.

    annotations: path of a file a split with ``{split}``, or of a file a frame with ``{name}`` too; images: the
    frames' folder; None: where BDD100K's releases have them. `root` holds `images`, or is one above.
    """
    base = root / "bdd100k" if (root / "bdd100k").is_dir() else root
    images = _FRAMES if images is None else images
    annotations = _find(base) if annotations is None else annotations
    refuse_unused_folder(folder, annotations)
    if "{name}" in annotations:
        listing = pairs.scan(base, images=f"{images}/{IMAGES}", labels=annotations, folder=folder)
        repairs = Repairs()
        return read_each(base, listing, partial(_read_frame, repairs=repairs), repairs=repairs)
    if folder is None and "{split}" in annotations:
        folders = split_names(base, annotations, layout="bdd100k")
        return merge(_read_split(base, annotations, images, each) for each in folders)
    return _read_split(base, annotations, images, folder or "")


def _find(base: Path) -> str:
    """The release whose files lie below `base`."""
    for template in _FILES:
        if any(base.glob(template.replace("{split}", "*").replace("{name}", "*"))):
            return template
    looked = ", ".join(_FILES)
    raise DataError(f"{base} is not in the layout 'bdd100k'. Looked for: {looked}")


def _read_split(base: Path, annotations: str, images: str, folder: str) -> ObjectListing:
    path = split_file(base, annotations, folder, layout="bdd100k")
    pictures = base / images.replace("{split}", folder)
    content = read_json(path, largest=LARGEST)
    if not isinstance(content, list):
        raise DataError(f"{path}: holds {shorten(content)}; allowed: a list of frames")
    repairs, found = Repairs(), {}
    for index, record in enumerate(content):
        with one_record():
            where = f"{path}, frame {index}"
            image = path_below(pictures, entry(record, "name", str, where), where)
            if image in found:
                raise DataError(f"{where}: '{image.name}' is given twice")
            found[image] = annotate(
                str(path), f"frame {index}, label", _rows(_labels(record, where), where, repairs)
            )
    return list_pictures(
        base,
        [(image, each) for image, each in found.items() if image.is_file()],
        images_without_label=[str(each) for each in sorted(pictures.glob(IMAGES)) if each not in found],
        labels_without_image=[f"{path}: {image}" for image in found if not image.is_file()],
        repairs=repairs,
    )


def _read_frame(image: Path, path: Path, *, repairs: Repairs) -> Annotations:
    record = read_json(path)
    if isinstance(record, list) and len(record) == 1:
        record = record[0]
    return annotate(str(path), "label", _rows(_labels(record, str(path)), str(path), repairs))


def _labels(record: Any, where: str) -> list[Any]:
    """A frame without objects has null, or no 'labels' at all."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: {shorten(record)} is no frame")
    if "frames" in record:
        frames = entry(record, "frames", list, where)
        if len(frames) != 1:
            raise DataError(f"{where}: holds {len(frames)} frames; allowed: one frame a file")
        labels = entry(frames[0], "objects", (list, type(None)), where)
    else:
        labels = record.get("labels")
    if labels is not None and not isinstance(labels, list):
        raise DataError(f"{where}: its labels are {shorten(labels)}; allowed: a list")
    return labels or []


def _rows(labels: Sequence[Any], where: str, repairs: Repairs) -> list[Row]:
    rows = []
    for index, record in enumerate(labels):
        with one_record():
            place = f"{where}, label {index}"
            name = entry(record, "category", str, place)
            outline, is_open = _outline(record.get("poly2d"), name, place)
            if record.get("box2d") is not None:
                rows.append(Row(index, name, _box(record["box2d"], place), outline=outline))
            elif outline:
                rows.append(Row(index, name, box_around(np.concatenate(outline)), outline=outline))
            else:
                repairs.add(OPEN_LINE if is_open else NO_SHAPE, f"{place}: '{name}'")
    return rows


def _box(box2d: Any, where: str) -> Box:
    x1, y1, x2, y2 = (
        number(entry(box2d, key, (int, float), where), key, where) for key in ("x1", "y1", "x2", "y2")
    )
    return x1, y1, x2, y2


def _outline(poly2d: Any, name: str, where: str) -> tuple[tuple[NDArray[np.float64], ...], bool]:
    """The closed lines, and whether there are open ones."""
    if poly2d is None:
        return (), False
    if not isinstance(poly2d, list):
        raise DataError(f"{where}: poly2d is {shorten(poly2d)}; allowed: a list")
    if poly2d and isinstance(poly2d[0], list):
        return _outline_of_2018(poly2d, name, where)
    closed, is_open = [], False
    for line in poly2d:
        vertices = entry(line, "vertices", list, where)
        types = entry(line, "types", str, where)
        if not line.get("closed", True):
            is_open = True
            continue
        closed.append(_ring([numbers(vertex, 2, "a vertex", where) for vertex in vertices], types, where))
    return tuple(closed), is_open


def _outline_of_2018(
    vertices: list[Any], name: str, where: str
) -> tuple[tuple[NDArray[np.float64], ...], bool]:
    """[x, y, 'L' or 'C'] of one line, which doesn't say whether it is closed: areas are, lanes aren't."""
    if not all(isinstance(vertex, list) and len(vertex) == 3 for vertex in vertices):
        raise DataError(f"{where}: poly2d is {shorten(vertices)}; allowed: a list of [x, y, type]")
    points = [[number(x, "a vertex", where), number(y, "a vertex", where)] for x, y, _ in vertices]
    if name.startswith("lane"):
        return (), True
    return (_ring(points, "".join(str(kind) for _, _, kind in vertices), where),), False


def _ring(points: list[list[float]], types: str, where: str) -> NDArray[np.float64]:
    """(n, 2) points of a closed line; two control points lie between the ends of each cubic Bezier curve."""
    if len(points) < 3 or len(types) != len(points) or set(types) - {"L", "C"}:
        raise DataError(
            f"{where}: poly2d has {len(points)} vertices of the types {shorten(types)!r}; "
            "allowed: 3 or more, each L or C"
        )
    given = np.array(points)
    if "L" not in types:
        return given
    start = types.index("L")
    given, types = np.roll(given, -start, axis=0), types[start:] + types[:start]
    ring, index = [], 0
    while index < len(given):
        ring.append(given[index])
        if types[index + 1 : index + 3] == "CC":
            control = given[np.arange(index, index + 4) % len(given)]
            ring += list(_bezier(control))
            index += 3
        else:
            index += 1
    return np.array(ring)


def _bezier(control: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) points between the ends of the cubic curve with (4, 2) control points."""
    t = np.arange(1, _STEPS)[:, None] / _STEPS
    first, second, third, last = control
    return (1 - t) ** 3 * first + 3 * t * (1 - t) ** 2 * second + 3 * t**2 * (1 - t) * third + t**3 * last
