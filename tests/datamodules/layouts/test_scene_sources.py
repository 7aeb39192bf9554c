"""Scenes with a file a band, virtual rasters and STAC: found, read as one raster, and what faults get."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio

from datamodules.augment import Augment
from datamodules.batch import Item, Window
from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.geotiff import GeoTiffDataModule
from datamodules.labels import VectorOptions
from datamodules.layouts import geotiff, stac
from datamodules.raster import Pool, read_header, read_window
from datamodules.splits import DriveSplit, FolderSplit, SceneSplit

SIDE = 96
BANDS = ("B02", "B03", "B8A")
CLASSES = [ClassSpec("low", (0,)), ClassSpec("high", (1,))]


def pixels(seed: int) -> np.ndarray:
    """(3, 96, 96); a corner of the second band is nodata."""
    values = np.random.default_rng(seed).integers(1, 4000, (3, SIDE, SIDE)).astype(np.uint16)
    values[1, :9, :5] = 0
    return values


def module(root: Path, **options: Any) -> GeoTiffDataModule:
    settings = {
        "classes": CLASSES,
        "split": SceneSplit(val=0.25, test=0.25, seed=1),
        "chip": 32,
        "normalise": "data",
        "augment": Augment("none"),
        "batch_size": 2,
        "workers": 0,
    }
    return GeoTiffDataModule(root, **{**settings, **options})


def read_whole(data: GeoTiffDataModule, item: Item) -> Any:
    return data._reader().read(Item(item.id, item.group, item.image, item.label))


@pytest.fixture
def stacked(tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
    """Four scenes with a file a band, and the same as one file each."""
    for seed in range(4):
        values, west = pixels(seed), 500_000.0 + 10_000 * seed
        for band, each in zip(BANDS, values, strict=True):
            write_raster(tmp_path / f"split/s{seed}_{band}_10m.tif", each, west=west, nodata=0)
        write_raster(tmp_path / f"whole/s{seed}_10m.tif", values, west=west, nodata=0, names=BANDS)
        write_raster(tmp_path / f"labels/s{seed}_10m.tif", (values[0] > 2000).astype(np.uint8), west=west)
    return tmp_path


# ------------------------------------------------------------------------------------ a file a band


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_a_band_is_as_one_file(stacked, workers):
    one = module(stacked, images="whole/*.tif", bands=BANDS)
    many = module(stacked, images="split/*_{band}_10m.tif", bands=BANDS, workers=workers)
    for left, right in zip(one.train_dataloader(), many.train_dataloader(), strict=True):
        for name in ("image", "mask", "valid"):
            assert (left[name] == right[name]).all()
    items = [item for items in many.items.values() for item in items]
    assert sorted(item.id for item in items) == [f"split/s{seed}_10m.tif" for seed in range(4)]
    for item in items:
        raw, expected = read_whole(many, item), pixels(int(item.id[7]))
        np.testing.assert_array_equal(raw.values, expected)
        np.testing.assert_array_equal(raw.valid, (expected > 0).all(axis=0))
        assert Path(item.label).stem == Path(item.id).stem


def test_bands_are_chosen_by_name(stacked):
    data = module(stacked, images="split/*_{band}_10m.tif", bands=BANDS, use_bands=("B8A", "B02"))
    data.scan()
    item = data.items["train"][0]
    np.testing.assert_array_equal(read_whole(data, item).values, pixels(int(item.id[7]))[[2, 0]])


@pytest.mark.parametrize(
    ("pattern", "files", "scene"),
    [
        ("{band}/*.tif", ["B02/a.tif"], "a.tif"),
        ("*/{band}.tif", ["a/B02.tif"], "a.tif"),
        ("*_{band}.tif", ["a_B02.tif"], "a.tif"),
        ("{split}/{band}_*.tif", ["train/B02_a.tif"], "train/a.tif"),
        ("x/*-{band}/img.tif", ["x/a-B02/img.tif"], "x/a/img.tif"),
    ],
)
def test_where_the_band_may_stand(tmp_path, write_raster, pattern, files, scene):
    for file in files:
        for band in BANDS:
            write_raster(tmp_path / file.replace("B02", band), np.ones((8, 8), np.uint8))
    labels = tmp_path / "labels" / f"{Path(scene).stem}.tif"
    write_raster(labels, np.ones((8, 8), np.uint8))
    folder = "train" if "{split}" in pattern else None
    (item,) = geotiff.scan(
        tmp_path, images=pattern, labels="labels/{name}.tif", folder=folder, bands=BANDS
    ).items
    assert (item.id, item.label) == (scene, str(labels))
    assert read_header(item.image, bands=BANDS).names == BANDS


def test_bands_of_several_resolutions(tmp_path, write_raster):
    fine = np.random.default_rng(0).integers(1, 4000, (2, 48, 48)).astype(np.uint16)
    coarse = np.add.outer(np.arange(24) * 100, np.arange(24) * 10).astype(np.uint16) + 1
    for seed in range(4):
        place = {"west": 500_000.0 + 10_000 * seed, "nodata": 0}
        for band, each in zip(BANDS, fine, strict=False):
            write_raster(tmp_path / f"i/s{seed}_{band}.tif", each, **place)
        write_raster(tmp_path / f"i/s{seed}_B8A.tif", coarse, pixel=20.0, **place)
        write_raster(tmp_path / f"whole/s{seed}.tif", fine, names=BANDS[:2], **place)
        write_raster(tmp_path / f"labels/s{seed}.tif", np.ones((48, 48), np.uint8), **place)
    options = {"images": "i/*_{band}.tif", "bands": BANDS}
    with pytest.raises(DataError, match=r"pixels of 10 and 20; set `resolution`"):
        module(tmp_path, **options).scan()
    data = module(tmp_path, **options, resolution=20.0)
    data.scan()
    raw = read_whole(data, data.items["train"][0])
    assert raw.values.shape == (3, 24, 24)
    whole = module(tmp_path, images="whole/*.tif", resolution=20.0)
    whole.scan()
    np.testing.assert_array_equal(raw.values[:2], read_whole(whole, whole.items["train"][0]).values)
    # interpolated to the fine pixels and back: the same where neighbours differ evenly
    np.testing.assert_allclose(raw.values[2, 2:-2, 2:-2], coarse[2:-2, 2:-2], atol=1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"s0_B03_10m\.tif: can't be read"),
        (
            "type",
            r"s0_B03_10m\.tif: its type is float32, that of .*s0_B02_10m\.tif, of the same scene, is uint16",
        ),
        ("crs", r"s0_B03_10m\.tif: its CRS is EPSG:32634"),
        ("nodata", r"s0_B03_10m\.tif: its nodata is 7\.0, that of .* is 0\.0"),
        ("ground", r"s0_B03_10m\.tif: lies on other ground than .*s0_B02_10m\.tif"),
        ("bands", r"s0_B03_10m\.tif: has 2 bands; a scene's band files have one band each"),
        ("cut", r"s0_B03_10m\.tif: cut off"),
        ("empty", r"s0_B03_10m\.tif: can't be read"),
    ],
)
def test_faults_of_band_files(stacked, write_raster, fault, message):
    path = stacked / "split/s0_B03_10m.tif"
    values = pixels(0)[1]
    changes: dict[str, dict[str, Any]] = {
        "type": {"array": values.astype(np.float32)},
        "crs": {"crs": "EPSG:32634"},
        "nodata": {"nodata": 7},
        "ground": {"west": 500_040.0},
        "bands": {"array": pixels(0)[:2]},
    }
    if fault == "missing":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif fault == "empty":
        path.write_bytes(b"")
    else:
        write_raster(path, **{"array": values, "nodata": 0, **changes[fault]})
    with pytest.raises(DataError, match=message):
        module(stacked, images="split/*_{band}_10m.tif", bands=BANDS).scan()
    data = module(stacked, images="split/*_{band}_10m.tif", bands=BANDS, on_error="skip")
    data.scan()
    assert len(data.skipped) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "split/*_{band}_10m.tif"}, "`bands` must name the bands"),
        ({"images": "split/*_{band}_10m.tif", "bands": ["B02"]}, "two or more"),
        ({"images": "{band}/*_{band}.tif", "bands": BANDS}, "once, beside"),
    ],
)
def test_patterns_that_can_not_be_meant(stacked, options, message):
    with pytest.raises(DataError, match=message):
        module(stacked, **options).scan()


# ------------------------------------------------------------------------------------ virtual rasters

VRT = """<VRTDataset rasterXSize="96" rasterYSize="96"><SRS>EPSG:32633</SRS>
<GeoTransform>{west}, 10, 0, 5400000, 0, -10</GeoTransform>{bands}</VRTDataset>"""
VRT_BAND = """<VRTRasterBand dataType="UInt16" band="{n}"><SimpleSource>
<SourceFilename relativeToVRT="1">../split/s{seed}_{band}_10m.tif</SourceFilename><SourceBand>1</SourceBand>
<SrcRect xOff="0" yOff="0" xSize="96" ySize="96"/><DstRect xOff="0" yOff="0" xSize="96" ySize="96"/>
</SimpleSource></VRTRasterBand>"""


def test_virtual_rasters(stacked):
    (stacked / "virtual").mkdir()
    for seed in range(4):
        bands = "".join(VRT_BAND.format(n=n, seed=seed, band=band) for n, band in enumerate(BANDS, start=1))
        text = VRT.format(west=500_000 + 10_000 * seed, bands=bands)
        (stacked / f"virtual/s{seed}_10m.vrt").write_text(text)
    options = {"bands": BANDS, "nodata": 0}
    virtual = module(stacked, images="virtual/*.vrt", **options)
    whole = module(stacked, images="whole/*.tif", **options)
    virtual.scan()
    whole.scan()
    for one, other in zip(virtual.items["train"], whole.items["train"], strict=True):
        left, right = read_whole(virtual, one), read_whole(whole, other)
        np.testing.assert_array_equal(left.values, right.values)
        np.testing.assert_array_equal(left.valid, right.valid)
        np.testing.assert_array_equal(left.mask, right.mask)
    (stacked / "split/s0_B03_10m.tif").unlink()
    with pytest.raises(DataError, match=r"s0_10m\.vrt: can't be read \(rows 0 to 96, columns 0 to 96\)"):
        read_window(
            Pool().file(str(stacked / "virtual/s0_10m.vrt")),
            Window(0, 0, 96, 96),
            bands=(2,),
            nodata=None,
            masked=False,
        )


# ------------------------------------------------------------------------------------ STAC


def item_of(root: Path, seed: int, *, names: bool = False) -> pystac.Item:
    """names: assets have colours as keys, and the bands' names in 'eo:bands'."""
    item = pystac.Item(
        id=f"S2_{seed}",
        geometry=None,
        bbox=None,
        datetime=datetime(2023, 5 + seed % 2, 1 + seed, 10, 30, tzinfo=UTC),
        properties={},
    )
    colours = ("blue", "green", "nir08")
    for band, colour in zip(BANDS, colours, strict=True):
        asset = pystac.Asset(f"split/s{seed}_{band}_10m.tif", roles=["data"])
        asset.extra_fields["eo:bands"] = [{"name": band, "common_name": colour}]
        item.add_asset(f"asset-{colour}" if names else band, asset)
    item.add_asset("visual", pystac.Asset(f"whole/s{seed}_10m.tif"))
    item.assets["visual"].extra_fields["bands"] = [{"name": band} for band in BANDS]
    item.add_asset("classes", pystac.Asset(f"labels/s{seed}_10m.tif", roles=["labels"]))
    item.set_self_href(str(root / f"item{seed}.json"))
    return item


