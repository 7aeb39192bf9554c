"""Pascal VOC segmentation: pictures with palette masks in 20 classes and a background (Everingham et al. 2010).

The masks' palette index is the class; 255 is the border between objects, which is ignored. Which pictures have
masks, and to which split they belong, say the lists in ImageSets/Segmentation.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.batch import Item
from datamodules.classes import ClassSpec, Colour, Legend
from datamodules.errors import DataError
from datamodules.layouts import Listing
from datamodules.layouts.parsing import IMAGES, path_below, read_text

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""By palette index."""

BORDER = 255

_LISTS = "ImageSets/Segmentation"
_PICTURES = "JPEGImages"
_MASKS = "SegmentationClass"


def palette_colour(index: int) -> Colour:
    """Of VOC's palette: the index's bits, dealt to red, green and blue in turn, from their highest bit down."""
    colour = [0, 0, 0]
    for bit in range(8):
        colour[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return colour[0], colour[1], colour[2]


LEGENDS = {
    "index": Legend(
        tuple(ClassSpec(name, (index,), palette_colour(index)) for index, name in enumerate(NAMES)),
        ignore=(BORDER,),
        names={**{name: index for index, name in enumerate(NAMES)}, "border": BORDER},
    )
}


def scan(root: Path, *, folder: str | None = None) -> Listing:
    """The pictures of one list (`folder`: train, val, trainval) or of all; `root` holds JPEGImages, or is above."""
    base = _find_base(root)
    lists = sorted((base / _LISTS).glob("*.txt"))
    if folder is not None:
        lists = [path for path in lists if path.stem == folder]
    elif not lists:
        raise DataError(f"{base}: has no list of pictures {_LISTS}/*.txt")
    pictures = {path.stem: path for path in sorted((base / _PICTURES).glob(IMAGES))}
    items: dict[str, Item] = {}
    without_label: dict[str, None] = {}
    without_image: dict[str, None] = {}
    for path in lists:
        for name, where in _read_names(path):
            label = path_below(base / _MASKS, f"{name}.png", where)
            if name not in pictures:
                without_image[str(label) if label.is_file() else f"{where}: {name}"] = None
            elif not label.is_file():
                without_label[str(pictures[name])] = None
            else:
                below = pictures[name].relative_to(root).as_posix()
                items[below] = Item(below, below, str(pictures[name]), str(label))
    return Listing([items[name] for name in sorted(items)], list(without_label), list(without_image))


def _read_names(path: Path) -> list[tuple[str, str]]:
    """(name, its place) of every line; what stands behind the name says whether an object is in the picture."""
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [(line.split()[0], f"{path}, line {number}") for number, line in lines if line.strip()]


def _find_base(root: Path) -> Path:
    """The folder of one year's release."""
    years = [root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*"))]
    found = [year for year in years if (year / _MASKS).is_dir()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{root}: holds several releases: {', '.join(map(str, found))}; choose one as root")
    raise DataError(f"{root} is not in the layout 'voc': it has no folder {_MASKS}")
