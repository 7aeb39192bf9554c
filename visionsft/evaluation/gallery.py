"""The gallery: the worst samples of a split as single pictures, with an index of what went wrong in each.

::

    evaluation/<split>/gallery/
        index.json                        the rule, the classes' colours, and an entry a sample
        00-image.jpg  00-truth.png  00-prediction.png  00-error.png
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.batch import Item
from visionsft.evaluation.metrics import mean_iou, summarise
from visionsft.evaluation.pictures import Example, Rgb, colourise, error_map
from visionsft.files import atomic_path, write_text

LAYERS = ("image", "truth", "prediction", "error")

RULE = "lowest mean IoU of the single sample, over the classes in its truth or prediction"

_LONGEST = 512
"""Pixels of a picture's longer side; larger ones are reduced."""
_CONFUSIONS = 3
"""Mistakes that are named of each sample, the most frequent first."""


def write_gallery(
    folder: Path,
    examples: Iterable[Example],
    *,
    items: Sequence[Item],
    confusions: NDArray[np.int64],
    names: Sequence[str],
    colours: NDArray[np.uint8],
) -> None:
    """Write the pictures of `examples`, worst first, and then their index; what was there is replaced.

    confusions: (N, K, K), rows = truth, one a sample. colours: (K, 3) uint8.
    """
    shutil.rmtree(folder, ignore_errors=True)
    entries = []
    for number, (example, item, confusion) in enumerate(zip(examples, items, confusions, strict=True)):
        height, width = example.truth.shape
        files = _write_pictures(folder, f"{number:02}", example, colours)
        entries.append(
            {"id": item.id, "group": item.group, "width": width, "height": height}
            | {"files": files, **describe_sample(confusion, names)}
        )
    write_index(folder, {"rule": RULE, "colours": palette(names, colours), "samples": entries})


def palette(names: Sequence[str], colours: NDArray[np.uint8]) -> dict[str, str]:
    """(K, 3) uint8 -> '#rrggbb' by name."""
    return {name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in zip(names, colours, strict=True)}


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """After the pictures, for which it stands."""
    write_text(folder / "index.json", json.dumps(index, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def describe_sample(confusion: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """What one sample's ``(K, K)`` matrix says, for JSON: scores, classes, and its most frequent mistakes."""
    scores = summarise(confusion, names).as_dict()
    wrong = confusion * (1 - np.eye(len(names), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [divmod(int(index), len(names)) for index in order]
    return {
        "mean_iou": float(mean_iou(confusion)),
        "pixels": scores["pixels"],
        "pixel_accuracy": scores["pixel_accuracy"],
        "iou": {row["name"]: row["iou"] for row in scores["per_class"]},
        "present": [row["name"] for row in scores["per_class"] if row["pixels"]],
        "confusions": [
            {"truth": names[truth], "prediction": names[prediction], "pixels": int(wrong[truth, prediction])}
            for truth, prediction in pairs
            if wrong[truth, prediction]
        ],
    }


def _write_pictures(folder: Path, stem: str, example: Example, colours: NDArray[np.uint8]) -> dict[str, str]:
    """Four files; photographs as JPEG, maps as PNG, since their colours are exact. Returns layer: file name."""
    pictures = {
        "image": example.picture,
        "truth": colourise(example.truth, colours),
        "prediction": colourise(example.prediction, colours),
        "error": error_map(example.prediction, example.truth),
    }
    files = {layer: f"{stem}-{layer}.{'jpg' if layer == 'image' else 'png'}" for layer in LAYERS}
    for layer, name in files.items():
        save_picture(pictures[layer], folder / name, smooth=layer == "image")
    return files


def save_picture(picture: Rgb, target: Path, *, smooth: bool = True) -> None:
    """Write a photograph (smooth) or a map, reduced if it is large."""
    image = Image.fromarray(picture)
    scale = _LONGEST / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    with atomic_path(target) as path:
        image.save(path, quality=82, optimize=True)
