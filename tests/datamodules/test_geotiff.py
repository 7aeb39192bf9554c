"""The GeoTIFF data module: from files to batches, and what bad input gets."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from lightning import LightningModule, Trainer
from rasterio.warp import transform

from datamodules.augment import Augment
from datamodules.batch import IGNORE
from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.geotiff import GeoTiffDataModule
from datamodules.labels import VectorOptions
from datamodules.sampling import SampleKey
from datamodules.splits import DriveSplit, FolderSplit, ListSplit, PlaceSplit, SceneSplit
from datamodules.statistics import Normalisation

CLASSES = (ClassSpec("ground", (1,)), ClassSpec("water", (2, 3)))
PLAIN = Augment("none")
BANDS = ("blue", "green", "red", "nir")


def scene(seed: int, height: int = 60, width: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """(4, H, W) uint16 and (H, W) uint8 labels 1, 2, 3; the last band tells the label: 1000 times it."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(1, 4, (height // 10, width // 10)), np.ones((10, 10))).astype(np.uint8)
    image = rng.integers(100, 4000, (4, height, width)).astype(np.uint16)
    image[3] = label.astype(np.uint16) * 1000
    return image, label


@pytest.fixture
def root(tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
    """Three train scenes, one val, one test; the second has nodata in its upper left."""
    for split, seeds in (("train", (1, 2, 3)), ("val", (4,)), ("test", (5,))):
        for seed in seeds:
            image, label = scene(seed)
            if seed == 2:
                image[:, :10, :10] = 0
            west = 500_000.0 + 1000 * seed
            folder = tmp_path / "data" / split
            write_raster(folder / f"images/s{seed}.tif", image, names=BANDS, nodata=0, west=west)
            write_raster(folder / f"labels/s{seed}.tif", label, nodata=0, west=west)
    return tmp_path / "data"


def module(root: Path, **options: Any) -> GeoTiffDataModule:
    settings: dict[str, Any] = {
        "classes": CLASSES,
        "images": "{split}/images/*.tif",
        "labels": "{split}/labels/{name}.tif",
        "chip": 32,
        "normalise": "data",
        "augment": PLAIN,
        "batch_size": 2,
        "workers": 0,
    }
    return GeoTiffDataModule(root, **(settings | options))


def rewrite(
    path: Path, change: Callable[[np.ndarray], np.ndarray] = lambda array: array, **profile: Any
) -> None:
    """Changes a raster's pixels or header."""
    with rasterio.open(path) as file:
        array, kept, names = file.read(), dict(file.profile), file.descriptions
    array = change(array)
    kept |= {
        "count": len(array),
        "dtype": array.dtype,
        "height": array.shape[1],
        "width": array.shape[2],
    } | profile
    with rasterio.open(path, "w", **kept) as file:
        file.write(array)
        for index, name in enumerate(names[: len(array)], start=1):
            file.set_band_description(index, name or "")


def raw(data: GeoTiffDataModule, image: torch.Tensor) -> np.ndarray:
    """Undoes the normalisation: (C, H, W)."""
    mean, std = (np.array(each)[:, None, None] for each in (data.normalisation.mean, data.normalisation.std))
    return image.numpy() * std + mean


def test_scan_finds_splits_bands_and_type(root):
    data = module(root)
    data.scan()
    assert {split: [item.id for item in items] for split, items in data.items.items()} == {
        "train": ["train/images/s1.tif", "train/images/s2.tif", "train/images/s3.tif"],
        "val": ["val/images/s4.tif"],
        "test": ["test/images/s5.tif"],
    }
    assert data.bands == BANDS
    assert data.in_chans == 4
    assert data.dtype == np.uint16
    assert (data.skipped, data.unmatched, data.notes) == ([], [], [])


def test_training_batches_hold_true_labels(root):
    """The last band tells the label, so image and mask must agree in every pixel."""
    data = module(root, augment=Augment("nadir"), batch_size=4, chips_per_epoch=12)
    data.setup("fit")
    loader = data.train_dataloader()
    seen = 0
    for batch in loader:
        assert batch["image"].shape == (4, 4, 32, 32)
        assert batch["image"].dtype == torch.float32
        assert batch["mask"].dtype == torch.int64
        for image, mask, valid in zip(batch["image"], batch["mask"], batch["valid"], strict=True):
            label = np.rint(raw(data, image)[3] / 1000)
            expected = np.select([label == 1, label >= 2], [0, 1])
            np.testing.assert_array_equal(mask[valid], expected[valid.numpy()])
            assert (mask[~valid] == IGNORE).all()
            assert (image[:, ~valid] == 0).all()
            seen += 1
    assert seen == 12


def collect(data: GeoTiffDataModule, epoch: int = 0) -> list[torch.Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [batch["image"] for batch in loader]


def test_samples_do_not_depend_on_workers(root):
    options = {"augment": Augment("nadir", photometric=0.3, blur=0.5, erase=0.5, scale=(0.8, 1.5))}
    alone = collect(module(root, **options), epoch=3)
    for workers in (1, 2):
        for one, other in zip(alone, collect(module(root, workers=workers, **options), epoch=3), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(alone[0], collect(module(root, **options), epoch=4)[0])
    assert not torch.equal(alone[0], collect(module(root, seed=1, **options), epoch=3)[0])


def test_evaluation_scores_every_pixel_once(root):
    for overlap in (0.0, 0.5):
        data = module(root, eval_overlap=overlap)
        data.setup("test")
        truth = np.full((60, 50), IGNORE)
        for batch in data.test_dataloader():
            assert batch["image"].shape[1:] == (4, 32, 32)
            for item, mask in zip(batch["item"], batch["mask"].numpy(), strict=True):
                window = item.window
                part = truth[window.row : window.row + window.height, window.col : window.col + window.width]
                scored = mask[: window.height, : window.width] != IGNORE
                assert (part[scored] == IGNORE).all()
                part[scored] = mask[: window.height, : window.width][scored]
        np.testing.assert_array_equal(truth, np.where(scene(5)[1] == 1, 0, 1))


def test_scenes_smaller_than_a_chip_are_padded(root):
    data = module(root, chip=96)
    data.setup("fit")
    assert len(data.training_dataset()) == 3
    images = list(data.train_dataloader())
    for batch in [*images, *data.val_dataloader()]:
        assert batch["image"].shape[2:] == (96, 96)
        assert set(batch["valid"].sum(dim=(1, 2)).tolist()) <= {3000, 2900}
        assert (batch["mask"][~batch["valid"]] == IGNORE).all()


def test_an_epoch_covers_the_training_area_once(root):
    data = module(root)
    data.scan()
    valid = 3 * 60 * 50 - 100
    assert len(data.training_dataset()) == pytest.approx(valid / 32**2, abs=1)
    assert len(module(root, chips_per_epoch=5).training_dataset()) == 5


def test_statistics_are_those_of_valid_training_pixels(root):
    data = module(root)
    data.setup("fit")
    pixels = np.concatenate([scene(1)[0].reshape(4, -1), scene(3)[0].reshape(4, -1)], axis=1)
    second = scene(2)[0]
    keep = np.ones((60, 50), bool)
    keep[:10, :10] = False
    pixels = np.concatenate([pixels, second[:, keep]], axis=1).astype(float)
    np.testing.assert_allclose(data.statistics.mean, pixels.mean(axis=1))
    np.testing.assert_allclose(data.statistics.std, pixels.std(axis=1))
    labels = np.concatenate([scene(1)[1].ravel(), scene(3)[1].ravel(), scene(2)[1][keep]])
    assert data.statistics.class_counts.tolist() == [(labels == 1).sum(), (labels > 1).sum()]
    assert (root.parent / ".visionsft").is_dir()
    card = data.data_card()
    assert card["samples"] == {"train": 3, "val": 1, "test": 1}
    assert sum(card["class_shares"].values()) == pytest.approx(1)
    assert list(card["bands"]) == list(BANDS)


def test_the_card_has_outlines_that_lie_where_the_scenes_do(root):
    data = module(root)
    outlines = data.data_card()["outlines"]
    assert [(each["id"], each["split"]) for each in outlines] == [
        (item.id, split) for split, items in data.items.items() for item in items
    ]
    for each, item in zip(outlines, data.items["train"], strict=False):
        ring = shape_of(each["outline"])
        with rasterio.open(item.image) as file:
            west, south, east, north = file.bounds
            xs, ys = transform("EPSG:4326", file.crs, *zip(*ring, strict=True))
        corners = [(west, north), (east, north), (east, south), (west, south), (west, north)]
        np.testing.assert_allclose(list(zip(xs, ys, strict=True)), corners, atol=1.5)  # metres


def shape_of(polygon: str) -> list[tuple[float, ...]]:
    """Corners of 'POLYGON ((x y, x y...))'."""
    inside = polygon.removeprefix("POLYGON ((").removesuffix("))")
    return [tuple(map(float, pair.split())) for pair in inside.split(", ")]


def test_bands_are_found_by_name_in_any_order(root):
    rewrite(root / "train/images/s3.tif", lambda array: array[::-1])
    with rasterio.open(root / "train/images/s3.tif", "r+") as file:
        file.descriptions = BANDS[::-1]
    data = module(root, use_bands=("nir", "red"))
    data.setup("fit")
    sample = data._reader().read(data.items["train"][2])
    np.testing.assert_array_equal(sample.values, scene(3)[0][[3, 2]])
    assert data.bands == ("nir", "red")
    with pytest.raises(DataError, match=r"use_bands: no file has a band 'nri'; .* did you mean 'nir'"):
        module(root, use_bands=("nri",)).scan()
    renamed = module(root, bands=("b", "g", "r", "n"))
    renamed.scan()
    assert renamed.bands == ("b", "g", "r", "n")


def test_labels_of_another_grid_and_crs_are_warped(root, write_raster):
    """A label raster of twice the ground, in 20 m pixels; and one in degrees."""
    label = scene(1)[1]
    coarse = np.kron(label[5::10, 5::10], np.ones((5, 5), np.uint8)).astype(np.uint8)
    wide = np.pad(coarse, 10, constant_values=3)
    west, north = 500_000.0 + 1000 - 200, 5_400_000.0 + 200
    write_raster(root / "train/labels/s1.tif", wide, west=west, north=north, pixel=20.0)
    data = module(root)
    data.scan()
    mask = data._reader().read_mask(data.items["train"][0])
    np.testing.assert_array_equal(mask, np.where(label == 1, 0, 1))

    path = root / "train/labels/s1.tif"
    with rasterio.open(path) as file, rasterio.vrt.WarpedVRT(file, crs="EPSG:4326") as warped:
        degrees, transform = warped.read(), warped.transform
    with rasterio.open(
        path, "w", driver="GTiff", count=1, dtype="uint8", crs="EPSG:4326", transform=transform,
        height=degrees.shape[1], width=degrees.shape[2],
    ) as file:  # fmt: skip
        file.write(np.maximum(degrees, 1))
    data.scan()
    mask = data._reader().read_mask(data.items["train"][0])
    assert (mask == np.where(label == 1, 0, 1)).mean() > 0.85


def test_ground_without_label_is_ignored(root, write_raster):
    """A label raster that covers the left half only, and has no nodata value."""
    write_raster(root / "train/labels/s1.tif", scene(1)[1][:, :25], west=501_000.0)
    data = module(root)
    data.scan()
    mask = data._reader().read(data.items["train"][0]).mask
    assert (mask[:, 25:] == IGNORE).all()
    np.testing.assert_array_equal(mask[:, :25], np.where(scene(1)[1][:, :25] == 1, 0, 1))


def test_resampling_to_another_resolution(root):
    data = module(root, resolution=20.0)
    data.setup("fit")
    reader = data._reader()
    sample = reader.read(data.items["train"][1])
    assert sample.values.shape == (4, 30, 25)
    assert not sample.valid[:5, :5].any()
    inner = sample.valid & (np.abs(sample.values[3] - 1000.0 * np.rint(sample.values[3] / 1000)) < 1)
    expected = np.where(np.rint(sample.values[3][inner] / 1000) == 1, 0, 1)
    assert (sample.mask[inner] == expected).mean() > 0.95
    assert reader.grid(data.items["train"][1]).transform.a == 20.0
    for batch in data.val_dataloader():
        assert batch["image"].shape[2:] == (32, 32)


def test_label_files_without_crs_must_have_the_scenes_size(root, write_raster):
    write_raster(root / "train/labels/s1.tif", scene(1)[1], crs=None)
    data = module(root)
    data.scan()
    np.testing.assert_array_equal(
        data._reader().read_mask(data.items["train"][0]), np.where(scene(1)[1] == 1, 0, 1)
    )
    write_raster(root / "train/labels/s1.tif", scene(1)[1][:30], crs=None)
    with pytest.raises(DataError, match=r"labels/s1.tif: has no CRS, so it needs its scene's size.* 30 x 50"):
        data.scan()


def test_colour_coded_label_rasters(root, write_raster):
    colours = np.array([[0, 0, 0], [0, 128, 0], [0, 0, 255], [0, 0, 128]], np.uint8)
    for path in sorted(root.glob("*/labels/*.tif")):
        seed = int(path.stem[1:])
        coded = colours[scene(seed)[1]].transpose(2, 0, 1)
        write_raster(path, coded, west=500_000.0 + 1000 * seed, photometric="RGB")
    classes = (ClassSpec("ground", ("#008000",)), ClassSpec("water", ("#0000ff", "#000080")))
    data = module(root, classes=classes)
    data.scan()
    mask = data._reader().read_mask(data.items["train"][0])
    np.testing.assert_array_equal(mask, np.where(scene(1)[1] == 1, 0, 1))


def test_scenes_without_crs_work_where_no_crs_is_needed(root, write_raster):
    for path in sorted(root.glob("*/*/*.tif")):
        image, label = scene(int(path.stem[1:]))
        write_raster(path, image if path.parent.name == "images" else label, crs=None, names=())
    data = module(root)
    data.setup("fit")
    assert data.bands == ("B1", "B2", "B3", "B4")
    assert data.data_card()["outlines"] == []
    with pytest.raises(DataError, match=r"s1\.tif: has no CRS, so it can't be resampled"):
        module(root, resolution=20.0).scan()
    with pytest.raises(DataError, match=r"s5\.tif: has no CRS, so it can't be split by place"):
        module(root, split=PlaceSplit(block=1000.0)).scan()


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"normalise": "weight"}, "normalise is 'weight'; allowed: weights, data"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; allowed: stop, skip"),
        ({"eval_overlap": 1.0}, "eval_overlap is 1; allowed: from 0 to below 1"),
    ],
)
def test_wrong_options_are_refused(root, option, match):
    with pytest.raises(DataError, match=match):
        module(root, **option)


