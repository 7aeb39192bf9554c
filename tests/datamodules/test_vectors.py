"""Vector labels: what is drawn where, compared with rasterio on the whole scene; and what bad files get."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyogrio
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.warp import transform_geom

from datamodules.batch import IGNORE, Window
from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.labels import VectorLabels, VectorOptions, open_vectors
from datamodules.raster import Grid, Pool
from datamodules.vectors import Drawing, VectorFiles

UTM = CRS.from_epsg(32633)
WEST, NORTH = 500_000.0, 5_400_000.0
GRID = Grid(60, 50, Affine(10, 0, WEST, 0, -10, NORTH), UTM)
CLASSES = (ClassSpec("ground", ("ground", "bare")), ClassSpec("water", ("water",)))
MEANINGS = {"ground": 0, "bare": 0, "water": 1, "cloud": IGNORE}
DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".shp": "ESRI Shapefile", ".fgb": "FlatGeobuf"}


def at(*pixels: float) -> tuple[float, ...]:
    """left, top, right, bottom in pixels of GRID -> west, south, east, north."""
    left, top, right, bottom = pixels
    return WEST + 10 * left, NORTH - 10 * bottom, WEST + 10 * right, NORTH - 10 * top


def box(*pixels: float) -> shapely.Polygon:
    return shapely.box(*at(*pixels))


SHAPES = [(box(2, 3, 20, 30), "ground"), (box(15, 10, 40, 25), "water"), (box(30, 40, 45, 55), "bare")]


def write(
    path: Path, shapes: list[tuple[Any, Any]] | None = None, *, crs: str | None = "EPSG:32633", **options: Any
) -> str:
    """(geometry, class) pairs as a vector file."""
    pairs = SHAPES if shapes is None else shapes
    wkb = np.array([shapely.to_wkb(geometry) for geometry, _ in pairs], object)
    values = [value for _, value in pairs]
    column = np.array(values, float if values and isinstance(values[0], float) else object)
    settings = {"geometry_type": "Unknown", "fields": ["class"]} | options
    if path.suffix == ".fgb":
        settings["SPATIAL_INDEX"] = "NO"  # it would sort the shapes
    if path.suffix == ".shp":
        settings["geometry_type"] = "Polygon"
    pyogrio.raw.write(path, wkb, [column], driver=DRIVERS[path.suffix], crs=crs, **settings)
    return str(path)


def write_parquet(path: Path, geo: dict[str, Any] | None) -> str:
    wkb = [shapely.to_wkb(geometry) for geometry, _ in SHAPES]
    table = pyarrow.table({"shape": wkb, "class": [name for _, name in SHAPES]})
    if geo is not None:
        table = table.replace_schema_metadata({"geo": json.dumps(geo)})
    parquet.write_table(table, path)
    return str(path)


def files(**options: Any) -> VectorFiles:
    return open_vectors(VectorOptions(**options), CLASSES, ("cloud",))


def read(path: str, window: Window | None = None, *, grid: Grid = GRID, **options: Any) -> np.ndarray:
    return VectorLabels(path, grid, files(**options)).read(window or grid.window, Pool())


def expected(shapes: list[tuple[Any, str]] = SHAPES, grid: Grid = GRID, **options: Any) -> np.ndarray:
    """rasterio's own drawing of the whole scene."""
    settings: dict[str, Any] = {"fill": IGNORE, "dtype": "uint8", "transform": grid.transform}
    pairs = [(geometry, MEANINGS[name]) for geometry, name in shapes]
    return rasterize(pairs, (grid.height, grid.width), **(settings | options))


def faults(path: str, **options: Any) -> list[str]:
    return [f"{count} {text}" for text, count in files(**options).shapes(path).faults.items()]


# --------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("suffix", DRIVERS)
def test_every_format_is_drawn_as_rasterio_draws_it(tmp_path, suffix):
    crs = None if suffix == ".geojson" else "EPSG:32633"
    shapes = SHAPES
    if suffix == ".geojson":  # always longitude and latitude
        crs = "EPSG:4326"
        shapes = [
            (shapely.geometry.shape(transform_geom(UTM, crs, shapely.geometry.mapping(geometry))), name)
            for geometry, name in SHAPES
        ]
    path = write(tmp_path / f"labels{suffix}", shapes, crs=crs)
    np.testing.assert_array_equal(read(path), expected())


