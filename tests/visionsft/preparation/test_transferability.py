"""Transferability: beside scikit-learn's logistic regression and neighbours, and LogME's formulas as published."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from visionsft.preparation.transferability import (
    STRENGTHS,
    fit_probe,
    fit_probe_at,
    fold_of_groups,
    log_evidence,
    vote_of_neighbours,
)


def draw(count: int, width: int, classes: int, *, seed: int = 0, gap: float = 1.5) -> tuple[NDArray, NDArray]:
    """Features (N, D) of very different scales, and class indices (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    middles = rng.normal(0, gap, (classes, width))
    return (middles[labels] + rng.normal(0, 1, (count, width))) * np.geomspace(0.01, 100, width) + 5, labels


def one_hot(labels: NDArray, classes: int) -> NDArray:
    return np.eye(classes)[labels]


# -------------------------------------------------------------------------------------------- linear probe


@pytest.mark.parametrize(("count", "width"), [(90, 12), (30, 80)])
def test_the_probe_is_scikit_learns_logistic_regression(count: int, width: int) -> None:
    features, labels = draw(count, width, 3)
    probe = fit_probe_at(features, one_hot(labels, 3), 0.01)
    standard = (features - features.mean(0)) / features.std(0)
    reference = LogisticRegression(C=1 / (0.01 * count), tol=1e-8, max_iter=2000).fit(standard, labels)
    np.testing.assert_allclose(probe.probabilities(features), reference.predict_proba(standard), atol=2e-3)


def test_several_labels_are_a_regression_each() -> None:
    features, labels = draw(120, 6, 4)
    targets = np.stack([labels >= 2, labels % 2 == 1], axis=1).astype(float)
    probe = fit_probe_at(features, targets, 0.05, several=True)
    standard = (features - features.mean(0)) / features.std(0)
    for k in range(2):
        reference = LogisticRegression(C=1 / (0.05 * 120), tol=1e-8).fit(standard, targets[:, k])
        np.testing.assert_allclose(
            probe.probabilities(features)[:, k], reference.predict_proba(standard)[:, 1], atol=2e-3
        )


def test_a_stronger_penalty_is_chosen_for_noise() -> None:
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(0, 1, (60, 40)), np.arange(60) % 3
    clear, _ = draw(60, 40, 3, gap=3.0)
    groups = [str(i) for i in range(60)]
    assert fit_probe(noise, one_hot(labels, 3), groups).strength == STRENGTHS[0]
    assert fit_probe(clear, one_hot(labels, 3), groups).strength < STRENGTHS[0]


def test_a_feature_that_never_changes_is_not_used() -> None:
    features, labels = draw(60, 5, 2)
    features[:, 2] = 7.0
    probe = fit_probe_at(features, one_hot(labels, 2), 0.01)
    assert (probe.weight[2] == 0).all()
    assert np.isfinite(probe.logits(features)).all()


def test_one_group_has_nothing_to_leave_out() -> None:
    features, labels = draw(30, 5, 2)
    assert np.isfinite(fit_probe(features, one_hot(labels, 2), ["drive"] * 30).bias).all()


def test_a_class_without_samples_is_never_predicted() -> None:
    features, labels = draw(60, 5, 2)
    probe = fit_probe_at(features, one_hot(labels, 3), 0.01)
    assert probe.probabilities(features)[:, 2].max() < 0.05


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(2, 4), st.integers(0, 5))
def test_a_group_is_in_one_fold(groups: list[str], folds: int, seed: int) -> None:
    fold = fold_of_groups(groups, folds, seed=seed)
    owners = {(name, index) for name, index in zip(groups, fold.tolist(), strict=True)}
    assert len(owners) == len(set(groups))
    assert set(fold.tolist()) == set(range(min(folds, len(set(groups)))))


# ---------------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("count", [1, 5, 10])
def test_votes_are_scikit_learns(count: int) -> None:
    features, labels = draw(80, 7, 4)
    queries, _ = draw(33, 7, 4, seed=1)
    votes = vote_of_neighbours(features, one_hot(labels, 4), queries, count=count)
    reference = KNeighborsClassifier(count, metric="cosine").fit(features, labels)
    np.testing.assert_allclose(votes, reference.predict_proba(queries), atol=1e-6)


def test_more_neighbours_than_samples() -> None:
    votes = vote_of_neighbours(np.eye(3), np.eye(3), np.ones((2, 3)), count=10)
    np.testing.assert_allclose(votes, 1 / 3)


# --------------------------------------------------------------------------------------------------- LogME


def published_evidence(features: NDArray, target: NDArray) -> float:
    """Algorithm 1 of You et al. (2021) by its formulas: A = alpha I + beta F'F, m = beta A^-1 F'y."""
    count, width = features.shape
    alpha = beta = 1.0
    for _ in range(11):
        a = alpha * np.eye(width) + beta * features.T @ features
        mean = beta * np.linalg.solve(a, features.T @ target)
        eigenvalues = np.clip(np.linalg.eigvalsh(beta * features.T @ features), 0, None)
        gamma = (eigenvalues / (alpha + eigenvalues)).sum()
        residual, weights = ((features @ mean - target) ** 2).sum(), mean @ mean
        before = alpha / beta
        alpha, beta = gamma / (weights + 1e-5), (count - gamma) / (residual + 1e-5)
        evidence = (
            count / 2 * np.log(beta) + width / 2 * np.log(alpha) - count / 2 * np.log(2 * np.pi)
            - beta / 2 * residual - alpha / 2 * weights
            - np.linalg.slogdet(alpha * np.eye(width) + beta * features.T @ features)[1] / 2
        )  # fmt: skip
        if abs(alpha / beta - before) <= 1e-3 * before:
            break
    return float(evidence / count)


@pytest.mark.parametrize(("count", "width"), [(60, 8), (20, 50)])
def test_log_evidence_is_the_papers(count: int, width: int) -> None:
    features, labels = draw(count, width, 3)
    features = (features - 5) / np.geomspace(0.01, 100, width)
    targets = one_hot(labels, 3)
    expected = np.mean([published_evidence(features, targets[:, k]) for k in range(3)])
    assert log_evidence(features, targets) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_log_evidence_does_not_change_under_a_rotation(seed: int) -> None:
    features, labels = draw(40, 6, 3, seed=seed)
    features = features / np.geomspace(0.01, 100, 6)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
    targets = one_hot(labels, 3)
    assert log_evidence(features @ rotation, targets) == pytest.approx(log_evidence(features, targets), rel=1e-6)


def test_log_evidence_prefers_classes_that_lie_apart() -> None:
    targets = one_hot(np.arange(90) % 3, 3)
    scores = [log_evidence(draw(90, 8, 3, gap=gap)[0] / np.geomspace(0.01, 100, 8), targets) for gap in (0.0, 1, 3)]
    assert scores == sorted(scores)
