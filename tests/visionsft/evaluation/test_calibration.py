"""Calibration against scikit-learn, torchmetrics and scipy, and on models that are calibrated by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import bootstrap
from sklearn.calibration import calibration_curve
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from visionsft.evaluation import calibration
from visionsft.evaluation.calibration import (
    BINS,
    TEMPERATURES,
    PixelSample,
    best_reliability,
    calibration_error,
    describe,
    equal_mass_error,
    error_interval,
    fit_temperature,
    measure,
)
from visionsft.evaluation.metrics.classification import label_reliability


def draw(
    *, classes: int = 4, side: int = 120, sharpness: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits (K, H, W) and labels drawn from their probabilities, so that the logits are calibrated; then the
    logits times `sharpness`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(classes, side, side, generator=generator)
    chances = logits.softmax(0).movedim(0, -1).reshape(-1, classes)
    truth = torch.multinomial(chances, 1, generator=generator).reshape(side, side)
    return sharpness * logits, truth


def reliability(logits: Tensor, truth: Tensor, *, temperature: float = 1.0) -> NDArray[np.float64]:
    """Of one sample: (K, H, W) and (H, W) -> (K + 1, BINS, 3)."""
    return calibration.reliability(logits[:, None], truth[None], temperature=temperature)[0]


def flat(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """As (P, K) and (P,)."""
    return logits.movedim(0, -1).reshape(-1, len(logits)), truth.reshape(-1)


@pytest.mark.parametrize("row", range(5))
def test_the_curves_are_scikit_learns(row: int) -> None:
    logits, truth = draw(sharpness=2.0)
    truth[:7] = 255
    found = describe(reliability(logits, truth), "abcd")
    pixels, labels = flat(logits[:, 7:], truth[7:])
    probabilities = pixels.softmax(1).numpy()
    if row == 0:
        curve, scores, right = found["bins"], probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    else:
        curve, k = found["bins_per_class"]["abcd"[row - 1]], row - 1
        scores, right = probabilities[:, k], labels.numpy() == k
    accuracy, confidence = calibration_curve(right, scores, n_bins=BINS)
    filled = [each for each in curve if each["pixels"]]
    np.testing.assert_allclose([each["accuracy"] for each in filled], accuracy)
    np.testing.assert_allclose([each["confidence"] for each in filled], confidence, rtol=1e-6)
    assert sum(each["pixels"] for each in curve) == found["pixels"] == len(labels)
    assert all(each["accuracy"] is None for each in curve if not each["pixels"])


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_the_error_is_torchmetrics(sharpness: float) -> None:
    logits, truth = draw(sharpness=sharpness)
    pixels, labels = flat(logits, truth)
    expected = multiclass_calibration_error(pixels, labels, 4, n_bins=BINS, norm="l1")
    assert calibration_error(reliability(logits, truth))[0] == pytest.approx(float(expected), rel=1e-4)
    assert measure(pixels, labels)["ece"] == pytest.approx(float(expected), rel=1e-4)  # it adds up in float32


def test_histograms_of_parts_add_up() -> None:
    logits, truth = draw()
    parts = [reliability(logits[:, rows], truth[rows]) for rows in (slice(0, 31), slice(31, None))]
    np.testing.assert_allclose(sum(parts), reliability(logits, truth))


def test_a_temperature_in_the_histogram_divides_the_logits() -> None:
    logits, truth = draw(sharpness=2.0)
    expected = reliability(logits / 2.0, truth)
    np.testing.assert_allclose(reliability(logits, truth, temperature=2.0), expected)
    np.testing.assert_allclose(best_reliability(logits, truth, temperature=2.0), expected[0])


def test_half_precision_logits_are_counted_as_what_they_say() -> None:
    logits, truth = draw()
    half = logits.to(torch.bfloat16)
    np.testing.assert_array_equal(reliability(half, truth), reliability(half.float(), truth))


def test_nothing_labelled_has_no_error() -> None:
    logits, truth = draw(side=3)
    report = describe(reliability(logits, torch.full_like(truth, 255)), "abcd")
    assert report["ece"] is None
    assert report["pixels"] == 0


def test_bins_of_equal_mass_are_scikit_learns_quantiles() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(BINS * 200) ** 2
    right = rng.random(len(scores)) < scores**1.5
    accuracy, confidence = calibration_curve(right, scores, n_bins=BINS, strategy="quantile")
    expected = np.abs(accuracy - confidence).mean()  # of equal weight, since of equal mass
    assert equal_mass_error(scores, right) == pytest.approx(expected, abs=1e-3)


# ------------------------------------------------------------------------------------------- temperature


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5])
def test_the_temperature_undoes_a_wrong_sharpness(sharpness: float) -> None:
    pixels, labels = flat(*draw(side=200, sharpness=sharpness))
    assert fit_temperature(pixels, labels) == pytest.approx(sharpness, rel=0.03)


def test_the_temperature_is_scipys_minimum_and_lowers_every_error() -> None:
    pixels, labels = flat(*draw(sharpness=2.5))

    def loss(value: float) -> float:
        return float(torch.nn.functional.cross_entropy(pixels.double() / value, labels))

    found = fit_temperature(pixels, labels)
    assert found == pytest.approx(minimize_scalar(loss, bounds=TEMPERATURES, method="bounded").x, rel=1e-4)
    before, after = measure(pixels, labels), measure(pixels, labels, temperature=found)
    assert before["nll"] == pytest.approx(loss(1.0))
    assert after["nll"] == pytest.approx(loss(found))
    assert all(after[key] < before[key] for key in before)


def test_a_model_that_is_never_wrong_ends_at_the_limit() -> None:
    labels = torch.arange(4).repeat(10)
    pixels = torch.nn.functional.one_hot(labels, 4).float()
    assert fit_temperature(pixels, labels) == pytest.approx(TEMPERATURES[0])
    assert fit_temperature(-pixels, labels) == pytest.approx(TEMPERATURES[1])


# ------------------------------------------------------------------------------------------------ sample


def fill(size: int, *, seed: int = 0) -> tuple[list[int], PixelSample]:
    """A sample from 10 batches of 100 numbered pixels, half of them in one more image; every third unlabelled."""
    sample = PixelSample(size, seed=seed)
    for start in range(0, 1000, 100):
        numbers = torch.arange(start, start + 100).reshape(1, 10, 10)
        mask = torch.where(numbers % 3 == 0, 255, numbers % 2)
        sample.add(torch.stack([numbers, -numbers], 1).float(), mask)
    logits, truth = sample.pixels()
    kept = logits[:, 0].long()
    assert torch.equal(truth, kept % 2)
    assert torch.equal(logits[:, 1].long(), -kept)
    return kept.tolist(), sample


def test_the_sample_is_bounded_seeded_and_of_labelled_pixels() -> None:
    kept, sample = fill(50)
    assert len(set(kept)) == len(kept) == 50
    assert sample.seen == sum(number % 3 > 0 for number in range(1000))
    assert all(number % 3 for number in kept)
    assert fill(50)[0] == kept
    assert fill(50, seed=1)[0] != kept
    assert sorted(fill(10_000)[0]) == [number for number in range(1000) if number % 3]


def test_early_and_late_pixels_are_as_likely() -> None:
    kept = np.concatenate([fill(30, seed=seed)[0] for seed in range(200)])
    by_batch = np.bincount(kept // 100, minlength=10)
    # 600 expected in each; its standard deviation is about 23
    assert np.abs(by_batch - 600).max() < 100


# ------------------------------------------------------------------------------------------------ interval


def grouped(rng: np.random.Generator, groups: int) -> np.ndarray:
    """(groups, BINS, 3): each group's answers have a confidence of their own, and are right less often, by groups."""
    confidence = rng.uniform(0.5, 1.0, (groups, 40))
    right = rng.random((groups, 40)) < (confidence - 0.15 + 0.1 * rng.normal(size=(groups, 1))).clip(0, 1)
    codes = np.ceil(confidence * BINS).astype(int) - 1
    found = np.zeros((groups, BINS, 3))
    for row, bins, values, hits in zip(found, codes, confidence, right, strict=True):
        np.add.at(row, bins, np.stack([np.ones(40), values, hits], axis=1))
    return found


