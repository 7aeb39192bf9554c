"""Pascal VOC: an XML file per picture, its objects with upright boxes (Everingham et al. 2010)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from typing import Literal
from xml.parsers import expat

from datamodules.errors import DataError, parse_each
from datamodules.layouts.objects import Annotations, ObjectListing, Row, annotate
from datamodules.layouts.parsing import IMAGES, number, pair_files, read_bytes, read_each

_VARIANTS = (
    ("JPEGImages/{split}/" + IMAGES, "Annotations/{split}/{name}.xml"),
    ("images/{split}/" + IMAGES, "annotations/{split}/{name}.xml"),
    ("JPEGImages/" + IMAGES, "Annotations/{name}.xml"),
    ("images/" + IMAGES, "annotations/{name}.xml"),
)

_EDGES = ("xmin", "ymin", "xmax", "ymax")


def scan(
    root: Path,
    *,
    images: str | None = None,
    labels: str | None = None,
    folder: str | None = None,
    first_pixel: Literal[0, 1] = 0,
) -> ObjectListing:
    """Pictures and their XML files, paired by name; difficult objects are ignored regions.

    images, labels: as in `pairs.scan`; None: the folders of VOC or `images` with `annotations`.
    first_pixel: 1 for the challenge's own files, which number pixels from 1 and whose xmax and ymax are the
    last pixels inside; 0 where coordinates are taken as they are, as most tools write them.
    """
    listing = pair_files(root, _VARIANTS, layout="voc", images=images, labels=labels, folder=folder)
    return read_each(root, listing, partial(_read, first_pixel=first_pixel))


def _read(image: Path, path: Path, *, first_pixel: int) -> Annotations:
    tree = _parse(path)
    objects = enumerate(tree.findall("object"), start=1)
    rows = parse_each(_row, ((path, index, each, first_pixel) for index, each in objects))
    return annotate(str(path), "object", rows, size=_size(path, tree))


def _parse(path: Path) -> ET.Element:
    """A document type could declare entities that grow without end or read other files: none is allowed."""
    data = read_bytes(path)
    guard = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: line {guard.CurrentLineNumber}: a DOCTYPE is not allowed in label files")

    guard.StartDoctypeDeclHandler = refuse
    try:
        guard.Parse(data, True)
        root = ET.fromstring(data)
    except (expat.ExpatError, ET.ParseError, LookupError) as error:
        raise DataError(f"{path}: not XML, or a truncated file: {error}") from error
    if root.tag != "annotation":
        raise DataError(f"{path}: its root is <{root.tag}>; VOC files have <annotation>")
    return root


def _row(path: Path, index: int, element: ET.Element, first_pixel: int) -> Row:
    where = f"{path}, object {index}"
    box = element.find("bndbox")
    if box is None:
        raise DataError(f"{where}: has no <bndbox>")
    x1, y1, x2, y2 = (number(box.findtext(edge), f"<{edge}>", where) for edge in _EDGES)
    flags = {key: element.findtext(key) for key in ("truncated", "occluded")}
    return Row(
        place=index,
        name=(element.findtext("name") or "").strip(),
        box=(x1 - first_pixel, y1 - first_pixel, x2, y2),
        ignored=(element.findtext("difficult") or "0").strip() == "1",
        extras={key: number(text, f"<{key}>", where) for key, text in flags.items() if text},
    )


def _size(path: Path, tree: ET.Element) -> tuple[int, int] | None:
    """Some tools leave the size out, or write 0."""
    stated = [tree.findtext(f"size/{side}") for side in ("height", "width")]
    height, width = (number(text or 0, "<size>", str(path)) for text in stated)
    return (int(height), int(width)) if height >= 1 and width >= 1 else None
