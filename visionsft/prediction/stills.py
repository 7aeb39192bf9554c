"""Stills: the class map of one camera frame, as an indexed picture of the frame's own size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from datamodules import Classes, DataError
from datamodules.batch import IGNORE
from datamodules.frames import read_image
from visionsft.evaluation.evaluating import infer
from visionsft.evaluation.metrics import predict_classes
from visionsft.evaluation.pictures import overlay as draw_overlay
from visionsft.files import atomic_path
from visionsft.prediction.maps import colour_table
from visionsft.prediction.scenes import resample

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

LARGEST = 8192 * 8192
"""Pixels of a frame at most: it is predicted in one piece."""


class StillPredictor:
    """A trained camera run, ready for frames."""

    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
    """Of images in a folder."""
    note: ClassVar[str] = ""
    """Frames are computed by PyTorch: there is no choice to report."""

    def __init__(self, loaded: LoadedRun, *, overlay: bool = False) -> None:
        self.loaded = loaded
        self.overlay = overlay

    def targets(self, stem: str, out: Path) -> dict[str, Path]:
        """The files that a frame of this name becomes, by kind of result."""
        files = {"classes": out / f"{stem}.png"}
        return files | ({"overlay": out / f"{stem}_overlay.jpg"} if self.overlay else {})

    def predict(self, path: str, targets: dict[str, Path]) -> None:
        """Make a frame's files."""
        size = _size(path)
        sample = self.loaded.data.prediction_dataset([path])[0]
        logits = infer(self.loaded, sample["image"][None])
        classes = _classify(logits, sample["valid"].to(logits.device), size)
        names = self.loaded.data.classes
        with atomic_path(targets["classes"]) as temporary:
            write_indexed(temporary, classes, names)
        if "overlay" in targets:
            values, _ = read_image(path)
            picture = values if values.dtype == np.uint8 else (values // 257).astype(np.uint8)
            with atomic_path(targets["overlay"]) as temporary:
                Image.fromarray(draw_overlay(picture, classes, names.colours)).save(temporary, quality=92)


def write_indexed(path: Path, classes: NDArray[np.uint8], names: Classes) -> None:
    """classes: (H, W), 255 where there is none, as a PNG with the classes' colours for palette."""
    picture = Image.fromarray(classes).convert("P")
    table = colour_table(names)
    picture.putpalette([channel for index in range(256) for channel in table.get(index, (0, 0, 0, 255))[:3]])
    picture.save(path, format="PNG", optimize=True)


def _size(path: str) -> tuple[int, int]:
    """(H, W) of the file, from its header."""
    try:
        with Image.open(path) as picture:
            height, width = picture.height, picture.width
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: is not a picture") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {error}") from error
    if height * width > LARGEST:
        raise DataError(f"{path}: {height} x {width} pixels; frames of at most {LARGEST:,} are predicted")
    return height, width


def _classify(logits: Tensor, valid: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """logits (1, K, h, w), valid (h, w) -> (H, W) at the file's own size; 255 where it isn't valid."""
    seen = valid[None, None]
    if logits.shape[2:] != torch.Size(size):
        extent = (float(size[0]), float(size[1]))  # a resized frame is the whole frame
        logits = resample(logits.float(), size, covered=extent, mode="bilinear")
        seen = resample(seen.float(), size, covered=extent, mode="nearest") > 0.5
    return predict_classes(logits).masked_fill(~seen[:, 0], IGNORE)[0].cpu().numpy()
