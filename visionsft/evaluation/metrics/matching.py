"""Matching: which detection found which object, as COCO decides it (Lin et al. 2014; pycocotools is the reference).

In each image and class the detections take, the most certain first, the free object of the largest IoU that
reaches the threshold. A detection that only reaches an ignored region, or an object outside of the range of
sizes, counts neither for nor against. An ignored region belongs to every class, is measured by the share of the
detection's area that lies in it, and takes any number of detections. A difficult object of DOTA (Xia et al. 2018)
takes any number, too, but only of its own class, and is measured by IoU; unlike in DOTA's own evaluation, a
detection that reaches both takes the object that counts, even if its IoU with the difficult one is larger.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.metrics.boxes import BoxTable, count_labels

COCO_IOUS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""0.50, 0.55 ... 0.95, in COCO's own floating-point values."""

COCO_DETECTIONS = 100
"""COCO's limit for each image and class, which cuts crowded scenes short; by default there is none here."""

Range = tuple[float, float]
"""Smallest and largest area in square pixels, both included."""

ALL_SIZES: Range = (0.0, np.inf)

_CHUNK = 1_000_000
"""Pairs of boxes that are compared at once; about 200 bytes each."""


@dataclass(frozen=True)
class Matches:
    """Detections by image, class and falling score, and what each found at T thresholds of IoU."""

    thresholds: NDArray[np.float64]
    """(T,)"""
    index: NDArray[np.int64]
    """(D,) row of the detection in its `BoxTable`."""
    image: NDArray[np.int64]
    """(D,)"""
    labels: NDArray[np.int64]
    """(D,)"""
    scores: NDArray[np.float64]
    """(D,)"""
    truth: NDArray[np.int64]
    """(T, D) row of the object that was taken, -1 for none; ignored regions count on from the objects."""
    hits: NDArray[np.bool_]
    """(T, D) a true positive."""
    ignored: NDArray[np.bool_]
    """(T, D) neither a true nor a false positive."""
    positives: NDArray[np.int64]
    """(I, K) objects to be found."""

    def threshold(self, iou: float) -> int:
        """The index of this threshold; ValueError where nothing was matched at it."""
        index = np.flatnonzero(np.isclose(self.thresholds, iou))
        if not len(index):
            raise ValueError(f"no matches at IoU {iou:g}; there are {self.thresholds.round(4).tolist()}")
        return int(index[0])


def match_detections(
    boxes: BoxTable,
    *,
    thresholds: Sequence[float] = COCO_IOUS,
    sizes: Sequence[Range] = (ALL_SIZES,),
    max_detections: int | None = None,
) -> list[Matches]:
    """Match all images and classes, once for each range of `sizes`.

    max_detections: the most certain of each image and class that count; None: all that the model gave. Scores that
    tie keep their order.
    """
    index = _rank(boxes, max_detections)
    limits = np.minimum(
        np.asarray(thresholds, np.float64), 1 - 1e-10
    )  # identical boxes reach a threshold of 1
    pairs = _overlaps(boxes, index, float(limits.min()))
    return [_match(boxes, index, pairs, limits, size, np.asarray(thresholds, np.float64)) for size in sizes]


def _rank(boxes: BoxTable, max_detections: int | None) -> NDArray[np.int64]:
    """Rows of the detections by image, class and falling score, without those beyond the limit."""
    order = np.lexsort((-boxes.scores, boxes.labels, boxes.image))
    place = _places(boxes.image[order] * boxes.classes + boxes.labels[order])
    return order if max_detections is None else order[place < max_detections]


