"""Corruptions: what happens to images between the training set and the field, in stated strengths.

They act on raw values, (C, H, W) float32 in the units of the files: haze and darkness are about the light that was
measured, and a bit more noise on a normalised image of another data set would be another noise. Afterwards values
are rounded and cut off as the files' number type would. Invalid pixels stay invalid and never leak into valid
ones. What is random follows from the sample's id and the corruption alone, so that a stronger one is more of the
same, and two models see the same images.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules import Normalisation
from visionsft.evaluation.pictures import display_bands

Raw = NDArray[np.float32]
Valid = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Bands:
    """What is known of the bands."""

    names: tuple[str, ...]
    normalisation: Normalisation
    dtype: np.dtype[Any]
    """Of the files."""

    @property
    def mean(self) -> Raw:
        """(C, 1, 1), raw units."""
        return np.array(self.normalisation.mean, np.float32)[:, None, None]

    @property
    def std(self) -> Raw:
        """(C, 1, 1), raw units."""
        return np.array(self.normalisation.std, np.float32)[:, None, None]

    def as_stored(self, raw: Raw) -> Raw:
        """Rounded and cut off as the files' number type would."""
        if not np.issubdtype(self.dtype, np.integer):
            return raw
        limits = np.iinfo(self.dtype)
        return np.rint(raw).clip(limits.min, limits.max)


@dataclass(frozen=True)
class Corruption:
    """A change of images in several strengths, weakest first."""

    name: str
    description: str
    strength: str
    """What the severities mean, with '{}' for the number."""
    severities: tuple[float, ...]
    change: Callable[[Raw, Valid, Bands, float, np.random.Generator], Raw]
    refuse: Callable[[Bands, float], str | None] = lambda bands, severity: None
    """Why it can't be applied to such bands so strongly; None if it can."""

    def describe(self, severity: float) -> str:
        """The severity with its unit."""
        return self.strength.format(f"{severity:g}")

    def __call__(self, image: Raw, valid: Valid, bands: Bands, severity: float, *, id: str) -> Raw:
        """image: (C, H, W) float32, normalised; valid: (H, W) -> the corrupted image, normalised, 0 where invalid."""
        rng = np.random.default_rng(zlib.crc32(f"{self.name} {id}".encode()))
        raw = self.change(image * bands.std + bands.mean, valid, bands, severity, rng)
        return bands.normalisation(bands.as_stored(raw), valid)


# --------------------------------------------------------------------------------------- optics


def _blur(raw: Raw, valid: Valid, bands: Bands, severity: float, rng: np.random.Generator) -> Raw:
    return _over_valid(raw, valid, lambda band: cv2.GaussianBlur(band, (0, 0), severity))


def _coarsen(raw: Raw, valid: Valid, bands: Bands, severity: float, rng: np.random.Generator) -> Raw:
    height, width = valid.shape
    size = (max(1, round(width / severity)), max(1, round(height / severity)))

    def resize(band: Raw) -> Any:
        coarse = cv2.resize(band, size, interpolation=cv2.INTER_AREA)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)

    return _over_valid(raw, valid, resize)


def _over_valid(raw: Raw, valid: Valid, average: Callable[[Raw], Any]) -> Raw:
    """A weighted mean of neighbours, band by band, in which invalid pixels have no weight."""
    weight = average(valid.astype(np.float32))
    sums = np.stack([average(np.where(valid, band, 0)) for band in raw])
    return np.divide(sums, weight, out=raw.copy(), where=weight > 1e-3)


def _haze(raw: Raw, valid: Valid, bands: Bands, severity: float, rng: np.random.Generator) -> Raw:
    airlight = bands.mean + 2 * bands.std
    return raw * severity + airlight * (1 - severity)


def _darken(raw: Raw, valid: Valid, bands: Bands, severity: float, rng: np.random.Generator) -> Raw:
    return raw * severity


def _need_light(bands: Bands, severity: float) -> str | None:
    negative = [name for name, mean in zip(bands.names, bands.normalisation.mean, strict=True) if mean <= 0]
    return f"band {negative[0]} isn't an amount of light: its mean isn't above 0" if negative else None


# --------------------------------------------------------------------------------------- sensor


def _add_noise(raw: Raw, valid: Valid, bands: Bands, severity: float, rng: np.random.Generator) -> Raw:
    return raw + severity * bands.std * rng.standard_normal(raw.shape, np.float32)


def _shift(raw: Raw, valid: Valid, bands: Bands, severity: float, rng: np.random.Generator) -> Raw:
    return raw + severity * bands.std * rng.choice(np.array([-1, 1], np.float32), (len(raw), 1, 1))


def _drop_bands(raw: Raw, valid: Valid, bands: Bands, severity: float, rng: np.random.Generator) -> Raw:
    dropped = rng.permutation(len(raw))[: int(severity)]
    raw = raw.copy()
    raw[dropped] = bands.mean[dropped]
    return raw


def _need_more_bands(bands: Bands, severity: float) -> str | None:
    return None if severity < len(bands.names) else f"there are no more than {len(bands.names)}"


def _compress(raw: Raw, valid: Valid, bands: Bands, severity: float, rng: np.random.Generator) -> Raw:
    order = display_bands(bands.names)[::-1]  # OpenCV wants blue first
    pixels = np.rint(raw[order].transpose(1, 2, 0)).clip(0, 255).astype(np.uint8)
    _, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(severity)])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    compressed = np.empty_like(raw)
    compressed[order] = decoded.transpose(2, 0, 1)
    return compressed


def _need_photographs(bands: Bands, severity: float) -> str | None:
    if bands.dtype == np.uint8 and len(bands.names) == 3:
        return None
    return f"JPEG is for three bands of 8 bits; these are {len(bands.names)} of {bands.dtype}"


CORRUPTIONS = (
    Corruption("blur", "Gaussian blur", "sigma {} px", (1, 2, 4), _blur),
    Corruption("resolution", "averaged to coarser pixels, and back", "{} x the pixel", (2, 4, 8), _coarsen),
    Corruption(
        "haze", "t x value + (1 - t) x airlight, which is each band's mean + 2 std", "t = {}",
        (0.8, 0.6, 0.4), _haze, _need_light,
    ),
    Corruption("darkness", "less light: value x factor", "x {}", (0.7, 0.5, 0.25), _darken, _need_light),
    Corruption("noise", "white Gaussian noise in each band", "{} std", (0.1, 0.25, 0.5), _add_noise),
    Corruption(
        "shift", "each band up or down, by chance: another calibration or season", "{} std",
        (0.25, 0.5, 1.0), _shift,
    ),
    Corruption(
        "dropout", "bands drawn by chance, replaced by their mean", "{} band(s)",
        (1, 2, 4), _drop_bands, _need_more_bands,
    ),
    Corruption("jpeg", "compression", "quality {}", (50, 20, 10), _compress, _need_photographs),
)  # fmt: skip
"""mean and std are those of the normalisation, band by band."""
