"""Slices of a classifier's answers against scikit-learn on the same images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from datamodules.batch import Item
from visionsft.evaluation.classifying import Answers
from visionsft.evaluation.label_slices import slice_answers

NAMES = ("field", "forest", "lake")


def answers(several: bool) -> Answers:
    """120 images of six scenes; the brighter, the better known."""
    rng = np.random.default_rng(0)
    items = tuple(Item(f"{i}.png", f"scene{i % 6}", f"/x/{i}.png") for i in range(120))
    labels = (rng.random((120, 3)) < 0.5).astype(np.float32) if several else rng.integers(0, 3, 120)
    truth = labels if several else np.eye(3)[labels]
    probabilities = rng.random((120, 3)) + np.linspace(0, 0.8, 120)[:, None] * truth
    return Answers(items, NAMES, (probabilities / 2).astype(np.float32), labels, np.arange(120.0))


@pytest.mark.parametrize("several", [False, True])
def test_slices_have_scikit_learns_numbers(several: bool) -> None:
    made = answers(several)
    thresholds = np.array([0.5, 0.4, 0.6]) if several else None
    slices = slice_answers(made, ["brightness"], thresholds=thresholds)
    assert slices is not None
    for row in slices.rows:
        quarter = ("lowest", "second", "third", "highest").index(row.value.split()[0])
        part = made.take(np.arange(30 * quarter, 30 * quarter + 30))
        given = part.probabilities >= thresholds if several else part.probabilities.argmax(axis=1)
        found = row.as_dict()
        assert found["accuracy"] == pytest.approx(accuracy_score(part.labels, given))
        assert found["macro_f1"] == pytest.approx(f1_score(part.labels, given, average="macro"))
        recall = recall_score(part.labels, given, average=None)
        assert list(found["per_class"]["recall"].values()) == pytest.approx(recall)
        assert found["images"] == found["samples"] == 30
        assert row.found.interval is not None
        assert row.found.interval[0] < row.found.score < row.found.interval[1]
    assert "4 slices were looked at" in slices.note
    assert slices.table().splitlines()[0].split() == ["slice", "samples", "groups", "images", "accuracy", "interval"]
