"""Drives: what is read from videos, the videos written, and that a drive is whole or not there."""

from __future__ import annotations

import errno
import gc
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datamodules import CameraFrameDataModule, Classes, ClassSpec, DataError, GeoTiffDataModule, videos
from visionsft.config import Backbone, CameraData, SegmentationConfig
from visionsft.errors import ConfigError, WriteError
from visionsft.evaluation.answers import infer
from visionsft.evaluation.pictures import overlay
from visionsft.models.inference import compute_logits
from visionsft.prediction import drives, predict
from visionsft.prediction.drives import (
    OverlayVideo,
    frame_classifier,
    predict_frames,
    predict_video,
    read_video,
    read_video_header,
)
from visionsft.runs import Run

SPECS = [
    ClassSpec(name, (i,), (90 * i, 200 - 90 * i, 60)) for i, name in enumerate(("low", "middle", "high"))
]
CLASSES = Classes(SPECS)
NTSC = Fraction(30000, 1001)
STEP = 6
"""Grey levels between one frame and the next; more than a codec's error."""

Frames = list[np.ndarray]
Maps = list[np.ndarray]


def numbered(count: int, *, size: tuple[int, int] = (32, 48)) -> Frames:
    """Plain grey pictures, each lighter than the one before."""
    return [np.full((*size, 3), 4 + STEP * i, np.uint8) for i in range(count)]


def number(picture: np.ndarray) -> int:
    return round((float(picture.mean()) - 4) / STEP)


def quarters(height: int, width: int) -> np.ndarray:
    """A picture that looks different whichever way it is turned or mirrored."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (200, 40, 40)
    picture[: height // 2, width // 2 :] = (40, 180, 60)
    picture[height // 2 :, : width // 2] = (50, 60, 190)
    return picture


def write_video(
    path: Path,
    pictures: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    rate: Fraction = Fraction(25),
    form: str = "yuv420p",
    keys: int = 12,
    times: Sequence[int] | None = None,
    tick: Fraction | None = None,
    matrix: Sequence[int] | None = None,
) -> Path:
    """keys: frames from key frame to key frame. times: of the frames, in ticks. matrix: how it is to be shown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "+faststart"} if path.suffix == ".mp4" else {}) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], form
        stream.gop_size, stream.bit_rate = keys, 2_000_000
        if tick is not None:
            stream.time_base = stream.codec_context.time_base = tick
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (index if times is None else times[index]), tick or 1 / rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def by_brightness(frames: Frames) -> Maps:
    return [np.digitize(frame.mean(2), (60, 150)).astype(np.uint8) for frame in frames]


def in_folder(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


run_video = partial(predict_video, classify=by_brightness, classes=CLASSES)
run_frames = partial(predict_frames, classify=by_brightness, classes=CLASSES)


# ------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "ffv1", "yuv420p10le"),
        ("a.mkv", "ffv1", "gray"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.ts", "libx264", "yuv420p"),
        ("a.h264", "libx264", "yuv420p"),
    ],
)
def test_frames_come_in_order_with_their_times(tmp_path: Path, name: str, codec: str, form: str) -> None:
    path = write_video(tmp_path / name, numbered(40), codec=codec, form=form, rate=NTSC)
    frames = list(read_video(path))
    assert [number(frame.picture) for frame in frames] == list(range(40))
    assert [(frame.index, frame.time) for frame in frames] == [(i, i / NTSC) for i in range(40)]
    assert frames[0].picture.shape == (32, 48, 3)
    assert frames[0].picture.dtype == np.uint8
    assert (read_video_header(path).size, read_video_header(path).rate) == ((32, 48), NTSC)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("keys", [1, 5, 40])
def test_each_nth_frame_is_the_same_as_when_all_are_read(tmp_path: Path, name: str, keys: int) -> None:
    path = write_video(tmp_path / name, numbered(40), keys=keys)
    for every in (2, 7, 20, 39, 100):
        frames = list(read_video(path, every=every))
        assert [frame.index for frame in frames] == list(range(0, 40, every))
        assert [number(frame.picture) for frame in frames] == list(range(0, 40, every))
        assert [frame.time for frame in frames] == [Fraction(i, 25) for i in range(0, 40, every)]


