"""Split files: a split as a table that a later run and other tools can read, and its blocks as a map.

CSV, one line a sample, with the columns item, image, group, split (train, val, test, or none: left out) and,
for parts of scenes, row, col, height, width in pixels of the scene. Only image and split must be there: so
tables that others write can be read, too.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from datamodules.batch import Item, Window
from datamodules.errors import DataError
from datamodules.layouts.parsing import read_table, shorten
from datamodules.splits import Block, Splits, find_named, name_items, some

COLUMNS = ("item", "image", "group", "split", "row", "col", "height", "width")
_WINDOW = COLUMNS[4:]
_SPLITS = ("train", "val", "test", "none")


def format_split(splits: Splits, *, found: Sequence[Item]) -> str:
    """The table of a split; found: all items that there were, whole; those of no split are listed, too."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    ids = {item.image: item.id for item in found}
    for split, items in splits.items():
        for item in items:
            writer.writerow([item.id, ids.get(item.image, item.id), item.group, split, *_numbers(item.window)])
    used = {item.image for items in splits.values() for item in items}
    for item in found:
        if item.image not in used:
            writer.writerow([item.id, item.id, item.group, "none", *_numbers(None)])
    return file.getvalue()


def _numbers(window: Window | None) -> list[int | str]:
    return [""] * 4 if window is None else [window.row, window.col, window.height, window.width]


def format_blocks(splits: Splits, *, side: float) -> str:
    """The blocks of a split by place as GeoJSON (longitude, latitude), each with its split; side: metres."""
    owners = {item.group: split for split, items in splits.items() for item in items}
    features = []
    for group, split in sorted(owners.items()):
        west, south, east, north = Block.named(group).edges(side)
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        features.append(
            {
                "type": "Feature",
                "properties": {"group": group, "split": split},
                "geometry": {"type": "Polygon", "coordinates": [ring]},
            }
        )
    return json.dumps({"type": "FeatureCollection", "features": features}) + "\n"


def split_by_file(
    items: Sequence[Item], *, root: Path, path: Path, size: Callable[[Item], tuple[int, int]] | None
) -> Splits:
    """The split that a table says; every sample must be in it, and nothing else.

    size: (height, width) of an item; None: items are not cut into parts.
    """
    header, rows = read_table(path)
    _check_columns(path, header)
    names = name_items(items, root=root)
    splits: Splits = {"train": [], "val": [], "test": []}
    lines: dict[tuple[str, Window | None], int] = {}
    parts: dict[str, set[bool]] = {}
    for line, fields in rows:
        place = f"{path}, line {line}"
        row = dict(zip(header, fields, strict=True))
        item = find_named(row["image"], names, place)
        if row["split"] not in _SPLITS:
            raise DataError(f"{place}: split is {shorten(row['split'])!r}; allowed: {', '.join(_SPLITS)}")
        window = _window(row, item, size, place)
        if (item.id, window) in lines:
            raise DataError(f"{place}: {item.id} is given again, first in line {lines[item.id, window]}")
        lines[item.id, window] = line
        if len(parts.setdefault(item.id, set()) | {window is None}) > 1:
            raise DataError(f"{place}: {item.id} is given whole and in parts")
        parts[item.id].add(window is None)
        if row["split"] != "none":
            splits[row["split"]].append(_as_written(item, row, window))
    missing = [item.id for item in items if item.id not in parts]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(items)} samples are not in it: {some(missing)}; "
            "split 'none' leaves samples out"
        )
    if not splits["train"]:
        raise DataError(f"{path}: none of its {len(rows)} lines has the split 'train'")
    return splits


def _as_written(item: Item, row: Mapping[str, str], window: Window | None) -> Item:
    group = row.get("group") or item.group
    if window is None:
        return replace(item, group=group)
    name = row.get("item") or f"{item.id}@{window.row},{window.col}"
    return replace(item, id=name, group=group, window=window)


def _check_columns(path: Path, header: Sequence[str]) -> None:
    for name in ("image", "split"):
        if name not in header:
            near = get_close_matches(name, header, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{path}: no column {name!r}; its first line is {shorten(', '.join(header))}{hint}")
    given = [name for name in _WINDOW if name in header]
    if given and len(given) < len(_WINDOW):
        raise DataError(f"{path}: has the columns {', '.join(given)}, but parts of scenes need {', '.join(_WINDOW)}")


def _window(
    row: Mapping[str, str], item: Item, size: Callable[[Item], tuple[int, int]] | None, place: str
) -> Window | None:
    texts = [row.get(name, "") for name in _WINDOW]
    if not any(texts):
        return None
    if size is None:
        raise DataError(f"{place}: {item.id} has a window, but these samples are not cut into parts")
    if not all(text.isdecimal() and len(text) < 10 for text in texts):
        raise DataError(f"{place}: row, col, height, width are {shorten(', '.join(texts))}; allowed: whole numbers")
    window = Window(*map(int, texts))
    height, width = size(item)
    if not (0 < window.height <= height - window.row and 0 < window.width <= width - window.col):
        raise DataError(
            f"{place}: rows {window.row} to {window.row + window.height}, columns {window.col} to "
            f"{window.col + window.width} are not inside of {item.id}, which is {height} x {width}"
        )
    return window
