"""Stills: the class map of one camera frame, as an indexed picture of the frame's own size; and of whole drives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
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
from datamodules.videos import VIDEO_SUFFIXES
from visionsft.errors import ConfigError
from visionsft.evaluation.metrics import predict_classes
from visionsft.evaluation.operating import AppliedPoint
from visionsft.evaluation.pictures import overlay as draw_overlay
from visionsft.files import atomic_path
from visionsft.models.views import average_views
from visionsft.prediction.backends import TorchBackend
from visionsft.prediction.inputs import stem
from visionsft.prediction.maps import colour_table
from visionsft.prediction.scenes import Run, resample
from visionsft.prediction.tiling import fitting

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""Of images in a folder."""
MAP_SUFFIX = ".png"
"""Of class maps."""
Decide = Callable[[Tensor], Tensor]
"""logits (B, K, H, W) float -> class indices (B, H, W) uint8."""
LARGEST = 8192 * 8192
"""Pixels of a frame at most: it is predicted in one piece."""


@dataclass(frozen=True)
class FrameOptions:
    """What is made of frames and videos."""

    drives: bool = False
    """A folder is one drive, with an overlay video, and not a number of frames."""
    every: int = 1
    """Of a video, each n-th frame."""
    rate: int = 10
    """Frames a second of a drive made of a folder."""
    masks: bool = True
    """Class maps of a drive's frames, too, and not only its overlay video."""

    def __post_init__(self) -> None:
        for name in ("every", "rate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 1 or more")


class StillPredictor:
    """A trained camera run, ready for frames, videos and folders of frames."""

    suffixes: ClassVar[tuple[str, ...]] = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    """Of inputs in a folder."""
    note: ClassVar[str] = ""
    """Frames are computed by PyTorch: there is no choice to report."""

    def __init__(
        self,
        loaded: LoadedRun,
        options: FrameOptions = FrameOptions(),
        *,
        overlay: bool = False,
        point: AppliedPoint | None = None,
    ) -> None:
        """point: the thresholds by which classes are decided; none: the most probable class."""
        self.decide: Decide = point.decide if point else predict_classes
        self.loaded = loaded
        self.options = options
        self.overlay = overlay

    def targets(self, path: str, out: Path) -> dict[str, Path]:
        """What an input becomes, by kind of result: files, and the folder of a drive's class maps."""
        name = stem(path)
        if is_drive(path):
            files = {"overlay": out / f"{name}_overlay.mp4"}
            return files | ({"classes": out / name} if self.options.masks else {})
        files = {"classes": out / f"{name}{MAP_SUFFIX}"}
        return files | ({"overlay": out / f"{name}_overlay.jpg"} if self.overlay else {})

    def predict(self, path: str, targets: dict[str, Path], *, overwrite: bool) -> str:
        """Make an input's files. Returns a remark: there is none about frames."""
        if is_drive(path):
            self._predict_drive(path, targets["overlay"].parent, overwrite=overwrite)
        else:
            self._predict_still(path, targets)
        return ""

    @cached_property
    def run(self) -> Run:
        """image (B, C, H, W) float32, normalised -> logits (B, K, H, W); frames larger than the model in tiles."""
        whole = fitting(TorchBackend(self.loaded), self.loaded.model, self.loaded.data)
        return partial(average_views, whole, **self.loaded.views)

    def _predict_drive(self, path: str, out: Path, *, overwrite: bool) -> None:
        from visionsft.prediction import drives  # which writes its class maps as this module does

        wanted, classes = self.options, self.loaded.data.classes
        classify = drives.frame_classifier(self.loaded, run=self.run, decide=self.decide)
        common = {"classify": classify, "classes": classes, "masks": wanted.masks, "overwrite": overwrite}
        if Path(path).is_dir():
            drives.predict_frames(path, out, rate=wanted.rate, **common)  # type: ignore[arg-type]
        else:
            drives.predict_video(path, out, every=wanted.every, **common)  # type: ignore[arg-type]

    def _predict_still(self, path: str, targets: dict[str, Path]) -> None:
        size = frame_size(path)
        sample = self.loaded.data.prediction_dataset([path])[0]
        logits = self.run(sample["image"][None])
        classes = _classify(logits, sample["valid"].to(logits.device), size, self.decide)
        names = self.loaded.data.classes
        with atomic_path(targets["classes"]) as temporary:
            write_indexed(temporary, classes, names)
        if "overlay" in targets:
            with atomic_path(targets["overlay"]) as temporary:
                drawn = draw_overlay(read_picture(path), classes, names.colours)
                Image.fromarray(drawn).save(temporary, quality=92)


def is_drive(path: str) -> bool:
    """Whether it is a sequence of frames: a video, or a folder."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES or Path(path).is_dir()


def write_indexed(path: Path, classes: NDArray[np.uint8], names: Classes) -> None:
    """classes: (H, W), 255 where there is none, as a PNG with the classes' colours for palette."""
    picture = Image.fromarray(classes).convert("P")
    table = colour_table(names)
    picture.putpalette([channel for index in range(256) for channel in table.get(index, (0, 0, 0, 255))[:3]])
    picture.save(path, format="PNG", optimize=True)


def read_picture(path: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, as the frame looks."""
    values, _ = read_image(path)
    return values if values.dtype == np.uint8 else (values // 257).astype(np.uint8)


def frame_size(path: str) -> tuple[int, int]:
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


def classes_at(
    logits: Tensor, size: tuple[int, int], decide: Decide = predict_classes
) -> NDArray[np.uint8]:
    """logits (1, K, h, w) of a whole frame, resized or not -> class indices (H, W) at the frame's own size."""
    if logits.shape[2:] != torch.Size(size):
        logits = resample(logits.float(), size, covered=size, mode="bilinear")
    return decide(logits)[0].cpu().numpy()


def _classify(
    logits: Tensor, valid: Tensor, size: tuple[int, int], decide: Decide
) -> NDArray[np.uint8]:
    """`classes_at`, and 255 where the frame, valid (h, w), isn't valid."""
    classes = classes_at(logits, size, decide)
    if valid.shape != torch.Size(size):
        valid = resample(valid[None, None].float(), size, covered=size, mode="nearest")[0, 0] > 0.5
    classes[~valid.cpu().numpy()] = IGNORE
    return classes
