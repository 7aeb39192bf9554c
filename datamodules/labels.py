"""Labels: the class of every pixel of a scene, from a label raster or from the shapes of a vector file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from datamodules.batch import IGNORE, Window
from datamodules.classes import Classes, ClassSpec, Unknown, Value
from datamodules.errors import DataError
from datamodules.paths import State
from datamodules.raster import Grid, Pool, read_window

if TYPE_CHECKING:
    from datamodules.vectors import VectorFiles

VECTOR_SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".parquet")
"""Files that hold shapes, not pixels."""

OVERLAPPING = "lie under a later one of another class, which is drawn over them"
"""A fault of shapes in a mask; objects may overlap."""


@dataclass(frozen=True)
class VectorOptions:
    """How the shapes of vector files become labels."""

    layer: str | None = None
    """None: the file's only one."""
    column: str = "class"
    """Whose values the classes' `values` are."""
    all_touched: bool = False
    """Whether a shape has every pixel that it touches, or those whose centre lies in it."""
    background: str | None = None
    """Class of the ground without a shape; None: that ground is unlabelled."""
    buffer: float | None = None
    """Distance around points and lines that is theirs, in units of the scene's CRS."""

    def __post_init__(self) -> None:
        if self.buffer is not None and self.buffer <= 0:
            raise DataError(f"vector.buffer is {self.buffer:g}; allowed: above 0")


class Labels(Protocol):
    """A scene's labels; picklable, and without open files until a process reads for the first time."""

    def touches(self, window: Window) -> bool:
        """Whether any pixel of a window may be labelled."""

    def extent(self) -> Window:
        """Around all that may be labelled, inside the scene."""

    def read(self, window: Window, pool: Pool) -> np.ndarray:
        """(H, W) uint8 class index in pixels of the scene's grid; 255 where unlabelled or out of bounds."""

    def inspect(self, window: Window, pool: Pool) -> tuple[np.ndarray, tuple[Unknown, ...]]:
        """As `read`, but values in no class are 255, and listed with places in pixels of the window."""


@dataclass(frozen=True)
class RasterLabels:
    """A label raster."""

    path: str
    grid: Grid
    """Its own; the scene's where it isn't georeferenced."""
    scene: Grid
    aligned: bool
    """Has the very pixels of the scene's grid; else it is warped to it."""
    bands: tuple[int, ...]
    nodata: float | None
    masked: bool
    classes: Classes
    state: State = ()
    """Of the file when its header was read."""

    def touches(self, window: Window) -> bool:
        """See `Labels`."""
        return True

    def extent(self) -> Window:
        """See `Labels`."""
        return self.scene.window

    def read(self, window: Window, pool: Pool) -> np.ndarray:
        """See `Labels`."""
        values, valid, source = self._values(window, pool)
        return self.classes.lookup(values, source=source, valid=valid)

    def inspect(self, window: Window, pool: Pool) -> tuple[np.ndarray, tuple[Unknown, ...]]:
        """See `Labels`."""
        values, valid, source = self._values(window, pool)
        mask, unknown = self.classes.inspect(values, source=source, valid=valid)
        return mask, tuple(unknown)

    def _values(self, window: Window, pool: Pool) -> tuple[np.ndarray, np.ndarray, str]:
        """What stands in the file, where that is valid, and its name for messages."""
        if self.aligned:
            file, masked = pool.file(self.path, self.state), self.masked
        else:
            use_nodata = self.nodata is not None
            file, masked = pool.warped(self.path, self.grid, self.scene, use_nodata=use_nodata), True
        raster = read_window(file, window, bands=self.bands, nodata=self.nodata, masked=masked)
        values = raster.values.transpose(1, 2, 0) if self.classes.are_colours else raster.values[0]
        source = f"{self.path} (window at row {window.row}, column {window.col})"
        return values, raster.valid, source


@dataclass(frozen=True)
class VectorLabels:
    """The shapes of a vector file."""

    path: str
    scene: Grid
    files: VectorFiles

    def miss(self) -> str | None:
        """Why no shape lies within the scene; None if one does."""
        from datamodules.vectors import describe_miss

        if len(self.files.drawing(self.path, self.scene)):
            return None
        return f"{self.path}: {describe_miss(self.files.shapes(self.path), self.scene)}"

    def touches(self, window: Window) -> bool:
        """See `Labels`."""
        drawing = self.files.drawing(self.path, self.scene)
        return drawing.fill != IGNORE or len(drawing.meeting(window)) > 0

    def extent(self) -> Window:
        """See `Labels`."""
        drawing = self.files.drawing(self.path, self.scene)
        return self.scene.window if drawing.fill != IGNORE else drawing.extent

    def read(self, window: Window, pool: Pool) -> np.ndarray:
        """See `Labels`."""
        return self.files.drawing(self.path, self.scene).mask(window)

    def inspect(self, window: Window, pool: Pool) -> tuple[np.ndarray, tuple[Unknown, ...]]:
        """See `Labels`; what the shapes lack is known before."""
        return self.read(window, pool), ()


def is_vector(path: str) -> bool:
    """Whether a path (or its template) is that of a vector file."""
    return Path(path).suffix.lower() in VECTOR_SUFFIXES


def states_beside(paths: Iterable[str]) -> list[tuple[int, int]]:
    """Size and time of the files beside shapefiles, which hold column and CRS."""
    suffixes = (".dbf", ".prj", ".cpg")
    beside = [Path(path).with_suffix(suffix) for path in sorted(paths) for suffix in suffixes]
    return [(path.stat().st_size, path.stat().st_mtime_ns) for path in beside if path.is_file()]


def describe_faults(faults: Mapping[str, Counter[str]], *, leave_out: Sequence[str] = ()) -> list[str]:
    """faults: how many shapes what is true of, by vector file; a line for each."""
    lines = []
    for text in dict.fromkeys(text for each in faults.values() for text in each if text not in leave_out):
        counts = {path: each[text] for path, each in faults.items() if each[text]}
        where = next(iter(counts)) if len(counts) == 1 else f"{len(counts)} vector files"
        lines.append(f"{sum(counts.values())} shapes in {where} {text}")
    return lines


def open_vectors(options: VectorOptions, specs: Sequence[ClassSpec], ignore: Sequence[Value]) -> VectorFiles:
    """For the vector files of a dataset with these classes (as the user gave them)."""
    try:
        from datamodules.vectors import VectorFiles
    except ModuleNotFoundError as error:
        raise DataError(f"vector labels need pip install 'visionsft[vectors]' ({error})") from error
    names = [spec.name for spec in specs]
    if options.background is not None and options.background not in names:
        nearest = get_close_matches(options.background, names, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise DataError(
            f"vector.background: no class is named {options.background!r}; there are {', '.join(names)}{hint}"
        )
    meanings = {value: index for index, spec in enumerate(specs) for value in spec.values}
    return VectorFiles(options, meanings | dict.fromkeys(ignore, IGNORE), names)
