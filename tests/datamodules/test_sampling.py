"""Sampling: a function of (seed, epoch, index) that visits ground by its valid area."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.augment import Augment
from datamodules.batch import Item, Window
from datamodules.sampling import (
    CELL,
    ClassPositions,
    EpochSampler,
    ObjectPlan,
    Region,
    SampleKey,
    WindowPlan,
    class_pixels,
    find_classes,
    near_labels,
)


def region(
    name: str, height: int, width: int, *, row: int = 0, footprint: np.ndarray | None = None
) -> Region:
    area = height * width * (1.0 if footprint is None else float(footprint.mean()))
    item = Item(id=name, group=name, image=name)
    return Region(item, Window(row, 0, height, width), area, footprint)


def draws(plan: WindowPlan, epoch: int = 0, seed: int = 0) -> list[Item]:
    keys = [SampleKey(seed, epoch, index) for index in range(len(plan))]
    return [plan.draw(key, key.rng())[0] for key in keys]


def test_keys_are_a_permutation_that_epoch_and_seed_decide():
    sampler = EpochSampler(range(20), seed=3)
    first = list(sampler)
    assert sorted(key.index for key in first) == list(range(20))
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert {key.epoch for key in second} == {1}
    assert [key.index for key in second] != [key.index for key in first]
    assert [key.index for key in EpochSampler(range(20), seed=4)] != [key.index for key in first]


def test_ranks_share_out_an_epoch():
    parts = [[key.index for key in EpochSampler(range(21), seed=0, rank=rank, world=2)] for rank in (0, 1)]
    assert [len(part) for part in parts] == [11, 11]
    assert set(parts[0]) | set(parts[1]) == set(range(21))


def test_scenes_of_one_size_are_visited_once_each():
    plan = WindowPlan([region(str(i), 20, 20) for i in range(30)], size=(32, 32), length=30)
    assert Counter(item.image for item in draws(plan)) == {str(i): 1 for i in range(30)}
    assert draws(plan) == draws(plan)
    assert draws(plan, epoch=1) != draws(plan)


@given(st.lists(st.integers(10, 400), min_size=1, max_size=12), st.integers(1, 60), st.integers(0, 5))
def test_scenes_are_visited_by_area(sides, length, epoch):
    regions = [region(str(i), side, side) for i, side in enumerate(sides)]
    plan = WindowPlan(regions, size=(8, 8), length=length)
    visits = np.bincount(plan.slots(0, epoch), minlength=len(sides))
    expected = plan.area / plan.area.sum() * length
    assert visits.sum() == length
    assert (np.abs(visits - expected) < 1 + 1e-6).all()


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 100), st.integers(0, 100))
def test_windows_stay_in_their_region(height, width, size, index):
    plan = WindowPlan([region("a", height, width, row=7)], size=(size, size), length=101)
    key = SampleKey(0, 0, index)
    item, centre = plan.draw(key, key.rng())
    window = item.window
    assert centre is None
    assert (window.height, window.width) == (min(size, height), min(size, width))
    assert 7 <= window.row <= 7 + height - window.height
    assert 0 <= window.col <= width - window.width


def test_windows_differ_within_an_epoch_and_between_epochs():
    plan = WindowPlan([region("a", 500, 500)], size=(32, 32), length=50)
    assert len({item.window for item in draws(plan)}) > 45
    assert not {item.window for item in draws(plan)} & {item.window for item in draws(plan, epoch=1)}


def test_windows_find_valid_ground():
    footprint = np.zeros((64, 64), bool)
    footprint[50:54, 50:54] = True
    plan = WindowPlan([region("a", 1024, 1024, footprint=footprint)], size=(64, 64), length=40, min_valid=0.4)
    shares = [plan.regions[0].valid_share(item.window) for item in draws(plan)]
    assert np.mean(np.array(shares) >= 0.4) > 0.9
    assert min(shares) > 0


def test_valid_share_is_counted_inside_the_region():
    footprint = np.array([[True, False], [True, True]])
    place = region("a", 20, 20, row=100, footprint=footprint)
    assert place.valid_share(Window(100, 0, 20, 20)) == 0.75
    assert place.valid_share(Window(100, 10, 10, 10)) == 0.0
    assert place.valid_share(Window(110, 0, 10, 20)) == 1.0


def test_class_pixels_are_one_a_class_and_cell():
    mask = np.zeros((100, 150), np.uint8)
    mask[70:72, 140:143] = 1
    mask[:5] = 255
    found = class_pixels(mask, 3, rng=np.random.default_rng(0))
    assert [len(pixels) for pixels in found] == [6, 1, 0]
    for index, pixels in enumerate(found):
        assert all(mask[row, col] == index for row, col in pixels)
    assert len({(row // CELL, col // CELL) for row, col in found[0]}) == 6


class Masks:
    """A reader of masks held in memory."""

    def __init__(self, masks: dict[str, np.ndarray]) -> None:
        self.masks = masks

    def read_mask(self, item: Item) -> np.ndarray:
        window = item.window
        return self.masks[item.image][window.row : window.row + window.height]

    read = read_mask


@pytest.fixture
def rare() -> tuple[dict[str, np.ndarray], ClassPositions, list[Region]]:
    masks = {name: np.zeros((200, 200), np.uint8) for name in "ab"}
    masks["b"][150:153, 10:13] = 1
    regions = [region(name, 200, 200) for name in masks]
    windows = [
        [Item(id=name, group=name, image=name, window=Window(row, 0, 100, 200)) for row in (0, 100)]
        for name in masks
    ]
    return masks, find_classes(windows, Masks(masks), num_classes=3), regions


def test_rare_classes_are_found_and_centred_on(rare):
    masks, positions, regions = rare
    plan = WindowPlan(regions, size=(32, 32), length=400, positions=positions, rare_share=0.5)
    with_rare = centred = 0
    for index in range(400):
        key = SampleKey(0, 0, index)
        item, centre = plan.draw(key, key.rng())
        window = item.window
        part = masks[item.image][window.row : window.row + 32, window.col : window.col + 32]
        with_rare += bool((part == 1).any())
        if centre is not None:
            centred += 1
            assert part[centre] == masks[item.image][window.row + centre[0], window.col + centre[1]]
    assert 160 < centred < 240
    assert with_rare > 0.4 * centred  # half of the centred ones, since two classes occur


def test_positions_survive_a_file(rare):
    positions = rare[1]
    file = io.BytesIO()
    positions.save(file)
    file.seek(0)
    again = ClassPositions.load(file)
    for one, other in zip(positions.pixels, again.pixels, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_class_anywhere_gives_no_position():
    empty = ClassPositions((np.empty((0, 3), np.int64),) * 2)
    assert empty.draw(np.random.default_rng(0)) is None


def test_windows_lie_near_sparse_labels_and_show_the_ground_around():
    ground = Window(0, 0, 500, 400)
    regions = [replace(region(name, 40, 40, row=100), ground=ground) for name in ("some", "none")]
    pixels = np.array([[0, 100, 0], [0, 139, 39]])
    positions = ClassPositions((pixels, np.empty((0, 3), np.int64)))
    plan = WindowPlan(near_labels(regions, positions), size=(64, 64), length=200)
    seen = Counter()
    for index in range(200):
        key = SampleKey(0, 0, index)
        item, centre = plan.draw(key, key.rng())
        window = item.window
        assert (window.height, window.width) == (64, 64)
        assert item.labelled == Window(100, 0, 40, 40)
        assert item.image == "some"
        assert 0 <= window.row <= 500 - 64
        assert 0 <= window.col <= 400 - 64
        middle = (window.row + centre[0], window.col + centre[1])
        near = [k for k, pixel in enumerate(pixels[:, 1:]) if np.abs(pixel - middle).max() <= 16]
        assert near
        seen.update(near)
    assert min(seen.values()) > 60


def test_training_windows_of_dense_labels_are_the_ones_they_were():
    """Drawn before there were sparse labels: runs that are resumed see the samples that they would have seen."""
    plan = WindowPlan([region("a", 90, 70), region("b", 50, 80)], size=(32, 24), length=4)
    windows = [(item.image, item.window.row, item.window.col) for item in draws(plan, epoch=2, seed=5)]
    assert windows == [("a", 46, 11), ("a", 39, 37), ("a", 52, 30), ("b", 9, 43)]


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.5, 2.0)])
def test_the_drawn_object_is_wholly_in_every_crop(zoom):
    item = Item("a", "a", "a", window=Window(0, 0, 200, 300))
    augment = Augment("nadir", crop=(64, 64), scale=zoom)
    box = np.array([[141.3, 80.2, 163.9, 101.7]])
    plan = ObjectPlan([Region(item, item.window, 6e4)], [box], size=augment.reach, crop=(64, 64),
                      largest_zoom=zoom[1], length=9, min_valid=0.0, empty_share=0.0)  # fmt: skip
    corners = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        drawn, centre = plan.draw(SampleKey(0, 0, 0), rng)
        window = drawn.window
        view = augment.draw((window.height, window.width), rng=rng, centre=centre)
        found = view.points(box.reshape(2, 2) - (window.col, window.row))
        assert found.min() >= -1e-6
        assert found.max() <= 64 + 1e-6
        corners.add((window.row, window.col))
    assert len(corners) > 50


def test_all_objects_are_drawn_equally_often_and_anywhere_in_their_windows():
    """Two regions of ten and of one object: each object has an eleventh of the windows."""
    ten = np.array([[x, 40, x + 6, 46] for x in range(20, 320, 30)], float)
    one = np.array([[50.0, 50, 60, 60]])
    plan = ObjectPlan([region("a", 100, 400), region("b", 400, 400)], [ten, one], size=(48, 48), crop=(48, 48),
                      largest_zoom=1.0, length=2200, min_valid=0.0, empty_share=0.0)  # fmt: skip
    items = draws(plan)
    assert sum(item.group == "b" for item in items) == pytest.approx(200, abs=50)
    rows = {item.window.row for item in items if item.group == "b"}
    assert min(rows) < 20 < 40 < max(rows) <= 50


def test_crops_without_objects_are_found_beside_them():
    """All of the left is full of objects: no crop touches it, nor, zoomed out, sees any of it."""
    full = np.array([[x, y, x + 9, y + 9] for x in range(0, 100, 10) for y in range(0, 100, 10)], float)
    plan = ObjectPlan([region("a", 100, 400)], [full], size=(64, 64), crop=(32, 32), largest_zoom=1.0,
                      length=200, min_valid=0.0, empty_share=1.0)  # fmt: skip
    for index in range(200):
        key = SampleKey(0, 0, index)
        item, centre = plan.draw(key, key.rng())
        assert centre is not None
        assert item.window.col >= 99


def test_dense_ground_gives_the_crops_with_the_fewest_objects():
    """No crop is empty: those drawn have fewer objects than random ones."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 190, (200, 2)) ** 2 / 190
    boxes = np.concatenate([corners, corners + 10], axis=1)
    counts = {}
    for share in (0.0, 1.0):
        plan = ObjectPlan([region("a", 200, 200)], [boxes], size=(60, 60), crop=(60, 60), largest_zoom=1.0,
                          length=100, min_valid=0.0, empty_share=share)  # fmt: skip
        windows = [item.window for item in draws(plan)]
        inside = [
            (boxes[:, 0] < w.col + 60) & (boxes[:, 2] > w.col) & (boxes[:, 1] < w.row + 60) & (boxes[:, 3] > w.row)
            for w in windows
        ]
        counts[share] = np.mean([each.sum() for each in inside])
    assert counts[1.0] < counts[0.0] / 3
