"""Boxes: what one image, and all images of a split, hold of truth and of detections, as plain arrays.

The metrics of detection read nothing else. Coordinates are x1, y1, x2, y2 in pixels of the image, or those of turned
boxes, cx, cy, w, h, angle as in `datamodules.objects.Objects.turned`: 4 or 5 columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.objects import Objects, Target
from visionsft.evaluation.metrics.rotated import rotated_intersections, to_turned

if TYPE_CHECKING:
    from visionsft.models.detections import Detections


@dataclass(frozen=True)
class ImageBoxes:
    """Truth and detections of one image."""

    truth: NDArray[np.float32]
    """(N, 4), or (N, 5) where `found` is (D, 5)."""
    truth_labels: NDArray[np.int64]
    """(N,) class index from 0."""
    ignored: NDArray[np.float32]
    """(M, 4), or (M, 5) where `found` is (D, 5): regions that are neither objects nor background."""
    found: NDArray[np.float32]
    """(D, 4)"""
    scores: NDArray[np.float32]
    """(D,) in 0..1."""
    labels: NDArray[np.int64]
    """(D,) class index from 0."""
    ignored_labels: NDArray[np.int64] | None = None
    """(M,) the class of a difficult object, which sets aside what would find it (DOTA's rule); -1 for a region of
    every class, which sets aside what lies in it (COCO's). None: all are regions."""

    @classmethod
    def of(cls, detections: Detections, target: Target) -> ImageBoxes:
        """From what a detector and a batch give, on any device; turned boxes where the detector finds them."""
        truth, found = target["boxes"], detections.boxes
        if detections.turned is not None:
            truth, found = target["turned"], detections.turned
        tensors = (truth, target["labels"], target["ignored"], found, detections.scores, detections.labels)
        return cls(*(tensor.detach().cpu().numpy() for tensor in tensors))

    @classmethod
    def seen(cls, detections: Detections, objects: Objects) -> ImageBoxes:
        """From what is found, in main memory, and what an image's labels say; turned boxes where these have them."""
        truth = objects.boxes if objects.turned is None else objects.turned
        found = detections.boxes if objects.turned is None else detections.turned
        if found is None:  # no detections are no turned ones
            found = torch.empty((0, 5))
        kept = ~objects.ignored
        own = np.full(len(objects), -1) if objects.difficult is None else objects.difficult
        regions = objects.boxes if objects.turned is None else to_turned(objects.boxes).astype(np.float32)
        ignored = np.where((own >= 0)[:, None], truth, regions)
        return cls(
            truth=truth[kept],
            truth_labels=objects.labels[kept],
            ignored=ignored[~kept],
            found=found.numpy(),
            scores=detections.scores.numpy(),
            labels=detections.labels.numpy(),
            ignored_labels=own[~kept].astype(np.int64),
        )

    @classmethod
    def none(cls) -> ImageBoxes:
        """Neither truth nor detections."""
        boxes, labels = np.empty((0, 4), np.float32), np.empty(0, np.int64)
        return cls(boxes, labels, boxes, boxes, np.empty(0, np.float32), labels)


@dataclass(frozen=True)
class BoxTable:
    """All boxes of I images, one below the other; `*_image` is the index of each row's image, ascending."""

    images: int
    classes: int
    truth: NDArray[np.float64]
    """(N, 4)"""
    truth_labels: NDArray[np.int64]
    truth_image: NDArray[np.int64]
    ignored: NDArray[np.float64]
    """(M, 4)"""
    ignored_labels: NDArray[np.int64]
    """(M,) as `ImageBoxes.ignored_labels`."""
    ignored_image: NDArray[np.int64]
    found: NDArray[np.float64]
    """(D, 4)"""
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    image: NDArray[np.int64]

    @classmethod
    def gather(cls, rows: Sequence[ImageBoxes], classes: int) -> BoxTable:
        """The boxes of many images, whose order stays; `classes` is their number K."""
        table = cls(
            images=len(rows),
            classes=classes,
            truth=_stack([row.truth for row in rows]),
            truth_labels=_join([row.truth_labels for row in rows]).astype(np.int64),
            truth_image=_owners([len(row.truth) for row in rows]),
            ignored=_stack([row.ignored for row in rows]),
            ignored_labels=_join([own_classes(row) for row in rows]).astype(np.int64),
            ignored_image=_owners([len(row.ignored) for row in rows]),
            found=_stack([row.found for row in rows]),
            scores=_join([row.scores for row in rows]),
            labels=_join([row.labels for row in rows]).astype(np.int64),
            image=_owners([len(row.found) for row in rows]),
        )
        for name, labels in (("truth", table.truth_labels), ("detections", table.labels)):
            wrong = np.unique(labels[(labels < 0) | (labels >= classes)])
            if len(wrong):
                raise ValueError(f"{name}: the labels {wrong.tolist()}; allowed are 0..{classes - 1}")
        return table

    @property
    def truth_areas(self) -> NDArray[np.float64]:
        """(N,) in square pixels."""
        return box_areas(self.truth)

    @property
    def found_areas(self) -> NDArray[np.float64]:
        """(D,) in square pixels."""
        return box_areas(self.found)

    def overlaps(self, found: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
        """IoU of pairs: rows of detections and of objects (P,) each -> (P,)."""
        common = intersections(self.found[found], self.truth[truth])
        return shares(common, box_areas(self.found[found]) + box_areas(self.truth[truth]) - common)

    def ignored_overlaps(self, found: NDArray[np.int64], ignored: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of pairs (P,): the share of the detection's area that lies in a region; the IoU with a difficult object."""
        common = intersections(self.found[found], self.ignored[ignored])
        area = box_areas(self.found[found])
        union = area + box_areas(self.ignored[ignored]) - common
        return shares(common, np.where(self.ignored_labels[ignored] < 0, area, union))


def own_classes(row: ImageBoxes) -> NDArray[np.int64]:
    """(M,) `ignored_labels`, written out."""
    return np.full(len(row.ignored), -1) if row.ignored_labels is None else row.ignored_labels


def shares(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """part / whole; 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def count_labels(
    image: NDArray[np.int64], labels: NDArray[np.int64], *, images: int, classes: int
) -> NDArray[np.int64]:
    """How often each class occurs in each image: two (N,) -> (I, K)."""
    return np.bincount(image * classes + labels, minlength=images * classes).reshape(images, classes)


def box_areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4) or (N, 5) -> (N,) in square pixels."""
    if boxes.shape[1] == 5:
        return boxes[:, 2] * boxes[:, 3]
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def intersections(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Common area of each pair of rows: two (N, 4) or (N, 5) -> (N,) in square pixels."""
    if 5 in (one.shape[1], other.shape[1]):
        return rotated_intersections(one, other)
    size = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    return size.clip(min=0).prod(axis=1)


def _stack(boxes: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.concatenate(boxes or [np.empty((0, 4), np.float32)]).astype(np.float64)


def _join(values: Sequence[NDArray[np.float32] | NDArray[np.int64]]) -> NDArray[np.float64]:
    return np.concatenate([np.empty(0), *values])


def _owners(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(counts)), np.asarray(counts, np.int64))
