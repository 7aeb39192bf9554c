"""Likeness: its AUC is scikit-learn's, and says what it should of sets that are alike, and that aren't."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from visionsft.preparation import likeness
from visionsft.preparation.findings import Findings


def test_auc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, sides = rng.integers(0, 9, 200).astype(float), rng.integers(0, 2, 200)  # with ties
    assert likeness._auc(scores, sides) == pytest.approx(roc_auc_score(sides, scores))


def test_alike_and_unlike_sets() -> None:
    rng = np.random.default_rng(1)
    first, same, other = rng.normal(0, 1, (200, 12)), rng.normal(0, 1, (200, 12)), rng.normal(0.8, 1, (200, 12))
    assert likeness.two_sample_auc(first, same) < 0.6
    assert likeness.two_sample_auc(first, other) > 0.9


def test_only_unlike_sets_are_told() -> None:
    rng = np.random.default_rng(2)
    sets = {"train": rng.normal(0, 1, (100, 5)), "val": rng.normal(0, 1, (100, 5)), "pool": rng.normal(3, 1, (100, 5))}
    findings = Findings()
    found = likeness.check_likeness(sets, findings, described="five numbers")
    assert [(each.first, each.second, each.meaning) for each in found] == [
        ("train", "val", "alike"), ("train", "pool", "clearly unlike"), ("val", "pool", "clearly unlike"),
    ]  # fmt: skip
    told = [(group.check, group.count) for group in findings.groups()]
    assert told == [("unlike train", 1), ("split unlike pool", 1)]


def test_few_images_are_not_compared() -> None:
    few = np.zeros((likeness.FEWEST - 1, 3))
    assert likeness.compare("train", "val", (few, np.zeros((100, 3))), described="") is None


def test_constant_features_are_no_trouble() -> None:
    assert likeness.two_sample_auc(np.ones((30, 2)), np.ones((30, 2))) == pytest.approx(0.5)