def save_items(root: Path, **options: Any) -> str:
    items = []
    for seed in range(4):
        items.append(item_of(root, seed, **options).to_dict(include_self_link=False))
    content = {"type": "FeatureCollection", "features": items}
    (root / "items.json").write_text(json.dumps(content))
    return "items.json"


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("labels", ["classes", "labels/s{name}.tif"])
def test_items_with_an_asset_a_band(stacked, names, labels):
    if labels != "classes":
        for seed in range(4):
            (stacked / f"labels/s{seed}_10m.tif").rename(stacked / f"labels/sS2_{seed}.tif")
    data = module(stacked, images=save_items(stacked, names=names), labels=labels, bands=BANDS)
    data.scan()
    items = {item.id: item for group in data.items.values() for item in group}
    assert sorted(items) == [f"S2_{seed}" for seed in range(4)]
    assert items["S2_1"].group == "S2_1 2023-06-02T10:30:00Z"
    for seed in range(4):
        raw = read_whole(data, items[f"S2_{seed}"])
        np.testing.assert_array_equal(raw.values, pixels(seed))
        np.testing.assert_array_equal(raw.mask[raw.valid], (pixels(seed)[0] > 2000)[raw.valid])


def test_an_item_a_catalogue_and_the_bands_of_one_asset(stacked):
    catalogue = pystac.Catalog("all", "all scenes")
    for seed in range(4):
        item = item_of(stacked, seed)
        item.make_asset_hrefs_absolute()
        catalogue.add_item(item)
    catalogue.normalize_and_save(str(stacked / "catalogue"), pystac.CatalogType.SELF_CONTAINED)
    for bands in (BANDS, ("blue", "green", "nir08")):
        listing = stac.scan(stacked, items="catalogue/catalog.json", labels="classes", bands=bands)
        assert [item.id for item in listing.items] == [f"S2_{seed}" for seed in range(4)]
    visual = stac.scan(stacked, items="catalogue/S2_2/S2_2.json", labels="classes", bands=BANDS)
    assert visual.items[0].image == str(stacked / "whole/s2_10m.tif")  # all bands in one file
    (item,) = stac.scan(stacked, items="catalogue/S2_2/S2_2.json", labels="classes", bands=BANDS[::-1]).items
    np.testing.assert_array_equal(
        read_window(
            Pool().file(item.image), Window(0, 0, 96, 96), bands=(1, 2, 3), nodata=None, masked=False
        ).values,
        pixels(2)[::-1],
    )


