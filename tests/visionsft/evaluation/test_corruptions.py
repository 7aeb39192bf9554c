"""Corruptions: properties that all have, and what each of them is, in raw values."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import ndimage

from datamodules import Normalisation
from visionsft.evaluation.corruptions import CORRUPTIONS, Bands, Corruption

BY_NAME = {corruption.name: corruption for corruption in CORRUPTIONS}
RGB = Bands(
    ("red", "green", "blue"), Normalisation((120.0, 110.0, 100.0), (50.0, 40.0, 60.0)), np.dtype(np.uint8)
)
SIX = Bands(tuple("abcdef"), Normalisation((1000.0,) * 6, (300.0,) * 6), np.dtype(np.uint16))
DECIBEL = Bands(("VV", "VH"), Normalisation((-10.0, -16.0), (4.0, 4.0)), np.dtype(np.float32))
ALL = [
    pytest.param(corruption, severity, bands, id=f"{corruption.name} {severity} {len(bands.names)}")
    for corruption in CORRUPTIONS
    for bands in (RGB, SIX, DECIBEL)
    for severity in corruption.severities
    if not corruption.refuse(bands, severity)
]


def make(bands: Bands, size: tuple[int, int] = (40, 56)) -> tuple[np.ndarray, np.ndarray]:
    """A smooth normalised image with texture, and its validity: the left edge and a hole are not."""
    rng = np.random.default_rng(0)
    raw = ndimage.gaussian_filter(rng.normal(0, 8, (len(bands.names), *size)), (0, 4, 4))
    raw = bands.as_stored((raw * bands.std + bands.mean).astype(np.float32))
    valid = np.ones(size, bool)
    valid[:, :5] = valid[20:24, 30:40] = False
    return bands.normalisation(raw, valid), valid


def raw_of(image: np.ndarray, bands: Bands) -> np.ndarray:
    return image * bands.std + bands.mean


@pytest.mark.parametrize(("corruption", "severity", "bands"), ALL)
def test_all_corruptions(corruption: Corruption, severity: float, bands: Bands) -> None:
    image, valid = make(bands)
    before = image.copy()
    found = corruption(image, valid, bands, severity, id="a.tif")
    assert (found.shape, found.dtype) == (image.shape, np.float32)
    assert np.array_equal(image, before)  # the next one needs it
    assert (found[:, ~valid] == 0).all()
    assert np.abs(found - image)[:, valid].max() > 0.05
    assert np.array_equal(found, corruption(image, valid, bands, severity, id="a.tif"))
    if bands.dtype.kind == "u":
        raw = raw_of(found, bands)[:, valid]
        assert np.abs(raw - np.rint(raw)).max() < 1e-2
        assert raw.min() > -0.01
        assert raw.max() < np.iinfo(bands.dtype).max + 0.01


@pytest.mark.parametrize(("corruption", "severity", "bands"), [case for case in ALL if "jpeg" not in case.id])
def test_what_was_not_measured_has_no_influence(
    corruption: Corruption, severity: float, bands: Bands
) -> None:
    image, valid = make(bands)
    other = np.where(valid, image, np.float32(7))
    first, second = (corruption(each, valid, bands, severity, id="a.tif") for each in (image, other))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", [corruption.name for corruption in CORRUPTIONS])
def test_stronger_is_further_from_the_image(name: str) -> None:
    image, valid = make(RGB)
    distances = [
        np.abs(BY_NAME[name](image, valid, RGB, severity, id="a.tif") - image).mean()
        for severity in BY_NAME[name].severities
        if not BY_NAME[name].refuse(RGB, severity)
    ]
    assert distances == sorted(distances)
    assert len(set(distances)) == len(distances)


def test_haze_and_darkness_are_of_the_light() -> None:
    image, valid = make(SIX)
    raw = raw_of(image, SIX)[:, valid]
    hazy = raw_of(BY_NAME["haze"](image, valid, SIX, 0.6, id="a"), SIX)[:, valid]
    assert hazy == pytest.approx(0.6 * raw + 0.4 * 1600, abs=0.6)
    dark = raw_of(BY_NAME["darkness"](image, valid, SIX, 0.5, id="a"), SIX)[:, valid]
    assert dark == pytest.approx(0.5 * raw, abs=0.6)


def test_blur_of_a_whole_image_is_scipys() -> None:
    image, valid = make(DECIBEL)
    valid[:] = True
    found = BY_NAME["blur"](image, valid, DECIBEL, 2, id="a")
    reference = ndimage.gaussian_filter(image, (0, 2, 2), mode="mirror", truncate=4)
    assert found == pytest.approx(reference, abs=0.02)


def test_coarser_pixels_keep_the_mean_and_lose_the_texture() -> None:
    checks = np.indices((32, 32)).sum(axis=0) % 2 * np.ones((2, 1, 1), np.float32)
    found = BY_NAME["resolution"](checks.astype(np.float32), np.ones((32, 32), bool), DECIBEL, 2, id="a")
    assert found == pytest.approx(0.5, abs=1e-5)


def test_noise_and_shift_have_the_stated_strength_and_follow_from_the_id() -> None:
    image, valid = np.zeros((6, 100, 100), np.float32), np.ones((100, 100), bool)
    noise = BY_NAME["noise"](image, valid, SIX, 0.5, id="a")
    assert noise.std(axis=(1, 2)) == pytest.approx(0.5, abs=0.02)
    assert not np.array_equal(noise, BY_NAME["noise"](image, valid, SIX, 0.5, id="b"))
    shift = BY_NAME["shift"](image, valid, SIX, 0.5, id="a")
    assert np.abs(shift) == pytest.approx(0.5, abs=1e-3)
    assert {*np.sign(shift[:, 0, 0])} == {-1, 1}


def test_dropout_takes_whole_bands() -> None:
    image, valid = make(SIX)
    found = BY_NAME["dropout"](image, valid, SIX, 2, id="a")
    gone = (found == 0).all(axis=(1, 2))
    assert gone.sum() == 2
    assert np.array_equal(found[~gone], image[~gone])


def test_jpeg_is_that_of_the_colours_in_their_order() -> None:
    bands = Bands(("blue", "green", "red"), RGB.normalisation, RGB.dtype)
    image, valid = make(bands)
    valid[:] = True
    raw = np.rint(raw_of(image, bands)).astype(np.uint8)
    found = raw_of(BY_NAME["jpeg"](image, valid, bands, 20, id="a"), bands)
    _, coded = cv2.imencode(
        ".jpg", np.ascontiguousarray(raw.transpose(1, 2, 0)), [cv2.IMWRITE_JPEG_QUALITY, 20]
    )
    assert found == pytest.approx(cv2.imdecode(coded, cv2.IMREAD_COLOR).transpose(2, 0, 1), abs=1e-2)


@pytest.mark.parametrize(
    ("name", "severity", "bands", "reason"),
    [
        ("jpeg", 50, SIX, "JPEG is for three bands of 8 bits; these are 6 of uint16"),
        ("haze", 0.8, DECIBEL, "band VV isn't an amount of light"),
        ("darkness", 0.5, DECIBEL, "band VV isn't an amount of light"),
        ("dropout", 4, RGB, "there are no more than 3"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, severity: float, bands: Bands, reason: str) -> None:
    assert reason in str(BY_NAME[name].refuse(bands, severity))