def test_stretches_without_a_wanted_frame_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(40), keys=5)
    decoded = []

    def decode(*given: object) -> Iterator[av.VideoFrame]:
        for frame in original(*given):
            decoded.append(frame.pts)
            yield frame

    original = videos._decode
    monkeypatch.setattr(videos, "_decode", decode)
    assert len(list(read_video(path, every=20))) == 2
    assert len(decoded) < 10


@pytest.mark.parametrize("turns", range(4))
def test_a_phones_video_is_turned_upright(tmp_path: Path, turns: int) -> None:
    one, place = 1 << 16, 1 << 30
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
    stored = quarters(32, 48)
    # a point (column, row) times the matrix: counter-clockwise, as rows are counted downwards
    path = write_video(
        tmp_path / "a.mp4", [stored], matrix=[cos * one, -sin * one, 0, sin * one, cos * one, 0, 0, 0, place]
    )
    (frame,) = read_video(path)
    upright = np.rot90(stored, turns)
    assert frame.picture.shape == upright.shape
    assert np.abs(frame.picture.astype(int) - upright).mean() < 6
    assert read_video_header(path).size == upright.shape[:2]


def test_a_mirrored_video_is_mirrored_back_and_a_slanted_one_refused(tmp_path: Path) -> None:
    one, place = 1 << 16, 1 << 30
    path = write_video(tmp_path / "a.mp4", [quarters(32, 48)], matrix=[-one, 0, 0, 0, one, 0, 0, 0, place])
    (frame,) = read_video(path)
    assert np.abs(frame.picture.astype(int) - quarters(32, 48)[:, ::-1]).mean() < 6
    slant = write_video(
        tmp_path / "b.mp4", [quarters(32, 48)], matrix=[one, one, 0, -one, one, 0, 0, 0, place]
    )
    with pytest.raises(DataError, match=r"b\.mp4: is to be shown turned by -?45 degrees"):
        next(read_video(slant))


def test_files_that_are_no_video_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    (tmp_path / "empty.mp4").touch()
    whole = write_video(tmp_path / "whole.mov", numbered(5)).read_bytes()
    (tmp_path / "index.mov").write_bytes(whole[:-300])
    write_sound(tmp_path / "sound.mp4")
    for name, message in {
        "text.mp4": "not a video",
        "empty.mp4": "not a video",
        "index.mov": "not a video, or one whose index is cut off",
        "sound.mp4": "no video track; it has audio",
        "missing.mp4": "no such file",
        ".": "no such file",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            run_video(tmp_path / name, tmp_path / "out")
        assert str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["in a frame", "between frames"])
def test_a_video_that_is_cut_off_is_named_with_the_place(tmp_path: Path, where: str) -> None:
    whole = write_video(tmp_path / "whole.mp4", numbered(40))
    with av.open(str(whole)) as file:
        ends = sorted(packet.pos + packet.size for packet in file.demux(video=0) if packet.size)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: ends[8] + (5 if where == "in a frame" else 0)])
    with pytest.raises(
        DataError, match=r"cut\.mp4: cut off or damaged after frame \d+ \(0\.\d+ s\)"
    ) as caught:
        run_video(cut, tmp_path / "out", masks=True)
    assert caught.value.exit_code == 2
    assert in_folder(tmp_path / "out") == []


def test_without_pyav_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(1))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"^videos need PyAV: pip install 'visionsft\[video\]'$"):
        run_video(path, tmp_path / "out")


# ------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("rate", [NTSC, Fraction(24000, 1001), Fraction(25), Fraction(15, 2)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_frame_rate_is_kept(tmp_path: Path, rate: Fraction, suffix: str) -> None:
    path = write_video(tmp_path / f"a{suffix}", numbered(40), rate=rate)
    (written,) = run_video(path, tmp_path / "out")
    with av.open(str(written)) as file:
        (stream,) = file.streams
        assert (stream.average_rate, stream.frames, stream.codec_context.name) == (rate, 40, "h264")
        assert (stream.pix_fmt, file.format.name.split(",")[1]) == ("yuv420p", "mp4")
        assert stream.duration * stream.time_base == 40 / rate
    (written,) = run_video(path, tmp_path / "out", every=3, overwrite=True)
    assert read_video_header(written).rate == rate / 3
    assert [frame.time for frame in read_video(written)] == [i / rate for i in range(0, 40, 3)]


