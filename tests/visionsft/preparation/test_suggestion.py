"""Suggestions: files that pycocotools and pyogrio read, windows where they lie, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from pycocotools.coco import COCO
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds
from typer.testing import CliRunner

from datamodules import DataError
from visionsft.build import build_backbone, build_model
from visionsft.cli import app
from visionsft.config import CONFIGS
from visionsft.errors import RunError, WriteError
from visionsft.preparation.preannotations import annotate_map, without_holes, write_coco
from visionsft.preparation.suggestion import suggest
from visionsft.runs import Run

BANDS = ("red", "green", "nir")


def untrained(folder: Path, values: dict[str, Any], bands: tuple[str, ...], dtype: str) -> Run:
    """A run with random weights whose data is gone."""
    torch.manual_seed(0)
    common = {"runs": folder, "backbone": {"name": "test_efficientnet", "weights": "none"},
              "trainer": {"precision": "32", "accelerator": "cpu"}}  # fmt: skip
    kind = CONFIGS[values.get("task", {}).get("kind", "segmentation")]
    config = kind.model_validate({"name": "run", **common, **values})
    run = Run.create(config)
    model = build_model(config, build_backbone(config, bands, pretrained=False), 2)
    run.checkpoints.mkdir()
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "callbacks": {}}, run.checkpoints / "best.ckpt")
    normalisation = {"mean": [3000.0] * 3, "std": [1000.0] * 3}
    if dtype == "uint8":
        normalisation = {"mean": [127.0] * 3, "std": [64.0] * 3}
    run.write_json("data.json", {"bands": bands, "dtype": dtype, "classes": ["low", "high"],
                                 "normalisation": normalisation, "fitted": {}})  # fmt: skip
    return run


CLASSES = [{"name": "low", "values": 0}, {"name": "high", "values": 1}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of scenes."""
    folder = tmp_path_factory.mktemp("run")
    data = {"kind": "geotiff", "root": folder, "chip": 32, "normalise": "data", "classes": CLASSES}
    return untrained(folder, {"data": data}, BANDS, "uint16")


