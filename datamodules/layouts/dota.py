"""DOTA: aerial scenes with a text file of turned boxes each (Xia et al. 2018).

A line holds the four corners x1 y1 ... x4 y4, the class, and whether the object is difficult (0 or 1);
lines 'imagesource:...' and 'gsd:...' may go before.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError, parse_each
from datamodules.layouts.objects import Annotations, ObjectListing, Row, annotate, box_around
from datamodules.layouts.parsing import IMAGES, number, pair_files, read_each, read_text, shorten

_VARIANTS = (
    ("{split}/images/" + IMAGES, "{split}/labelTxt/{name}.txt"),
    ("images/{split}/" + IMAGES, "labelTxt/{split}/{name}.txt"),
    ("images/" + IMAGES, "labelTxt/{name}.txt"),
)

_HEADERS = ("imagesource:", "gsd:", "acquisition dates:")


def scan(
    root: Path, *, images: str | None = None, labels: str | None = None, folder: str | None = None
) -> ObjectListing:
    """Scenes and their text files, paired by name; difficult objects are ignored, see `Objects.difficult`.

    images, labels: as in `pairs.scan`; None: `images` with `labelTxt`, in or above a split's folder.
    Boxes are the upright ones that enclose the corners.
    """
    listing = pair_files(root, _VARIANTS, layout="dota", images=images, labels=labels, folder=folder)
    return read_each(root, listing, _read)


def _read(image: Path, path: Path) -> Annotations:
    lines = [
        (path, place, line)
        for place, line in enumerate(read_text(path).splitlines(), start=1)
        if line.strip() and not line.lower().startswith(_HEADERS)
    ]
    rows = parse_each(_row, lines)
    return annotate(str(path), "line", rows)


def _row(path: Path, place: int, line: str) -> Row:
    where, fields = f"{path}, line {place}", line.split()
    if len(fields) not in (9, 10):
        raise DataError(
            f"{where}: {len(fields)} fields ({shorten(line)}); DOTA has 8 coordinates, a class and 0 or 1"
        )
    corners = np.array([number(field, "a corner", where) for field in fields[:8]]).reshape(4, 2)
    difficult = fields[9] if len(fields) == 10 else "0"
    if difficult not in ("0", "1", "2"):
        raise DataError(f"{where}: difficult is {shorten(difficult)}; allowed: 0 or 1")
    return Row(
        place=place,
        name=fields[8],
        box=box_around(corners),
        ignored=difficult != "0",
        turned=turned_box(corners),
    )


def turned_box(corners: NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    """cx, cy, w, h and angle of the smallest rectangle around (n, 2) corners; w is its longer side.

    The angle is in radians in [-pi/2, pi/2), from the x axis towards the y axis.
    """
    if not np.isfinite(corners).all():
        return (math.nan,) * 5
    middle = corners.mean(axis=0)  # OpenCV computes in float32: precise only near 0
    (x, y), (width, height), degrees = cv2.minAreaRect((corners - middle).astype(np.float32))
    if width < height:
        width, height, degrees = height, width, degrees + 90
    angle = (math.radians(degrees) + math.pi / 2) % math.pi - math.pi / 2
    return float(x + middle[0]), float(y + middle[1]), float(width), float(height), angle
