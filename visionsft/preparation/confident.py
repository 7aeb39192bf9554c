"""Confident learning: which labels a model, asked about samples that it hasn't learned, confidently contradicts.

Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 70). Pure
functions of probabilities and labels; a class's threshold is how sure the model usually is where it is labelled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NONE = -1
"""No class is confident."""


class Thresholds:
    """Mean probability of each class over the samples with its label (the paper's t_j), batch by batch."""

    def __init__(self, classes: int) -> None:
        self.sums = np.zeros(classes)
        self.counts = np.zeros(classes, np.int64)

    def add(self, probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
        """probabilities (N, K); labels (N,) from 0."""
        own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        self.sums += np.bincount(labels, own, minlength=len(self.sums))
        self.counts += np.bincount(labels, minlength=len(self.counts))

    @property
    def values(self) -> NDArray[np.float64]:
        """(K,); above 1, so that it is never confident, for a class that no sample is labelled as."""
        return np.where(self.counts > 0, self.sums / np.maximum(self.counts, 1), np.inf)


def suggest(probabilities: NDArray[np.floating], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N, K) -> (N,) the most probable of the classes whose probability reaches their threshold, NONE where none does.

    Of a label that isn't the one suggested, the paper's confident joint counts an error.
    """
    confident = np.where(probabilities >= thresholds - 1e-6, probabilities, -1.0)
    best = confident.argmax(axis=1)
    return np.where(confident[np.arange(len(best)), best] >= 0, best, NONE)


def confident_joint(
    labels: NDArray[np.integer], suggested: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """(K, K) counts C of samples labelled i (rows) and suggested j (columns); samples without a suggestion are left
    out."""
    known = suggested != NONE
    codes = labels[known].astype(np.int64) * classes + suggested[known]
    return np.bincount(codes, minlength=classes * classes).reshape(classes, classes)


def estimate_joint(joint: NDArray[np.int64], label_counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """The joint distribution of given and true labels: the rows scaled to the labels' counts, then all to 1 (the
    paper's equation 3); a row without a confident sample is taken to be right."""
    calibrated = joint.astype(np.float64)
    empty = calibrated.sum(axis=1) == 0
    calibrated[empty, empty] = 1
    calibrated *= (label_counts / calibrated.sum(axis=1))[:, None]
    return calibrated / max(calibrated.sum(), 1)


def margins(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N,) the label's probability less that of the most probable other class: the most negative are the most
    suspect (the paper's normalised margin)."""
    own = probabilities[np.arange(len(labels)), labels]
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return np.asarray(own - others.max(axis=1), np.float64)
