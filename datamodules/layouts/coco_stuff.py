"""COCO-Stuff: masks of COCO's pictures in 171 classes of things and stuff (Caesar, Uijlings and Ferrari 2018).

The masks (stuffthingmaps) hold a class's number less one; 255 is no label. Eleven of the 182 numbers were
dropped from COCO and never occur.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.classes import ClassSpec, Legend
from datamodules.layouts import Listing, pairs

NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", None, "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", None, "backpack", "umbrella", None, None, "handbag", "tie",
    "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove",
    "skateboard", "surfboard", "tennis racket", "bottle", None, "wine glass", "cup", "fork", "knife", "spoon",
    "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
    "chair", "couch", "potted plant", "bed", None, "dining table", None, None, "toilet", None, "tv", "laptop",
    "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", None,
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush", None, "banner", "blanket",
    "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet", "ceiling-other",
    "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff", "dirt",
    "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower",
    "fog", "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house",
    "leaves", "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper",
    "pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing", "railroad", "river",
    "road", "rock", "roof", "rug", "salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow",
    "solid-other", "stairs", "stone", "straw", "structural-other", "table", "tent", "textile-other", "towel",
    "tree", "vegetable", "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile",
    "wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood",
)  # fmt: skip
"""By value in the masks; None: dropped."""

_NUMBERS = {name: value for value, name in enumerate(NAMES) if name is not None}

LEGENDS = {
    "index": Legend(
        tuple(ClassSpec(name, (value,)) for name, value in _NUMBERS.items()),
        ignore=(255,),
        names=_NUMBERS | {"unlabelled": 255},
    )
}

_VARIANTS = (
    ("{split}/*.jpg", "stuffthingmaps/{split}/{name}.png"),
    ("images/{split}/*.jpg", "annotations/{split}/{name}.png"),
    ("{split}/*.jpg", "stuffthingmaps_trainval2017/{split}/{name}.png"),
)


def scan(root: Path, *, folder: str | None = None) -> Listing:
    """Pictures and masks of one split's folder (train2017, val2017), or of all."""
    images, labels = pairs.first_present(root, _VARIANTS, layout="coco_stuff")
    return pairs.scan(root, images=images, labels=labels, folder=folder)
