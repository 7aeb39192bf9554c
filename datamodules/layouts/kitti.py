"""KITTI semantics: 200 labelled frames in Cityscapes' labels (Alhaija et al. 2018).

The benchmark's test frames have no public labels and its training frames no split folders: split them by
scene or by list.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.layouts import Listing, cityscapes, pairs

LEGENDS = {form: cityscapes.LEGENDS[form] for form in ("index", "colour")}

_LABELS = {"index": "training/semantic/{name}.png", "colour": "training/semantic_rgb/{name}.png"}


def scan(root: Path, *, label_form: str = "index") -> Listing:
    """The training frames, training/image_2/X.png, and their masks."""
    variant = ("training/image_2/*.[jp][pn]g", _LABELS[label_form])
    images, labels = pairs.first_present(root, [variant], layout="kitti")
    return pairs.scan(root, images=images, labels=labels)