def test_varying_times_are_kept(tmp_path: Path) -> None:
    gaps = np.random.default_rng(0).integers(1500, 9000, 29)
    times = [0, *np.cumsum(gaps).tolist()]
    tick = Fraction(1, 90000)
    path = write_video(tmp_path / "a.mp4", numbered(30), times=times, tick=tick)
    (written,) = run_video(path, tmp_path / "out")
    assert [frame.time for frame in read_video(written)] == [tick * time for time in times]


@pytest.mark.parametrize("size", [(36, 52), (35, 51)])
def test_the_overlay_shows_the_classes_in_their_colours(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = quarters(*size)
    (tmp_path / "in").mkdir()
    Image.fromarray(picture).save(tmp_path / "in" / "a.png")
    found = np.digitize(picture.mean(2), (60, 150)).astype(np.uint8)
    found[: size[0] // 3] = 255
    written, *_ = predict_frames(
        tmp_path / "in", tmp_path / "out", classify=lambda _: [found], classes=CLASSES
    )
    (frame,) = read_video(written)
    assert frame.picture.shape == (36, 52, 3)  # even; the last row and column are there twice
    expected = overlay(picture, found, CLASSES.colours).astype(int)
    assert np.abs(frame.picture[: size[0], : size[1]] - expected).mean() < 5
    assert np.abs(frame.picture[-1].astype(int) - frame.picture[size[0] - 1]).mean() < 5


def test_class_maps_of_a_video_are_indexed_pictures(tmp_path: Path) -> None:
    path = write_video(tmp_path / "in" / "drive.mp4", numbered(41))
    written = run_video(path, tmp_path / "out", masks=True, every=20, batch=2)
    names = ["drive_overlay.mp4", "drive/000000.png", "drive/000020.png", "drive/000040.png"]
    assert written == [tmp_path / "out" / name for name in names]
    assert in_folder(tmp_path / "out") == sorted(names)
    for index, target in zip((0, 20, 40), written[1:], strict=True):
        with Image.open(target) as picture:
            assert (picture.mode, picture.size) == ("P", (48, 32))
            assert picture.getpalette()[:9] == [channel for spec in SPECS for channel in spec.colour]
            assert np.array_equal(np.asarray(picture), by_brightness([numbered(41)[index]])[0])


def test_sound_is_dropped(tmp_path: Path) -> None:
    silent = write_video(tmp_path / "silent.mp4", numbered(5))
    sound = write_sound(tmp_path / "sound.m4a")
    both = tmp_path / "both.mkv"
    with av.open(str(silent)) as video, av.open(str(sound)) as audio, av.open(str(both), "w") as file:
        tracks = {each: file.add_stream_from_template(each.streams[0]) for each in (video, audio)}
        for source, track in tracks.items():
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = track
                    file.mux(packet)
    (written,) = run_video(both, tmp_path / "out")
    with av.open(str(written)) as file:
        assert [stream.type for stream in file.streams] == ["video"]
        assert file.streams[0].frames == 5


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    message = r"a\.mp4: a video needs at least one frame"
    with pytest.raises(DataError, match=message), OverlayVideo(tmp_path / "a.mp4", size=(32, 48), rate=NTSC):
        pass
    assert in_folder(tmp_path) == []


def test_an_ffmpeg_without_h264_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drives, "_H264", "h264_of_nobody")
    with pytest.raises(ConfigError, match=r"can't write H\.264"):
        run_video(write_video(tmp_path / "a.mp4", numbered(1)), tmp_path / "out")
    assert in_folder(tmp_path / "out") == []


# ------------------------------------------------------------------------------------------- all or nothing


def test_an_interrupted_drive_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_video(tmp_path / "drive.mp4", numbered(40))
    run_video(path, tmp_path / "out", masks=True)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in in_folder(tmp_path / "out")}
    left = iter(range(3))

    def give_up(frames: Frames) -> Maps:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return [np.zeros(frame.shape[:2], np.uint8) for frame in frames]

    with pytest.raises(KeyboardInterrupt):
        predict_video(
            path, tmp_path / "out", classify=give_up, classes=CLASSES, masks=True, overwrite=True, batch=4
        )
    after = {name: (tmp_path / "out" / name).read_bytes() for name in in_folder(tmp_path / "out")}
    assert after == before


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write_video(tmp_path / "drive.mp4", numbered(20))
    monkeypatch.setattr(drives, "write_indexed", fill)
    with pytest.raises(WriteError, match=r"can't write .*: No space left on device"):
        run_video(path, tmp_path / "out", masks=True)
    assert in_folder(tmp_path / "out") == []


