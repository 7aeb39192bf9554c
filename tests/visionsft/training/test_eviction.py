"""Eviction: the longest unused caches go, those in use stay, nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from visionsft.errors import WriteError
from visionsft.training import eviction


def make(folder: Path, name: str, *, used: int | None = None, size: int = 100) -> Path:
    """A cache of `size` bytes that was last used `used` seconds after the epoch; None: it has no lock file."""
    cache = folder / name
    cache.mkdir(parents=True)
    (cache / "train-000-00000.bin").write_bytes(bytes(size))
    if used is not None:
        eviction.hold(cache).close()
        os.utime(folder / f"{name}.lock", (used, used))
    return cache


def test_the_longest_unused_are_removed_until_it_fits(tmp_path: Path) -> None:
    caches = {name: make(tmp_path, name, used=used) for name, used in [("b", 2000), ("a", 1000), ("c", 3000)]}
    said: list[str] = []
    assert eviction.make_room(tmp_path / "own", size=100, limit=300, say=said.append) == 200
    assert [name for name, cache in caches.items() if cache.exists()] == ["b", "c"]
    assert len(said) == 1
    assert f"removed {caches['a']} (0.00 GB, last used 1970-01-01" in said[0]


def test_nothing_is_removed_without_need(tmp_path: Path) -> None:
    make(tmp_path, "a", used=1000)
    own = make(tmp_path, "own", used=500)
    assert eviction.make_room(own, size=100, limit=200, say=pytest.fail) == 100


def test_caches_in_use_and_other_files_stay(tmp_path: Path) -> None:
    used = make(tmp_path, "a", used=1000)
    held = eviction.hold(used)
    os.utime(tmp_path / "a.lock", (1000, 1000))
    unlocked = make(tmp_path, "b")  # of a version without lock files
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("no cache")
    elsewhere = make(tmp_path.parent / f"{tmp_path.name}-elsewhere", "c", used=0)
    (tmp_path / "link").symlink_to(elsewhere)
    said: list[str] = []
    assert eviction.make_room(tmp_path / "own", size=100, limit=100, say=said.append) == 100
    assert used.exists()
    assert not unlocked.exists()
    assert (tmp_path / "notes" / "mine.txt").exists()
    assert elsewhere.exists()
    held.close()
    assert eviction.make_room(tmp_path / "own", size=100, limit=100, say=said.append) == 0
    assert not used.exists()
    assert len(said) == 2


def test_holding_a_cache_makes_it_the_last_used(tmp_path: Path) -> None:
    caches = [make(tmp_path, name, used=used) for name, used in [("a", 1000), ("b", 2000)]]
    eviction.hold(caches[0]).close()
    eviction.make_room(tmp_path / "own", size=100, limit=200, say=lambda line: None)
    assert [cache.exists() for cache in caches] == [True, False]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match="can't write"):
        eviction.hold(tmp_path / "file" / "own")
