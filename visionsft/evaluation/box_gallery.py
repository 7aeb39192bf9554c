"""The box gallery: the worst mistakes of a detector, each a picture of the ground around it and the boxes on it.

The boxes are numbers in ``index.json``, so that a page can show and hide them::

    evaluation/<split>/gallery/
        index.json        the rule, the classes' colours, and an entry a mistake, with corners of boxes in its pixels
        00-image.jpg
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.detection import DetectionDataModule
from visionsft.evaluation.box_pictures import corners
from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.gallery import palette, save_picture, write_index
from visionsft.evaluation.metrics.boxes import ImageBoxes
from visionsft.evaluation.mistaken import (
    FOUND_IOU,
    FOUND_SCORE,
    Mistaken,
    find_mistakes,
    overlaps,
    upright,
)
from visionsft.evaluation.pictures import display

KINDS = ("false alarm", "bad fit", "wrong label", "miss")

_NEAR_IOU = 0.1
"""From which on a false alarm means the object that it overlaps with."""

RULE = (
    f"the most certain false alarms, bad fits (an object of the class, but IoU {_NEAR_IOU:g} to {FOUND_IOU:g}) and "
    f"wrong labels (an object of another class, IoU {FOUND_IOU:g} or more), and the largest misses (no detection of "
    f"score {FOUND_SCORE:g} or more, IoU {FOUND_IOU:g} or more)"
)

SHOWN = 9
"""Mistakes of each kind."""
_SIDE = 240
"""Of a picture at least, in pixels of the image; three times the object."""
_MANY = 40
"""Boxes of each layer at most on one picture, the nearest to its middle."""


@dataclass(frozen=True)
class Pictured:
    """A mistake, and the part (x1, y1, x2, y2) of its image that is shown."""

    kind: str
    mistake: Mistaken
    of: int | None
    """The true class of a wrong label."""
    part: tuple[int, int, int, int]


def write_box_gallery(
    folder: Path, counts: DetectionCounts, data: DetectionDataModule, *, score: float
) -> None:
    """Write the pictures, the worst of each kind in turn, and then their index; what was there is replaced.

    score: from which on detections are shown beside a mistake.
    """
    shutil.rmtree(folder, ignore_errors=True)
    names = counts.classes
    entries = []
    for number, each in enumerate(choose_mistakes(counts)):
        file = f"{number:02}-image.jpg"
        save_picture(_cut(data, counts, each), folder / file)
        entries.append({**describe_mistake(each, counts, score=score), "files": {"image": file}})
    write_index(folder, {"rule": RULE, "colours": palette(names, data.classes.colours), "samples": entries})


def choose_mistakes(counts: DetectionCounts) -> list[Pictured]:
    """`SHOWN` of each kind, in turn; detections below `FOUND_SCORE` are no alarms."""
    alarms, misses = find_mistakes(counts, limit=len(counts.table().found) + len(counts.table().truth))
    shown: dict[str, list[Pictured]] = {kind: [] for kind in KINDS}
    for mistake in (*(each for each in alarms if (each.score or 0) >= FOUND_SCORE), *misses):
        kind, of = _judge(mistake, counts.boxes[mistake.image])
        if len(shown[kind]) < SHOWN:
            part = _part(mistake.box, counts.sizes[mistake.image])
            shown[kind].append(Pictured(kind, mistake, of, part))
    return [each for row in zip_longest(*shown.values()) for each in row if each is not None]


def _judge(mistake: Mistaken, boxes: ImageBoxes) -> tuple[str, int | None]:
    """Its kind, and of a wrong label the true class."""
    if mistake.score is None:
        return "miss", None
    overlap = overlaps(boxes.found[[mistake.row]], boxes.truth)[0]
    own = boxes.truth_labels == mistake.label
    if (overlap[~own] >= FOUND_IOU).any():
        return "wrong label", int(boxes.truth_labels[~own][overlap[~own].argmax()])
    return ("bad fit" if (overlap[own] >= _NEAR_IOU).any() else "false alarm"), None


def _part(box: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Around a box, inside an image of this (height, width)."""
    x1, y1, x2, y2 = box.tolist()
    side = round(max(_SIDE, 3 * max(x2 - x1, y2 - y1)))
    height, width = size
    left = int(np.clip((x1 + x2 - side) / 2, 0, max(0, width - side)))
    top = int(np.clip((y1 + y2 - side) / 2, 0, max(0, height - side)))
    return left, top, min(width, left + side), min(height, top + side)


def _cut(data: DetectionDataModule, counts: DetectionCounts, each: Pictured) -> NDArray[np.uint8]:
    raw = data.read(counts.items[each.mistake.image])
    left, top, right, bottom = each.part
    seen = np.s_[top:bottom, left:right]
    return display(
        data.normalisation(raw.values[:, *seen], raw.valid[seen]),
        mean=data.normalisation.mean,
        std=data.normalisation.std,
        bands=data.bands,
        eight_bit=data.dtype == np.uint8,
        valid=raw.valid[seen],
    )


def describe_mistake(each: Pictured, counts: DetectionCounts, *, score: float) -> dict[str, Any]:
    """What there is to say of a mistake, for JSON, with the boxes of its picture's part, detections from a score on."""
    names, mistake, item = counts.classes, each.mistake, counts.items[each.mistake.image]
    left, top, right, bottom = each.part
    boxes = counts.boxes[mistake.image]
    certain = boxes.scores >= np.float32(score)
    said = [
        f"{names[k]} {certainty:.2f}"
        for k, certainty in zip(boxes.labels[certain].tolist(), boxes.scores[certain].tolist(), strict=True)
    ]
    width, height = (mistake.box[2:] - mistake.box[:2]).tolist()
    return {
        "id": item.id,
        "group": item.group,
        "kind": each.kind,
        "class": names[mistake.label],
        "true_class": None if each.of is None else names[each.of],
        "score": mistake.score,
        "size": round(float(np.sqrt(max(width, 0) * max(height, 0))), 1),
        "width": right - left,
        "height": bottom - top,
        "part": list(each.part),
        "marks": {
            "truth": marks(boxes.truth, [names[k] for k in boxes.truth_labels.tolist()], each.part),
            "prediction": marks(boxes.found[certain], said, each.part),
            "error": marks(_own(mistake, boxes), [_say(mistake, names)], each.part),
        },
    }


def _own(mistake: Mistaken, boxes: ImageBoxes) -> NDArray[np.float32]:
    """(1, 4), or (1, 5) of a turned one."""
    return (boxes.truth if mistake.score is None else boxes.found)[[mistake.row]]


def _say(mistake: Mistaken, names: Sequence[str]) -> str:
    name = names[mistake.label]
    return f"{name} missed" if mistake.score is None else f"{name} {mistake.score:.2f}"


def marks(
    boxes: NDArray[np.float32], labels: Sequence[str], part: tuple[int, int, int, int]
) -> list[dict[str, Any]]:
    """The boxes that reach into a part of an image: corners [x, y] in its pixels and what stands at them."""
    left, top, right, bottom = part
    reach = upright(boxes)
    inside = (reach[:, 0] < right) & (reach[:, 2] > left) & (reach[:, 1] < bottom) & (reach[:, 3] > top)
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    away = np.abs((reach[:, :2] + reach[:, 2:]) / 2 - middle).max(axis=1)
    rows = [row for row in np.argsort(away, kind="stable").tolist() if inside[row]][:_MANY]
    points = corners(boxes) - (left, top)
    return [{"label": labels[row], "points": points[row].round(1).tolist()} for row in rows]
