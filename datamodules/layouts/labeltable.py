"""Tables of labels: one CSV file with a line an image.

Columns image (or image_path) and label, in any order, named in the first line; several labels of an image are
separated by semicolons. Without a column label, every other column is a class, and holds 0 or 1.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import DataError, one_record, parse_each
from datamodules.layouts.classfolders import LabelListing, list_labelled, pictures_below
from datamodules.layouts.parsing import path_below, read_table, refuse_unused_folder, shorten, split_file

IMAGE_COLUMNS = ("image", "image_path")
LABEL_COLUMN = "label"
SEPARATOR = ";"


def scan(
    root: Path, *, annotations: str, images: str = "", folder: str | None = None, several: bool = False
) -> LabelListing:
    """The images that the table `annotations`, a path below `root`, names below the folder `images`.

    folder: what ``{split}`` stands for in both; several: whether an image may have more than one label, or none.
    """
    refuse_unused_folder(folder, annotations)
    path = split_file(root, annotations, folder or "", layout="csv")
    pictures = root / images.replace("{split}", folder or "")
    rows, names = _read(path, several=several)
    found: dict[Path, tuple[tuple[str, ...], str]] = {}
    for line, name, labels in rows:
        with one_record():
            place = f"{path}, line {line}"
            image = path_below(pictures, name, place)
            if image in found:
                raise DataError(f"{place}: {name} is named again, first in line {found[image][1].split()[-1]}")
            found[image] = labels, place
    # a folder that all splits share holds the images of the other tables, too
    shared = "{split}" in annotations and "{split}" not in images
    unnamed = (
        [] if shared or not pictures.is_dir() else [p for p in pictures_below(pictures) if p not in found]
    )
    return list_labelled(
        root,
        [(image, labels, place) for image, (labels, place) in found.items() if image.is_file()],
        names=names,
        images_without_label=[str(image) for image in unnamed],
        labels_without_image=[
            f"{place}: {image}" for image, (_, place) in found.items() if not image.is_file()
        ],
    )


def _read(path: Path, *, several: bool) -> tuple[list[tuple[int, str, tuple[str, ...]]], set[str]]:
    """(line, image, labels) of each line, and the names of all classes."""
    header, rows = read_table(path)
    place = next((header.index(name) for name in IMAGE_COLUMNS if name in header), None)
    if place is None:
        raise DataError(
            f"{path}: no column image; its first line is {shorten(', '.join(header))}, wanted: image, label"
        )
    if LABEL_COLUMN in header:
        column = header.index(LABEL_COLUMN)
        read = [(line, fields[place], _split(fields[column])) for line, fields in rows]
        read = read if several else parse_each(_single, ((path, *row) for row in read))
    elif several and len(header) > 1:
        read = parse_each(_flagged, ((path, line, header, fields, place) for line, fields in rows))
    else:
        hint = "" if several else "; a column for each class is for multi_label"
        raise DataError(f"{path}: no column label; its first line is {shorten(', '.join(header))}{hint}")
    flags = set(header) - {header[place]} if LABEL_COLUMN not in header else set()
    return read, flags.union(*(labels for _, _, labels in read))


def _split(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (name.strip() for name in text.split(SEPARATOR)))))


def _single(path: Path, line: int, name: str, labels: tuple[str, ...]) -> tuple[int, str, tuple[str, ...]]:
    """The row, if it has one label."""
    if len(labels) != 1:
        raise DataError(
            f"{path}, line {line}: {len(labels)} labels, {shorten('; '.join(labels)) or 'none'}; "
            "an image has one, unless the task is multi_label"
        )
    return line, name, labels


def _flagged(
    path: Path, line: int, header: list[str], fields: list[str], place: int
) -> tuple[int, str, tuple[str, ...]]:
    """The row, with the names of the columns that hold 1."""
    flags = [pair for i, pair in enumerate(zip(header, fields, strict=True)) if i != place]
    for name, value in flags:
        if value not in ("0", "1"):
            raise DataError(f"{path}, line {line}: column {name!r} holds {shorten(value)!r}; allowed: 0 or 1")
    return line, fields[place], tuple(name for name, value in flags if value == "1")