def test_a_class_value_counts_even_if_files_call_it_nodata(root):
    for path in root.glob("*/labels/*.tif"):
        rewrite(path, nodata=1)
    data = module(root)
    data.setup("fit")
    assert data.statistics.class_counts[0] > 0
    assert any(
        "label value 1 is nodata in 5 label files, but listed as a class" in note for note in data.notes
    )


# ---------------------------------------------------------------------------------- splits


def test_splits_of_one_folder(root, tmp_path, write_raster):
    flat = tmp_path / "flat"
    for seed in range(10):
        image, label = scene(seed)
        write_raster(flat / f"images/d{seed % 5}_{seed}.tif", image, west=500_000.0 + 1000 * seed)
        write_raster(flat / f"labels/d{seed % 5}_{seed}.tif", label, west=500_000.0 + 1000 * seed)
    where = {"images": "images/*.tif", "labels": "labels/{name}.tif"}

    def sizes(**options: Any) -> dict[str, int]:
        data = module(flat, **(where | options))
        data.scan()
        return {split: len(items) for split, items in data.items.items()}

    assert sizes(split=SceneSplit(val=0.2, test=0.1)) == {"train": 7, "val": 2, "test": 1}
    assert sizes(split=DriveSplit(val=0.2, test=0.2)) == {"train": 6, "val": 2, "test": 2}
    (tmp_path / "t.txt").write_text("d0_0\nd1_1\n")
    (tmp_path / "v.txt").write_text("d2_2.tif\n")
    assert sizes(split=ListSplit(tmp_path / "t.txt", tmp_path / "v.txt")) == {"train": 2, "val": 1, "test": 0}
    with pytest.raises(DataError, match=r"split by folder needs '\{split\}' in images"):
        sizes()


