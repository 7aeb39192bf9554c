"""Drives: videos and folders of camera frames, predicted as one sequence, with an overlay video.

Here they become class maps; `visionsft.prediction.detections` finds their objects.

Reading, model and writing overlap: one thread reads the next batch while the model works on this one and another
thread draws, encodes and writes the one before. No more than four batches of frames are held, however long the
drive is.

Videos are read and written with PyAV (FFmpeg), the extra ``video``. The overlay video is H.264 in MP4 and has no
sound. It is written by FFmpeg's H.264 encoder: in PyAV's own wheels that is x264, under the GPL, which concerns
those who pass these wheels on; an FFmpeg with another H.264 encoder (OpenH264 in conda-forge's LGPL build) is used
likewise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules import CameraFrameDataModule, Classes, DataError
from datamodules.augment import resize_sample
from datamodules.batch import IGNORE
from datamodules.frames import read_image
from datamodules.videos import import_av, read_video, read_video_header
from visionsft.errors import ConfigError, WriteError
from visionsft.evaluation.evaluating import progress
from visionsft.evaluation.metrics import predict_classes
from visionsft.evaluation.pictures import overlay as draw_overlay
from visionsft.files import atomic_folder, atomic_path
from visionsft.prediction.inputs import find_inputs
from visionsft.prediction.stills import IMAGE_SUFFIXES, MAP_SUFFIX, classes_at, write_indexed

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""(H, W, 3) red green blue."""
Found = TypeVar("Found")
"""What a frame shows."""
Classify = Callable[[list[Pixels]], list[NDArray[np.uint8]]]
"""Frames of any size -> class indices (H, W) of the same size; 255 = no class."""

BATCH_PIXELS = 1 << 24
"""Pixels of a batch of frames at most, unless a single frame has more: 50 MB of 8-bit colours."""
_H264 = "h264"
_QUALITY = {"preset": "veryfast", "crf": "20"}  # x264's; other encoders have their own defaults


# ------------------------------------------------------------------------------------------- drives


def predict_video(
    path: str | Path,
    out: str | Path,
    *,
    classify: Classify,
    classes: Classes,
    batch: int = 8,
    masks: bool = False,
    every: int = 1,
    overwrite: bool = False,
) -> list[Path]:
    """Write ``<out>/<stem>_overlay.mp4``, and with `masks` the class maps ``<out>/<stem>/<frame index>.png``.

    batch: frames at most that are classified together (fewer if they are large, see `BATCH_PIXELS`).
    every: predict only each n-th frame; the others are in neither output. Frames keep their times, so that the
    overlay plays in step with the video. Returns the files written, the overlay first; either all of them are
    there in the end or, after an error, none.
    """
    drive = open_video(path, every=every)
    files = DriveFiles.of(out, Path(path).stem, masks=masks)
    files.refuse_what_exists(overwrite=overwrite)
    return _predict_maps(drive, files, classify=classify, classes=classes, batch=batch)


def predict_frames(
    folder: str | Path,
    out: str | Path,
    *,
    classify: Classify,
    classes: Classes,
    batch: int = 8,
    masks: bool = True,
    rate: Fraction | int = 10,
    overwrite: bool = False,
) -> list[Path]:
    """The pictures directly in `folder` as one drive, in natural order (frame2 before frame10).

    Writes ``<out>/<folder>_overlay.mp4`` with `rate` frames a second, and with `masks` the class maps
    ``<out>/<folder>/<stem>.png``. The video has the first frame's size, to which others are scaled in it; class
    maps have their own frame's size. The other options and the result are those of `predict_video`.
    """
    folder = Path(folder).resolve()
    drive = open_frames(folder, rate=rate)
    files = DriveFiles.of(out, folder.name, masks=masks)
    if files.masks is not None and files.masks.resolve() == folder:
        raise WriteError(f"{folder}: is an input; choose another folder for the predictions")
    files.refuse_what_exists(overwrite=overwrite)
    return _predict_maps(drive, files, classify=classify, classes=classes, batch=batch)


@dataclass(frozen=True)
class DriveFiles:
    """Where a drive's predictions are."""

    overlay: Path
    masks: Path | None
    """Folder of the class maps."""

    @classmethod
    def of(cls, out: str | Path, name: str, *, masks: bool) -> Self:
        """Those of the drive `name` in the folder `out`."""
        return cls(Path(out) / f"{name}_overlay.mp4", Path(out) / name if masks else None)

    def refuse_what_exists(self, *, overwrite: bool) -> None:
        """A folder is only ever replaced if it holds nothing but class maps."""
        there = [path for path in (self.overlay, self.masks) if path is not None and path.exists()]
        if there and not overwrite:
            raise WriteError(f"{there[0]}: exists; --overwrite replaces it")
        if self.masks not in there or self.masks is None:
            return
        if not self.masks.is_dir():
            raise WriteError(f"{self.masks}: is a file, and the class maps' folder must have this name")
        if foreign := [path for path in self.masks.iterdir() if not _is_class_map(path)]:
            raise WriteError(f"{foreign[0]}: is no class map, so its folder isn't replaced; move it away")


