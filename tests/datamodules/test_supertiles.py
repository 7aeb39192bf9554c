"""Super-tiles: the same samples as windows read alone, evenly spread, and dealt out so that reads are shared."""

from __future__ import annotations

import errno
import os
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import decoded
from datamodules.augment import Augment
from datamodules.batch import Item, Window
from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.geotiff import GeoTiffDataModule
from datamodules.sampling import ClassPositions, EpochSampler, Region, SampleKey, near_labels
from datamodules.splits import FolderSplit
from datamodules.supertiles import BUDGET, LANES, LEAST, Store, SuperTilePlan


def region(
    name: str, height: int, width: int, *, row: int = 0, footprint: np.ndarray | None = None
) -> Region:
    area = height * width * (1.0 if footprint is None else float(footprint.mean()))
    return Region(Item(id=name, group=name, image=name), Window(row, 0, height, width), area, footprint)


def make_plan(regions, *, block=(32, 32), size=(16, 16), length=200, **options) -> SuperTilePlan:
    stores = [Store(block, (each.window.row + each.window.height, each.window.width), 10) for each in regions]
    return SuperTilePlan(regions, stores, size=size, length=length, batch_size=16, **options)


def draws(plan: SuperTilePlan, epoch: int = 0) -> list[Item]:
    keys = [SampleKey(0, epoch, index) for index in range(len(plan))]
    return [plan.draw(key, key.rng())[0] for key in keys]


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=6),
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(0, 90),
    st.integers(1, 100),
)
@settings(max_examples=60)
def test_windows_stay_in_their_region_and_their_super_tile(sides, block, size, row, length):
    regions = [region(str(i), *each, row=row) for i, each in enumerate(sides)]
    plan = make_plan(regions, block=block, size=size, length=length)
    for index in range(length):
        key = SampleKey(0, 3, index)
        window = plan.draw(key, key.rng())[0].window
        place = next(each for each in regions if each.item.image == plan.draw(key, key.rng())[0].image).window
        assert (window.height, window.width) == (min(size[0], place.height), min(size[1], place.width))
        assert place.row <= window.row <= place.row + place.height - window.height
        assert 0 <= window.col <= place.width - window.width
        shared = plan.shared(key)
        if shared is not None:
            assert shared.window.row <= window.row
            assert window.row + window.height <= shared.window.row + shared.window.height
            assert window.col + window.width <= shared.window.col + shared.window.width
    assert sorted(plan.order(0, 3).tolist()) == list(range(length))


def test_places_are_equally_likely_over_many_epochs():
    plan = make_plan([region("a", 160, 160)], block=(32, 32), size=(20, 20), length=400)
    rows = np.concatenate([[item.window.row for item in draws(plan, epoch)] for epoch in range(150)])
    counts = np.histogram(rows, bins=20, range=(0, 141))[0]
    expected = len(rows) / 20
    # offsets are shared by an epoch's windows, so that the spread is wider than that of single draws
    assert np.abs(counts / expected - 1).max() < 0.2


def test_regions_are_visited_by_valid_area():
    half = np.array([[True, False]])
    regions = [region("full", 512, 512), region("half", 512, 512, footprint=half), region("small", 128, 128)]
    plan = make_plan(regions, length=1200)
    visits = sum((Counter(item.image for item in draws(plan, epoch)) for epoch in range(8)), Counter())
    total = 512 * 512 * 1.5 + 128 * 128
    for name, area in (("full", 512 * 512), ("half", 512 * 256), ("small", 128 * 128)):
        assert visits[name] / (8 * 1200) == pytest.approx(area / total, rel=0.2)


def test_batches_mix_super_tiles_and_epochs_differ():
    plan = make_plan([region(str(i), 512, 512) for i in range(4)], length=640)
    epoch = plan.epoch(0, 0)
    for batch in epoch.order.reshape(-1, 16):
        assert len(set(epoch.of[batch].tolist())) >= LEAST
    assert not set(draws(plan)) & set(draws(plan, 1))


