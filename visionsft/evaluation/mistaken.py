"""Mistaken: the worst false alarms and misses of a detector, box by box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.metrics.boxes import ImageBoxes
from visionsft.models.rotated import enclose, rotated_iou

FOUND_SCORE = 0.3
"""From which on a detection finds an object, here."""
FOUND_IOU = 0.5


@dataclass(frozen=True)
class Mistaken:
    """A box that was found and isn't there, or is there and wasn't found."""

    image: int
    """Index in the counts."""
    box: NDArray[np.float32]
    """(4,) x1, y1, x2, y2."""
    label: int
    score: float | None
    """None for an object that was missed."""
    row: int
    """Of the detections of its image, or of the missed object among the objects."""


def find_mistakes(counts: DetectionCounts, *, limit: int) -> tuple[list[Mistaken], list[Mistaken]]:
    """The most certain false alarms, and the largest objects that no detection of the class meets.

    A detection is true here if any object of its class has an IoU of 0.5 with it: doubles are no alarms.
    """
    alarms: list[Mistaken] = []
    misses: list[Mistaken] = []
    for index, boxes in enumerate(counts.boxes):
        false, missed = _mistakes_of(boxes)
        found, truth = upright(boxes.found), upright(boxes.truth)
        alarms += [Mistaken(index, found[i], int(boxes.labels[i]), float(boxes.scores[i]), i) for i in false]
        misses += [Mistaken(index, truth[i], int(boxes.truth_labels[i]), None, i) for i in missed]
    alarms.sort(key=lambda each: -(each.score or 0))
    misses.sort(key=lambda each: -float(np.prod(each.box[2:] - each.box[:2])))
    return alarms[:limit], misses[:limit]


def upright(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 4) as it is; of turned ones (N, 5) the boxes around them."""
    return enclose(torch.from_numpy(boxes)).numpy() if boxes.shape[1] == 5 else boxes


def _mistakes_of(boxes: ImageBoxes) -> tuple[list[int], list[int]]:
    """Indices of false alarms among the detections, and of missed ones among the objects."""
    same = boxes.labels[:, None] == boxes.truth_labels[None]
    met = (overlaps(boxes.found, boxes.truth) >= FOUND_IOU) & same
    in_ignored = _share_inside(upright(boxes.found), upright(boxes.ignored)) >= FOUND_IOU
    false = np.flatnonzero(~met.any(axis=1) & ~in_ignored)
    missed = np.flatnonzero(~met[boxes.scores >= FOUND_SCORE].any(axis=0))
    return false.tolist(), missed.tolist()


def overlaps(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU: (N, 4), (M, 4) -> (N, M); (N, 5) and (M, 5) where boxes are turned."""
    overlap = rotated_iou if first.shape[1] == 5 else box_iou
    return overlap(torch.from_numpy(first), torch.from_numpy(second)).numpy()


def _share_inside(boxes: NDArray[np.float32], regions: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 4) and (M, 4) -> (N,) the largest share of each box that lies in one region; 0 without any."""
    upper = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    lower = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = np.clip(lower - upper, 0, None).prod(axis=-1)
    area = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=-1), 1e-9)
    share: NDArray[np.float32] = (shared / area[:, None]).max(axis=1, initial=0)
    return share