def write_scene(path: Path, *, epsg: int | None = 32631, bands: tuple[str, ...] = BANDS) -> Path:
    values = np.random.default_rng(0).integers(1500, 4500, (len(bands), 96, 96)).astype(np.uint16)
    values[:, :40, :40] = 0
    place = {} if epsg is None else {"crs": f"EPSG:{epsg}", "transform": from_origin(500_000, 5_600_000, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", width=96, height=96, count=len(bands), dtype="uint16",
                       nodata=0, **place) as file:  # fmt: skip
        file.write(values)
        file.descriptions = bands
    return path


def test_windows_lie_where_the_scene_lies(run: Run, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    found = suggest(run, scene, out=tmp_path / "out", count=3)
    assert (found.pool, found.left_out, len(found.suggestions)) == (8, 1, 3)
    assert "can't be read" in found.note
    _, _, shapes, _ = pyogrio.raw.read(tmp_path / "out" / "windows.geojson")
    with rasterio.open(scene) as file:
        whole = shapely.box(*transform_bounds(file.crs, "EPSG:4326", *file.bounds))
    assert all(whole.buffer(1e-6).contains(shapely.from_wkb(shape)) for shape in shapes)
    with open(tmp_path / "out" / "suggestions.csv", encoding="utf-8", newline="") as file:
        assert [row["rank"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    with pytest.raises(WriteError, match="--overwrite"):
        suggest(run, scene, out=tmp_path / "out")
    again = suggest(run, scene, out=tmp_path / "out", count=3, overwrite=True)
    assert again.suggestions == found.suggestions
    assert suggest(run, scene, out=tmp_path / "more", count=99).wanted == 99


def test_a_scene_without_crs(run: Run, tmp_path: Path) -> None:
    suggest(run, write_scene(tmp_path / "scene.tif", epsg=None), out=tmp_path / "out", count=1)
    assert pyogrio.read_info(tmp_path / "out" / "windows-pixels.gpkg")["crs"] is None


def write_frames(folder: Path, count: int) -> Path:
    """Noise of 64x64, coarse, so that no two are alike."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        picture = cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"frame{index}.png"), picture)
    return folder


FRAMES = {"kind": "camera", "root": "gone", "normalise": "data", "size": [64, 64], "classes": CLASSES}
MASKS = {"images": "images/*.png", "labels": "masks/{name}.png", "split": {"by": "scene"}}


@pytest.mark.parametrize(
    "values",
    [
        {"data": {**FRAMES, **MASKS}},
        {"task": {"kind": "detection"}, "data": {**FRAMES, "layout": "coco"}},
        {
            "task": {"kind": "detection"}, "head": {"name": "rotated_fcos"},
            "data": {**FRAMES, "layout": "dota"},
        },
    ],
    ids=["maps", "boxes", "turned boxes"],
)  # fmt: skip
def test_frames_get_annotations_that_pycocotools_loads(values: dict[str, Any], tmp_path: Path) -> None:
    run = untrained(tmp_path / "runs", values, ("red", "green", "blue"), "uint8")
    found = suggest(run, write_frames(tmp_path / "pool", 5), out=tmp_path / "out", count=2)
    assert (found.pool, [each.rank for each in found.suggestions]) == (5, [1, 2])
    assert all(each.uncertainty >= 0 for each in found.suggestions)
    coco = COCO(tmp_path / "out" / "annotations.coco.json")
    names = {image["file_name"] for image in coco.loadImgs(coco.getImgIds())}
    assert names == {Path(each.place.id).name for each in found.suggestions}
    for each in coco.loadAnns(coco.getAnnIds()):
        x, y, width, height = each["bbox"]
        assert 0 <= x <= x + width <= 64
        assert 0 <= y <= y + height <= 64


@pytest.mark.parametrize("kind", ["label_run", "labels_run"])
def test_labelled_images_from_the_command_line(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run, pool = request.getfixturevalue(kind), write_frames(tmp_path / "pool", 5)
    (pool / "broken.png").write_bytes(b"no picture")
    (pool / "small.png").write_bytes((pool / "frame0.png").read_bytes())
    for path in pool.glob("frame*.png"):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (32, 32), interpolation=cv2.INTER_NEAREST))
    (pool / "small.png").write_bytes((pool / "frame0.png").read_bytes())
    call = ["suggest", str(run.path), str(pool), "--out", str(tmp_path / "out"), "--count", "6"]
    answer = CliRunner().invoke(app, call)
    assert answer.exit_code == 2
    assert "broken.png" in answer.output
    with open(tmp_path / "out" / "suggestions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {Path(row["file"]).name for row in rows}
    assert len(names & {"frame0.png", "small.png"}) <= 1  # the same picture twice
    with open(tmp_path / "out" / "annotations.csv", encoding="utf-8", newline="") as file:
        labels = list(csv.DictReader(file))
    assert [row["file"] for row in labels] == [row["file"] for row in rows]
    assert all(0 <= float(row.get("probability", 1)) <= 1 for row in labels)
    assert {row["class"] for row in labels if "class" in row} <= {"dark", "bright"}


def test_bad_files_leave_the_others(run: Run, tmp_path: Path) -> None:
    good, bad = write_scene(tmp_path / "a.tif"), tmp_path / "b.tif"
    bad.write_bytes(good.read_bytes()[:500])
    few = write_scene(tmp_path / "c.tif", bands=BANDS[:2])
    found = suggest(run, [good, bad, few], out=tmp_path / "out", count=1)
    assert set(found.failed) == {str(bad), str(few)}
    with pytest.raises(DataError, match="2 files of the pool"):
        found.check()
    with pytest.raises(DataError, match="nothing in the pool"):
        suggest(run, [bad], out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        suggest(run, tmp_path / "empty", out=tmp_path / "none")


def test_a_run_without_checkpoint(run: Run, tmp_path: Path) -> None:
    values = run.config.model_copy(update={"runs": tmp_path})
    with pytest.raises(RunError, match="no checkpoints/best"):
        suggest(Run.create(values), write_scene(tmp_path / "a.tif"), out=tmp_path / "out")


def test_coco_covers_the_map_once(tmp_path: Path) -> None:
    classes = np.zeros((60, 80), np.uint8)
    classes[20:40, 20:50] = 1
    write_coco(tmp_path / "a.json", [(str(tmp_path / "x.png"), (60, 80), annotate_map(classes))], names=("a", "b"))
    coco = COCO(tmp_path / "a.json")
    masks = {each["category_id"]: coco.annToMask(each) for each in coco.loadAnns(coco.getAnnIds())}
    assert masks[2].sum() == (classes == 1).sum()
    assert np.abs(masks[1].astype(int) - (classes == 0)).sum() <= 120
    assert json.loads((tmp_path / "a.json").read_text())["images"][0]["file_name"] == "x.png"


def test_cutting_holes_keeps_the_area() -> None:
    shape = shapely.box(0, 0, 10, 10) - shapely.box(2, 2, 4, 4) - shapely.box(6, 5, 8, 9)
    parts = without_holes(shape)
    assert not any(part.interiors for part in parts)
    assert shapely.union_all(parts).equals(shape)
