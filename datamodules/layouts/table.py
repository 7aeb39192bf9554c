"""Tables of boxes: one CSV file with a line per box, as RetinaNet's and DeepForest's.

Columns image, x1, y1, x2, y2 and label, in any order, named in the first line; also xmin, ymin, xmax, ymax,
and image_path. A line that names an image and has no box says that the image is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datamodules.errors import DataError, one_record
from datamodules.layouts.objects import ObjectListing, Row, annotate, list_pictures
from datamodules.layouts.parsing import (
    IMAGES,
    number,
    path_below,
    read_table,
    refuse_unused_folder,
    shorten,
    split_file,
)

COLUMNS = {
    "image": ("image", "image_path"),
    "x1": ("x1", "xmin"),
    "y1": ("y1", "ymin"),
    "x2": ("x2", "xmax"),
    "y2": ("y2", "ymax"),
    "label": ("label",),
}
"""Each column and the names that it may have."""

_CORNERS = ("x1", "y1", "x2", "y2")


def scan(
    root: Path, *, annotations: str = "{split}.csv", images: str = "", folder: str | None = None
) -> ObjectListing:
    """The images that the table `annotations`, a path below `root`, names below the folder `images`.

    folder: what ``{split}`` stands for in both.
    """
    refuse_unused_folder(folder, annotations)
    path = split_file(root, annotations, folder or "", layout="table")
    pictures = root / images.replace("{split}", folder or "")
    rows: dict[Path, list[Row]] = {}
    for place, record in _records(path):
        with one_record():
            where = f"{path}, line {place}"
            image = path_below(pictures, record["image"], where)
            boxes = rows.setdefault(image, [])
            row = _row(record, place, where)
            if row is not None:
                boxes.append(row)
    found = [(image, annotate(str(path), "line", boxes)) for image, boxes in rows.items() if image.is_file()]
    return list_pictures(
        root,
        found,
        images_without_label=[str(each) for each in sorted(pictures.rglob(IMAGES)) if each not in rows],
        labels_without_image=[f"{path}: {each}" for each in rows if not each.is_file()],
    )


def _records(path: Path) -> list[tuple[int, Mapping[str, str]]]:
    """(line, fields by column) of every line that isn't empty."""
    header, rows = read_table(path)
    columns = _columns(path, header)
    return [(line, {key: fields[at] for key, at in columns.items()}) for line, fields in rows]


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    found = {key: [header.index(name) for name in names if name in header] for key, names in COLUMNS.items()}
    missing = [key for key, places in found.items() if not places]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; its first line is {shorten(', '.join(header))}, "
            f"wanted: {', '.join(COLUMNS)}"
        )
    return {key: places[0] for key, places in found.items()}


def _row(record: Mapping[str, str], place: int, where: str) -> Row | None:
    """None where the line has no box."""
    corners = [record[corner] for corner in _CORNERS]
    if not any(corners):
        return None
    x1, y1, x2, y2 = (number(text, corner, where) for corner, text in zip(_CORNERS, corners, strict=True))
    return Row(place, record["label"], (x1, y1, x2, y2))
