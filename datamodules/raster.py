"""Rasters: georeferenced pixels read by window, together with which of them were measured.

The only module that opens raster files. A pixel is valid if it lies inside the file, its mask or alpha band
(if any) says so, no band read is NaN or infinite there, and it isn't nodata. Nodata is judged band by band:
one band at its nodata value makes the pixel invalid; except in 8-bit files, which have no value to spare
(a dark or saturated pixel may well hold 0 or 255 in one band): there all bands read must be nodata.
"""

from __future__ import annotations

import mmap
import os
import re
import time
import warnings
import xml.etree.ElementTree as ET
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, floor, isnan, prod
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeVar

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
from datamodules.paths import State, changed, files_of, gdal_path, is_remote, state_of

# answers such as 503, and servers that fall silent; broken connections are tried again by _insist
for _key, _value in {
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
}.items():
    os.environ.setdefault(_key, _value)

# of unpacked blocks, in MB, a process; by default 5 % of the memory, times the number of loader processes.
# Who reads super-tiles and rows of tiles needs no more than the blocks at their edges again.
os.environ.setdefault("GDAL_CACHEMAX", "256")

OPEN_FILES = 256
"""Datasets that a process keeps open."""

LARGE = 4 * 2**20
"""Bytes from which an array that is read has memory of its own."""

PAUSES = (0.5, 2.0, 5.0)
"""Seconds after which what a server didn't give is asked for again."""

_SCENE = "VISIONSFT_SCENE"
_REFUSED = re.compile(r"HTTP (response|error) code: 4(?!08|29)|does not exist|not recognized|No such file")
"""What asking again doesn't change."""
_GDAL_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "uint64": "UInt64", "int64": "Int64", "float32": "Float32", "float64": "Float64",
}  # fmt: skip

Found = TypeVar("Found")

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
        """Longitude, latitude in degrees to fractional rows, cols; NaN if any has none.

        Longitudes may be whole turns off: a grid across the date line counts on beyond 180.
        """
        x, y = project(LONLAT, self.crs, lons, lats)
        if self.crs is not None and self.crs.is_geographic:
            middle = _apply(self.transform, np.array(self.width / 2), np.array(self.height / 2))[0]
            x = x - 360 * np.round((x.mean() - middle) / 360)
        cols, rows = _apply(~self.transform, x, y)
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
    state: State = ()
    """Of the files when this was read."""
    pixels: tuple[float, ...] = ()
    """Sizes of a pixel in the files of a scene with a file a band, where these differ."""

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

    def file(self, path: str, state: State = ()) -> DatasetReader:
        """The open file; a DataError if it isn't in the `state` in which its header was read."""
        if state and (not is_remote(path) or (path, state) not in self._open):
            refuse_changed(path, state)
        return self._get((path, state), lambda stack: stack.enter_context(_open(path)))

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


def refuse_changed(path: str, state: State) -> None:
    """A file that isn't what its header said holds other ground, or is just being written."""
    try:
        now = state_of(path)
    except OSError as error:
        raise DataError(f"{error.filename}: was there when this run began: {error.strerror}") from error
    files = changed(now, state)
    if files:
        raise DataError(f"{files[0]}: has changed since this run looked at it first: run again")


def read_header(path: str | Path, *, bands: Sequence[str] | None = None) -> Header:
    """bands: names for the file's bands in their order; default: its own names, colours, or B1, B2...

    path: may stand for several files with one band each, see `datamodules.paths`.
    """
    path = str(path)
    files = files_of(path)
    state = state_of(path) if all(is_remote(each) or os.path.exists(each) for each in files) else ()
    if len(files) > 1:
        return _read_stack_header(path, files, bands, state)
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
            state=state,
        )


def _read_stack_header(path: str, files: Sequence[str], bands: Sequence[str] | None, state: State) -> Header:
    """Of a scene with a file a band; without `bands` their names are what tells the files apart."""
    headers = [_read_band_header(each) for each in files]
    names = tuple(bands) if bands is not None else tuple(_parts(path))
    if len(names) != len(files):
        raise DataError(f"{path}: has {len(files)} files, but {len(names)} bands are named: {', '.join(names)}")
    first = _finest(headers)
    for other in headers:
        _check_stacks(first, other)
    sizes = tuple(round(abs(header.grid.transform.a), 6) for header in headers)
    return replace(
        first,
        path=path,
        names=names,
        indexes=tuple(range(1, len(files) + 1)),
        state=state,
        pixels=sizes if any(not header.grid.matches(first.grid) for header in headers) else (),
    )