def _is_class_map(path: Path) -> bool:
    """An indexed picture; a camera's frames are none, which may well be in a folder of their video's name."""
    try:
        with Image.open(path) as picture:
            return path.suffix == MAP_SUFFIX and picture.mode == "P"
    except OSError:
        return False


def _predict_maps(
    drive: Drive, files: DriveFiles, *, classify: Classify, classes: Classes, batch: int
) -> list[Path]:
    """The files written."""
    written = [files.overlay]
    with ExitStack() as stack:
        folder = None if files.masks is None else stack.enter_context(atomic_folder(files.masks))

        def draw(shot: Shot, found: NDArray[np.uint8]) -> NDArray[np.uint8]:
            seen = found if shot.valid is None else np.where(shot.valid, found, np.uint8(IGNORE))
            if folder is not None and files.masks is not None:
                write_indexed(folder / f"{shot.name}{MAP_SUFFIX}", seen, classes)
                written.append(files.masks / f"{shot.name}{MAP_SUFFIX}")
            return draw_overlay(eight_bit(shot.picture), seen, classes.colours)

        play(
            drive,
            files.overlay,
            look=lambda shots: classify([shot.picture for shot in shots]),
            draw=draw,
            batch=batch,
        )
    return written


@dataclass(frozen=True)
class Shot:
    """A frame of a drive."""

    index: int
    """From 0, in the order shown."""
    name: str
    picture: Pixels
    time: Fraction
    """Seconds from the first frame."""
    valid: NDArray[np.bool_] | None = None
    """(H, W): False where the picture is transparent."""


@dataclass(frozen=True)
class Drive:
    """A sequence of frames, to be gone through once."""

    shots: Generator[Shot]
    size: tuple[int, int]
    """(height, width) of the first frame."""
    rate: Fraction
    """Frames a second, the mean if it varies."""
    tick: Fraction
    """Seconds; times of frames are multiples of it."""


def open_video(path: str | Path, *, every: int = 1) -> Drive:
    """Each n-th frame of a video, named by its index."""
    header = read_video_header(path)
    shots = (
        Shot(frame.index, f"{frame.index:06d}", frame.picture, frame.time)
        for frame in read_video(path, every=every)
    )
    return Drive(shots, header.size, header.rate / every, header.tick)


def open_frames(folder: Path, *, rate: Fraction | int) -> Drive:
    """The pictures directly in the folder, named by their stems, in natural order."""
    paths = sorted(
        map(Path, find_inputs([folder], suffixes=IMAGE_SUFFIXES)), key=lambda path: _natural(path.name)
    )
    _refuse_equal_stems(paths)
    height, width = read_image(str(paths[0]))[1].shape
    return Drive(_read_shots(paths, Fraction(rate)), (height, width), Fraction(rate), 1 / Fraction(rate))


def play(
    drive: Drive,
    overlay: Path,
    *,
    look: Callable[[list[Shot]], Sequence[Found]],
    draw: Callable[[Shot, Found], NDArray[np.uint8]],
    batch: int,
) -> None:
    """Write the overlay video of a drive. At any time one batch is read, one looked at and one drawn and written.

    look: called in the caller's thread -> what each frame shows. draw: called for each frame in their order, in
    another thread, where it may also write what was found -> the overlay (H, W, 3) red green blue.
    """
    height, width = drive.size
    batch = min(batch, max(1, BATCH_PIXELS // (height * width)))
    with ExitStack() as stack:
        video = stack.enter_context(OverlayVideo(overlay, size=drive.size, rate=drive.rate, tick=drive.tick))
        stack.enter_context(closing(drive.shots))
        reader, writer = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))

        def write(chunk: list[Shot], found: Sequence[Found]) -> None:
            for shot, each in zip(chunk, found, strict=True):
                video.add(draw(shot, each), time=shot.time)

        before: Future[None] | None = None
        for chunk in progress(_read_ahead(drive.shots, batch, reader), f"predicting {overlay.stem}"):
            found = look(chunk)
            if before is not None:
                before.result()
            before = writer.submit(write, chunk, found)
        if before is not None:
            before.result()


def _read_ahead(shots: Iterator[Shot], batch: int, reader: ThreadPoolExecutor) -> Iterator[list[Shot]]:
    """Batches of frames, each read while the one before is worked on."""
    ahead = reader.submit(list, islice(shots, batch))
    while chunk := ahead.result():
        ahead = reader.submit(list, islice(shots, batch))
        yield chunk


