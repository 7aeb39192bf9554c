"""Object files: boxes where they are, in every format, with their columns; COCO's JSON as COCO's tools read it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pyogrio
import pytest
import shapely
import torch
from affine import Affine
from pycocotools.coco import COCO
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from datamodules import DataError
from visionsft.prediction.objectfiles import join_coco, open_objects, write_coco
from visionsft.prediction.slicing import SceneDetections
from visionsft.prediction.vectorising import FORMATS

NAMES = ("ship", "plane")
UTM = CRS.from_epsg(32633)
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
FOUND = SceneDetections(
    torch.tensor([[10.0, 20, 30, 25], [0, 0, 5, 9], [7.5, 3, 9, 4]]),
    torch.tensor([0.9, 0.5, 0.25]),
    torch.tensor([1, 0, 1]),
)


def write(path: Path, *bands: SceneDetections, crs: CRS | None = UTM, transform: Affine = PLACE) -> Path:
    outlined = any(band.outlines is not None for band in bands)
    with open_objects(path, transform=transform, crs=crs, names=NAMES, outlined=outlined) as writer:
        for band in bands:
            writer.add(band)
    return path


def read(path: Path) -> tuple[dict[str, list[Any]], np.ndarray]:
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        return table.drop_columns("geometry").to_pydict(), shapely.from_wkb(table["geometry"].to_pylist())
    meta, _, shapes, values = pyogrio.raw.read(path)
    columns = dict(zip(meta["fields"].tolist(), (value.tolist() for value in values), strict=True))
    return columns, shapely.from_wkb(shapes)


@pytest.mark.parametrize("suffix", sorted(set(FORMATS) - {".geojson"}))
@pytest.mark.parametrize("place", [PLACE, PLACE * Affine.rotation(30), Affine.scale(2)], ids=str)
def test_columns_and_quadrilaterals(tmp_path: Path, suffix: str, place: Affine) -> None:
    path = write(
        tmp_path / f"a{suffix}",
        FOUND.take(torch.tensor([0])),
        FOUND.take(torch.tensor([1, 2])),
        transform=place,
    )
    columns, shapes = read(path)
    assert list(columns) == ["class", "class_id", "score", "x1", "y1", "x2", "y2"]
    order = np.argsort(-np.array(columns["score"]))  # FlatGeobuf orders features by place
    assert [columns["class"][i] for i in order] == ["plane", "ship", "plane"]
    assert [columns["class_id"][i] for i in order] == [1, 0, 1]
    boxes = np.array([columns[side] for side in ("x1", "y1", "x2", "y2")]).T[order]
    np.testing.assert_allclose(boxes, FOUND.boxes.numpy())
    assert shapely.is_ccw(shapely.get_exterior_ring(shapes)).all()
    for shape, (x1, y1, x2, y2) in zip(shapes[order], boxes, strict=True):
        wanted = {place * corner for corner in ((x1, y1), (x1, y2), (x2, y1), (x2, y2))}
        own = sorted(shape.exterior.coords[:-1])
        np.testing.assert_allclose(own, sorted(wanted), atol=1e-6)
    assert os.listdir(tmp_path) == [path.name]


def test_geojson_is_in_longitude_and_latitude(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", FOUND)
    layer = json.loads(path.read_text())
    assert "crs" not in layer
    x, y = PLACE * (10, 20)
    (lon,), (lat,) = transform_points(UTM, CRS.from_epsg(4326), [x], [y])
    ring = layer["features"][0]["geometry"]["coordinates"][0]
    assert min(np.hypot(a - lon, b - lat) for a, b in ring) < 2e-7


def test_geojson_without_a_crs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no CRS"):
        write(tmp_path / "a.geojson", FOUND, crs=None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
def test_without_a_crs_in_pixels(tmp_path: Path, suffix: str) -> None:
    columns, shapes = read(write(tmp_path / f"a{suffix}", FOUND, crs=None, transform=Affine.identity()))
    boxes = np.array([columns[side] for side in ("x1", "y1", "x2", "y2")]).T
    np.testing.assert_allclose(shapely.bounds(shapes), boxes)


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_nothing_found_is_a_file(tmp_path: Path, suffix: str) -> None:
    columns, shapes = read(write(tmp_path / f"a{suffix}"))
    assert len(shapes) == 0
    assert set(columns) in ({"class", "class_id", "score", "x1", "y1", "x2", "y2"}, set())


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with open_objects(tmp_path / "a.gpkg", transform=PLACE, crs=UTM, names=NAMES) as writer:
            writer.add(FOUND)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []


def outlined() -> SceneDetections:
    shapes = np.array([shapely.Point(20, 22).buffer(2), shapely.Polygon(), shapely.box(7.5, 3, 9, 4)], object)
    return SceneDetections(FOUND.boxes, FOUND.scores, FOUND.labels, outlines=shapes)


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_outlines_are_the_geometry(tmp_path: Path, suffix: str) -> None:
    columns, shapes = read(write(tmp_path / f"a{suffix}", outlined()))
    assert {shape.geom_type for shape in shapes} == {"MultiPolygon"}
    areas = dict(zip(columns["score"], shapely.area(shapes) / 100, strict=True))
    assert areas[columns["score"][0]] == pytest.approx(outlined().outlines[0].area)  # type: ignore[index]
    assert sorted(areas.values())[-1] == pytest.approx(45)  # a box stands in for an empty mask


def test_turned_boxes_are_turned(tmp_path: Path) -> None:
    turned = torch.tensor([[50.0, 50, 20, 10, np.pi / 6]])
    found = SceneDetections(
        torch.tensor([[38.0, 40, 62, 60]]), torch.ones(1), torch.zeros(1, dtype=torch.int64), turned=turned
    )
    _, shapes = read(write(tmp_path / "a.gpkg", found, transform=Affine.identity()))
    right = np.array([50, 50]) + 10 * np.array([np.cos(np.pi / 6), np.sin(np.pi / 6)])
    assert shapes[0].area == pytest.approx(200, rel=1e-5)
    assert shapes[0].exterior.distance(shapely.Point(right)) < 1e-4


# ----------------------------------------------------------------------------------------------------- COCO


def test_coco_tools_read_frames_and_results(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"]
    for file, found in zip(
        files, (FOUND, FOUND.take(torch.tensor([], dtype=torch.int64)), FOUND), strict=True
    ):
        write_coco(file, found, image=f"{file.stem}.jpg", size=(30, 40), names=NAMES)
    one = COCO(str(files[0]))
    assert len(one.anns) == 3
    assert [each["name"] for each in one.loadCats([0, 1])] == list(NAMES)
    join_coco(files, tmp_path / "results.json", tmp_path / "images.json")
    whole = COCO(str(tmp_path / "images.json"))
    results = whole.loadRes(str(tmp_path / "results.json"))
    by_name = {
        image["file_name"]: results.loadAnns(results.getAnnIds(image["id"]))
        for image in results.imgs.values()
    }
    assert {name: len(found) for name, found in by_name.items()} == {"a.jpg": 3, "b.jpg": 0, "c.jpg": 3}
    assert by_name["c.jpg"][0]["bbox"] == [10, 20, 20, 5]
    assert [each["category_id"] for each in by_name["a.jpg"]] == [1, 0, 1]
    assert [each["score"] for each in by_name["a.jpg"]] == [0.9, 0.5, 0.25]


def test_no_object_at_all_is_an_empty_list(tmp_path: Path) -> None:
    write_coco(
        tmp_path / "a.json",
        FOUND.take(torch.tensor([], dtype=torch.int64)),
        image="a",
        size=(3, 3),
        names=NAMES,
    )
    join_coco([tmp_path / "a.json"], tmp_path / "results.json", tmp_path / "images.json")
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_outlines_are_segmentations(tmp_path: Path) -> None:
    write_coco(tmp_path / "a.json", outlined(), image="a.jpg", size=(30, 40), names=NAMES)
    coco = COCO(str(tmp_path / "a.json"))
    assert coco.annToMask(coco.anns[2]).sum() == 45
