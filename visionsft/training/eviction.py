"""Eviction: the feature caches of one folder kept within a limit, those that were used last staying.

Beside each cache's folder lies an empty lock file. Who trains from the cache holds a shared lock on it, which ends
with the process; who removes the cache needs it alone. The file's time is that of the last use. Lock files stay:
a removed one could be locked by one process while another locks its successor.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from visionsft import files

try:
    import fcntl
except ImportError:  # Windows: nothing is held there, and nothing removed
    fcntl = None  # type: ignore[assignment]


def hold(cache: Path) -> BinaryIO:
    """Mark a cache (which need not exist yet) as in use until the file that is returned is closed or collected."""
    with files.disk_trouble(_lock_of(cache)):
        cache.parent.mkdir(parents=True, exist_ok=True)
        file = open(_lock_of(cache), "ab")  # noqa: SIM115 (the lock lives as long as it is open)
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(file.fileno())
    return file


def make_room(cache: Path, *, size: int, limit: float, say: Callable[[str], None]) -> int:
    """Remove other caches beside `cache`, the longest unused first, until they and `size` bytes are within `limit`.

    Caches in use stay. Returns the bytes of what stays.
    """
    others = {other: folder_bytes(other) for other in _caches(cache.parent) if other != cache}
    taken = sum(others.values())
    for other in sorted(others, key=_last_use):
        if taken + size <= limit:
            break
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(_last_use(other)))
        if _remove(other):
            taken -= others[other]
            say(f"feature cache: removed {other} ({others[other] / 1e9:.2f} GB, last used {used})")
    return taken


def folder_bytes(cache: Path) -> int:
    """Bytes of a cache's shards; 0 where there is none."""
    found = 0
    for path in cache.glob("*.bin"):
        with suppress(FileNotFoundError):  # another process is removing it
            found += path.stat().st_size
    return found


def _remove(cache: Path) -> bool:
    """Remove a cache unless somebody uses it or it can't be removed."""
    if fcntl is None:
        return False
    with suppress(OSError), open(_lock_of(cache), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(cache)
        return True
    return False


def _caches(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.is_symlink() and any(path.glob("*.bin"))
    ]


def _last_use(cache: Path) -> float:
    """Seconds since the epoch; caches of versions without lock files: when their last shard was written."""
    for path in (_lock_of(cache), cache):
        with suppress(FileNotFoundError):
            return path.stat().st_mtime
    return 0.0


def _lock_of(cache: Path) -> Path:
    return cache.with_name(f"{cache.name}.lock")
