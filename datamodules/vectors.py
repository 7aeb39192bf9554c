"""Vectors: shapes with a class each, read from a vector file and drawn onto the pixels of a scene.

The only module that opens vector files, and the only one that needs shapely and pyogrio (and pyarrow, for
GeoParquet). A shape that lies later in the file is drawn over the earlier ones (FlatGeobuf with an index
has sorted them when it was written).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, lru_cache

import numpy as np
import pyogrio
import shapely
from affine import Affine
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.features import rasterize
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds

from datamodules.batch import IGNORE, Window
from datamodules.classes import Value
from datamodules.errors import DataError
from datamodules.labels import OVERLAPPING, VectorOptions
from datamodules.objects import Objects
from datamodules.raster import Grid

SIDE = 256
"""Of the tiles in which a scene is drawn, in pixels."""

FILES = 8
"""Vector files that a process keeps in memory as they are..."""
SCENES = 256
"""...and scenes whose shapes it keeps, ready to be drawn."""

MARGIN = 4
"""Pixels around a scene within which shapes are kept whole; farther out they are cut off."""

Extent = tuple[float, float, float, float]
"""West, south, east, north in a CRS."""


@dataclass(frozen=True, eq=False)
class Shapes:
    """What a vector file holds."""

    path: str
    crs: CRS | None
    geometries: np.ndarray
    """(n,) valid shapely geometries in the file's order."""
    codes: np.ndarray
    """(n,) uint8 class index; 255: ignored."""
    fids: np.ndarray
    """(n,) the file's own numbers of the features."""
    faults: Counter[str] = field(default_factory=Counter)
    """What the user should know, and for how many features."""

    @cached_property
    def tree(self) -> shapely.STRtree:
        """Their index."""
        return shapely.STRtree(self.geometries)

    @property
    def extent(self) -> Extent:
        """Around all shapes."""
        west, south, east, north = shapely.total_bounds(self.geometries).tolist()
        return west, south, east, north


class Drawing:
    """The shapes within a scene, ready to be drawn: in pixels of its grid (col, row), with an index."""

    def __init__(
        self,
        geometries: np.ndarray,
        codes: np.ndarray,
        *,
        size: tuple[int, int],
        fill: int,
        all_touched: bool,
    ) -> None:
        """geometries: (n,), later ones on top; codes: (n,) uint8; size: (H, W) of the scene; fill: code of
        its ground without a shape; all_touched: see `VectorOptions`."""
        self.geometries = geometries
        self.codes = codes
        self.size = size
        self.fill = fill
        self.all_touched = all_touched
        self.tree = shapely.STRtree(geometries)

    def __len__(self) -> int:
        return len(self.geometries)

    @property
    def extent(self) -> Window:
        """Around all shapes, inside the scene."""
        bounds = shapely.total_bounds(self.geometries)
        left, top = np.maximum(np.floor(bounds[:2]).astype(int), 0).tolist()
        right, bottom = np.minimum(np.ceil(bounds[2:]).astype(int), self.size[::-1]).tolist()
        return Window(top, left, max(bottom - top, 1), max(right - left, 1))

    def meeting(self, window: Window) -> np.ndarray:
        """Positions of the shapes whose extents meet a window, in the order of drawing."""
        right, bottom = window.col + window.width, window.row + window.height
        return np.sort(self.tree.query(shapely.box(window.col, window.row, right, bottom)))

    def mask(self, window: Window) -> np.ndarray:
        """(H, W) uint8 codes of a window's pixels, 255 outside the scene.

        It is cut from tiles that are the same for every window: which pixels an edge touches that runs
        through their corners depends on where GDAL starts to follow it.
        """
        mask = np.full((window.height, window.width), IGNORE, np.uint8)
        for rows in _tiles(window.row, window.height, self.size[0]):
            for cols in _tiles(window.col, window.width, self.size[1]):
                mask[rows.target, cols.target] = self._part(rows, cols)
        return mask

    def _part(self, rows: _Tile, cols: _Tile) -> np.ndarray:
        """What a window shows of a tile."""
        top, left = rows.start + rows.source.start, cols.start + cols.source.start
        shape = (rows.source.stop - rows.source.start, cols.source.stop - cols.source.start)
        near = self.meeting(Window(top, left, *shape))
        if not len(near):
            return np.full(shape, self.fill, np.uint8)
        tile = rasterize(
            zip(self.geometries[near], self.codes[near].tolist(), strict=True),
            out_shape=(rows.size, cols.size),
            fill=self.fill,
            transform=Affine.translation(cols.start, rows.start),
            all_touched=self.all_touched,
            dtype="uint8",
        )
        return tile[rows.source, cols.source]


