"""Blending: whatever the sizes, every pixel comes out once and as it went in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visionsft.prediction.blending import Axis, Blender, Grid, plan_axis, plan_grid


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Scenes from one pixel on, tiles smaller and larger than they are, overlaps from none to half a tile."""
    shape = draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    size = draw(st.integers(1, 24))
    return plan_grid(
        shape, size=size, overlap=draw(st.integers(0, size // 2)), multiple=draw(st.sampled_from([1, 2, 8]))
    )


def blend(grid: Grid, scene: Tensor, *, first: int = 0) -> tuple[Tensor, Tensor]:
    """The scene (K, H, W) in tiles and back, and how often each pixel came out; from a row of tiles on."""
    found, times = torch.full_like(scene, torch.nan), torch.zeros(scene.shape[1:], dtype=torch.int64)
    blender = Blender(grid)
    for row, col in grid:
        if row < first:
            continue
        seen, own = grid.window(row, col), grid.own(row, col)
        part = scene[:, seen.row : seen.row + seen.height, seen.col : seen.col + seen.width].clone()
        inside = (..., slice(own.row, own.row + own.height), slice(own.col, own.col + own.width))
        found[inside] = blender.add(row, col, part)
        times[inside[1:]] += 1
    return found, times


@given(grids(), st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_what_goes_in_comes_out_once(grid: Grid, seed: int) -> None:
    scene = torch.randn(2, *grid.shape, generator=torch.Generator().manual_seed(seed))
    found, times = blend(grid, scene)
    assert bool((times == 1).all())
    torch.testing.assert_close(found, scene, atol=1e-5, rtol=0)


@given(grids())
@settings(max_examples=150, deadline=None)
def test_tiles_keep_the_models_grid_and_never_are_three_deep(grid: Grid) -> None:
    for axis in (grid.rows, grid.cols):
        assert 2 * axis.overlap <= axis.size
        assert axis.own(axis.count - 1)[1] == axis.length
        assert axis.start(axis.count - 1) < axis.length
    assert grid.tile == (grid.rows.stride + grid.rows.overlap, grid.cols.stride + grid.cols.overlap)


def test_starts_are_multiples_of_the_coarsest_stride() -> None:
    axis = plan_axis(1000, size=256, overlap=20, multiple=32)
    assert (axis.stride % 32, axis.overlap, axis.size % 32) == (0, 32, 0)


@pytest.mark.parametrize(
    ("length", "expected"), [(8192, 4), (8256, 4), (8257, 5), (2112, 1), (2113, 2), (1, 1)]
)
def test_the_fewest_tiles_are_taken(length: int, expected: int) -> None:
    assert plan_axis(length, size=2112, overlap=64, multiple=32).count == expected


def test_no_overlap_and_a_scene_of_one_tile_more_a_pixel() -> None:
    # a stride of a whole tile, and 513 pixels for tiles of 512: where a peer returns nothing, or raises
    assert plan_axis(1024, size=512, overlap=0) == Axis(1024, 512, 0, 2)
    assert plan_axis(513, size=512, overlap=0).count == 2


def test_later_rows_alone_give_what_they_give_in_the_whole() -> None:
    grid = plan_grid((50, 40), size=16, overlap=6)
    scene = torch.randn(1, 50, 40, generator=torch.Generator().manual_seed(0))
    whole, part = blend(grid, scene)[0], blend(grid, scene, first=1)[0]
    begins = grid.rows.own(2)[0]
    assert torch.equal(whole[:, begins:], part[:, begins:])


def test_the_outer_quarter_of_an_overlap_is_context_only() -> None:
    ramp = plan_axis(100, size=40, overlap=16).ramp()
    assert ramp[:4].tolist() == [0.0] * 4
    assert ramp[-4:].tolist() == [1.0] * 4
    torch.testing.assert_close(ramp + ramp.flip(0), torch.ones(16))
    assert bool((ramp.diff() >= 0).all())


def test_an_overlap_of_more_than_half_a_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap 9 of tiles of 16 pixels; allowed: 0 to 8"):
        plan_axis(100, size=16, overlap=9)