def test_a_sample_follows_from_its_key_alone():
    plan, other = (make_plan([region("a", 300, 300), region("b", 90, 400)]) for _ in range(2))
    expected = draws(plan, 4)
    for index in (150, 3, 77):  # in another order, in another process
        key = SampleKey(0, 4, index)
        copied = pickle.loads(pickle.dumps(other))
        assert copied.draw(key, key.rng())[0] == expected[index]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_no_super_tile_twice(processes):
    plan = make_plan([region(str(i), 512, 512) for i in range(8)], length=4096)
    epoch = plan.epoch(0, 0)
    batches = epoch.order.reshape(-1, 16)
    owners = [set(epoch.of[batches[each::processes].ravel()].tolist()) for each in range(processes)]
    shared = sum(map(len, owners)) - len(set.union(*owners))
    assert shared < 0.15 * len(epoch.groups)  # the last few batches are mixed from all lanes


def test_ranks_share_out_whole_batches():
    plan = make_plan([region("a", 300, 300)], length=100)
    parts = [
        [key.index for key in EpochSampler(plan, seed=0, rank=rank, world=2, batch_size=16, order=plan.order)]
        for rank in (0, 1)
    ]
    assert [len(part) for part in parts] == [50, 50]
    assert sorted(parts[0] + parts[1]) == list(range(100))
    assert parts[1][:16] == plan.order(0, 0)[16:32].tolist()


def test_rare_and_sparse_windows_are_about_their_pixels():
    pixels = np.array([[0, 100, 100], [0, 110, 90], [0, 300, 301]])
    positions = ClassPositions((pixels[:2], pixels[2:]))
    places = [replace(region("a", 400, 400), ground=Window(0, 0, 400, 400))]
    sparse = make_plan(near_labels(places, positions), size=(64, 64), positions=positions)
    rare = make_plan(places, size=(64, 64), positions=positions, rare_share=0.5)
    for plan, share, reach in ((sparse, 1.0, 16), (rare, 0.5, 0)):
        about = 0
        for index in range(200):
            key = SampleKey(0, 0, index)
            item, centre = plan.draw(key, key.rng())
            if centre is not None:
                middle = (item.window.row + centre[0], item.window.col + centre[1])
                assert np.abs(pixels[:, 1:] - middle).max(axis=1).min() <= reach
                about += 1
        assert about / 200 == pytest.approx(share, abs=0.1)


def test_striped_files_are_read_in_whole_rows():
    assert Store((8, 4096), (4096, 4096), 10).cell((256, 256), 1e9)[1] == 1
    plan = make_plan([region("a", 2048, 2048)], block=(8, 2048), size=(64, 64), length=1024)
    shared = [plan.shared(SampleKey(0, 0, index)) for index in range(1024)]
    assert np.mean([item is not None and item.window.width > 1800 for item in shared]) > 0.9


