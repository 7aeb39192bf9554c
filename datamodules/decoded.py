"""Decoded scenes: unpacked pixels and labels in memory or on disk, shared by all processes that read them.

A scene has one file, as large as it is unpacked, which is filled cell by cell as windows are read; a byte a
cell, set last, says that it is there. What two processes write into a cell is the same, so neither has to
wait. In memory ("ram") the file is an anonymous one that the system frees with the last process; on disk
its name holds the fingerprint of its scene, so that another run finds it and a changed scene doesn't.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.batch import Window
from datamodules.errors import DataError
from datamodules.paths import State, changed, state_of
from datamodules.readers import RawSample

SIDE = 1024
"""Of the cells that are unpacked at once, in pixels."""
SUFFIX = ".decoded"


@dataclass(frozen=True)
class Layout:
    """Of a scene, unpacked."""

    key: str
    """Changes with the scene's files and with everything that changes what is read from them."""
    bands: int
    height: int
    width: int
    dtype: np.dtype[np.generic]
    cell: tuple[int, int]
    """(H, W)"""
    state: State
    """Of its files."""

    @property
    def cells(self) -> tuple[int, int]:
        """(down, across)."""
        return -(-self.height // self.cell[0]), -(-self.width // self.cell[1])

    @property
    def size(self) -> int:
        """Bytes."""
        pixels = self.height * self.width
        return pixels * (self.bands * self.dtype.itemsize + 2) + self.cells[0] * self.cells[1]


class DecodedScenes:
    """Reads windows from unpacked scenes, which it unpacks where they aren't yet; picklable."""

    def __init__(self, places: Mapping[str, tuple[str, Layout]]) -> None:
        """places: by scene, the path of its file and how that is laid out."""
        self.places = places
        self._open: dict[str, tuple[np.ndarray, ...]] = {}

    def __reduce__(self) -> tuple[type[DecodedScenes], tuple[Mapping[str, tuple[str, Layout]]]]:
        return DecodedScenes, (self.places,)

    def __contains__(self, scene: str) -> bool:
        return scene in self.places

    def read(self, scene: str, window: Window, unpack: Callable[[Window], RawSample]) -> RawSample:
        """A window inside the scene; `unpack` reads a window from its files."""
        values, valid, mask, there = arrays = self._arrays(scene)
        layout = self.places[scene][1]
        height, width = layout.cell
        for row in range(window.row // height, -(-(window.row + window.height) // height)):
            for col in range(window.col // width, -(-(window.col + window.width) // width)):
                if not there[row, col]:
                    _fill(arrays, layout, (row, col), unpack)
        inside = np.s_[window.row : window.row + window.height, window.col : window.col + window.width]
        return RawSample(values[:, *inside].copy(), valid[inside].copy(), mask[inside].copy())

    def _arrays(self, scene: str) -> tuple[np.ndarray, ...]:
        if scene not in self._open:
            path, layout = self.places[scene]
            self._open[scene] = _mapped(path, layout)
        return self._open[scene]


def open_decoded(
    layouts: Mapping[str, Layout],
    *,
    kind: Literal["ram", "disk"],
    limit: int | None,
    folder: Path,
) -> tuple[DecodedScenes, list[str]]:
    """Files for as many scenes (by path, in this order) as `limit` bytes hold, and what the user should know.

    limit: default: half of the free memory or disk. folder: of the files on disk; what isn't used there any
    more makes room for what is. Where files can't be made there are none, and one note says so.
    """
    free = _free_memory() if kind == "ram" else _free_disk(folder)
    room = free // 2 if limit is None else limit
    chosen: dict[str, Layout] = {}
    for scene, layout in layouts.items():
        if layout.size <= room:
            chosen[scene] = layout
            room -= layout.size
    notes = []
    if len(chosen) < len(layouts):
        notes.append(
            f"cache: {len(chosen)} of {len(layouts)} scenes fit unpacked in "
            f"{(free // 2 if limit is None else limit) / 2**30:.1f} GiB; the others are read from their files"
        )
    try:
        if kind == "ram":
            return DecodedScenes({scene: (_anonymous(each), each) for scene, each in chosen.items()}), notes
        folder.mkdir(parents=True, exist_ok=True)
        if limit is not None:
            _make_room(folder, {each.key for each in chosen.values()}, room)
        return DecodedScenes({scene: (_named(folder, each), each) for scene, each in chosen.items()}), notes
    except OSError as error:
        where = "memory" if kind == "ram" else str(folder)
        return DecodedScenes({}), [
            f"cache: nothing is kept in {where} ({error}); scenes are read from their files"
        ]


def _fill(
    arrays: tuple[np.ndarray, ...],
    layout: Layout,
    cell: tuple[int, int],
    unpack: Callable[[Window], RawSample],
) -> None:
    row, col = cell[0] * layout.cell[0], cell[1] * layout.cell[1]
    height, width = min(layout.cell[0], layout.height - row), min(layout.cell[1], layout.width - col)
    raw = unpack(Window(row, col, height, width))
    now = tuple(each for path, *_ in layout.state for each in state_of(path))
    for path in changed(now, layout.state):
        raise DataError(
            f"{path}: has changed since this run began, so its cached pixels can't be trusted: run again"
        )
    values, valid, mask, there = arrays
    inside = np.s_[row : row + height, col : col + width]
    values[:, *inside], valid[inside], mask[inside] = raw.values, raw.valid, raw.mask
    there[cell] = 1  # last: whoever sees it sees the pixels


def _mapped(path: str, layout: Layout) -> tuple[np.ndarray, ...]:
    """values (C, H, W), valid (H, W), mask (H, W), there (cells): views of the file."""
    buffer = np.memmap(path, np.uint8, "r+", shape=(layout.size,))
    pixels = layout.height * layout.width
    ends = np.cumsum([layout.bands * pixels * layout.dtype.itemsize, pixels, pixels])
    values, valid, mask, there = np.split(np.asarray(buffer), ends)
    shape = (layout.height, layout.width)
    return (
        values.view(layout.dtype).reshape(layout.bands, *shape),
        valid.view(np.bool_).reshape(shape),
        mask.reshape(shape),
        there.reshape(layout.cells),
    )


_descriptors: list[int] = []
"""Of anonymous files: open as long as this process lives."""


def _anonymous(layout: Layout) -> str:
    """A file in memory without a name; other processes of the user reach it through this one."""
    descriptor = os.memfd_create("visionsft")
    _descriptors.append(descriptor)
    os.truncate(descriptor, layout.size)
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def _named(folder: Path, layout: Layout) -> str:
    """The scene's file, made at its full size under another name first: a full disk shows here, not later."""
    path = folder / f"{layout.key}{SUFFIX}"
    if path.exists() and path.stat().st_size == layout.size and os.access(path, os.W_OK):
        os.utime(path)
        return str(path)
    handle, name = tempfile.mkstemp(dir=folder, suffix=".partial")
    try:
        os.posix_fallocate(handle, 0, layout.size)
        # where another run was quicker its file is replaced: it goes on with that, unseen
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
    finally:
        os.close(handle)
    return str(path)


def _make_room(folder: Path, kept: set[str], room: int) -> None:
    """Removes the files that were used longest ago until the others take no more than `room` bytes."""
    others = [path for path in folder.glob(f"*{SUFFIX}") if path.stem not in kept]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        room -= path.stat().st_size
        if room < 0:
            path.unlink(missing_ok=True)


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_disk(folder: Path) -> int:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
