"""Videos: any frame by its number is the one that decoding them all gives, and masks named by numbers."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from datamodules import videos
from datamodules.camera import CameraFrameDataModule
from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.frames import read_image
from datamodules.layouts import video
from datamodules.sampling import SampleKey
from datamodules.splits import DriveSplit
from datamodules.videos import VideoFrames, frame_path, read_video, split_frame_path

SHAPE = (32, 48)
COUNT = 40


def write_video(
    path: Path,
    *,
    codec: str = "libx264",
    keys: int = 12,
    b_frames: int = 3,
    first: int = 0,
    count: int = COUNT,
) -> Path:
    """Plain grey frames, each lighter than the one before by more than the codec's error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        # x264 would take each of these frames for a new scene, and use no B-frames
        options = {"bf": str(b_frames), "b_strategy": "0", "sc_threshold": "0"}
        stream = file.add_stream(codec, rate=Fraction(25), options=options)
        stream.height, stream.width, stream.pix_fmt = *SHAPE, "yuv420p"
        stream.gop_size, stream.max_b_frames, stream.bit_rate = keys, b_frames, 2_000_000
        for index in range(count):
            grey = np.full((*SHAPE, 3), 4 + 6 * (first + index), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def number(picture: np.ndarray) -> int:
    return round((float(picture.mean()) - 4) / 6)


ORDERS: dict[str, Sequence[int]] = {
    "rising": range(COUNT),
    "falling": range(COUNT - 1, -1, -1),
    "random": np.random.default_rng(0).permutation(COUNT).tolist(),
    "twice": [7, 7, 8, 30, 30, 7],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "keys"), [("a.mp4", 12), ("a.mp4", 250), ("a.mkv", 5), ("a.ts", 12)])
def test_a_frame_by_its_number_is_that_of_decoding_all(tmp_path, name, keys, order):
    path = str(write_video(tmp_path / name, keys=keys))
    with av.open(path) as file:
        kinds = {int(frame.pict_type) for frame in file.decode(video=0)}
    assert 3 in kinds  # B-frames
    every = [frame.picture for frame in read_video(path)]
    frames = VideoFrames()
    assert frames.count(path) == COUNT
    for index in ORDERS[order]:
        picture = frames.read(path, index)
        assert number(picture) == index
        np.testing.assert_array_equal(picture, every[index])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times of the frames that are decoded from now on."""
    seen: list[int] = []
    original = videos._decode

    def decode(*given: object) -> Iterator[av.VideoFrame]:
        for frame in original(*given):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr(videos, "_decode", decode)
    return seen


def test_rising_numbers_decode_no_frame_twice_and_others_only_from_the_key_before(tmp_path, decoded):
    path = str(write_video(tmp_path / "a.mp4", keys=10, b_frames=0))
    frames = VideoFrames()
    for index in range(0, COUNT, 3):
        frames.read(path, index)
    assert len(decoded) == len(set(decoded)) <= COUNT
    decoded.clear()
    assert number(frames.read(path, 32)) == 32
    assert len(decoded) <= 3


def test_few_videos_are_open_and_they_travel_without(tmp_path):
    paths = [str(write_video(tmp_path / f"{k}.mp4", first=k, count=10)) for k in range(3)]
    frames = VideoFrames(limit=2)
    for index in range(3):
        assert [number(frames.read(path, index)) for path in paths] == [index, index + 1, index + 2]
    assert len(frames._open) == 2
    again = pickle.loads(pickle.dumps(frames))
    assert number(again.read(paths[0], 4)) == 4


def test_a_replaced_video_is_opened_again(tmp_path):
    path = write_video(tmp_path / "a.mp4", count=10)
    frames = VideoFrames()
    assert number(frames.read(str(path), 3)) == 3
    other = write_video(tmp_path / "b.mp4", first=20, count=12)
    os.replace(other, path)
    assert number(frames.read(str(path), 3)) == 23
    assert frames.count(str(path)) == 12


def test_numbers_and_files_that_are_not_there(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", count=10))
    with pytest.raises(DataError, match=r"a\.mp4: has no frame 10; it has 10, counted from 0"):
        VideoFrames().read(path, 10)
    with pytest.raises(DataError, match=r"b\.mp4: no such file"):
        VideoFrames().read(str(tmp_path / "b.mp4"), 0)
    (tmp_path / "c.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"c\.mp4: not a video"):
        VideoFrames().read(str(tmp_path / "c.mp4"), 0)
    data = Path(path).read_bytes()
    (tmp_path / "d.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"d\.mp4: "):
        VideoFrames().read(str(tmp_path / "d.mp4"), 0)
    bare = str(write_video(tmp_path / "e.h264"))
    with pytest.raises(DataError, match=r"e\.h264: doesn't say when its frames are shown"):
        VideoFrames().read(bare, 0)


def test_paths_of_frames(tmp_path):
    path = write_video(tmp_path / "odd#name.mp4", count=5)
    assert split_frame_path(frame_path(path, 3)) == (str(path), 3)
    assert split_frame_path(str(path)) is None
    image, valid = read_image(frame_path(path, 3))
    assert (number(image), valid.shape, bool(valid.all())) == (3, SHAPE, True)


# ------------------------------------------------------------------------------------ as a layout

CLASSES = (ClassSpec("dark", (0,)), ClassSpec("light", (1,)))


def save_mask(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.full(SHAPE, value, np.uint8)
    mask[0] = 9
    Image.fromarray(mask).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training videos and one of val, each with masks of some frames: 1 where the frame's number is above 20."""
    for split, name, labelled in (
        ("train", "one", (0, 3, 21, 39)),
        ("train", "two", (5, 38)),
        ("val", "three", (10, 30)),
    ):
        write_video(tmp_path / f"videos/{split}/{name}.mp4")
        for frame in labelled:
            save_mask(tmp_path / f"labels/{split}/{name}/{frame:05d}.png", int(frame > 20))
    return tmp_path


