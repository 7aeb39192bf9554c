"""GeoTIFF scenes: a data module for rasters of any size, band count and number type, with their labels."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from torch.utils.data import Dataset

from datamodules.augment import Augment
from datamodules.batch import IGNORE, Item, Sample, Window
from datamodules.classes import Classes, ClassSpec, Value, legend_of_texts
from datamodules.datamodule import SegmentationDataModule, _check_choice
from datamodules.datasets import EvaluationDataset, RawSample
from datamodules.decoded import SIDE, DecodedScenes, Layout, open_decoded
from datamodules.errors import DataError
from datamodules.index import SceneIndex
from datamodules.labels import Labels, RasterLabels, VectorLabels, VectorOptions, is_vector, open_vectors
from datamodules.layouts import Listing, geotiff
from datamodules.raster import (
    Grid,
    Header,
    Pool,
    Raster,
    read_footprint,
    read_header,
    read_resampled,
    read_window,
)
from datamodules.sampling import ClassPositions, Region, WindowPlan
from datamodules.splits import (
    DriveSplit,
    FolderSplit,
    ListSplit,
    PlaceSplit,
    SceneSplit,
    Split,
    Splits,
    split_by_drive,
    split_by_folder,
    split_by_list,
    split_by_place,
    split_by_scene,
)
from datamodules.statistics import cached, fingerprint, load_arrays
from datamodules.supertiles import Store, SuperTilePlan
from datamodules.tiling import Tile, spread, tile, widen

if TYPE_CHECKING:
    from datamodules.vectors import VectorFiles

READ_SIDE = 512
"""Side of the windows in which whole scenes are read for statistics and checks."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Scene:
    """How a scene is read."""

    header: Header
    grid: Grid
    """On which its windows are counted: the file's own, or at another resolution."""
    bands: tuple[int, ...]
    """rasterio's numbers of the bands that the model sees, in the model's order."""
    nodata: float | None
    labels: Labels | None = None

    @property
    def may_be_invalid(self) -> bool:
        """Whether any pixel inside the scene can be invalid."""
        return self.nodata is not None or self.header.may_be_invalid

    @property
    def store(self) -> Store:
        """How windows are best read."""
        own = self.header.grid
        height = max(1, round(self.header.block[0] * self.grid.height / own.height))
        width = max(1, round(self.header.block[1] * self.grid.width / own.width))
        pixel = len(self.bands) * self.header.dtype.itemsize + 2
        return Store((height, width), (self.grid.height, self.grid.width), pixel).divided()


