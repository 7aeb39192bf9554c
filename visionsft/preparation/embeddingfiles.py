"""Embedding files: rows of places and vectors, written as they come and read again a few at a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Protocol
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from datamodules import DataError
from datamodules.raster import LONLAT, Grid
from visionsft.errors import ConfigError, first_line, nearest
from visionsft.files import atomic_path

MARK = "visionsft.embeddings"
"""Key of the metadata by which a file of ours is known."""
GROUP_ROWS = 1024
"""Rows that are held before they are written..."""
GROUP_MB = 32
"""...or as many as take this."""


@dataclass(frozen=True)
class Place:
    """Where a vector comes from."""

    id: str
    """Unique: the path of the file, or of a sample below the data's root, and the window's corner."""
    path: str
    group: str
    """The scene or drive."""
    label: str
    """The class, where it is known."""
    row: int
    col: int
    height: int
    width: int
    """The window, in pixels of the scene's file; of a frame in pixels as the model sees it."""
    valid: float = 1.0
    """Share of its pixels."""


COLUMNS = tuple(each.name for each in fields(Place))


@dataclass(frozen=True)
class Rows:
    """Some embeddings."""

    places: list[Place]
    vectors: NDArray[np.float32]
    """(N, D)."""
    grids: list[Grid | None]
    """N: where the pixels of each place's file lie on the ground."""


class Writer(Protocol):
    """Takes rows until it is closed."""

    def add(self, rows: Rows) -> None:
        """The next rows."""

    def close(self) -> None:
        """Nothing comes any more."""


def common_crs(grids: Sequence[Grid | None]) -> CRS | None:
    """In which footprints are written: that of all grids, longitude and latitude if they differ, None without any."""
    found = {grid.crs.to_wkt(): grid.crs for grid in grids if grid is not None and grid.crs is not None}
    return LONLAT if len(found) > 1 else next(iter(found.values()), None)


def outline(place: Place, grid: Grid | None, crs: CRS) -> NDArray[np.float64] | None:
    """(5, 2) x, y of the corners of a place's window, counterclockwise on a map with north up; None off the ground."""
    if grid is None or grid.crs is None:
        return None
    rows = np.array([0, 1, 1, 0, 0]) * place.height + place.row
    cols = np.array([0, 0, 1, 1, 0]) * place.width + place.col
    t = grid.transform
    x, y = t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f
    if grid.crs != crs:
        x, y = (np.array(values) for values in transform_points(grid.crs, crs, x, y))
    return np.stack([x, y], axis=1)


# -------------------------------------------------------------------------------------------------- parquet


class ParquetRows:
    """A Parquet file, GeoParquet 1.1 where there is a CRS; in row groups."""

    def __init__(self, path: Path, *, channels: int, crs: CRS | None, identity: dict[str, str]) -> None:
        arrow = _require()
        self._arrow, self._crs, self._channels = arrow, crs, channels
        kinds = {str: arrow.string(), int: arrow.int32(), float: arrow.float32()}
        types = {"row": int, "col": int, "height": int, "width": int, "valid": float}
        columns = [(name, kinds[types.get(name, str)]) for name in COLUMNS]
        columns.append(("embedding", arrow.list_(arrow.float32(), channels)))
        metadata = {MARK: json.dumps(identity)}
        if crs is not None:
            columns.append(("geometry", arrow.binary()))
            metadata["geo"] = json.dumps(_geo(crs))
        self._schema = arrow.schema(columns, metadata=metadata)
        vectors = ["embedding.list.element"]
        self._file = arrow.parquet.ParquetWriter(
            path, self._schema, compression="zstd", use_dictionary=["path", "group", "label"],
            use_byte_stream_split=vectors,
        )  # fmt: skip
        self._waiting: list[Rows] = []

    def add(self, rows: Rows) -> None:
        self._waiting.append(rows)
        count = sum(len(each.places) for each in self._waiting)
        if count >= min(GROUP_ROWS, max(1, GROUP_MB * 2**20 // (4 * self._channels))):
            self._write()

    def close(self) -> None:
        if self._waiting:
            self._write()
        self._file.close()

    def _write(self) -> None:
        places = [place for rows in self._waiting for place in rows.places]
        grids = [grid for rows in self._waiting for grid in rows.grids]
        vectors = np.concatenate([rows.vectors for rows in self._waiting])
        values: dict[str, Any] = {name: [getattr(place, name) for place in places] for name in COLUMNS}
        flat = self._arrow.array(vectors.ravel(), self._arrow.float32())
        values["embedding"] = self._arrow.FixedSizeListArray.from_arrays(flat, self._channels)
        if self._crs is not None:
            pairs = zip(places, grids, strict=True)
            values["geometry"] = [_to_wkb(outline(*pair, self._crs)) for pair in pairs]
        self._file.write_table(self._arrow.table(values, schema=self._schema))
        self._waiting = []


def _geo(crs: CRS) -> dict[str, Any]:
    column = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs.to_dict(projjson=True)}
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _to_wkb(corners: NDArray[np.float64] | None) -> bytes | None:
    """A polygon of one ring, little-endian."""
    if corners is None:
        return None
    head = b"\x01" + np.array([3, 1, len(corners)], "<u4").tobytes()
    return head + corners.astype("<f8").tobytes()


def _require() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"Parquet needs pip install 'visionsft[vectors]' ({error}); .npz doesn't") from error
    return pyarrow


# ------------------------------------------------------------------------------------------------------ npz