def test_what_exists_stays_unless_overwritten(tmp_path: Path) -> None:
    path = write_video(tmp_path / "drive.mp4", numbered(12))
    out = tmp_path / "out"
    run_video(path, out, masks=True)
    with pytest.raises(WriteError, match=r"drive_overlay\.mp4: exists; --overwrite"):
        run_video(path, out, masks=True)
    run_video(path, out, masks=True, every=6, overwrite=True)
    assert in_folder(out) == ["drive/000000.png", "drive/000006.png", "drive_overlay.mp4"]
    for name in ("notes.txt", "frame.png"):  # a drive's own frames may be beside it, in a folder of its name
        mine = out / "drive" / name
        Image.fromarray(quarters(32, 48)).save(mine, format="PNG")
        with pytest.raises(WriteError, match=f"{name}: is no class map"):
            run_video(path, out, masks=True, overwrite=True)
        mine.unlink()


@pytest.mark.parametrize("slow", ["classify", "write"])
def test_few_frames_are_held_whatever_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """Counts every picture that is read until it is forgotten."""
    alive: set[int] = set()
    most = []

    def track(path: Path, *, every: int = 1) -> Iterator[videos.VideoFrame]:
        with closing(read_video(path, every=every)) as frames:
            for frame in frames:
                alive.add(frame.index)
                weakref.finalize(frame.picture, alive.discard, frame.index)
                most.append(len(alive))
                yield frame

    def wait(given: str) -> None:
        if slow == given:
            time.sleep(0.002)

    def classify(frames: Frames) -> Maps:
        wait("classify")
        return [np.zeros(frame.shape[:2], np.uint8) for frame in frames]

    def add(video: OverlayVideo, picture: np.ndarray, *, time: Fraction | None) -> None:
        wait("write")
        original(video, picture, time=time)

    original = OverlayVideo.add
    path = write_video(tmp_path / "long.mp4", numbered(40) * 8)
    monkeypatch.setattr(drives, "read_video", track)
    monkeypatch.setattr(OverlayVideo, "add", add)
    gc.collect()
    predict_video(path, tmp_path / "out", classify=classify, classes=CLASSES, batch=4)
    assert len(most) >= 320
    assert max(most) <= 4 * 4  # read, classified, written and just about to be forgotten


def test_batches_of_large_frames_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def classify(frames: Frames) -> Maps:
        sizes.append(len(frames))
        return by_brightness(frames)

    path = write_video(tmp_path / "drive.mp4", numbered(10))
    for pixels, expected in {1 << 24: [8, 2], 3 * 32 * 48: [3, 3, 3, 1], 10: [1] * 10}.items():
        monkeypatch.setattr(drives, "BATCH_PIXELS", pixels)
        sizes.clear()
        predict_video(path, tmp_path / "out", classify=classify, classes=CLASSES, overwrite=True)
        assert sizes == expected


# ------------------------------------------------------------------------------------------- folders of frames


def test_a_folder_of_frames_is_a_drive_in_natural_order(tmp_path: Path) -> None:
    for index, picture in enumerate(numbered(12)):
        (tmp_path / "drive").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "drive" / f"frame{index}.png")
    written = run_frames(tmp_path / "drive", tmp_path / "out", batch=5)
    assert [path.name for path in written] == ["drive_overlay.mp4", *(f"frame{i}.png" for i in range(12))]
    assert read_video_header(written[0]).rate == 10
    brightness = [frame.picture.mean() for frame in read_video(written[0])]
    assert brightness == sorted(brightness)
    assert len(brightness) == 12
    (written,) = run_frames(tmp_path / "drive", tmp_path / "out", masks=False, rate=NTSC, overwrite=True)
    assert read_video_header(written).rate == NTSC


def test_frames_of_many_kinds_are_one_drive(tmp_path: Path) -> None:
    folder = tmp_path / "drive"
    folder.mkdir()
    Image.fromarray(quarters(32, 48)).save(folder / "a.png")
    Image.fromarray(quarters(40, 64)).save(folder / "b.jpg")
    Image.fromarray(np.full((32, 48), 40_000, np.uint16)).save(folder / "c.png")
    clear = np.dstack([quarters(32, 48), np.where(np.arange(48) < 20, 0, 255)[None].repeat(32, 0)])
    Image.fromarray(clear.astype(np.uint8)).save(folder / "d.png")
    video, *maps = run_frames(folder, tmp_path / "out")
    shown = [frame.picture.astype(int) for frame in read_video(video)]
    assert [picture.shape for picture in shown] == [(32, 48, 3)] * 4
    assert [Image.open(path).size for path in maps] == [(48, 32), (64, 40), (48, 32), (48, 32)]
    assert np.abs(shown[1] - shown[0]).mean() < 8
    assert np.array_equal(np.asarray(Image.open(maps[3])) == 255, clear[..., 3] == 0)


