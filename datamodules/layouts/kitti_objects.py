"""KITTI objects: frames of a drive with a text file of boxes each (Geiger et al. 2012).

A line has 15 fields: class, truncated (0..1), occluded (0..3), alpha, the box in pixels, and the object's
size and place in 3D. Truncated and occluded are kept in `Annotations.extras`; the 3D fields are not.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import DataError, parse_each
from datamodules.layouts import pairs
from datamodules.layouts.objects import Annotations, ObjectListing, Row, annotate, legend_of
from datamodules.layouts.parsing import number, read_each, read_text, shorten

CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")

_IGNORED = "DontCare"
_FIELDS = (15, 16)
"""16 with the score that results have."""


def scan(root: Path) -> ObjectListing:
    """The training frames, training/image_2/X.png, and their boxes in label_2; DontCare is ignored."""
    variant = ("training/image_2/*.[jp][pn]g", "training/label_2/{name}.txt")
    images, labels = pairs.first_present(root, [variant], layout="kitti")
    listing = pairs.scan(root, images=images, labels=labels)
    return read_each(root, listing, _read, legend=legend_of({name: name for name in CLASSES}))


def _read(image: Path, path: Path) -> Annotations:
    lines = enumerate(read_text(path).splitlines(), start=1)
    rows = parse_each(_row, ((path, place, line) for place, line in lines if line.strip()))
    return annotate(str(path), "line", rows)


def _row(path: Path, place: int, line: str) -> Row:
    where, fields = f"{path}, line {place}", line.split()
    if len(fields) not in _FIELDS:
        raise DataError(f"{where}: {len(fields)} fields ({shorten(line)}); KITTI labels have 15")
    truncated, occluded, _, x1, y1, x2, y2 = (number(field, "a field", where) for field in fields[1:8])
    return Row(
        place=place,
        name=fields[0],
        box=(x1, y1, x2, y2),
        ignored=fields[0] == _IGNORED,
        extras={"truncated": truncated, "occluded": occluded},
    )
