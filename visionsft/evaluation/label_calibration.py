"""Label calibration: a classifier's probabilities against how often they are right, and what a temperature changes.

The temperature divides the logits. Softmax and sigmoid can be undone, so all is done with probabilities: dividing
logits is a power of the probabilities (of the odds, where an image can have several classes). Several classes share
one temperature; 0.5 stays 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax
from torch import Tensor

from visionsft.evaluation.calibration import (
    BINS,
    ErrorInterval,
    calibration_error,
    describe,
    equal_mass_error,
    error_interval,
)
from visionsft.evaluation.intervals import Unit
from visionsft.evaluation.metrics.classification import label_reliability
from visionsft.evaluation.metrics.segmentation import number, without_nan
from visionsft.evaluation.temperature import Temperature

DEFINITIONS = {
    "ece": f"expected calibration error: {BINS} bins of equal width, mean of |share that is right - mean probability| "
    "weighted by the bins' counts; of the most probable class, or of all classes of all images where an image has "
    "several",
    "ece_per_class": "the same of each class's own probability in all images, one class against the rest; where most "
    "images have a probability near 0, these numbers are small",
    "count": "images, or all their answers (images times classes) where an image has several classes",
    "temperature": "the logits are divided by it before the softmax (or sigmoid), which changes no ranking; fitted on "
    "validation by the negative log-likelihood (Guo et al. 2017); one for all classes",
}
"""What each number means; written beside the numbers."""

_SMALLEST = 1e-7
"""Probabilities nearer to 0 or 1 can't be told from them in float32 (odds of 16 million)."""


def temper(probabilities: NDArray[Any], temperature: float, *, several: bool) -> NDArray[np.float32]:
    """(..., K) of a model -> (..., K) of its logits divided by `temperature`; several: each class has its own."""
    return _chances(log_odds(probabilities, several=several) / temperature, several=several)


def log_odds(probabilities: NDArray[Any], *, several: bool) -> NDArray[np.float64]:
    """(..., K) logits that give these probabilities; of a softmax with 0 as the logarithm of their sum."""
    exact = probabilities.astype(np.float64)
    if several:
        return np.asarray(logit(exact.clip(_SMALLEST, 1 - _SMALLEST)))
    return np.asarray(np.log(exact.clip(np.finfo(np.float32).tiny)))


def _chances(logits: NDArray[np.float64], *, several: bool) -> NDArray[np.float32]:
    return np.asarray(expit(logits) if several else softmax(logits, axis=-1), np.float32)


def stated(probabilities: NDArray[Any], truth: NDArray[np.bool_], *, several: bool) -> tuple[Any, Any]:
    """(N, K) each -> (N, A) probabilities of what was said, and whether it is right: the best class, or each one."""
    if several:
        return probabilities, truth
    best = probabilities.argmax(axis=1)[:, None]
    return np.take_along_axis(probabilities, best, axis=1), np.take_along_axis(truth, best, axis=1)


def fitting_pairs(probabilities: NDArray[Any], truth: NDArray[np.bool_], *, several: bool) -> tuple[Tensor, Tensor]:
    """(N, K) each -> logits (P, J) and truth (P,) for `fit_temperature`; an answer of several is yes or no, J = 2."""
    logits = torch.from_numpy(log_odds(probabilities, several=several))
    if several:
        answers = torch.stack([torch.zeros_like(logits), logits], dim=-1).reshape(-1, 2)
        return answers, torch.from_numpy(truth.astype(np.int64)).ravel()
    return logits, torch.from_numpy(truth.argmax(axis=1))


def measure_labels(
    probabilities: NDArray[Any], truth: NDArray[np.bool_], *, several: bool, temperature: float = 1.0
) -> dict[str, float]:
    """Negative log-likelihood of an answer and calibration errors: (N, K) each."""
    tempered = temper(probabilities, temperature, several=several)
    confidence, right = (each.ravel() for each in stated(tempered, truth, several=several))
    given = np.where(truth, tempered, 1 - tempered) if several else tempered[truth]
    return {
        "nll": float(-np.log(given.astype(np.float64).clip(_SMALLEST)).mean()),
        "ece": float(calibration_error(label_reliability(confidence, right))),
        "ece_equal_mass": equal_mass_error(confidence.astype(np.float64), right),
    }


@dataclass(frozen=True)
class LabelCalibration:
    """How far a classifier's probabilities, with its temperature if it has one, are from what happens."""

    histogram: NDArray[np.float64]
    """(K + 1, BINS, 3): of what was said, then of each class against the rest; see `calibration`."""
    interval: ErrorInterval
    temperature: Temperature | None
    ece_before: float
    """Without the temperature."""

    @classmethod
    def of(
        cls,
        probabilities: NDArray[Any],
        truth: NDArray[np.bool_],
        groups: Sequence[str],
        *,
        several: bool,
        unit: Unit = "group",
        temperature: Temperature | None = None,
    ) -> LabelCalibration:
        """probabilities: (N, K) with the temperature; truth: (N, K); N group names."""
        singles = image_histograms(*stated(probabilities, truth, several=several))
        classes = [label_reliability(*pair) for pair in zip(probabilities.T, truth.T, strict=True)]
        plain = temper(probabilities, 1 / temperature.value, several=several) if temperature else probabilities
        before = label_reliability(*(each.ravel() for each in stated(plain, truth, several=several)))
        return cls(
            np.stack([singles.sum(axis=0), *classes]),
            error_interval(singles, groups, unit=unit, counted="images"),
            temperature,
            float(calibration_error(before)),
        )

    @property
    def ece(self) -> float:
        """With the temperature."""
        return float(calibration_error(self.histogram[0]))

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """For scores.json."""
        report = describe(self.histogram, names, counted="count", definitions=DEFINITIONS)
        known = None
        if self.temperature is not None:
            known = {
                "value": self.temperature.value,
                "fitted_on": self.temperature.fitted_on,
                "ece_before": self.ece_before,
                "ece_after": self.ece,
            }
        return {**report, **self.interval.as_dict(), "temperature": without_nan(known)}

    def lines(self) -> list[str]:
        """For the table."""
        how = "without a temperature; `visionsft calibrate` fits one"
        if self.temperature is not None:
            how = f"with temperature {self.temperature.value:.3f}; {number(self.ece_before)} without"
        return [
            f"calibration error (ECE)  {number(self.ece)}  {self.interval.show()}  ({how})",
            f"  = {DEFINITIONS['ece']}",
        ]


def image_histograms(confidence: NDArray[Any], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`label_reliability` of each image by itself: (N, A) each -> (N, BINS, 3)."""
    count, answers = confidence.shape
    return label_reliability(
        confidence.ravel(), right.ravel(), owners=np.repeat(np.arange(count), answers), count=count
    )