class SceneReader:
    """Reads windows of scenes with their labels; see `datamodules.datasets.Reader`."""

    def __init__(self, scenes: Mapping[str, Scene], decoded: DecodedScenes | None = None) -> None:
        """scenes: by path."""
        self.scenes = scenes
        self.decoded = decoded
        self.pool = Pool()

    def grid(self, item: Item) -> Grid:
        """Where the item's pixels lie on the ground."""
        whole = self.scenes[item.image].grid
        if item.window is None:
            return whole
        corner = whole.transform * whole.transform.translation(item.window.col, item.window.row)
        return Grid(item.window.height, item.window.width, corner, whole.crs)

    def read(self, item: Item) -> RawSample:
        """The item's window, in pixels of the scene's grid, or all of it."""
        if self.decoded is not None and item.image in self.decoded and item.window is not None:
            unlimited = replace(item, labelled=None)
            raw = self.decoded.read(
                item.image, item.window, lambda window: self._unpack(replace(unlimited, window=window))
            )
            if item.labelled is not None:
                raw.mask[_outside(item.labelled, item.window)] = IGNORE
            return raw
        return self._unpack(item)

    def _unpack(self, item: Item) -> RawSample:
        scene = self.scenes[item.image]
        raster = self._pixels(scene, item.window or scene.grid.window)
        mask = self._mask(scene, item)
        if not raster.valid.all():
            mask[~raster.valid] = IGNORE
        return RawSample(raster.values, raster.valid, mask)

    def read_mask(self, item: Item) -> np.ndarray:
        """(H, W) class indices; pixels are read only where the scene can have holes."""
        scene = self.scenes[item.image]
        return self.read(item).mask if scene.may_be_invalid else self._mask(scene, item)

    def read_footprint(self, item: Item) -> np.ndarray:
        """(h, w) bool: a coarse picture of the item's valid pixels."""
        scene = self.scenes[item.image]
        if not scene.may_be_invalid:
            return np.ones((1, 1), bool)
        own, region = scene.header.grid, item.window or scene.grid.window
        down, across = own.height / scene.grid.height, own.width / scene.grid.width
        top, left = int(region.row * down), int(region.col * across)
        height = min(max(1, round(region.height * down)), own.height - top)
        width = min(max(1, round(region.width * across)), own.width - left)
        return read_footprint(
            self.pool.file(item.image),
            Window(top, left, height, width),
            bands=scene.bands,
            nodata=scene.nodata,
            masked=scene.header.masked,
        )

    def _pixels(self, scene: Scene, window: Window) -> Raster:
        file, masked = self.pool.file(scene.header.path), scene.header.masked
        if scene.grid is scene.header.grid:
            return read_window(file, window, bands=scene.bands, nodata=scene.nodata, masked=masked)
        return read_resampled(file, scene.grid, window, bands=scene.bands, nodata=scene.nodata, masked=masked)

    def _mask(self, scene: Scene, item: Item) -> np.ndarray:
        window = item.window or scene.grid.window
        if scene.labels is None or item.label is None:
            return np.full((window.height, window.width), IGNORE, np.uint8)
        mask = scene.labels.read(window, self.pool)
        if item.labelled is not None:
            mask[_outside(item.labelled, window)] = IGNORE
        return mask


