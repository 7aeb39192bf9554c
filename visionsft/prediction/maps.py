"""Maps: what a prediction leaves behind, written row band by row band and finished as Cloud-Optimised GeoTIFFs.

Until a scene is finished its maps are plain bytes in a folder of their own, ``.<stem>.partial``, beside where they
will be: Python sees a disk that fills, and a killed prediction goes on after the last band that was noted there.
Then they are halved until they are small, and GDAL turns all sizes into GeoTIFFs, a window at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from datamodules import Classes
from datamodules.batch import IGNORE
from datamodules.raster import Grid
from visionsft.errors import WriteError
from visionsft.files import atomic_path, disk_trouble, free_bytes, write_text
from visionsft.prediction.overviews import Halve, halve_classes, halve_shares, overview_sizes, write_half
from visionsft.prediction.scenes import FULL, Band

BLOCK = 512
"""Side of the finished files' tiles."""
CACHE_BYTES = 64 * 2**20
"""GDAL's, while it finishes a file."""
LEVEL = 5
"""Of deflate. With GDAL's own, 6, it takes twice as long, and a Landsat scene's class map is a tenth smaller."""


@dataclass(frozen=True)
class Legend:
    """What a layer's bands are, for whoever opens the file."""

    names: tuple[str, ...]
    """Of its bands."""
    classes: Classes | None
    """For a map of classes: its colours and names."""
    note: str | None = None
    """JSON of the operating point by which classes were decided."""

    @property
    def halve(self) -> Halve:
        """How pixels are made coarser: the most frequent class, the mean of all else."""
        return halve_classes if self.classes is not None else halve_shares


def legends(
    layers: Sequence[str], classes: Classes, *, note: Mapping[str, object] | None = None
) -> dict[str, Legend]:
    """Of each layer of `visionsft.prediction.scenes.make_layers`; note: see `Legend`."""
    return {
        name: Legend(
            names=classes.names if name == "probability" else ("class" if name == "classes" else name,),
            classes=classes if name == "classes" else None,
            note=json.dumps(note) if note and name == "classes" else None,
        )
        for name in layers
    }


class MapWriter:
    """The unfinished maps of one scene; a context manager that keeps them when it is left early."""

    def __init__(
        self, folder: Path, *, grid: Grid, legends: Mapping[str, Legend], key: Mapping[str, object]
    ) -> None:
        """key: all that the maps depend on; bands of an earlier attempt with the same key are kept."""
        self.folder = folder
        self.grid = grid
        self.legends = legends
        self.key = dict(key)
        self.rows = 0
        """Complete so far: the next band's first row."""
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> MapWriter:
        with self._trouble():
            self.rows = self._rows_of_before()
            if self.rows == 0:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_small_disk()
            for name in self.legends:
                path = self._raw(name)
                path.touch()
                self._files[name] = open(path, "r+b")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def _refuse_small_disk(self) -> None:
        """Better now than after an hour."""
        rows = sum(len(legend.names) for legend in self.legends.values()) * (self.grid.height - self.rows)
        needed, free = rows * self.grid.width, free_bytes(self.folder)
        if needed > free:
            raise WriteError(
                f"{self.folder}: needs {needed / 1e6:,.1f} MB, but {free / 1e6:,.1f} MB are free on that disk"
            )

    def add(self, band: Band) -> None:
        """The next rows. When this returns they outlive a kill of the process."""
        assert band.row == self.rows, f"row {band.row} comes after row {self.rows}"
        with self._trouble():
            for name, file in self._files.items():
                for index, plane in enumerate(band.maps[name]):
                    file.seek((index * self.grid.height + band.row) * self.grid.width)
                    file.write(plane.data)
                file.flush()
            self.rows += next(iter(band.maps.values())).shape[1]
            write_text(self._state, json.dumps({**self.key, "rows": self.rows}))

    def thumbnail(self, name: str, side: int) -> NDArray[np.uint8]:
        """A one-band layer in at most side x side pixels, as (h, w): the nearest of its own."""
        height, width = self.grid.height, self.grid.width
        share = min(1.0, side / max(height, width))
        rows, cols = (_centres(length, max(1, round(length * share))) for length in (height, width))
        raw = np.memmap(self._raw(name), np.uint8, mode="r", shape=(height, width))
        return np.stack([raw[row][cols] for row in rows])

    def read_classes(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The finished class map from top to bottom: first row, (h, W)."""
        step = max(1, BLOCK * BLOCK // self.grid.width)
        with open(self._raw("classes"), "rb") as file:
            for row in range(0, self.grid.height, step):
                rows = np.frombuffer(file.read(step * self.grid.width), np.uint8)
                yield row, rows.reshape(-1, self.grid.width)

    def finish(self, targets: Mapping[str, Path]) -> None:
        """Every layer as a Cloud-Optimised GeoTIFF under its final name; the folder goes."""
        assert self.rows == self.grid.height, f"{self.rows} of {self.grid.height} rows"
        for name, target in targets.items():
            with self._trouble():
                source = self._describe(name)
            write_cog(source, target)
        shutil.rmtree(self.folder)

    def _describe(self, name: str) -> Path:
        """A file that GDAL opens as the layer with its overviews, which are written beside it."""
        legend, grid = self.legends[name], self.grid
        sizes = [(grid.height, grid.width), *overview_sizes(grid.height, grid.width, smallest=BLOCK)]
        raws = [self._raw(name), *(self._raw(f"{name}.{level}") for level in range(1, len(sizes)))]
        for size, raw, half in zip(sizes, raws, raws[1:], strict=False):
            write_half(raw, half, (len(legend.names), *size), legend.halve)
        smaller: list[str] = []
        for size, raw in zip(sizes[1:], raws[1:], strict=True):
            ground = replace(grid, height=size[0], width=size[1], crs=None, transform=Affine.identity())
            smaller.append(f"{raw.stem}.vrt")
            write_text(self.folder / smaller[-1], _virtual(raw.name, ground, legend))
        source = self.folder / f"{name}.vrt"
        write_text(source, _virtual(raws[0].name, grid, legend, overviews=smaller))
        return source

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"

    def _raw(self, name: str) -> Path:
        return self.folder / f"{name}.raw"

    def _rows_of_before(self) -> int:
        """Rows that an interrupted attempt with this very key has completed."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            rows = state.pop("rows")
        except (OSError, ValueError, KeyError, AttributeError):
            return 0  # none, or cut off before its first band
        same = state == json.loads(json.dumps(self.key)) and all(
            self._raw(name).is_file() for name in self.legends
        )
        return int(rows) if same else 0

    def _trouble(self) -> AbstractContextManager[None]:
        return disk_trouble(self.folder)


def _centres(length: int, count: int) -> NDArray[np.int64]:
    """(count,) positions spread evenly over 0..length."""
    return ((np.arange(count) + 0.5) * (length / count)).astype(np.int64)


def write_cog(source: Path, target: Path, *, overviews: str | None = None) -> None:
    """What GDAL opens as `source` as a Cloud-Optimised GeoTIFF, streamed; complete, or not there.

    overviews: how GDAL makes them; None: those that `source` has.
    """
    made = {"overviews": "FORCE_USE_EXISTING"} if overviews is None else {"overview_resampling": overviews}
    with atomic_path(target) as path:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_DISABLE_READDIR_ON_OPEN="TRUE", GDAL_PAM_ENABLED="NO"):
            rasterio.shutil.copy(
                str(source), str(path), driver="COG", compress="DEFLATE", level=LEVEL, blocksize=BLOCK,
                num_threads="ALL_CPUS", bigtiff="IF_SAFER", **made,
            )  # fmt: skip
        _check_complete(path, target)


