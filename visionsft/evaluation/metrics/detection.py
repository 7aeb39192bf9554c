"""Detection metrics: average precision as COCO defines it, read from the matches of a split.

A number that isn't defined (the average precision of a class without truth, say) is nan, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.objects import Target
from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes
from visionsft.evaluation.metrics.matching import Matches, match_detections

if TYPE_CHECKING:
    from visionsft.models.detections import Detections

RECALLS = np.linspace(0.0, 1.0, 101)
"""Where the precision-recall curve is read, in COCO's own floating-point values."""


def average_precisions(matches: Matches) -> NDArray[np.float64]:
    """Of each threshold and class: (T, K); nan for a class without truth."""
    total = matches.positives.sum(axis=0)
    found = np.full((len(matches.thresholds), len(total)), np.nan)
    for k in np.flatnonzero(total).tolist():
        hits, false = (part.cumsum(axis=1) for part in ranked(matches, k))
        found[:, k] = interpolated_precision(hits, false, total[k])
    return found


def largest_recalls(matches: Matches) -> NDArray[np.float64]:
    """The share of the objects that is found at any score: (T, K); nan for a class without truth."""
    total = matches.positives.sum(axis=0)
    hits = [np.bincount(matches.labels, weights=row, minlength=len(total)) for row in matches.hits]
    return np.divide(hits, total, out=np.full((len(hits), len(total)), np.nan), where=total > 0)


def ranked(matches: Matches, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections of class k are true and which false positives, the most certain first: two (T, D)."""
    order = class_order(matches, k)
    hits = matches.hits[:, order]
    return hits, ~hits & ~matches.ignored[:, order]


def class_order(matches: Matches, k: int) -> NDArray[np.int64]:
    """Places in `matches` of the detections of class k, the most certain first, ties in order of the images."""
    rows = np.flatnonzero(matches.labels == k)
    return rows[np.argsort(-matches.scores[rows], kind="stable")]


def interpolated_precision(
    hits: NDArray[np.number], false: NDArray[np.number], positives: NDArray[np.number]
) -> NDArray[np.float64]:
    """Average precision: the mean over `RECALLS` of the largest precision at that recall or beyond.

    hits, false: (..., D) true and false positives up to each rank; positives: (...) objects, above 0. -> (...)
    Where no rank reaches a recall, precision is 0 there.
    """
    whole = hits + false
    precision = np.divide(hits, whole, out=np.zeros(whole.shape), where=whole > 0)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    reached = np.searchsorted(RECALLS, hits / np.asarray(positives)[..., None], side="right")
    return (envelope * np.diff(reached, axis=-1, prepend=0)).sum(axis=-1) / len(RECALLS)


class AveragePrecision:
    """The mean average precision of everything it has seen, over all processes: for training loops.

    Images that a sampler shows twice, to fill the last batch of several processes, count twice.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._rows: list[ImageBoxes] = []

    def update(self, detections: Sequence[Detections], targets: Sequence[Target]) -> None:
        """Take in one batch."""
        self._rows += [ImageBoxes.of(*each) for each in zip(detections, targets, strict=True)]

    def compute(self) -> dict[str, float]:
        """``map``, the mean over IoU 0.50:0.95 and the classes in truth, and ``ap50``; nan without any truth."""
        (matches,) = match_detections(BoxTable.gather(_everyones(self._rows), self.num_classes))
        precisions = average_precisions(matches)
        return {"map": mean(precisions), "ap50": mean(precisions[matches.threshold(0.5)])}

    def reset(self) -> None:
        """Forget everything."""
        self._rows = []


def mean(values: NDArray[np.float64]) -> float:
    """Mean of what is defined; nan where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _everyones(rows: list[ImageBoxes]) -> list[ImageBoxes]:
    """The rows of all processes, in order of their ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    gathered: list[list[ImageBoxes]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]