def test_geoparquet_says_its_crs_or_means_degrees(tmp_path):
    about = {"encoding": "WKB", "geometry_types": [], "crs": UTM.to_dict(projjson=True)}
    geo = {"version": "1.1.0", "primary_column": "shape", "columns": {"shape": about}}
    path = write_parquet(tmp_path / "labels.parquet", geo)
    np.testing.assert_array_equal(read(path), expected())
    del about["crs"]
    problem = VectorLabels(write_parquet(tmp_path / "degrees.parquet", geo), GRID, files()).miss()
    assert problem is not None
    assert "they span x 500020 to 500450" in problem
    assert "the scene x 15" in problem


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_a_window_is_cut_from_the_drawing_of_the_whole_scene(seed, all_touched, background):
    """Over several tiles, and beyond the scene's edges, where nothing is labelled."""
    rng = np.random.default_rng(seed)
    size = (300, 280)
    rings = rng.uniform(-20, 320, (4, int(rng.integers(3, 7)), 2))
    shapes, fill = np.array([shapely.Polygon(ring) for ring in rings], object), 7 if background else IGNORE
    drawing = Drawing(shapes, np.arange(4, dtype=np.uint8), size=size, fill=fill, all_touched=all_touched)
    whole = np.full((500, 500), IGNORE, np.uint8)
    whole[100:400, 100:380] = rasterize(
        zip(shapes, range(4), strict=True), size, fill=fill, all_touched=all_touched, dtype="uint8"
    )
    for _ in range(4):
        row, col = rng.integers(-100, 300, 2).tolist()
        height, width = rng.integers(1, 101, 2).tolist()
        mask = drawing.mask(Window(row, col, height, width))
        np.testing.assert_array_equal(
            mask, whole[100 + row : 100 + row + height, 100 + col : 100 + col + width]
        )


@given(st.integers(0, 10**6))
def test_windows_agree_where_an_edge_runs_through_the_corners_of_pixels(seed):
    rng = np.random.default_rng(seed)
    ring = rng.integers(-5, 55, (4, 2))
    shape = np.array([shapely.Polygon(ring)], object)
    drawing = Drawing(shape, np.zeros(1, np.uint8), size=(50, 45), fill=IGNORE, all_touched=True)
    row, col = rng.integers(0, 40, 2).tolist()
    part = drawing.mask(Window(row, col, 9, 5))
    inside = drawing.mask(Window(0, 0, 60, 60))[row : row + 9, col : col + 5]
    np.testing.assert_array_equal(part, inside)


def test_a_scene_resampled_or_turned_keeps_its_shapes_on_the_ground(tmp_path):
    path = write(tmp_path / "labels.gpkg")
    for grid in (
        GRID.at_resolution(25.0),
        Grid(60, 50, GRID.transform * Affine.rotation(20, pivot=(25, 30)), UTM),
    ):
        np.testing.assert_array_equal(read(path, grid=grid), expected(grid=grid))


def test_the_later_shape_lies_on_top_and_the_overlap_is_said(tmp_path):
    path = write(tmp_path / "labels.gpkg")
    assert (read(path)[12:24, 16:19] == 1).all()
    assert faults(path) == ["1 lie under a later one of another class, which is drawn over them"]
    assert (read(write(tmp_path / "other.gpkg", SHAPES[1::-1]))[12:24, 16:19] == 0).all()
    apart = [(box(0, 0, 10, 10), "ground"), (box(10, 0, 20, 10), "water"), (box(5, 5, 8, 8), "bare")]
    assert faults(write(tmp_path / "apart.gpkg", apart)) == []


def test_background_and_ignored_shapes(tmp_path):
    path = write(tmp_path / "labels.gpkg", [*SHAPES, (box(0, 0, 50, 5), "cloud")])
    mask = read(path, background="ground")
    assert (mask[:5] == IGNORE).all()
    assert (mask[32:38] == 0).all()
    np.testing.assert_array_equal(mask[5:], expected(fill=0)[5:])


