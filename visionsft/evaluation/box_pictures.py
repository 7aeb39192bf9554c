"""Box pictures: objects and detections drawn over what they are on."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.batch import Item
from datamodules.detection import DetectionDataModule
from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes
from visionsft.evaluation.metrics.matching import match_detections
from visionsft.evaluation.pictures import Rgb, display
from visionsft.models.rotated import to_corners

RIGHT, WRONG, MISSED, TRUTH = (86, 180, 233), (213, 94, 0), (240, 228, 66), (255, 255, 255)
"""Okabe and Ito's sky blue, vermilion and yellow, and white."""


@dataclass(frozen=True)
class JudgedBoxes:
    """Which detections of an image, from a score on, find an object, and which objects none finds."""

    right: NDArray[np.intp]
    """Rows of the detections."""
    wrong: NDArray[np.intp]
    missed: NDArray[np.intp]
    """Rows of the objects."""


def judge_boxes(boxes: ImageBoxes, *, classes: int, iou: float, score: float) -> JudgedBoxes:
    """Matched as the metrics do it; detections in ignored regions are neither right nor wrong."""
    (matches,) = match_detections(BoxTable.gather([boxes], classes), thresholds=(iou,))
    certain = matches.scores >= np.float32(score)
    found = matches.hits[0] & certain
    missed = np.setdiff1d(np.arange(len(boxes.truth)), matches.truth[0, found])
    wrong = ~matches.hits[0] & ~matches.ignored[0] & certain
    return JudgedBoxes(matches.index[found], matches.index[wrong], missed)


def corners(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, 4), or (N, 5) of turned ones -> (N, 4, 2) x, y."""
    if boxes.shape[1] == 5:
        return to_corners(torch.from_numpy(boxes).double()).numpy()
    return boxes.astype(np.float64)[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def draw_boxes(picture: Rgb, boxes: NDArray[np.float64], colour: tuple[int, int, int], *, width: int = 2) -> Rgb:
    """A copy of the picture with the outlines of (N, 4, 2) corners, each on a dark edge."""
    drawn = picture.copy()
    rings = [ring.round().astype(np.int32) for ring in boxes]
    for ink, thickness in (((20, 20, 20), width + 2), (colour, width)):
        cv2.polylines(drawn, rings, True, ink, thickness, cv2.LINE_AA)
    return drawn


def show_item(data: DetectionDataModule, item: Item, *, longest: int) -> tuple[Rgb, float]:
    """An item as a picture, reduced to this many pixels where it is larger, and the factor of its size."""
    raw = data.read(item)
    picture = display(
        data.normalisation(raw.values, raw.valid),
        mean=data.normalisation.mean,
        std=data.normalisation.std,
        bands=data.bands,
        eight_bit=data.dtype == np.uint8,
        valid=raw.valid,
    )
    scale = min(1.0, longest / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8), scale
