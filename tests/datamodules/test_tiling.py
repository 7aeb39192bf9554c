"""Tiles cover a region, each pixel once by their cores."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datamodules.batch import Window
from datamodules.tiling import tile, widen

side = st.integers(1, 90)


@given(st.integers(-5, 50), st.integers(0, 50), side, side, side, side, st.floats(0, 0.9))
def test_cores_cover_every_pixel_once(row, col, height, width, tall, wide, overlap):
    counts = np.zeros((height, width), int)
    for each in tile(Window(row, col, height, width), size=(tall, wide), overlap=overlap):
        own = each.own
        counts[own.row - row : own.row - row + own.height, own.col - col : own.col - col + own.width] += 1
    assert (counts == 1).all()


@given(side, side, side, st.floats(0, 0.9))
def test_tiles_stay_inside_and_have_one_size(height, width, size, overlap):
    for each in tile(Window(0, 0, height, width), size=(size, size), overlap=overlap):
        window, core = each.window, each.core
        assert (window.height, window.width) == (min(size, height), min(size, width))
        assert 0 <= window.row <= height - window.height
        assert 0 <= window.col <= width - window.width
        assert 0 <= core.row < core.row + core.height <= window.height
        assert 0 <= core.col < core.col + core.width <= window.width


@given(st.integers(2, 60), st.integers(1, 300), st.sampled_from([0.0, 0.25, 0.5]))
def test_neighbours_overlap_at_least_as_asked(size, length, overlap):
    tiles = tile(Window(0, 0, 1, length), size=(1, size), overlap=overlap)
    for left, right in pairwise(tiles):
        assert left.window.col + size - right.window.col >= int(size * overlap)


@given(side, side, st.integers(1, 40), st.floats(0, 0.9))
def test_widened_tiles_show_more_of_the_scene_and_keep_their_cores(height, width, size, overlap):
    scene = Window(0, 0, height, width)
    region = Window(height // 3, width // 4, -(-height // 3), -(-width // 2))
    for each in tile(region, size=(size, size), overlap=overlap):
        wide = widen(each, (size, size), scene)
        assert wide.own == each.own
        assert (wide.window.height, wide.window.width) == (min(size, height), min(size, width))
        assert 0 <= wide.window.row <= height - wide.window.height
        assert 0 <= wide.window.col <= width - wide.window.width
        assert 0 <= wide.core.row <= wide.window.height - wide.core.height
        assert 0 <= wide.core.col <= wide.window.width - wide.core.width


def test_an_exact_fit_needs_no_overlap():
    tiles = tile(Window(0, 0, 64, 96), size=(32, 32))
    assert len(tiles) == 6
    assert all(each.core == Window(0, 0, 32, 32) for each in tiles)