def test_points_and_lines_have_the_ground_around_them(tmp_path):
    x, y = at(25, 30, 25, 30)[:2]
    line = shapely.LineString([at(5, 5, 5, 5)[:2], at(45, 5, 45, 5)[:2]])
    path = write(tmp_path / "thin.gpkg", [(line, "ground"), (shapely.Point(x, y), "water"), SHAPES[2]])
    mask = read(path, buffer=25.0)
    rows, cols = np.mgrid[:60, :50] + 0.5
    disc = np.hypot(rows - 30, cols - 25) < 2.5
    assert (mask == 1)[disc].mean() > 0.95
    assert not (mask == 1)[~disc].any()
    assert (mask[3:7, 5:45] == 0).all()
    np.testing.assert_array_equal(mask[40:], expected(SHAPES[2:])[40:])
    with pytest.raises(DataError, match=r"feature 1 is a Linestring \(2 of 3 features .* set vector.buffer"):
        read(path)


def test_numbers_as_classes_with_gaps_in_the_column(tmp_path):
    classes = (ClassSpec("ground", (3,)), ClassSpec("water", (7, -1)))
    path = write(
        tmp_path / "labels.gpkg", [(SHAPES[0][0], 3.0), (SHAPES[1][0], np.nan), (SHAPES[2][0], -1.0)]
    )
    shapes = open_vectors(VectorOptions(), classes, ()).shapes(path)
    assert shapes.codes.tolist() == [0, 1]
    assert dict(shapes.faults) == {"have no class and are left out": 1}


def test_edges_straight_in_degrees_are_curved_on_the_ground(tmp_path):
    """The reference has a vertex every 20 m where the file has four."""
    west, south, east, north = 14.2, 48.4, 15.8, 48.7418
    path = write(tmp_path / "wide.gpkg", [(shapely.box(west, south, east, north), "water")], crs="EPSG:4326")
    fine = shapely.segmentize(shapely.box(west, south, east, north), 2e-4)
    grid = Grid(300, 300, Affine(100, 0, 480_000, 0, -100, 5_405_000), UTM)
    truth = shapely.geometry.shape(transform_geom("EPSG:4326", UTM, shapely.geometry.mapping(fine)))
    assert (read(path, grid=grid) != expected([(truth, "water")], grid)).sum() <= 3


def test_it_is_pickled_without_what_it_read(tmp_path):
    path = write(tmp_path / "labels.gpkg")
    labels = VectorLabels(path, GRID, files())
    empty = len(pickle.dumps(labels))
    mask = labels.read(GRID.window, Pool())
    assert len(pickle.dumps(labels)) == empty
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(labels)).read(GRID.window, Pool()), mask)


# ------------------------------------------------------------------------------------- bad files


def refused(path: str, match: str, **options: Any) -> None:
    with pytest.raises(DataError, match=match) as caught:
        read(path, **options)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_class(tmp_path):
    path = write(tmp_path / "labels.gpkg", [*SHAPES, (box(0, 0, 1, 1), "wter"), (box(1, 1, 2, 2), "ice")])
    refused(
        path,
        r"column 'class' of feature 4 is 'wter' \(and 1 features more\), which is in no class. "
        r"Allowed: 'ground' \(ground\), 'bare' \(ground\), 'water' \(water\), 'cloud' \(ignored\); "
        r"did you mean 'water'\?",
    )


def test_a_missing_column_or_layer(tmp_path):
    path = write(tmp_path / "labels.gpkg", layer="land_cover")
    refused(path, r"has no column 'clas'; it has class; did you mean 'class'\?", column="clas")
    refused(path, "has no layer 'land cover'; it has land_cover; did you mean", layer="land cover")
    write(tmp_path / "labels.gpkg", layer="roads", append=True)
    refused(path, "has 2 layers: land_cover, roads; choose one with vector.layer")
    np.testing.assert_array_equal(read(path, layer="roads"), expected())


