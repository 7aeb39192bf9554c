"""The scene index: a second scan opens no file, and a changed file is looked at again."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from datamodules import index as index_module
from datamodules import statistics
from datamodules.errors import DataError
from datamodules.index import SceneIndex
from datamodules.raster import read_header


@pytest.fixture
def paths(tmp_path, write_raster):
    one = write_raster(
        tmp_path / "one.tif", np.zeros((2, 40, 50), np.float32), nodata=np.nan, names=("a", "b")
    )
    other = write_raster(
        tmp_path / "other.tif",
        np.zeros((64, 64), np.uint8),
        crs=None,
        tiled=True,
        blockxsize=16,
        blockysize=32,
    )
    return one, other


def assert_equal(one, other):
    for name in ("path", "grid", "names", "indexes", "dtype", "masked", "striped", "block"):
        assert getattr(one, name) == getattr(other, name)
    np.testing.assert_equal(one.nodata, other.nodata)


def test_a_second_scan_opens_no_file(tmp_path, paths, monkeypatch):
    index = SceneIndex(tmp_path / "cache/index.json")
    for path in paths:
        assert_equal(index.header(path), read_header(path))
    named = index.header(paths[0], bands=("x", "y"))
    index.keep()
    expected = [read_header(path) for path in paths]
    monkeypatch.setattr(index_module, "read_header", None)
    again = SceneIndex(tmp_path / "cache/index.json")
    for path, header in zip(paths, expected, strict=True):
        assert_equal(again.header(path), header)
    assert_equal(again.header(paths[0], bands=("x", "y")), named)


def test_a_changed_file_is_looked_at_again(tmp_path, paths, write_raster):
    index = SceneIndex(tmp_path / "index.json")
    index.header(paths[1])
    index.keep()
    write_raster(paths[1], np.zeros((3, 20, 30), np.int16))
    again = SceneIndex(tmp_path / "index.json")
    assert_equal(again.header(paths[1]), read_header(paths[1]))
    again.keep()
    assert_equal(SceneIndex(tmp_path / "index.json").header(paths[1]), read_header(paths[1]))


def test_a_file_with_another_time_is_looked_at_again(tmp_path, paths, monkeypatch):
    index = SceneIndex(tmp_path / "index.json")
    index.header(paths[0])
    os.utime(paths[0], ns=(1, 1))
    opened = []
    monkeypatch.setattr(index_module, "read_header", lambda path, bands: opened.append(path) or "header")
    assert index.header(paths[0]) == "header"
    assert opened == [str(paths[0])]


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(DataError, match=r"gone\.tif"):
        SceneIndex(tmp_path / "index.json").header(tmp_path / "gone.tif")


def test_a_corrupt_index_is_made_again(tmp_path, paths):
    (tmp_path / "index.json").write_text('{"crs": [], "files": [{}]}')
    with pytest.warns(UserWarning, match="corrupt"):
        index = SceneIndex(tmp_path / "index.json")
    assert_equal(index.header(paths[0]), read_header(paths[0]))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_where_it_cannot_be_kept_that_is_a_note_and_the_old_one_stays(tmp_path, paths, monkeypatch, number):
    index = SceneIndex(tmp_path / "cache/scenes.json")
    index.header(paths[0])
    index.keep()
    kept = (tmp_path / "cache/scenes.json").read_bytes()
    index.header(paths[1])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(statistics.os, "replace", refuse)
    with pytest.warns(UserWarning, match=f"scenes.json could not be kept .*{os.strerror(number)}"):
        index.keep()
    assert_equal(index.header(paths[1]), read_header(paths[1]))
    assert (tmp_path / "cache/scenes.json").read_bytes() == kept
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["scenes.json"]


def test_what_has_changed_is_told(tmp_path, paths, write_raster):
    index = SceneIndex(tmp_path / "scenes.json")
    for path in paths:
        index.header(path)
    index.keep()
    write_raster(paths[1], np.zeros((3, 20, 30), np.int16))
    again = SceneIndex(tmp_path / "scenes.json")
    for path in paths:
        again.header(path)
    assert again.changed == [str(paths[1])]
