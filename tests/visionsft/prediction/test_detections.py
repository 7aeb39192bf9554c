"""Detections: from a run and a file to the file of its objects; frames alone, in batches and sliced alike."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from torch import Tensor, nn

from backbones import create_backbone
from datamodules import (
    CameraDetectionDataModule,
    CameraFrameDataModule,
    ClassSpec,
    DataError,
    GeoTiffDataModule,
    Normalisation,
)
from visionsft.errors import ConfigError, RunError
from visionsft.evaluation.operating import AppliedPoint
from visionsft.models import create_detector
from visionsft.models.detections import Detections
from visionsft.prediction import detections
from visionsft.prediction.detections import (
    DetectionOptions,
    FrameDetectionPredictor,
    RunDetector,
    SceneDetectionPredictor,
    detection_predictor,
    draw_objects,
)
from visionsft.prediction.slicing import SceneDetections
from visionsft.prediction.stills import FrameOptions
from visionsft.training.loading import LoadedRun

CLASSES = [ClassSpec("dim", (0,)), ClassSpec("bright", (1,))]


class Squares(nn.Module):
    """Finds bright patches of the first band: above 150 'bright', above 50 'dim'."""

    def __init__(self, *, limit: int | None = None) -> None:
        super().__init__()
        self.backbone = SimpleNamespace(
            strides=(4, 8), geometry=SimpleNamespace(size=limit and (limit, limit))
        )
        self.weight = nn.Parameter(torch.ones(1))
        self.shapes: list[tuple[int, ...]] = []

    def detect(self, image: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
        self.shapes.append(tuple(image.shape))
        return [self._look(each[0, :h, :w].numpy()) for each, (h, w) in zip(image, sizes, strict=True)]

    def _look(self, image: np.ndarray) -> Detections:
        import cv2

        count, numbers, stats, _ = cv2.connectedComponentsWithStats((image > 50).astype(np.uint8))
        if count == 1:
            return Detections.none()
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in stats[1:].tolist()]).float()
        light = torch.tensor([float(image[numbers == index].mean()) for index in range(1, count)])
        found = Detections(boxes, light / 255, (light > 150).long())
        return found.take(found.scores.argsort(descending=True))


def loaded(folder: Path, kind: str, **options: Any) -> Any:
    data: Any
    if kind == "geotiff":
        data = GeoTiffDataModule(folder, classes=CLASSES, normalise="data")
    else:
        data = CameraFrameDataModule(
            folder, classes=CLASSES, images="*.png", labels="{name}.png", normalise="data"
        )
    data.bands, data.dtype = ("red", "green", "blue"), np.dtype(np.uint8)
    data.normalisation = Normalisation((0.0,) * 3, (1.0,) * 3)
    data._check_inputs = lambda *_: None  # its values are those of no training
    model = Squares(**options)
    return SimpleNamespace(
        model=model,
        folded=model,
        data=data,
        precision=None,
        channels_last=False,
        tiles={"tile": None, "overlap": None},
        views={"scales": (1.0,), "symmetry": "none"},
        merge="nms",
    )


def draw(height: int, width: int) -> np.ndarray:
    """(H, W, 3): a bright square across 64 and a dim one."""
    picture = np.full((height, width, 3), 10, np.uint8)
    picture[20:40, 50:80] = 200
    picture[45:52, 4:12] = 100
    return picture


BOXES = [("bright", (50, 20, 80, 40)), ("dim", (4, 45, 12, 52))]


def write_scene(
    path: Path, *, crs: str | None = "EPSG:32633", names: tuple[str, ...] = ("red", "green", "blue")
) -> Path:
    picture = draw(60, 100)
    place = {} if crs is None else {"crs": crs, "transform": Affine(10, 0, 5e5, 0, -10, 5e6)}
    with rasterio.open(
        path, "w", driver="GTiff", height=60, width=100, count=3, dtype="uint8", **place
    ) as file:
        file.write(picture.transpose(2, 0, 1))
        for index, name in enumerate(names, 1):
            file.set_band_description(index, name)
    return path


def read(path: Path) -> list[tuple[str, tuple[float, ...]]]:
    meta, _, _, values = pyogrio.raw.read(path)
    columns = dict(zip(meta["fields"].tolist(), values, strict=True))
    boxes = zip(*(columns[side].tolist() for side in ("x1", "y1", "x2", "y2")), strict=True)
    return sorted(zip(columns["class"].tolist(), boxes, strict=True))


@pytest.mark.parametrize("tile", [None, 64])
def test_a_scene_becomes_a_layer(tmp_path: Path, tile: int | None) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    predictor = detection_predictor(loaded(tmp_path, "geotiff"), DetectionOptions(tile=tile))
    assert isinstance(predictor, SceneDetectionPredictor)
    targets = predictor.targets(str(scene), tmp_path / "out")
    assert targets == {"objects": tmp_path / "out/scene.gpkg"}
    assert predictor.predict(str(scene), targets, overwrite=False) == "2 objects"
    assert read(targets["objects"]) == BOXES
    assert os.listdir(tmp_path / "out") == ["scene.gpkg"]


def test_a_scene_without_crs_is_said(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", crs=None)
    predictor = SceneDetectionPredictor(loaded(tmp_path, "geotiff"))
    said = predictor.predict(str(scene), predictor.targets(str(scene), tmp_path), overwrite=True)
    assert said == "2 objects; has no CRS: its layer is in pixels"
    predictor = SceneDetectionPredictor(loaded(tmp_path, "geotiff"), DetectionOptions(format=".geojson"))
    with pytest.raises(DataError, match="no CRS"):
        predictor.predict(str(scene), predictor.targets(str(scene), tmp_path), overwrite=True)


def test_the_score_decides_what_is_written(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    predictor = SceneDetectionPredictor(loaded(tmp_path, "geotiff"), DetectionOptions(score=0.5))
    targets = predictor.targets(str(scene), tmp_path)
    predictor.predict(str(scene), targets, overwrite=True)
    assert read(targets["objects"]) == BOXES[:1]


@pytest.mark.parametrize("kind", ["geotiff", "camera"])
def test_each_class_has_its_score_at_the_operating_point(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "in.tif" if kind == "geotiff" else tmp_path / "in.png"
    image = write_scene(place) if kind == "geotiff" else write_frame(place)
    found = []
    for thresholds in ((), ((1, 0.9),), ((0, 0.5),), ((0, 0.2), (1, 0.5))):  # dim: 0.39, bright: 0.78
        point = AppliedPoint(thresholds, ("dim", "bright"), "r", 1.0, "0")
        predictor = detection_predictor(loaded(tmp_path, kind), DetectionOptions(score=0.3), point=point)
        targets = predictor.targets(str(image), tmp_path / "out")
        predictor.predict(str(image), targets, overwrite=True)
        rows = read(targets["objects"]) if kind == "geotiff" else read_frame(targets["objects"])
        found.append([name for name, _ in rows])
    assert found == [["bright", "dim"], ["dim"], ["bright"], ["bright", "dim"]]


@pytest.mark.parametrize("spoil", ["missing band", "cut off", "no raster"])
def test_bad_scenes_leave_nothing(tmp_path: Path, spoil: str) -> None:
    scene = tmp_path / "scene.tif"
    if spoil == "missing band":
        write_scene(scene, names=("red", "green", "nir"))
    elif spoil == "cut off":
        write_scene(scene)
        scene.write_bytes(scene.read_bytes()[:9000])
    else:
        scene.write_text("nothing")
    predictor = SceneDetectionPredictor(loaded(tmp_path, "geotiff"))
    with pytest.raises(DataError, match=r"scene\.tif"):
        predictor.predict(str(scene), predictor.targets(str(scene), tmp_path / "out"), overwrite=True)
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_a_model_of_one_size(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    run = loaded(tmp_path, "geotiff", limit=32)
    predictor = SceneDetectionPredictor(run)
    targets = predictor.targets(str(scene), tmp_path)
    predictor.predict(str(scene), targets, overwrite=True)
    assert read(targets["objects"]) == BOXES
    assert max(max(shape[2:]) for shape in run.model.shapes) <= 32
    predictor = SceneDetectionPredictor(run, DetectionOptions(tile=64))
    with pytest.raises(ConfigError, match="inputs up to 32 x 32"):
        predictor.predict(str(scene), targets, overwrite=True)


def test_views_are_merged_and_tiles_are_smaller_for_larger_ones(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    run = loaded(tmp_path, "geotiff", limit=64)
    run.views = {"scales": (1.0, 2.0), "symmetry": "d4"}
    predictor = SceneDetectionPredictor(run)
    targets = predictor.targets(str(scene), tmp_path)
    predictor.predict(str(scene), targets, overwrite=True)
    np.testing.assert_allclose([box for _, box in read(targets["objects"])], [box for _, box in BOXES], atol=1)
    assert max(max(shape[2:]) for shape in run.model.shapes) == 64
    assert len({shape[2:] for shape in run.model.shapes}) > 1


def test_a_model_that_is_not_a_number_is_refused() -> None:
    model = create_detector(create_backbone("test_resnet", weights="none"), 2).eval().requires_grad_(False)
    next(model.parameters())[0] = torch.nan
    settings: Any = {"config": None, "run": None, "precision": None, "channels_last": False}
    with pytest.raises(RunError, match="not a number"):
        RunDetector(LoadedRun(model=model, **settings))


def test_overlays_of_scenes_are_refused(tmp_path: Path) -> None:
    predictor = SceneDetectionPredictor(loaded(tmp_path, "geotiff"), overlay=True)
    with pytest.raises(ConfigError, match="overlay"):
        predictor.targets("scene.tif", tmp_path)


# --------------------------------------------------------------------------------------------------- frames


def write_frame(path: Path, height: int = 60, width: int = 100) -> Path:
    Image.fromarray(draw(height, width)).save(path)
    return path


def read_frame(path: Path) -> list[tuple[str, tuple[float, ...]]]:
    whole = json.loads(path.read_text())
    names = {each["id"]: each["name"] for each in whole["categories"]}
    boxes = [each["bbox"] for each in whole["annotations"]]
    return sorted(
        (names[each["category_id"]], (x, y, x + w, y + h))
        for each, (x, y, w, h) in zip(whole["annotations"], boxes, strict=True)
    )


@pytest.mark.parametrize("tile", [None, 32])
def test_a_frame_becomes_coco(tmp_path: Path, tile: int | None) -> None:
    frame = write_frame(tmp_path / "frame.png")
    run = loaded(tmp_path, "camera")
    predictor = detection_predictor(run, DetectionOptions(tile=tile), overlay=True)
    assert isinstance(predictor, FrameDetectionPredictor)
    targets = predictor.targets(str(frame), tmp_path / "out")
    assert predictor.predict(str(frame), targets, overwrite=False) == "2 objects"
    assert read_frame(targets["objects"]) == BOXES
    assert json.loads(targets["objects"].read_text())["images"] == [
        {"id": 1, "file_name": "frame.png", "height": 60, "width": 100}
    ]
    with Image.open(targets["overlay"]) as picture:
        assert picture.size == (100, 60)
    assert (max(run.model.shapes[0][2:]) <= 32) == (tile is not None)


def test_frames_of_any_size_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detections, "SIDE", 160)
    sizes = [(60, 100), (70, 90), (200, 300), (60, 90), (64, 100), (60, 81), (60, 82), (60, 83)]
    frames = [write_frame(tmp_path / f"{number}.png", *size) for number, size in enumerate(sizes)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    run = loaded(tmp_path, "camera")
    predictor = FrameDetectionPredictor(run)
    jobs = {
        str(path): predictor.targets(str(path), tmp_path / "out")
        for path in [*frames, tmp_path / "broken.png"]
    }
    outcomes = dict(predictor.predict_frames(jobs, overwrite=False))
    assert list(outcomes) == list(jobs)
    assert isinstance(outcomes.pop(str(tmp_path / "broken.png")), DataError)
    assert set(outcomes.values()) == {"2 objects"}
    for frame in frames:
        assert read_frame(jobs[str(frame)]["objects"]) == BOXES
    batches = [shape[0] for shape in run.model.shapes]
    assert batches[0] == 2
    assert 4 in batches


def test_a_resized_frame_gives_boxes_of_its_own_size(tmp_path: Path) -> None:
    frame = write_frame(tmp_path / "frame.png")
    run = loaded(tmp_path, "camera")
    run.data.size = (120, 300)
    predictor = FrameDetectionPredictor(run)
    targets = predictor.targets(str(frame), tmp_path)
    predictor.predict(str(frame), targets, overwrite=True)
    found = read_frame(targets["objects"])
    assert [name for name, _ in found] == ["bright", "dim"]
    np.testing.assert_allclose([box for _, box in found], [box for _, box in BOXES], atol=1)


def test_a_broken_frame_is_named(tmp_path: Path) -> None:
    (tmp_path / "frame.png").write_bytes(b"no picture")
    predictor = FrameDetectionPredictor(loaded(tmp_path, "camera"))
    with pytest.raises(DataError, match=r"frame\.png"):
        predictor.predict(
            str(tmp_path / "frame.png"), predictor.targets("frame.png", tmp_path), overwrite=True
        )


def test_boxes_are_drawn_in_their_colours(tmp_path: Path) -> None:
    classes = loaded(tmp_path, "camera").data.classes
    found = SceneDetections(torch.tensor([[20.0, 30, 60, 70]]), torch.ones(1), torch.tensor([1]))
    picture = np.zeros((100, 100, 3), np.uint8)
    drawn = draw_objects(picture, found, classes)
    assert not picture.any()
    np.testing.assert_allclose(drawn[50, [20, 60]], classes.colours[[1, 1]], atol=30)  # smoothed
    assert not drawn[45:55, 30:50].any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": ".gpk"}, "did you mean '.gpkg'"),
        ({"merge": "mean"}, "nms, wbf"),
        ({"score": -1}, "score is -1"),
        ({"iou": 2}, "iou is 2"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DetectionOptions(**options)


# --------------------------------------------------------------------------------------------------- drives


def loaded_drive(folder: Path, *, longest: int | None = None) -> Any:
    run = loaded(folder, "camera")
    data = CameraDetectionDataModule(folder, classes=CLASSES, layout="coco", longest=longest)
    data.bands, data.dtype = run.data.bands, run.data.dtype
    data.normalisation = run.data.normalisation
    run.data = data
    return run


def moving(count: int) -> list[np.ndarray]:
    """A bright square that moves four pixels a frame."""
    pictures = np.full((count, 60, 100, 3), 10, np.uint8)
    for index, picture in enumerate(pictures):
        picture[20:40, 4 * index : 4 * index + 16] = 200
    return list(pictures)


def write_drive(path: Path, pictures: list[np.ndarray], *, rate: int = 5) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "bgr0"  # without loss
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("longest", [None, 200])
@pytest.mark.parametrize("every", [1, 3])
def test_a_video_becomes_coco_and_a_video(tmp_path: Path, every: int, longest: int | None) -> None:
    video = write_drive(tmp_path / "drive.mkv", moving(20))
    run = loaded_drive(tmp_path, longest=longest)
    predictor = detection_predictor(run, frames=FrameOptions(every=every))
    targets = predictor.targets(str(video), tmp_path / "out")
    assert sorted(path.name for path in targets.values()) == ["drive.json", "drive_overlay.mp4"]
    shown = range(0, 20, every)
    said = predictor.predict(str(video), targets, overwrite=False)
    assert said == f"{len(shown)} objects in {len(shown)} frames"
    whole = json.loads(targets["objects"].read_text())
    assert whole["images"] == [
        {"id": i, "file_name": f"{i:06d}", "height": 60, "width": 100, "time": i / 5} for i in shown
    ]
    assert [each["image_id"] for each in whole["annotations"]] == list(shown)
    assert [each["id"] for each in whole["annotations"]] == list(range(1, len(shown) + 1))
    np.testing.assert_allclose(
        [each["bbox"] for each in whole["annotations"]], [(4 * i, 20, 16, 20) for i in shown], atol=1
    )
    with av.open(str(targets["overlay"])) as file:
        (stream,) = file.streams
        assert (stream.average_rate, stream.frames) == (Fraction(5, every), len(shown))
        first = next(file.decode(video=0)).to_ndarray(format="rgb24")
    np.testing.assert_allclose(first[30, 8], (200, 200, 200), atol=20)
    assert sorted(os.listdir(tmp_path / "out")) == ["drive.json", "drive_overlay.mp4"]


def test_a_folder_is_a_drive_if_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, picture in enumerate(moving(11)):
        Image.fromarray(picture).save(folder / f"f{index}.png")
    predictor = detection_predictor(loaded_drive(tmp_path), frames=FrameOptions(drives=True, rate=4))
    targets = predictor.targets(str(folder), tmp_path / "out")
    assert predictor.predict(str(folder), targets, overwrite=False) == "11 objects in 11 frames"
    whole = json.loads(targets["objects"].read_text())
    assert [each["file_name"] for each in whole["images"]] == [f"f{i}" for i in range(11)]  # f10 is the last
    assert [each["time"] for each in whole["images"]] == [i / 4 for i in range(11)]
    assert [each["bbox"][0] for each in whole["annotations"]] == [4 * i for i in range(11)]


def test_frames_of_drives_are_held_in_batches(tmp_path: Path) -> None:
    video = write_drive(tmp_path / "drive.mkv", moving(20))
    run = loaded_drive(tmp_path)
    predictor = detection_predictor(run)
    predictor.predict(str(video), predictor.targets(str(video), tmp_path), overwrite=True)
    assert [shape[0] for shape in run.model.shapes] == [4] * 5


def test_a_video_that_is_cut_off_leaves_nothing(tmp_path: Path) -> None:
    video = tmp_path / "drive.mkv"
    video.write_bytes(b"no video")
    predictor = detection_predictor(loaded_drive(tmp_path))
    with pytest.raises(DataError, match=r"drive\.mkv: not a video"):
        predictor.predict(str(video), predictor.targets(str(video), tmp_path / "out"), overwrite=False)
    whole = write_drive(tmp_path / "whole.avi", moving(20)).read_bytes()
    video = tmp_path / "drive.avi"
    video.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"drive\.avi"):
        predictor.predict(str(video), predictor.targets(str(video), tmp_path / "out"), overwrite=False)
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_frames_of_another_number_type_are_refused(tmp_path: Path) -> None:
    run = loaded_drive(tmp_path)
    run.data.dtype = np.dtype(np.uint16)
    predictor = detection_predictor(run)
    video = write_drive(tmp_path / "drive.mkv", moving(2))
    with pytest.raises(DataError, match="frames are uint8, and the run was trained on frames of uint16"):
        predictor.predict(str(video), predictor.targets(str(video), tmp_path / "out"), overwrite=False)
