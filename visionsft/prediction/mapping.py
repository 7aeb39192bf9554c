"""Mapping: one scene from its file to finished maps, by a trained run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image

from datamodules import DataError, GeoTiffDataModule
from datamodules.raster import LONLAT, Pool, read_thumbnail
from visionsft.errors import ConfigError, nearest
from visionsft.evaluation.metrics import predict_classes
from visionsft.evaluation.operating import AppliedPoint
from visionsft.evaluation.pictures import display
from visionsft.evaluation.pictures import overlay as draw_overlay
from visionsft.evaluation.temperature import load_temperature
from visionsft.files import atomic_path
from visionsft.models.views import average_views
from visionsft.prediction.backends import Backend, Choice, choose_backend, create_backend
from visionsft.prediction.blending import Grid
from visionsft.prediction.inputs import stem
from visionsft.prediction.maps import MapWriter, legends
from visionsft.prediction.scenes import (
    CACHE_BYTES,
    LAYERS,
    Band,
    SceneSource,
    blend_tiles,
    first_tile,
    make_layers,
    row_bands,
)
from visionsft.prediction.tiling import batch_size, fitting, plan_tiles
from visionsft.prediction.vectorising import VectorOptions, find_format, open_polygons
from visionsft.runs import Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

LayerName = Literal["classes", "probability", "confidence", "entropy"]
SHOWN = 2048
"""Longer side of an overlay, in pixels, at most."""
CHOICE_PIXELS = 8 * 1024 * 1024
"""Of a scene from which on trying all backends pays."""


@dataclass(frozen=True)
class SceneOptions:
    """What is made of a scene, and how."""

    layers: tuple[LayerName, ...] = ("classes",)
    """Kinds of maps; the class map is always made."""
    vectors: str | None = None
    """Suffix of the format in which polygons are written, too: .gpkg, .fgb, .parquet or .geojson."""
    polygons: VectorOptions = VectorOptions()  # noqa: RUF009 (frozen)
    """Which, and how exactly."""
    tile: int | None = None
    overlap: int | None = None
    """Of the tiles, in the model's pixels; None: what the run's configuration says, else chosen."""

    backend: Choice = "auto"
    """What computes: see `visionsft.prediction.backends`."""

    def __post_init__(self) -> None:
        if self.vectors is not None:
            find_format(Path(f"map{self.vectors}"), LONLAT)
        for name in self.layers:
            if name not in LAYERS:
                hint = nearest(name, LAYERS)
                nearby = f" (nearest: {hint})" if hint else ""
                raise ConfigError(f"layer '{name}': no such map; there are {', '.join(LAYERS)}{nearby}")
        if "classes" not in self.layers:
            object.__setattr__(self, "layers", ("classes", *self.layers))


class ScenePredictor:
    """A trained GeoTIFF run, ready for scenes of any size."""

    suffixes: ClassVar[tuple[str, ...]] = (".tif", ".tiff", ".vrt", ".jp2")
    """Of scenes in a folder."""

    def __init__(
        self,
        loaded: LoadedRun,
        options: SceneOptions = SceneOptions(),
        *,
        overlay: bool = False,
        point: AppliedPoint | None = None,
    ) -> None:
        """overlay: also draw the classes over the picture, as a JPEG of at most 2048 pixels a side.
        point: the thresholds by which classes are decided; none: the most probable class.
        """
        if not isinstance(loaded.data, GeoTiffDataModule):
            raise DataError(f"{loaded.run.path}: was trained on camera frames; scenes need a run of GeoTIFFs")
        self.loaded = loaded
        self.data = loaded.data
        self.options = options
        self.overlay = overlay
        self.point = point
        options.polygons.chosen(loaded.data.classes.names)
        self.num_classes = len(self.data.classes)
        self.note = ""
        """Which backend was chosen, and why."""
        self._backend: Backend | None = None

    def targets(self, path: str, out: Path) -> dict[str, Path]:
        """The files that a scene becomes, by kind of result."""
        name = stem(path)
        files: dict[str, Path] = {layer: out / f"{name}_{layer}.tif" for layer in self.options.layers}
        files["classes"] = out / f"{name}.tif"
        if self.options.vectors is not None:
            files["vectors"] = out / f"{name}{self.options.vectors}"
        return files | ({"overlay": out / f"{name}_overlay.jpg"} if self.overlay else {})

    def open(self, path: str) -> SceneSource:
        """Reads the header and looks at some values; refuses what doesn't fit the run."""
        scene = self.data.prediction_scene(path)
        if self.options.vectors is not None:
            find_format(Path(f"map{self.options.vectors}"), scene.header.grid.crs)
        return SceneSource(scene, self.data.normalisation)

    def plan(self, source: SceneSource) -> Grid:
        """The tiles over a scene."""
        own = {"tile": self.options.tile, "overlap": self.options.overlap}
        tiles = {**self.loaded.tiles, **{name: value for name, value in own.items() if value is not None}}
        return plan_tiles(self.loaded.model, self.data, source.shape, step=source.step, **tiles)

    def bands(
        self, source: SceneSource, grid: Grid, *, first: int = 0, last: int | None = None
    ) -> Iterator[Band]:
        """Finished rows of the maps, from row `first` of the grid to before row `last`."""
        layers = make_layers(
            self.options.layers,
            num_classes=self.num_classes,
            temperature=self.temperature,
            decide=self.point.decide if self.point else predict_classes,
        )
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
            whole = fitting(self.backend(source, grid), self.loaded.model, self.data)
            pieces = blend_tiles(
                source,
                partial(average_views, whole, **self.loaded.views),
                grid,
                num_classes=self.num_classes,
                batch=batch_size(grid),
                first=first,
                last=last,
                device=next(self.loaded.model.parameters()).device,  # once the backend has moved it
            )
            yield from row_bands(pieces, layers, width=grid.cols.length)

    @cached_property
    def temperature(self) -> float:
        """Fitted by `visionsft calibrate`, where probabilities are written; it changes no class."""
        return 1.0 if self.options.layers == ("classes",) else load_temperature(self.loaded.run)

    def backend(self, source: SceneSource, grid: Grid) -> Backend:
        """The backend, chosen on the first scene that is large enough for the choice to pay."""
        if self._backend is not None:
            return self._backend
        wanted = self.options.backend
        if wanted != "auto":
            self._backend = create_backend(self.loaded, wanted)
            return self._backend
        probe = first_tile(source, grid) if grid.pixels >= CHOICE_PIXELS else None
        if probe is None:
            return create_backend(self.loaded, "torch")
        probe = probe.repeat(batch_size(grid), 1, 1, 1)
        self._backend, self.note = choose_backend(self.loaded, wanted, probe)
        if self.note.startswith("!!"):
            warnings.warn(self.note, stacklevel=2)
        return self._backend

    def predict(self, path: str, targets: dict[str, Path], *, overwrite: bool) -> str:
        """Make a scene's files; an interrupted attempt with the same settings is continued. Returns a remark."""
        del overwrite  # each file takes the place of an old one once it is complete
        source = self.open(path)
        grid = self.plan(source)
        with self.writer(path, source, grid, targets) as writer:
            for band in self.bands(source, grid, first=grid.rows.index(writer.rows)):
                writer.add(band)
                del band  # before the next one grows
            self.finish(source, writer, targets)
        return remark(source)

    def writer(self, path: str, source: SceneSource, grid: Grid, targets: dict[str, Path]) -> MapWriter:
        """Where the bands of a scene go until it is finished."""
        folder = targets["classes"].with_name(f".{targets['classes'].stem}.partial")
        return MapWriter(
            folder,
            grid=source.scene.header.grid,
            legends=legends(self.options.layers, self.data.classes, note=self.point.as_dict() if self.point else None),
            key=self._key(path, source, grid),
        )

    def finish(self, source: SceneSource, writer: MapWriter, targets: dict[str, Path]) -> None:
        """The files under their final names, the class map last: it stands for a complete set."""
        if "overlay" in targets:
            self._draw(source, writer.thumbnail("classes", SHOWN), targets["overlay"])
        if "vectors" in targets:
            self._outline(source, writer, targets["vectors"])
        names = sorted(self.options.layers, key=lambda name: name == "classes")
        writer.finish({name: targets[name] for name in names})

    def _key(self, path: str, source: SceneSource, grid: Grid) -> dict[str, object]:
        """What the maps depend on."""
        checkpoint = self.loaded.run.checkpoint("best").stat()
        return {
            "checkpoint": [checkpoint.st_size, checkpoint.st_mtime_ns],
            "scene": path,
            "state": [list(each) for each in source.scene.header.state],
            "grid": asdict(grid),
            "layers": self.options.layers,
            "views": self.loaded.views,
            "temperature": self.temperature,
            "backend": self.backend(source, grid).name,
            "operating_point": self.point and self.point.as_dict(),
        }

    def _outline(self, source: SceneSource, writer: MapWriter, target: Path) -> None:
        ground = source.scene.header.grid
        names, options = self.data.classes.names, self.options.polygons
        scene = source.scene.header.path
        with open_polygons(
            target, transform=ground.transform, crs=ground.crs, names=names, options=options, scene=scene
        ) as polygons:
            for row, rows in writer.read_classes():
                polygons.add(row, rows)

    def _draw(self, source: SceneSource, classes: NDArray[np.uint8], target: Path) -> None:
        scene = source.scene
        file = Pool().file(scene.header.path)
        raster = read_thumbnail(
            file, bands=scene.bands, nodata=scene.nodata, masked=scene.header.masked, side=SHOWN
        )
        data = self.data
        picture = display(
            data.normalisation(raster.values, raster.valid),
            mean=data.normalisation.mean,
            std=data.normalisation.std,
            bands=data.bands,
            eight_bit=scene.header.dtype == np.uint8,
            valid=raster.valid,
        )
        with atomic_path(target) as temporary:
            Image.fromarray(draw_overlay(picture, classes, data.classes.colours)).save(temporary, quality=92)


