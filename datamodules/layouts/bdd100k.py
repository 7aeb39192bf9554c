"""BDD100K: 10,000 frames with semantic masks in the 19 classes of Cityscapes (Yu et al. 2020).

Each frame comes from a video of its own. Masks hold training ids (0..18, 255 = no label) or colours.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.classes import ClassSpec, Legend
from datamodules.layouts import Listing, cityscapes, pairs

_TRAINED = cityscapes.LEGENDS["index"].classes
CLASSES = tuple(ClassSpec(spec.name, (index,), spec.colour) for index, spec in enumerate(_TRAINED))

LEGENDS = {
    "index": Legend(CLASSES, ignore=(255,), names={spec.name: spec.values[0] for spec in CLASSES}),
    "colour": cityscapes.LEGENDS["colour"],
}

_VARIANTS = {
    "index": (
        ("images/10k/{split}/*.jpg", "labels/sem_seg/masks/{split}/{name}.png"),
        ("seg/images/{split}/*.jpg", "seg/labels/{split}/{name}_train_id.png"),
        ("seg/images/{split}/*.jpg", "seg/labels/{split}/{name}.png"),
    ),
    "colour": (
        ("images/10k/{split}/*.jpg", "labels/sem_seg/colormaps/{split}/{name}.png"),
        ("seg/images/{split}/*.jpg", "seg/color_labels/{split}/{name}_train_color.png"),
        ("seg/images/{split}/*.jpg", "seg/color_labels/{split}/{name}.png"),
    ),
}
"""The releases of 2020 and 2018, and the latter without its names' endings."""


def scan(root: Path, *, folder: str | None = None, label_form: str = "index") -> Listing:
    """Frames and masks of one split's folder, or of all; `root` holds `images` or `seg`, or is one above."""
    base = root / "bdd100k" if (root / "bdd100k").is_dir() and not (root / "seg").is_dir() else root
    images, labels = pairs.first_present(base, _VARIANTS[label_form], layout="bdd100k")
    return pairs.scan(base, images=images, labels=labels, folder=folder)
