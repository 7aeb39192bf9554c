"""Detection curves: what a class gains and costs from each score on, and the operating points read from that.

All at one IoU, whose matches are COCO's. Ignored detections are in no curve. Detections of equal score are
accepted together, so that each point is one that a threshold on the score can reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.metrics.matching import Matches

MISS_RATE_FPPI = np.logspace(-2.0, 0.0, 9)
"""False positives per image at which Dollár et al. (2012, section 3.2) read the miss rate."""

_LEAST_MISS_RATE = 1e-10
"""Stands for a miss rate of 0, which has no logarithm; as in Dollár's toolbox."""


@dataclass(frozen=True)
class OperatingScore:
    """What accepting all detections from a score on gives; nan where a number isn't defined."""

    score: float
    recall: float
    precision: float
    f1: float
    fppi: float
    """False positives per image."""


@dataclass(frozen=True)
class DetectionCurve:
    """Counts of all detections from each of S scores on, the highest first."""

    scores: NDArray[np.float64]
    """(S,) strictly falling."""
    hits: NDArray[np.int64]
    """(S,) true positives."""
    false: NDArray[np.int64]
    """(S,) false positives."""
    positives: int
    """Objects in truth."""
    images: int

    @property
    def recall(self) -> NDArray[np.float64]:
        """(S,) hits / positives; nan without any."""
        return self.hits / self.positives if self.positives else np.full(len(self.hits), np.nan)

    @property
    def precision(self) -> NDArray[np.float64]:
        """(S,) hits / (hits + false)."""
        return self.hits / (self.hits + self.false)

    @property
    def f1(self) -> NDArray[np.float64]:
        """(S,) 2 hits / (hits + false + positives)."""
        return 2 * self.hits / (self.hits + self.false + self.positives)

    @property
    def fppi(self) -> NDArray[np.float64]:
        """(S,) false positives per image."""
        return self.false / self.images

    def at(self, score: float) -> OperatingScore:
        """Of all detections of at least this score."""
        accepted = int(np.count_nonzero(self.scores >= np.float32(score)))  # detectors' scores are float32
        if accepted:
            return self._point(accepted - 1, score)
        nothing = 0.0 if self.positives else float("nan")
        return OperatingScore(score, nothing, float("nan"), nothing, 0.0)

    def best_f1(self) -> OperatingScore:
        """The score of largest F1, the highest of equals; all nan without truth or without detections."""
        if not self.positives or not len(self.scores):
            return OperatingScore(*[float("nan")] * 5)
        best = int(self.f1.argmax())
        return self._point(best, float(self.scores[best]))

    def _point(self, place: int, score: float) -> OperatingScore:
        columns = (self.recall, self.precision, self.f1, self.fppi)
        return OperatingScore(score, *(float(column[place]) for column in columns))

    def recall_at_fppi(self, fppi: float) -> float:
        """The largest recall with no more than `fppi` false positives per image; nan without truth."""
        if not self.positives:
            return float("nan")
        within = self.false <= fppi * self.images * (1 + 1e-9)  # 0.1 * 30 is 3.0000000000000004
        return float(self.recall[within].max(initial=0.0))

    def log_average_miss_rate(self) -> float:
        """Geometric mean of 1 - recall at `MISS_RATE_FPPI`; where the curve ends before, its last point's."""
        misses = 1 - np.array([self.recall_at_fppi(fppi) for fppi in MISS_RATE_FPPI.tolist()])
        return float(np.exp(np.log(np.maximum(misses, _LEAST_MISS_RATE)).mean()))


def detection_curve(matches: Matches, k: int | None, *, iou: float) -> DetectionCurve:
    """Of class k, or of all classes under one threshold (None), at the threshold `iou` of the matches."""
    level = matches.threshold(iou)
    rows = ~matches.ignored[level] & (True if k is None else matches.labels == k)
    hits, scores = matches.hits[level, rows], matches.scores[rows]
    order = np.argsort(-scores)
    scores, hits = scores[order], hits[order]
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], np.ones(min(len(scores), 1), bool)))
    found = hits.cumsum()[last]
    positives = matches.positives.sum() if k is None else matches.positives[:, k].sum()
    return DetectionCurve(scores[last], found, last + 1 - found, int(positives), len(matches.positives))
