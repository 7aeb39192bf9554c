"""Predictions: class maps at their input's size and place, and what happens to inputs that can't be used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from PIL import Image
from rasterio.transform import Affine, from_origin
from torch import Tensor, nn

from datamodules import (
    CameraFrameDataModule,
    ClassSpec,
    DataError,
    GeoTiffDataModule,
    SegmentationDataModule,
)
from datamodules.batch import Window
from visionsft.config import Backbone, CameraData, SegmentationConfig
from visionsft.errors import ConfigError, RunError, WriteError
from visionsft.evaluation.operating import describe_owner
from visionsft.evaluation.temperature import Temperature, store_temperature
from visionsft.models.inference import compute_logits
from visionsft.prediction import (
    FrameOptions,
    SceneOptions,
    VectorOptions,
    predict,
    predict_all,
    predict_scene,
    scene_bands,
)
from visionsft.prediction.scenes import SceneSource, resample
from visionsft.runs import Run

VIEWS = {"scales": (1.0,), "symmetry": "none"}
REDS = (500, 1500, 2500)
"""Red values of the three classes in scenes."""
CLASSES = [ClassSpec(name, (i,), (50 * i, 255 - i, 7)) for i, name in enumerate(("low", "middle", "high"))]
BANDS = ("red", "green", "nir")
PLACE = from_origin(500_000, 5_500_000, 10, 10)


class NearestRed(nn.Module):
    """image (raw / scale, first band red) -> logits: minus the distance to each class's red."""

    num_classes = 3
    backbone = SimpleNamespace(strides=(1,), geometry=SimpleNamespace(size=None))

    def __init__(self, reds: tuple[float, ...]) -> None:
        super().__init__()
        self.reds = nn.Parameter(torch.tensor(reds))

    def forward(self, image: Tensor) -> Tensor:
        return -(image[:, :1] - self.reds[:, None, None]).abs()


def write_scene(
    path: Path,
    classes: np.ndarray,
    *,
    bands: tuple[str, ...] = BANDS,
    place: Affine = PLACE,
    crs: str | None = "EPSG:32633",
) -> Path:
    """A uint16 scene whose red follows the classes; class 255 is nodata."""
    values = {band: np.random.default_rng(0).integers(3000, 5000, classes.shape) for band in bands}
    values["red"] = np.array([*REDS, *[0] * 253], np.uint16)[classes]
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = classes.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=len(bands), dtype="uint16",
        crs=crs, transform=place, nodata=0,
    ) as file:  # fmt: skip
        for number, band in enumerate(bands, start=1):
            file.write(np.where(classes == 255, 0, values[band]).astype(np.uint16), number)
            file.set_band_description(number, band)
    return path


def draw(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)