def module(root: Path, **options) -> CameraFrameDataModule:
    settings = {"layout": "video", "classes": CLASSES, "ignore": (9,), "batch_size": 2, "workers": 0}
    data = CameraFrameDataModule(root, **{**settings, **options})
    data.set_normalisation((0.0,) * 3, (1.0,) * 3)
    return data


def test_labelled_frames_are_trained_and_scored(root):
    data = module(root)
    data.scan()
    assert [item.id for item in data.items["train"]] == [
        *(f"videos/train/one.mp4#{frame:06d}" for frame in (0, 3, 21, 39)),
        *(f"videos/train/two.mp4#{frame:06d}" for frame in (5, 38)),
    ]
    assert {item.group for item in data.items["train"]} == {"videos/train/one.mp4", "videos/train/two.mp4"}
    for batch in data.val_dataloader():
        for image, mask, item in zip(batch["image"], batch["mask"], batch["item"], strict=True):
            frame = int(item.id.rpartition("#")[2])
            assert number(image.numpy() * 255) == frame
            assert set(mask[1:].unique().tolist()) == {int(frame > 20)}
            assert (mask[0] == 255).all()
    dataset = data.training_dataset()
    for index in range(6):
        sample = dataset[SampleKey(0, 0, index)]
        frame = int(sample["item"].image.rpartition("=")[2])
        assert sample["mask"][5, 5] == int(frame > 20)
    assert data.statistics.class_counts.tolist() == [3 * 31 * 48] * 2


def test_workers_read_the_same_frames(root):
    alone, shared = (list(module(root, workers=workers).train_dataloader()) for workers in (0, 2))
    for one, other in zip(alone, shared, strict=True):
        assert [item.id for item in one["item"]] == [item.id for item in other["item"]]
        assert (one["image"] == other["image"]).all()


def test_a_split_by_drive_keeps_videos_whole(root):
    data = module(root, split=DriveSplit(val=0.3, test=0.3))
    data.scan()
    groups = {split: {item.group for item in items} for split, items in data.items.items()}
    assert sorted(map(len, groups.values())) == [1, 1, 1]
    assert set.union(*groups.values()) == {"one", "two", "three"}


def test_masks_without_a_frame_and_videos_without_a_mask(root):
    save_mask(root / "labels/train/one/40.png", 1)
    save_mask(root / "labels/train/four/1.png", 1)
    save_mask(root / "labels/train/one/notes.png", 1)
    write_video(root / "videos/train/five.mp4", count=3)
    listing = video.scan(root, folder="train")
    assert listing.images_without_label == [str(root / "videos/train/five.mp4")]
    assert sorted(Path(path).relative_to(root).as_posix() for path in listing.labels_without_image) == [
        "labels/train/four/1.png",
        "labels/train/one/40.png",
        "labels/train/one/notes.png",
    ]
    save_mask(root / "labels/train/one/3.png", 1)
    with pytest.raises(DataError, match="are both masks of frame 3"):
        video.scan(root, folder="train")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("labels/{name}.png", "has no {frame}"),
        ("labels/{frame}.png", "has no {name}"),
        ("labels/{frame}/{name}.png", "elsewhere than once in the file's name"),
    ],
)
def test_templates_that_can_not_be_meant(root, labels, message):
    with pytest.raises(DataError, match=re.escape(message)):
        video.scan(root, labels=labels, folder="train")


def test_two_videos_of_one_name(root):
    write_video(root / "videos/train/one.mkv")
    with pytest.raises(DataError, match="have the same name, so masks fit both"):
        video.scan(root, folder="train")


def test_a_damaged_video_is_one_error(root):
    path = root / "videos/train/two.mp4"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(DataError, match=r"two\.mp4: "):
        module(root).scan()


def test_a_frame_that_is_not_of_its_masks_size(root):
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(root / "labels/train/one/00003.png")
    with pytest.raises(DataError, match=r"the mask is 10 x 10 .*one\.mp4#frame=3 is 32 x 48"):
        module(root).scan()
