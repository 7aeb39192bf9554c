"""Reading windows: pixels, validity, grids and what damaged files get; GDAL itself is the reference."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window as RioWindow

from datamodules.batch import Window
from datamodules.errors import DataError
from datamodules.raster import Pool, is_measured, read_footprint, read_header, read_resampled, read_window


def read(path, window, *, nodata=None, bands=None, masked=None):
    header = read_header(path)
    return read_window(
        Pool().file(str(path)),
        window,
        bands=bands or header.indexes,
        nodata=header.nodata if nodata is None else nodata,
        masked=header.masked if masked is None else masked,
    )


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(1, 4000, (3, 40, 50)).astype(np.uint16)


@pytest.mark.parametrize("window", [Window(0, 0, 40, 50), Window(-3, -4, 20, 20), Window(30, 45, 20, 9)])
def test_window_beyond_the_edges_equals_gdals_boundless_read(tmp_path, write_raster, values, window):
    path = write_raster(tmp_path / "a.tif", values)
    raster = read(path, window)
    with rasterio.open(path) as file:
        area = RioWindow(window.col, window.row, window.width, window.height)
        expected = file.read(window=area, boundless=True, fill_value=0)
        assert raster.transform.almost_equals(file.window_transform(area))
        assert raster.crs == file.crs
    np.testing.assert_array_equal(raster.values, expected)
    np.testing.assert_array_equal(raster.valid, (expected > 0).all(axis=0))
    assert raster.values.dtype == np.uint16


def test_values_go_where_they_are_wanted(tmp_path, write_raster, values):
    file = Pool().file(str(write_raster(tmp_path / "a.tif", values)))
    room = np.zeros((3, 10, 20), np.uint16)
    inside = read_window(file, Window(5, 6, 10, 20), bands=(1, 2, 3), nodata=None, masked=False, out=room)
    assert inside.values is room
    np.testing.assert_array_equal(room, values[:, 5:15, 6:26])
    beyond = read_window(file, Window(35, 40, 10, 20), bands=(1, 2, 3), nodata=None, masked=False, out=room)
    np.testing.assert_array_equal(beyond.values[:, :5, :10], values[:, 35:, 40:])


def test_window_outside_is_all_invalid(tmp_path, write_raster, values):
    raster = read(write_raster(tmp_path / "a.tif", values), Window(100, 100, 5, 6))
    assert raster.values.shape == (3, 5, 6)
    assert not raster.valid.any()


def test_nodata_in_one_band_is_invalid_but_8_bit_needs_all():
    wide = np.array([[[0, 5, 0]], [[7, 5, 0]]])
    assert is_measured(wide.astype(np.uint16), 0).tolist() == [[False, True, False]]
    assert is_measured(wide.astype(np.uint8), 0).tolist() == [[True, True, False]]
    assert is_measured(wide.astype(np.int16), None).all()


def test_nan_and_infinity_are_invalid_with_and_without_nodata():
    values = np.array([[[np.nan, np.inf, 1.0, -9999.0]], [[1.0, 1.0, 1.0, 1.0]]], np.float32)
    assert is_measured(values, None).tolist() == [[False, False, True, True]]
    assert is_measured(values, -9999.0).tolist() == [[False, False, True, False]]
    assert is_measured(values, float("nan")).tolist() == [[False, False, True, True]]


def test_given_nodata_overrides_the_files_own(tmp_path, write_raster):
    array = np.array([[[0, 5, 9]]], np.uint16)
    path = write_raster(tmp_path / "a.tif", array, nodata=0)
    assert read(path, Window(0, 0, 1, 3)).valid.tolist() == [[False, True, True]]
    assert read(path, Window(0, 0, 1, 3), nodata=9).valid.tolist() == [[True, True, False]]


def test_mask_and_alpha_are_validity_and_alpha_is_no_band(tmp_path, write_raster, values):
    mask = np.zeros((40, 50), np.uint8)
    mask[5:9] = 255
    path = write_raster(tmp_path / "mask.tif", values, mask=mask)
    np.testing.assert_array_equal(read(path, Window(0, 0, 40, 50)).valid, mask > 0)

    path = tmp_path / "alpha.tif"
    write_raster(path, np.concatenate([values, mask[None].astype(np.uint16)]), photometric="RGB", alpha="yes")
    header = read_header(path)
    assert header.indexes == (1, 2, 3)
    assert header.masked
    np.testing.assert_array_equal(read(path, Window(0, 0, 40, 50)).valid, mask > 0)


def test_band_names_from_argument_description_colour_or_number(tmp_path, write_raster, values):
    plain = write_raster(tmp_path / "plain.tif", values)
    assert read_header(plain).names == ("B1", "B2", "B3")
    assert read_header(plain, bands=("x", "y", "z")).names == ("x", "y", "z")
    named = write_raster(tmp_path / "named.tif", values, names=("blue", "green", "red"))
    assert read_header(named).names == ("blue", "green", "red")
    assert read_header(named).select(("red", "blue")) == (3, 1)
    colours = write_raster(tmp_path / "rgb.tif", values.astype(np.uint8), photometric="RGB")
    assert read_header(colours).names == ("red", "green", "blue")
    with rasterio.open(colours) as file:
        assert file.colorinterp[0] is ColorInterp.red


def test_wrong_band_counts_and_names_say_what_there_is(tmp_path, write_raster, values):
    path = write_raster(tmp_path / "a.tif", values)
    with pytest.raises(DataError, match=r"a\.tif: has 3 bands, but 2 are named: x, y"):
        read_header(path, bands=("x", "y"))
    with pytest.raises(DataError, match=r"no band 'B4'; it has B1, B2, B3"):
        read_header(path).select(("B1", "B4"))
    twin = write_raster(tmp_path / "twin.tif", values, names=("a", "a", "b"))
    with pytest.raises(DataError, match="same name"):
        read_header(twin)


def test_complex_numbers_are_refused(tmp_path, write_raster):
    path = write_raster(tmp_path / "a.tif", np.zeros((1, 4, 4), np.complex64))
    with pytest.raises(DataError, match="complex64"):
        read_header(path)


def test_cut_off_files_are_found_in_the_header(tmp_path, write_raster, values):
    path = write_raster(
        tmp_path / "a.tif", values, compress="deflate", tiled=True, blockxsize=16, blockysize=16
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"a\.tif: cut off: its last block ends at byte \d+, the file at"):
        read_header(path)
    path.write_bytes(whole[:20])
    with pytest.raises(DataError, match=r"a\.tif: can't be read"):
        read_header(path)


def test_damage_inside_names_file_and_window(tmp_path, write_raster, values):
    path = write_raster(
        tmp_path / "a.tif", values, compress="deflate", tiled=True, blockxsize=16, blockysize=16
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tif: can't be read \(rows 0 to 40, columns 0 to 50\)"):
        read(path, Window(0, 0, 40, 50))


@pytest.mark.parametrize("name", ["picture.png", "scene.tif"])
def test_not_a_raster(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is text" * 20)
    with pytest.raises(DataError, match=f"{name}: can't be read"):
        read_header(tmp_path / name)
    with pytest.raises(DataError, match="can't be read"):
        read_header(tmp_path / "missing.tif")


@pytest.mark.parametrize("resolution", [20.0, 25.0, 4.0])
def test_resampling_equals_gdals(tmp_path, write_raster, resolution):
    """Windows together are what one warp of the whole scene gives."""
    smooth = np.add.outer(np.arange(60.0), np.arange(50.0))[None].astype(np.float32)
    path = write_raster(tmp_path / "a.tif", smooth)
    header, file = read_header(path), Pool().file(str(path))
    grid = header.grid.at_resolution(resolution)
    options = {"bands": (1,), "nodata": None, "masked": False}
    whole = read_resampled(file, grid, grid.window, **options)
    expected = np.zeros((1, grid.height, grid.width), np.float32)
    rasterio.warp.reproject(
        smooth,
        expected,
        src_transform=header.grid.transform,
        src_crs=header.grid.crs,
        dst_transform=grid.transform,
        dst_crs=grid.crs,
        resampling=Resampling.bilinear,
    )
    np.testing.assert_allclose(whole.values, expected, rtol=1e-5)
    assert whole.valid.all()
    half = grid.width // 2
    parts = [
        read_resampled(file, grid, Window(0, col, grid.height, width), **options).values
        for col, width in ((0, half), (half, grid.width - half))
    ]
    np.testing.assert_allclose(np.concatenate(parts, axis=2), expected, rtol=1e-5)


@pytest.mark.parametrize("resolution", [20.0, 5.0])
def test_resampling_never_mixes_in_nodata(tmp_path, write_raster, resolution):
    values = np.full((1, 40, 40), 1000, np.uint16)
    values[0, 10:20, 10:20] = 0
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    header, file = read_header(path), Pool().file(str(path))
    grid = header.grid.at_resolution(resolution)
    raster = read_resampled(file, grid, grid.window, bands=(1,), nodata=0, masked=False)
    assert (raster.values[0][raster.valid] == 1000).all()
    hole = slice(int(100 / resolution), int(200 / resolution))
    assert not raster.valid[hole, hole].any()
    assert raster.valid.mean() > 0.8


def test_grids_match_to_a_hundredth_of_a_pixel(tmp_path, write_raster, values):
    grid = read_header(write_raster(tmp_path / "a.tif", values)).grid
    near = read_header(write_raster(tmp_path / "b.tif", values, west=500_000.05)).grid
    far = read_header(write_raster(tmp_path / "c.tif", values, west=500_001.0)).grid
    other = read_header(write_raster(tmp_path / "d.tif", values, crs="EPSG:32634")).grid
    assert grid.matches(near)
    assert not grid.matches(far)
    assert not grid.matches(other)
    assert grid.overlaps(far)
    assert not grid.overlaps(other)


def test_degrees_and_back(tmp_path, write_raster, values):
    grid = read_header(write_raster(tmp_path / "a.tif", values)).grid
    rows, cols = np.array([0.0, 20.5, 40.0]), np.array([0.0, 30.25, 50.0])
    lons, lats = grid.to_lonlat(rows, cols)
    assert lons[0] == pytest.approx(15.0, abs=1e-6)  # the zone's middle meridian
    back = grid.to_pixel(lons, lats)
    np.testing.assert_allclose(back, (rows, cols), atol=1e-4)


def test_footprint_is_a_coarse_picture_of_validity(tmp_path, write_raster):
    values = np.zeros((2, 320, 160), np.uint16)
    values[:, :160] = 7
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    footprint = read_footprint(
        Pool().file(str(path)), Window(0, 0, 320, 160), bands=(1, 2), nodata=0, masked=False
    )
    assert footprint.shape == (20, 10)
    assert footprint[:10].all()
    assert not footprint[10:].any()


def test_pool_keeps_few_files_open_and_travels_without_them(tmp_path, write_raster, values):
    paths = [str(write_raster(tmp_path / f"{name}.tif", values)) for name in "abcd"]
    pool = Pool(limit=2)
    files = [pool.file(path) for path in paths]
    assert [file.closed for file in files] == [True, True, False, False]
    assert pool.file(paths[3]) is files[3]
    assert len(pickle.dumps(pool)) < 200
    other = pickle.loads(pickle.dumps(pool))
    assert other.file(paths[3]) is not files[3]


def test_a_forked_process_opens_files_anew(tmp_path, write_raster, values):
    path = str(write_raster(tmp_path / "a.tif", values))
    pool = Pool()
    file = pool.file(path)
    child = os.fork()
    if child == 0:
        os._exit(0 if pool.file(path) is not file else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.file(path) is file
