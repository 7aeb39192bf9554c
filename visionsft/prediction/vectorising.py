"""Vectors: the polygons of a class map as GeoPackage, FlatGeobuf, GeoParquet or GeoJSON.

The map arrives in row bands and is never held: `visionsft.prediction.outlines` keeps the last row and the
borders of the polygons that reach it, everything finished goes to an unnamed file beside the target, and from
there into the format at the end. So memory doesn't grow with rows but with the polygons that are open at a time,
8 bytes a corner and 50 an arc; a background that spans the scene stays open, with all its holes, until the last
row, and then takes some 130 bytes a corner while it is written.

One polygon is one 4-connected component of a class, wherever bands end. Without simplification, rasterising the
polygons gives the map back bit for bit. Neighbours share their borders point by point, simplified or not (a
valid coverage), with a point wherever a third polygon begins.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from datamodules import DataError
from datamodules.batch import IGNORE
from visionsft.errors import ConfigError, WriteError, nearest
from visionsft.files import atomic_path
from visionsft.prediction.generalising import Generaliser
from visionsft.prediction.outlines import Polygons, Tracer, expand

if TYPE_CHECKING:
    import pyarrow as pa

BAND = 1 << 21
"""Pixels that are traced together: narrower bands wait for more rows, wider ones are cut."""

BATCH = 1 << 16
"""Polygons that are encoded together."""

GEOMETRY = "geometry"
"""Column of the polygons, where the format names it."""

EQUATOR = 6_378_137.0
"""Radius in metres (WGS 84)."""

ECCENTRICITY = 0.081_819_190_8
"""Of a meridian (WGS 84)."""


@dataclass(frozen=True)
class VectorOptions:
    """Which polygons are written, and how exactly.

    Areas are square metres where the scene has a CRS (degrees are converted at the middle latitude of each ring),
    else pixels; they are those of the pixels, before simplification.
    """

    simplify: float = 0.0
    """Tolerance in pixels: corners go whose triangle with their neighbours has no more area than its square."""
    min_area: float = 0.0
    """Smaller polygons (without their holes) are dropped and leave a gap."""
    fill_holes: float = 0.0
    """Smaller holes are filled. Other polygons in them are written nonetheless, and lie over the filled one,
    unless min_area drops them; with fill_holes <= min_area no two polygons overlap."""
    classes: tuple[str, ...] | None = None
    """Names of the classes that get polygons; default: all."""

    def __post_init__(self) -> None:
        for name in ("simplify", "min_area", "fill_holes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"vectors, {name}: {value}; allowed is a number from 0 up")

    def chosen(self, names: Sequence[str]) -> list[int]:
        """Indices of the classes that get polygons."""
        wanted = names if self.classes is None else self.classes
        for name in wanted:
            if name not in names:
                near = nearest(name, names)
                hint = f" (did you mean '{near}'?)" if near else ""
                raise ConfigError(f"vectors, classes: no class '{name}'{hint}; there are {', '.join(names)}")
        if not wanted:
            raise ConfigError(f"vectors, classes: none is chosen; there are {', '.join(names)}")
        return [index for index, name in enumerate(names) if name in wanted]


@contextmanager
def open_polygons(
    path: str | Path,
    *,
    transform: Affine,
    crs: CRS | None,
    names: Sequence[str],
    options: VectorOptions | None = None,
    scene: str | None = None,
) -> Iterator[PolygonWriter]:
    """A writer for the polygons of one class map; the file has its name only once the block has ended well.

    path: its suffix chooses the format, see `FORMATS`. transform: (col, row) of a pixel's corner to
    coordinates of the CRS; without a CRS they are written as they are. names: of the classes, in the order of
    their indices. scene: written with every polygon.
    """
    with open_layer(path, crs=crs) as spool:
        writer = PolygonWriter(
            spool, ground=Ground(transform, crs), names=names, options=options or VectorOptions(), scene=scene
        )
        yield writer
        writer.finish()


@contextmanager
def open_layer(path: str | Path, *, crs: CRS | None, geometry: str = "Polygon") -> Iterator[IO[bytes]]:
    """Takes an Arrow stream of features; they are in `path` once the block has ended well.

    path: its suffix chooses the format. geometry: kind of the shapes in the stream's column `GEOMETRY`, in WKB.
    """
    path = Path(path)
    kind = find_format(path, crs)
    pyarrow = _require()
    with (
        atomic_path(path) as temporary,
        _no_journal(temporary),
        tempfile.TemporaryFile(dir=path.parent) as spool,  # nothing can leave it behind: it has no name
    ):
        yield spool
        spool.seek(0)
        batches = pyarrow.ipc.open_stream(spool)
        kind.write(temporary, batches, layer=path.stem, crs=crs, geometry=geometry)


class PolygonWriter:
    """Traces row bands and spools their polygons as Arrow batches."""

    def __init__(
        self,
        spool: IO[bytes],
        *,
        ground: Ground,
        names: Sequence[str],
        options: VectorOptions,
        scene: str | None,
    ) -> None:
        self._ground, self._names, self._options, self._scene = ground, tuple(names), options, scene
        chosen = options.chosen(names)
        self._index = np.full(256, IGNORE, np.uint8)
        self._index[chosen] = chosen
        self._schema = self._make_schema()
        self._spool = _require().ipc.new_stream(spool, self._schema)
        self._tracer: Tracer | None = None
        self._waiting: list[NDArray[np.uint8]] = []
        self._rows = 0

    def add(self, row: int, classes: NDArray[np.uint8]) -> None:
        """The next band, of any height. classes: (h, W) uint8, 255 = nodata; row: its first one in the scene."""
        assert row == self._rows, f"row {row} after {self._rows} rows"
        assert classes[classes != IGNORE].max(initial=0) < len(self._names), "a class without a name"
        if self._tracer is None:
            simplifier = Generaliser(self._options.simplify) if self._options.simplify else None
            self._tracer = Tracer(classes.shape[1], simplifier=simplifier)
        self._rows += len(classes)
        self._waiting.append(self._index[classes])
        if sum(band.size for band in self._waiting) >= BAND:
            self._trace()

    def finish(self) -> None:
        """The polygons that reach the last row."""
        if self._tracer is not None:
            self._trace()
            self._write(self._tracer.finish())
        self._spool.close()

    def _trace(self) -> None:
        assert self._tracer is not None
        step = max(1, BAND // self._tracer.width)
        cells = np.concatenate([np.zeros((0, self._tracer.width), np.uint8), *self._waiting])
        self._waiting.clear()
        for start in range(0, len(cells), step):
            self._write(self._tracer.add(cells[start : start + step]))

    def _write(self, polygons: Polygons) -> None:
        polygons, areas = select(
            polygons,
            self._ground.areas(polygons),
            min_area=self._options.min_area,
            fill_holes=self._options.fill_holes,
        )
        shapes = self._ground.geometries(polygons)
        for start in range(0, len(areas), BATCH):
            part = slice(start, start + BATCH)
            self._spool.write_batch(self._batch(polygons.classes[part], areas[part], shapes[part]))

    def _batch(
        self, classes: NDArray[np.uint8], areas: NDArray[np.float64], shapes: NDArray[np.object_]
    ) -> pa.RecordBatch:
        import pyarrow as pa
        import shapely

        columns = [
            pa.array([self._names[index] for index in classes], pa.string()),
            pa.array(classes, pa.int32()),
            pa.array(areas),
            *([pa.array([self._scene] * len(classes), pa.string())] if self._scene is not None else []),
            pa.array(shapely.to_wkb(shapes), pa.large_binary()),
        ]
        return pa.record_batch(columns, schema=self._schema)

    def _make_schema(self) -> pa.Schema:
        import pyarrow as pa

        scene = [("scene", pa.string())] if self._scene is not None else []
        attributes = [
            ("class", pa.string()),
            ("class_index", pa.int32()),
            (self._ground.area_name, pa.float64()),
        ]
        return pa.schema([*attributes, *scene, geometry_field()])


def geometry_field() -> pa.Field:
    """The column of the geometries, in WKB."""
    import pyarrow as pa

    return pa.field(GEOMETRY, pa.large_binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"})


# ------------------------------------------------------------------------------------------------ geometry


@dataclass(frozen=True)
class Ground:
    """Where pixels lie, and how large they are."""

    transform: Affine
    crs: CRS | None

    @property
    def area_name(self) -> str:
        """Column of the areas, with their unit."""
        return "area_px" if self.crs is None else "area_m2"

    def areas(self, polygons: Polygons) -> NDArray[np.float64]:
        """(R,) of the rings in that unit, negative for holes."""
        if self.crs is None:
            return polygons.areas
        pixel = abs(self.transform.determinant)
        if not self.crs.is_geographic:
            return polygons.areas * pixel * self.crs.linear_units_factor[1] ** 2
        radians = self.crs.units_factor[1]
        return polygons.areas * pixel * radians**2 * _square_radian(radians * self._middle(polygons))

    def geometries(self, polygons: Polygons) -> NDArray[np.object_]:
        """(N,) shapely polygons on the ground, outer rings counterclockwise."""
        import shapely

        points = np.stack(self.place(polygons.points), axis=1)
        offsets = polygons.rings, polygons.polygons
        shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, offsets)
        # counterclockwise as seen on the picture, which is right unless the ground is its mirror image
        return shapes if self.transform.determinant < 0 else shapely.orient_polygons(shapes)

    def place(self, points: NDArray[np.number]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """points: (P, 2) col, row -> x, y on the ground."""
        col, row = points.T.astype(np.float64)
        t = self.transform
        return t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f

    def _middle(self, polygons: Polygons) -> NDArray[np.float64]:
        """(R,) y of the middle of each ring's extent."""
        if not len(polygons.areas):
            return polygons.areas
        starts = polygons.rings[:-1]
        low, high = np.minimum.reduceat(polygons.points, starts), np.maximum.reduceat(polygons.points, starts)
        return self.place((low + high) / 2)[1]


