"""The scene index: what files say about themselves, kept so that they needn't be opened again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from datamodules.paths import UNWATCHED, changed, forget_states, state_of
from datamodules.raster import Grid, Header, read_header
from datamodules.statistics import cached, keep


class SceneIndex:
    """Headers by path, valid as long as the files have their size and time, or their server says so."""

    def __init__(self, path: Path) -> None:
        """path: of the file in which it is kept."""
        self.path = path
        self._known = cached(path, dict[str, Header], load=_load, save=_save) if path.exists() else {}
        self._changed = False
        self.changed: list[str] = []
        """Paths of what had another state when it was looked at before."""
        forget_states()

    def header(self, path: str | Path, *, bands: Sequence[str] | None = None) -> Header:
        """See `datamodules.raster.read_header`; a file that can't be looked at is left to that to complain of."""
        path = str(path)
        key = path if bands is None else f"{path}|{','.join(bands)}"
        try:
            state = state_of(path)
        except OSError:
            return read_header(path, bands=bands)
        known = self._known.get(key)
        if known is None or known.state != state or any((size, mark) == UNWATCHED for _, size, mark in state):
            if known is not None and changed(state, known.state):
                self.changed.append(path)
            self._known[key] = known = read_header(path, bands=bands)
            self._changed = True
        return known

    def keep(self) -> None:
        """Writes it, if anything in it is new."""
        if self._changed:
            keep(self.path, self._known, save=_save)
            self._changed = False


def _save(known: dict[str, Header], file: IO[bytes]) -> None:
    systems: dict[str, int] = {}
    texts: dict[int, str] = {}  # by object: writing the same CRS again and again takes longer than all else
    rows = []
    for key, header in known.items():
        grid = header.grid
        text = None
        if grid.crs is not None:
            text = texts.setdefault(id(grid.crs), "") or grid.crs.to_wkt()
            texts[id(grid.crs)] = text
        rows.append(
            {
                "key": key,
                "state": header.state,
                "pixels": header.pixels,
                "path": header.path,
                "size": (grid.height, grid.width),
                "transform": tuple(grid.transform)[:6],
                "crs": None if text is None else systems.setdefault(text, len(systems)),
                "names": header.names,
                "indexes": header.indexes,
                "dtype": str(header.dtype),
                "nodata": header.nodata,
                "masked": header.masked,
                "striped": header.striped,
                "block": header.block,
            }
        )
    file.write(json.dumps({"crs": list(systems), "files": rows}).encode())


def _load(file: IO[bytes]) -> dict[str, Header]:
    kept = json.load(file)
    systems = [CRS.from_wkt(text) for text in kept["crs"]]
    return {row["key"]: _header(row, systems) for row in kept["files"]}


def _header(row: dict[str, Any], systems: Sequence[CRS]) -> Header:
    height, width = row["size"]
    crs = None if row["crs"] is None else systems[row["crs"]]
    return Header(
        path=row["path"],
        grid=Grid(height, width, Affine(*row["transform"]), crs),
        names=tuple(row["names"]),
        indexes=tuple(row["indexes"]),
        dtype=np.dtype(row["dtype"]),
        nodata=row["nodata"],
        masked=row["masked"],
        striped=row["striped"],
        block=tuple(row["block"]),
        state=tuple((path, size, mark) for path, size, mark in row["state"]),
        pixels=tuple(row["pixels"]),
    )
