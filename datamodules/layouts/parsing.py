"""Parsing label files: their texts, numbers and paths, each error with its file and place."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.classes import Legend
from datamodules.errors import DataError
from datamodules.layouts import Listing, pairs
from datamodules.layouts.objects import Annotations, ObjectListing, Repairs, list_pictures
from datamodules.raster import read_header

IMAGES = "*.[jpbwtJPBWT][peinmPEINM]*"
"""Glob of jpg, jpeg, png, bmp, webp, tif and tiff, but not of txt."""

LARGEST = 64 << 20
"""Bytes that the label file of one picture has at most: more is no label file."""


def read_text(path: Path, *, largest: int = LARGEST) -> str:
    """The file's text, UTF-8."""
    try:
        return read_bytes(path, largest=largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8: {error}") from error


def read_bytes(path: Path, *, largest: int = LARGEST) -> bytes:
    """The file's bytes, if there are not suspiciously many."""
    try:
        if path.stat().st_size > largest:
            size = path.stat().st_size >> 20
            raise DataError(f"{path}: {size} MB are too many for a label file; at most {largest >> 20}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error


def read_json(path: Path, *, largest: int = LARGEST) -> Any:
    """What the JSON file holds."""
    text = read_text(path, largest=largest)
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON, or a truncated file: {error}") from error


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names in the first line of a CSV file, and (line, fields) of every further one that isn't empty."""
    reader = csv.reader(io.StringIO(read_text(path, largest=1 << 30)), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise DataError(f"{path}: the file is empty")
        rows: list[tuple[int, list[str]]] = []
        for fields in reader:
            if fields and len(fields) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, but {len(header)} columns"
                )
            if fields:
                rows.append((reader.line_num, [field.strip() for field in fields]))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV: {error}") from error
    return header, rows


def entry(record: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of `key` in a JSON object, of the type asked for."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: {shorten(record)} is no JSON object with '{key}'")
    if key not in record:
        raise DataError(f"{where}: has no '{key}'; it has {shorten(', '.join(record)) or 'nothing'}")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(each.__name__ for each in kinds)
        raise DataError(f"{where}: '{key}' is {shorten(value)}; allowed: {wanted}")
    return value


def number(value: Any, what: str, where: str) -> float:
    """A float of a JSON number or of a text; not finite ones pass, and are counted as flaws later."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: {what} is {shorten(value) or 'empty'}, not a number") from None


def numbers(values: Any, count: int, what: str, where: str) -> list[float]:
    """`count` floats of a JSON list."""
    if not isinstance(values, list) or len(values) != count:
        raise DataError(f"{where}: {what} is {shorten(values)}; allowed: {count} numbers")
    return [number(value, what, where) for value in values]


def shorten(value: Any) -> str:
    """A value for messages, cut after 60 characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def path_below(folder: Path, name: str, where: str) -> Path:
    """folder/name, where `name` doesn't lead out of the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    leads_out = path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:[/\\\\]", name) is not None
    if leads_out or not path.parts or not _is_file_name(path):
        raise DataError(f"{where}: the file name {shorten(repr(name))} is not one below {folder}")
    return folder / path


def _is_file_name(path: PurePosixPath) -> bool:
    """Whether the system takes it: JSON can hold halves of characters, and texts of any length."""
    try:
        sizes = [len(part.encode()) for part in path.parts]
    except UnicodeEncodeError:
        return False
    return "\0" not in str(path) and max(sizes) < 256 and sum(sizes) < 2048


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture from its header, not turned as EXIF data may ask."""
    if path.suffix.lower() in (".tif", ".tiff"):
        grid = read_header(path).grid
        return grid.height, grid.width
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a picture, or a damaged one") from error


def read_stored(path: str) -> NDArray[Any]:
    """(H, W) or (H, W, C) values of a picture as they are stored; of a palette picture its indices."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a picture, or a truncated or damaged one") from error


def pair_files(
    root: Path,
    variants: Sequence[tuple[str, str]],
    *,
    layout: str,
    images: str | None,
    labels: str | None,
    folder: str | None,
) -> Listing:
    """Pairs of pictures and label files: where the user says, else as the first variant that is present."""
    if (images is None) != (labels is None):
        raise DataError("images and labels are given together or not at all")
    if images is None or labels is None:
        images, labels = pairs.first_present(root, variants, layout=layout)
    refuse_unused_folder(folder, images)
    return pairs.scan(root, images=images, labels=labels, folder=folder)


def refuse_unused_folder(folder: str | None, pattern: str) -> None:
    """A split's folder that no pattern has a place for would give every split the same pictures."""
    if folder is not None and "{split}" not in pattern:
        raise DataError(
            f"split by folder '{folder}': {pattern} has no '{{split}}', which stands for the folder"
        )


def split_names(root: Path, template: str, *, layout: str) -> list[str]:
    """What ``{split}`` can stand for in the path of a file a split."""
    before, after = template.split("{split}", maxsplit=1)
    found = [path.relative_to(root).as_posix() for path in sorted(root.glob(f"{before}*{after}"))]
    if not found:
        raise DataError(f"{root} is not in the layout '{layout}': it has no {before}*{after}")
    return [path.removeprefix(before).removesuffix(after) for path in found]


def split_file(root: Path, template: str, folder: str, *, layout: str) -> Path:
    """The file of one split, which must be there."""
    path = root / template.replace("{split}", folder)
    if path.is_file() or "{split}" not in template:
        return path
    names = split_names(root, template, layout=layout)
    nearest = get_close_matches(folder, names, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    raise DataError(f"{path}: no such file; there are those of {', '.join(names)}{hint}")


def read_each(
    root: Path,
    listing: Listing,
    read: Callable[[Path, Path], Annotations],
    *,
    legend: Legend | None = None,
    repairs: Repairs | None = None,
) -> ObjectListing:
    """Reads the label file of every pair: `read` takes the paths of image and label.

    legend: the classes that the layout declares; None: those in use.
    """
    found, unreadable = [], []
    for item in listing.items:
        assert item.label is not None
        try:
            found.append((Path(item.image), read(Path(item.image), Path(item.label))))
        except DataError as error:
            unreadable.append((item.image, str(error)))
    return list_pictures(
        root,
        found,
        legend=legend,
        images_without_label=listing.images_without_label,
        labels_without_image=listing.labels_without_image,
        unreadable=unreadable,
        repairs=repairs,
    )
