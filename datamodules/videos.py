"""Videos: their frames in order, each n-th of them, or any of them by its number.

They are read with PyAV (FFmpeg), the extra ``video``. A frame of a video has a path of its own, ``drive.mp4#frame=12``.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame as DecodedFrame
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg")
"""Of videos."""

OPEN_VIDEOS = 8
"""That a process keeps open to read frames by their numbers."""

_FINEST = 1_000_000
"""Ticks a second at most in the times told."""
_MISSING = 1.0
"""Seconds between a video's last frame and the end that its header tells, at most."""


@dataclass(frozen=True)
class VideoHeader:
    """What a video says of itself."""

    size: tuple[int, int]
    """(height, width), upright."""
    rate: Fraction
    """Frames a second, the mean if it varies."""
    tick: Fraction
    """Seconds; times of frames are multiples of it."""


@dataclass(frozen=True)
class VideoFrame:
    """A frame of a video, upright."""

    index: int
    """From 0, in the order shown."""
    time: Fraction
    """Seconds from the first frame."""
    picture: NDArray[np.uint8]
    """(H, W, 3) red green blue. More than 8 bits are rounded to 8, HDR without tone mapping; grey is made colour."""


def read_video_header(path: str | Path) -> VideoHeader:
    """Reads the first frame, too: it alone says for sure how large it is and which way up."""
    with closing(read_video(path)) as frames:
        height, width, _ = next(frames).picture.shape
    with _open_video(path) as (_, stream):
        clock = _Clock.of(stream)
        return VideoHeader((height, width), clock.rate, clock.tick)


def read_video(path: str | Path, *, every: int = 1) -> Generator[VideoFrame]:
    """The first and then each n-th frame of the first video track, turned as the file asks (phones).

    Where stretches between key frames hold no wanted frame, they are jumped over and not decoded: that needs
    `every` to be larger than their length (often 1 to 10 seconds), and a first look through all packets' times.
    A DataError names the frame and time after which a video is cut off or damaged, as far as its container
    (MP4, MOV, AVI) lets that be known: Matroska and MPEG-TS simply end earlier.
    """
    av = import_av()
    last: VideoFrame | None = None
    try:
        with _open_video(path) as (container, stream):
            clock = _Clock.of(stream)
            start: int | None = None
            for index, frame in _choose(path, container, stream, every):
                start = frame.pts if start is None else start
                time = clock.time(index, None if frame.pts is None or start is None else frame.pts - start)
                if last is not None and time <= last.time:
                    raise DataError(f"{path}: frame {index} ({float(time):.2f} s) isn't after {_place(last)}")
                last = VideoFrame(index, time, _upright(frame, path))
                yield last
    except av.FFmpegError as error:
        raise DataError(f"{path}: cut off or damaged after {_place(last)}: {error.strerror}") from error
    if last is None:
        raise DataError(f"{path}: has no frame that can be decoded")


def _place(frame: VideoFrame | None) -> str:
    return "no frame" if frame is None else f"frame {frame.index} ({float(frame.time):.2f} s)"


def import_av() -> ModuleType:
    """PyAV, or how to get it."""
    try:
        import av
    except ImportError as error:
        raise DataError("videos need PyAV: pip install 'visionsft[video]'") from error
    return av


