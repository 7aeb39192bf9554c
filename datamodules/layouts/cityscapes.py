"""Cityscapes: fine annotations of 50 cities, as label ids, colours or polygons (Cordts et al. 2016).

The table of labels is that of cityscapesscripts. 19 classes are trained and scored, all others are ignored.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.batch import Item
from datamodules.classes import ClassSpec, Colour, Legend
from datamodules.errors import DataError
from datamodules.layouts import Listing, pairs

DRIVE_PATTERN = r"^([^_]+)"
"""aachen_000000_000019: the city; sequences of a city can share streets."""


class Label(NamedTuple):
    """A line of the Cityscapes label table."""

    name: str
    id: int
    trained: bool
    colour: Colour


LABELS = (
    Label("unlabeled", 0, False, (0, 0, 0)),
    Label("ego vehicle", 1, False, (0, 0, 0)),
    Label("rectification border", 2, False, (0, 0, 0)),
    Label("out of roi", 3, False, (0, 0, 0)),
    Label("static", 4, False, (0, 0, 0)),
    Label("dynamic", 5, False, (111, 74, 0)),
    Label("ground", 6, False, (81, 0, 81)),
    Label("road", 7, True, (128, 64, 128)),
    Label("sidewalk", 8, True, (244, 35, 232)),
    Label("parking", 9, False, (250, 170, 160)),
    Label("rail track", 10, False, (230, 150, 140)),
    Label("building", 11, True, (70, 70, 70)),
    Label("wall", 12, True, (102, 102, 156)),
    Label("fence", 13, True, (190, 153, 153)),
    Label("guard rail", 14, False, (180, 165, 180)),
    Label("bridge", 15, False, (150, 100, 100)),
    Label("tunnel", 16, False, (150, 120, 90)),
    Label("pole", 17, True, (153, 153, 153)),
    Label("polegroup", 18, False, (153, 153, 153)),
    Label("traffic light", 19, True, (250, 170, 30)),
    Label("traffic sign", 20, True, (220, 220, 0)),
    Label("vegetation", 21, True, (107, 142, 35)),
    Label("terrain", 22, True, (152, 251, 152)),
    Label("sky", 23, True, (70, 130, 180)),
    Label("person", 24, True, (220, 20, 60)),
    Label("rider", 25, True, (255, 0, 0)),
    Label("car", 26, True, (0, 0, 142)),
    Label("truck", 27, True, (0, 0, 70)),
    Label("bus", 28, True, (0, 60, 100)),
    Label("caravan", 29, False, (0, 0, 90)),
    Label("trailer", 30, False, (0, 0, 110)),
    Label("train", 31, True, (0, 80, 100)),
    Label("motorcycle", 32, True, (0, 0, 230)),
    Label("bicycle", 33, True, (119, 11, 32)),
    Label("license plate", -1, False, (0, 0, 142)),
)

_IDS = {label.name: label.id for label in LABELS}


def _index_legend() -> Legend:
    return Legend(
        classes=tuple(ClassSpec(label.name, (label.id,), label.colour) for label in LABELS if label.trained),
        ignore=tuple(label.id for label in LABELS if not label.trained),
        names=_IDS,
    )


def _colour_legend() -> Legend:
    """Labels that share a colour can't be told apart: a pole group counts as pole, a number plate as car."""
    hexadecimal = {label.name: "#{:02x}{:02x}{:02x}".format(*label.colour) for label in LABELS}
    trained = [label for label in LABELS if label.trained]
    taken = {label.colour for label in trained}
    return Legend(
        classes=tuple(ClassSpec(label.name, (hexadecimal[label.name],), label.colour) for label in trained),
        ignore=tuple(dict.fromkeys(hexadecimal[label.name] for label in LABELS if label.colour not in taken)),
        names=hexadecimal,
    )


LEGENDS = {"index": _index_legend(), "polygons": _index_legend(), "colour": _colour_legend()}

_LABEL_ENDS = {"index": "labelIds.png", "polygons": "polygons.json", "colour": "color.png"}
_IMAGE_END = "_leftImg8bit"


def scan(root: Path, *, folder: str | None = None, label_form: str = "index") -> Listing:
    """Frames leftImg8bit/<split>/<city>/X_leftImg8bit.png with their annotations gtFine/.../X_gtFine_*."""
    if not (root / "leftImg8bit").is_dir():
        raise DataError(f"{root} is not in the layout 'cityscapes': it has no folder leftImg8bit")
    if folder is None:
        names = sorted(path.name for path in (root / "gtFine").glob("*") if path.is_dir())
        return pairs.merge(scan(root, folder=name, label_form=label_form) for name in names)
    end = f"_gtFine_{_LABEL_ENDS[label_form]}"
    frames = _by_frame(root / "leftImg8bit" / folder, f"{_IMAGE_END}.*")
    labels = _by_frame(root / "gtFine" / folder, end)
    return Listing(
        items=[_item(root, frames[name], labels[name]) for name in sorted(frames.keys() & labels.keys())],
        images_without_label=[str(frames[name]) for name in sorted(frames.keys() - labels.keys())],
        labels_without_image=[str(labels[name]) for name in sorted(labels.keys() - frames.keys())],
    )


def _by_frame(folder: Path, end: str) -> dict[str, Path]:
    """Files of all cities by 'city/frame'."""
    cut = end.removesuffix(".*")
    return {f"{path.parent.name}/{path.name.rpartition(cut)[0]}": path for path in folder.glob(f"*/*{end}")}


def _item(root: Path, image: Path, label: Path) -> Item:
    name = image.relative_to(root).as_posix()
    return Item(id=name, group=name, image=str(image), label=str(label))


def rasterise(path: Path) -> NDArray[np.uint8]:
    """(H, W) label ids of a polygons file, drawn as cityscapesscripts does: each over those before it."""
    try:
        annotation = json.loads(path.read_text(encoding="utf-8"))
        canvas = Image.new("L", (annotation["imgWidth"], annotation["imgHeight"]), _IDS["unlabeled"])
        drawer = ImageDraw.Draw(canvas)
        for entry in annotation["objects"]:
            label = _IDS[_known_name(path, entry["label"])]
            if not entry.get("deleted") and label >= 0:
                drawer.polygon([(x, y) for x, y in entry["polygon"]], fill=label)
    except DataError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a Cityscapes polygons file: {type(error).__name__}: {error}") from error
    return np.array(canvas)


def _known_name(path: Path, name: Any) -> str:
    """Crowds are labelled 'cargroup', 'persongroup'..."""
    for known in (name, str(name).removesuffix("group")):
        if known in _IDS:
            return str(known)
    nearest = get_close_matches(str(name), _IDS, n=2)
    hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    raise DataError(f"{path}: unknown label '{name}'{hint}")