@given(
    st.tuples(st.integers(1, 30_000), st.integers(1, 200_000)),
    st.tuples(st.integers(1, 30_000), st.integers(1, 200_000)),
    st.integers(3, 60),
    st.integers(32, 512),
)
def test_super_tiles_fit_in_the_budget_and_hold_a_window_of_any_place(block, extent, pixel, side):
    block = tuple(min(pair) for pair in zip(block, extent, strict=True))
    store = Store(block, extent, pixel).divided()
    cell = store.cell((side, side), BUDGET / (2 * LANES * LEAST))
    spans, least = [], []
    for cells, each, whole in zip(cell, store.block, extent, strict=True):
        assert each >= whole or (cells - 1) * each + 1 >= side
        spans.append(min(cells * each, whole))
        least.append(min(each if each >= whole else (1 + -(-(side - 1) // each)) * each, whole))
    allowed = max(BUDGET // (2 * LANES * LEAST), least[0] * least[1] * pixel)
    assert spans[0] * spans[1] * pixel <= allowed


def test_windows_cross_the_edges_of_large_blocks():
    plan = make_plan([region("a", 1024, 1024)], block=(256, 256), size=(32, 32), length=512)
    cols = np.array([item.window.col for epoch in range(8) for item in draws(plan, epoch)])
    assert np.mean(cols % 256 > 224) == pytest.approx(31 / 256, rel=0.3)


def make_data(tmp_path, write_raster, *, vector=False, **options) -> GeoTiffDataModule:
    rng = np.random.default_rng(0)
    for index in range(3):
        image = rng.integers(1, 4000, (3, 200, 260)).astype(np.uint16)
        image[:, :40, :50] = 0
        layout = {"tiled": True, "blockxsize": 64, "blockysize": 64} if index else {"blockysize": 4}
        write_raster(tmp_path / f"train/images/{index}.tif", image, nodata=0, compress="deflate", **layout)
        write_raster(tmp_path / f"train/labels/{index}.tif", rng.integers(0, 3, (200, 260)).astype(np.uint8))
    return open_data(tmp_path, **options)


def open_data(tmp_path, **options) -> GeoTiffDataModule:
    return GeoTiffDataModule(
        tmp_path,
        classes=[ClassSpec(name, (value,)) for value, name in enumerate("abc")],
        images="{split}/images/*.tif",
        labels="{split}/labels/{name}.tif",
        split=FolderSplit(),
        chip=32,
        chips_per_epoch=96,
        batch_size=8,
        normalise="data",
        augment=Augment("nadir", scale=(0.8, 1.25), photometric=0.2),
        cache_dir=tmp_path / "cache",
        **{"workers": 0, **options},
    )


def batches(data: GeoTiffDataModule, epoch: int = 1) -> list:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def assert_same(one: list, other: list) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left["item"] == right["item"]
        for name in ("image", "mask", "valid"):
            assert torch.equal(left[name], right[name])


@pytest.mark.parametrize("resolution", [None, 13.0])
def test_a_window_cut_from_a_super_tile_is_the_window(tmp_path, write_raster, resolution):
    training = make_data(tmp_path, write_raster, resolution=resolution).training_dataset()
    reader, cut = training.reader, 0
    for index in range(96):
        key = SampleKey(0, 0, index)
        item, _ = training.plan.draw(key, key.rng())
        cut += training.plan.shared(key) is not None
        one, other = training.read(key, item), reader.read(item)
        # resampling rounds at another corner
        limit = 0 if resolution is None else 1
        np.testing.assert_array_equal(one.valid, other.valid)
        np.testing.assert_array_equal(one.mask, other.mask)
        assert np.abs(one.values.astype(int) - other.values)[:, one.valid].max(initial=0) <= limit
    assert cut > 60
    assert training.tiles.reads < 60


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_with_any_number_of_workers(tmp_path, write_raster, workers):
    alone = make_data(tmp_path, write_raster, rare_class_crops=0.3)
    shared = make_data(tmp_path, write_raster, rare_class_crops=0.3, workers=workers)
    assert_same(batches(alone), batches(shared))


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_the_decoded_cache_changes_no_sample(tmp_path, write_raster, cache, monkeypatch):
    plain = make_data(tmp_path, write_raster)
    cached = make_data(tmp_path, write_raster, cache=cache)
    loader = cached.train_dataloader()
    for epoch in (1, 2, 1):
        loader.sampler.set_epoch(epoch)
        assert_same(batches(plain, epoch), list(loader))
    # all cells are there by now: files are not read any more
    monkeypatch.setattr(loader.dataset.reader, "_unpack", None)
    assert_same(batches(plain, 1), list(loader))


def test_two_workers_share_the_decoded_cache(tmp_path, write_raster):
    plain = make_data(tmp_path, write_raster)
    assert_same(batches(plain), batches(make_data(tmp_path, write_raster, cache="ram", workers=2)))


def test_the_disk_cache_is_of_one_state_of_the_data(tmp_path, write_raster):
    batches(make_data(tmp_path, write_raster, cache="disk"))
    image = np.full((3, 200, 260), 7, np.uint16)
    data = make_data(tmp_path, write_raster, cache="disk")
    image[0, 0, 0] = 9
    write_raster(tmp_path / "train/images/1.tif", image)
    training = data.training_dataset()
    item = next(item for item in data.items["train"] if item.image.endswith("1.tif"))
    raw = training.reader.read(replace(item, window=Window(100, 100, 20, 20)))
    assert (raw.values == 7).all()


def test_scenes_beyond_the_limit_are_read_from_their_files(tmp_path, write_raster):
    plain = make_data(tmp_path, write_raster)
    data = make_data(tmp_path, write_raster, cache="disk", cache_limit=500_000)
    with pytest.warns(UserWarning, match="1 of 3 scenes fit"):
        found = batches(data)
    assert_same(batches(plain), found)
    assert sum(path.stat().st_size for path in (tmp_path / "cache/decoded").iterdir()) <= 500_000


def test_a_cache_folder_that_cannot_be_written_is_one_note(tmp_path, write_raster):
    data = make_data(tmp_path, write_raster, cache="disk")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/decoded").write_text("in the way")
    with pytest.warns(UserWarning, match="nothing is kept in .*decoded"):
        found = batches(data)
    assert_same(batches(make_data(tmp_path, write_raster)), found)


STORAGE = {
    "lzw": {"compress": "lzw", "predictor": 2},
    "zstd": {"compress": "zstd"},
    "deflate": {"compress": "deflate"},
    "none": {},
    "jpeg": {"compress": "jpeg", "photometric": "ycbcr", "interleave": "pixel"},
}


@pytest.mark.parametrize("place", ["tiled", "striped", "one_strip"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("storage", STORAGE)
def test_however_a_file_is_stored_the_pixels_are_rasterios(tmp_path, write_raster, storage, interleave, place):
    """Compressed or not, band by band or pixel by pixel, in tiles or rows."""
    if storage == "jpeg" and interleave == "band":
        pytest.skip("YCbCr pixels are stored together")
    places = {"tiled": {"tiled": True, "blockxsize": 64, "blockysize": 64}, "one_strip": {"blockysize": 200}}
    layout = {"interleave": interleave, **STORAGE[storage], **places.get(place, {"blockysize": 16})}
    rng = np.random.default_rng(0)
    dtype = np.uint8 if storage == "jpeg" else np.uint16
    for index in range(3):
        image = rng.integers(1, 250, (3, 200, 260)).astype(dtype)
        write_raster(tmp_path / f"train/images/{index}.tif", image, **layout)
        write_raster(tmp_path / f"train/labels/{index}.tif", rng.integers(0, 3, (200, 260)).astype(np.uint8))
    training = open_data(tmp_path).training_dataset()
    cut = 0
    for index in range(0, 96, 4):
        key = SampleKey(0, 0, index)
        item, _ = training.plan.draw(key, key.rng())
        cut += training.plan.shared(key) is not None
        raw, window = training.read(key, item), item.window
        area = rasterio.windows.Window(window.col, window.row, window.width, window.height)
        with rasterio.open(item.image) as image, rasterio.open(item.label) as label:
            np.testing.assert_array_equal(raw.values, image.read(window=area))
            np.testing.assert_array_equal(raw.mask, label.read(1, window=area))
        assert raw.valid.all()
    assert cut > 12


def test_a_scene_that_changes_while_it_is_trained_on_is_an_error(tmp_path, write_raster):
    data = make_data(tmp_path, write_raster)
    reader = data.training_dataset().reader
    item = replace(data.items["train"][1], window=Window(0, 0, 32, 32))
    reader.read(item)
    write_raster(Path(item.image), np.full((3, 200, 260), 7, np.uint16))
    with pytest.raises(DataError, match=r"1\.tif: has changed since this run looked at it first: run again"):
        reader.read(item)
    again = open_data(tmp_path)
    again.scan()
    assert f"{item.image}: changed since the last run, and looked at again" in again.notes


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_leaves_no_half_cache(tmp_path, write_raster, monkeypatch, number):
    expected = batches(make_data(tmp_path, write_raster))
    data = make_data(tmp_path, write_raster, cache="disk")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(decoded.os, "posix_fallocate", refuse)
    with pytest.warns(UserWarning, match=f"nothing is kept in .*decoded .*{os.strerror(number)}"):
        found = batches(data)
    assert_same(expected, found)
    assert list((tmp_path / "cache/decoded").iterdir()) == []