class NpzRows:
    """NumPy's archive: an array for each column, and "embedding" (N, D) float32. Vectors wait in a file beside it."""

    def __init__(self, path: Path, *, channels: int, crs: CRS | None, identity: dict[str, str]) -> None:
        self._path, self._channels, self._crs, self._identity = path, channels, crs, identity
        self._vectors = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 (closed by `close`)
        self._places: list[Place] = []
        self._corners: list[NDArray[np.float64]] = []

    def add(self, rows: Rows) -> None:
        self._vectors.write(np.ascontiguousarray(rows.vectors, np.float32).data)
        self._places += rows.places
        if self._crs is not None:
            off = np.full((5, 2), np.nan)
            outlines = (outline(*pair, self._crs) for pair in zip(rows.places, rows.grids, strict=True))
            self._corners += [off if corners is None else corners for corners in outlines]

    def close(self) -> None:
        with self._vectors:
            self._vectors.flush()
            shape = (len(self._places), self._channels)
            vectors: Any = np.empty(shape, np.float32)
            if self._places:
                vectors = np.memmap(self._vectors, np.float32, mode="r", shape=shape)
            columns: Any = {name: np.array([getattr(each, name) for each in self._places]) for name in COLUMNS}
            if self._crs is not None:
                columns |= {"footprint": np.array(self._corners), "crs": np.array(self._crs.to_wkt())}
            with open(self._path, "wb") as file:
                columns |= {MARK: np.array(json.dumps(self._identity)), "embedding": vectors}
                np.savez(file, **columns)


FILES: dict[str, Any] = {".parquet": ParquetRows, ".npz": NpzRows}
"""Writers by suffix."""


@contextmanager
def open_writer(path: Path, *, channels: int, crs: CRS | None, identity: dict[str, str]) -> Iterator[Writer]:
    """A writer of a file that is there, complete, when the block ends well, and isn't otherwise."""
    with atomic_path(path) as temporary:
        writer: Writer = FILES[path.suffix.lower()](temporary, channels=channels, crs=crs, identity=identity)
        try:
            yield writer
        finally:
            writer.close()


# -------------------------------------------------------------------------------------------------- reading


class EmbeddingFile:
    """A file that `embed` has written, read in pieces."""

    def __init__(self, path: str | Path) -> None:
        """A DataError says what is wrong with a file that isn't one."""
        self.path = Path(path)
        if not self.path.is_file():
            there = self.path.parent.iterdir() if self.path.parent.is_dir() else ()
            near = nearest(self.path.name, [each.name for each in there])
            raise DataError(f"{self.path}: no such file" + (f"; nearest: {self.path.with_name(near)}" if near else ""))
        suffix = self.path.suffix.lower()
        if suffix not in FILES:
            raise DataError(f"{self.path}: embeddings are read from {' and '.join(FILES)} files")
        self.identity, self.count, self.channels = (self._open_parquet if suffix == ".parquet" else self._open_npz)()

    def __len__(self) -> int:
        return self.count

    def pieces(self) -> Iterator[tuple[list[Place], NDArray[np.float32]]]:
        """Places and vectors (n, D), some rows at a time."""
        if self.path.suffix.lower() == ".npz":
            yield from self._npz_pieces()
            return
        with _require().parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(GROUP_ROWS, columns=[*COLUMNS, "embedding"]):
                vectors = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(-1, self.channels)
                columns = [batch[name].to_pylist() for name in COLUMNS]
                yield [Place(*values) for values in zip(*columns, strict=True)], vectors

    def _open_parquet(self) -> tuple[dict[str, str], int, int]:
        arrow = _require()
        try:
            with arrow.parquet.ParquetFile(self.path) as file:
                schema, count = file.schema_arrow, file.metadata.num_rows
        except (arrow.ArrowInvalid, OSError) as error:
            raise DataError(f"{self.path}: is no Parquet file, or a truncated one ({first_line(error)})") from error
        mark = (schema.metadata or {}).get(MARK.encode())
        if mark is None or not {*COLUMNS, "embedding"} <= set(schema.names):
            raise DataError(f"{self.path}: was not made by `visionsft embed` (columns: {', '.join(schema.names[:12])})")
        return json.loads(mark), count, schema.field("embedding").type.list_size

    def _open_npz(self) -> tuple[dict[str, str], int, int]:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                names = set(file.files)
                identity = str(file[MARK]) if {MARK, *COLUMNS, "embedding"} <= names else None
        except (ValueError, OSError, EOFError, BadZipFile) as error:
            raise DataError(f"{self.path}: is no .npz file, or a truncated one ({first_line(error)})") from error
        if identity is None:
            raise DataError(f"{self.path}: was not made by `visionsft embed` (in it: {', '.join(sorted(names))})")
        with self._npz_vectors() as (_, shape):
            return json.loads(identity), *shape

    @contextmanager
    def _npz_vectors(self) -> Iterator[tuple[IO[bytes], tuple[int, int]]]:
        """The vectors' bytes, row after row, and their shape."""
        with ZipFile(self.path) as archive, archive.open("embedding.npy") as file:
            np.lib.format.read_magic(file)
            (count, channels), _, _ = np.lib.format.read_array_header_1_0(file)
            yield file, (count, channels)

    def _npz_pieces(self) -> Iterator[tuple[list[Place], NDArray[np.float32]]]:
        with np.load(self.path, allow_pickle=False) as file:
            columns = [file[name].tolist() for name in COLUMNS]
        with self._npz_vectors() as (file, _):
            for start in range(0, self.count, GROUP_ROWS):
                some = slice(start, start + GROUP_ROWS)
                places = [Place(*values) for values in zip(*(column[some] for column in columns), strict=True)]
                vectors = np.frombuffer(file.read(4 * self.channels * len(places)), np.float32)
                yield places, vectors.reshape(-1, self.channels)
