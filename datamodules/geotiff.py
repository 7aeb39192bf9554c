"""GeoTIFF scenes: a data module for rasters of any size, band count and number type, with their labels."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch.utils.data import Dataset

from datamodules.augment import Augment
from datamodules.batch import IGNORE, Item, Sample, Window
from datamodules.classes import Classes, ClassSpec, Value, legend_of_texts
from datamodules.datamodule import SegmentationDataModule, check_choice
from datamodules.datasets import EvaluationDataset
from datamodules.decoded import SIDE, Layout, open_decoded
from datamodules.errors import DataError
from datamodules.labels import (
    Labels,
    RasterLabels,
    VectorLabels,
    VectorOptions,
    describe_faults,
    is_vector,
    open_vectors,
    states_beside,
)
from datamodules.layouts import Listing, geotiff
from datamodules.layouts.stac import is_asset_key, is_stac
from datamodules.paths import state_of
from datamodules.raster import Grid, Header
from datamodules.sampling import ClassPositions, Region, WindowPlan, samples_to_cover
from datamodules.scenes import Scene, SceneModule, SceneReader, check_has_crs, kept, listed, without
from datamodules.sizes import FrameCheck
from datamodules.splits import FolderSplit, PlaceSplit, Split, Splits
from datamodules.statistics import fingerprint
from datamodules.supertiles import SuperTilePlan
from datamodules.tiling import Tile, tile, widen

if TYPE_CHECKING:
    from datamodules.vectors import VectorFiles


class GeoTiffDataModule(SceneModule, SegmentationDataModule):
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
        """images, labels: see `datamodules.layouts.geotiff.scan`, for lists of files, remote ones, STAC, and scenes
        with a file a band; labels with the suffix of a vector file
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
        check_choice("cache", cache, ("none", "ram", "disk"))
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
        # what file an asset of STAC items is, only they say
        is_shapes = is_vector(labels) or (is_stac(images) and is_asset_key(labels) and vector is not None)
        if vector is not None and not is_shapes:
            raise DataError(f"vector is for vector files only, but labels is {labels!r}")
        self.vector = (vector or VectorOptions()) if is_shapes else None
        legend = None if self.vector is None else legend_of_texts(classes, ignore)
        self.classes = Classes(classes, ignore=ignore, legend=legend)
        self._as_given = tuple(classes), tuple(ignore)
        self.sparse = self.vector is not None and self.vector.background is None
        self.images = images
        self.has_folders = "{split}" in images
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
        folders = self._find()
        bad = self._unreadable([item for group in folders.values() for item in group]) if self._skips else {}
        self._adopt(self._split(without(folders, bad)))
        self.skipped += bad.values()

    @property
    def shape_faults(self) -> Mapping[str, Counter[str]]:
        """See the base."""
        return self._faults

    def _survey(self) -> Splits:
        return self._split(self._find())

    def settle(self, splits: Splits, checks: Mapping[str, FrameCheck]) -> None:
        """See the base."""
        self._adopt(self._usable(splits, checks))

    def _find(self) -> dict[str, list[Item]]:
        """The items whose headers are in order, by split for a split by folder, else all together."""
        self._regions, self._claimed, self._faults = None, Counter(), {}
        self._files = None if self.vector is None else open_vectors(self.vector, *self._as_given)
        folders = self._list()
        items = [item for group in folders.values() for item in group]
        headers = self._read_headers(items)
        items = [item for item in items if item.id in headers]
        with_crs = sum(header.grid.crs is not None for header in headers.values())
        scenes = self._each(items, lambda item: self._labelled_scene(item, headers[item.id], with_crs))
        self._index.keep()  # with the headers of the labels
        self._scenes = {headers[id].path: scene for id, scene in scenes.items()}
        items = self._with_shapes([item for item in items if item.id in scenes])
        self.notes += [
            f"label value {value:g} is nodata in {count} label files, but listed as a class, so it is a class"
            for value, count in self._claimed.items()
        ]
        self.notes += describe_faults(self._faults)
        return kept(folders, items)

    def _adopt(self, splits: Splits) -> None:
        self.items = splits
        if self.sparse:
            self._leave_out_unlabelled()
        if not self.items["train"]:
            raise DataError(f"{self.root}: no usable training scene is left{listed(self.skipped)}")

    def prediction_dataset(self, paths: Sequence[str | Path]) -> EvaluationDataset:
        """Whole files, in the order given, bands found by name; `.reader.grid(item)`: where they lie."""
        items, reader = self._prediction_reader(paths)
        return EvaluationDataset(items, reader=reader, normalisation=self.normalisation)

    # ---------------------------------------------------------------- for the base

    def _region(self, item: Item, footprint: np.ndarray) -> Region:
        """Where labels are sparse, windows show all of the scene around them."""
        region = super()._region(item, footprint)
        return replace(region, ground=self._scenes[item.image].grid.window) if self.sparse else region

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
            state=tuple(state for path in paths for state in state_of(path)),
        )

    def _plan(self, regions: list[Region], positions: ClassPositions | None) -> WindowPlan:
        if not self._shares_reads:
            return super()._plan(regions, positions)
        return SuperTilePlan(
            regions,
            [self._scenes[region.item.image].store for region in regions],
            size=self.augment.reach,
            length=self.samples_per_epoch or samples_to_cover(regions, self.chip),
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

    def _facts(self) -> dict[str, object]:
        return super()._facts() if self.vector is None else super()._facts() | self._vector_facts()

    def _vector_facts(self) -> dict[str, object]:
        """Options, values, and the states of the files beside shapefiles."""
        assert self.vector is not None
        scenes = [scene.labels for scene in self._scenes.values()]
        paths = {labels.path for labels in scenes if isinstance(labels, VectorLabels)}
        return {"vector": asdict(self.vector), "values": self._as_given, "beside": states_beside(paths)}

    # ---------------------------------------------------------------- files

    def _listing(self, folder: str | None) -> Listing:
        return geotiff.scan(
            self.root, images=self.images, labels=self.labels, folder=folder, bands=self.band_names
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

    def _labelled_scene(self, item: Item, header: Header, with_crs: int) -> Scene:
        """with_crs: number of scenes that have a CRS."""
        check_has_crs(header, with_crs)
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
            state=header.state,
        )

    # ---------------------------------------------------------------- splits

    def _split_by_place(self, items: Sequence[Item], split: PlaceSplit) -> Splits:
        """Where labels are sparse, they are what is shared out; windows show what is around, too."""
        if not self.sparse:
            return super()._split_by_place(items, split)
        parts = [self._labelled_part(item) for item in items]
        splits, _ = self._cut_by_place(parts, split, min_side=1, amount=self._count_labels)
        kept = sum(self._count_labels(item) for group in splits.values() for item in group)
        self._note_left_out(1 - kept / sum(map(self._count_labels, items)), "labelled pixels")
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