def test_folders_that_can_not_be_one_drive_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "drive"
    folder.mkdir()
    with pytest.raises(DataError, match="no image in this folder"):
        run_frames(folder, tmp_path / "out")
    Image.fromarray(quarters(32, 48)).save(folder / "a.png")
    with pytest.raises(WriteError, match="is an input"):
        run_frames(folder, tmp_path, overwrite=True)
    Image.fromarray(quarters(32, 48)).save(folder / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png would both become a\.png"):
        run_frames(folder, tmp_path / "out")
    (folder / "a.jpg").rename(folder / "b.jpg")
    (folder / "c.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"c\.png: not a picture"):
        run_frames(folder, tmp_path / "out")
    assert in_folder(tmp_path) == ["drive/a.png", "drive/b.jpg", "drive/c.png"]


# ------------------------------------------------------------------------------------------- frame_classifier


@pytest.fixture
def make_loaded(tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """A camera run with a random convolution as model."""

    def make(size: tuple[int, int] | None) -> SimpleNamespace:
        for folder, mode in (("images", "RGB"), ("masks", "L")):
            (tmp_path / "data" / folder / "train").mkdir(parents=True, exist_ok=True)
            Image.new(mode, (30, 20)).save(tmp_path / "data" / folder / "train" / "a.png")
        data = CameraFrameDataModule(
            tmp_path / "data",
            images="images/{split}/*.png",
            labels="masks/{split}/{name}.png",
            classes=SPECS,
            size=size,
            workers=0,
        )
        data.set_normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
        data.scan()
        torch.manual_seed(0)
        views = {"scales": (1.0,), "symmetry": "none"}
        model = nn.Conv2d(3, 3, 5, padding=2).eval()
        model.backbone = SimpleNamespace(geometry=SimpleNamespace(size=None))
        logits = partial(compute_logits, model, precision=None, channels_last=False)
        return SimpleNamespace(model=model, folded=model, logits=logits, data=data, views=views)

    return make


@pytest.mark.parametrize("size", [None, (20, 30)])
def test_frames_get_the_class_maps_that_predict_writes(
    make_loaded: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int] | None,
) -> None:
    loaded = make_loaded(size)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in ((40, 63), (20, 30), (40, 63))]
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    shapes = []

    def run(image: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(image.shape))
        return infer(loaded, image)

    maps = frame_classifier(loaded, run=run)(frames)
    assert shapes == ([(2, 3, 40, 63), (1, 3, 20, 30)] if size is None else [(3, 3, 20, 30)])
    monkeypatch.setitem(
        sys.modules, "visionsft.training.loading", SimpleNamespace(load_run=lambda run, checkpoint: loaded)
    )
    config = SegmentationConfig(
        name="tiny",
        runs=tmp_path / "runs",
        data=CameraData(kind="camera", root=tmp_path),
        backbone=Backbone(name="test_resnet", weights="none"),
    )
    written = predict(Run.create(config), [tmp_path / f"{i}.png" for i in range(3)], tmp_path / "out")
    for found, path in zip(maps, written, strict=True):
        assert found.dtype == np.uint8
        assert np.array_equal(found, np.asarray(Image.open(path)))
    assert len(np.unique(maps[0])) == 3


def test_runs_and_frames_that_do_not_fit_are_refused(
    make_loaded: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    loaded = make_loaded(None)
    with pytest.raises(DataError, match="frames are uint16, and the run was trained on frames of uint8"):
        frame_classifier(loaded, run=loaded.model)([np.zeros((8, 8, 3), np.uint16)])
    loaded.data = GeoTiffDataModule(
        tmp_path, images="{split}/*.tif", labels="{split}/{name}.tif", classes=SPECS, chip=64
    )
    with pytest.raises(DataError, match="trained on camera frames"):
        frame_classifier(loaded, run=loaded.model)