def test_labels_that_are_shapes(stacked):
    square = [
        [
            [499_000, 5_399_500],
            [600_000, 5_399_500],
            [600_000, 5_400_100],
            [499_000, 5_400_100],
            [499_000, 5_399_500],
        ]
    ]
    shape = {
        "type": "Feature",
        "properties": {"class": "high"},
        "geometry": {"type": "Polygon", "coordinates": square},
    }
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    (stacked / "shapes.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "crs": crs, "features": [shape]})
    )
    name = save_items(stacked)
    content = json.loads((stacked / name).read_text())
    for feature in content["features"]:
        feature["assets"]["classes"]["href"] = "shapes.geojson"
    (stacked / name).write_text(json.dumps(content))
    specs = [ClassSpec("low", ("low",)), ClassSpec("high", ("high",))]
    vector = VectorOptions(background="low")
    data = module(stacked, images=name, labels="classes", bands=BANDS, vector=vector, classes=specs)
    data.scan()
    raw = read_whole(data, data.items["train"][0])
    assert (raw.mask[:50] == np.where(raw.valid[:50], 1, 255)).all()
    assert (raw.mask[50:] == 0).all()


def test_scenes_of_a_catalogue_by_month(stacked):
    split = DriveSplit(pattern=r"^S2_(\d)", val=0.25, test=0.25)
    data = module(stacked, images=save_items(stacked), labels="classes", bands=BANDS, split=split)
    data.scan()
    assert {item.group for items in data.items.values() for item in items} == {"0", "1", "2", "3"}


