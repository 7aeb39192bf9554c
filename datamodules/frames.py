"""Frames: camera pictures and their masks, read whole, checked, and resized to one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.augment import resize_labels, resize_pixels
from datamodules.batch import IGNORE, Item
from datamodules.classes import Classes, Unknown
from datamodules.datasets import RawSample
from datamodules.errors import DataError
from datamodules.layouts import MaskSource, cityscapes
from datamodules.layouts.parsing import read_stored
from datamodules.surveying import Inspection, Problem, without_path
from datamodules.videos import read_frame, split_frame_path

_FLAGS = {
    8: cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION,
    4: cv2.IMREAD_REDUCED_COLOR_4 | cv2.IMREAD_IGNORE_ORIENTATION,
    2: cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION,
    1: cv2.IMREAD_UNCHANGED,
}
"""OpenCV's, by the number by which both sides are divided."""

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def read_image(path: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(H, W, 3) uint8 or uint16 red green blue, and (H, W) bool: False where fully transparent.

    path: of a picture, or of a video's frame. Grey pictures are given three equal bands. The picture is not turned
    as its EXIF data may ask: a mask belongs to the pixels as they are stored.
    """
    image, valid, _ = read_fitted(path, lambda own: own)
    return image, valid


def read_fitted(
    path: str, fit: Callable[[tuple[int, int]], tuple[int, int]]
) -> tuple[NDArray[Any], NDArray[np.bool_], tuple[int, int]]:
    """As `read_image`, not larger than needs be, and the picture's own (height, width).

    fit: the (height, width) to which a picture of this one will be resized: a JPEG that is to shrink to a half, a
    quarter or an eighth, or more, is decoded at that scale, which leaves out most of the work. Its pixels are then
    those that libjpeg's smaller inverse transform gives, near the mean of the pixels that they stand for.
    """
    frame = split_frame_path(path)
    if frame is not None:
        picture = read_frame(*frame)
        return picture, np.ones(picture.shape[:2], np.bool_), (picture.shape[0], picture.shape[1])
    data = _read_bytes(path)
    own = _jpeg_size(data, path) if data.startswith(_JPEG_START) else None
    divisor = 1 if own is None else _divisor(own, fit(own))
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[divisor]) if data else None
    if image is None or _is_cut_off(data):
        raise DataError(f"{path}: not a picture, or a truncated or damaged one")
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: its pixels are {image.dtype}; camera frames are 8- or 16-bit")
    size = (image.shape[0], image.shape[1])
    valid = np.ones(size, np.bool_)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    elif image.shape[2] == 4:
        image, valid = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB), image[..., 3] > 0
    else:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image, valid, own or size


def _jpeg_size(data: bytes, path: str) -> tuple[int, int]:
    try:
        with Image.open(BytesIO(data)) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a picture, or a truncated or damaged one") from error


def _divisor(own: tuple[int, int], wanted: tuple[int, int]) -> int:
    """The largest by which both sides can be divided, rounded up as libjpeg does, and not be too small."""
    pairs = list(zip(own, wanted, strict=True))
    fitting = (each for each in _FLAGS if all(-(-side // each) >= least for side, least in pairs))
    return next(fitting, 1)


def read_codes(path: str) -> NDArray[Any]:
    """(H, W) values or (H, W, 3) uint8 colours of a mask, as they are stored; polygons are drawn as ids.

    A palette picture gives its indices, not its colours.
    """
    if path.endswith(".json"):
        return cityscapes.rasterise(Path(path))
    codes = read_stored(path)
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
    sources: Mapping[str, MaskSource] = field(default_factory=dict)
    """See `datamodules.layouts.Listing`."""

    def read(self, item: Item) -> RawSample:
        """The item's window, in pixels of the resized frame, or all of it."""
        image, valid, own = read_fitted(item.image, lambda own: self.size or own)
        size = self.size or own
        mask = self._read_own_size(item)
        if mask is not None and mask.shape != own:
            raise DataError(
                f"{item.label}: the mask is {_show(mask.shape)} (height x width), "
                f"its image {item.image} is {_show(own)}"
            )
        image, valid = resize_pixels(image, valid, size=size)
        mask = np.full(size, IGNORE, np.uint8) if mask is None else resize_labels(mask, size=size)
        mask[~valid] = IGNORE
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
        return resize_labels(mask, size=self.size)

    def _read_own_size(self, item: Item) -> NDArray[np.uint8] | None:
        if item.label is None:
            return None
        source = self.sources.get(item.image)
        codes = read_codes(item.label) if source is None else source.codes(item.label)
        return self.classes.lookup(codes, source=item.label)


@dataclass(frozen=True)
class FrameInspector:
    """Looks into frames and, where there are `classes`, their masks; see `datamodules.readers.Inspector`."""

    classes: Classes | None
    sources: Mapping[str, MaskSource] = field(default_factory=dict)
    """By image: where its label doesn't lie in a picture."""

    def pieces(self, item: Item) -> list[Item]:
        """The frame."""
        return [item]

    def inspect(self, item: Item) -> Inspection:
        """See `Inspector`."""
        problems: list[Problem] = []
        values = valid = mask = None
        try:
            image, valid = read_image(item.image)
            values = image.transpose(2, 0, 1)
        except DataError as error:
            problems.append(Problem("image", item.image, _say_unreadable(item.image, error)))
        unknown: list[Unknown] = []
        if self.classes is not None and item.label is not None:
            source = self.sources.get(item.image)
            try:
                codes = read_codes(item.label) if source is None else source.codes(item.label)
            except DataError as error:
                problems.append(Problem("label", item.label, _say_unreadable(item.label, error)))
            else:
                mask, unknown, problem = _inspect_codes(self.classes, item.label, codes)
                problems += problem
        if mask is not None and valid is not None and mask.shape != valid.shape:
            text = f"{_show(mask.shape)} (height x width), its image {item.image} {_show(valid.shape)}"
            problems.append(Problem("size", str(item.label), text))
        return Inspection(values, valid, mask, tuple(unknown), tuple(problems))


def _inspect_codes(
    classes: Classes, path: str, codes: NDArray[Any]
) -> tuple[NDArray[np.uint8] | None, list[Unknown], list[Problem]]:
    try:
        mask, unknown = classes.inspect(codes, source=path)
    except DataError as error:
        return None, [], [Problem("form", path, without_path(path, error))]
    return mask, unknown, []


def _say_unreadable(path: str, error: DataError) -> str:
    empty = Path(path).is_file() and not Path(path).stat().st_size
    return "the file is empty (0 bytes)" if empty else without_path(path, error)


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


def _blank(image: NDArray[Any], valid: NDArray[np.bool_]) -> RawSample:
    """image (H, W, C), valid (H, W), without labels."""
    mask = np.full(valid.shape, IGNORE, np.uint8)
    return RawSample(values=image.transpose(2, 0, 1), valid=valid, mask=mask)


@dataclass(frozen=True)
class PictureReader:
    """Reads frames that have no mask; see `datamodules.datasets.Reader`."""

    fit: Fit

    def read(self, item: Item) -> RawSample:
        """The whole frame, resized."""
        image, valid, own = read_fitted(item.image, self.fit)
        return _blank(*resize_pixels(image, valid, size=self.fit(own)))

    def resize(self, picture: NDArray[Any], valid: NDArray[np.bool_]) -> RawSample:
        """The same for a frame in memory: picture (H, W, 3), valid (H, W)."""
        return _blank(*resize_pixels(picture, valid, size=self.fit(valid.shape)))

    def read_mask(self, item: Item) -> NDArray[np.uint8]:
        """(H, W), all 255."""
        return self.read(item).mask


def _show(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"
