"""Statistics and normalisation: equal to numpy on all pixels at once; the guard; the cache."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.batch import Item
from datamodules.datasets import RawSample
from datamodules.errors import DataError
from datamodules.statistics import (
    Moments,
    Normalisation,
    Statistics,
    cache_folder,
    cached_statistics,
    check_range,
    collect,
    fingerprint,
    suggest_scale,
)

BANDS = ("red", "nir")


def figures(mean: float = 1200.0, std: float = 800.0, largest: float = 12_000.0) -> Statistics:
    return Statistics(
        mean=np.full(2, mean),
        std=np.full(2, std),
        minimum=np.zeros(2),
        maximum=np.full(2, largest),
        class_counts=np.array([3, 0], np.int64),
        valid_pixels=10,
        samples=1,
        windows=1,
        fingerprint="f",
    )


class Memory:
    """A reader of samples held in memory."""

    def __init__(self, samples: list[RawSample]) -> None:
        self.samples = samples

    def read(self, item: Item) -> RawSample:
        return self.samples[int(item.id)]

    def read_mask(self, item: Item) -> np.ndarray:
        return self.samples[int(item.id)].mask


def samples(count: int, seed: int = 0) -> list[RawSample]:
    rng = np.random.default_rng(seed)
    return [
        RawSample(
            values=rng.integers(0, 5000, (2, 6, 7)).astype(np.uint16),
            valid=rng.random((6, 7)) > 0.3,
            mask=rng.choice(np.array([0, 1, 255], np.uint8), (6, 7)),
        )
        for _ in range(count)
    ]


def gather(found: list[RawSample], limit: int = 1000) -> Statistics:
    items = [Item(id=str(i), group="", image="") for i in range(len(found))]
    return collect(items, Memory(found), bands=2, num_classes=3, fingerprint="f", limit=limit)


def test_figures_equal_numpys_over_all_pixels():
    found = samples(9)
    pixels = np.concatenate([raw.values[:, raw.valid] for raw in found], axis=1).astype(np.float64)
    result = gather(found)
    np.testing.assert_allclose(result.mean, pixels.mean(axis=1))
    np.testing.assert_allclose(result.std, pixels.std(axis=1))
    np.testing.assert_array_equal(result.minimum, pixels.min(axis=1))
    np.testing.assert_array_equal(result.maximum, pixels.max(axis=1))
    assert result.valid_pixels == pixels.shape[1]
    masks = np.stack([raw.mask for raw in found])
    assert result.class_counts.tolist() == [(masks == 0).sum(), (masks == 1).sum(), 0]


@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9), min_size=1, max_size=6))
def test_moments_do_not_depend_on_the_pieces(pieces):
    moments = Moments(1)
    for piece in pieces:
        moments.add(np.array([[piece]]), np.ones((1, len(piece)), bool))
    together = np.concatenate(pieces)
    np.testing.assert_allclose(moments.mean, together.mean(), atol=1e-6)
    np.testing.assert_allclose(moments.std, together.std(), atol=1e-5)


def test_all_labels_count_though_few_pixels_are_read():
    found = samples(20)
    result = gather(found, limit=3)
    assert (result.samples, result.windows) == (3, 20)
    assert result.class_counts.sum() == sum(int((raw.mask != 255).sum()) for raw in found)


def test_no_valid_pixel_is_an_error():
    empty = RawSample(np.zeros((2, 3, 3)), np.zeros((3, 3), bool), np.full((3, 3), 255, np.uint8))
    with pytest.raises(DataError, match="none of the 1 training windows read has a valid pixel"):
        gather([empty])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_normalisation_is_zero_mean_and_zero_where_invalid(dtype):
    rng = np.random.default_rng(0)
    values = np.moveaxis(rng.integers(0, 200, (8, 9, 2)).astype(dtype), 2, 0)
    valid = rng.random((8, 9)) > 0.2
    if dtype in (np.float32, np.float64):
        values[:, ~valid] = np.nan
    normalise = Normalisation((100.0, 50.0), (20.0, 10.0))
    image = normalise(values, valid)
    assert image.dtype == np.float32
    assert image.flags.c_contiguous
    assert (image[:, ~valid] == 0).all()
    expected = (values[:, valid].astype(np.float64) - [[100], [50]]) / [[20], [10]]
    np.testing.assert_allclose(image[:, valid], expected, rtol=1e-5)


def test_normalisation_from_weights_and_from_data():
    assert Normalisation.from_weights((0.5,), (0.25,), scale=10_000) == Normalisation((5000.0,), (2500.0,))
    assert Normalisation.from_data(figures(), BANDS) == Normalisation((1200.0,) * 2, (800.0,) * 2)
    with pytest.raises(DataError, match="band 'red' is 1200 in every training pixel"):
        Normalisation.from_data(figures(std=0.0), BANDS)


def test_guard_names_bands_values_and_a_scale_that_fits():
    fits = Normalisation.from_weights((0.45,) * 2, (0.225,) * 2, scale=10_000)
    check_range(figures(), fits, BANDS)
    as_fractions = Normalisation.from_weights((0.45,) * 2, (0.225,) * 2, scale=1)
    with pytest.raises(DataError) as caught:
        check_range(figures(), as_fractions, BANDS)
    text = str(caught.value)
    assert "2 of 2 bands" in text
    assert "nir: raw mean 1200, std 800" in text
    assert "likely 10000" in text
    fractions = figures(mean=0.12, std=0.08, largest=1.0)
    with pytest.raises(DataError, match="likely 1\\)"):
        check_range(fractions, fits, BANDS)


@pytest.mark.parametrize(
    ("mean", "std", "largest", "scale"),
    [(0.3, 0.2, 1.0, 1), (90, 60, 255, 255), (1200, 800, 16_000, 10_000), (9000, 9000, 65_535, 65_535)],
)
def test_suggested_scale(mean, std, largest, scale):
    assert suggest_scale(figures(mean, std, largest)) == scale


def test_statistics_survive_json_and_corrupt_caches_are_rebuilt(tmp_path):
    path = tmp_path / "cache" / "statistics.json"
    calls = []

    def build() -> Statistics:
        calls.append(1)
        return figures()

    first = cached_statistics(path, build)
    again = cached_statistics(path, build)
    assert len(calls) == 1
    assert again.to_json() == first.to_json()
    assert again.class_counts.dtype == np.int64
    assert [file.name for file in path.parent.iterdir()] == ["statistics.json"]
    for rubbish in ("{", "[]", json.dumps({"mean": [1]})):
        path.write_text(rubbish)
        with pytest.warns(UserWarning, match="corrupt"):
            cached_statistics(path, build)
    assert len(calls) == 4
    assert cached_statistics(path, build).to_json() == first.to_json()


def test_a_cache_that_cannot_be_kept_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="could not be kept.*No space left"):
        assert cached_statistics(tmp_path / "x.json", figures).samples == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_cache_folder_should_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be kept"):
        assert cached_statistics(tmp_path / "file" / "x.json", figures).samples == 1


def test_fingerprint_follows_files_and_facts(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"1234")
    items = [Item(id="a", group="a", image=str(path))]
    first = fingerprint(items, root=tmp_path, facts={"bands": BANDS})
    assert fingerprint(items, root=tmp_path, facts={"bands": BANDS}) == first
    assert fingerprint(items, root=tmp_path, facts={"bands": BANDS[:1]}) != first
    os.utime(path, ns=(1, 1))
    assert fingerprint(items, root=tmp_path, facts={"bands": BANDS}) != first


def test_cache_folder_is_beside_the_data_unless_that_is_read_only(tmp_path, monkeypatch):
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    assert cache_folder(data, None) == tmp_path / "set" / ".visionsft"
    assert cache_folder(data, tmp_path) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data.parent.chmod(0o555)
    assert cache_folder(data, None) == tmp_path / "home" / "visionsft"
    data.parent.chmod(0o755)