def _square_radian(latitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square metres of a radian of longitude times one of latitude, on the ellipsoid."""
    flattened = 1 - ECCENTRICITY**2
    radii = EQUATOR**2 * flattened / (1 - (ECCENTRICITY * np.sin(latitude)) ** 2) ** 2
    return radii * np.cos(latitude)


def select(
    polygons: Polygons, areas: NDArray[np.float64], *, min_area: float, fill_holes: float
) -> tuple[Polygons, NDArray[np.float64]]:
    """Polygons of at least `min_area`, without holes smaller than `fill_holes`; with their areas.

    areas: (R,) of the rings, in the unit of the limits, negative for holes.
    """
    count = len(polygons.classes)
    owner = np.repeat(np.arange(count), np.diff(polygons.polygons))
    whole = (areas > 0) | (-areas >= fill_holes)
    total = np.bincount(owner[whole], areas[whole], minlength=count).astype(np.float64)
    large = total >= min_area
    if whole.all() and large.all():
        return polygons, total
    rings = np.flatnonzero(whole & large[owner])
    found, offsets = expand(polygons.rings[rings], np.diff(polygons.rings)[rings])
    kept = Polygons(
        points=polygons.points[found],
        rings=offsets,
        polygons=np.append(0, np.cumsum(np.bincount(owner[rings], minlength=count)[large])),
        classes=polygons.classes[large],
        areas=polygons.areas[rings],
    )
    return kept, total[large]


# ------------------------------------------------------------------------------------------------- formats


class Format(Protocol):
    """A file format."""

    @property
    def needs_crs(self) -> bool:
        """Whether it can't hold pixel coordinates."""

    def write(
        self, path: Path, batches: pa.RecordBatchReader, *, layer: str, crs: CRS | None, geometry: str
    ) -> None:
        """All batches of a layer of one kind of geometry."""


@dataclass(frozen=True)
class Ogr:
    """A format that GDAL writes."""

    driver: str
    options: Mapping[str, str] = field(default_factory=dict)
    """GDAL's layer creation options."""
    verify_index: bool = False
    """GDAL says nothing when there is room for the polygons, but not for their spatial index."""
    needs_crs: bool = False

    def write(
        self, path: Path, batches: pa.RecordBatchReader, *, layer: str, crs: CRS | None, geometry: str
    ) -> None:
        """All batches of a layer of one kind of geometry."""
        import pyogrio
        from pyogrio.errors import DataLayerError, DataSourceError

        options = dict(self.options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")
            try:
                pyogrio.write_arrow(
                    batches, path, layer=layer, driver=self.driver, geometry_name=GEOMETRY,
                    geometry_type=geometry, crs=None if crs is None else crs.to_wkt(), layer_options=options,
                )  # fmt: skip
            except (DataLayerError, DataSourceError) as error:
                raise WriteError(f"can't write {path}: {error}") from error
        if self.verify_index and not pyogrio.read_info(path)["capabilities"]["fast_spatial_filter"]:
            raise WriteError(f"can't write {path}: no room for its spatial index")


@dataclass(frozen=True)
class GeoParquet:
    """GeoParquet 1.1, which GDAL's wheels can't write."""

    needs_crs: bool = False

    def write(
        self, path: Path, batches: pa.RecordBatchReader, *, layer: str, crs: CRS | None, geometry: str
    ) -> None:
        """All batches of a layer of one kind of geometry."""
        import pyarrow.parquet

        column = {
            "encoding": "WKB",
            "geometry_types": [geometry],
            "crs": None if crs is None else crs.to_dict(projjson=True),
            "orientation": "counterclockwise",
        }
        geo = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
        schema = batches.schema.remove_metadata().with_metadata({"geo": json.dumps(geo)})
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as file:
            for batch in batches:
                file.write_batch(batch.replace_schema_metadata(schema.metadata))


FORMATS: dict[str, Format] = {
    ".gpkg": Ogr("GPKG", verify_index=True),
    ".fgb": Ogr("FlatGeobuf"),
    ".parquet": GeoParquet(),
    # RFC 7946: longitude and latitude of WGS 84 with 7 decimals, counterclockwise, cut at the antimeridian
    ".geojson": Ogr("GeoJSON", {"RFC7946": "YES"}, needs_crs=True),
}
"""By suffix."""


def find_format(path: Path, crs: CRS | None) -> Format:
    """The format of a file name, for a scene with or without a CRS."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        near = nearest(suffix, FORMATS)
        hint = f" (did you mean '{near}'?)" if near else ""
        raise ConfigError(
            f"{path}: '{suffix}' is no suffix of vectors{hint}; allowed are {', '.join(FORMATS)}"
        )
    if crs is None and FORMATS[suffix].needs_crs:
        others = ", ".join(name for name, kind in FORMATS.items() if not kind.needs_crs)
        raise DataError(
            f"{path}: the scene has no CRS, and GeoJSON holds longitudes and latitudes; {others} can do without"
        )
    return FORMATS[suffix]


# --------------------------------------------------------------------------------------------------- files


def _require() -> Any:
    """pyarrow; an error that says what to install if one of the packages for vectors is missing."""
    try:
        import pyarrow.ipc
        import pyogrio  # noqa: F401
        import shapely  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"vectors need pip install 'visionsft[vectors]' ({error})") from error
    return pyarrow


@contextmanager
def _no_journal(path: Path) -> Iterator[None]:
    """Removes what SQLite leaves beside a file that it couldn't finish."""
    try:
        yield
    finally:
        for journal in path.parent.glob(f"{path.name}-*"):
            journal.unlink()
