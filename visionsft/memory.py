"""glibc's allocator, set for models that compute on the CPU; with other C libraries all stays as it is.

glibc gives large blocks back to the system when they are freed, and takes them anew, page by page, in every layer: a
third of the time that a detector takes for a tile of 2816 x 2816 pixels.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SPARE = 64 * 2**20
"""Bytes by which a process may grow over what it is after a scene's first tile."""

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_mallopt, _malloc_trim = (
    getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    for name in ("mallopt", "malloc_trim")
)
_kept = False


def keep_freed_memory() -> None:
    """From now on nothing is given back."""
    global _kept
    _kept = True
    _set(_TRIM_THRESHOLD, 2**31 - 1)
    _set(_MMAP_MAX, 0)


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """What the main thread allocates inside isn't given back, but used again the next time.

    Around a model's forward pass, whose blocks are the same each time. Kept among all others they would be cut up, and
    the process would grow with the scene. Other threads' large blocks are still given back.
    """
    _set(_TRIM_THRESHOLD, 2**31 - 1)
    _set(_MMAP_MAX, 0)
    try:
        yield
    finally:
        if not _kept:
            _set(_MMAP_MAX, 2**16)


def limit_growth(usual: int | None) -> int:
    """Gives back what is kept if the process is larger than `usual`, in bytes, by more than SPARE.

    Blocks that others cut up can't be used again, and would add up. Given back each time, all of them would be taken
    anew: a twentieth of a detector's time. usual: None at the first call; what it returns is for the next ones.
    """
    now = _resident()
    if usual is None:
        return now
    if now > usual + SPARE and _malloc_trim is not None:
        _malloc_trim(0)
    return usual


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system doesn't say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * mmap.PAGESIZE


def _set(option: int, value: int) -> None:
    if _mallopt is not None:
        _mallopt(option, value)