def _places(sorted_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each element among those of the same key, from 0."""
    return np.arange(len(sorted_keys)) - np.searchsorted(sorted_keys, sorted_keys)


# ------------------------------------------------------------------------------------------------ overlaps


@dataclass(frozen=True)
class _Overlaps:
    """Pairs that reach the lowest threshold; P of them."""

    detection: NDArray[np.int64]
    """(P,) place in the ranking."""
    truth: NDArray[np.int64]
    """(P,) row of the object; ignored regions count on from the objects."""
    iou: NDArray[np.float64]
    """(P,) for an ignored region: the share of the detection's area."""


def _overlaps(boxes: BoxTable, index: NDArray[np.int64], least: float) -> _Overlaps:
    image, own = boxes.image[index], boxes.image[index] * boxes.classes + boxes.labels[index]
    regions, difficult = (np.flatnonzero(kind) for kind in (boxes.ignored_labels < 0, boxes.ignored_labels >= 0))
    difficult_keys = boxes.ignored_image[difficult] * boxes.classes + boxes.ignored_labels[difficult]
    everything = np.arange(len(boxes.truth))
    kinds = (
        (boxes.overlaps, own, everything, boxes.truth_image * boxes.classes + boxes.truth_labels, 0),
        (boxes.ignored_overlaps, image, regions, boxes.ignored_image[regions], len(boxes.truth)),
        (boxes.ignored_overlaps, own, difficult, difficult_keys, len(boxes.truth)),
    )
    parts = []
    for overlap, keys, rows, row_keys, offset in kinds:
        for detection, other in same_key_pairs(keys, row_keys):
            iou = overlap(index[detection], rows[other])
            near = iou >= least
            parts.append((detection[near], rows[other[near]] + offset, iou[near]))
    columns = zip(*parts, strict=True) if parts else ([], [], [])
    detection, truth, iou = (np.concatenate([np.empty(0), *column]) for column in columns)
    return _Overlaps(detection.astype(np.int64), truth.astype(np.int64), iou)


def same_key_pairs(
    keys: NDArray[np.int64], others: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs (i, j) with keys[i] == others[j], in chunks of two (P,) each."""
    order = np.argsort(others, kind="stable")
    start = np.searchsorted(others[order], keys, side="left")
    count = np.searchsorted(others[order], keys, side="right") - start
    ends = count.cumsum()
    first = 0
    while first < len(keys):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _CHUNK, side="right")))
        rows, counts = np.arange(first, last), count[first:last]
        within = np.arange(counts.sum()) - np.repeat(ends[first:last] - counts - done, counts)
        yield np.repeat(rows, counts), order[np.repeat(start[first:last], counts) + within]
        first = last


# ------------------------------------------------------------------------------------------------ matching


def _match(
    boxes: BoxTable,
    index: NDArray[np.int64],
    pairs: _Overlaps,
    limits: NDArray[np.float64],
    size: Range,
    thresholds: NDArray[np.float64],
) -> Matches:
    outside = _outside(boxes.truth_areas, size)
    neutral = np.concatenate([outside, np.ones(len(boxes.ignored), bool)])
    keys = boxes.image[index] * boxes.classes + boxes.labels[index]
    truth = _take_in_turn(keys, pairs, limits, neutral, crowds_from=len(boxes.truth))
    taken = truth >= 0
    aside = np.append(neutral, False)[truth]  # -1 reads the last
    counted = boxes.truth_image[~outside], boxes.truth_labels[~outside]
    return Matches(
        thresholds=thresholds,
        index=index,
        image=boxes.image[index],
        labels=boxes.labels[index],
        scores=boxes.scores[index],
        truth=truth,
        hits=taken & ~aside,
        ignored=aside | (~taken & _outside(boxes.found_areas[index], size)),
        positives=count_labels(*counted, images=boxes.images, classes=boxes.classes),
    )


def _outside(areas: NDArray[np.float64], size: Range) -> NDArray[np.bool_]:
    return (areas < size[0]) | (areas > size[1])


def _take_in_turn(
    keys: NDArray[np.int64],
    pairs: _Overlaps,
    limits: NDArray[np.float64],
    neutral: NDArray[np.bool_],
    *,
    crowds_from: int,
) -> NDArray[np.int64]:
    """The objects (T, D) that the ranked detections of these keys (D,) take at limits (T,); -1 for none.

    In turn r the r-th of each image and class that overlaps with anything chooses: turns are few, and
    detections of one turn can't want the same object.
    """
    truth = np.full((len(limits), len(keys)), -1)
    involved = np.unique(pairs.detection)
    turn = np.zeros(len(keys), np.int64)
    turn[involved] = _places(keys[involved])
    # what is wanted first: objects before neutral ones, then the largest IoU; COCO takes the last of equals
    order = np.lexsort(
        (-pairs.truth, -pairs.iou, neutral[pairs.truth], pairs.detection, turn[pairs.detection])
    )
    detection, wanted, iou = pairs.detection[order], pairs.truth[order], pairs.iou[order]
    taken = np.zeros((len(limits), len(neutral)), bool)
    edges = np.searchsorted(turn[detection], np.arange(turn.max(initial=-1) + 2))
    for first, last in itertools.pairwise(edges):
        part = slice(first, last)
        free = (iou[part] >= limits[:, None]) & ~taken[:, wanted[part]]
        choosing, starts = np.unique(detection[part], return_index=True)
        if not len(choosing):
            continue
        place = np.where(free, np.arange(last - first), last - first)
        place = np.minimum.reduceat(place, starts, axis=1)
        chosen = np.append(wanted[part], -1)[place]
        truth[:, choosing] = chosen
        level, which = np.nonzero((chosen >= 0) & (chosen < crowds_from))
        taken[level, chosen[level, which]] = True
    return truth
