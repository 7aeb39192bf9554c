"""Augmentation: random views of a training sample that leave its labels true.

Geometry works on the pixels as they were read (any number of bands, of any type), photometry on normalised
values. Seen straight from above there is no up or down ("nadir"); a camera on a car knows both, but not left
from right ("driving"). albumentations' own photometric transforms clip floats at 1 or scale 16-bit values as
if they filled the range, so only its geometry is used here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from math import ceil
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.batch import IGNORE
from datamodules.errors import DataError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer release otherwise
from albumentations.augmentations.geometric.functional import d4
from albumentations.augmentations.geometric.functional import resize as resize_bands

Pixels = NDArray[Any]
Mask = NDArray[np.uint8]
Valid = NDArray[np.bool_]

PIPELINES: dict[str, tuple[str, ...]] = {
    "nadir": ("e", "r90", "r180", "r270", "v", "hvt", "h", "t"),
    "driving": ("e", "h"),
    "none": ("e",),
}
"""The symmetries of a square, in albumentations' names, from which one is drawn (e: none, h: left-right)."""

_TURNING = frozenset({"r90", "r270", "t", "hvt"})
"""Those that swap height and width."""

_RESIZABLE = frozenset(map(np.dtype, (np.uint8, np.uint16, np.int16, np.float32)))
"""Number types that OpenCV interpolates itself, without loss."""