def _read_band_header(path: str) -> Header:
    header = read_header(path)
    if len(header.indexes) != 1 or header.masked:
        what = "an alpha band or mask" if header.masked else f"{len(header.indexes)} bands"
        raise DataError(f"{path}: has {what}; a scene's band files have one band each, holes as nodata")
    return header


def _parts(path: str) -> list[str]:
    """What tells the files of a scene apart in their path."""
    return path[path.index("{") + 1 : path.index("}")].split(",")


def _finest(headers: Sequence[Header]) -> Header:
    """The header whose pixels are smallest; the first of several."""
    return max(headers, key=lambda header: header.grid.height * header.grid.width)


def _check_stacks(first: Header, other: Header) -> None:
    """Whether two band files can be one scene: number type, nodata, CRS and ground agree."""
    for what, wanted, own in (
        ("type", first.dtype, other.dtype),
        ("CRS", first.grid.crs, other.grid.crs),
        ("nodata", str(first.nodata), str(other.nodata)),
    ):
        if wanted != own:
            raise DataError(f"{other.path}: its {what} is {own}, that of {first.path}, of the same scene, is {wanted}")
    corners = ((0, 0), (1, 1))
    one, two = (
        [grid.transform * (grid.width * x, grid.height * y) for x, y in corners] for grid in (first.grid, other.grid)
    )
    largest = max(abs(value) for grid in (first.grid, other.grid) for value in (grid.transform.a, grid.transform.e))
    if not np.allclose(one, two, rtol=0, atol=largest / 2):
        place, reference = (
            f"{header.grid.height} x {header.grid.width} pixels from {header.grid.transform.c:.10g}, "
            f"{header.grid.transform.f:.10g}"
            for header in (other, first)
        )
        raise DataError(
            f"{other.path}: lies on other ground than {first.path}, of the same scene: {place} instead of {reference}"
        )


def read_window(
    file: DatasetReader,
    window: Window,
    *,
    bands: Sequence[int],
    nodata: float | None,
    masked: bool,
    out: np.ndarray | None = None,
) -> Raster:
    """Pixels of a window, which may reach beyond the file's edges; what lies outside is 0 and invalid.

    bands: rasterio's numbers; nodata: in these bands; masked: look at the alpha band or mask as well.
    out: (C, H, W) of the file's type, to hold the values of a window that lies inside; default: memory that the
    system gets back.
    """
    inside = _clip(window, file.height, file.width)
    shape = (window.height, window.width)
    if inside is None:
        values, valid = np.zeros((len(bands), *shape), file.dtypes[bands[0] - 1]), np.zeros(shape, bool)
    else:
        values, valid = _read(file, inside, bands, nodata, masked, out=out if inside == window else None)
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
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """values (C, H, W), valid (H, W) of a window inside the file, perhaps decimated to a shape."""
    area = windows.Window(window.col, window.row, window.width, window.height)
    path = _path_of(file)
    size = shape or (window.height, window.width)

    def read() -> tuple[np.ndarray, np.ndarray]:
        place = _allocate((len(bands), *size), _dtype(file, bands)) if out is None else out
        values = file.read(list(bands), window=area, out=place)
        valid = is_measured(values, nodata)
        if masked:
            valid &= file.dataset_mask(window=area, out_shape=size) > 0
        return values, valid

    with _reading(path, window):
        return _insist(path, read)