def eight_bit(picture: Pixels) -> NDArray[np.uint8]:
    """As a picture looks."""
    return np.asarray(picture if picture.dtype == np.uint8 else picture // 257, np.uint8)


def _read_shots(paths: Sequence[Path], rate: Fraction) -> Generator[Shot]:
    for index, path in enumerate(paths):
        picture, valid = read_image(str(path))
        yield Shot(index, path.stem, picture, index / rate, valid=valid)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts numbers inside names by their value."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d+)|(\D+)", name)]


def _refuse_equal_stems(paths: Sequence[Path]) -> None:
    owners: dict[str, Path] = {}
    for path in paths:
        if (other := owners.setdefault(path.stem, path)) != path:
            raise DataError(f"{other} and {path} would both become {path.stem}{MAP_SUFFIX}")


# ------------------------------------------------------------------------------------------- classes of frames


def frame_classifier(
    loaded: LoadedRun, *, run: Callable[[Tensor], Tensor], decide: Callable[[Tensor], Tensor] = predict_classes
) -> Classify:
    """Classifies frames in memory as `visionsft.predict` does frames in files.

    run: (B, C, H, W) float32 normalised -> logits (B, K, H, W), such as ``partial(infer, loaded)``. Frames come to it
    in the run's `size` if it has one, else in their own: this is the place where frames larger than a model's
    fixed size are sliced, by a `run` that does so.
    """
    data = loaded.data
    if not isinstance(data, CameraFrameDataModule):
        raise DataError("drives need a run that was trained on camera frames; this one was on GeoTIFF scenes")

    def classify(frames: list[Pixels]) -> list[NDArray[np.uint8]]:
        images = [_normalise(frame, data) for frame in frames]
        maps: dict[int, NDArray[np.uint8]] = {}
        for shape in dict.fromkeys(image.shape for image in images):
            alike = [index for index, image in enumerate(images) if image.shape == shape]
            logits = run(torch.stack([images[index] for index in alike]))
            for index, own in zip(alike, logits.split(1), strict=True):
                maps[index] = classes_at(own, (frames[index].shape[0], frames[index].shape[1]), decide)
        return [maps[index] for index in range(len(frames))]

    return classify


def _normalise(frame: Pixels, data: CameraFrameDataModule) -> Tensor:
    """(H, W, 3) -> (3, h, w) float32, as `CameraFrameDataModule.prediction_dataset` does."""
    if frame.dtype != data.dtype:
        raise DataError(f"the frames are {frame.dtype}, and the run was trained on frames of {data.dtype}")
    valid = np.ones(frame.shape[:2], np.bool_)
    if data.size is not None:
        frame, _, valid = resize_sample(frame, np.zeros(valid.shape, np.uint8), valid, size=data.size)
    return torch.from_numpy(data.normalisation(frame.transpose(2, 0, 1), valid))


# ------------------------------------------------------------------------------------------- writing videos


class OverlayVideo:
    """An H.264 video in MP4 (yuv420p, BT.709) that has its name only once it is whole; a context manager."""

    def __init__(
        self, target: str | Path, *, size: tuple[int, int], rate: Fraction, tick: Fraction | None = None
    ) -> None:
        """size: (height, width); where one is odd, the last row or column is repeated, since colours are stored
        for 2 x 2 pixels. rate: frames a second. tick: seconds of which the frames' times are multiples;
        default: 1 / rate.
        """
        self.target = Path(target)
        self.size = size
        self.rate = rate
        self.tick = 1 / rate if tick is None else tick
        self._count = 0

    def __enter__(self) -> Self:
        av = import_av()
        with ExitStack() as stack:
            path = stack.enter_context(atomic_path(self.target))
            self._file = stack.enter_context(
                av.open(str(path), "w", options={"movflags": "+faststart"})  # plays before it is all loaded
            )
            self._stream = self._add_stream(av)
            self._stack = stack.pop_all()
        return self

    def _add_stream(self, av: ModuleType) -> Any:
        try:
            stream = self._file.add_stream(_H264, rate=self.rate, options=_QUALITY)
        except av.codec.codec.UnknownCodecError as error:
            raise ConfigError("the FFmpeg of this PyAV can't write H.264; PyAV's wheels can") from error
        stream.height, stream.width = (side + side % 2 for side in self.size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = self.tick
        stream.time_base = self.tick
        codec = stream.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range = 1, 1, 1, 1
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if not self._count:
                raise DataError(f"{self.target}: a video needs at least one frame")
            self._file.mux(self._stream.encode(None))

    def add(self, picture: NDArray[np.uint8], *, time: Fraction | None = None) -> None:
        """picture: (H, W, 3) red green blue, scaled if it isn't of the video's size. time: seconds from the
        first frame, always growing; default: by the frame rate."""
        av = import_av()
        height, width = self.size
        if picture.shape[:2] != self.size:
            picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", src_color_range="JPEG"
        )
        frame.time_base = self.tick
        frame.pts = round((self._count / self.rate if time is None else time) / self.tick)
        frame.duration = max(1, round(1 / self.rate / self.tick))
        self._file.mux(self._stream.encode(frame))
        self._count += 1
