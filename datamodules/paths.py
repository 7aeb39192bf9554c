"""Paths: from what an item calls its image or label to the files behind it, and the state that they are in.

A path can stand for several files with a band each, written as shells do: ``scene_{B02,B03}.tif``. It can be that
of a video's frame (see `datamodules.videos`), or a remote one: https://, s3://, gs://, az://, /vsicurl/, /vsis3/...
"""

from __future__ import annotations

import os
import re
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import PurePosixPath

from datamodules.errors import DataError
from datamodules.videos import split_frame_path

State = tuple[tuple[str, int, int], ...]
"""(path, bytes, time in ns or a checksum of the server's ETag) of files."""

UNWATCHED = (-1, 0)
"""Of a remote file whose server doesn't say when it changes."""

_BRACES = re.compile(r"(.*?)\{([^{}]*,[^{}]*)\}(.*)", re.DOTALL)
_SCHEMES = {"s3": "vsis3", "gs": "vsigs", "az": "vsiaz", "http": "vsicurl", "https": "vsicurl"}
_REMEMBERED = 60.0
"""Seconds for which a remote file's state is taken to hold within a process."""
_PATIENCE = 20.0
"""Seconds in which a server must say a file's state."""


def files_of(path: str) -> list[str]:
    """The files that a path stands for: a frame of a video is in the video."""
    frame = split_frame_path(path)
    if frame is not None:
        return [frame[0]]
    found = _BRACES.fullmatch(path)
    if found is None or os.path.exists(path):
        return [path]
    return [f"{found[1]}{part}{found[3]}" for part in found[2].split(",")]


def together(paths: Sequence[str]) -> str:
    """One path that stands for several files, see `files_of`."""
    if len(paths) == 1:
        return paths[0]
    before = re.sub(r"[^/_.-]*$", "", _shared(paths))
    after = re.sub(r"^[^/_.-]*", "", _shared([path[len(before) :][::-1] for path in paths])[::-1])
    parts = [path[len(before) : len(path) - len(after)] for path in paths]
    for path in paths:
        if any(sign in path for sign in "{},"):
            raise DataError(f"{path}: a scene's band file can't have {{, }} or a comma in its path")
    if len(set(paths)) < len(paths):
        raise DataError(f"{paths[0]}: two bands of a scene are the same file")
    return f"{before}{{{','.join(parts)}}}{after}"


def _shared(texts: Sequence[str]) -> str:
    """What all begin with."""
    alike = takewhile(lambda signs: len(set(signs)) == 1, zip(*texts, strict=False))
    return "".join(signs[0] for signs in alike)


def is_remote(path: str) -> bool:
    """Whether GDAL fetches it: https://, s3://, /vsicurl/..."""
    return "://" in path or path.startswith("/vsi")


def gdal_path(path: str) -> str:
    """The path in GDAL's own way of writing, which needs no library of the cloud's for s3://."""
    scheme, _, rest = path.partition("://")
    if scheme not in _SCHEMES:
        return path
    return f"/vsicurl/{path}" if scheme.startswith("http") else f"/{_SCHEMES[scheme]}/{rest}"


def stem_of(path: str) -> str:
    """The name without suffix; of a scene of several files what their names have in common."""
    plain = re.sub(r"[_.-]?\{[^{}]*,[^{}]*\}", "", path.partition("?")[0] if is_remote(path) else path)
    return PurePosixPath(plain).stem


def state_of(path: str) -> State:
    """Changes with any of the files that a path stands for; an OSError names one that can't be looked at.

    A remote file's state holds for a minute, unless `forget_states` is called.
    """
    return tuple((file, *_state(file)) for file in files_of(path))


def changed(now: State, known: State) -> list[str]:
    """The files that are in another state than the one known; what a server doesn't tell at the moment isn't one."""
    return [
        file
        for (file, *new), (_, *old) in zip(now, known, strict=True)
        if new != old and tuple(new) != UNWATCHED
    ]


def forget_states() -> None:
    """Ask servers anew."""
    _remote_state.cache_clear()


def _state(file: str) -> tuple[int, int]:
    if is_remote(file):
        return _remote_state(file, int(time.monotonic() // _REMEMBERED))
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


@lru_cache(1 << 16)
def _remote_state(file: str, moment: int) -> tuple[int, int]:
    """(bytes, checksum of ETag and time); UNWATCHED where it isn't behind HTTP or the server doesn't tell."""
    address = file.removeprefix("/vsicurl/")
    if not address.startswith(("http://", "https://")):
        return UNWATCHED
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            told = [answer.headers.get(name) or "" for name in ("Content-Length", "ETag", "Last-Modified")]
    except (OSError, urllib.error.URLError, ValueError):
        return UNWATCHED
    if not told[0].isdigit() or not any(told[1:]):
        return UNWATCHED
    return int(told[0]), zlib.crc32("\n".join(told[1:]).encode())
