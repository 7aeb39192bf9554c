"""Mapillary Vistas: 20,000 street scenes from all over the world in 66 or 124 classes (Neuhold et al. 2017).

A label's number is its place in the release's own table, config_v1.2.json or config_v2.0.json; labels that this
table doesn't evaluate are ignored. The release of 2017 has config.json and its labels right in the split's folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.classes import ClassSpec, Legend
from datamodules.errors import DataError
from datamodules.layouts import Listing, pairs
from datamodules.layouts.parsing import entry, read_json, read_stored, shorten

Version = Literal["v1.2", "v2.0"]

LABEL_FORMS = ("index", "instances")
"""8-bit label numbers, or 16-bit numbers of label x 256 + instance."""

FOLDERS = {"train": "training", "val": "validation"}
"""What the release calls the usual splits; its folder 'testing' has no labels."""

_TABLES = {"v2.0": ("config_v2.0.json",), "v1.2": ("config_v1.2.json", "config.json")}
_PLACES = {"index": "labels", "instances": "instances"}
_IMAGES = "{split}/images/*.jpg"


def scan(
    root: Path, *, version: Version = "v2.0", folder: str | None = None, label_form: str = "index"
) -> Listing:
    """Pictures <split>/images/X.jpg and their masks <split>/<version>/labels/X.png, or instances/X.png."""
    place = _PLACES[label_form]
    variants = [(_IMAGES, f"{{split}}/{version}/{place}/{{name}}.png")]
    if version == "v1.2":
        variants.append((_IMAGES, f"{{split}}/{place}/{{name}}.png"))
    images, labels = pairs.first_present(root, variants, layout=f"mapillary {version}")
    listing = pairs.scan(root, images=images, labels=labels, folder=folder)
    table = _find_table(root, version)
    source = Instances()
    return replace(
        listing,
        sources={item.image: source for item in listing.items} if label_form == "instances" else {},
        declared=read_legend(table),
        beside=(str(table),),
    )


class Instances:
    """Masks of 16-bit numbers, label x 256 + instance; see `datamodules.layouts.MaskSource`."""

    def codes(self, path: str) -> NDArray[Any]:
        """(H, W) label numbers."""
        values = read_stored(path)
        if values.ndim != 2 or values.dtype.itemsize < 2:
            kind = f"{values.shape[2] if values.ndim == 3 else 1} of {values.dtype}"
            raise DataError(f"{path}: an instance mask has one channel of 16 bits, not {kind}")
        return np.asarray(values // 256)


def read_legend(path: Path) -> Legend:
    """The release's table of labels: a JSON list of names, colours, and whether they are evaluated."""
    records = entry(read_json(path), "labels", list, str(path))
    labels = [
        _read_label(record, number, f"{path}, labels[{number}]") for number, record in enumerate(records)
    ]
    full = [name for name, _, _, _ in labels]
    readable = [name for _, name, _, _ in labels]
    # the readable names are those of reports, as long as they tell labels apart
    shown = readable if len(set(readable)) == len(readable) else full
    if len(set(full)) < len(full):
        raise DataError(f"{path}: names a label twice: {shorten(', '.join(full))}")
    return Legend(
        classes=tuple(
            ClassSpec(name, (number,), colour)
            for number, (name, (_, _, colour, evaluated)) in enumerate(zip(shown, labels, strict=True))
            if evaluated
        ),
        ignore=tuple(number for number, (_, _, _, evaluated) in enumerate(labels) if not evaluated),
        names={name: number for names in (full, shown) for number, name in enumerate(names)},
    )


def _read_label(record: Any, number: int, where: str) -> tuple[str, str, tuple[int, int, int], bool]:
    """(name, readable name, colour, whether it is evaluated)."""
    name = entry(record, "name", str, where)
    colour = entry(record, "color", list, where)
    if len(colour) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in colour):
        raise DataError(f"{where}: color is {shorten(colour)}; allowed: red, green, blue from 0 to 255")
    evaluated = record.get("evaluate", True)
    if not isinstance(evaluated, bool):
        raise DataError(f"{where}: evaluate is {shorten(evaluated)}; allowed: true or false")
    return name, str(record.get("readable", name)), (colour[0], colour[1], colour[2]), evaluated


def _find_table(root: Path, version: Version) -> Path:
    for name in _TABLES[version]:
        if (root / name).is_file():
            return root / name
    raise DataError(f"{root}: has no table of labels; looked for: {', '.join(_TABLES[version])}")
