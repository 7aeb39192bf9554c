"""Vectors: what is written, in every format, and what is refused."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio import features
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_geom
from shapely.geometry import mapping, shape

from datamodules import DataError
from datamodules.batch import IGNORE
from visionsft.errors import ConfigError, WriteError
from visionsft.prediction import vectorising
from visionsft.prediction.vectorising import FORMATS, VectorOptions, open_polygons

NAMES = ("water", "forest", "building")
UTM = CRS.from_epsg(32633)
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)


@dataclass
class Layer:
    """What a file holds."""

    columns: dict[str, list[object]]
    polygons: NDArray[np.object_]
    crs: CRS | None

    def burn(self, transform: Affine, size: tuple[int, int]) -> NDArray[np.uint8]:
        shapes = zip(self.polygons, self.columns["class_index"], strict=True)
        burnt = np.full(size, IGNORE, np.uint8)
        return features.rasterize(shapes, out=burnt, transform=transform) if len(self.polygons) else burnt


def write(
    path: Path,
    classes: NDArray[np.uint8],
    *,
    transform: Affine = PLACE,
    crs: CRS | None = UTM,
    options: VectorOptions | None = None,
    scene: str | None = None,
    height: int = 3,
) -> Layer:
    with open_polygons(
        path, transform=transform, crs=crs, names=NAMES, options=options, scene=scene
    ) as writer:
        for row in range(0, len(classes), height):
            writer.add(row, classes[row : row + height])
    return read(path)


def read(path: Path) -> Layer:
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        crs = json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]["crs"]
        columns = table.drop_columns("geometry").to_pydict()
        found = shapely.from_wkb(table["geometry"].to_pylist())
        return Layer(columns, np.array(found), CRS.from_user_input(json.dumps(crs)) if crs else None)
    meta, _, found, values = pyogrio.raw.read(path)
    assert pyogrio.read_info(path)["layer_name"] == path.stem
    columns = dict(zip(meta["fields"].tolist(), (value.tolist() for value in values), strict=True))
    return Layer(columns, shapely.from_wkb(found), CRS.from_user_input(meta["crs"]) if meta["crs"] else None)


def draw(height: int = 30, width: int = 40) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (height // 3 + 1, width // 3 + 1)).repeat(3, 0).repeat(3, 1)[:height, :width]
    classes[rng.random((height, width)) < 0.1] = IGNORE
    return classes.astype(np.uint8)


PROJECTED = sorted(set(FORMATS) - {".geojson"})


@pytest.mark.parametrize("suffix", PROJECTED)
@pytest.mark.parametrize("place", [PLACE, PLACE * Affine.rotation(30), Affine.scale(2)], ids=str)
def test_the_file_holds_the_map(
    tmp_path: Path, suffix: str, place: Affine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectorising, "BAND", 200)
    monkeypatch.setattr(vectorising, "BATCH", 7)
    classes = draw()
    layer = write(tmp_path / f"map{suffix}", classes, transform=place, scene="north")
    assert list(layer.columns) == ["class", "class_index", "area_m2", "scene"]
    assert layer.columns["class"] == [NAMES[index] for index in layer.columns["class_index"]]
    assert layer.columns["area_m2"] == pytest.approx(shapely.area(layer.polygons))
    assert set(layer.columns["scene"]) == {"north"}
    assert layer.crs == UTM
    assert shapely.is_ccw(shapely.get_exterior_ring(layer.polygons)).all()
    np.testing.assert_array_equal(layer.burn(place, classes.shape), classes)
    assert os.listdir(tmp_path) == [f"map{suffix}"]


def test_geojson_is_in_longitude_and_latitude(tmp_path: Path) -> None:
    layer = write(tmp_path / "map.geojson", draw())
    projected = write(tmp_path / "map.fgb", draw())
    assert sorted(layer.columns["area_m2"]) == sorted(projected.columns["area_m2"])
    lons, lats = transform_points(UTM, CRS.from_epsg(4326), *shapely.get_coordinates(projected.polygons).T)
    assert shapely.total_bounds(layer.polygons).tolist() == pytest.approx(
        (min(lons), min(lats), max(lons), max(lats)), abs=1e-7
    )
    assert shapely.is_ccw(shapely.get_exterior_ring(layer.polygons)).all()
    document = json.loads((tmp_path / "map.geojson").read_text())
    assert "crs" not in document  # RFC 7946 knows one only


def test_geojson_is_cut_at_the_antimeridian(tmp_path: Path) -> None:
    classes = np.zeros((4, 40), np.uint8)
    place = Affine(1000, 0, 150_000, 0, -1000, 4000)
    layer = write(tmp_path / "map.geojson", classes, transform=place, crs=CRS.from_epsg(32601))
    west, east = sorted(layer.polygons[0].geoms, key=lambda part: part.bounds[0])
    assert west.bounds[0] == -180
    assert east.bounds[2] == 180
    assert west.bounds[2] < -179
    assert east.bounds[0] > 179


@pytest.mark.parametrize("suffix", PROJECTED)
def test_without_a_crs_areas_are_pixels(tmp_path: Path, suffix: str) -> None:
    classes = draw()
    layer = write(tmp_path / f"map{suffix}", classes, transform=Affine.identity(), crs=None)
    assert layer.crs is None or layer.crs.to_wkt().startswith("ENGCRS")
    assert sum(layer.columns["area_px"]) == (classes != IGNORE).sum()
    np.testing.assert_array_equal(layer.burn(Affine.identity(), classes.shape), classes)


@pytest.mark.parametrize(
    ("crs", "place"),
    [
        (CRS.from_epsg(2263), Affine(30, 0, 980_000, 0, -30, 200_000)),  # New York, feet
        (CRS.from_epsg(4326), Affine(0.001, 0, 10, 0, -0.001, 60)),
    ],
    ids=["feet", "degrees"],
)
def test_areas_are_square_metres(tmp_path: Path, crs: CRS, place: Affine) -> None:
    layer = write(tmp_path / "map.fgb", draw(), transform=place, crs=crs)
    equal_area = transform_geom(crs, CRS.from_epsg(6933), [mapping(polygon) for polygon in layer.polygons])
    reference = [shape(polygon).area for polygon in equal_area]
    assert layer.columns["area_m2"] == pytest.approx(reference, rel=1e-3)


def nested() -> NDArray[np.uint8]:
    """Forest with a pond of 4 pixels in which there is a house of 1, and a pond of 9."""
    classes = np.ones((12, 12), np.uint8)
    classes[1:4, 1:4], classes[2, 2] = 0, 2
    classes[6:9, 6:9] = 0
    return classes


def test_small_polygons_and_holes(tmp_path: Path) -> None:
    def areas(**options: float) -> list[tuple[str, float]]:
        layer = write(tmp_path / "map.fgb", nested(), crs=None, options=VectorOptions(**options))
        return sorted(zip(layer.columns["class"], layer.columns["area_px"], strict=True))

    forest, pond, house = ("forest", 126), [("water", 8), ("water", 9)], ("building", 1)
    assert areas() == sorted([forest, house, *pond])
    assert areas(min_area=1) == areas()
    assert areas(min_area=2) == sorted([forest, *pond])
    assert areas(min_area=9) == [forest, pond[1]]
    assert areas(min_area=10, fill_holes=10) == [("forest", 144)]
    assert areas(fill_holes=9) == sorted([forest, house, ("water", 9), ("water", 9)])
    assert areas(min_area=8, fill_holes=2) == [forest, ("water", 9), ("water", 9)]


def test_areas_in_options_are_square_metres(tmp_path: Path) -> None:
    layer = write(tmp_path / "map.fgb", nested(), options=VectorOptions(min_area=850, fill_holes=850))
    assert sorted(layer.columns["area_m2"]) == [900, 900, 12600]


def test_chosen_classes(tmp_path: Path) -> None:
    layer = write(tmp_path / "map.fgb", nested(), options=VectorOptions(classes=("building", "forest")))
    assert sorted(layer.columns["class"]) == ["building", "forest"]
    assert sorted(layer.columns["class_index"]) == [1, 2]


def test_simplified_neighbours_share_their_borders(tmp_path: Path) -> None:
    classes = np.where(draw() == IGNORE, 0, draw())
    exact = write(tmp_path / "exact.fgb", classes)
    layer = write(tmp_path / "map.fgb", classes, options=VectorOptions(simplify=2))
    assert shapely.coverage_is_valid(layer.polygons)
    points, before = (shapely.get_num_coordinates(each.polygons).sum() for each in (layer, exact))
    assert points < 0.8 * before
    assert sorted(layer.columns["area_m2"]) == sorted(exact.columns["area_m2"])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_map_without_classes_gives_an_empty_layer(tmp_path: Path, suffix: str) -> None:
    layer = write(tmp_path / f"map{suffix}", np.full((4, 5), IGNORE, np.uint8))
    assert len(layer.polygons) == 0


def refuse(path: Path, *, crs: CRS | None = UTM, options: VectorOptions | None = None) -> None:
    with open_polygons(path, transform=PLACE, crs=crs, names=NAMES, options=options):
        raise AssertionError("refused too late")


def test_mistakes_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"map\.geojsn: .*did you mean '\.geojson'.*\.gpkg, \.fgb, \.parquet"
    ):
        refuse(tmp_path / "map.geojsn")
    with pytest.raises(ConfigError, match=r"no class 'forst' \(did you mean 'forest'\?\); there are water"):
        refuse(tmp_path / "map.gpkg", options=VectorOptions(classes=("forst",)))
    with pytest.raises(
        DataError, match=r"map\.geojson: the scene has no CRS.*\.gpkg, \.fgb, \.parquet can do"
    ):
        refuse(tmp_path / "map.geojson", crs=None)
    for wrong in ({"simplify": -1.0}, {"min_area": float("nan")}, {"fill_holes": float("inf")}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: .*from 0 up"):
            VectorOptions(**wrong)
    assert os.listdir(tmp_path) == []


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "map.gpkg"
    path.write_text("old")

    def fail() -> None:
        with open_polygons(path, transform=PLACE, crs=UTM, names=NAMES) as writer:
            writer.add(0, draw())
            raise KeyError("band")

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["map.gpkg"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("short", [0.2, 0.99])
def test_a_full_disk(tmp_path: Path, suffix: str, short: float) -> None:
    """Simulated by the largest size of a file; GDAL keeps quiet about some of these."""
    classes = draw(150, 150)
    path = tmp_path / f"map{suffix}"
    write(path, classes)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(short * len(before)), limits[1]))
    try:
        with pytest.raises(WriteError, match="can't write"):
            write(path, classes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.slow
def test_real_labels(shared: Path, tmp_path: Path) -> None:
    """Sentinel-2 forest labels: 0 is nodata, 1 forest, 2 other."""
    paths = sorted((shared / "data/s2_forest/test/labels").glob("*.tif"))
    assert paths
    for path in paths:
        with rasterio.open(path) as file:
            labels, transform, crs = file.read(1), file.transform, file.crs
        classes = np.where(labels == 0, IGNORE, labels).astype(np.uint8)
        layer = write(tmp_path / f"{path.stem}.gpkg", classes, transform=transform, crs=crs, height=17)
        np.testing.assert_array_equal(layer.burn(transform, classes.shape), classes)
        simple = write(
            tmp_path / f"{path.stem}.fgb",
            classes,
            transform=transform,
            crs=crs,
            options=VectorOptions(simplify=1.5),
        )
        assert shapely.is_valid(simple.polygons).all()
        assert shapely.coverage_is_valid(simple.polygons)
