"""Maps: valid Cloud-Optimised GeoTIFFs, kept through a kill, absent after a failure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin
from rio_cogeo.cogeo import cog_validate

from datamodules import Classes, ClassSpec
from datamodules.raster import Grid
from visionsft.errors import WriteError
from visionsft.prediction.maps import MapWriter, legends
from visionsft.prediction.scenes import FULL, Band

CLASSES = Classes([ClassSpec("water & ice", (0,), (10, 20, 30)), ClassSpec("<land>", (1,), (200, 100, 50))])
LAYERS = ("classes", "probability", "confidence")
UTM = CRS.from_epsg(32633)
PLACE = from_origin(500_000, 5_500_000, 10, 10)
ROTATED = PLACE * Affine.rotation(30)


def make_maps(height: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2, (1, -(-height // 40), -(-width // 40)))
    classes = np.kron(coarse, np.ones((1, 40, 40), np.int64))[:, :height, :width].astype(np.uint8)
    classes[:, :3] = 255
    maps = {"classes": classes, "probability": rng.integers(0, FULL + 1, (2, height, width)).astype(np.uint8)}
    return maps | {"confidence": maps["probability"].max(axis=0, keepdims=True)}


def write(
    folder: Path,
    maps: dict[str, np.ndarray],
    *,
    place: Affine = PLACE,
    crs: CRS | None = UTM,
    rows: int = 100,
) -> dict[str, Path]:
    height, width = maps["classes"].shape[1:]
    targets = {name: folder / f"{name}.tif" for name in LAYERS}
    with MapWriter(
        folder / ".map.partial",
        grid=Grid(height, width, place, crs),
        legends=legends(LAYERS, CLASSES),
        key={},
    ) as writer:
        for row in range(0, height, rows):
            writer.add(Band(row, {name: values[:, row : row + rows] for name, values in maps.items()}))
        writer.finish(targets)
    return targets


@pytest.mark.parametrize("place", [PLACE, ROTATED], ids=["upright", "rotated"])
def test_every_layer_is_a_valid_cog(tmp_path: Path, place: Affine) -> None:
    maps = make_maps(1100, 700)
    targets = write(tmp_path, maps, place=place)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in targets.values()}
    for name, path in targets.items():
        valid, errors, warnings = cog_validate(path, strict=True)
        assert (valid, errors, warnings) == (True, [], [])
        with rasterio.open(path) as file:
            assert np.array_equal(file.read(), maps[name])
            assert (file.crs.to_epsg(), file.nodata, file.dtypes[0]) == (32633, 255, "uint8")
            assert file.transform.almost_equals(place, 1e-6)
            assert file.overviews(1) == [2, 4]
            assert file.descriptions == legends(LAYERS, CLASSES)[name].names


def test_the_class_map_names_and_colours_its_classes(tmp_path: Path) -> None:
    with rasterio.open(write(tmp_path, make_maps(600, 600))["classes"]) as file:
        assert file.tags(1)["class_0"] == "water & ice"
        assert file.tags(1)["class_1"] == "<land>"
        assert file.colormap(1)[1] == (200, 100, 50, 255)
        half = file.read(1, out_shape=(300, 300))
    assert set(np.unique(half)) <= {0, 1, 255}  # the most frequent class, never a mean


def test_shares_are_scaled_for_whoever_reads_them(tmp_path: Path) -> None:
    with rasterio.open(write(tmp_path, make_maps(40, 40))["probability"]) as file:
        assert file.scales == pytest.approx((1 / FULL,) * 2)


def test_no_place_stays_no_place(tmp_path: Path) -> None:
    with rasterio.open(
        write(tmp_path, make_maps(20, 20), place=Affine.identity(), crs=None)["classes"]
    ) as file:
        assert (file.crs, file.transform) == (None, Affine.identity())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_any_size_in_any_bands(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, rows: int
) -> None:
    maps = make_maps(height, width)
    for name, path in write(tmp_path_factory.mktemp("any"), maps, rows=rows).items():
        with rasterio.open(path) as file:
            assert np.array_equal(file.read(), maps[name])


# --------------------------------------------------------------------------------------------- interruptions


def writer_of(folder: Path, **key: object) -> MapWriter:
    grid = Grid(90, 50, PLACE, CRS.from_epsg(32633))
    return MapWriter(folder / ".map.partial", grid=grid, legends=legends(("classes",), CLASSES), key=key)


def band(row: int, value: int) -> Band:
    return Band(row, {"classes": np.full((1, 30, 50), value, np.uint8)})


def test_a_killed_map_goes_on_after_its_last_band(tmp_path: Path) -> None:
    with writer_of(tmp_path, scene="a") as writer:
        writer.add(band(0, 0))
        writer.add(band(30, 1))
    with writer_of(tmp_path, scene="a") as writer:
        assert writer.rows == 60
        writer.add(band(60, 0))
        writer.finish({"classes": tmp_path / "map.tif"})
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.read(1)[:, 0].tolist() == [0] * 30 + [1] * 30 + [0] * 30
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


@pytest.mark.parametrize("damage", ["other key", "no state", "cut state", "no bytes"])
def test_what_can_not_be_trusted_begins_anew(tmp_path: Path, damage: str) -> None:
    with writer_of(tmp_path, scene="a") as writer:
        writer.add(band(0, 0))
    folder = tmp_path / ".map.partial"
    if damage == "no state":
        (folder / "state.json").unlink()
    elif damage == "cut state":
        (folder / "state.json").write_text((folder / "state.json").read_text()[:-4])
    elif damage == "no bytes":
        (folder / "classes.raw").unlink()
    with writer_of(tmp_path, scene="b" if damage == "other key" else "a") as writer:
        assert writer.rows == 0


def test_a_map_that_can_not_fit_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionsft.prediction.maps.free_bytes", lambda folder: 1000)
    with pytest.raises(WriteError, match=r"needs 0\.0 MB, but 0\.0 MB are free"), writer_of(tmp_path):
        pass


def test_a_cog_that_comes_out_cut_off_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rasterio.shutil.copy

    def cut(source: str, target: str, **options: object) -> None:
        real(source, target, **options)
        data = Path(target).read_bytes()
        Path(target).write_bytes(data[: len(data) * 2 // 3])  # what a full disk leaves

    monkeypatch.setattr("rasterio.shutil.copy", cut)
    with pytest.raises(WriteError, match=r"classes\.tif: could not be written completely"):
        write(tmp_path, make_maps(1100, 700))
    assert not list(tmp_path.glob("*.tif"))
    assert (
        json.loads((tmp_path / ".map.partial" / "state.json").read_text())["rows"] == 1100
    )  # only the end is redone