@pytest.fixture
def make_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[SegmentationDataModule, nn.Module], Run]:
    """A run folder that loads as this data and model."""

    def make(data: SegmentationDataModule, model: nn.Module, name: str = "tiny") -> Run:
        config = SegmentationConfig(
            name=name,
            runs=tmp_path / "runs",
            data=CameraData(kind="camera", root=tmp_path),
            backbone=Backbone(name="test_resnet", weights="none"),
        )
        run = Run.create(config)
        run.checkpoints.mkdir()
        with ZipFile(run.checkpoints / "best.ckpt", "w") as file:
            file.writestr("weights", "")
        loaded = SimpleNamespace(
            model=model.eval(), folded=model, data=data, run=run, precision=None, channels_last=True, views=VIEWS,
            logits=partial(compute_logits, model, precision=None, channels_last=True),
            tiles={"tile": None, "overlap": None},
        )  # fmt: skip
        loading = SimpleNamespace(load_run=lambda run, checkpoint: loaded)
        monkeypatch.setitem(sys.modules, "visionsft.training.loading", loading)
        return run

    return make


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Training data of the GeoTIFF runs, and the place for inputs."""
    classes = draw(64, 64)
    for split in ("train", "val", "test"):
        write_scene(tmp_path / "data" / split / "images" / f"{split}.tif", classes)
        labels = tmp_path / "data" / split / "labels" / f"{split}.tif"
        labels.parent.mkdir()
        with rasterio.open(
            labels,
            "w",
            driver="GTiff",
            height=64,
            width=64,
            count=1,
            dtype="uint8",
            crs="EPSG:32633",
            transform=PLACE,
        ) as file:
            file.write(classes, 1)
    return tmp_path


def scene_run(
    make_run: Callable[..., Run], root: Path, *, resolution: float | None = None, name: str = "tiny"
) -> Run:
    data = GeoTiffDataModule(
        root / "data",
        images="{split}/images/*.tif",
        labels="{split}/labels/{name}.tif",
        classes=CLASSES,
        scale=10000,
        resolution=resolution,
        chip=64,
        workers=0,
    )
    data.set_normalisation((0.0,) * 3, (1.0,) * 3)
    data.scan()
    return make_run(data, NearestRed(tuple(red / 10000 for red in REDS)), name)


@pytest.fixture
def frame_run(make_run: Callable[..., Run], tmp_path: Path) -> Run:
    """Frames are resized to 20 x 30 for the model."""
    for split in ("train", "val", "test"):
        for kind, mode in (("images", "RGB"), ("masks", "L")):
            folder = tmp_path / "data" / kind / split
            folder.mkdir(parents=True)
            Image.new(mode, (30, 20)).save(folder / "a.png")
    data = CameraFrameDataModule(
        tmp_path / "data",
        images="images/{split}/*.png",
        labels="masks/{split}/{name}.png",
        classes=CLASSES,
        size=(20, 30),
        workers=0,
    )
    data.set_normalisation((0.5,) * 3, (0.5,) * 3)
    data.scan()
    return make_run(data, NearestRed((-0.6, 0.0, 0.6)))


def write_frame(path: Path, classes: np.ndarray) -> Path:
    """A frame whose red follows the classes."""
    picture = np.random.default_rng(0).integers(0, 256, (*classes.shape, 3)).astype(np.uint8)
    picture[..., 0] = np.array([51, 128, 204], np.uint8)[classes]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


# ------------------------------------------------------------------------------------------------ scenes


def test_a_class_map_lies_where_its_scene_does(make_run: Callable[..., Run], scenes: Path) -> None:
    classes = draw(50, 70, seed=1)
    classes[:7, :9] = 255
    image = write_scene(scenes / "in" / "chip.tif", classes)
    written = predict(scene_run(make_run, scenes), [image], scenes / "out")
    assert written == [scenes / "out" / "chip.tif"]
    assert [path.name for path in (scenes / "out").iterdir()] == ["chip.tif"]  # no sidecar, nothing temporary
    with rasterio.open(written[0]) as file:
        assert np.array_equal(file.read(1), classes)
        assert (file.crs.to_epsg(), file.transform, file.nodata) == (32633, PLACE, 255)
        assert (file.count, file.dtypes[0]) == (1, "uint8")
        assert np.array_equal(file.read_masks(1) > 0, classes != 255)
        table = file.colormap(1)
        assert [table[index][:3] for index in range(3)] == [spec.colour for spec in CLASSES]
        assert file.tags(1)["class_2"] == "high"


def test_bands_are_found_by_name(make_run: Callable[..., Run], scenes: Path) -> None:
    classes = draw(40, 40, seed=2)
    image = write_scene(scenes / "in" / "chip.tif", classes, bands=("nir", "swir", "green", "red"))
    (written,) = predict(scene_run(make_run, scenes), image, scenes / "out")
    with rasterio.open(written) as file:
        assert np.array_equal(file.read(1), classes)


def test_a_run_at_another_resolution_keeps_the_scenes_own_grid(
    make_run: Callable[..., Run], scenes: Path
) -> None:
    # blocks of 8 pixels of 10 m, seen at 20 m: the map must have no shift, only softer edges
    classes = np.kron(draw(5, 7, seed=3), np.ones((8, 8), np.uint8))[:37, :53]
    image = write_scene(scenes / "in" / "chip.tif", classes)
    (written,) = predict(scene_run(make_run, scenes, resolution=20), image, scenes / "out")
    with rasterio.open(written) as file:
        assert (file.transform, file.shape) == (PLACE, (37, 53))
        inside = np.kron(np.ones((5, 7)), np.pad(np.ones((4, 4)), 2))[:37, :53] > 0
        assert np.array_equal(file.read(1)[inside], classes[inside])


def test_a_scene_without_place_gives_a_map_without_place(make_run: Callable[..., Run], scenes: Path) -> None:
    classes = draw(20, 20)
    image = write_scene(scenes / "in" / "chip.tif", classes, place=Affine.identity(), crs=None)
    (written,) = predict(scene_run(make_run, scenes), image, scenes / "out", overlay=True)[:1]
    with rasterio.open(written) as file:
        assert np.array_equal(file.read(1), classes)
        assert file.transform == Affine.identity()
    with Image.open(scenes / "out" / "chip_overlay.jpg") as picture:
        assert picture.size == (20, 20)
    predictions = predict_all(scene_run(make_run, scenes, name="again"), image, scenes / "again")
    assert "chip.tif" in predictions.table()
    assert "has no CRS: its map is in pixels" in predictions.table()


def test_broken_scenes_are_named_and_the_others_predicted(make_run: Callable[..., Run], scenes: Path) -> None:
    folder = scenes / "in"
    good = [write_scene(folder / f"good{i}.tif", draw(32, 32, seed=i)) for i in range(2)]
    write_scene(folder / "few.tif", draw(32, 32), bands=("red", "green"))
    data = write_scene(folder / "long.tif", draw(64, 64)).read_bytes()
    (folder / "cut.tif").write_bytes(data[: len(data) // 2])
    (folder / "long.tif").unlink()
    (folder / "text.tif").write_text("not a picture")
    with pytest.raises(DataError) as caught:
        predict(scene_run(make_run, scenes), folder, scenes / "out")
    message = str(caught.value)
    assert message.startswith("3 of 5 inputs can't be predicted (the other 2 are in ")
    assert "few.tif: no band 'nir'; it has red, green" in message
    assert "cut.tif" in message
    assert "text.tif" in message
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in (scenes / "out").iterdir()) == [path.name for path in good]


def test_values_far_from_those_of_training_are_refused(make_run: Callable[..., Run], scenes: Path) -> None:
    image = write_scene(scenes / "in" / "chip.tif", draw(32, 32))
    run = scene_run(make_run, scenes)
    data = sys.modules["visionsft.training.loading"].load_run(run, "best").data
    data.scale = 1.0  # reflectance 0..10000 taken for 0..1
    data.set_normalisation((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(DataError, match="scale"):
        predict(run, image, scenes / "out")
    assert not (scenes / "out").exists()


def test_a_scene_of_many_tiles_is_the_scene_of_one(make_run: Callable[..., Run], scenes: Path) -> None:
    classes = draw(150, 90, seed=4)
    classes[100:, :40] = 255
    image = write_scene(scenes / "in" / "scene.tif", classes)
    (written,) = predict(
        scene_run(make_run, scenes), image, scenes / "out", scenes=SceneOptions(tile=32, overlap=9)
    )
    with rasterio.open(written) as file:
        assert np.array_equal(file.read(1), classes)


@pytest.mark.parametrize("shape", [(1, 200), (1, 1), (200, 1)])
def test_a_scene_of_one_row(make_run: Callable[..., Run], scenes: Path, shape: tuple[int, int]) -> None:
    classes = draw(*shape)
    image = write_scene(scenes / "in" / "scene.tif", classes)
    (written,) = predict(
        scene_run(make_run, scenes), image, scenes / "out", scenes=SceneOptions(tile=32, overlap=4)
    )
    with rasterio.open(written) as file:
        assert np.array_equal(file.read(1), classes)


def test_many_tiles_at_another_resolution(make_run: Callable[..., Run], scenes: Path) -> None:
    classes = np.kron(draw(12, 9, seed=3), np.ones((16, 16), np.uint8))
    image = write_scene(scenes / "in" / "scene.tif", classes)
    (written,) = predict(
        scene_run(make_run, scenes, resolution=20),
        image,
        scenes / "out",
        scenes=SceneOptions(tile=32, overlap=8),
    )
    with rasterio.open(written) as file:
        inside = np.kron(np.ones((12, 9)), np.pad(np.ones((10, 10)), 3)) > 0
        assert np.array_equal(file.read(1)[inside], classes[inside])


def test_one_scene_and_its_bands_in_python(write_run: Callable[..., Run], tmp_path: Path) -> None:
    run = write_run(tmp_path)
    image = write_scene(tmp_path / "in" / "a.tif", draw(150, 40))
    options = SceneOptions(tile=64, overlap=16)
    files = predict_scene(run, image, tmp_path / "out", options=options)
    assert files == {"classes": tmp_path / "out" / "a.tif"}
    bands = list(scene_bands(run.path, image, options=options))
    assert [band.row for band in bands] == [0, 32, 64, 96]  # the overlap is rounded up to the model's stride
    with rasterio.open(files["classes"]) as file:
        assert np.array_equal(file.read(1), np.concatenate([band.classes for band in bands]))


def test_the_fitted_temperature_softens_probabilities(write_run: Callable[..., Run], tmp_path: Path) -> None:
    run = write_run(tmp_path)
    image = write_scene(tmp_path / "in" / "a.tif", draw(40, 40))
    options = SceneOptions(("confidence",))
    with pytest.warns(UserWarning, match="calibrate"):
        (plain,) = scene_bands(run, image, options=options)
    store_temperature(run, "best", Temperature(5.0, {"split": "val"}, {}))
    (soft,) = scene_bands(run, image, options=options)
    assert np.array_equal(soft.classes, plain.classes)
    assert soft.maps["confidence"].mean() < plain.maps["confidence"].mean()


def choose(run: Run, *thresholds: tuple[str, float]) -> None:
    """Keep an operating point."""
    rows = [{"class": name, "threshold": value} for name, value in thresholds]
    owner = describe_owner(run, "best")
    run.write_json("thresholds.json", {"rule": "r", "temperature": 2.0, "thresholds": rows, **owner})


def test_maps_are_decided_by_the_operating_point(write_run: Callable[..., Run], tmp_path: Path) -> None:
    run = write_run(tmp_path)
    image = write_scene(tmp_path / "in" / "a.tif", draw(70, 40))
    with pytest.raises(RunError, match="has no operating point"):
        predict(run, [image], tmp_path / "out", operating_point=True)
    choose(run, ("middle", 0.34), ("high", 0.3))
    store_temperature(run, "best", Temperature(2.0, {"split": "val"}, {}))
    options = SceneOptions(("probability",))
    files = predict(run, [image], tmp_path / "out", operating_point=True, scenes=options)
    with rasterio.open(files[0]) as file:
        classes, tags = file.read(1), file.tags()
    with rasterio.open(tmp_path / "out" / "a_probability.tif") as file:
        chances = file.read().astype(float) / 254
        assert "operating_point" not in file.tags()
    wanted = np.where(chances[2] >= 0.3, 2, 0)
    wanted[chances[1] >= 0.34] = 1
    sure = (abs(chances[1] - 0.34) > 0.003) & (abs(chances[2] - 0.3) > 0.003)  # they are rounded
    assert np.array_equal(classes[sure], wanted[sure])
    assert len(np.unique(classes)) > 1
    assert sure.mean() > 0.5
    kept = json.loads((tmp_path / "out" / "a_operating_point.json").read_text())
    assert kept == json.loads(tags["operating_point"])
    assert kept["thresholds"] == {"middle": 0.34, "high": 0.3}
    assert kept["checkpoint_sha256"] == run.identify("best")["sha256"]
    assert predict(run, [image], tmp_path / "out", operating_point=True, resume=True) == files[:1]
    with pytest.raises(WriteError, match="a: was decided by thresholds, so it isn't kept"):
        predict(run, [image], tmp_path / "out", resume=True)
    choose(run, ("middle", 0.5))
    with pytest.raises(WriteError, match="a: was decided by other thresholds"):
        predict(run, [image], tmp_path / "out", operating_point=True, resume=True)
    with rasterio.open(predict(run, [image], tmp_path / "out", overwrite=True)[0]) as file:
        assert "operating_point" not in file.tags()
        assert not np.array_equal(file.read(1), classes)
    assert not (tmp_path / "out" / "a_operating_point.json").exists()
    with pytest.raises(WriteError, match="a: was decided without thresholds"):
        predict(run, [image], tmp_path / "out", operating_point=True, resume=True)


def test_frames_are_decided_by_the_operating_point(frame_run: Run, tmp_path: Path) -> None:
    frame = write_frame(tmp_path / "in" / "a.png", draw(20, 30))
    choose(frame_run, ("high", 0.999))
    (file,) = predict(frame_run, [frame], tmp_path / "out", operating_point=True)
    (plain,) = predict(frame_run, [frame], tmp_path / "plain")
    with Image.open(file) as found, Image.open(plain) as before:
        given, most_probable = np.array(found), np.array(before)
    assert 2 in most_probable
    assert 2 not in given  # none is as certain
    assert np.array_equal(given[most_probable != 2], most_probable[most_probable != 2])
    torch.save({}, frame_run.checkpoint("best"))
    with pytest.raises(RunError, match="another checkpoint"):
        predict(frame_run, [frame], tmp_path / "other", operating_point=True)
    assert not (tmp_path / "other").exists()


def test_layers_on_request(make_run: Callable[..., Run], scenes: Path) -> None:
    image = write_scene(scenes / "in" / "a.tif", draw(40, 40))
    run = scene_run(make_run, scenes)
    written = predict(
        run, image, scenes / "out", scenes=SceneOptions(("confidence", "probability", "entropy"))
    )
    assert [path.name for path in written] == [
        "a.tif",
        "a_confidence.tif",
        "a_probability.tif",
        "a_entropy.tif",
    ]
    with rasterio.open(written[2]) as file:
        assert file.descriptions == ("low", "middle", "high")
        total = file.read().astype(int).sum(axis=0)
    assert np.abs(total - 254).max() <= 2
    with pytest.raises(ConfigError, match=r"layer 'confidance': no such map.*nearest: confidence"):
        predict(run, image, scenes / "out", scenes=SceneOptions(("confidance",)))  # type: ignore[arg-type]


def test_own_names_in_another_order_win_over_the_configurations(
    make_run: Callable[..., Run], scenes: Path
) -> None:
    classes = draw(40, 40, seed=2)
    image = write_scene(scenes / "in" / "chip.tif", classes, bands=("nir", "red", "green"))
    run = scene_run(make_run, scenes)
    data = sys.modules["visionsft.training.loading"].load_run(run, "best").data
    data.band_names = BANDS  # named by position in the configuration
    (written,) = predict(run, image, scenes / "out")
    with rasterio.open(written) as file:
        assert np.array_equal(file.read(1), classes)


def test_polygons_of_a_scene(make_run: Callable[..., Run], scenes: Path) -> None:
    shapely = pytest.importorskip("shapely", reason="shapely is not installed")
    pyogrio = pytest.importorskip("pyogrio", reason="pyogrio is not installed")
    classes = np.kron(draw(6, 5, seed=3), np.ones((16, 16), np.uint8))
    image = write_scene(scenes / "in" / "a.tif", classes)
    options = SceneOptions(vectors=".fgb", polygons=VectorOptions(classes=("high",)), tile=32, overlap=8)
    run = scene_run(make_run, scenes)
    written = predict(run, image, scenes / "out", scenes=options)
    assert [path.name for path in written] == ["a.tif", "a.fgb"]
    meta, _, shapes, columns = pyogrio.raw.read(written[1])
    areas = shapely.area(shapely.from_wkb(shapes))
    assert set(columns[list(meta["fields"]).index("class")]) == {"high"}
    assert areas.sum() == pytest.approx(100 * (classes == 2).sum())
    options = SceneOptions(vectors=".fgb", polygons=VectorOptions(classes=("hihg",)))
    with pytest.raises(ConfigError, match=r"no class 'hihg'.*'high'"):
        predict(run, image, scenes / "other", scenes=options)


def test_options_of_the_other_kind_are_refused(make_run: Callable[..., Run], scenes: Path) -> None:
    image = write_scene(scenes / "in" / "a.tif", draw(32, 32))
    with pytest.raises(ConfigError, match="drives, every: for camera frames and videos"):
        predict(scene_run(make_run, scenes), image, scenes / "out", frames=FrameOptions(drives=True, every=2))


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a server of files; a process of its own, since GDAL keeps Python's threads waiting."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split()[0]
        yield f"http://127.0.0.1:{port}"
        server.terminate()


def test_scenes_behind_http(write_run: Callable[..., Run], tmp_path: Path) -> None:
    """In a process of its own, as a user has it."""
    run = write_run(tmp_path)
    image = write_scene(tmp_path / "in" / "far.tif", draw(64, 48, seed=6))
    (near,) = predict(run, image, tmp_path / "near", scenes=SceneOptions(backend="torch"))
    with serve(tmp_path / "in") as address:
        command = [sys.executable, "-m", "visionsft", "predict", str(run.path), "--out", str(tmp_path / "far")]
        command += [f"{address}/far.tif", f"{address}/none.tif"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 2, answer.stderr
    assert "1 of 2 inputs can't be predicted" in answer.stderr
    assert "/none.tif" in answer.stderr
    with rasterio.open(near) as one, rasterio.open(tmp_path / "far" / "far.tif") as two:
        assert (one.read(1) == two.read(1)).mean() > 0.99  # other numbers of threads round in another order


def test_a_scene_with_a_file_a_band(make_run: Callable[..., Run], scenes: Path) -> None:
    run = scene_run(make_run, scenes)
    image = write_scene(scenes / "in" / "a.tif", draw(32, 40, seed=3))
    with rasterio.open(image) as whole:
        profile = {**whole.profile, "count": 1}
        for number, band in enumerate(BANDS, start=1):
            with rasterio.open(scenes / "in" / f"a_{band}.tif", "w", **profile) as file:
                file.write(whole.read(number), 1)
    (expected,) = predict(run, image, scenes / "whole")
    (written,) = predict(run, f"{scenes}/in/a_{{{','.join(BANDS)}}}.tif", scenes / "bands")
    assert written.name == expected.name
    with rasterio.open(expected) as one, rasterio.open(written) as other:
        np.testing.assert_array_equal(one.read(), other.read())
        assert (one.transform, one.crs) == (other.transform, other.crs)


class KillError(Exception):
    """Stands for a kill: nothing tidies up after it."""


def test_a_killed_scene_goes_on_inside_the_scene(
    make_run: Callable[..., Run], scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = draw(200, 40, seed=5)
    image = write_scene(scenes / "in" / "scene.tif", classes)
    run = scene_run(make_run, scenes)
    real, rows = SceneSource.read, []

    def read(self: SceneSource, window: Window) -> tuple[np.ndarray, np.ndarray]:
        rows.append(window.row)
        if window.row > 100 and killing:
            raise KillError
        return real(self, window)

    killing = True
    monkeypatch.setattr(SceneSource, "read", read)
    monkeypatch.setattr("visionsft.prediction.tiling.BATCH_PIXELS", 32 * 32)
    with pytest.raises(KillError):
        predict(run, image, scenes / "out", scenes=SceneOptions(tile=32, overlap=8))
    assert not list((scenes / "out").glob("*.tif"))
    killing = False
    rows.clear()
    (written,) = predict(run, image, scenes / "out", scenes=SceneOptions(tile=32, overlap=8))
    assert min(rows) >= 48  # the rows of tiles that were finished were not computed again
    with rasterio.open(written) as file:
        assert np.array_equal(file.read(1), classes)
    assert [path.name for path in (scenes / "out").iterdir()] == ["scene.tif"]


def test_an_interrupted_folder_is_finished_by_resume(make_run: Callable[..., Run], scenes: Path) -> None:
    for name in "abc":
        write_scene(scenes / "in" / f"{name}.tif", draw(32, 32))
    run = scene_run(make_run, scenes)
    (first,) = predict(run, scenes / "in" / "a.tif", scenes / "out")
    before = first.stat().st_mtime_ns
    with pytest.raises(WriteError, match="--resume keeps them"):
        predict(run, scenes / "in", scenes / "out")
    written = predict(run, scenes / "in", scenes / "out", resume=True)
    assert [path.name for path in written] == ["a.tif", "b.tif", "c.tif"]
    assert first.stat().st_mtime_ns == before


def test_lists_of_inputs(make_run: Callable[..., Run], scenes: Path) -> None:
    for name in "ab":
        write_scene(scenes / "in" / f"{name}.tif", draw(32, 32))
    scenes.joinpath("in", "list.txt").write_text("# two scenes\nb.tif\n\na.tif\n")
    run = scene_run(make_run, scenes)
    assert [p.name for p in predict(run, scenes / "in" / "list.txt", scenes / "out")] == ["b.tif", "a.tif"]
    scenes.joinpath("in", "list.txt").write_text("b.tif\nc.tif\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2: .*c\.tif: no such file"):
        predict(run, scenes / "in" / "list.txt", scenes / "out")


# ------------------------------------------------------------------------------------------------ frames


def test_frames_get_an_indexed_picture_of_their_own_size(frame_run: Run, tmp_path: Path) -> None:
    classes = np.kron(draw(4, 6), np.ones((20, 20), np.uint8))  # 80 x 120: four times the model's size
    frame = write_frame(tmp_path / "in" / "a.jpg.png", classes)
    written = predict(frame_run, frame, tmp_path / "out", overlay=True)
    assert [path.name for path in written] == ["a.jpg.png", "a.jpg_overlay.jpg"]
    with Image.open(written[0]) as picture:
        assert (picture.mode, picture.size) == ("P", (120, 80))
        inside = np.kron(np.ones((4, 6)), np.pad(np.ones((12, 12)), 4)) > 0
        assert np.array_equal(np.asarray(picture)[inside], classes[inside])
        assert picture.getpalette()[:9] == [channel for spec in CLASSES for channel in spec.colour]
    with Image.open(written[1]) as picture:
        assert (picture.mode, picture.size) == ("RGB", (120, 80))


def test_folders_and_globs_are_searched(frame_run: Run, tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "deep/c.png", "note.txt"):
        write_frame(tmp_path / "in" / name.replace(".txt", ".png"), draw(20, 30))
    (tmp_path / "in" / "note.png").rename(tmp_path / "in" / "note.txt")
    folder = predict(frame_run, tmp_path / "in", tmp_path / "out1")
    assert [path.name for path in folder] == ["a.png", "b.png"]
    deep = predict(
        frame_run, [tmp_path / "in" / "**" / "*.png", tmp_path / "in" / "b.png"], tmp_path / "out2"
    )
    assert [path.name for path in deep] == ["a.png", "b.png", "c.png"]


def test_what_exists_stays_unless_overwritten(frame_run: Run, tmp_path: Path) -> None:
    for name in "ab":
        write_frame(tmp_path / "in" / f"{name}.png", draw(20, 30))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.png").write_text("mine")
    with pytest.raises(WriteError, match=r"b\.png: exists \(1 of 2 files do\); --overwrite"):
        predict(frame_run, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]  # nothing was begun
    predict(frame_run, tmp_path / "in", tmp_path / "out", overwrite=True)
    with Image.open(tmp_path / "out" / "b.png") as picture:
        assert picture.mode == "P"


def test_an_input_is_never_written_over(frame_run: Run, tmp_path: Path) -> None:
    frame = write_frame(tmp_path / "in" / "a.png", draw(20, 30))
    before = frame.read_bytes()
    with pytest.raises(WriteError, match="is an input"):
        predict(frame_run, frame, tmp_path / "in", overwrite=True)
    assert frame.read_bytes() == before


def test_inputs_of_one_name_are_refused(frame_run: Run, tmp_path: Path) -> None:
    frames = [write_frame(tmp_path / folder / "a.png", draw(20, 30)) for folder in ("one", "two")]
    with pytest.raises(DataError, match="would both become"):
        predict(frame_run, frames, tmp_path / "out")


def test_inputs_that_do_not_exist_are_refused_at_once(frame_run: Run, tmp_path: Path) -> None:
    write_frame(tmp_path / "in" / "frame.png", draw(20, 30))
    (tmp_path / "empty").mkdir()
    for given, message in {
        tmp_path / "in" / "fram.png": r"fram\.png: no such file; nearest: .*frame\.png",
        tmp_path / "empty": "no image in this folder",
        tmp_path / "in" / "*.jpg": "no file matches",
    }.items():
        with pytest.raises(DataError, match=message):
            predict(frame_run, [given], tmp_path / "out")
    with pytest.raises(DataError, match="no input"):
        predict(frame_run, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_a_drive_on_request(frame_run: Run, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="av is not installed")
    for index in range(3):
        write_frame(tmp_path / "in" / f"frame{index}.png", np.full((40, 60), index, np.uint8))
    frames = FrameOptions(drives=True, rate=5)
    written = predict(frame_run, tmp_path / "in", tmp_path / "out", frames=frames)
    assert [path.name for path in written] == ["in_overlay.mp4", "in"]
    with Image.open(tmp_path / "out" / "in" / "frame2.png") as picture:
        assert (np.asarray(picture) == 2).all()
    with av.open(str(written[0])) as container:
        assert container.streams.video[0].average_rate == 5
    again = predict(frame_run, written[0], tmp_path / "video", frames=FrameOptions(masks=False))
    assert [path.name for path in again] == ["in_overlay_overlay.mp4"]
    with pytest.raises(ConfigError, match="tile: for GeoTIFF scenes"):
        predict(frame_run, tmp_path / "in", tmp_path / "out2", scenes=SceneOptions(tile=32))


def test_a_broken_frame_does_not_stop_the_others(frame_run: Run, tmp_path: Path) -> None:
    for name in "abc":
        write_frame(tmp_path / "in" / f"{name}.png", draw(20, 30))
    (tmp_path / "in" / "a.png").write_text("not a picture")
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "c.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"2 of 3 inputs can't be predicted.*\n.*a\.png.*\n.*b\.png"):
        predict(frame_run, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c.png"]


# ------------------------------------------------------------------------------------------------ resampling


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resampling_a_whole_map_is_interpolation(mode: str) -> None:
    maps = torch.randn(1, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    options = {"align_corners": False} if mode == "bilinear" else {}
    expected = F.interpolate(maps, size=(18, 35), mode=mode, **options)
    found = resample(maps, (18, 35), covered=(18, 35), mode=mode)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_resampling_keeps_the_corner_and_the_step() -> None:
    ramp = torch.arange(10.0).expand(1, 1, 10, 10)  # its value is its column; 3 pixels a column
    found = resample(ramp, (28, 28), covered=(30.0, 30.0), mode="bilinear")
    centres = (torch.arange(28) + 0.5) / 3 - 0.5
    torch.testing.assert_close(found[0, 0, 5], centres.clamp(0, 9), atol=1e-4, rtol=0)
