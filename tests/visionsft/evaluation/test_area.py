"""Area estimates: the paper's worked example, and samples drawn from a map whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from datamodules import DataError
from datamodules.raster import Grid
from visionsft.evaluation.area import compare_areas, estimate_areas, pixel_area

# Olofsson et al. 2014, table 8: deforestation, forest gain, stable forest, stable non-forest; rows = map.
SAMPLE = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
HECTARES = PIXELS * 0.09  # of Landsat's 30 m


def test_the_worked_example_of_olofsson_2014() -> None:
    found = estimate_areas(SAMPLE.T, HECTARES)
    # section 5.2.2, in hectares
    np.testing.assert_allclose(found.areas.values, [21_158, 11_686, 285_770, 581_386], atol=0.5)
    np.testing.assert_allclose(1.96 * found.areas.errors, [6_158, 3_756, 15_510, 16_282], atol=0.5)
    # section 5.2.1
    np.testing.assert_allclose(found.user.values, [0.88, 0.73, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(1.96 * found.user.errors, [0.07, 0.10, 0.04, 0.02], atol=0.005)
    np.testing.assert_allclose(found.producer.values, [0.75, 0.85, 0.93, 0.96], atol=0.005)
    # The paper prints 0.23 and 0.01 for the second and fourth; its equation 7 gives 0.254 and 0.018 (the
    # second by hand: 0.847 * 6450000 * sqrt(1 / 325 * 324 / 325 / 324) / 129846 = 0.1295, times 1.96).
    np.testing.assert_allclose(1.96 * found.producer.errors, [0.21, 0.254, 0.03, 0.018], atol=0.005)
    assert found.overall.values == pytest.approx(0.947, abs=0.0005)
    assert 1.96 * found.overall.errors == pytest.approx(0.018, abs=0.0005)


def test_the_unit_is_that_of_the_mapped_areas() -> None:
    found = estimate_areas(SAMPLE.T, PIXELS)
    assert found.areas.values[0] == pytest.approx(235_086, abs=0.5)
    assert 1.96 * found.areas.errors[0] == pytest.approx(68_418, abs=0.5)
    assert found.proportions.values.sum() == pytest.approx(1)
    assert found.areas.values.sum() == pytest.approx(PIXELS.sum())


def test_intervals_cover_the_truth_of_a_known_map() -> None:
    rng = np.random.default_rng(0)
    mapped = np.array([5_000.0, 20_000.0, 75_000.0])
    shares = np.array([[0.8, 0.15, 0.05], [0.1, 0.85, 0.05], [0.02, 0.08, 0.9]])  # truth in each mapped class
    area = mapped @ shares
    known = {
        "areas": area,
        "user": shares.diagonal(),
        "producer": mapped * shares.diagonal() / area,
        "overall": mapped @ shares.diagonal() / mapped.sum(),
    }
    covered = {name: np.zeros(np.shape(value)) for name, value in known.items()}
    draws = np.stack(
        [rng.multinomial(n, row, size=2000) for n, row in zip((150, 150, 300), shares, strict=True)], 1
    )
    for sample in draws:
        found = estimate_areas(sample.T, mapped)
        for name, truth in known.items():
            low, high = getattr(found, name).interval
            covered[name] += (low <= truth) & (truth <= high)
    for name, count in covered.items():
        assert np.all(np.abs(count / len(draws) - 0.95) < 0.025), (name, count / len(draws))


def test_a_class_that_the_map_lacks_still_gets_its_area() -> None:
    sample = np.array([[40, 10, 0], [5, 90, 5], [0, 0, 0]])  # rows = map: the third class is never mapped
    found = estimate_areas(sample.T, [300.0, 700.0, 0.0])
    assert found.areas.values[2] == pytest.approx(700 * 0.05)
    assert found.producer.values[2] == 0
    assert np.isnan(found.user.values[2])


@pytest.mark.parametrize(
    ("sample", "areas", "message"),
    [
        (
            [[5, 0], [0, 1]],
            [1, 1],
            "mapped class 1 has 1 sampled places; its standard error needs at least 2",
        ),
        ([[5, 0], [0, 5]], [1, 1, 1], r"a sample matrix of shape \(2, 2\) for mapped areas of shape \(3,\)"),
        ([[5, 0], [0, -5]], [1, 1], "negative"),
        ([[5, 0], [0, 5]], [0, 0], "some area must be mapped"),
        ([[5, 0], [0, 5]], [1, 0], "class 1 has sampled places where it is mapped, but a mapped area of 0"),
    ],
)
def test_samples_that_do_not_fit_are_refused(sample: list, areas: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        estimate_areas(sample, areas)


# -------------------------------------------------------------------------------------------------- ground


def grid(step: float, epsg: int | None) -> Grid:
    return Grid(10, 10, Affine(step, 0, 0, 0, -step, 0), None if epsg is None else CRS.from_epsg(epsg))


def test_pixel_areas() -> None:
    assert pixel_area(grid(10.0, 32633)) == pytest.approx(100.0)
    assert pixel_area(grid(10.0, 2263)) == pytest.approx((10 * 0.3048006096) ** 2)  # in US survey feet
    assert pixel_area(grid(0.001, 4326)) is None
    assert pixel_area(grid(1.0, None)) is None


def test_an_evaluation_compares_areas_scene_by_scene() -> None:
    confusions = np.array([[[8, 2], [0, 10]], [[0, 0], [5, 5]]])  # rows = truth
    report = compare_areas(confusions, [grid(100.0, 32633), grid(200.0, 32633)], ["water", "land"])
    assert report["unit"] == "hectares"  # pixels of 1 and of 4 hectares
    assert report["mapped"] == {"water": 8 + 20, "land": 12 + 20}
    assert report["labelled"] == {"water": 10, "land": 10 + 40}
    assert report["bias"]["water"] == pytest.approx(1.8)
    assert sum(report["mapped_share"].values()) == pytest.approx(1)
    assert "not a probability sample" in report["definition"]["note"]


def test_areas_are_in_pixels_where_one_scene_has_no_metric_grid() -> None:
    confusions = np.array([[[8, 2], [0, 10]], [[0, 0], [0, 0]]])
    report = compare_areas(confusions, [grid(100.0, 32633), grid(0.001, 4326)], ["water", "land"])
    assert report["unit"] == "pixels"
    assert report["mapped"] == {"water": 8, "land": 12}
    json.dumps(report, allow_nan=False)