def _dtype(file: DatasetReader, bands: Sequence[int]) -> np.dtype[Any]:
    return np.dtype(file.dtypes[bands[0] - 1])


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An empty array; a large one in memory that the system gets back, whole, once nobody needs it.

    Super-tiles of many sizes that come and go would leave holes in the heap, and the process would grow.
    """
    count = prod(shape)
    if count * dtype.itemsize < LARGE or not hasattr(mmap, "MAP_PRIVATE"):
        return np.empty(shape, dtype)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not on every system
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, count).reshape(shape)


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
    xs, ys = (np.where(np.isfinite(each), each, np.nan) for each in there)
    return xs, ys


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
    files = files_of(path)
    name = _stack(path, files) if len(files) > 1 else gdal_path(path)
    options = {
        # GDAL lists the whole folder for each file otherwise, to see which side files there are
        "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
        # blocks of one read are unpacked in parallel, unless loader processes share the cores already. GDAL (3.10) is
        # silent when a connection breaks off then, so what is remote is never read so
        "GDAL_NUM_THREADS": "1"
        if any(map(is_remote, files)) or parent_process()
        else os.environ.get("GDAL_NUM_THREADS", "ALL_CPUS"),
    }

    def open_lean() -> DatasetReader:
        with rasterio.Env(**options):
            return rasterio.open(name)

    with _reading(path, "opening"), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a mask without CRS is fine
        return _insist(path, open_lean)


def _stack(path: str, files: Sequence[str]) -> str:
    """A virtual raster (VRT) of files with one band each, as text that GDAL opens; it knows the scene's path.

    Files with larger pixels are interpolated to the finest ones' (bilinear).
    """
    headers = [_read_band_header(each) for each in files]
    first = _finest(headers)
    grid = first.grid
    root = ET.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs is not None:
        ET.SubElement(root, "SRS", dataAxisToSRSAxisMapping="1,2").text = grid.crs.to_wkt()
    ET.SubElement(root, "GeoTransform").text = ", ".join(map(repr, grid.transform.to_gdal()))
    ET.SubElement(ET.SubElement(root, "Metadata"), "MDI", key=_SCENE).text = path
    for number, header in enumerate(headers, start=1):
        _check_stacks(first, header)
        _add_band(root, number, header, grid)
    return ET.tostring(root, encoding="unicode")


def _add_band(root: ET.Element, number: int, header: Header, grid: Grid) -> None:
    kind = _GDAL_TYPES[str(header.dtype)]
    band = ET.SubElement(root, "VRTRasterBand", dataType=kind, band=str(number))
    if header.nodata is not None:
        ET.SubElement(band, "NoDataValue").text = repr(header.nodata)
    coarser = (header.grid.height, header.grid.width) != (grid.height, grid.width)
    source = ET.SubElement(
        band, "SimpleSource" if header.nodata is None else "ComplexSource", resampling="bilinear" if coarser else "near"
    )
    ET.SubElement(source, "SourceFilename", relativeToVRT="0").text = gdal_path(header.path)
    ET.SubElement(source, "SourceBand").text = str(header.indexes[0])
    for tag, each in (("SrcRect", header.grid), ("DstRect", grid)):
        ET.SubElement(source, tag, xOff="0", yOff="0", xSize=str(each.width), ySize=str(each.height))
    if header.nodata is not None:
        ET.SubElement(source, "NODATA").text = repr(header.nodata)


def _path_of(file: DatasetReader) -> str:
    """For messages: a stack of files has no name of its own."""
    name = str(file.name)
    return str(file.tags()[_SCENE]) if name.startswith("<VRTDataset") else name.removeprefix("/vsicurl/")


def _insist(path: str, attempt: Callable[[], Found]) -> Found:
    """Tries again where a server breaks off, some seconds later; GDAL goes on with what it has got so far."""
    if not any(map(is_remote, files_of(path))):
        return attempt()
    for pause in PAUSES:
        try:
            return _apart(attempt)
        except (RasterioError, CPLE_BaseError) as error:
            if _REFUSED.search(f"{error} {error.__cause__}"):
                raise
            time.sleep(pause)
    return _apart(attempt)


def _apart(attempt: Callable[[], Found]) -> Found:
    """In a thread of its own where this process was forked: GDAL keeps a thread's connections open, and those of the
    thread that forked are its parent's, too: answers would get mixed up."""
    return attempt() if os.getpid() == _PROCESS else _helper(os.getpid()).submit(attempt).result()


@lru_cache(1)
def _helper(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


_PROCESS = os.getpid()


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
