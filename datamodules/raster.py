"""Rasters: georeferenced pixels read by window, together with which of them were measured.

The only module that opens raster files. A pixel is valid if it lies inside the file, its mask or alpha band
(if any) says so, no band read is NaN or infinite there, and it isn't nodata. Nodata is judged band by band:
one band at its nodata value makes the pixel invalid; except in 8-bit files, which have no value to spare
(a dark or saturated pixel may well hold 0 or 255 in one band): there all bands read must be nodata.
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import ceil, floor, isnan
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio import windows
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject
from rasterio.warp import transform as transform_points

from datamodules.batch import Window
from datamodules.errors import DataError

# of unpacked blocks, in MB, a process; by default 5 % of the memory, times the number of loader processes.
# Who reads super-tiles and rows of tiles needs no more than the blocks at their edges again.
os.environ.setdefault("GDAL_CACHEMAX", "256")

OPEN_FILES = 256
"""Datasets that a process keeps open."""

LONLAT = CRS.from_epsg(4326)


@dataclass(frozen=True)
class Grid:
    """Where pixels lie on the ground."""

    height: int
    width: int
    transform: Affine
    """(col, row) of a pixel's corner to coordinates of the CRS."""
    crs: CRS | None

    @property
    def window(self) -> Window:
        """All of it."""
        return Window(0, 0, self.height, self.width)

    def matches(self, other: Grid) -> bool:
        """Whether both have the same pixels, to within a hundredth of one."""
        if (self.height, self.width) != (other.height, other.width) or self.crs != other.crs:
            return False
        shift = ~self.transform * other.transform
        corners = ((0, 0), (self.width, 0), (0, self.height))
        return all(np.allclose(shift * corner, corner, rtol=0, atol=0.01) for corner in corners)

    def at_resolution(self, resolution: float) -> Grid:
        """The same ground in pixels of another size, in units of the CRS."""
        across, down = (float(np.hypot(*step)) / resolution for step in self.transform.column_vectors[:2])
        height, width = max(1, round(self.height * down)), max(1, round(self.width * across))
        return Grid(height, width, self.transform * Affine.scale(1 / across, 1 / down), self.crs)

    def overlaps(self, other: Grid) -> bool:
        """Whether any point of a lattice over this grid lies in the other."""
        rows, cols = np.meshgrid(
            np.linspace(0, self.height, 33), np.linspace(0, self.width, 33), indexing="ij"
        )
        x, y = _apply(self.transform, cols.ravel(), rows.ravel())
        if self.crs != other.crs:
            x, y = project(self.crs, other.crs, x, y)
        col, row = _apply(~other.transform, x, y)
        return bool(((row > 0) & (row < other.height) & (col > 0) & (col < other.width)).any())

    def to_lonlat(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fractional rows, cols to longitude, latitude in degrees; NaN if any has none."""
        return project(self.crs, LONLAT, *_apply(self.transform, cols, rows))

    def to_pixel(self, lons: np.ndarray, lats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Longitude, latitude in degrees to fractional rows, cols; NaN if any has none."""
        cols, rows = _apply(~self.transform, *project(LONLAT, self.crs, lons, lats))
        return rows, cols


@dataclass(frozen=True)
class Header:
    """What a file says about itself, without its pixels."""

    path: str
    grid: Grid
    names: tuple[str, ...]
    """Of the bands; an alpha band isn't one."""
    indexes: tuple[int, ...]
    """rasterio's band numbers, from 1."""
    dtype: np.dtype[Any]
    nodata: float | None
    masked: bool
    """Has an alpha band or a mask beside its bands."""
    striped: bool
    """Stored in full rows, not in tiles."""
    block: tuple[int, int]
    """(H, W) of the blocks in which it is stored."""

    @property
    def may_be_invalid(self) -> bool:
        """Whether any pixel inside the file can be invalid."""
        return self.masked or self.nodata is not None or self.dtype.kind == "f"

    def select(self, bands: Sequence[str]) -> tuple[int, ...]:
        """rasterio's numbers of the bands with these names."""
        number = dict(zip(self.names, self.indexes, strict=True))
        missing = [band for band in bands if band not in number]
        if missing:
            raise DataError(
                f"{self.path}: no band {', '.join(map(repr, missing))}; it has {', '.join(self.names)}"
            )
        return tuple(number[band] for band in bands)


@dataclass(frozen=True, eq=False)
class Raster:
    """Pixels of a window."""

    values: np.ndarray
    """(C, H, W), the file's own number type; arbitrary where not valid."""
    valid: np.ndarray
    """(H, W) bool."""
    transform: Affine
    crs: CRS | None


class Pool:
    """The files that a process has open, the most recently used ones; a forked process starts afresh."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.limit = limit
        self._process = os.getpid()
        self._open: OrderedDict[object, tuple[DatasetReader, ExitStack]] = OrderedDict()

    def __reduce__(self) -> tuple[type[Pool], tuple[int]]:
        return Pool, (self.limit,)

    def file(self, path: str) -> DatasetReader:
        """The open file."""
        return self._get(path, lambda stack: stack.enter_context(_open(path)))

    def warped(self, path: str, source: Grid, target: Grid, *, use_nodata: bool) -> DatasetReader:
        """The file, whose own grid is `source`, on another one, by nearest; its mask tells where data is."""
        # src_nodata None: what the file calls nodata is data
        nodata: dict[str, None] = {} if use_nodata else {"src_nodata": None}

        def warp(stack: ExitStack) -> DatasetReader:
            file = stack.enter_context(_open(path))
            with _reading(path, "warping"):
                return stack.enter_context(
                    WarpedVRT(
                        file,
                        src_crs=source.crs,
                        src_transform=source.transform,
                        crs=target.crs,
                        transform=target.transform,
                        height=target.height,
                        width=target.width,
                        resampling=Resampling.nearest,
                        add_alpha=True,
                        **nodata,
                    )
                )

        return self._get((path, source, target, use_nodata), warp)

    def _get(self, key: object, opened: Callable[[ExitStack], DatasetReader]) -> DatasetReader:
        if self._process != os.getpid():
            self._process, self._open = os.getpid(), OrderedDict()
        if key not in self._open:
            stack = ExitStack()
            self._open[key] = opened(stack), stack
            if len(self._open) > self.limit:
                self._open.popitem(last=False)[1][1].close()
        self._open.move_to_end(key)
        return self._open[key][0]


def read_header(path: str | Path, *, bands: Sequence[str] | None = None) -> Header:
    """bands: names for the file's bands in their order; default: its own names, colours, or B1, B2..."""
    path = str(path)
    with _open(path) as file, _reading(path, "header"):
        _refuse_cut_off(file, path)
        own = [i for i in file.indexes if file.colorinterp[i - 1] != ColorInterp.alpha]
        dtypes = {file.dtypes[i - 1] for i in own}
        if len(dtypes) != 1 or any(np.dtype(dtype).kind not in "uif" for dtype in dtypes):
            raise DataError(
                f"{path}: bands of type {', '.join(sorted(dtypes))}; allowed is one real number type"
            )
        if bands is not None and len(bands) != len(own):
            raise DataError(f"{path}: has {len(own)} bands, but {len(bands)} are named: {', '.join(bands)}")
        names = tuple(bands) if bands is not None else _own_names(file, own, path)
        flags = {flag for index in own for flag in file.mask_flag_enums[index - 1]}
        return Header(
            path=path,
            grid=Grid(file.height, file.width, file.transform, file.crs),
            names=names,
            indexes=tuple(own),
            dtype=np.dtype(dtypes.pop()),
            nodata=file.nodatavals[own[0] - 1],
            masked=bool(flags & {MaskFlags.alpha, MaskFlags.per_dataset}),
            striped=file.block_shapes[0][1] >= file.width,
            block=tuple(file.block_shapes[0]),
        )


def read_window(
    file: DatasetReader, window: Window, *, bands: Sequence[int], nodata: float | None, masked: bool
) -> Raster:
    """Pixels of a window, which may reach beyond the file's edges; what lies outside is 0 and invalid.

    bands: rasterio's numbers; nodata: in these bands; masked: look at the alpha band or mask as well.
    """
    inside = _clip(window, file.height, file.width)
    shape = (window.height, window.width)
    if inside is None:
        values, valid = np.zeros((len(bands), *shape), file.dtypes[bands[0] - 1]), np.zeros(shape, bool)
    else:
        values, valid = _read(file, inside, bands, nodata, masked)
        if inside != window:
            top, left = inside.row - window.row, inside.col - window.col
            margins = (
                (top, window.height - inside.height - top),
                (left, window.width - inside.width - left),
            )
            values, valid = np.pad(values, ((0, 0), *margins)), np.pad(valid, margins)
    return Raster(values, valid, file.transform * Affine.translation(window.col, window.row), file.crs)


def read_resampled(
    file: DatasetReader,
    grid: Grid,
    window: Window,
    *,
    bands: Sequence[int],
    nodata: float | None,
    masked: bool,
) -> Raster:
    """A window of the file on another grid of the same CRS, bilinear.

    A new pixel that any invalid pixel contributes to is invalid. Pixels beyond the edges don't count.
    """
    source = _source_window(file, grid, window)
    raw = read_window(file, source, bands=bands, nodata=nodata, masked=masked)
    target = grid.transform * Affine.translation(window.col, window.row)
    shape = (window.height, window.width)
    values, weight = np.zeros((len(bands), *shape), raw.values.dtype), np.zeros(shape, np.float32)
    clean = np.where(raw.valid, raw.values, raw.values.dtype.type(0))
    for array, result in ((clean, values), (raw.valid.astype(np.float32), weight)):
        reproject(
            array,
            result,
            src_transform=raw.transform,
            src_crs=file.crs,
            dst_transform=target,
            dst_crs=file.crs,
            resampling=Resampling.bilinear,
        )
    return Raster(values, weight > 1 - 1e-4, target, file.crs)


def read_footprint(
    file: DatasetReader, region: Window, *, bands: Sequence[int], nodata: float | None, masked: bool
) -> np.ndarray:
    """(h, w) bool: a coarse picture of the region's valid pixels, a cell for each 16 x 16, from overviews."""
    shape = tuple(min(512, ceil(side / 16)) for side in (region.height, region.width))
    return _read(file, region, bands, nodata, masked, shape)[1]


def read_thumbnail(
    file: DatasetReader, *, bands: Sequence[int], nodata: float | None, masked: bool, side: int
) -> Raster:
    """The whole file in at most `side` x `side` pixels, from overviews where there are any."""
    share = min(1.0, side / max(file.height, file.width))
    shape = tuple(max(1, round(length * share)) for length in (file.height, file.width))
    values, valid = _read(file, Window(0, 0, file.height, file.width), bands, nodata, masked, shape)
    scale = Affine.scale(file.width / shape[1], file.height / shape[0])
    return Raster(values, valid, file.transform * scale, file.crs)


def _read(
    file: DatasetReader,
    window: Window,
    bands: Sequence[int],
    nodata: float | None,
    masked: bool,
    shape: tuple[int, ...] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """values (C, H, W), valid (H, W) of a window inside the file, perhaps decimated to a shape."""
    area = windows.Window(window.col, window.row, window.width, window.height)
    with _reading(file.name, window):
        values = file.read(
            list(bands), window=area, out_shape=None if shape is None else (len(bands), *shape)
        )
        valid = is_measured(values, nodata)
        if masked:
            valid &= file.dataset_mask(window=area, out_shape=shape or values.shape[1:]) > 0
    return values, valid


def is_measured(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """values (C, H, W) -> (H, W) bool: neither nodata nor NaN; the rule is in the module's docstring."""
    valid = np.isfinite(values).all(axis=0) if values.dtype.kind == "f" else np.ones(values.shape[1:], bool)
    if nodata is None or isnan(nodata):
        return valid
    holes = values == nodata
    valid &= ~(holes.all(axis=0) if values.dtype == np.uint8 else holes.any(axis=0))
    return valid


def project(source: CRS | None, target: CRS | None, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (n,) of one CRS in another; all NaN where PROJ refuses one, beyond a CRS's reach."""
    try:
        there = transform_points(source, target, x, y)
    except (RasterioError, CPLE_BaseError):
        return np.full(np.shape(x), np.nan), np.full(np.shape(y), np.nan)
    return np.array(there[0]), np.array(there[1])


def _apply(transform: Affine, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def _clip(window: Window, height: int, width: int) -> Window | None:
    """The part of a window inside a file."""
    top, left = max(window.row, 0), max(window.col, 0)
    bottom, right = min(window.row + window.height, height), min(window.col + window.width, width)
    return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None


def _source_window(file: DatasetReader, grid: Grid, window: Window) -> Window:
    """Pixels of the file that bilinear resampling of a window of the grid looks at."""
    step = ~file.transform * grid.transform
    left, top = step * (window.col, window.row)
    right, bottom = step * (window.col + window.width, window.row + window.height)
    reach = ceil(max(1.0, step.a, step.e)) + 1
    row, col = floor(top) - reach, floor(left) - reach
    around = Window(row, col, ceil(bottom) + reach - row, ceil(right) + reach - col)
    return _clip(around, file.height, file.width) or Window(0, 0, 1, 1)


def _own_names(file: DatasetReader, indexes: Sequence[int], path: str) -> tuple[str, ...]:
    """Each band's description, else its colour, else B and its number."""
    names = []
    for index in indexes:
        colour = file.colorinterp[index - 1]
        unnamed = colour in (ColorInterp.undefined, ColorInterp.gray, ColorInterp.palette)
        names.append(file.descriptions[index - 1] or (f"B{index}" if unnamed else colour.name))
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two bands have the same name ({', '.join(names)}): name them with bands")
    return tuple(names)


def _refuse_cut_off(file: DatasetReader, path: str) -> None:
    """A TIFF's header outlives the loss of its end: look whether the last block of each band is there."""
    if file.driver not in ("GTiff", "COG") or not os.path.isfile(path):
        return
    size = os.path.getsize(path)
    for index, (height, width) in zip(file.indexes, file.block_shapes, strict=True):
        last = f"{(file.width - 1) // width}_{(file.height - 1) // height}"
        start, length = (
            int(file.get_tag_item(f"BLOCK_{part}_{last}", "TIFF", bidx=index) or 0)
            for part in ("OFFSET", "SIZE")
        )
        if start + length > size:
            raise DataError(
                f"{path}: cut off: its last block ends at byte {start + length}, the file at {size}"
            )


def _open(path: str) -> DatasetReader:
    # GDAL lists the whole folder for each file otherwise, to see which side files there are
    lean = rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE")
    with _reading(path, "opening"), warnings.catch_warnings(), lean:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a mask without CRS is fine
        return rasterio.open(path)


@contextmanager
def _reading(path: str, what: Window | str) -> Iterator[None]:
    """Turns GDAL's errors into one that names the file and the window."""
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        where = what
        if isinstance(what, Window):
            where = (
                f"rows {what.row} to {what.row + what.height}, columns {what.col} to {what.col + what.width}"
            )
        cause = error.__cause__ or error
        raise DataError(f"{path}: can't be read ({where}): {getattr(cause, 'errmsg', cause)}") from error
