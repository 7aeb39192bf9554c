"""Uncertainty: how unsure a model is of an image, as one number, and of which classes.

Maps and images: the entropy of the predicted distribution (Shannon 1948; as a query criterion: Settles 2009, "Active
Learning Literature Survey"), over the logarithm of the number of classes, so that 0 is certain and 1 knows nothing;
of a map the mean over its valid pixels. Images with several classes: the mean of the classes' binary entropies, in
bits. Objects: the sum of the binary entropies of the detections' scores, after Brust, Käding and Denzler 2019 ("Active
Learning for Deep Object Detection"), who sum up each detection's uncertainty and find the sum better than its mean or
maximum; it has no upper limit. Detections below `SEEN` are left out: a dense detector gives hundreds for every image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SEEN = 0.1
"""Score from which on a detection counts."""


@dataclass(frozen=True)
class Doubt:
    """How unsure a model is of one image."""

    amount: float
    by_class: NDArray[np.float64]
    """(K,) the part of the amount that falls on each class."""

    def worst(self, count: int) -> list[tuple[int, float]]:
        """Classes with the largest parts and their shares of the amount, at most `count`, none without a part."""
        order = np.argsort(-self.by_class, kind="stable")[:count].tolist()
        total = float(self.by_class.sum())
        return [(k, float(self.by_class[k]) / total) for k in order if self.by_class[k] > 0]


def doubt_pixels(logits: Tensor, valid: Tensor) -> list[Doubt]:
    """logits: (B, K, H, W), valid: (B, H, W) bool with a valid pixel in each -> the doubt of each map.

    A class's part: the entropy of the pixels that are predicted to be of it.
    """
    classes = logits.shape[1]
    logarithms = torch.log_softmax(logits.float(), dim=1)
    entropy = -(logarithms.exp() * logarithms).sum(dim=1) / math.log(max(classes, 2))
    best = logits.argmax(dim=1)
    found = []
    for each, index, seen in zip(entropy, best, valid.to(entropy.device), strict=True):
        values = each[seen].double()
        sums = torch.bincount(index[seen], weights=values, minlength=classes) / len(values)
        found.append(Doubt(float(values.mean()), sums.cpu().numpy()))
    return found


def doubt_labels(probabilities: NDArray[np.floating], *, several: bool) -> list[Doubt]:
    """probabilities: (B, K) -> the doubt of each image; several: each class has a probability of its own."""
    p = probabilities.astype(np.float64)
    parts = _binary_entropy(p) / p.shape[1] if several else _surprise(p) / math.log(max(p.shape[1], 2))
    return [Doubt(float(row.sum()), row) for row in parts]


def doubt_objects(scores: NDArray[np.floating], labels: NDArray[np.integer], *, classes: int) -> Doubt:
    """scores: (N,) in 0..1, labels: (N,) from 0."""
    seen = scores >= SEEN
    scores, labels = scores[seen], labels[seen]
    entropy = _binary_entropy(scores.astype(np.float64))
    by_class = np.bincount(labels, weights=entropy, minlength=classes).astype(np.float64)
    return Doubt(float(entropy.sum()), by_class)


def _surprise(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """-p log p, which is 0 at 0."""
    return -p * np.log(np.where(p > 0, p, 1.0))


def _binary_entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """In bits."""
    return (_surprise(p) + _surprise(1 - p)) / math.log(2)
