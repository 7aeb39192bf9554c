"""Uncertainty beside scipy's entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from visionsft.preparation.uncertainty import doubt_labels, doubt_objects, doubt_pixels


def test_pixels() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    valid = np.ones((2, 5, 6), bool)
    valid[0, :2] = False
    found = doubt_pixels(torch.from_numpy(logits), torch.from_numpy(valid))
    for doubt, each, seen in zip(found, logits, valid, strict=True):
        expected = entropy(softmax(each, axis=0), base=4, axis=0)
        assert doubt.amount == pytest.approx(expected[seen].mean(), rel=1e-5)
        assert doubt.by_class[1] == pytest.approx(expected[seen & (each.argmax(0) == 1)].sum() / seen.sum(), rel=1e-5)


def test_labels() -> None:
    shares = softmax(np.random.default_rng(0).normal(size=(3, 5)), axis=1)
    assert [d.amount for d in doubt_labels(shares, several=False)] == pytest.approx(entropy(shares, base=5, axis=1))
    both = np.stack([shares, 1 - shares])
    assert [d.amount for d in doubt_labels(shares, several=True)] == pytest.approx(entropy(both, base=2).mean(axis=1))
    assert doubt_labels(np.array([[1.0, 0.0]]), several=False)[0].worst(3) == []


def test_objects_without_the_faint_ones() -> None:
    found = doubt_objects(np.array([0.5, 0.9, 0.05]), np.array([1, 0, 0]), classes=3)
    assert found.amount == pytest.approx(1 + entropy([0.9, 0.1], base=2))
    assert [k for k, _ in found.worst(3)] == [1, 0]