class GeoTiffDataModule(SegmentationDataModule):
    """Scenes and their labels below `root`: random windows to train on, a grid of windows to evaluate on."""

    _shares_reads = True
    """False: each training window is drawn and read alone, as a reference."""

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[ClassSpec],
        ignore: Sequence[Value] = (),
        images: str = "images/*.tif",
        labels: str = "labels/{name}.tif",
        vector: VectorOptions | None = None,
        split: Split = FolderSplit(),  # noqa: B008 (frozen)
        bands: Sequence[str] | None = None,
        use_bands: Sequence[str] | None = None,
        nodata: float | None = None,
        resolution: float | None = None,
        chip: int = 256,
        chips_per_epoch: int | None = None,
        eval_overlap: float = 0.0,
        min_valid: float = 0.1,
        augment: Augment = Augment("nadir", photometric=0.3),  # noqa: B008 (frozen)
        rare_class_crops: float = 0.0,
        normalise: Literal["weights", "data"] = "weights",
        scale: float | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        workers: int = 1,
        on_error: Literal["stop", "skip"] = "stop",
        seed: int = 0,
        cache_dir: str | Path | None = None,
        cache: Literal["none", "ram", "disk"] = "none",
        cache_limit: int | None = None,
    ) -> None:
        """images, labels: see `datamodules.layouts.geotiff.scan`; labels with the suffix of a vector file
        (.geojson, .gpkg, .shp, .fgb, .parquet) are shapes, whose classes' values are those of a column.
        vector: how these are read; default: VectorOptions().
        bands: names of the files' bands in order; default: from the files, else B1, B2...
        use_bands: bands that the model sees, in this order; default: all.
        nodata: overrides the files' nodata value. resolution: ground size of a pixel, in units of each
        scene's CRS, to which it is resampled (bilinear; labels: nearest).
        chip: side in pixels of training and evaluation windows; it replaces the augmentation's own crop.
        chips_per_epoch: default: enough to cover the valid training area once.
        min_valid: smallest share of valid pixels of a training window, except near sparse labels.
        rare_class_crops: share of training windows centred on a pixel of a class drawn uniformly.
        on_error: 'skip' reads every file once before training, and leaves out what fails.
        cache: where unpacked training scenes are kept, so that later epochs needn't unpack them again; scenes
        that are resampled aren't. cache_limit: bytes; default: half of what is free.
        """
        _check_choice("cache", cache, ("none", "ram", "disk"))
        super().__init__(
            root,
            chip=(chip, chip),
            augment=replace(augment, crop=(chip, chip)),
            rare_class_crops=rare_class_crops,
            samples_per_epoch=chips_per_epoch,
            min_valid=min_valid,
            normalise=normalise,
            scale=scale,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            workers=workers,
            on_error=on_error,
            seed=seed,
            cache_dir=cache_dir,
        )
        if not 0 <= eval_overlap < 1:
            raise DataError(f"eval_overlap is {eval_overlap:g}; allowed: from 0 to below 1")
        if vector is not None and not is_vector(labels):
            raise DataError(f"vector is for vector files only, but labels is {labels!r}")
        self.vector = (vector or VectorOptions()) if is_vector(labels) else None
        legend = None if self.vector is None else legend_of_texts(classes, ignore)
        self.classes = Classes(classes, ignore=ignore, legend=legend)
        self._as_given = tuple(classes), tuple(ignore)
        self.sparse = self.vector is not None and self.vector.background is None
        self.images = images
        self.labels = labels
        self.split = split
        self.band_names = bands
        self.use_bands = use_bands
        if use_bands is not None:
            self.bands = tuple(use_bands)
        self.nodata = nodata
        self.resolution = resolution
        self.cache = cache
        self.cache_limit = cache_limit
        self.eval_overlap = eval_overlap
        self._scenes: dict[str, Scene] = {}
        self._regions: list[Region] | None = None
        self._claimed: Counter[float] = Counter()
        self._faults: dict[str, Counter[str]] = {}
        self._files: VectorFiles | None = None

    def scan(self) -> None:
        """Finds, checks and splits the scenes, from the files' headers alone (unless on_error is 'skip')."""
        self.skipped, self.unmatched, self.notes = [], [], []
        self._regions, self._claimed, self._faults = None, Counter(), {}
        self._files = None if self.vector is None else open_vectors(self.vector, *self._as_given)
        folders = self._list()
        items = [item for group in folders.values() for item in group]
        self._index = SceneIndex(self._cache_path("index.json"))
        headers = self._each(items, lambda item: self._index.header(item.image, bands=self.band_names))
        self.bands = self._choose_bands(list(headers.values()))
        self.dtype = np.result_type(*(header.dtype for header in headers.values()))
        items = [item for item in items if item.id in headers]
        with_crs = sum(header.grid.crs is not None for header in headers.values())
        scenes = self._each(items, lambda item: self._labelled_scene(item, headers[item.id], with_crs))
        self._index.keep()
        self._scenes = {headers[id].path: scene for id, scene in scenes.items()}
        items = self._with_shapes([item for item in items if item.id in scenes])
        self.notes += [
            f"label value {value:g} is nodata in {count} label files, but listed as a class, so it is a class"
            for value, count in self._claimed.items()
        ]
        self.notes += _describe_faults(self._faults)
        bad = self._unreadable(items) if self.on_error == "skip" else {}
        self.skipped += [(item.image, bad[item.id]) for item in items if item.id in bad]
        usable = {item.id for item in items}.difference(bad)
        self.items = self._split(
            {name: [item for item in group if item.id in usable] for name, group in folders.items()}
        )
        if self.sparse:
            self._leave_out_unlabelled()
        if not self.items["train"]:
            raise DataError(f"{self.root}: no usable training scene is left{_listed(self.skipped)}")

    def prediction_dataset(self, paths: Sequence[str | Path]) -> EvaluationDataset:
        """Whole files, in the order given, bands found by name; `.reader.grid(item)`: where they lie."""
        if not hasattr(self, "bands"):
            self.scan()
        items = [Item(id=str(path), group=str(path), image=str(path)) for path in paths]
        scenes = {item.image: self._scene(self._header(item.image)) for item in items}
        reader = SceneReader(scenes)
        self._check_inputs(items, reader)
        return EvaluationDataset(items, reader=reader, normalisation=self.normalisation)

    def prediction_scene(self, path: str | Path) -> Scene:
        """How a scene of any size is read for prediction; refused if its values, looked at here and there, are
        far from those of training."""
        path = str(path)
        scene = self._scene(self._header(path))
        windows = spread(scene.grid.height, scene.grid.width, size=READ_SIDE // 2)
        items = [Item(id=path, group=path, image=path, window=window) for window in windows]
        self._check_inputs(items, SceneReader({path: scene}))
        return scene

    # ---------------------------------------------------------------- for the base

    def _reader(self) -> SceneReader:
        return SceneReader(self._scenes)

    def _training_regions(self) -> list[Region]:
        """Regions with any valid pixel; the others are named in `skipped`."""
        if self._regions is None:
            items = [
                replace(item, window=item.window or self._scenes[item.image].grid.window)
                for item in self.items["train"]
            ]
            regions = [_region(*pair) for pair in zip(items, self._footprints(items), strict=True)]
            if self.sparse:
                regions = [
                    replace(region, ground=self._scenes[region.item.image].grid.window) for region in regions
                ]
            empty = [region.item for region in regions if region.area == 0]
            self.skipped += [(item.image, f"{item.id}: has no valid pixel (all nodata)") for item in empty]
            self._regions = [region for region in regions if region.area > 0]
        if not self._regions:
            raise DataError(f"{self.root}: no training scene has a valid pixel{_listed(self.skipped)}")
        return self._regions

    def _training_reader(self) -> SceneReader:
        if self.cache == "none":
            return self._reader()
        facts = {"classes": self.classes.specs, "ignore": self.classes.ignore} | self._facts()
        layouts = {
            item.image: self._layout(item, facts)
            for item in self.items["train"]
            if self._scenes[item.image].grid is self._scenes[item.image].header.grid
        }
        decoded, notes = open_decoded(
            layouts, kind=self.cache, limit=self.cache_limit, folder=self._cache_path("decoded")
        )
        for note in notes:
            warnings.warn(note, stacklevel=2)
        return SceneReader(self._scenes, decoded)

    def _layout(self, item: Item, facts: Mapping[str, object]) -> Layout:
        scene = self._scenes[item.image]
        block = scene.header.block
        height = -(-SIDE // block[0]) * block[0]
        cell = (
            (max(1, SIDE * SIDE // block[1]), block[1])
            if scene.header.striped
            else (height, -(-SIDE // block[1]) * block[1])
        )
        paths = filter(None, (item.image, item.label))
        return Layout(
            key=fingerprint(
                [replace(item, window=None)], root=self.root, facts={**facts, "bands": scene.bands}
            )[:32],
            bands=len(scene.bands),
            height=scene.grid.height,
            width=scene.grid.width,
            dtype=scene.header.dtype,
            cell=cell,
            state=tuple((path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths),
        )

    def _plan(self, regions: list[Region], positions: ClassPositions | None) -> WindowPlan:
        if not self._shares_reads:
            return super()._plan(regions, positions)
        return SuperTilePlan(
            regions,
            [self._scenes[region.item.image].store for region in regions],
            size=self.augment.reach,
            length=self.samples_per_epoch or self._samples_to_cover(regions),
            batch_size=self.batch_size,
            min_valid=self.min_valid,
            positions=positions,
            rare_share=self.rare_class_crops,
        )

    def _windows(self, region: Region) -> list[Item]:
        pieces = self._pieces(replace(region.item, window=region.window))
        return pieces if region.ground is None else [self._widened(each, region.ground) for each in pieces]

    def _widened(self, piece: Item, ground: Window) -> Item:
        """A piece with the ground around it that training windows show, so that statistics are of that, too."""
        own = piece.window
        assert own is not None
        size = (max(own.height, self.chip[0]), max(own.width, self.chip[1]))
        whole = Tile(own, Window(0, 0, own.height, own.width))
        return replace(piece, window=widen(whole, size, ground).window, labelled=own)

    def _evaluation_dataset(self, split: str) -> Dataset[Sample]:
        pairs = [
            (
                replace(item, id=f"{item.id}@{each.window.row},{each.window.col}", window=each.window),
                each.core,
            )
            for item in self.items[split]
            for each in self._evaluation_tiles(item)
        ]
        return EvaluationDataset(
            [item for item, _ in pairs],
            reader=self._reader(),
            normalisation=self.normalisation,
            size=self.chip,
            cores=[core for _, core in pairs],
        )

    def evaluation_regions(self, split: str) -> list[tuple[Item, int]]:
        """The parts of scenes in a split, each with the number of its samples in the evaluation loader's order."""
        self._scan_once()
        return [(item, len(self._evaluation_tiles(item))) for item in self.items[split]]

    def _evaluation_tiles(self, item: Item) -> list[Tile]:
        """Windows whose cores cover the item; where labels are sparse, those with a label, and as much of the
        scene around it as a chip shows."""
        scene = self._scenes[item.image]
        tiles = tile(item.window or scene.grid.window, size=self.chip, overlap=self.eval_overlap)
        if not self.sparse or scene.labels is None:
            return tiles
        return [widen(each, self.chip, scene.grid.window) for each in tiles if scene.labels.touches(each.own)]

    def _outlines(self) -> list[dict[str, Any]]:
        reader = self._reader()
        grids = [(item.id, split, reader.grid(item)) for split, items in self.items.items() for item in items]
        return [
            {"id": id, "split": split, "outline": _outline(grid)} for id, split, grid in grids if grid.crs
        ]

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "nodata": self.nodata,
            "resolution": self.resolution,
            "names": self.band_names,
        }
        return facts if self.vector is None else facts | self._vector_facts()

    def _vector_facts(self) -> dict[str, object]:
        """Options, values, and the states of the files beside shapefiles, which hold column and CRS."""
        assert self.vector is not None
        scenes = [scene.labels for scene in self._scenes.values()]
        paths = {Path(labels.path) for labels in scenes if isinstance(labels, VectorLabels)}
        beside = [path.with_suffix(suffix) for path in sorted(paths) for suffix in (".dbf", ".prj", ".cpg")]
        states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in beside if path.is_file()]
        return {"vector": asdict(self.vector), "values": self._as_given, "beside": states}

    # ---------------------------------------------------------------- files

    def _list(self) -> dict[str, list[Item]]:
        """Items by split for a split by folder, else all together."""
        if not isinstance(self.split, FolderSplit):
            return {"all": self._accept(geotiff.scan(self.root, images=self.images, labels=self.labels))}
        if "{split}" not in self.images:
            raise DataError(
                f"split by folder needs '{{split}}' in images (now {self.images!r}), "
                "e.g. '{split}/images/*.tif'; or split by scene, list or place"
            )
        folders = {"train": self.split.train, "val": self.split.val, "test": self.split.test}
        found: dict[str, list[Item]] = {}
        for name, folder in folders.items():
            if folder is None:
                continue
            listing = geotiff.scan(self.root, images=self.images, labels=self.labels, folder=folder)
            usual = name != "train" and folder == getattr(FolderSplit, name)
            if usual and not listing.items and not listing.unmatched:
                self.notes.append(f"there is no folder '{folder}' with images: no {name} split is given")
                continue
            found[name] = self._accept(listing, folder)
        return found

    def _accept(self, listing: Listing, folder: str = "*") -> list[Item]:
        """The items of a listing; files without a partner stop, or are noted."""
        if listing.unmatched and self.on_error == "stop":
            raise DataError(
                f"{self.root}: {len(listing.images_without_label)} images without label and "
                f"{len(listing.labels_without_image)} labels without image, beside {len(listing.items)} pairs"
                f"{_listed([(path, 'no label') for path in listing.images_without_label])}"
                f"{_listed([(path, 'no image') for path in listing.labels_without_image])}"
                "\non_error: skip leaves them out"
            )
        self.unmatched += listing.unmatched
        if not listing.items:
            pattern = self.images.replace("{split}", folder)
            raise DataError(f"{self.root}: no image with a label matches {pattern!r}")
        return listing.items

    def _each(self, items: Sequence[Item], look: Callable[[Item], Found]) -> dict[str, Found]:
        """What `look` finds, by item id; items that it refuses stop, or are skipped and named."""
        found: dict[str, Found] = {}
        for item in items:
            try:
                found[item.id] = look(item)
            except DataError as error:
                if self.on_error == "stop":
                    raise
                self.skipped.append((item.image, str(error)))
        if not found:
            raise DataError(f"{self.root}: none of {len(items)} scenes can be used{_listed(self.skipped)}")
        return found

    def _unreadable(self, items: Sequence[Item]) -> dict[str, str]:
        """Reads every file whole: what is wrong, by item id; kept in the cache folder."""
        facts = {"classes": self.classes.specs, "ignore": self.classes.ignore, "bands": self.bands}
        key = fingerprint(items, root=self.root, facts=facts | self._facts())

        def build() -> dict[str, str]:
            reader = self._reader()
            problems = {}
            for item in items:
                try:
                    for piece in self._pieces(item):
                        reader.read(piece)
                except DataError as error:
                    problems[item.id] = str(error)
            return problems

        return cached(
            self._cache_path(f"unreadable-{key[:16]}.json"),
            build,
            load=_load_problems,
            save=lambda problems, file: file.write(json.dumps(problems).encode()),
        )

    def _pieces(self, item: Item) -> list[Item]:
        """An item in windows that suit the way its file is stored."""
        scene = self._scenes[item.image]
        window = item.window or scene.grid.window
        size = (READ_SIDE, READ_SIDE)
        if scene.header.striped:
            size = (max(1, READ_SIDE**2 // window.width), window.width)
        return [replace(item, window=each.own) for each in tile(window, size=size)]

    def _footprints(self, items: Sequence[Item]) -> list[np.ndarray]:
        """Which ground of each item is valid, kept in the cache folder."""
        reader = self._reader()
        if not any(self._scenes[item.image].may_be_invalid for item in items):
            return [reader.read_footprint(item) for item in items]
        return cached(
            self._cache_path(f"footprints-{self._fingerprint()[:16]}.npz"),
            lambda: [reader.read_footprint(item) for item in items],
            load=load_arrays,
            save=lambda arrays, file: np.savez_compressed(file, *arrays),
        )

    def _leave_out_unlabelled(self) -> None:
        """Items without a shape: nothing is learned and nothing is scored there."""
        for split, items in self.items.items():
            kept = [item for item in items if self._may_be_labelled(item)]
            if len(kept) < len(items):
                self.notes.append(f"{split}: {len(items) - len(kept)} of {len(items)} regions hold no shape")
            self.items[split] = kept

    def _may_be_labelled(self, item: Item) -> bool:
        scene = self._scenes[item.image]
        return scene.labels is not None and scene.labels.touches(item.window or scene.grid.window)

    # ---------------------------------------------------------------- scenes

    def _choose_bands(self, headers: Sequence[Header]) -> tuple[str, ...]:
        """`use_bands`, else the bands that most files have, in their order."""
        usual = Counter(header.names for header in headers).most_common(1)[0][0]
        if self.use_bands is None:
            return usual
        known = {name for header in headers for name in header.names}
        for band in self.use_bands:
            if band not in known:
                nearest = get_close_matches(band, known, n=1, cutoff=0.5)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise DataError(f"use_bands: no file has a band {band!r}; there are {', '.join(usual)}{hint}")
        return tuple(self.use_bands)

    def _header(self, path: str) -> Header:
        """Of a file to predict: its own band names count if they are those of training, in whatever order."""
        header = read_header(path)
        if self.band_names is None or set(self.bands) <= set(header.names):
            return header
        return read_header(path, bands=self.band_names)

    def _scene(self, header: Header) -> Scene:
        grid = header.grid
        if self.resolution is not None:
            if grid.crs is None:
                raise DataError(f"{header.path}: has no CRS, so it can't be resampled to a resolution")
            grid = grid.at_resolution(self.resolution)
        nodata = header.nodata if self.nodata is None else self.nodata
        return Scene(header=header, grid=grid, bands=header.select(self.bands), nodata=nodata)

    def _labelled_scene(self, item: Item, header: Header, with_crs: int) -> Scene:
        """with_crs: number of scenes that have a CRS."""
        if header.grid.crs is None and with_crs:
            raise DataError(f"{header.path}: has no CRS, but {with_crs} other scenes have one")
        assert item.label is not None
        scene = self._scene(header)
        return replace(scene, labels=self._labels(item.label, scene))

    def _labels(self, path: str, scene: Scene) -> Labels:
        if self._files is None:
            return self._raster_labels(path, scene)
        labels = VectorLabels(path, scene.grid, self._files)
        self._faults[path] = self._files.shapes(path).faults
        problem = labels.miss()
        if problem is not None and "{name}" in self.labels and not self._is_all_background(path):
            raise DataError(problem)
        return labels

    def _is_all_background(self, path: str) -> bool:
        """Whether a vector file without any shape says that its whole scene is background."""
        assert self.vector is not None
        assert self._files is not None
        return self.vector.background is not None and not len(self._files.shapes(path).geometries)

    def _with_shapes(self, items: list[Item]) -> list[Item]:
        """The items that a vector file labels: where it serves all scenes, those that hold a shape of it, or
        all of them if there is a background."""
        if self.vector is None or "{name}" in self.labels:
            return items
        labels = {item.id: self._scenes[item.image].labels for item in items}
        missed = {id: each.miss() for id, each in labels.items() if isinstance(each, VectorLabels)}
        kept = [item for item in items if missed[item.id] is None]
        if not kept:
            raise DataError(next(problem for problem in missed.values() if problem is not None))
        empty = len(items) - len(kept)
        if not empty:
            return items
        what = "left out" if self.vector.background is None else f"all '{self.vector.background}'"
        self.notes.append(f"{empty} of {len(items)} scenes hold no shape of {self.labels}: they are {what}")
        return kept if self.vector.background is None else items

    def _raster_labels(self, path: str, scene: Scene) -> RasterLabels:
        header = self._index.header(path)
        bands = 3 if self.classes.are_colours else 1
        if len(header.indexes) != bands:
            raise DataError(
                f"{header.path}: a label raster has {bands} band(s) here, this has {len(header.indexes)}"
            )
        nodata = header.nodata
        if nodata is not None and any(nodata in spec.values for spec in self.classes.specs):
            # the user says that this value is a class, the file that it is nothing: a class it is
            self._claimed[nodata] += 1
            nodata = None
        grid = _label_grid(header, scene.header)
        return RasterLabels(
            path=header.path,
            grid=grid,
            scene=scene.grid,
            aligned=grid.matches(scene.grid),
            bands=header.indexes,
            nodata=nodata,
            masked=header.masked,
            classes=self.classes,
        )

    # ---------------------------------------------------------------- splits

    def _split(self, folders: Mapping[str, list[Item]]) -> Splits:
        split, items = self.split, folders.get("all", [])
        if isinstance(split, FolderSplit):
            return split_by_folder(folders, val_fraction=split.val_fraction, seed=self.seed)
        if isinstance(split, ListSplit):
            return split_by_list(items, root=self.root, train=split.train, val=split.val, test=split.test)
        shares = {"val": split.val, "test": split.test}
        if isinstance(split, SceneSplit):
            return split_by_scene(items, **shares, seed=split.seed)
        if isinstance(split, DriveSplit):
            return split_by_drive(items, pattern=split.pattern, **shares, seed=split.seed)
        return self._split_by_place(items, split)

    def _split_by_place(self, items: Sequence[Item], split: PlaceSplit) -> Splits:
        grids = {item.image: self._scenes[item.image].grid for item in items}
        without = [path for path, grid in grids.items() if grid.crs is None]
        if without:
            raise DataError(f"{without[0]}: has no CRS, so it can't be split by place")
        splits, left_out = split_by_place(
            [self._labelled_part(item) for item in items] if self.sparse else items,
            grids,
            block=split.block,
            gap=split.gap,
            val=split.val,
            test=split.test,
            seed=split.seed,
            min_side=1 if self.sparse else self.chip[0] // 8,  # sparse: windows show what is around, too
            amount=self._count_labels if self.sparse else None,
        )
        kind = "pixels"
        if self.sparse:
            kept = sum(self._count_labels(item) for group in splits.values() for item in group)
            left_out, kind = 1 - kept / sum(map(self._count_labels, items)), "labelled pixels"
        if left_out > 0:
            self.notes.append(f"split by place: {left_out:.1%} of the {kind} lie in gaps or at blocks' edges")
        return splits

    def _labelled_part(self, item: Item) -> Item:
        labels = self._scenes[item.image].labels
        return item if labels is None else replace(item, window=labels.extent())

    def _count_labels(self, item: Item) -> int:
        """Labelled pixels."""
        return int((self._reader().read_mask(item) != IGNORE).sum()) if self._may_be_labelled(item) else 0


def _label_grid(label: Header, scene: Header) -> Grid:
    """The label raster's grid; one without CRS must have its scene's size, and has its grid."""
    own, grid = label.grid, scene.grid
    if own.crs is None and (own.height, own.width) == (grid.height, grid.width):
        return grid
    sizes = f"{own.height} x {own.width} pixels, its scene {grid.height} x {grid.width}"
    if own.crs is None:
        raise DataError(f"{label.path}: has no CRS, so it needs its scene's size, but it has {sizes}")
    if grid.crs is None:
        raise DataError(f"{scene.path}: has no CRS, but its label {label.path} has one ({own.crs})")
    if not grid.overlaps(own):
        raise DataError(f"{label.path}: covers no part of its scene {scene.path} (it has {sizes})")
    return own


def _describe_faults(faults: Mapping[str, Counter[str]]) -> list[str]:
    """faults: how many shapes what is true of, by vector file; a line for each."""
    lines = []
    for text in dict.fromkeys(text for each in faults.values() for text in each):
        counts = {path: each[text] for path, each in faults.items() if each[text]}
        where = next(iter(counts)) if len(counts) == 1 else f"{len(counts)} vector files"
        lines.append(f"{sum(counts.values())} shapes in {where} {text}")
    return lines


def _outside(inside: Window, window: Window) -> np.ndarray:
    """(H, W) bool: which pixels of a window lie outside of another one."""
    rows = np.arange(window.row, window.row + window.height) - inside.row
    cols = np.arange(window.col, window.col + window.width) - inside.col
    within = ((rows >= 0) & (rows < inside.height))[:, None] & ((cols >= 0) & (cols < inside.width))
    return np.asarray(~within)


def _outline(grid: Grid) -> str:
    """Corners of the ground as WKT in degrees, longitude first, to about a metre."""
    rows, cols = np.array([0, 0, 1, 1, 0]) * grid.height, np.array([0, 1, 1, 0, 0]) * grid.width
    lons, lats = (degrees.tolist() for degrees in grid.to_lonlat(rows, cols))
    corners = ", ".join(f"{lon:.5f} {lat:.5f}" for lon, lat in zip(lons, lats, strict=True))
    return f"POLYGON (({corners}))"


def _region(item: Item, footprint: np.ndarray) -> Region:
    assert item.window is not None
    area = item.window.height * item.window.width * float(footprint.mean())
    return Region(item, item.window, area, footprint)


def _load_problems(file: IO[bytes]) -> dict[str, str]:
    problems = json.load(file)
    if not isinstance(problems, dict):
        raise ValueError("not a table")
    return problems


def _listed(problems: Sequence[tuple[str, str]]) -> str:
    """The first few, a line each."""
    lines = [f"\n  {path}: {reason.removeprefix(f'{path}: ')}" for path, reason in problems[:5]]
    return "".join(lines) + (f"\n  and {len(problems) - 5} more" if len(problems) > 5 else "")