def test_invalid_geometry_is_repaired_and_counted(tmp_path):
    left, top, right, bottom = 10.0, 10.0, 30.0, 30.0
    corners = [(left, top), (right, bottom), (right, top), (left, bottom)]
    bow = shapely.Polygon([at(*corner, *corner)[:2] for corner in corners])
    path = write(tmp_path / "labels.gpkg", [(bow, "water")])
    mask = read(path)
    triangles = [shapely.Polygon([at(*each, *each)[:2] for each in ring]) for ring in (
        [(10, 10), (20, 20), (10, 30)], [(30, 10), (20, 20), (30, 30)]
    )]  # fmt: skip
    assert (mask != expected([(each, "water") for each in triangles])).sum() <= 20  # on the diagonals
    assert faults(path) == ["1 were invalid and have been repaired"]


def test_missing_geometry_and_missing_class_are_counted(tmp_path):
    hollow = [(None, "water"), (shapely.Polygon(), "water")]
    path = write(tmp_path / "labels.gpkg", [*SHAPES[:1], *hollow, (box(1, 1, 2, 2), None)])
    np.testing.assert_array_equal(read(path), expected(SHAPES[:1]))
    assert faults(path) == ["1 have no class and are left out", "2 have no geometry and are left out"]


def test_without_crs_it_lies_in_its_scenes(tmp_path):
    path = write(tmp_path / "labels.shp", crs=None)
    np.testing.assert_array_equal(read(path), expected())
    assert "3 have no CRS and are taken to be in their scene's" in faults(path)


def miss(path: str, **options: Any) -> str:
    problem = VectorLabels(path, GRID, files(**options)).miss()
    assert problem is not None
    return problem


def test_shapes_elsewhere_and_swapped_axes(tmp_path):
    far = [(box(500, 500, 510, 510), "water")]
    text = miss(write(tmp_path / "far.gpkg", far))
    assert "its 1 shapes lies within the scene: they span x 505000 to 505100, y 5394900 to 5395000" in text
    assert "the scene x 500000 to 500500, y 5399400 to 5400000 (EPSG:32633)" in text
    assert "swapped" not in text
    degrees = transform_geom(UTM, "EPSG:4326", shapely.geometry.mapping(SHAPES[0][0]))
    lat_first = shapely.transform(shapely.geometry.shape(degrees), lambda points: points[:, ::-1])
    text = miss(write(tmp_path / "swapped.geojson", [(lat_first, "water")], crs="EPSG:4326"))
    assert "With x and y swapped they would meet: is the file's axis order right?" in text


def test_an_empty_file(tmp_path):
    assert miss(write(tmp_path / "empty.gpkg", [])).endswith("holds no shape with a class")
    path = write(tmp_path / "null.gpkg", [(None, "water")])
    assert miss(path).endswith("holds no shape with a class (1 have no geometry and are left out)")


def test_the_date_line(tmp_path):
    """A scene astride it, with shapes cut there as RFC 7946 asks; and a shape that is not cut."""
    grid = Grid(40, 40, Affine(1000, 0, 810_000, 0, -1000, 20_000), CRS.from_epsg(32601 + 59))
    both = [(shapely.box(179.9, -0.1, 180, 0.1), "ground"), (shapely.box(-180, -0.1, -179.9, 0.1), "water")]
    path = write(tmp_path / "cut.gpkg", both, crs="EPSG:4326")
    mask = read(path, grid=grid)
    assert (mask == 0).sum() == pytest.approx((mask == 1).sum(), rel=0.1)
    assert (mask == 1).sum() == pytest.approx(11.1 * 22.1, rel=0.1)
    uncut = shapely.Polygon([(179.9, -0.1), (-179.9, -0.1), (-179.9, 0.1), (179.9, 0.1)])
    (note,) = faults(write(tmp_path / "uncut.gpkg", [(uncut, "water")], crs="EPSG:4326"))
    assert note.startswith("1 span more than 180 degrees of longitude")


@pytest.mark.parametrize("suffix", DRIVERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_a_cut_off_file(tmp_path, suffix, share):
    path = Path(write(tmp_path / f"labels{suffix}", SHAPES * 200))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(str(path), "can't be read|cut off|no layer|no column")


def test_a_cut_off_geoparquet_and_one_that_is_none(tmp_path):
    path = Path(write_parquet(tmp_path / "plain.parquet", None))
    refused(str(path), "a Parquet file without 'geo' metadata is no GeoParquet")
    path.write_bytes(path.read_bytes()[:-10])
    refused(str(path), "can't be read")