@contextmanager
def _open_video(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    av = import_av()
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise DataError(f"{path}: not a video, or one whose index is cut off: {error.strerror}") from error
    with container:
        covers = av.stream.Disposition.attached_pic  # pictures in music files
        tracks = [track for track in container.streams.video if not track.disposition & covers]
        if not tracks:
            found = ", ".join(sorted({track.type for track in container.streams})) or "nothing"
            raise DataError(f"{path}: has no video track; it has {found}")
        tracks[0].thread_type = "AUTO"
        yield container, tracks[0]


@dataclass(frozen=True)
class _Clock:
    """When frames are shown."""

    rate: Fraction
    unit: Fraction
    """Seconds; the file counts its frames' times in it."""
    constant: bool

    @classmethod
    def of(cls, stream: VideoStream) -> Self:
        """25 frames a second, as in FFmpeg, where a file says nothing."""
        timed = stream.start_time is not None and stream.time_base is not None  # not so in bare H.264 streams
        rate = (stream.average_rate if timed else None) or stream.guessed_rate or Fraction(25)
        unit = stream.time_base if timed and stream.time_base else 1 / rate
        return cls(rate, unit, constant=rate == stream.base_rate)

    @property
    def tick(self) -> Fraction:
        """The largest time of which unit and 1 / rate are multiples, as long as MP4 can count in it."""
        numerator = math.gcd(
            self.unit.numerator * self.rate.numerator, self.unit.denominator * self.rate.denominator
        )
        tick = Fraction(numerator, self.unit.denominator * self.rate.numerator)
        return tick if tick.denominator <= _FINEST else self.unit

    def time(self, index: int, pts: int | None) -> Fraction:
        """Seconds from the first frame. pts: units from there; Matroska's are rounded to milliseconds, which is
        undone where the rate is constant."""
        ideal = index / self.rate
        if pts is None or (self.constant and abs(pts * self.unit - ideal) < self.unit):
            return ideal
        return pts * self.unit


def _choose(
    path: str | Path, container: InputContainer, stream: VideoStream, every: int
) -> Iterator[tuple[int, DecodedFrame]]:
    """Each n-th frame with its index."""
    times, keys = (None, None) if every == 1 else _times(path)
    if times is None or keys is None:
        yield from islice(enumerate(_decode(container, stream)), 0, None, every)
        return
    frames = _decode(container, stream)
    for index in range(0, len(times), every):
        before = keys[keys <= times[index]]
        if index and before[-1] > times[index - every + 1]:
            frames = _jump(container, stream, times[index], before)
        frame = next((frame for frame in frames if frame.pts is None or frame.pts >= times[index]), None)
        if frame is None or frame.pts != times[index]:
            raise DataError(f"{path}: frame {index} can't be found by its time; read every frame")
        yield index, frame


def _jump(
    container: InputContainer, stream: VideoStream, time: int, keys: NDArray[np.int64]
) -> Iterator[DecodedFrame]:
    """From the last key frame before `time`; from one of those before it, or a second before the first one, where
    FFmpeg goes too far, as in MPEG-TS."""
    second = int(1 / stream.time_base) if stream.time_base else 0
    for key in [*keys[::-1].tolist(), int(keys[0]) - second]:
        container.seek(key, stream=stream)
        frames = _decode(container, stream)
        first = next(frames, None)
        if first is not None and first.pts is not None and first.pts <= time:
            return chain([first], frames)
    return iter(())


def _times(path: str | Path) -> tuple[NDArray[np.int64], NDArray[np.int64]] | tuple[None, None]:
    """When each frame, and each key frame, is shown, in the track's ticks; None if packets don't say."""
    with _open_video(path) as (container, stream):
        packets = [
            (packet.pts, packet.is_keyframe)
            for packet in _packets(container, stream)
            if packet.size and not packet.is_discard
        ]
    if not packets or any(pts is None for pts, _ in packets):
        return None, None
    keys = np.sort(np.array([pts for pts, is_key in packets if is_key], np.int64))
    times = np.sort(np.array([pts for pts, _ in packets], np.int64))
    return times[times >= keys[0]], keys


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[DecodedFrame]:
    """From where the container stands."""
    for packet in _packets(container, stream):
        yield from packet.decode()


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """From where the container stands. A file that is cut off is an error; to FFmpeg it just ends."""
    damaged = import_av().error.InvalidDataError
    end = None
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise damaged(0, "a frame's packet is incomplete")
        start = packet.dts if packet.pts is None else packet.pts
        if start is not None:
            end = max(end or 0, start + (packet.duration or 0))
        yield packet
    if end is not None and stream.duration and stream.start_time is not None and stream.time_base:
        missing = float((stream.start_time + stream.duration - end) * stream.time_base)
        if missing > _MISSING:
            raise damaged(0, f"its last {missing:.2f} s are missing")


def _upright(frame: DecodedFrame, path: str | Path) -> NDArray[np.uint8]:
    """The picture, turned and mirrored by the file's display matrix (ISO 14496-12; (column, row) times it)."""
    picture = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    (a, b), (c, d) = np.sign(np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2]).tolist()
    if (a and b) or (c and d) or not (a or b) or not (c or d):
        raise DataError(
            f"{path}: is to be shown turned by {frame.rotation} degrees; only quarter turns are known"
        )
    if b:
        return np.ascontiguousarray(picture.transpose(1, 0, 2)[::b, ::c])
    return np.ascontiguousarray(picture[::d, ::a])