def _check_complete(path: Path, target: Path) -> None:
    """GDAL may close a file on a full disk without a word: look for the last block of each size of the picture."""
    try:
        with rasterio.open(path) as file:
            levels = [None, *range(len(file.overviews(1)))]
        for level in levels:
            options = {} if level is None else {"OVERVIEW_LEVEL": level}
            with rasterio.open(path, **options) as file:
                corner = ((file.height - 1, file.height), (file.width - 1, file.width))
                file.read(window=corner)
    except RasterioError as error:
        raise WriteError(f"{target}: could not be written completely ({error})") from error


def _virtual(raw: str, grid: Grid, legend: Legend, *, overviews: Sequence[str] = ()) -> str:
    """The VRT that tells GDAL what the bytes are. overviews: VRTs of the same in smaller, beside it."""
    bands = "".join(_virtual_band(raw, grid, legend, index, overviews) for index in range(len(legend.names)))
    place = ""
    if legend.note is not None:
        place += f'<Metadata><MDI key="operating_point">{escape(legend.note)}</MDI></Metadata>'
    if grid.crs is not None:
        place += f"<SRS>{escape(grid.crs.to_wkt())}</SRS>"
    if grid.transform != Affine.identity():
        place += f"<GeoTransform>{', '.join(map(repr, grid.transform.to_gdal()))}</GeoTransform>"
    return f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">{place}{bands}</VRTDataset>'


def _virtual_band(raw: str, grid: Grid, legend: Legend, index: int, overviews: Sequence[str]) -> str:
    parts = [
        f"<Description>{escape(legend.names[index])}</Description>",
        f"<NoDataValue>{IGNORE}</NoDataValue>",
    ]
    if legend.classes is not None:
        names = enumerate(legend.classes.names)
        tags = "".join(f"<MDI key={quoteattr(f'class_{k}')}>{escape(name)}</MDI>" for k, name in names)
        table = colour_table(legend.classes)
        entries = "".join(
            '<Entry c1="{}" c2="{}" c3="{}" c4="{}"/>'.format(*table.get(k, (0, 0, 0, 255)))
            for k in range(256)
        )
        parts += [f"<Metadata>{tags}</Metadata>", "<ColorInterp>Palette</ColorInterp>"]
        parts += [f"<ColorTable>{entries}</ColorTable>"]
    else:
        parts += [f"<Scale>{1 / FULL!r}</Scale>"]
    parts += [
        f'<Overview><SourceFilename relativeToVRT="1">{escape(each)}</SourceFilename>'
        f"<SourceBand>{index + 1}</SourceBand></Overview>"
        for each in overviews
    ]
    size = grid.height * grid.width
    return (
        f'<VRTRasterBand dataType="Byte" band="{index + 1}" subClass="VRTRawRasterBand">{"".join(parts)}'
        f'<SourceFilename relativeToVRT="1">{escape(raw)}</SourceFilename><ImageOffset>{index * size}</ImageOffset>'
        f"<PixelOffset>1</PixelOffset><LineOffset>{grid.width}</LineOffset></VRTRasterBand>"
    )


def colour_table(classes: Classes) -> dict[int, tuple[int, int, int, int]]:
    """Red, green, blue, alpha of every class; the value for 'no class' is transparent."""
    table = {index: (int(r), int(g), int(b), 255) for index, (r, g, b) in enumerate(classes.colours)}
    return {**table, IGNORE: (0, 0, 0, 0)}
