"""Confident learning: against the numbers of cleanlab 2.9, and a case worked by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from visionsft.preparation.confident import (
    NONE,
    Thresholds,
    confident_joint,
    estimate_joint,
    margins,
    suggest,
)

# cleanlab 2.9.0's get_confident_thresholds, compute_confident_joint(calibrate=False), estimate_joint (which rounds
# to whole samples) and get_normalized_margin_for_each_label (times 2, less 1), for the samples of `_samples`
THRESHOLDS = [0.563409508524467, 0.535903265074431, 0.5458029642580905, 0.460613563123382]
JOINT = [[11, 0, 0, 2], [1, 7, 0, 1], [0, 2, 5, 0], [0, 0, 5, 10]]
ESTIMATE = [
    [0.233333, 0.0, 0.0, 0.05], [0.033333, 0.2, 0.0, 0.033333],
    [0.0, 0.05, 0.133333, 0.0], [0.0, 0.0, 0.083333, 0.183333],
]  # fmt: skip
MARGINS = [0.015461508951988057, -0.47342055528051397, -0.26342584575248706, 0.6511136158975801, 0.8109172049987992]


def _samples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    true = rng.integers(0, 4, 60)
    labels = true.copy()
    flip = rng.random(60) < 0.2
    labels[flip] = (labels[flip] + 1) % 4
    logits = rng.normal(0, 1, (60, 4))
    logits[np.arange(60), true] += 2.0
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def test_numbers_are_those_of_cleanlab() -> None:
    probabilities, labels = _samples()
    thresholds = Thresholds(4)
    for part in np.array_split(np.arange(60), 7):  # batch by batch
        thresholds.add(probabilities[part], labels[part])
    np.testing.assert_allclose(thresholds.values, THRESHOLDS, rtol=1e-12)
    joint = confident_joint(labels, suggest(probabilities, thresholds.values), 4)
    assert joint.tolist() == JOINT
    np.testing.assert_allclose(estimate_joint(joint, thresholds.counts), ESTIMATE, atol=0.5 / 60)
    np.testing.assert_allclose(margins(probabilities, labels)[:5], MARGINS, rtol=1e-9)


def test_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.55, 0.45]])
    labels = np.array([0, 0, 0, 1])
    thresholds = Thresholds(2)
    thresholds.add(probabilities, labels)
    np.testing.assert_allclose(thresholds.values, [0.6, 0.45])
    # the last one: 0.55 is below the 0.6 of class 0, and 0.45 reaches that of class 1
    assert suggest(probabilities, thresholds.values).tolist() == [0, 0, 1, 1]


def test_a_class_without_labels_is_never_suggested() -> None:
    thresholds = Thresholds(3)
    thresholds.add(np.array([[0.5, 0.0, 0.5]]), np.array([0]))
    assert suggest(np.array([[0.0, 1.0, 0.0], [0.1, 0.0, 0.9]]), thresholds.values).tolist() == [NONE, NONE]


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_the_joint_is_a_distribution_with_the_labels_shares(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), 40)
    labels = rng.integers(0, classes, 40)
    thresholds = Thresholds(classes)
    thresholds.add(probabilities, labels)
    joint = estimate_joint(
        confident_joint(labels, suggest(probabilities, thresholds.values), classes), thresholds.counts
    )
    np.testing.assert_allclose(joint.sum(), 1)
    np.testing.assert_allclose(joint.sum(axis=1), np.bincount(labels, minlength=classes) / 40)
