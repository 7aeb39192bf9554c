"""Scenes: tiled as untiled, whatever the tiles; rows in order; what is nodata isn't computed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodules.batch import Window
from visionsft.prediction import scenes
from visionsft.prediction.blending import plan_grid
from visionsft.prediction.scenes import FULL, ArraySource, ahead, blend_tiles, make_layers, row_bands


def make_source(height: int, width: int, *, seed: int = 0, channels: int = 3) -> ArraySource:
    rng = np.random.default_rng(seed)
    return ArraySource(
        rng.normal(size=(channels, height, width)).astype(np.float32), np.ones((height, width), bool)
    )


def assemble(source: ArraySource, run: Callable[[Tensor], Tensor], *, batch: int = 1, **tiles: int) -> Tensor:
    """(K, H, W) blended."""
    found = torch.full((3, *source.shape), torch.nan)
    for piece in blend_tiles(source, run, plan_grid(source.shape, **tiles), num_classes=3, batch=batch):
        window = piece.window
        found[:, window.row : window.row + window.height, window.col : window.col + window.width] = (
            piece.logits
        )
    return found


@given(
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.integers(1, 20),
    st.integers(0, 10),
    st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_model_that_returns_its_input(shape: tuple[int, int], size: int, overlap: int, batch: int) -> None:
    source = make_source(*shape)
    found = assemble(source, lambda image: image, size=size, overlap=min(overlap, size // 2), batch=batch)
    torch.testing.assert_close(found, torch.from_numpy(source.image), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("size", "overlap"), [(16, 8), (32, 16), (24, 8)])
def test_tiled_equals_untiled_away_from_the_border(size: int, overlap: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    source = make_source(70, 50)
    with torch.no_grad():
        whole = model(torch.from_numpy(source.image)[None])[0]
        found = assemble(source, model, size=size, overlap=overlap, batch=3)
    # a pixel of context is needed, and the outer quarter of an overlap gives two
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)


def test_a_strided_model_sees_every_tile_in_the_same_phase() -> None:
    pool = nn.AvgPool2d(8)

    def run(image: Tensor) -> Tensor:
        return nn.functional.interpolate(pool(image), scale_factor=8, mode="nearest")

    source = make_source(64, 96)
    found = assemble(source, run, size=32, overlap=8, multiple=8)
    torch.testing.assert_close(found, run(torch.from_numpy(source.image)[None])[0], atol=1e-5, rtol=0)


def test_tiles_without_a_valid_pixel_are_not_computed() -> None:
    source = make_source(64, 64)
    source.valid[:, :33] = False
    seen: list[int] = []

    def run(image: Tensor) -> Tensor:
        seen.append(len(image))
        return image

    grid = plan_grid(source.shape, size=16, overlap=0)
    bands = list(
        row_bands(
            blend_tiles(source, run, grid, num_classes=3, batch=4),
            make_layers(["classes"], num_classes=3),
            width=64,
        )
    )
    assert sum(seen) == 4 * 2
    classes = np.concatenate([band.classes for band in bands])
    assert (classes[:, :33] == 255).all()
    assert np.array_equal(classes[:, 33:], source.image.argmax(0)[:, 33:])


def test_bands_follow_each_other_and_hold_every_layer() -> None:
    source = make_source(50, 30)
    layers = make_layers(["classes", "probability", "confidence", "entropy"], num_classes=3, temperature=2.0)
    grid = plan_grid(source.shape, size=16, overlap=4)
    bands = list(row_bands(blend_tiles(source, lambda image: image, grid, num_classes=3), layers, width=30))
    assert [band.row for band in bands] == [grid.rows.own(row)[0] for row in range(grid.rows.count)]
    maps = {layer.name: np.concatenate([band.maps[layer.name] for band in bands], axis=1) for layer in layers}
    p = torch.from_numpy(source.image / 2.0).double().softmax(0).numpy()
    assert np.array_equal(maps["classes"][0], p.argmax(0))
    assert np.abs(maps["probability"] / FULL - p).max() < 1.01 / FULL
    assert np.abs(maps["confidence"][0] / FULL - p.max(0)).max() < 1.01 / FULL
    assert np.abs(maps["entropy"][0] / FULL + (p * np.log(p)).sum(0) / np.log(3)).max() < 1.01 / FULL


def test_pixels_that_are_not_square() -> None:
    """A source whose model sees half as many columns and all rows: a ramp comes back where it was."""

    class Narrow(ArraySource):
        def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
            image, valid = super().read(window)
            return image.reshape(*image.shape[:2], -1, 2).mean(3), valid

    ramp = np.broadcast_to(np.arange(64, dtype=np.float32), (3, 40, 64)).copy()
    source = Narrow(ramp, np.ones((40, 64), bool))
    found = assemble(source, lambda image: image, size=32, overlap=8, multiple=2)
    assert np.abs(found.numpy() - ramp)[:, :, 1:-1].max() < 1e-3


@pytest.mark.parametrize("first", [0, 1, 3])
def test_some_rows_alone_are_the_rows_of_the_whole(first: int) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 3, 5, padding=2).eval().requires_grad_(False)
    source, grid = make_source(90, 40), plan_grid((90, 40), size=20, overlap=8)
    whole = [(p.window, p.logits) for p in blend_tiles(source, model, grid, num_classes=3)]
    part = [
        (p.window, p.logits)
        for p in blend_tiles(source, model, grid, num_classes=3, first=first, last=first + 2)
    ]
    wanted = [(w, v) for w, v in whole if grid.rows.own(first)[0] <= w.row < grid.rows.own(first + 1)[1]]
    assert [window for window, _ in part] == [window for window, _ in wanted]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(part, wanted, strict=True))


def test_pieces_are_where_the_model_is_those_without_measurement_too() -> None:
    source = make_source(90, 60)
    source.valid[:30, :30] = False
    grid = plan_grid((90, 60), size=20, overlap=8)
    pieces = blend_tiles(source, lambda image: image.to("meta"), grid, num_classes=3, device="meta")
    assert {piece.logits.device.type for piece in pieces} == {"meta"}


@pytest.mark.parametrize("waits", [False, True])
def test_what_is_usual_is_seen_after_the_first_tile_that_is_computed(
    waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(scenes, "limit_growth", lambda usual: seen.append((len(tiles), usual)) or 7)
    source, grid = make_source(90, 40), plan_grid((90, 40), size=20, overlap=8)
    source.valid[:20] = False  # all of the first row of tiles
    source.waits = waits
    tiles: list[object] = []
    read = scenes.read_tiles
    monkeypatch.setattr(scenes, "read_tiles", lambda *given: tiles.append(given[-1]) or read(*given))
    assert len(list(scenes.read_groups(source, grid, ([place] for place in grid)))) == len(tiles)
    first = grid.cols.count + (2 if waits else 1)  # with a second one that is read while the first is computed
    assert seen == [(count, None if count == first else 7) for count in range(first, len(tiles))]


def test_no_rows_left_cost_nothing() -> None:
    def run(image: Tensor) -> Tensor:
        raise AssertionError("a tile was computed")

    grid = plan_grid((90, 40), size=20, overlap=8)
    rows = grid.rows.count
    assert list(blend_tiles(make_source(90, 40), run, grid, num_classes=3, first=rows, last=rows)) == []


def test_one_item_ahead_and_no_more() -> None:
    made: list[int] = []
    items = ahead(made.append(i) or i for i in range(5))  # type: ignore[func-returns-value]
    assert next(items) == 0
    assert next(items) == 1
    assert len(made) <= 3
    assert list(items) == [2, 3, 4]


def test_an_error_ahead_is_raised_where_the_items_are_used() -> None:
    def fail() -> Tensor:
        raise ValueError("tile 2 is broken")

    items = ahead(step() for step in (lambda: 1, lambda: 2, fail))
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="tile 2 is broken"):
        next(items)


def test_leaving_early_leaves_no_thread() -> None:
    before = threading.active_count()
    items = ahead(iter(range(1000)))
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
