"""Classification metrics against scikit-learn, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from visionsft.evaluation.metrics import (
    LabelAnswers,
    average_precision,
    best_thresholds,
    class_average_precisions,
    decide,
    one_hot,
    summarise_labels,
)
from visionsft.evaluation.metrics.classification import BINS

NAMES = ("a", "b", "c", "d")


def draw(seed: int, *, count: int = 60, coarse: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 4) that sum to 1, some of them equal, and labels (N,) that they partly know."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    scores = rng.random((count, 4)) + 0.7 * (labels[:, None] == np.arange(4))
    if coarse:
        scores = np.ceil(scores * 8) / 8
    return scores / scores.sum(1, keepdims=True), labels


@pytest.mark.parametrize("seed", range(4))
def test_one_class_an_image_as_scikit_learn(seed: int) -> None:
    probabilities, labels = draw(seed)
    scores, predicted = summarise_labels(probabilities, labels, NAMES), probabilities.argmax(1)
    recall, precision, f1 = (
        function(labels, predicted, average=None, zero_division=np.nan)
        for function in (sk.recall_score, sk.precision_score, sk.f1_score)
    )
    np.testing.assert_allclose([row.recall for row in scores.per_class], recall)
    np.testing.assert_allclose([row.precision for row in scores.per_class], precision)
    np.testing.assert_allclose([row.f1 for row in scores.per_class], f1)
    assert scores.accuracy == pytest.approx(sk.accuracy_score(labels, predicted))
    assert scores.macro_f1 == pytest.approx(f1.mean())
    assert scores.mean_recall == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    truth = one_hot(labels, 4)
    assert scores.mean_average_precision == pytest.approx(sk.average_precision_score(truth, probabilities))
    fine, labels = draw(seed, coarse=False)
    scores = summarise_labels(fine, labels, NAMES)
    for k in (2, 3):
        assert scores.top_k[k] == pytest.approx(sk.top_k_accuracy_score(labels, fine, k=k))
    assert set(scores.top_k) == {2, 3}


@pytest.mark.parametrize("seed", range(4))
def test_several_classes_an_image_as_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((50, 4)) < 0.3
    probabilities = np.round((rng.random((50, 4)) + 0.5 * truth) / 1.5, 2)
    thresholds = np.array([0.5, 0.3, 0.6, 0.5])
    scores = summarise_labels(probabilities, truth.astype(np.float32), NAMES, thresholds=thresholds)
    decided = probabilities >= thresholds
    assert scores.accuracy == pytest.approx(sk.accuracy_score(truth, decided))
    assert scores.macro_f1 == pytest.approx(sk.f1_score(truth, decided, average="macro"))
    assert scores.mean_average_precision == pytest.approx(sk.average_precision_score(truth, probabilities))
    assert scores.top_k == {}
    error = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (probabilities > low) & (probabilities <= low + 1 / BINS)
        inside |= (low == 0) & (probabilities == 0)
        if inside.any():
            error += abs(truth[inside].mean() - probabilities[inside].mean()) * inside.mean()
    assert scores.ece == pytest.approx(error, abs=0.02)  # edges of bins by rounding


@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30).filter(
        lambda rows: any(on and weight for _, on, weight in rows)
    )
)
@settings(deadline=None, max_examples=60)
def test_weights_are_copies(rows: list[tuple[int, bool, int]]) -> None:
    """An image of weight w counts as w images, as scikit-learn has it."""
    scores, truth, weights = (np.array(column) for column in zip(*rows, strict=True))
    found = float(average_precision(scores, truth, weights))
    repeated = np.repeat(scores, weights), np.repeat(truth, weights)
    assert found == pytest.approx(float(average_precision(*repeated)))
    assert found == pytest.approx(sk.average_precision_score(repeated[1], repeated[0]))


def test_many_weightings_at_once() -> None:
    probabilities, labels = draw(1)
    truth = one_hot(labels, 4)
    weights = np.random.default_rng(0).integers(0, 3, (5, len(labels)))
    together = class_average_precisions(probabilities, truth, weights)
    assert together.shape == (5, 4)
    for row, each in zip(together, weights, strict=True):
        np.testing.assert_allclose(row, class_average_precisions(probabilities, truth, each))


def test_a_class_without_images_is_not_defined_and_not_averaged() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    scores = summarise_labels(probabilities, np.array([0, 1]), ("a", "b", "never"))
    assert math.isnan(scores.per_class[2].recall)
    assert math.isnan(scores.per_class[2].average_precision)
    assert scores.macro_f1 == scores.mean_recall == scores.mean_average_precision == 1.0
    assert scores.as_dict()["per_class"][2]["recall"] is None
    assert "never" in scores.table()


def test_perfect_and_certain_is_perfectly_calibrated() -> None:
    scores = summarise_labels(np.eye(4), np.arange(4), NAMES)
    assert (scores.accuracy, scores.ece) == (1.0, 0.0)
    assert summarise_labels(np.eye(4), np.array([1, 2, 3, 0]), NAMES).ece == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_has_a_higher_f1_than_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((40, 3)) < (0.5, 0.1, 0.0)
    probabilities = np.round((rng.random((40, 3)) + 0.4 * truth) / 1.4, 1)
    found = best_thresholds(probabilities, truth)
    decided = decide(probabilities, found)
    for k in range(2):
        best = sk.f1_score(truth[:, k], decided[:, k])
        others = [sk.f1_score(truth[:, k], probabilities[:, k] >= t) for t in np.linspace(0, 1, 41)]
        assert best == pytest.approx(max(others))
    assert found[2] == 0.5


def test_answers_of_batches_are_kept_in_order() -> None:
    import torch

    answers = LabelAnswers()
    logits, labels = torch.randn(7, 3), torch.randint(0, 3, (7,))
    for part in (slice(0, 4), slice(4, 7)):
        answers.update(logits[part], labels[part])
    kept, known = answers.compute()
    assert torch.equal(kept, logits)
    assert torch.equal(known, labels)
    answers.reset()
    answers.update(logits[:2], labels[:2])
    assert len(answers.compute()[0]) == 2
