"""CamVid: 701 frames of five drives through Cambridge, in the 11 classes of the SegNet release.

Brostow, Fauqueur and Cipolla 2009; Badrinarayanan, Kendall and Cipolla 2017. The folders' split is not
disjoint by drive: a frame's drive is the first part of its name, so that a split by drive can be asked for.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.classes import ClassSpec, Legend
from datamodules.layouts import Listing, pairs

DRIVE_PATTERN = r"^([^_]+)"
"""0001TP_006690 is a frame of drive 0001TP."""

CLASSES = (
    ClassSpec("Sky", (0,), (128, 128, 128)),
    ClassSpec("Building", (1,), (128, 0, 0)),
    ClassSpec("Pole", (2,), (192, 192, 128)),
    ClassSpec("Road", (3,), (128, 64, 128)),
    ClassSpec("Pavement", (4,), (60, 40, 222)),
    ClassSpec("Tree", (5,), (128, 128, 0)),
    ClassSpec("SignSymbol", (6,), (192, 128, 128)),
    ClassSpec("Fence", (7,), (64, 64, 128)),
    ClassSpec("Car", (8,), (64, 0, 128)),
    ClassSpec("Pedestrian", (9,), (64, 64, 0)),
    ClassSpec("Bicyclist", (10,), (0, 128, 192)),
)

LEGENDS = {
    "index": Legend(
        CLASSES, ignore=(11,), names={**{spec.name: spec.values[0] for spec in CLASSES}, "Unlabelled": 11}
    )
}

_VARIANTS = (
    ("images/{split}/*.[jp][pn]g", "labels/{split}/{name}.png"),
    ("{split}/*.png", "{split}annot/{name}.png"),  # as in SegNet's own repository
)


def scan(root: Path, *, folder: str | None = None) -> Listing:
    """Frames and index masks of one split's folder, or of all."""
    images, labels = pairs.first_present(root, _VARIANTS, layout="camvid")
    return pairs.scan(root, images=images, labels=labels, folder=folder)