def test_the_interval_covers_by_groups_and_not_by_answers() -> None:
    rng = np.random.default_rng(0)
    truth = calibration_error(grouped(rng, 50_000).sum(axis=0))
    hits = np.zeros(2)
    simulations = 300  # a share near 95 % has a standard error of 1.3 %
    for _ in range(simulations):
        histograms = grouped(rng, 40)
        ends = error_interval(histograms, [str(i) for i in range(40)], unit="group").ends
        share = float(calibration_error(histograms.sum(axis=0)))
        reach = 1.96 * np.sqrt(0.24 / (40 * 40))  # of as many answers that have nothing in common
        assert ends is not None
        hits += [ends[0] <= truth <= ends[1], abs(share - truth) <= reach]
    assert 0.93 <= hits[0] / simulations <= 0.99
    assert hits[1] / simulations < 0.9


def test_its_spread_is_scipys_bootstrap() -> None:
    histograms = grouped(np.random.default_rng(1), 60)
    found = error_interval(histograms, [f"{i:02}" for i in range(60)], unit="group")
    flat = histograms.reshape(60, -1)

    def statistic(*columns: np.ndarray, axis: int) -> np.ndarray:
        sums = np.stack([column.sum(axis=axis) for column in columns], axis=-1)
        return calibration_error(sums.reshape(*sums.shape[:-1], BINS, 3))

    drawn = bootstrap(tuple(flat.T), statistic, paired=True, n_resamples=2000, rng=np.random.default_rng(2))
    assert found.ends is not None
    estimate = float(calibration_error(histograms.sum(axis=0)))
    reach = 2.0 * drawn.standard_error  # Student's t of 59 degrees of freedom: 2.0
    corrected = 2 * estimate - drawn.bootstrap_distribution.mean()
    assert found.ends[0] == pytest.approx(corrected - reach, abs=0.1 * reach)
    assert found.ends[1] == pytest.approx(estimate + reach, abs=0.15 * reach)  # on the logit scale, in fact


def test_the_upper_end_is_safe_where_all_is_well_calibrated() -> None:
    """By chance alone the number is far above the truth, which is 0."""
    rng, above = np.random.default_rng(3), 0
    for _ in range(100):
        confidence = rng.uniform(0.5, 1.0, 30 * 20)
        right = rng.random(600) < confidence
        owners = np.repeat(np.arange(30), 20)
        histograms = label_reliability(confidence, right, owners=owners, count=30)
        ends = error_interval(histograms, [str(i) for i in range(30)], unit="group").ends
        assert ends is not None
        above += ends[0] > 0.01
    assert above < 20  # the number itself is, in nearly all


def test_few_groups_have_no_interval() -> None:
    found = error_interval(grouped(np.random.default_rng(1), 12), ["a", "b", "c"] * 4, unit="group")
    assert found.ends is None
    assert found.as_dict() == {"interval": None, "interval_note": "only 3 groups"}