def test_held_out_and_missing_folders(root):
    data = module(root, split=FolderSplit(val=None, val_fraction=0.34))
    data.scan()
    assert [len(items) for items in data.items.values()] == [2, 1, 1]
    for path in sorted((root / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    data = module(root)
    data.setup("fit")
    assert data.notes == ["there is no folder 'test' with images: no test split is given"]
    with pytest.raises(DataError, match="the test split is empty"):
        data.test_dataloader()
    with pytest.raises(DataError, match=r"no image with a label matches 'holdout/images/\*.tif'"):
        module(root, split=FolderSplit(test="holdout")).scan()


def test_place_split_divides_big_scenes_without_shared_pixels(tmp_path, write_raster):
    image, label = scene(0, 300, 300)
    write_raster(tmp_path / "images/a.tif", image)
    write_raster(tmp_path / "labels/a.tif", label)
    data = module(
        tmp_path,
        images="images/*.tif",
        labels="labels/{name}.tif",
        split=PlaceSplit(block=600.0, gap=50.0, val=0.2, test=0.2),
    )
    data.setup("fit")
    owner = np.zeros((300, 300), int)
    for index, split in enumerate(("val", "test"), start=1):
        for item in data._evaluation_dataset(split).items:
            window = item.window
            owner[window.row : window.row + window.height, window.col : window.col + window.width] |= index
    train = np.zeros((300, 300), bool)
    dataset = data.training_dataset()
    for index in range(len(dataset)):
        window = dataset[SampleKey(0, 0, index)]["item"].window
        train[window.row : window.row + window.height, window.col : window.col + window.width] = True
    assert set(np.unique(owner)) == {0, 1, 2}
    assert not (train & (owner > 0)).any()
    assert "split by place" in data.notes[0]


# ---------------------------------------------------------------------------------- bad input


def breaks(root: Path, match: str, **options: Any) -> None:
    """The fault stops with one clear error; on_error="skip" goes on without the scene."""
    with pytest.raises(DataError, match=match) as caught:
        module(root, **options).setup("fit")
    assert caught.value.exit_code == 2
    data = module(root, on_error="skip", **options)
    data.setup("fit")
    assert len(data.items["train"]) == 2
    named = [str(pair) for pair in data.skipped] + data.unmatched
    assert len(named) == 1
    assert "s1.tif" in named[0]
    for _ in data.train_dataloader():
        pass
    assert data.data_card()["skipped"] or data.data_card()["unmatched"]


def test_truncated_image(root):
    path = root / "train/images/s1.tif"
    path.write_bytes(path.read_bytes()[:-500])
    breaks(root, r"images/s1\.tif: (cut off|can't be read)")


def test_truncated_label(root):
    path = root / "train/labels/s1.tif"
    path.write_bytes(path.read_bytes()[:-500])
    breaks(root, r"labels/s1\.tif: cut off")


def test_damage_inside_a_file(root):
    path = root / "train/images/s1.tif"
    rewrite(path, compress="deflate", blockysize=8)
    data = bytearray(path.read_bytes())
    data[-4000:-2000] = bytes(2000)
    path.write_bytes(data)
    breaks(root, r"images/s1\.tif: can't be read \(rows")


def test_not_a_raster(root):
    (root / "train/images/s1.tif").write_text("a picture, honestly")
    breaks(root, r"images/s1\.tif: can't be read \(opening\)")


def test_unknown_label_values(root):
    rewrite(root / "train/labels/s1.tif", lambda array: np.where(array == 3, 77, array).astype(np.uint8))
    breaks(root, r"labels/s1\.tif .*label 77 \(\d+ pixels\) in no class. Allowed: ground 1, water 2/3")


def test_missing_band(root):
    rewrite(root / "train/images/s1.tif", lambda array: array[:3])
    breaks(root, r"images/s1\.tif: no band 'nir'; it has blue, green, red")


def test_missing_crs(root):
    rewrite(root / "train/images/s1.tif", crs=None)
    breaks(root, r"images/s1\.tif: has no CRS, but 4 other scenes have one")


def test_label_elsewhere(root, write_raster):
    write_raster(root / "train/labels/s1.tif", scene(1)[1], west=900_000.0)
    breaks(root, r"labels/s1\.tif: covers no part of its scene .*images/s1\.tif")


def test_label_with_several_bands(root, write_raster):
    write_raster(root / "train/labels/s1.tif", np.stack([scene(1)[1]] * 3), west=501_000.0)
    breaks(root, r"labels/s1\.tif: a label raster has 1 band\(s\) here, this has 3")


def test_image_without_label(root):
    (root / "train/labels/s1.tif").unlink()
    breaks(root, r"1 images without label and 0 labels without image, beside 2 pairs\n.*s1\.tif: no label")


def test_label_without_image(root):
    (root / "train/images/s1.tif").unlink()
    breaks(root, r"0 images without label and 1 labels without image, beside 2 pairs\n.*s1\.tif: no image")


def test_empty_folder(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no image with a label matches 'train/images/\*.tif'"):
        module(tmp_path / "empty").scan()
    with pytest.raises(DataError, match="is not a folder"):
        module(tmp_path / "missing").scan()


def test_scenes_without_valid_pixels_are_left_out_and_named(root):
    rewrite(root / "train/images/s1.tif", lambda array: array * 0)
    data = module(root)
    data.setup("fit")
    assert len(data.skipped) == 1
    assert "s1.tif: has no valid pixel" in data.skipped[0][1]
    assert {item.image[-6:] for batch in data.train_dataloader() for item in batch["item"]} == {
        "s2.tif",
        "s3.tif",
    }
    for seed in (2, 3):
        rewrite(root / f"train/images/s{seed}.tif", lambda array: array * 0)
    with pytest.raises(DataError, match="no training scene has a valid pixel"):
        module(root).setup("fit")


def test_nan_is_invalid(root):
    def punch(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[1, 20:40, 20:40] = np.nan
        return array

    for path in root.glob("*/images/*.tif"):
        rewrite(path, punch, nodata=None)
    data = module(root, chips_per_epoch=6)
    data.setup("fit")
    assert np.isfinite(data.statistics.mean).all()
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        assert torch.isfinite(batch["image"]).all()
    sample = data._reader().read(data.items["val"][0])
    assert not sample.valid[20:40, 20:40].any()
    assert (sample.mask[20:40, 20:40] == IGNORE).all()


def test_a_class_that_never_occurs_is_a_warning(root):
    data = module(root, classes=(*CLASSES, ClassSpec("ice", (9,))))
    data.setup("fit")
    assert data.data_card()["warnings"] == ["class 'ice' never occurs in the training labels"]


def test_wrong_scale_stops_and_names_a_better_one(root):
    data = module(root, normalise="weights")
    with pytest.raises(DataError, match="call set_normalisation"):
        data.setup("fit")
    data.set_normalisation((0.5,) * 4, (0.25,) * 4)
    with pytest.raises(DataError, match=r"files are uint16, so scale .* must be given; .* likely 4095"):
        data.setup("fit")
    wrong = module(root, normalise="weights", scale=1.0)
    wrong.set_normalisation((0.5,) * 4, (0.25,) * 4)
    with pytest.raises(DataError, match="4 of 4 bands are far from what the weights expect"):
        wrong.setup("fit")
    right = module(root, normalise="weights", scale=4000.0)
    right.set_normalisation((0.5,) * 4, (0.25,) * 4)
    right.setup("fit")
    assert right.normalisation == Normalisation((2000.0,) * 4, (1000.0,) * 4)
    right.set_normalisation((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(DataError, match="the weights' mean has 3 bands, the data 4: blue"):
        right.setup("fit")


def test_an_error_in_a_worker_reads_like_one_here(root):
    data = module(root, workers=1)
    data.setup("fit")
    rewrite(root / "val/labels/s4.tif", lambda array: array * 20)
    with pytest.raises(DataError) as caught:
        list(data.val_dataloader())
    assert str(caught.value).startswith(str(root / "val/labels/s4.tif"))
    assert "Traceback" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# ---------------------------------------------------------------------------------- prediction


def test_prediction_reads_whole_files_by_band_name(root):
    trained = module(root)
    trained.setup("fit")
    path = root / "test/images/s5.tif"
    rewrite(path, lambda array: array[::-1])
    with rasterio.open(path, "r+") as file:
        file.descriptions = BANDS[::-1]
    data = module(root.parent / "elsewhere", use_bands=trained.bands)
    data.normalisation = trained.normalisation
    dataset = data.prediction_dataset([path])
    sample = dataset[0]
    assert sample["image"].shape == (4, 60, 50)
    np.testing.assert_allclose(raw(data, sample["image"]), scene(5)[0], rtol=1e-3)
    assert (sample["mask"] == IGNORE).all()
    assert dataset.reader.grid(sample["item"]).crs.to_epsg() == 32633


def test_prediction_guards_its_input(root):
    data = module(root)
    data.setup("fit")
    path = root / "test/images/s5.tif"
    rewrite(path, lambda array: array.astype(np.float32) * 1e4)
    with pytest.raises(DataError, match="far from what the weights expect"):
        data.prediction_dataset([path])
    rewrite(path, lambda array: array[:2])
    with pytest.raises(DataError, match="no band 'red', 'nir'; it has blue, green"):
        data.prediction_dataset([path])
    with pytest.raises(DataError, match=r"missing\.tif: can't be read"):
        data.prediction_dataset([root / "missing.tif"])


# ---------------------------------------------------------------------------------- use


def test_rare_class_crops_show_the_rare_class_more_often(root, write_raster):
    for seed in (1, 2, 3):
        label = np.ones((60, 50), np.uint8)
        label[40:42, 5 * seed : 5 * seed + 2] = 2
        write_raster(root / f"train/labels/s{seed}.tif", label, west=500_000.0 + 1000 * seed)
    plain, rare = (
        np.mean([float((batch["mask"] == 1).any()) for batch in loader])
        for loader in (
            module(
                root, chip=10, batch_size=1, chips_per_epoch=200, rare_class_crops=share
            ).train_dataloader()
            for share in (0.0, 0.9)
        )
    )
    assert rare > plain + 0.2


def test_it_trains_with_a_plain_lightning_trainer(root):
    class Tiny(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(4, 2, 1)
            self.epochs: list[int] = []

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            self.epochs.append(self.trainer.train_dataloader.sampler.epoch)
            return torch.nn.functional.cross_entropy(
                self.layer(batch["image"]), batch["mask"], ignore_index=IGNORE
            )

        def validation_step(self, batch: Any, index: int) -> None:
            assert batch["item"][0].group

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    model = Tiny()
    trainer = Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        default_root_dir=root,
    )
    trainer.fit(model, datamodule=module(root, chips_per_epoch=4))
    assert model.epochs == [0, 0, 1, 1]


# ------------------------------------------------------------------------------- vector labels

NAMED = (ClassSpec("ground", ("ground",)), ClassSpec("water", ("water", "ice")))
FOLDERS = {1: "train", 2: "train", 3: "train", 4: "val", 5: "test"}


def pixel_box(seed: int, *pixels: float) -> shapely.Polygon:
    """left, top, right, bottom in pixels of the scene."""
    left, top, right, bottom = pixels
    west, north = 500_000.0 + 1000 * seed, 5_400_000.0
    return shapely.box(west + 10 * left, north - 10 * bottom, west + 10 * right, north - 10 * top)


def write_shapes(path: Path, shapes: list[tuple[shapely.Polygon, str]]) -> None:
    wkb = np.array([shapely.to_wkb(shape) for shape, _ in shapes], object)
    values = np.array([value for _, value in shapes], object)
    drivers = {".gpkg": "GPKG", ".shp": "ESRI Shapefile"}
    pyogrio.raw.write(
        path, wkb, [values], ["class"], driver=drivers[path.suffix], geometry_type="Polygon", crs="EPSG:32633"
    )


def shapes_of(seed: int) -> list[tuple[shapely.Polygon, str]]:
    """Ground in the upper left corner, water and ice in the middle."""
    return [
        (pixel_box(seed, 12, 3, 20, 9), "ground"),
        (pixel_box(seed, 30, 30, 38, 35), "water"),
        (pixel_box(seed, 30, 35, 38, 40), "ice"),
    ]


@pytest.fixture
def shapes(root: Path) -> Path:
    for seed, folder in FOLDERS.items():
        write_shapes(root / folder / f"labels/s{seed}.gpkg", shapes_of(seed))
    return root


def vectors(root: Path, **options: Any) -> GeoTiffDataModule:
    settings = {"classes": NAMED, "labels": "{split}/labels/{name}.gpkg", "chip": 16} | options
    return module(root, **settings)


def drawn(seed: int) -> np.ndarray:
    """(60, 50) uint8: what `shapes_of` labels."""
    mask = np.full((60, 50), IGNORE, np.uint8)
    mask[3:9, 12:20], mask[30:40, 30:38] = 0, 1
    return mask


def test_vector_labels_become_masks(shapes):
    data = vectors(shapes)
    data.setup("fit")
    assert data.classes.names == ("ground", "water")
    for item, seed in zip(data.items["train"], (1, 2, 3), strict=True):
        np.testing.assert_array_equal(data._reader().read(item).mask, drawn(seed))
    assert data.statistics.class_counts.tolist() == [3 * 48, 3 * 80]
    assert data.notes == []


def test_training_windows_lie_near_sparse_labels(shapes):
    """Of 50 x 60 pixels 128 are labelled: windows drawn anywhere would mostly miss them."""
    data = vectors(shapes, augment=Augment("nadir", scale=(0.8, 1.25)), chips_per_epoch=60, batch_size=1)
    masks = [batch["mask"][0] for batch in data.train_dataloader()]
    assert all((mask != IGNORE).any() for mask in masks)
    assert 0.25 < np.mean([bool((mask == 0).any()) for mask in masks]) < 0.75
    positions = {int((mask != IGNORE).nonzero()[0, 0]) for mask in masks}
    assert len(positions) > 5  # labels lie anywhere in the windows
    assert len(vectors(shapes).training_dataset()) == 3 * 2 * 64 * 64 // 16**2


def test_vector_labels_do_not_depend_on_workers(shapes):
    options: dict[str, Any] = {"augment": Augment("nadir"), "chips_per_epoch": 8, "rare_class_crops": 0.5}
    for one, other in zip(
        collect(vectors(shapes, **options)), collect(vectors(shapes, workers=2, **options)), strict=True
    ):
        assert torch.equal(one, other)


def test_ground_without_a_shape_can_be_a_class(shapes):
    data = vectors(shapes, vector=VectorOptions(background="ground"))
    data.setup("fit")
    np.testing.assert_array_equal(data._reader().read_mask(data.items["val"][0]), (drawn(4) == 1).astype(int))
    assert data.statistics.class_counts.sum() == 3 * 60 * 50 - 100  # of the nodata corner
    assert not data.sparse


def test_one_vector_file_serves_all_scenes(root):
    write_shapes(root / "all.gpkg", [shape for seed in (1, 3, 4, 5) for shape in shapes_of(seed)])
    data = vectors(root, labels="all.gpkg")
    data.scan()
    assert [len(items) for items in data.items.values()] == [2, 1, 1]
    assert data.notes == ["1 of 5 scenes hold no shape of all.gpkg: they are left out"]
    np.testing.assert_array_equal(data._reader().read_mask(data.items["test"][0]), drawn(5))
    data = vectors(root, labels="all.gpkg", vector=VectorOptions(background="ground"))
    data.scan()
    assert [len(items) for items in data.items.values()] == [3, 1, 1]
    assert data.notes == ["1 of 5 scenes hold no shape of all.gpkg: they are all 'ground'"]
    write_shapes(root / "all.gpkg", [(pixel_box(50, 0, 0, 9, 9), "water")])
    with pytest.raises(DataError, match=r"all\.gpkg: none of its 1 shapes lies within the scene"):
        data.scan()


def test_sparse_labels_are_split_by_place(root, write_raster):
    """Windows show ground of other blocks, but never their labels."""
    image = np.random.default_rng(0).integers(1, 4000, (4, 300, 300)).astype(np.uint16)
    write_raster(root / "one/big.tif", image, names=BANDS)
    places = [(100 + 20 * row, 100 + 20 * col) for row in range(5) for col in range(5)]
    boxes = [pixel_box(0, col, row, col + 12, row + 12) for row, col in places]
    write_shapes(root / "one/big.gpkg", list(zip(boxes, ["ground", "water", "ice"] * 9, strict=False)))
    data = vectors(
        root, images="one/*.tif", labels="one/{name}.gpkg", chip=32, chips_per_epoch=60, batch_size=1,
        split=PlaceSplit(block=200.0, gap=20.0, val=0.3, test=0.0),
    )  # fmt: skip
    data.setup("fit")
    labelled = {"train": np.zeros((300, 300), int), "val": np.zeros((300, 300), int)}
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        for batch in loader:
            assert batch["image"].shape[2:] == (32, 32)
            assert batch["valid"].all()
            window, mask = batch["item"][0].window, batch["mask"][0].numpy()
            part = labelled[split][window.row : window.row + 32, window.col : window.col + 32]
            part += mask != IGNORE
    assert labelled["val"].max() == 1  # scored once
    assert not (labelled["train"].astype(bool) & labelled["val"].astype(bool)).any()
    shares = [(each > 0).sum() / (25 * 144) for each in labelled.values()]
    assert shares[0] > 0.3
    assert 0.1 < shares[1] < 0.4


def test_statistics_are_made_again_when_vector_labels_change(shapes):
    def count(**options: Any) -> list[int]:
        data = vectors(shapes, labels="{split}/labels/{name}.shp", **options)
        data.setup("fit")
        return data.statistics.class_counts.tolist()

    for seed, folder in FOLDERS.items():
        write_shapes(shapes / folder / f"labels/s{seed}.shp", shapes_of(seed))
    assert count() == [144, 240]
    assert count(vector=VectorOptions(background="water")) == [144, 9000 - 144 - 100]
    assert count(classes=(ClassSpec("ground", ("ground", "ice")), ClassSpec("water", ("water",)))) == [
        264,
        120,
    ]
    table = shapes / "train/labels/s1.dbf"  # holds the classes, beside the .shp
    table.write_bytes(table.read_bytes().replace(b"ground", b"water "))
    assert count() == [96, 288]


def test_vector_options_are_checked(root, shapes, monkeypatch):
    with pytest.raises(DataError, match=r"vector is for vector files only, but labels is .*tif"):
        module(root, vector=VectorOptions())
    with pytest.raises(DataError, match=r"no class is named 'grund'.*; did you mean 'ground'"):
        vectors(shapes, vector=VectorOptions(background="grund")).scan()
    with pytest.raises(DataError, match=r"vector.buffer is 0; allowed: above 0"):
        VectorOptions(buffer=0)
    with pytest.raises(DataError, match=r"classes mix text \('ground'\) and numbers"):
        vectors(shapes, ignore=(3,))
    monkeypatch.delitem(sys.modules, "datamodules.vectors")
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    with pytest.raises(DataError, match=r"need pip install 'visionsft\[vectors\]'"):
        vectors(shapes).scan()


def test_shapes_outside_their_scene(shapes):
    write_shapes(shapes / "train/labels/s1.gpkg", shapes_of(3))
    breaks(
        shapes,
        r"s1\.gpkg: none of its 3 shapes lies within",
        classes=NAMED,
        labels="{split}/labels/{name}.gpkg",
    )


def test_an_empty_vector_file_means_background_or_nothing(shapes):
    write_shapes(shapes / "train/labels/s1.gpkg", [])
    data = vectors(shapes, vector=VectorOptions(background="ground"))
    data.scan()
    assert (data._reader().read_mask(data.items["train"][0]) == 0).all()
    breaks(shapes, r"s1\.gpkg: holds no shape", classes=NAMED, labels="{split}/labels/{name}.gpkg")


def test_faults_of_all_vector_files_are_summed_up(shapes):
    for seed in (1, 2):
        over = (pixel_box(seed, 12, 3, 15, 9), "water")
        write_shapes(shapes / f"train/labels/s{seed}.gpkg", [*shapes_of(seed), over])
    data = vectors(shapes)
    data.scan()
    text = "lie under a later one of another class, which is drawn over them"
    assert data.notes == [f"2 shapes in 2 vector files {text}"]


@pytest.mark.slow
def test_the_real_landsat_scene(shared, tmp_path):
    folder = shared / "data/landsat"
    names = ("water", "crop", "tree", "developed")
    data = GeoTiffDataModule(
        folder,
        images="*.tif",
        labels="{name}_polygons.gpkg",
        vector=VectorOptions(column="name"),
        classes=[ClassSpec(name, (name,)) for name in names],
        split=SceneSplit(val=0.0, test=0.0),
        chip=64,
        normalise="data",
        workers=0,
        cache_dir=tmp_path,
    )
    data.setup("fit")
    _, _, wkb, _ = pyogrio.raw.read(folder / "LC08_224078_20200518_polygons.gpkg")
    areas = shapely.area(shapely.from_wkb(wkb)) / 900
    np.testing.assert_allclose(data.statistics.class_counts, areas, rtol=0.05)


@pytest.mark.slow
def test_the_real_forest(shared, tmp_path):
    data = GeoTiffDataModule(
        shared / "data/s2_forest",
        images="{split}/images/*.tif",
        labels="{split}/labels/{name}.tif",
        classes=(ClassSpec("forest", (1,)), ClassSpec("other", (2,))),
        split=FolderSplit(val=None, val_fraction=0.15),
        chip=192,
        workers=0,
        cache_dir=tmp_path,
    )
    data.set_normalisation((0.5,) * 3, (0.5,) * 3)
    data.setup("test")
    assert {split: len(items) for split, items in data.items.items()} == {
        "train": 398,
        "val": 70,
        "test": 117,
    }
    labelled = sum(int((batch["mask"] != IGNORE).sum()) for batch in data.test_dataloader())
    files = (shared / "data/s2_forest/test/labels").glob("*.tif")
    assert labelled == sum(int((rasterio.open(path).read(1) > 0).sum()) for path in files)