# ------------------------------------------------------------------------------------------- frames by number


_FRAME = re.compile(r"(?P<video>.+)#frame=(?P<index>\d+)", re.DOTALL)


def frame_path(video: str | Path, index: int) -> str:
    """The path of a video's frame, which `split_frame_path` takes apart again."""
    return f"{video}#frame={index}"


def split_frame_path(path: str) -> tuple[str, int] | None:
    """(video, frame) of such a path; None: it is that of a file."""
    found = _FRAME.fullmatch(path)
    return None if found is None else (found["video"], int(found["index"]))


class VideoFrames:
    """Frames of videos by their numbers, in any order; the videos last used are kept open, up to `limit`.

    A frame is sought from the key frame before it, unless the last one read lies between: rising numbers decode no
    frame twice. Several threads may ask; a forked process opens its videos afresh.
    """

    def __init__(self, limit: int = OPEN_VIDEOS) -> None:
        self.limit = limit
        self._start()

    def __reduce__(self) -> tuple[type[VideoFrames], tuple[int]]:
        return VideoFrames, (self.limit,)

    def read(self, path: str, index: int) -> NDArray[np.uint8]:
        """(H, W, 3) red green blue of a frame, counted from 0 in the order shown; upright."""
        if self._process != os.getpid():
            self._start()
        with self._lock:
            try:
                return _upright(self._video(path).frame(index), path)
            except import_av().FFmpegError as error:
                raise DataError(f"{path}: frame {index} can't be decoded: {error.strerror}") from error

    def count(self, path: str) -> int:
        """Frames of a video."""
        if self._process != os.getpid():
            self._start()
        with self._lock:
            try:
                return len(self._video(path).times)
            except import_av().FFmpegError as error:
                raise DataError(f"{path}: cut off or damaged: {error.strerror}") from error

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Video] = OrderedDict()

    def _video(self, path: str) -> _Video:
        known = self._open.get(path)
        if known is not None and known.state != _state(path):
            self._open.pop(path).close()
        if path not in self._open:
            self._open[path] = _Video(path)
            if len(self._open) > self.limit:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]


class _Video:
    """An open video, and where in it the decoder stands."""

    def __init__(self, path: str) -> None:
        times, keys = _times(path)
        if times is None or keys is None:
            raise DataError(
                f"{path}: doesn't say when its frames are shown, so none can be found by its number"
            )
        self.path, self.times, self.keys, self.state = path, times, keys, _state(path)
        self._stack = ExitStack()
        self._container, self._stream = self._stack.enter_context(_open_video(path))
        # threads of a decoder don't outlive a fork
        self._stream.thread_type = "NONE"
        self._frames: Iterator[DecodedFrame] | None = None
        self._last: tuple[int, DecodedFrame] | None = None

    def close(self) -> None:
        self._frames = self._last = None
        self._stack.close()

    def frame(self, index: int) -> DecodedFrame:
        """The frame of this number."""
        if not 0 <= index < len(self.times):
            raise DataError(f"{self.path}: has no frame {index}; it has {len(self.times)}, counted from 0")
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        time = int(self.times[index])
        before = self.keys[self.keys <= time]
        stands = None if self._last is None else int(self.times[self._last[0]])
        frames = self._frames
        if frames is None or stands is None or stands > time or before[-1] > stands:
            frames = _jump(self._container, self._stream, time, before)
        # until it has been found, nobody may go on from here
        self._frames = self._last = None
        found = next((frame for frame in frames if frame.pts is None or frame.pts >= time), None)
        if found is None or found.pts != time:
            raise DataError(f"{self.path}: frame {index} can't be found by its time")
        self._frames, self._last = frames, (index, found)
        return found


def _state(path: str) -> tuple[int, int] | None:
    """(bytes, time) of a file that is there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


_FRAMES = VideoFrames()


def read_frame(path: str, index: int) -> NDArray[np.uint8]:
    """See `VideoFrames.read`; this process's own."""
    return _FRAMES.read(path, index)


def count_frames(path: str) -> int:
    """Of a video."""
    return _FRAMES.count(path)
