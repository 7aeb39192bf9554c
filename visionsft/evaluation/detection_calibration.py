"""Detection calibration: how far the scores of detections are from how often they are right (Küppers et al. 2020).

A detection is right if it takes an object of its class at the IoU, as matching decides it; those in ignored regions
don't count. In each bin of the score, precision is compared with the mean score: D-ECE with the confidence alone,
without the boxes' places and sizes. Images are resampled by group for its interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.calibration import BINS, ErrorInterval, calibration_error, error_interval
from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.intervals import Unit
from visionsft.evaluation.metrics.classification import label_reliability
from visionsft.evaluation.metrics.matching import Matches, match_detections
from visionsft.evaluation.metrics.segmentation import number, without_nan
from visionsft.evaluation.reliability import bins_of

LEAST = 0.3
"""Score from which on detections are in `ece`: the one from which on `predict` writes them."""

DEFINITIONS = {
    "ece": f"detection calibration error (D-ECE of the confidence alone, Küppers et al. 2020): {BINS} bins of equal "
    "width of the score, mean of |share of the detections that find an object at the IoU - mean score| weighted by "
    f"the bins' detections; of detections of score {LEAST:g} and more",
    "ece_all": "the same of all detections that the model gives; most have a score near 0, so it is small",
    "ece_per_class": "the ece of each class's detections",
    "bins": "of all detections that the model gives",
    "temperature": "detectors have none: it would change no ranking",
}
"""What each number means; written beside the numbers."""


@dataclass(frozen=True)
class DetectionCalibration:
    """What a detector's scores are worth."""

    iou: float
    histogram: NDArray[np.float64]
    """(BINS, 3) of all detections: their number, the sum of their scores, and how many are right."""
    certain: NDArray[np.float64]
    """(BINS, 3) of those of score `LEAST` and more."""
    per_class: dict[str, NDArray[np.float64]]
    """The same of a class."""
    interval: ErrorInterval
    """Of `ece`."""

    @classmethod
    def of(cls, counts: DetectionCounts, *, iou: float, unit: Unit = "group") -> DetectionCalibration:
        """From a split's boxes."""
        (matches,) = match_detections(counts.table(), thresholds=(iou,))
        counted = ~matches.ignored[0]
        certain = counted & (matches.scores >= np.float32(LEAST))
        singles = label_reliability(
            *_answers(matches, certain), owners=matches.image[certain], count=len(counts)
        )
        classes = {
            name: label_reliability(*_answers(matches, certain & (matches.labels == k)))
            for k, name in enumerate(counts.classes)
        }
        return cls(
            iou,
            label_reliability(*_answers(matches, counted)),
            singles.sum(axis=0),
            classes,
            error_interval(singles, counts.names(unit), unit=unit, counted="detections"),
        )

    @property
    def ece(self) -> float:
        """nan without a detection."""
        return float(calibration_error(self.certain))

    def as_dict(self) -> dict[str, Any]:
        """For scores.json."""
        errors = {name: float(calibration_error(each)) for name, each in self.per_class.items()}
        return {
            **without_nan({"ece": self.ece, "ece_per_class": errors}),
            **self.interval.as_dict(),
            "ece_all": without_nan(float(calibration_error(self.histogram))),
            "iou": self.iou,
            "least_score": LEAST,
            "count": int(self.certain[:, 0].sum()),
            "bins": bins_of(self.histogram)["bins"],
            "definition": DEFINITIONS,
        }

    def lines(self) -> list[str]:
        """For the table."""
        count = f"{int(self.certain[:, 0].sum()):,} detections, IoU {self.iou:g}"
        return [
            f"calibration error (D-ECE)  {number(self.ece)}  {self.interval.show()}  ({count})",
            f"  = {DEFINITIONS['ece']}",
        ]


def _answers(matches: Matches, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores of the chosen detections (D,), and whether they are right."""
    return matches.scores[chosen], matches.hits[0, chosen]