def feature(**more: Any) -> dict[str, Any]:
    own = {"type": "Feature", "stac_version": "1.0.0", "id": "a", "geometry": None, "links": [], "assets": {}}
    return own | {"properties": {"datetime": "2023-01-01T00:00:00Z"}} | more


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"holds \[\]; allowed: a STAC item"),
        ({"type": "Topology"}, "its type is Topology; STAC has Feature"),
        ({"type": "FeatureCollection", "features": []}, "has no items"),
        ({"type": "FeatureCollection", "features": [{"type": "Feature"}]}, "not STAC, or a damaged file"),
        ({"type": "FeatureCollection", "features": [feature(), feature()]}, "without label|given twice"),
        (
            {"type": "FeatureCollection", "features": [feature()], "links": [{"rel": "next", "href": "x"}]},
            "is the first page, with 1 items, of several",
        ),
        (feature(properties={"datetime": "yesterday"}), "not STAC, or a damaged file"),
        (
            feature(assets={"classes": {"href": "l.tif"}, "B03": {"href": "a.tif"}}),
            r"no asset is or has the band 'B02'",
        ),
    ],
)
def test_faults_of_catalogues(tmp_path, content, message):
    (tmp_path / "items.json").write_text(json.dumps(content))
    (tmp_path / "l.tif").touch()
    with pytest.raises(DataError, match=message):
        stac.scan(tmp_path, items="items.json", labels="classes", bands=("B02", "B03"))


