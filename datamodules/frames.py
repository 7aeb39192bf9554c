"""Frames: camera pictures and their masks, read whole, checked, and resized to one size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.augment import resize_sample
from datamodules.batch import IGNORE, Item
from datamodules.classes import Classes
from datamodules.datasets import RawSample
from datamodules.errors import DataError
from datamodules.layouts import cityscapes

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def read_image(path: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(H, W, 3) uint8 or uint16 red green blue, and (H, W) bool: False where fully transparent.

    Grey pictures are given three equal bands. The picture is not turned as its EXIF data may ask: a mask
    belongs to the pixels as they are stored.
    """
    data = _read_bytes(path)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None or _is_cut_off(data):
        raise DataError(f"{path}: not a picture, or a truncated or damaged one")
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: its pixels are {image.dtype}; camera frames are 8- or 16-bit")
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.ones(image.shape, dtype=np.bool_)
    if image.shape[2] == 4:
        return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB), image[..., 3] > 0
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.ones(image.shape[:2], dtype=np.bool_)


def read_codes(path: str) -> NDArray[Any]:
    """(H, W) values or (H, W, 3) uint8 colours of a mask, as they are stored; polygons are drawn as ids.

    A palette picture gives its indices, not its colours.
    """
    if path.endswith(".json"):
        return cityscapes.rasterise(Path(path))
    try:
        with Image.open(path) as picture:
            codes = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a picture, or a truncated or damaged one") from error
    if codes.dtype == np.bool_:
        return codes.astype(np.uint8)
    # the alpha of a colour-coded mask says nothing about classes
    return codes[..., :3] if codes.ndim == 3 and codes.shape[2] == 4 else codes


def _read_bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _is_cut_off(data: bytes) -> bool:
    """A JPEG whose last scan has no end marker; some decoders fill up what is missing and say nothing."""
    return data.startswith(_JPEG_START) and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN)


@dataclass(frozen=True)
class FrameReader:
    """Reads frames with their masks; see `datamodules.datasets.Reader`."""

    classes: Classes
    size: tuple[int, int] | None
    """(height, width) to which both are resized; None: they stay as they are."""

    def read(self, item: Item) -> RawSample:
        """The item's window, in pixels of the resized frame, or all of it."""
        image, valid = read_image(item.image)
        mask = self._read_own_size(item)
        if mask is None:
            mask = np.full(valid.shape, IGNORE, np.uint8)
        elif mask.shape != valid.shape:
            raise DataError(
                f"{item.label}: the mask is {_show(mask.shape)} (height x width), "
                f"its image {item.image} is {_show(valid.shape)}"
            )
        if self.size is not None:
            image, mask, valid = resize_sample(image, mask, valid, size=self.size)
        if item.window is not None:
            window = item.window
            inside = np.s_[window.row : window.row + window.height, window.col : window.col + window.width]
            image, mask, valid = image[inside], mask[inside], valid[inside]
        return RawSample(values=image.transpose(2, 0, 1), valid=valid, mask=mask)

    def read_mask(self, item: Item) -> NDArray[np.uint8]:
        """(H, W) class indices of the whole frame, without a look at the image."""
        mask = self._read_own_size(item)
        assert mask is not None, f"{item.id} has no label"
        if self.size is None or mask.shape == self.size:
            return mask
        return np.asarray(cv2.resize(mask, self.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)

    def _read_own_size(self, item: Item) -> NDArray[np.uint8] | None:
        if item.label is None:
            return None
        return self.classes.lookup(read_codes(item.label), source=item.label)


@dataclass(frozen=True)
class Fit:
    """How large frames of any size become, in their own proportions."""

    size: tuple[int, int] | None
    """(height, width) inside which they fit..."""
    longest: int | None
    """...or the length of their longer side; both None: they stay as they are."""

    def __call__(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(height, width) -> (height, width)."""
        height, width = shape
        if self.size is not None:
            share = min(self.size[0] / height, self.size[1] / width)
        else:
            share = 1.0 if self.longest is None else self.longest / max(height, width)
        return max(1, round(height * share)), max(1, round(width * share))


@dataclass(frozen=True)
class PictureReader:
    """Reads frames that have no mask; see `datamodules.datasets.Reader`."""

    fit: Fit

    def read(self, item: Item) -> RawSample:
        """The whole frame, resized."""
        return self.resize(*read_image(item.image))

    def resize(self, picture: NDArray[Any], valid: NDArray[np.bool_]) -> RawSample:
        """The same for a frame in memory: picture (H, W, 3), valid (H, W)."""
        mask = np.full(valid.shape, IGNORE, np.uint8)
        image, mask, valid = resize_sample(picture, mask, valid, size=self.fit(valid.shape))
        return RawSample(values=image.transpose(2, 0, 1), valid=valid, mask=mask)

    def read_mask(self, item: Item) -> NDArray[np.uint8]:
        """(H, W), all 255."""
        return self.read(item).mask


def _show(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"