def remark(source: SceneSource) -> str:
    """What the user should know about a scene that was mapped."""
    return "" if source.scene.header.grid.crs else "has no CRS: its map is in pixels"


def predict_scene(
    run: LoadedRun | Run | str | Path,
    path: str | Path,
    out: str | Path,
    *,
    overlay: bool = False,
    options: SceneOptions = SceneOptions(),
) -> dict[str, Path]:
    """Map one scene of any size into the folder `out`; returns the files by kind of result, "classes" first.

    run: a run, its folder, or a `load_run` of it. Files that exist are replaced once the new ones are complete.
    """
    predictor = ScenePredictor(_load(run), options, overlay=overlay)
    targets = predictor.targets(str(path), Path(out))
    predictor.predict(str(path), targets, overwrite=True)
    return targets


def scene_bands(
    run: LoadedRun | Run | str | Path,
    path: str | Path,
    *,
    options: SceneOptions = SceneOptions(),
) -> Iterator[Band]:
    """The finished rows of a scene's maps, from top to bottom, as they are computed; nothing is written."""
    predictor = ScenePredictor(_load(run), options)
    source = predictor.open(str(path))
    yield from predictor.bands(source, predictor.plan(source))


def _load(run: LoadedRun | Run | str | Path) -> LoadedRun:
    from visionsft.training.loading import LoadedRun, load_run  # imported late, as in visionsft.evaluation

    if isinstance(run, LoadedRun):
        return run
    return load_run(run if isinstance(run, Run) else Run.open(run), "best")