def test_a_cut_off_catalogue_and_missing_assets(stacked):
    name = save_items(stacked)
    text = (stacked / name).read_text()
    (stacked / name).write_text(text[:300])
    with pytest.raises(DataError, match=r"items\.json: not STAC, or a damaged file"):
        stac.scan(stacked, items=name, labels="classes", bands=BANDS)
    (stacked / name).write_text(text)
    with pytest.raises(DataError, match=r"did you mean 'B02'"):
        stac.scan(stacked, items=name, labels="classes", bands=("B2", "B03"))
    with pytest.raises(DataError, match="3 assets with the role 'data'"):
        stac.scan(stacked, items=name, labels="classes")
    with pytest.raises(DataError, match="the asset 'visual' has several bands"):
        stac.scan(stacked, items=name, labels="classes", bands=("visual", "B03"))
    (stacked / "labels/s0_10m.tif").unlink()
    with pytest.raises(DataError, match=r"1 images without label"):
        module(stacked, images=name, labels="classes", bands=BANDS).scan()
    with pytest.raises(DataError, match=r"no image with a label matches 'none\.json'"):
        module(stacked, images="none.json", labels="classes", bands=BANDS).scan()


def test_a_catalogue_a_split(stacked):
    features = json.loads((stacked / save_items(stacked)).read_text())["features"]
    for split, part in {"train": features[:3], "val": features[3:]}.items():
        (stacked / f"{split}.json").write_text(json.dumps({"type": "FeatureCollection", "features": part}))
    data = module(stacked, images="{split}.json", labels="classes", bands=BANDS, split=FolderSplit())
    data.scan()
    assert {split: len(items) for split, items in data.items.items()} == {"train": 3, "val": 1, "test": 0}


def test_rasterio_is_the_reference(stacked):
    """Of the stack of files, too: what GDAL reads of each."""
    header = read_header(str(stacked / "split/s1_{B02,B03,B8A}_10m.tif"))
    assert header.names == BANDS
    own = read_window(
        Pool().file(header.path, header.state), Window(5, 7, 40, 30), bands=(1, 2, 3), nodata=0, masked=False
    )
    for number, band in enumerate(BANDS):
        with rasterio.open(stacked / f"split/s1_{band}_10m.tif") as file:
            np.testing.assert_array_equal(own.values[number], file.read(1)[5:45, 7:37])
            assert own.transform == file.transform * file.transform.translation(7, 5)