@dataclass(frozen=True)
class Placement:
    """A view of a sample: a window of it, zoomed to a crop, which is then turned or flipped."""

    inside: tuple[slice, slice]
    """Rows and columns of the sample that the view shows."""
    place: tuple[slice, slice]
    """Where they lie in the crop; the rest of it is beyond the sample's edges."""
    crop: tuple[int, int]
    """(height, width), before it is turned."""
    element: str
    """The symmetry, in albumentations' names."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what comes out."""
        return (self.crop[1], self.crop[0]) if self.element in _TURNING else self.crop

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 in what comes out: the sample lies inside, the rest is beyond its edges."""
        rows, cols = self.place
        ends = np.array([[cols.start, rows.start], [cols.stop, rows.stop]], np.float64)
        turned = _turn(ends, self.crop, self.element)
        (x1, y1), (x2, y2) = turned.min(axis=0).tolist(), turned.max(axis=0).tolist()
        return x1, y1, x2, y2

    def pixels(self, image: Pixels, mask: Mask, valid: Valid) -> tuple[Pixels, Mask, Valid]:
        """image: (H, W, C), any number type, which it keeps; mask: (H, W) class indices; valid: (H, W).

        Beyond the sample's edges the result is invalid, its mask 255. Only valid pixels are blended.
        """
        inside, place, crop = self.inside, self.place, self.crop
        height, width = (part.stop - part.start for part in place)
        image, mask, valid = resize_sample(image[inside], mask[inside], valid[inside], size=(height, width))
        image, mask, valid = (
            _pad(array, place, crop, fill) for array, fill in ((image, 0), (mask, IGNORE), (valid, False))
        )
        image, mask, valid = (np.ascontiguousarray(d4(array, self.element)) for array in (image, mask, valid))
        return image, mask, valid

    def points(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """(N, 2) x, y of the sample, (0, 0) the upper left corner of its first pixel, to x, y of the view."""
        moved = np.empty((len(points), 2))
        for column, axis in ((0, 1), (1, 0)):
            source, target = self.inside[axis], self.place[axis]
            zoom = (target.stop - target.start) / (source.stop - source.start)
            moved[:, column] = target.start + (points[:, column] - source.start) * zoom
        return _turn(moved, self.crop, self.element)


@dataclass(frozen=True)
class Augment:
    """Random geometry and photometry of a training sample; all randomness comes from the generator given."""

    pipeline: str
    """'nadir', 'driving' or 'none' (neither turned nor flipped)."""
    crop: tuple[int, int] | None = None
    """(height, width) of what comes out; None: as large as what goes in. Data modules set their own."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the zoom, drawn evenly on a logarithmic scale; 2 shows things twice as large."""
    photometric: float = 0.0
    """Strength, 0..1, of the change of brightness, contrast and each band's gain and offset."""
    blur: float = 0.0
    """Probability of a slight blur."""
    erase: float = 0.0
    """Probability that a rectangle becomes invalid, its labels 'ignore'."""

    def __post_init__(self) -> None:
        if self.pipeline not in PIPELINES:
            nearest = get_close_matches(self.pipeline, PIPELINES, n=1)
            hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
            names = ", ".join(PIPELINES)
            raise DataError(f"no augmentation pipeline '{self.pipeline}': there are {names}{hint}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise DataError(f"augment scale {self.scale}: give (lowest, highest), both above 0")
        for name in ("photometric", "blur", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"augment {name} {getattr(self, name)}: allowed is 0 to 1")

    @property
    def reach(self) -> tuple[int, int]:
        """(height, width) of source pixels that the farthest zoom-out sees, in any turn."""
        assert self.crop is not None, "without a crop there is no reach"
        height, width = (ceil(side / self.scale[0]) for side in self.crop)
        turns = _TURNING.intersection(PIPELINES[self.pipeline])
        return (max(height, width), max(height, width)) if turns else (height, width)

    def geometry(
        self,
        image: Pixels,
        mask: Mask,
        valid: Valid,
        *,
        rng: np.random.Generator,
        centre: tuple[int, int] | None = None,
    ) -> tuple[Pixels, Mask, Valid]:
        """A random zoomed, turned and flipped window of a sample, `crop` large.

        image: (H, W, C), any number type, which it keeps; mask: (H, W) class indices; valid: (H, W).
        centre: (row, column) on which the window is centred as far as the edges allow; None: anywhere.
        Beyond the sample's edges the result is invalid, its mask 255. Only valid pixels are blended.
        """
        placement = self.draw(valid.shape, rng=rng, centre=centre)
        return self.occlude(*placement.pixels(image, mask, valid), rng=rng)

    def draw(
        self, shape: tuple[int, ...], *, rng: np.random.Generator, centre: tuple[int, int] | None = None
    ) -> Placement:
        """A random zoomed, turned and flipped window of a sample of this shape (H, W), `crop` large.

        centre: (row, column) on which the window is centred as far as the edges allow; None: anywhere.
        """
        element = PIPELINES[self.pipeline][rng.integers(len(PIPELINES[self.pipeline]))]
        height, width = self.crop or shape
        crop = (width, height) if element in _TURNING else (height, width)
        zoom = float(np.exp(rng.uniform(*np.log(self.scale))))
        size = (max(1, round(crop[0] / zoom)), max(1, round(crop[1] / zoom)))
        corner = _draw_corner(shape, size, centre, rng)
        inside, place = _place(shape, corner, size, crop)
        return Placement(inside, place, crop, element)

    def occlude(
        self, image: Pixels, mask: Mask, valid: Valid, *, rng: np.random.Generator
    ) -> tuple[Pixels, Mask, Valid]:
        """With the probability `erase`, the sample with a rectangle of it invalid, its labels 'ignore'."""
        return _erase(image, mask, valid, rng) if rng.random() < self.erase else (image, mask, valid)

    def photometry(
        self, image: NDArray[np.float32], valid: Valid, *, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """The same scene in another light, perhaps slightly out of focus; invalid pixels stay as they are.

        image: (C, H, W) float32, normalised; valid: (H, W).
        With strength s: contrast about each band's mean within 1 +- s, brightness of all bands within +- s,
        each band's gain within 1 +- s / 4 and its offset within +- s / 4 (in units of normalised values).
        """
        changed = image = np.ascontiguousarray(image)  # several times as fast band by band
        if self.photometric > 0:
            changed = self._relight(changed, valid, rng)
        if rng.random() < self.blur:
            changed = _blur(changed, valid, sigma=rng.uniform(0.4, 1.2))
        if changed is not image and not valid.all():
            np.copyto(changed, image, where=~valid)
        return changed

    def _relight(
        self, image: NDArray[np.float32], valid: Valid, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        strength, bands = self.photometric, len(image)
        contrast = 1 + strength * rng.uniform(-1, 1)
        gain = contrast * (1 + strength / 4 * rng.uniform(-1, 1, bands))
        offset = strength * (rng.uniform(-1, 1) + rng.uniform(-1, 1, bands) / 4)
        shift = _band_means(image, valid) * (1 - gain) + offset
        changed = image * gain.astype(np.float32)[:, None, None]
        changed += shift.astype(np.float32)[:, None, None]
        return changed


def resize_sample(
    image: Pixels, mask: Mask, valid: Valid, *, size: tuple[int, int]
) -> tuple[Pixels, Mask, Valid]:
    """A sample resampled to `size` (height, width): pixels averaged or interpolated, labels by nearest.

    image: (H, W, C), any number type, which it keeps; mask: (H, W); valid: (H, W).
    """
    if valid.shape == size:
        return image, mask, valid
    image, valid = resize_pixels(image, valid, size=size)
    labels = resize_labels(mask, size=size)
    labels[~valid] = IGNORE
    return image, labels, valid


def resize_labels(mask: Mask, *, size: tuple[int, int]) -> Mask:
    """A copy of a mask (H, W) resampled to `size` (height, width) by nearest."""
    return np.array(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def resize_pixels(image: Pixels, valid: Valid, *, size: tuple[int, int]) -> tuple[Pixels, Valid]:
    """Pixels (H, W, C) and their validity (H, W) resampled to `size` (height, width).

    Valid pixels alone are blended; a new pixel is valid where they make up at least half of it.
    """
    if valid.shape == size:
        return image, valid
    shrinking = size[0] < valid.shape[0] and size[1] < valid.shape[1]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    every = bool(valid.all())
    if every and image.dtype in _RESIZABLE:
        return _resize(image, size, method), np.ones(size, dtype=np.bool_)
    # float32 holds every 8- and 16-bit number, float64 every 32-bit one
    working = np.float32 if image.dtype in _RESIZABLE or image.dtype.itemsize < 3 else np.float64
    values: Pixels = image.astype(working)
    values[~valid] = 0
    values = _resize(values, size, method)
    weight = cv2.resize(valid.astype(working), size[::-1], interpolation=method)
    blended = weight < 1 - 1e-6
    values[blended] /= np.maximum(weight[blended], 0.5)[:, None]
    kept = weight >= 0.5
    values[~kept] = 0
    if image.dtype.kind in "iu":
        np.rint(values, out=values)
    return values.astype(image.dtype), kept


def _resize(image: Pixels, size: tuple[int, int], method: int) -> Pixels:
    """Any number of bands: OpenCV averages four at most, so albumentations hands them over in fours."""
    resized = resize_bands(image, size, method)
    return resized.reshape(*size, image.shape[2])


def _turn(points: NDArray[np.float64], crop: tuple[int, int], element: str) -> NDArray[np.float64]:
    """(N, 2) x, y in a crop (H, W), as albumentations' d4 turns or flips its pixels."""
    x, y = points.T
    left, up = crop[1] - x, crop[0] - y
    turned = {
        "e": (x, y), "r90": (y, left), "r180": (left, up), "r270": (up, x),
        "h": (left, y), "v": (x, up), "t": (y, x), "hvt": (up, left),
    }  # fmt: skip
    return np.stack(turned[element], axis=1)


def _draw_corner(
    shape: tuple[int, ...], size: tuple[int, int], centre: tuple[int, int] | None, rng: np.random.Generator
) -> tuple[int, int]:
    """Top left corner of a window; where the sample is smaller than the window it lies anywhere inside."""
    corner = []
    for axis in (0, 1):
        low, high = sorted((0, shape[axis] - size[axis]))
        drawn = int(rng.integers(low, high + 1))
        corner.append(drawn if centre is None else min(max(centre[axis] - size[axis] // 2, low), high))
    return corner[0], corner[1]


def _place(
    shape: tuple[int, ...], corner: tuple[int, int], size: tuple[int, int], crop: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the window overlaps the sample, and where that overlap lies in the crop it becomes."""
    inside, place = [], []
    for axis in (0, 1):
        start, stop = max(0, corner[axis]), min(shape[axis], corner[axis] + size[axis])
        zoom = crop[axis] / size[axis]
        first = min(round((start - corner[axis]) * zoom), crop[axis] - 1)
        inside.append(slice(start, stop))
        place.append(slice(first, max(round((stop - corner[axis]) * zoom), first + 1)))
    return (inside[0], inside[1]), (place[0], place[1])


def _pad(array: Pixels, place: tuple[slice, slice], size: tuple[int, int], fill: int) -> Pixels:
    """An (H, W, ...) array put at its place in a larger one of `fill`."""
    if array.shape[:2] == size:
        return array
    padded = np.full((*size, *array.shape[2:]), fill, dtype=array.dtype)
    padded[place] = array
    return padded


def _erase(image: Pixels, mask: Mask, valid: Valid, rng: np.random.Generator) -> tuple[Pixels, Mask, Valid]:
    """A copy in which a rectangle of 10 to 35 % of each side is invalid."""
    height, width = (max(1, round(side * rng.uniform(0.1, 0.35))) for side in valid.shape)
    row, col = rng.integers(valid.shape[0] - height + 1), rng.integers(valid.shape[1] - width + 1)
    where = np.s_[row : row + height, col : col + width]
    image, mask, valid = image.copy(), mask.copy(), valid.copy()
    image[where], mask[where], valid[where] = 0, IGNORE, False
    return image, mask, valid


def _band_means(image: NDArray[np.float32], valid: Valid) -> NDArray[np.float64]:
    """(C,) mean of each band's valid pixels; 0 where there are none."""
    count = int(np.count_nonzero(valid))
    if count == valid.size:
        return np.array([band.mean() for band in image], dtype=np.float64)
    return np.array([band.sum(where=valid) / max(count, 1) for band in image], dtype=np.float64)


def _blur(image: NDArray[np.float32], valid: Valid, *, sigma: float) -> NDArray[np.float32]:
    """Gaussian blur of the valid pixels among themselves; image: (C, H, W)."""
    if valid.all():
        return np.stack([cv2.GaussianBlur(band, (0, 0), sigma) for band in image])
    weight = np.maximum(cv2.GaussianBlur(valid.astype(np.float32), (0, 0), sigma), 1e-6)
    return np.stack([cv2.GaussianBlur(np.where(valid, band, 0), (0, 0), sigma) / weight for band in image])
