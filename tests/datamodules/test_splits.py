"""Splits: whole groups, no shared file and no shared ground."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from datamodules.batch import Item, Window
from datamodules.errors import DataError
from datamodules.raster import Grid
from datamodules.splits import (
    group_by_drive,
    group_samples,
    refuse_leaks,
    share_out,
    split_by_drive,
    split_by_folder,
    split_by_list,
    split_by_place,
    split_by_scene,
)


def items(*names: str, group: str | None = None) -> list[Item]:
    return [Item(id=name, group=group or name, image=f"/data/{name}") for name in names]


def names(splits: dict[str, list[Item]]) -> dict[str, list[str]]:
    return {split: [item.id for item in found] for split, found in splits.items()}


@given(
    st.lists(st.integers(1, 50), min_size=3, max_size=40),
    st.floats(0.05, 0.4),
    st.floats(0.05, 0.4),
    st.integers(0, 9),
)
def test_every_split_gets_groups_near_its_share(sizes, val, test, seed):
    groups = {f"g{i}": float(size) for i, size in enumerate(sizes)}
    owner = share_out(groups, val=val, test=test, seed=seed)
    assert owner.keys() == groups.keys()
    assert set(owner.values()) == {"train", "val", "test"}
    if len(sizes) >= 10:
        part = sum(size for name, size in groups.items() if owner[name] == "val") / sum(sizes)
        assert abs(part - val) <= max(sizes) / sum(sizes)


def test_seed_decides_between_equal_groups_and_nothing_else():
    scenes = items(*(f"s{i}.tif" for i in range(20)))
    first = split_by_scene(scenes, val=0.2, test=0.1, seed=0)
    assert {split: len(found) for split, found in first.items()} == {"train": 14, "val": 4, "test": 2}
    assert names(split_by_scene(scenes[::-1], val=0.2, test=0.1, seed=0))["val"][::-1] == names(first)["val"]
    assert names(split_by_scene(scenes, val=0.2, test=0.1, seed=1)) != names(first)


def test_zero_share_is_empty_and_too_few_groups_are_an_error():
    splits = split_by_scene(items("a", "b"), val=0.5, test=0.0, seed=0)
    assert [len(found) for found in splits.values()] == [1, 1, 0]
    with pytest.raises(DataError, match="3 splits need as many groups, but there is only a, b"):
        split_by_scene(items("a", "b"), val=0.2, test=0.2, seed=0)
    with pytest.raises(DataError, match="leave nothing to train on"):
        split_by_scene(items("a", "b"), val=0.5, test=0.5, seed=0)


def test_drives_stay_whole():
    frames = items(*(f"d{drive}_{frame}.png" for drive in range(5) for frame in range(10)))
    splits = split_by_drive(frames, pattern=r"^([^_]+)", val=0.2, test=0.2, seed=0)
    assert [len(found) for found in splits.values()] == [30, 10, 10]
    refuse_leaks(splits, groups=True)
    with pytest.raises(DataError, match=r"finds nothing in d0_0\.png"):
        group_by_drive(frames, pattern=r"(x\d)")
    with pytest.raises(DataError, match="no group"):
        group_by_drive(frames, pattern=r"^d\d")
    with pytest.raises(DataError, match="no regular expression"):
        group_by_drive(frames, pattern=r"(")


def test_folders_as_given_or_held_out():
    train = items("a", "b", "c", "d")
    splits = split_by_folder({"train": train, "test": items("e")}, val_fraction=0.25, seed=0)
    assert [len(found) for found in splits.values()] == [3, 1, 1]
    given = split_by_folder({"train": train, "val": items("f")}, val_fraction=0.25, seed=0)
    assert [len(found) for found in given.values()] == [4, 1, 0]


def test_lists_name_samples_by_path_name_or_stem(tmp_path):
    scenes = items("x/a.tif", "x/b.tif", "y/c.tif", "y/d.tif")
    train, val, test = (tmp_path / name for name in ("train.txt", "val.txt", "test.txt"))
    train.write_text("x/a.tif\n\nd\n")
    val.write_text("b.tif\n")
    test.write_text("/data/y/c.tif\n")
    splits = split_by_list(scenes, root=Path("/data"), train=train, val=val, test=test)
    assert names(splits) == {"train": ["x/a.tif", "y/d.tif"], "val": ["x/b.tif"], "test": ["y/c.tif"]}

    val.write_text("b.tif\nmissing\n")
    with pytest.raises(DataError, match=r"val\.txt, line 2: 'missing' must name one sample, but names 0"):
        split_by_list(scenes, root=Path("/data"), train=train, val=val, test=None)
    val.write_text("a.tif\n")
    with pytest.raises(DataError, match=r"x/a\.tif is in two splits: train and val"):
        split_by_list(scenes, root=Path("/data"), train=train, val=val, test=None)
    with pytest.raises(DataError, match="can't be read"):
        split_by_list(scenes, root=Path("/data"), train=tmp_path / "no.txt", val=val, test=None)


def test_leaks_are_refused_or_told():
    splits = {"train": items("a", group="g"), "val": items("b", group="g"), "test": []}
    with pytest.raises(DataError, match="group 'g' is in two splits: train and val"):
        refuse_leaks(splits, groups=True)
    refuse_leaks(splits, groups=False)
    with pytest.raises(DataError, match="a is in two splits"):
        refuse_leaks({"train": items("a"), "test": items("a")}, groups=False)


def test_samples_are_counted_by_group_unless_each_is_its_own():
    def items(*groups: str) -> list[Item]:
        return [Item(f"{i}", group, "") for i, group in enumerate(groups)]

    assert group_samples({"train": items("b", "a", "b"), "val": []}) == {"train": {"a": 1, "b": 2}, "val": {}}
    assert group_samples({"train": items("a", "b"), "test": items("c")}) == {}


def grid(zone: int, west: float, north: float, size: int, pixel: float = 10.0) -> Grid:
    return Grid(size, size, Affine(pixel, 0, west, 0, -pixel, north), CRS.from_epsg(32600 + zone))


def place(grids: dict[str, Grid], *, gap: float = 0.0, block: float = 2000.0, seed: int = 0):
    """Splits the scenes and returns for every pixel its (east, north) in one CRS, by split."""
    scenes = [Item(id=name, group=name, image=name) for name in grids]
    splits, left_out = split_by_place(scenes, grids, block=block, gap=gap, val=0.2, test=0.2, seed=seed)
    ground: dict[str, list[np.ndarray]] = {split: [] for split in splits}
    for split, found in splits.items():
        for item in found:
            window = item.window
            rows, cols = np.mgrid[
                window.row : window.row + window.height, window.col : window.col + window.width
            ]
            lons, lats = grids[item.image].to_lonlat(rows.ravel() + 0.5, cols.ravel() + 0.5)
            ground[split].append(np.stack([lons * np.cos(np.radians(50)) * 111_320, lats * 111_320], axis=1))
    return splits, left_out, {split: np.concatenate(found) for split, found in ground.items()}


def test_overlapping_scenes_of_two_zones_share_no_ground():
    """The same ground seen in UTM 32 and 33: a place must be in one split only."""
    there = grid(33, 300_000.0, 5_550_000.0, 400)
    lons, lats = there.to_lonlat(np.array([0.0]), np.array([0.0]))
    wide = Grid(400, 400, Affine(10, 0, 0, 0, -10, 0), CRS.from_epsg(32632))
    rows, cols = wide.to_pixel(lons, lats)
    here = grid(32, float(cols[0]) * 10, -float(rows[0]) * 10, 400)
    splits, left_out, ground = place({"a": there, "b": here})
    assert {item.image for item in splits["train"]} == {"a", "b"}
    assert 0 < left_out < 0.35
    cells = {split: {tuple(cell) for cell in (points // 25).astype(int)} for split, points in ground.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = cells[one] & cells[other]
        assert len(shared) < 0.02 * min(len(cells[one]), len(cells[other]))  # cells that a border cuts


@pytest.mark.parametrize("gap", [100.0, 300.0])
def test_splits_are_at_least_a_gap_apart(gap):
    _, _, ground = place({"a": grid(33, 400_000.0, 5_550_000.0, 600)}, gap=gap)
    thin = {split: points[:: max(1, len(points) // 1000)] for split, points in ground.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        apart = np.sqrt(((thin[one][:, None] - thin[other][None]) ** 2).sum(axis=2)).min()
        assert apart > gap


def test_small_scenes_in_one_block_stay_whole():
    scenes = {f"s{i}": grid(33, 400_000.0 + 7000 * i, 5_550_000.0, 20) for i in range(8)}
    splits, left_out, _ = place(scenes, block=5000.0)
    whole = [
        item
        for found in splits.values()
        for item in found
        if (item.window.height, item.window.width) == (20, 20)
    ]
    assert len(whole) >= 6
    assert all(item.id in scenes for item in whole)
    assert left_out < 0.05
    assert Counter(item.group for found in splits.values() for item in found)


def test_blocks_that_are_too_small_are_refused():
    with pytest.raises(DataError, match="leaves nothing of a 200 m block"):
        place({"a": grid(33, 400_000.0, 5_550_000.0, 100)}, gap=100.0, block=200.0)
    with pytest.raises(DataError, match="need as many groups"):
        place({"a": grid(33, 400_000.0, 5_550_000.0, 10)}, block=100_000.0)


def test_what_is_shared_out_may_lie_in_a_few_blocks():
    """Blocks with nothing of it are in no split, nor are those that the item's window doesn't meet."""
    (item,) = items("a")
    grids = {item.image: grid(33, 500_000, 5_400_000, 1000)}
    part_of_it = replace(item, window=Window(0, 0, 500, 1000))
    parts, _ = split_by_place(
        [part_of_it], grids, block=1000.0, gap=0.0, val=0.5, test=0.0, seed=0,
        amount=lambda part: 7 if part.window.col < 300 else 0,
    )  # fmt: skip
    windows = [part.window for split in parts.values() for part in split]
    assert all(window.col < 300 and window.row < 600 for window in windows)
    assert len(parts["train"]) == len(parts["val"]) > 5
