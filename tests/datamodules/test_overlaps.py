"""Overlaps of grids: the area by shapely in one metric projection, across CRSs, rotations and the date line."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform

from datamodules.overlaps import Ground, area, holds, lattice
from datamodules.raster import LONLAT, Grid

DEGREE = 111_320.0


def grid_at(lon: float, lat: float, *, crs: str, metres: float, size: int, turn: float = 0.0) -> Grid:
    """A square grid with its middle at a place, in pixels of `metres` on the ground there."""
    system = CRS.from_user_input(crs)
    pixel = metres / DEGREE if system.is_geographic else metres
    if system.to_epsg() == 3857:
        pixel = metres / np.cos(np.radians(lat))
    (x,), (y,) = ([lon], [lat]) if system.is_geographic else transform(LONLAT, system, [lon], [lat])
    place = Affine.translation(x, y) * Affine.rotation(turn) * Affine.scale(pixel, -pixel)
    return Grid(size, size, place * Affine.translation(-size / 2, -size / 2), system)


def on_the_ground(grid: Grid, lon: float, lat: float) -> shapely.Polygon:
    """The grid's outline in metres around a place (azimuthal equidistant), its edges in many points."""
    steps = np.arange(200) / 200
    rows = np.concatenate([steps * 0, steps, steps * 0 + 1, 1 - steps]) * grid.height
    cols = np.concatenate([steps, steps * 0 + 1, 1 - steps, steps * 0]) * grid.width
    lons, lats = grid.to_lonlat(rows, cols)
    plane = CRS.from_proj4(f"+proj=aeqd +lat_0={lat} +lon_0={lon} +datum=WGS84")
    return shapely.Polygon(np.stack(transform(LONLAT, plane, lons, lats), axis=1))


SYSTEMS = st.sampled_from(["EPSG:32632", "EPSG:32633", "EPSG:4326", "EPSG:3857", "EPSG:3035"])
GRIDS = st.builds(
    lambda east, north, crs, metres, turn: grid_at(
        12 + east / 70_000, 50 + north / DEGREE, crs=crs, metres=metres, size=100, turn=turn
    ),
    st.floats(-1500, 1500),
    st.floats(-1500, 1500),
    SYSTEMS,
    st.sampled_from([5.0, 10.0, 23.0]),
    st.sampled_from([0.0, 0.0, 30.0]),
)


@given(GRIDS, GRIDS)
def test_shared_area_is_that_of_the_polygons_on_the_ground(one, other):
    ground = Ground([one, other])
    shapes = [on_the_ground(grid, 12, 50) for grid in (one, other)]
    common = shapes[0].intersection(shapes[1]).area
    polygon = ground.shared(0, 1)
    if polygon is None:
        assert common < 0.02 * min(shape.area for shape in shapes)
    else:
        share = area(polygon) / (other.height * other.width)
        assert share == pytest.approx(common / shapes[1].area, abs=2e-3)


@given(GRIDS, GRIDS)
def test_margins_grow_the_other_grid_and_candidates_miss_nothing(one, other):
    ground = Ground([one, other])
    shapes = [on_the_ground(grid, 12, 50) for grid in (one, other)]
    apart = shapes[0].distance(shapes[1])
    margin = 20.0  # pixels
    metres = margin * float(ground.pixel[1])
    # pixels of degrees are 0.78 times their mean side wide and 1.22 times high at this latitude
    if apart < 0.75 * metres:
        assert ground.shared(0, 1, margin=margin) is not None
    if apart > 1.8 * metres:  # a corner's margin is a square's
        assert ground.shared(0, 1, margin=margin) is None
    if apart < metres:
        assert dict(ground.near([0], [1], margin=metres))[0] == [1]


@given(st.lists(GRIDS, min_size=2, max_size=12))
def test_candidates_hold_all_that_overlap(grids):
    ground = Ground(grids)
    everything = range(len(grids))
    for i, found in ground.near(everything, everything):
        meeting = {j for j in everything if j != i and ground.shared(j, i) is not None}
        assert meeting <= set(found)
        assert i not in found


@pytest.mark.parametrize("crs", ["EPSG:32660", "EPSG:32601", "EPSG:3832"])
@pytest.mark.parametrize("centre", [179.999, -179.999, 180.0])
def test_the_date_line_is_a_place_like_any_other(crs, centre):
    """A grid in degrees that counts on beyond 180 (or below -180), and one in metres about the same place."""
    here = grid_at(centre, -17.0, crs="EPSG:4326", metres=10, size=200)
    there = grid_at(180.0, -17.0, crs=crs, metres=10, size=200)
    ground = Ground([here, there])
    assert dict(ground.near([0], [1]))[0] == [1]
    for pair in ((0, 1), (1, 0)):
        polygon = ground.shared(*pair)
        assert polygon is not None
        assert area(polygon) / 200**2 > 0.8
    away = Ground([here, grid_at(0.0, -17.0, crs="EPSG:4326", metres=10, size=200)])
    assert dict(away.near([0], [1]))[0] == []


def test_neighbours_that_touch_do_not_overlap():
    left = Grid(100, 100, Affine(10, 0, 500_000, 0, -10, 5_500_000), CRS.from_epsg(32633))
    right = Grid(100, 100, Affine(10, 0, 501_000, 0, -10, 5_500_000), CRS.from_epsg(32633))
    ground = Ground([left, right])
    assert ground.shared(0, 1) is None
    assert ground.shared(0, 1, margin=1.0) is not None
    assert ground.pixel == pytest.approx(10, rel=5e-3)


def test_points_go_from_one_grid_to_the_other_and_back():
    ground = Ground(
        [
            grid_at(12, 50, crs=crs, metres=10, size=100, turn=turn)
            for crs, turn in (("EPSG:32633", 20), ("EPSG:4326", 0))
        ]
    )
    points = lattice(np.array([[10.0, 20.0], [90.0, 60.0]]), count=8)
    assert points.min() >= 10
    assert len(np.unique(points, axis=0)) == 64
    there = ground.to_other(points, 0, 1)
    assert ground.to_other(there, 1, 0) == pytest.approx(points, abs=1e-3)


def test_footprints_hold_points_inside_that_are_valid():
    grid = Grid(10, 20, Affine.identity(), None)
    footprint = np.array([[True, False], [True, True]])
    points = np.array([[1.0, 1.0], [15.0, 1.0], [15.0, 8.0], [-1.0, 8.0], [1.0, 10.0]])
    assert holds(footprint, points, grid).tolist() == [True, False, True, False, False]


def test_grids_without_a_place_on_earth_are_near_nothing():
    nowhere = Grid(10, 10, Affine(10, 0, 1e12, 0, -10, 1e12), CRS.from_epsg(32633))
    here = grid_at(12, 50, crs="EPSG:32633", metres=10, size=10)
    assert dict(Ground([nowhere, here]).near([0, 1], [0, 1])) == {0: [], 1: []}
