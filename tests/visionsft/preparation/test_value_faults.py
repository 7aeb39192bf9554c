"""Value faults: robust deviations are scipy's, and what an image shows, or doesn't, is told once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import median_abs_deviation

from visionsft.preparation.channel_order import order_ratios
from visionsft.preparation.value_faults import describe_images, robust_deviations


def test_robust_deviations_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).normal(size=(101, 3))
    apart, far = robust_deviations(values, np.zeros(3))
    expected = apart / median_abs_deviation(values, scale="normal")
    np.testing.assert_allclose(far, expected, rtol=1e-4)


def test_equal_values_are_not_infinitely_far() -> None:
    values = np.zeros((20, 1))
    values[0] = 0.1
    _, far = robust_deviations(values, np.array([0.05]))
    assert far[0, 0] == pytest.approx(2.0)


def test_exchanged_channels_are_less_likely() -> None:
    rng = np.random.default_rng(0)
    sky, ground = np.array([90, 120, 180.0]), np.array([120, 110, 90.0])
    images = np.zeros((30, 3, 32, 32), np.float32)
    images[:, :, :16], images[:, :, 16:] = sky[:, None, None], ground[:, None, None]
    images *= rng.uniform(0.7, 1.3, (30, 1, 1, 1)) * rng.normal(1, 0.02, images.shape)
    images[4] = images[4][::-1]
    images[7, :, :3] = np.nan
    ratios = order_ratios(images.astype(np.float32))
    assert ratios[4].min() < -0.5
    assert (np.delete(ratios, 4, axis=0) > 0).all()


def test_no_images_have_no_figures() -> None:
    values, names = describe_images([])
    assert values.shape == (0, 3)
    assert names == ["brightness", "contrast", "sharpness"]