@dataclass(frozen=True)
class _Tile:
    """One dimension of a tile that a window meets: what of it (source) lies where in the window (target)."""

    start: int
    size: int
    source: slice
    target: slice


def _tiles(start: int, length: int, total: int) -> list[_Tile]:
    """The tiles of a scene `total` pixels long that start..start+length meets."""
    found = []
    for low in range(max(start, 0) // SIDE * SIDE, min(start + length, total), SIDE):
        high = min(low + SIDE, total)
        first, last = max(low, start), min(high, start + length)
        if first < last:
            found.append(
                _Tile(low, high - low, slice(first - low, last - low), slice(first - start, last - start))
            )
    return found


class VectorFiles:
    """The vector files that a process has read, the most recently used ones; it is pickled without them."""

    def __init__(self, options: VectorOptions, meanings: Mapping[Value, int], names: Sequence[str]) -> None:
        """meanings: index of the class (255: ignored) by value of the column; names: of the classes."""
        self.options = options
        self.meanings = dict(meanings)
        self.names = tuple(names)
        self.shapes = lru_cache(FILES)(self._read)
        self.drawing = lru_cache(SCENES)(self._draw)

    def __reduce__(self) -> tuple[type[VectorFiles], tuple[object, ...]]:
        return VectorFiles, (self.options, self.meanings, self.names)

    def _read(self, path: str) -> Shapes:
        return read_shapes(path, options=self.options, meanings=self.meanings, names=self.names)

    def _draw(self, path: str, grid: Grid) -> Drawing:
        return draw(self.shapes(path), grid, options=self.options, names=self.names)


# ------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class _Table:
    """A vector file's features as they are stored."""

    crs: str | None
    """As WKT or an authority's code."""
    fids: np.ndarray
    wkb: np.ndarray
    values: np.ndarray


def read_shapes(
    path: str, *, options: VectorOptions, meanings: Mapping[Value, int], names: Sequence[str]
) -> Shapes:
    """All features of a file that have a geometry and a class, repaired where they were invalid."""
    table = _read_parquet(path, options) if path.lower().endswith(".parquet") else _read_ogr(path, options)
    codes = _codes(path, table, options.column, meanings, names)
    geometries, repaired = _decoded(path, table)
    classless = codes < 0
    hollow = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    keep = ~classless & ~hollow
    fids, geometries, codes = table.fids[keep], geometries[keep], codes[keep].astype(np.uint8)
    _check_types(path, geometries, fids, options)
    crs = _parse_crs(path, table.crs)
    faults = Counter(
        {
            "have no class and are left out": int(classless.sum()),
            "have no geometry and are left out": int((hollow & ~classless).sum()),
            "were invalid and have been repaired": int((repaired & keep).sum()),
            OVERLAPPING: _overlaps(geometries, codes),
            "span more than 180 degrees of longitude: if they are meant to cross the date line, "
            "cut them there (RFC 7946, 3.1.9)": _wide(geometries, crs),
            "have no CRS and are taken to be in their scene's": 0 if crs else len(geometries),
        }
    )
    return Shapes(path, crs, geometries, codes, fids, +faults)


def _read_ogr(path: str, options: VectorOptions) -> _Table:
    if path.lower().endswith(".shp"):
        _refuse_cut_off(path)
    try:
        layer = _choose_layer(path, [str(name) for name, _ in pyogrio.list_layers(path)], options.layer)
        info = pyogrio.read_info(path, layer=layer, force_feature_count=True)
        if not info["features"]:  # a GeoJSON file has columns only where it has features
            return _Table(info["crs"], *(np.empty(0, kind) for kind in (np.int64, object, object)))
        _check_column(path, options.column, info["fields"].tolist())
        meta, fids, wkb, (values,) = pyogrio.raw.read(
            path, layer=layer, columns=[options.column], return_fids=True, force_2d=True
        )
    except (DataSourceError, DataLayerError) as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    if len(fids) != info["features"]:
        raise DataError(f"{path}: cut off or damaged: {len(fids)} of {info['features']} features can be read")
    return _Table(meta["crs"], fids, wkb, values)


def _refuse_cut_off(path: str) -> None:
    """GDAL reads the shapes that a cut-off shapefile lacks as null; its header knows how long it was."""
    with open(path, "rb") as file:
        words = int.from_bytes(file.read(28)[24:], "big")  # of 16 bits
    size = os.path.getsize(path)
    if 2 * words > size or not words:
        raise DataError(
            f"{path}: cut off: it should have {2 * words or 'at least 100'} bytes, but has {size}"
        )


def _read_parquet(path: str, options: VectorOptions) -> _Table:
    """GeoParquet 1.0 and 1.1 with geometries as WKB: https://geoparquet.org/releases/v1.1.0"""
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise DataError(f"{path}: GeoParquet needs pip install 'visionsft[vectors]' ({error})") from error
    if options.layer is not None:
        raise DataError(f"{path}: vector.layer is {options.layer!r}, but a GeoParquet file has no layers")
    try:
        file = parquet.ParquetFile(path)
        about = json.loads((file.schema_arrow.metadata or {}).get(b"geo", b"null"))
        if about is None:
            raise DataError(f"{path}: a Parquet file without 'geo' metadata is no GeoParquet")
        name = about["primary_column"]
        column = about["columns"][name]
        if column["encoding"] != "WKB":
            raise DataError(f"{path}: geometries are encoded as {column['encoding']}; allowed: WKB")
        _check_column(path, options.column, [each for each in file.schema_arrow.names if each != name])
        table = file.read([name, options.column])
    except (OSError, ArrowException, KeyError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    wkb, values = (np.array(table[each].to_pylist(), object) for each in (name, options.column))
    # no 'crs' means longitude and latitude (its default), null that it is unknown
    crs = column.get("crs", "OGC:CRS84")
    return _Table(json.dumps(crs) if isinstance(crs, dict) else crs, np.arange(len(wkb)), wkb, values)


def _choose_layer(path: str, layers: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(layers) == 1:
        return layers[0]
    if wanted is not None and wanted in layers:
        return wanted
    if not layers:
        raise DataError(f"{path}: has no layer")
    if wanted is None:
        raise DataError(
            f"{path}: has {len(layers)} layers: {', '.join(layers)}; choose one with vector.layer"
        )
    raise DataError(f"{path}: has no layer {wanted!r}; it has {', '.join(layers)}{_hint(wanted, layers)}")


def _check_column(path: str, column: str, columns: Sequence[str]) -> None:
    if column not in columns:
        there = f"it has {', '.join(columns)}" if columns else "it has none"
        raise DataError(
            f"{path}: has no column {column!r}; {there}{_hint(column, columns)} (vector.column names it)"
        )


def _codes(
    path: str, table: _Table, column: str, meanings: Mapping[Value, int], names: Sequence[str]
) -> np.ndarray:
    """(n,) int64 code of each feature's class, -1 where it has none."""
    values = [_plain(value) for value in table.values.tolist()]
    unknown = [i for i, value in enumerate(values) if value is not None and value not in meanings]
    if unknown:
        first = values[unknown[0]]
        more = f" (and {len(unknown) - 1} features more)" if len(unknown) > 1 else ""
        allowed = ", ".join(
            f"{value!r} ({'ignored' if code == IGNORE else names[code]})" for value, code in meanings.items()
        )
        raise DataError(
            f"{path}: column {column!r} of feature {table.fids[unknown[0]]} is {first!r}{more}, which is in no "
            f"class. Allowed: {allowed}{_hint(str(first), [str(value) for value in meanings])}"
        )
    return np.array([-1 if value is None else meanings[value] for value in values], np.int64)  # type: ignore[index]


def _plain(value: object) -> object:
    """A column's value as a class names it: whole numbers as int (columns with gaps hold floats), gaps as None.

    A list, as annotation tools write it, is its one entry; one of several entries is no class.
    """
    if isinstance(value, list | np.ndarray):
        entries = [_plain(each) for each in value]
        return tuple(entries) if len(entries) > 1 else next(iter(entries), None)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None if np.isnan(value) else value
    return int(value) if isinstance(value, bool) else value


def _decoded(path: str, table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """(n,) valid geometries (some None), and (n,) bool: which of them have been made valid."""
    try:
        geometries = np.array(shapely.from_wkb(table.wkb), object, ndmin=1)
        invalid = ~shapely.is_valid(geometries) & ~shapely.is_missing(geometries)
        # 'structure' with keep_collapsed=False leaves polygons only, no slivers of lines
        geometries[invalid] = shapely.make_valid(
            geometries[invalid], method="structure", keep_collapsed=False
        )
        return geometries, invalid
    except shapely.GEOSException as error:
        raise DataError(f"{path}: a geometry can't be read: {error}") from error


def _check_types(path: str, geometries: np.ndarray, fids: np.ndarray, options: VectorOptions) -> None:
    """Polygons have ground; points and lines have it once they are buffered."""
    types = shapely.get_type_id(geometries)
    mixed = np.flatnonzero(types == shapely.GeometryType.GEOMETRYCOLLECTION)
    if len(mixed):
        raise DataError(
            f"{path}: feature {fids[mixed[0]]} is a GeometryCollection; allowed: points, lines, polygons"
        )
    thin = np.flatnonzero(shapely.get_dimensions(geometries) < 2)
    if len(thin) and options.buffer is None:
        kind = shapely.GeometryType(types[thin[0]]).name.title()
        raise DataError(
            f"{path}: feature {fids[thin[0]]} is a {kind} ({len(thin)} of {len(fids)} features are points or "
            "lines), which covers no ground: set vector.buffer, in units of the scene's CRS"
        )


def _parse_crs(path: str, text: str | None) -> CRS | None:
    try:
        return None if text is None else CRS.from_user_input(text)
    except CRSError as error:
        raise DataError(f"{path}: its CRS can't be understood: {error}") from error


def _overlaps(geometries: np.ndarray, codes: np.ndarray) -> int:
    """Number of polygons whose ground a later polygon of another class has too."""
    flat = np.flatnonzero(shapely.get_dimensions(geometries) == 2)
    under, over = flat[shapely.STRtree(geometries[flat]).query(geometries[flat], predicate="intersects")]
    rivals = (under < over) & (codes[under] != codes[over])
    under, over = under[rivals], over[rivals]
    shared = shapely.relate_pattern(geometries[under], geometries[over], "T********")  # interiors meet
    return len(np.unique(under[shared]))


def _wide(geometries: np.ndarray, crs: CRS | None) -> int:
    """Number of shapes wider than half the Earth."""
    if crs is None or not crs.is_geographic:
        return 0
    bounds = shapely.bounds(geometries)
    return int((bounds[:, 2] - bounds[:, 0] > 180).sum())


def _hint(given: str, allowed: Sequence[str]) -> str:
    close = get_close_matches(given.lower(), [each.lower() for each in allowed], n=1, cutoff=0.5)
    near = [each for each in allowed if each.lower() in close]
    return f"; did you mean {near[0]!r}?" if near else ""


# ------------------------------------------------------------------------------------- drawing


def draw(shapes: Shapes, grid: Grid, *, options: VectorOptions, names: Sequence[str]) -> Drawing:
    """The shapes that meet a scene's grid, in its pixels. A file without CRS is taken to have the scene's."""
    if grid.crs is None and shapes.crs is not None:
        raise DataError(f"{shapes.path}: has a CRS ({shapes.crs.to_string()}), but its scene has none")
    reach = MARGIN + (0 if options.buffer is None else options.buffer / _pixel_side(grid))
    boxes = [shapely.box(*extent) for extent in _extents(grid, shapes, reach)]
    near = np.unique(np.concatenate([shapes.tree.query(box) for box in boxes]))
    geometries, codes = shapes.geometries[near], shapes.codes[near]
    if shapes.crs is not None and shapes.crs != grid.crs:
        geometries = _reprojected(geometries, shapes, grid, shapely.union_all(boxes))
    thin = shapely.get_dimensions(geometries) < 2
    geometries[thin] = shapely.buffer(geometries[thin], options.buffer or 0.0)
    geometries = shapely.transform(geometries, _to_pixels(grid))
    inside = shapely.intersects(shapely.envelope(geometries), shapely.box(0, 0, grid.width, grid.height))
    fill = IGNORE if options.background is None else list(names).index(options.background)
    return Drawing(
        geometries[inside],
        codes[inside],
        size=(grid.height, grid.width),
        fill=fill,
        all_touched=options.all_touched,
    )


def to_objects(drawing: Drawing) -> Objects:
    """A scene's shapes as objects with outlines, in its pixels; a shape of several parts is one object."""
    parts, owner = shapely.get_parts(drawing.geometries, return_index=True)
    rings, ring_owner = shapely.get_rings(parts, return_index=True)
    points, point_owner = shapely.get_coordinates(rings, return_index=True)
    edges = np.searchsorted(point_owner, np.arange(len(rings) + 1))
    shapes: list[list[np.ndarray]] = [[] for _ in drawing.geometries]
    for i, index in enumerate(owner[ring_owner].tolist()):
        shapes[index].append(points[edges[i] : edges[i + 1] - 1].astype(np.float32))  # the last is the first
    ignored = drawing.codes == IGNORE
    return Objects(
        boxes=shapely.bounds(drawing.geometries).reshape(-1, 4).astype(np.float32),
        labels=np.where(ignored, 0, drawing.codes).astype(np.int64),
        ignored=ignored,
        shapes=tuple(map(tuple, shapes)),
    )


def describe_miss(shapes: Shapes, grid: Grid) -> str:
    """Why no shape of a file lies within a scene, in the file's coordinates."""
    if not len(shapes.geometries):
        left_out = f" ({_show_faults(shapes.faults)})" if shapes.faults else ""
        return f"holds no shape with a class{left_out}"
    extents = _extents(grid, shapes, 0)
    west, south, east, north = shapes.extent
    swapped = shapely.box(south, west, north, east)
    meets = any(shapely.intersects(swapped, shapely.box(*extent)) for extent in extents)
    hint = ". With x and y swapped they would meet: is the file's axis order right?" if meets else ""
    system = "" if shapes.crs is None else f" ({shapes.crs.to_string()})"
    return (
        f"none of its {len(shapes.geometries)} shapes lies within the scene: they span {_show(shapes.extent)}, "
        f"the scene {' and '.join(map(_show, extents))}{system}{hint}"
    )


def _show_faults(faults: Mapping[str, int]) -> str:
    return "; ".join(f"{count} {text}" for text, count in faults.items())


def _show(extent: Extent) -> str:
    west, south, east, north = extent
    return f"x {west:.7g} to {east:.7g}, y {south:.7g} to {north:.7g}"


def _pixel_side(grid: Grid) -> float:
    """The shorter side of a pixel, in units of the CRS."""
    return min(float(np.hypot(*step)) for step in grid.transform.column_vectors[:2])


def _extents(grid: Grid, shapes: Shapes, reach: float) -> list[Extent]:
    """Around the grid and `reach` pixels more, in the file's CRS; two extents if the date line lies between."""
    corners = [
        grid.transform * (col, row)
        for col in (-reach, grid.width + reach)
        for row in (-reach, grid.height + reach)
    ]
    xs, ys = zip(*corners, strict=True)
    own = (min(xs), min(ys), max(xs), max(ys))
    if shapes.crs is None or grid.crs is None or shapes.crs == grid.crs:
        return [own]
    try:
        west, south, east, north = transform_bounds(grid.crs, shapes.crs, *own, densify_pts=21)
    except RasterioError as error:
        raise DataError(
            f"{shapes.path}: its CRS ({shapes.crs}) can't describe its scene's ground: {error}"
        ) from error
    if west > east:
        return [(west, south, 180.0, north), (-180.0, south, east, north)]
    return [(west, south, east, north)]


def _reprojected(geometries: np.ndarray, shapes: Shapes, grid: Grid, around: shapely.Geometry) -> np.ndarray:
    """In the scene's CRS; what lies outside of `around` is cut off first: the projection may not reach there."""
    inside = shapely.covered_by(geometries, around)
    near = np.where(inside, geometries, shapely.intersection(geometries, around))
    # an edge that is straight in one CRS is curved in the other
    step = float(np.sqrt(around.area)) / 256

    def project(points: np.ndarray) -> np.ndarray:
        return np.stack(transform_points(shapes.crs, grid.crs, points[:, 0], points[:, 1]), axis=1)

    return np.asarray(shapely.transform(shapely.segmentize(near, step), project), object)


def _to_pixels(grid: Grid) -> Callable[[np.ndarray], np.ndarray]:
    """(n, 2) x, y of the grid's CRS -> col, row."""
    inverse = ~grid.transform
    matrix = np.array([[inverse.a, inverse.d], [inverse.b, inverse.e]])
    return lambda points: points @ matrix + (inverse.c, inverse.f)
