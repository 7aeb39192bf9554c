"""GeoTIFF scenes with objects: a data module for detection in rasters of any size, band count and number type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.augment import Augment
from datamodules.batch import Item
from datamodules.classes import ClassSpec, Value
from datamodules.datasets import DetectionEvaluationDataset
from datamodules.detection import DetectionDataModule
from datamodules.errors import DataError
from datamodules.labels import (
    OVERLAPPING,
    VectorLabels,
    VectorOptions,
    describe_faults,
    is_vector,
    open_vectors,
    states_beside,
)
from datamodules.layouts import Listing, geotiff
from datamodules.object_layouts import LayoutOptions, ObjectLayout, choose_layout
from datamodules.objects import Objects
from datamodules.raster import Header
from datamodules.sampling import ObjectPlan, samples_to_cover
from datamodules.scenes import Scene, SceneModule, check_has_crs, kept, listed, without
from datamodules.sizes import FrameCheck
from datamodules.splits import FolderSplit, Split, Splits
from datamodules.tiling import Tile, tile
from datamodules.views import clip, frame_of, middles_inside, zoom

if TYPE_CHECKING:
    from datamodules.vectors import VectorFiles

VECTOR_IMAGES = "images/*.tif"

SceneLayoutName = Literal["vector", "voc", "coco", "csv", "dota"]


class GeoTiffDetectionDataModule(SceneModule, DetectionDataModule):
    """Scenes and their objects below `root`: random windows to train on, overlapping ones to evaluate on."""

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[ClassSpec],
        ignore: Sequence[Value] = (),
        layout: SceneLayoutName = "vector",
        images: str | None = None,
        labels: str | None = None,
        annotations: str | None = None,
        first_pixel: Literal[0, 1] | None = None,
        vector: VectorOptions | None = None,
        split: Split = FolderSplit(),  # noqa: B008 (frozen)
        bands: Sequence[str] | None = None,
        use_bands: Sequence[str] | None = None,
        nodata: float | None = None,
        resolution: float | None = None,
        chip: int = 256,
        chips_per_epoch: int | None = None,
        empty_share: float = 0.2,
        eval_chip: int | None = None,
        eval_overlap: float = 0.25,
        min_valid: float = 0.1,
        min_visible: float = 0.4,
        masks: bool = False,
        turned: bool = False,
        augment: Augment = Augment("nadir", photometric=0.3),  # noqa: B008 (frozen)
        normalise: Literal["weights", "data"] = "weights",
        scale: float | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        workers: int = 1,
        on_error: Literal["stop", "skip"] = "stop",
        seed: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        """layout: 'vector': `labels` is a vector file of shapes in map coordinates, as
        'labels/{name}.geojson', or one for all scenes, as 'objects.gpkg'; the others: boxes in pixels of
        the files, whose options are those of `datamodules.object_layouts.LayoutOptions`.
        images: default for 'vector': 'images/*.tif'; for the others as the layout has them.
        vector: how vector files are read; a `buffer` makes a box of a point.
        An object that a scene's edge cuts is what the scene shows of it.
        chip: side in pixels of training windows; it replaces the augmentation's own crop.
        chips_per_epoch: default: enough to cover the valid training area once.
        empty_share: share of training windows without an object, as far as there is such ground; the others
        are drawn around an object.
        eval_chip: side of evaluation windows; a scene, or part of one, that is no larger is evaluated whole.
        Default: twice `chip`. eval_overlap: share of a window that neighbours have in common; objects up to
        that large are seen whole in the one window in which they are scored (that of their middle).
        The other options are those of `GeoTiffDataModule` and of the base.
        """
        super().__init__(
            root,
            augment=replace(augment, crop=(chip, chip)),
            min_visible=min_visible,
            masks=masks,
            turned=turned,
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
        if not 0 <= empty_share <= 1:
            raise DataError(f"empty_share is {empty_share:g}; allowed: 0 to 1")
        self._set_classes(classes, ignore)
        self.vector = _choose_vector(layout, labels, vector)
        self.labels = labels or ""
        self.images = images or (VECTOR_IMAGES if self.vector is not None else annotations or "*")
        self.layout: ObjectLayout | None = None
        self.has_folders = "{split}" in self.images
        options = LayoutOptions(images, labels, annotations, first_pixel)
        if self.vector is not None and (annotations, first_pixel) != (None, None):
            raise DataError("annotations and first_pixel belong to other layouts; 'vector' has images and labels")
        if self.vector is None:
            self.layout = choose_layout(layout, options)
            self.has_folders = self.layout.has_folders
        self.split = split
        self.band_names = bands
        self.use_bands = use_bands
        if use_bands is not None:
            self.bands = tuple(use_bands)
        self.nodata = nodata
        self.resolution = resolution
        self.chip = (chip, chip)
        self.chips_per_epoch = chips_per_epoch
        self.empty_share = empty_share
        self.eval_chip = eval_chip or 2 * chip
        self.eval_overlap = eval_overlap
        self.min_valid = min_valid
        self._scenes = {}
        self._regions = None
        self._faults: dict[str, Counter[str]] = {}
        self._files: VectorFiles | None = None

    def scan(self) -> None:
        """Finds, checks and splits the scenes and reads the labels; pixels only if on_error is 'skip'."""
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
        """The items whose headers and labels are in order, by split for a split by folder, else all together."""
        self._listings = []
        self._regions, self._faults = None, {}
        if self.vector is not None:
            named = [replace(spec, values=spec.values or (spec.name,)) for spec in self.specs]
            self._files = open_vectors(self.vector, named, self.ignore)
        folders = self._list()
        items = [item for group in folders.values() for item in group]
        headers = self._read_headers(items)
        items = [item for item in items if item.id in headers]
        with_crs = sum(header.grid.crs is not None for header in headers.values())
        scenes = self._each(items, lambda item: self._checked_scene(headers[item.id], with_crs))
        self._scenes = {headers[id].path: scene for id, scene in scenes.items()}
        items = [item for item in items if item.id in scenes]
        found = self._vector_objects(items) if self.layout is None else self._layout_objects(items)
        self._objects = {item.image: found[item.id] for item in items if item.id in found}
        return kept(folders, [item for item in items if item.id in found])

    def _adopt(self, splits: Splits) -> None:
        self.items = splits
        if not self.items["train"]:
            raise DataError(f"{self.root}: no usable training scene is left{listed(self.skipped)}")
        self._require_objects()

    def prediction_dataset(self, paths: Sequence[str | Path]) -> DetectionEvaluationDataset:
        """Whole files, in the order given, bands found by name; `.reader.grid(item)`: where they lie."""
        items, reader = self._prediction_reader(paths)
        return DetectionEvaluationDataset(
            items, reader=reader, table=self._empty_table(), normalisation=self.normalisation
        )

    def evaluation_regions(self, split: str) -> list[tuple[Item, int]]:
        """See the base: parts of scenes, each with the number of its windows."""
        self._scan_once()
        return [(item, len(self._evaluation_tiles(item))) for item in self.items[split]]

    # ---------------------------------------------------------------- for the base

    def _plan(self) -> ObjectPlan:
        regions = self._training_regions()
        return ObjectPlan(
            regions,
            [self._boxes_in(region.item) for region in regions],
            size=self.augment.reach,
            crop=self.chip,
            largest_zoom=self.augment.scale[1],
            length=self.chips_per_epoch or samples_to_cover(regions, self.chip),
            min_valid=self.min_valid,
            empty_share=self.empty_share,
        )

    def _training_windows(self) -> list[Item]:
        return [piece for region in self._training_regions() for piece in self._pieces(region.item)]

    def _evaluation_dataset(self, split: str) -> DetectionEvaluationDataset:
        pairs = [(item, each) for item in self.items[split] for each in self._evaluation_tiles(item)]
        return DetectionEvaluationDataset(
            [
                replace(item, id=f"{item.id}@{each.window.row},{each.window.col}", window=each.window)
                for item, each in pairs
            ],
            reader=self._reader(),
            table=self._table(),
            normalisation=self.normalisation,
            cores=[each.core for _, each in pairs],
        )

    def _evaluation_tiles(self, item: Item) -> list[Tile]:
        window = item.window or self._scenes[item.image].grid.window
        return tile(window, size=(self.eval_chip, self.eval_chip), overlap=self.eval_overlap)

    def _size(self, item: Item) -> tuple[int, int]:
        window = item.window or self._scenes[item.image].grid.window
        return window.height, window.width

    def _class_amounts(self, items: Sequence[Item]) -> np.ndarray:
        """See the base: objects whose middle lies in an item."""
        rows = []
        for item in items:
            objects, frame = self._objects[item.image], frame_of(item.window or self._scenes[item.image].grid.window)
            there = ~objects.ignored & middles_inside(objects.boxes, frame)
            rows.append(np.bincount(objects.labels[there], minlength=len(self.classes)))
        return np.array(rows).reshape(len(items), len(self.classes))

    def _facts(self) -> dict[str, object]:
        facts = SceneModule._facts(self) | DetectionDataModule._facts(self)
        if self.layout is not None:
            return facts | {"layout": vars(self.layout.options)}
        assert self.vector is not None
        paths = {item.label for items in self.items.values() for item in items if item.label is not None}
        return facts | {"vector": asdict(self.vector), "beside": states_beside(paths)}

    # ---------------------------------------------------------------- labels

    def _listing(self, folder: str | None) -> Listing:
        if self.layout is None:
            return geotiff.scan(
                self.root, images=self.images, labels=self.labels, folder=folder, bands=self.band_names
            )
        listing = self.layout.scan(self.root, folder)
        self._listings.append(listing)
        return listing

    def _checked_scene(self, header: Header, with_crs: int) -> Scene:
        check_has_crs(header, with_crs)
        return self._scene(header)

    def _boxes_in(self, item: Item) -> NDArray[np.float32]:
        """(N, 4) of the objects whose middle lies in an item's window, in pixels of the scene."""
        objects, window = self._objects[item.image], item.window
        assert window is not None
        return objects.boxes[~objects.ignored & middles_inside(objects.boxes, frame_of(window))]

    def _layout_objects(self, items: Sequence[Item]) -> dict[str, Objects]:
        """Boxes in pixels of the files, moved to the grid on which scenes are read."""
        sizes, zooms = {}, {}
        for item in items:
            own, grid = self._scenes[item.image].header.grid, self._scenes[item.image].grid
            sizes[item.id] = own.height, own.width
            zooms[item.id] = grid.width / own.width, grid.height / own.height
        found = self._resolve(items, sizes)
        return {id: zoom(objects, *zooms[id]) for id, objects in found.items()}

    def _vector_objects(self, items: Sequence[Item]) -> dict[str, Objects]:
        """Of the scenes that can be used, by item id. Scenes for which a shared file has no shape are empty."""
        missed: dict[str, str] = {}
        found = self._each(items, lambda item: self._shapes_of(item, missed))
        self.notes += describe_faults(self._faults, leave_out=(OVERLAPPING,))
        if len(missed) == len(found):
            raise DataError(next(iter(missed.values())))
        if missed:
            self.notes.append(
                f"{len(missed)} of {len(found)} scenes hold no shape of {self.labels}: "
                "they are taken to be without objects"
            )
        return found

    def _shapes_of(self, item: Item, missed: dict[str, str]) -> Objects:
        """missed: gets why a file that serves all scenes has no shape in this one."""
        from datamodules.vectors import to_objects

        assert self._files is not None
        assert item.label is not None
        grid = self._scenes[item.image].grid
        labels, shapes = VectorLabels(item.label, grid, self._files), self._files.shapes(item.label)
        self._faults[item.label] = shapes.faults
        problem = labels.miss() if len(shapes.geometries) else None
        if problem is not None:
            if "{name}" in self.labels:
                raise DataError(problem)
            missed[item.id] = problem
        objects = to_objects(self._files.drawing(item.label, grid))
        return self._as_wanted(clip(objects, frame_of(grid.window), min_visible=0))


def _choose_vector(layout: str, labels: str | None, options: VectorOptions | None) -> VectorOptions | None:
    """How vector files are read; None for other layouts."""
    if layout != "vector":
        if options is not None:
            raise DataError(f"vector is for vector files only, but layout is {layout!r}")
        return None
    if labels is None or not is_vector(labels):
        raise DataError(
            f"layout 'vector' needs `labels`, a vector file such as 'labels/{{name}}.geojson'; given: {labels}"
        )
    chosen = options or VectorOptions()
    if chosen.background is not None or chosen.all_touched:
        raise DataError("vector.background and vector.all_touched are for masks; objects are shapes themselves")
    return chosen
