"""Looks: the figures of an item are numpy's, whether it is read in one piece or in several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datamodules.batch import Item, Window
from datamodules.classes import Unknown
from datamodules.surveying import Inspection, Problem
from visionsft.preparation.looks import (
    GRID,
    LOW_HIGH,
    Look,
    gather_statistics,
    layout_of,
    take_look,
    take_looks,
)


class Scene:
    """An inspector of one array, in one piece or in several."""

    def __init__(self, values, valid, mask, windows=(), problems=()):
        self.arrays = values, valid, mask
        self.windows = windows
        self.problems = problems

    def pieces(self, item):
        return [replace(item, window=window) for window in self.windows] or [item]

    def inspect(self, item):
        values, valid, mask = self.arrays
        inside = np.s_[:, :]
        if item.window is not None:
            w = item.window
            inside = np.s_[w.row : w.row + w.height, w.col : w.col + w.width]
        unknown = (Unknown("9", 2, (1, 1, 1, 2)),) if self.problems else ()
        return Inspection(values[:, *inside], valid[inside], mask[inside], unknown, tuple(self.problems))


ITEM = Item("a.tif", "a.tif", "a.tif", "a_mask.tif")


def _arrays(dtype, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (3, 90, 130)).astype(dtype)
    valid = rng.random((90, 130)) < 0.8
    mask = rng.integers(0, 4, (90, 130)).astype(np.uint8)
    mask[mask == 3] = 255
    return values, valid, mask


WINDOWS = (Window(0, 0, 50, 70), Window(0, 70, 50, 60), Window(50, 0, 40, 70), Window(50, 70, 40, 60))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("windows", [(), WINDOWS])
def test_figures_are_those_of_numpy(dtype, windows) -> None:
    values, valid, mask = _arrays(dtype)
    look = take_look("train", ITEM, Scene(values, valid, mask, windows), classes=3)
    pixels = values[:, valid].astype(float)
    assert look.size == (90, 130)
    assert look.pixels == valid.sum()
    np.testing.assert_allclose(look.moments.mean, pixels.mean(axis=1))
    np.testing.assert_allclose(look.moments.std, pixels.std(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(look.moments.maximum, pixels.max(axis=1))
    assert look.counts.tolist() == [(mask == k).sum() for k in range(3)]
    if dtype == np.uint8:
        np.testing.assert_allclose(look.top, (pixels == 255).mean(axis=1))


def test_pieces_give_the_same_small_picture_and_map_as_the_whole() -> None:
    arrays = _arrays(np.uint8)
    whole = take_look("train", ITEM, Scene(*arrays), classes=3)
    parts = take_look("train", ITEM, Scene(*arrays, WINDOWS), classes=3)
    np.testing.assert_allclose(parts.small, whole.small, rtol=1e-6)
    np.testing.assert_array_equal(parts.layout, whole.layout)
    np.testing.assert_array_equal(layout_of(arrays[2], 3), whole.layout)
    assert parts.sharpness == pytest.approx(whole.sharpness, rel=0.05)  # its pieces have edges of their own


def test_cells_without_a_valid_pixel_are_nan() -> None:
    values, valid, mask = np.full((1, 64, 64), 7, np.uint8), np.ones((64, 64), bool), np.zeros((64, 64), np.uint8)
    valid[:32] = False
    look = take_look("train", ITEM, Scene(values, valid, mask), classes=2)
    assert np.isnan(look.small[0, :16]).all()
    assert (look.small[0, 16:] == 7).all()


def test_problems_of_pieces_are_told_once_and_values_put_together() -> None:
    problem = Problem("image", "a.tif", "can't be read")
    look = take_look("train", ITEM, Scene(*_arrays(np.uint8), WINDOWS, (problem,)), classes=3)
    assert look.problems == [problem]
    (unknown,) = look.unknown
    assert unknown.pixels == 8
    assert unknown.box == (1, 1, 51, 72)


def test_looks_come_in_order_from_threads_with_an_inspector_each() -> None:
    made = []

    def make():
        made.append(Scene(*_arrays(np.uint8)))
        return made[-1]

    items = [("train", replace(ITEM, id=str(number))) for number in range(40)]
    looks = list(take_looks(items, make, classes=3, workers=3))
    assert [look.item.id for look in looks] == [str(number) for number in range(40)]
    assert 1 <= len(made) <= 3


def test_statistics_of_looks_are_those_of_all_pixels() -> None:
    arrays = [_arrays(np.uint8, seed) for seed in range(3)]
    looks = [take_look("train", ITEM, Scene(*each), classes=3) for each in arrays]
    together = np.concatenate([values[:, valid] for values, valid, _ in arrays], axis=1).astype(float)
    found = gather_statistics(looks, 3)
    np.testing.assert_allclose(found.mean, together.mean(axis=1))
    np.testing.assert_allclose(found.std, together.std(axis=1), rtol=1e-6)
    assert gather_statistics([Look(ITEM, "train")], 3) is None


def test_percentiles_are_of_a_few_pixels() -> None:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(1, 64, 64)
    look = take_look("train", ITEM, Scene(values, np.ones((64, 64), bool), np.zeros((64, 64), np.uint8)), classes=1)
    np.testing.assert_allclose(look.low, np.percentile(values, LOW_HIGH[0]), atol=100)
    assert look.layout.shape == (GRID, GRID)
