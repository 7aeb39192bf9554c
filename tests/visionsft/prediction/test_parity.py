"""Parity: its numbers, compared with scikit-learn's and scipy's, and what they don't depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score
from torch import Tensor

from visionsft.prediction.parity import NEAR_TIE, REDUCED, compare


def draw(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(2, 5, 16, 12, generator=torch.Generator().manual_seed(seed))


def test_the_numbers_are_those_of_other_libraries() -> None:
    reference = draw(0)
    found = reference + draw(1, 0.3)
    ours, theirs = (softmax(logits.double().numpy(), axis=1) for logits in (found, reference))
    ranked = np.sort(theirs, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] >= NEAR_TIE
    parity = compare(found, reference)
    assert parity.pixels == clear.sum()
    assert parity.agreement == pytest.approx(
        accuracy_score(theirs.argmax(1)[clear], ours.argmax(1)[clear]), abs=1e-9
    )
    assert parity.probability == pytest.approx(np.abs(ours - theirs).sum(1).mean() / 2, rel=1e-5)


def test_the_same_logits_agree() -> None:
    parity = compare(draw(0), draw(0))
    assert (parity.agreement, parity.probability, parity.logits) == (1, 0, 0)


def test_a_constant_added_to_all_logits_of_a_pixel_changes_nothing() -> None:
    parity = compare(draw(0) + draw(1)[:, :1], draw(0))
    assert parity.logits < 1e-6
    assert parity.probability < 1e-6


def test_unrelated_logits_of_an_untrained_model_are_refused() -> None:
    """All probabilities are nearly 1/5, whatever the model does: only the logits' relative error tells."""
    parity = compare(draw(1, 0.01), draw(0, 0.01))
    assert parity.pixels == 0
    assert math.isnan(parity.agreement)
    assert parity.probability < REDUCED.probability
    assert parity.logits == pytest.approx(math.sqrt(2), abs=0.1)
    assert not REDUCED.admits(parity)


def test_rounding_to_bfloat16_is_admitted() -> None:
    assert REDUCED.admits(compare(draw(0, 5).bfloat16(), draw(0, 5)))


def test_one_class() -> None:
    parity = compare(draw(1)[:, :1], draw(0)[:, :1])
    assert (parity.agreement, parity.probability) == (1, 0)
