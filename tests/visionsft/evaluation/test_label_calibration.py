"""Calibration of classifiers against scikit-learn and torch, and on answers that are calibrated by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from visionsft.evaluation.calibration import BINS, fit_temperature
from visionsft.evaluation.label_calibration import (
    LabelCalibration,
    fitting_pairs,
    image_histograms,
    measure_labels,
    temper,
)
from visionsft.evaluation.metrics import summarise_labels
from visionsft.evaluation.metrics.classification import label_reliability
from visionsft.evaluation.temperature import Temperature


def draw(count: int, *, several: bool, sharpness: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 4), and truth (N, 4) drawn from them before their logits are made so many times as sharp."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 1.5, (count, 4)))
    chances = (logits.sigmoid() if several else logits.softmax(1)).numpy()
    if several:
        truth = rng.random(chances.shape) < chances
    else:
        found = (rng.random((count, 1)) > chances.cumsum(axis=1)).sum(axis=1)
        truth = found.clip(max=3)[:, None] == np.arange(4)
    sharp = sharpness * logits
    return (sharp.sigmoid() if several else sharp.softmax(1)).numpy().astype(np.float32), truth


@pytest.mark.parametrize("several", [False, True])
def test_a_temperature_is_what_torch_makes_of_divided_logits(several: bool) -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double() * 3
    turn = torch.sigmoid if several else lambda each: each.softmax(1)
    found = temper(turn(logits).numpy(), 2.5, several=several)
    np.testing.assert_allclose(found, turn(logits / 2.5).numpy(), rtol=1e-5)


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6), st.floats(0.1, 10), st.booleans())
def test_it_changes_no_order_and_no_half_and_can_be_undone(row: list[float], value: float, several: bool) -> None:
    probabilities = np.array([row])
    if not several:
        probabilities = (probabilities + 0.01) / (probabilities + 0.01).sum()
    found = temper(probabilities, value, several=several)
    order = np.argsort(probabilities[0], kind="stable")
    assert (np.diff(found[0][order]) >= -1e-6).all()
    assert np.isfinite(found).all()
    assert temper(np.array([[0.5]]), value, several=True)[0, 0] == 0.5
    inner = probabilities.clip(0.1, 0.9)
    again = temper(temper(inner, 2.0, several=True), 0.5, several=True)
    np.testing.assert_allclose(again, inner, rtol=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_the_fitted_one_makes_answers_calibrated(several: bool) -> None:
    probabilities, truth = draw(20_000, several=several, sharpness=2.0)
    value = fit_temperature(*fitting_pairs(probabilities, truth, several=several))
    assert value == pytest.approx(2.0, rel=0.05)
    before = measure_labels(probabilities, truth, several=several)
    after = measure_labels(probabilities, truth, several=several, temperature=value)
    assert all(after[key] < before[key] for key in before)
    assert after["ece"] < 0.01 < before["ece"]
    labels = truth.ravel() if several else truth.argmax(1)
    reference = log_loss(labels, probabilities.ravel().astype(float) if several else probabilities.astype(float))
    assert before["nll"] == pytest.approx(reference, rel=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_the_curves_are_scikit_learns(several: bool) -> None:
    probabilities, truth = draw(3000, several=several, sharpness=2.0)
    groups = [str(index % 40) for index in range(3000)]
    found = LabelCalibration.of(probabilities, truth, groups, several=several).as_dict("abcd")
    best = probabilities.argmax(1)
    said = probabilities.ravel() if several else probabilities.max(1)
    right = truth.ravel() if several else truth[np.arange(3000), best]
    pairs = [(found["bins"], right, said)]
    pairs += [(found["bins_per_class"]["abcd"[k]], truth[:, k], probabilities[:, k]) for k in range(4)]
    for curve, wanted, scores in pairs:
        accuracy, confidence = calibration_curve(wanted, scores, n_bins=BINS)
        filled = [each for each in curve if each["count"]]
        np.testing.assert_allclose([each["accuracy"] for each in filled], accuracy)
        np.testing.assert_allclose([each["confidence"] for each in filled], confidence, rtol=1e-5)
    thresholds = np.full(4, 0.5) if several else None
    labels = truth.astype(np.float32) if several else truth.argmax(1)
    scores = summarise_labels(probabilities, labels, "abcd", thresholds=thresholds)
    assert found["ece"] == pytest.approx(scores.ece, rel=1e-6)
    assert found["interval"][0] < found["ece"] < found["interval"][1]
    assert found["temperature"] is None


def test_the_error_without_the_temperature_is_known_from_the_answers_with_it() -> None:
    plain, truth = draw(2000, several=False, sharpness=2.0)
    temperature = Temperature(2.0, {"split": "val"}, {})
    groups = [str(index) for index in range(2000)]
    made = LabelCalibration.of(
        temper(plain, 2.0, several=False), truth, groups, several=False, temperature=temperature
    )
    without = LabelCalibration.of(plain, truth, groups, several=False)
    assert made.ece_before == pytest.approx(without.ece, abs=1e-3)
    assert made.ece < 0.5 * without.ece
    assert "with temperature 2.000" in made.lines()[0]
    assert "without a temperature; `visionsft calibrate` fits one" in without.lines()[0]


def test_too_few_groups_say_so() -> None:
    probabilities, truth = draw(60, several=False)
    made = LabelCalibration.of(probabilities, truth, ["a", "b"] * 30, several=False)
    assert made.as_dict("abcd")["interval"] is None
    assert "no interval: only 2 groups" in made.lines()[0]


def test_histograms_of_images_add_up() -> None:
    probabilities, truth = draw(30, several=True)
    singles = image_histograms(probabilities, truth)
    np.testing.assert_allclose(singles.sum(axis=0), label_reliability(probabilities.ravel(), truth.ravel()))
    np.testing.assert_allclose(singles[7], label_reliability(probabilities[7], truth[7]))
