"""Overviews: the same as GDAL's where its rule leaves no choice, and as counting says everywhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.enums import Resampling

from datamodules.batch import IGNORE
from visionsft.prediction.overviews import Halve, halve_classes, halve_shares, overview_sizes, write_half

MAPS = arrays(
    np.uint8,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 1, 2, 5, 254, IGNORE]),
)


def cells(maps: NDArray[np.uint8]) -> dict[tuple[int, int], list[int]]:
    """The measured pixels, in reading order, that each pixel of the half covers."""
    height, width = maps.shape
    return {
        (row // 2, col // 2): [
            int(value) for value in maps[row : row + 2, col : col + 2].ravel() if value != IGNORE
        ]
        for row in range(0, height, 2)
        for col in range(0, width, 2)
    }


@given(MAPS)
@settings(max_examples=100, deadline=None)
def test_most_frequent_class(maps: NDArray[np.uint8]) -> None:
    half = halve_classes(maps)
    assert half.shape == (-(-maps.shape[0] // 2), -(-maps.shape[1] // 2))
    for place, values in cells(maps).items():
        # Counter keeps the order of first sight among equals
        assert half[place] == (Counter(values).most_common(1)[0][0] if values else IGNORE)


@given(MAPS)
@settings(max_examples=100, deadline=None)
def test_mean_of_what_was_measured(maps: NDArray[np.uint8]) -> None:
    half = halve_shares(maps)
    for place, values in cells(maps).items():
        if values:
            assert abs(int(half[place]) - np.mean(values)) <= 0.5
        else:
            assert half[place] == IGNORE


@pytest.mark.parametrize(
    ("halve", "way"), [(halve_classes, Resampling.mode), (halve_shares, Resampling.average)]
)
def test_as_gdal_makes_them(tmp_path: Path, halve: Halve, way: Resampling) -> None:
    rng = np.random.default_rng(0)
    maps = np.kron(rng.integers(0, 6, (40, 30)), np.ones((5, 5), np.int64)).astype(np.uint8)
    maps[:31, :17] = IGNORE
    with rasterio.open(
        tmp_path / "map.tif", "w", driver="GTiff", width=150, height=200, count=1, dtype="uint8", nodata=IGNORE
    ) as file:
        file.write(maps, 1)
    with rasterio.open(tmp_path / "map.tif", "r+") as file:
        file.build_overviews([2], way)
    with rasterio.open(tmp_path / "map.tif", OVERVIEW_LEVEL=0) as file:
        theirs = file.read(1)
    counts = [Counter(values).most_common(2) for values in cells(maps).values()]
    clear = np.array([len(two) < 2 or two[0][1] > two[1][1] for two in counts]).reshape(theirs.shape)
    wanted = clear if way is Resampling.mode else np.ones_like(clear)
    assert wanted.mean() > 0.7
    assert np.array_equal(halve(maps)[wanted], theirs[wanted])


def test_down_to_one_block() -> None:
    assert overview_sizes(1100, 700, smallest=512) == [(550, 350), (275, 175)]
    assert overview_sizes(512, 1, smallest=512) == []
    assert overview_sizes(3, 1025, smallest=512) == [(2, 513), (1, 257)]


@given(st.integers(1, 2), st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 40, 300]))
@settings(max_examples=40, deadline=None)
def test_by_chunks_as_at_once(
    tmp_path_factory: pytest.TempPathFactory, bands: int, height: int, width: int, chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("half")
    maps = np.random.default_rng(height).integers(0, 4, (bands, height, width)).astype(np.uint8)
    (folder / "a").write_bytes(maps.tobytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visionsft.prediction.overviews.CHUNK", chunk)
        write_half(folder / "a", folder / "b", maps.shape, halve_classes)
    wanted = np.stack([halve_classes(band) for band in maps])
    assert (folder / "b").read_bytes() == wanted.tobytes()
