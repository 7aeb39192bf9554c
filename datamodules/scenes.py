"""Scenes: what data modules of georeferenced rasters share for every task: files, bands, grids, ground, splits."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from datamodules.batch import IGNORE, Item, Window
from datamodules.classes import Unknown
from datamodules.datamodule import DataModule
from datamodules.datasets import RawSample
from datamodules.decoded import DecodedScenes
from datamodules.errors import DataError
from datamodules.index import SceneIndex
from datamodules.labels import Labels
from datamodules.layouts import Listing
from datamodules.overlaps import Ground, ValidGround
from datamodules.raster import (
    Grid,
    Header,
    Pool,
    Raster,
    read_footprint,
    read_header,
    read_resampled,
    read_thumbnail,
    read_window,
)
from datamodules.sampling import Region
from datamodules.sizes import FrameCheck
from datamodules.splitfiles import split_by_file
from datamodules.splits import (
    DriveSplit,
    FileSplit,
    FolderSplit,
    ListSplit,
    PlaceSplit,
    SceneSplit,
    Split,
    Splits,
    describe_missing,
    group_by_drive,
    group_by_table,
    split_by_folder,
    split_by_group,
    split_by_list,
    split_by_place,
)
from datamodules.statistics import cached, fingerprint, load_arrays
from datamodules.supertiles import Store
from datamodules.surveying import Inspection, Problem, without_path
from datamodules.tiling import spread, tile

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
        """scenes: by path; decoded: scenes that are kept unpacked."""
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
        if self.decoded is None or item.image not in self.decoded or item.window is None:
            return self._unpack(item)
        unlimited = replace(item, labelled=None)
        raw = self.decoded.read(
            item.image, item.window, lambda window: self._unpack(replace(unlimited, window=window))
        )
        if item.labelled is not None:
            raw.mask[_outside(item.labelled, item.window)] = IGNORE
        return raw

    def pieces(self, item: Item) -> list[Item]:
        """An item in windows that suit the way its file is stored."""
        scene = self.scenes[item.image]
        window = item.window or scene.grid.window
        size = (READ_SIDE, READ_SIDE)
        if scene.header.striped:
            size = (max(1, READ_SIDE**2 // window.width), window.width)
        return [replace(item, window=each.own) for each in tile(window, size=size)]

    def inspect(self, item: Item) -> Inspection:
        """A piece of a scene with what is wrong with it; see `datamodules.readers.Inspector`."""
        scene, window = self.scenes[item.image], item.window or self.scenes[item.image].grid.window
        problems: list[Problem] = []
        values = valid = mask = None
        try:
            raster = self._pixels(scene, window)
            values, valid = raster.values, raster.valid
        except DataError as error:
            problems.append(Problem("image", item.image, without_path(item.image, error)))
        unknown: tuple[Unknown, ...] = ()
        if scene.labels is not None and item.label is not None:
            try:
                mask, unknown = scene.labels.inspect(window, self.pool)
                mask = mask if valid is None else np.where(valid, mask, np.uint8(IGNORE))
            except DataError as error:
                problems.append(Problem("label", item.label, without_path(item.label, error)))
        return Inspection(values, valid, mask, unknown, tuple(problems))

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
            self.pool.file(item.image, scene.header.state),
            Window(top, left, height, width),
            bands=scene.bands,
            nodata=scene.nodata,
            masked=scene.header.masked,
        )

    def read_thumbnail(self, path: str, *, side: int) -> Raster:
        """A whole scene in at most `side` x `side` pixels: its first three bands."""
        scene = self.scenes[path]
        bands, masked = scene.bands[:3], scene.header.masked
        return read_thumbnail(self.pool.file(path), bands=bands, nodata=scene.nodata, masked=masked, side=side)

    def _pixels(self, scene: Scene, window: Window) -> Raster:
        file, masked = self.pool.file(scene.header.path, scene.header.state), scene.header.masked
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


class SceneModule(DataModule):
    """The part of a data module that finds scenes, chooses their bands, and knows where their ground is.

    A subclass sets the attributes, says what belongs to an image (`_listing`), and fills `_scenes` in `scan`.
    """

    images: str
    """Glob of the images below the root, perhaps with '{split}'; for messages."""
    has_folders: bool
    """Whether '{split}' has a place in the paths."""
    split: Split
    band_names: Sequence[str] | None
    use_bands: Sequence[str] | None
    nodata: float | None
    resolution: float | None
    chip: tuple[int, int]
    _scenes: dict[str, Scene]
    """By path."""
    _regions: list[Region] | None
    """From where training windows are drawn; None: not looked for yet."""
    _index: SceneIndex
    """Headers of the files; after `_read_headers`."""

    @property
    def _skips(self) -> bool:
        """Whether every file is read before training, and those that can't be are left out."""
        return self.on_error == "skip"

    @property
    def shape_faults(self) -> Mapping[str, Counter[str]]:
        """What is wrong with the shapes of vector labels, and how often, by path; after a survey or scan."""
        return {}

    def scene_of(self, item: Item) -> Scene:
        """How an item of a survey is read."""
        return self._scenes[item.image]

    def inspector(self) -> SceneReader:
        """See the base."""
        return self._reader()

    def foreign(
        self, paths: Sequence[str]
    ) -> tuple[list[Item], Callable[[], SceneReader], list[tuple[str, str]]]:
        """See the base."""
        scenes: dict[str, Scene] = {}
        problems = []
        for path in paths:
            try:
                scenes[path] = self._scene(self._header(path))
            except DataError as error:
                problems.append((path, without_path(path, error)))
        return [Item(id=path, group=path, image=path) for path in scenes], partial(SceneReader, scenes), problems

    def _usable(self, splits: Splits, checks: Mapping[str, FrameCheck]) -> Splits:
        """Without the items of files that have a problem, which are named in `skipped`."""
        bad = {path: check.problem for path, check in checks.items() if check.problem is not None}
        self.skipped += bad.items()
        return {name: [item for item in items if item.image not in bad] for name, items in splits.items()}

    @abstractmethod
    def _listing(self, folder: str | None) -> Listing:
        """Images and their labels; folder: what '{split}' stands for, None: all."""

    def prediction_scene(self, path: str | Path) -> Scene:
        """How a scene of any size is read for prediction; refused if its values, looked at here and there, are
        far from those of training."""
        path = str(path)
        scene = self._scene(self._header(path))
        windows = spread(scene.grid.height, scene.grid.width, size=READ_SIDE // 2)
        items = [Item(id=path, group=path, image=path, window=window) for window in windows]
        self._check_inputs(items, SceneReader({path: scene}))
        return scene

    def reader(self) -> SceneReader:
        """Reads the pixels and labels of items, and knows where they lie."""
        self._scan_once()
        return self._reader()

    def _prediction_reader(self, paths: Sequence[str | Path]) -> tuple[list[Item], SceneReader]:
        """Whole files without labels, in the order given, bands found by name."""
        if not hasattr(self, "bands"):
            self.scan()
        items = [Item(id=str(path), group=str(path), image=str(path)) for path in paths]
        reader = SceneReader({item.image: self._scene(self._header(item.image)) for item in items})
        self._check_inputs(items, reader)
        return items, reader

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
            regions = [self._region(*pair) for pair in zip(items, self._footprints(items), strict=True)]
            empty = [region.item for region in regions if region.area == 0]
            self.skipped += [(item.image, f"{item.id}: has no valid pixel (all nodata)") for item in empty]
            self._regions = [region for region in regions if region.area > 0]
        if not self._regions:
            raise DataError(f"{self.root}: no training scene has a valid pixel{listed(self.skipped)}")
        return self._regions

    def _region(self, item: Item, footprint: np.ndarray) -> Region:
        assert item.window is not None
        area = item.window.height * item.window.width * float(footprint.mean())
        return Region(item, item.window, area, footprint)

    def _outlines(self) -> list[dict[str, Any]]:
        reader = self._reader()
        grids = [
            (item.id, split, reader.grid(item)) for split, items in self.items.items() for item in items
        ]
        outlines = [(id, split, _outline(grid)) for id, split, grid in grids if grid.crs]
        return [{"id": id, "split": split, "outline": each} for id, split, each in outlines if "nan" not in each]

    def _facts(self) -> dict[str, object]:
        return {"nodata": self.nodata, "resolution": self.resolution, "names": self.band_names}

    # ---------------------------------------------------------------- files

    def _list(self) -> dict[str, list[Item]]:
        """Items by split for a split by folder, else all together."""
        if not isinstance(self.split, FolderSplit):
            return {"all": self._accept(self._listing(None))}
        if not self.has_folders:
            raise DataError(
                f"split by folder needs '{{split}}' in images (now {self.images!r}), "
                "e.g. '{split}/images/*.tif'; or split by scene, list or place"
            )
        folders = {"train": self.split.train, "val": self.split.val, "test": self.split.test}
        found: dict[str, list[Item]] = {}
        for name, folder in folders.items():
            if folder is None:
                continue
            listing = self._listing(folder)
            usual = name != "train" and folder == getattr(FolderSplit, name)
            if usual and not listing.items and not listing.unmatched:
                self.notes.append(f"there is no folder '{folder}' with images: no {name} split is given")
                continue
            found[name] = self._accept(listing, folder)
        return found

    def _accept(self, listing: Listing, folder: str = "*") -> list[Item]:
        """The items of a listing; files without a partner stop, or are noted."""
        self._accepted.append(listing)
        if listing.unmatched and self.on_error == "stop":
            raise DataError(
                f"{self.root}: {len(listing.images_without_label)} images without label and "
                f"{len(listing.labels_without_image)} labels without image, beside {len(listing.items)} pairs"
                f"{listed([(path, 'no label') for path in listing.images_without_label])}"
                f"{listed([(path, 'no image') for path in listing.labels_without_image])}"
                "\non_error: skip leaves them out"
            )
        self.unmatched += listing.unmatched
        if not listing.items:
            pattern = self.images.replace("{split}", folder)
            raise DataError(f"{self.root}: no image with a label matches {pattern!r}")
        return listing.items

    def _read_headers(self, items: Sequence[Item]) -> dict[str, Header]:
        """By item id; sets the bands and their number type."""
        self._index = SceneIndex(self._cache_path("scenes.json"))
        headers = self._each(items, lambda item: self._index.header(item.image, bands=self.band_names))
        self._index.keep()
        changed = self._index.changed
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            self.notes.append(f"{changed[0]}{more}: changed since the last run, and looked at again")
        self.bands = self._choose_bands(list(headers.values()))
        self.dtype = np.result_type(*(header.dtype for header in headers.values()))
        return headers

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
            raise DataError(f"{self.root}: none of {len(items)} scenes can be used{listed(self.skipped)}")
        return found

    def _unreadable(self, items: Sequence[Item]) -> dict[str, tuple[str, str]]:
        """Reads every file whole: (path, what is wrong) by item id; kept in the cache folder."""
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

        problems = cached(
            self._cache_path(f"unreadable-{key[:16]}.json"),
            build,
            load=_load_problems,
            save=lambda problems, file: file.write(json.dumps(problems).encode()),
        )
        return {item.id: (item.image, problems[item.id]) for item in items if item.id in problems}

    def _pieces(self, item: Item) -> list[Item]:
        return self._reader().pieces(item)

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
        if header.pixels and self.resolution is None:
            sizes = " and ".join(f"{size:g}" for size in sorted(set(header.pixels)))
            raise DataError(
                f"{header.path}: its bands have pixels of {sizes}; set `resolution`, to which all are resampled"
            )
        if self.resolution is not None:
            if grid.crs is None:
                raise DataError(f"{header.path}: has no CRS, so it can't be resampled to a resolution")
            grid = grid.at_resolution(self.resolution)
        nodata = header.nodata if self.nodata is None else self.nodata
        return Scene(header=header, grid=grid, bands=header.select(self.bands), nodata=nodata)

    # ---------------------------------------------------------------- splits

    def _split(self, folders: Mapping[str, list[Item]]) -> Splits:
        split, items = self.split, folders.get("all", [])
        self.found = [item for group in folders.values() for item in group]
        if isinstance(split, FolderSplit):
            if split.val_fraction:
                folders = {**folders, "train": self._group_by_ground(folders.get("train", []), fewest=2)}
            return split_by_folder(folders, val_fraction=split.val_fraction, seed=self.seed)
        if isinstance(split, ListSplit):
            return split_by_list(items, root=self.root, train=split.train, val=split.val, test=split.test)
        if isinstance(split, FileSplit):
            return split_by_file(items, root=self.root, path=split.path, size=self._size_of_whole)
        splits = (
            self._split_by_place(items, split) if isinstance(split, PlaceSplit) else self._split_groups(items, split)
        )
        if split.stratify:
            self.notes += describe_missing(splits, self._class_amounts, self.classes.names)
        return splits

    def _size_of_whole(self, item: Item) -> tuple[int, int]:
        grid = self._scenes[item.image].grid
        return grid.height, grid.width

    def _split_groups(self, items: Sequence[Item], split: SceneSplit | DriveSplit) -> Splits:
        if isinstance(split, SceneSplit):
            groups = self._group_by_ground(items, fewest=1 + (split.val > 0) + (split.test > 0))
        elif split.table is not None:
            groups = group_by_table(items, root=self.root, table=split.table, column=split.column)
        else:
            groups = group_by_drive(items, pattern=split.pattern)
        count = self._class_amounts if split.stratify else None
        return split_by_group(groups, val=split.val, test=split.test, seed=split.seed, count=count)

    def _group_by_ground(self, items: Sequence[Item], *, fewest: int) -> list[Item]:
        """Scenes that show the same ground as one group, named after the first; unless less than `fewest` are left."""
        grids = {item.image: self._scenes[item.image].grid for item in items}
        known = [item for item in items if grids[item.image].crs is not None]
        reader = self._reader()
        ground = ValidGround(
            [grids[item.image] for item in known], lambda index: reader.read_footprint(known[index])
        )
        first = {item.id: known[i].group for item, i in zip(known, ground.clusters(), strict=True)}
        groups = [replace(item, group=first.get(item.id, item.group)) for item in items]
        left = len({item.group for item in groups})
        if left < fewest <= len(items):
            self.notes.append(
                f"{len(items)} scenes show ground of each other and would be {left} groups, too few to be split: "
                "the same ground will be in two splits"
            )
            return list(items)
        if left < len(items):
            self.notes.append(f"scenes that show the same ground stay together: {left} groups of {len(items)}")
        return groups

    def _split_by_place(self, items: Sequence[Item], split: PlaceSplit) -> Splits:
        splits, left_out = self._cut_by_place(items, split, min_side=self.chip[0] // 8)
        self._note_left_out(left_out, "pixels")
        return splits

    def _cut_by_place(
        self,
        items: Sequence[Item],
        split: PlaceSplit,
        *,
        min_side: int,
        amount: Callable[[Item], float] | None = None,
    ) -> tuple[Splits, float]:
        """See `datamodules.splits.split_by_place`."""
        grids = {item.image: self._scenes[item.image].grid for item in items}
        without = [path for path, grid in grids.items() if grid.crs is None]
        if without:
            raise DataError(f"{without[0]}: has no CRS, so it can't be split by place")
        chip = max(self.chip) * float(Ground(list(grids.values())).pixel.max())
        gap = chip / 2 if split.gap is None else split.gap
        if split.gap is None and chip >= split.block:
            raise DataError(
                f"split by place: a chip ({chip:.0f} m) between splits leaves nothing of a {split.block:g} m block; "
                "choose larger blocks, or a `gap` (0: blocks touch)"
            )
        return split_by_place(
            items,
            grids,
            block=split.block,
            gap=gap,
            val=split.val,
            test=split.test,
            seed=split.seed,
            min_side=min_side,
            amount=amount,
            count=self._class_amounts if split.stratify else None,
        )

    def _note_left_out(self, share: float, kind: str) -> None:
        if share > 0:
            self.notes.append(f"split by place: {share:.1%} of the {kind} lie in gaps or at blocks' edges")


def kept(folders: Mapping[str, Sequence[Item]], items: Iterable[Item]) -> dict[str, list[Item]]:
    """The items of each folder that are among `items`."""
    ids = {item.id for item in items}
    return {name: [item for item in group if item.id in ids] for name, group in folders.items()}


def without(folders: Mapping[str, Sequence[Item]], ids: Container[str]) -> dict[str, list[Item]]:
    """The items of each folder whose ids aren't among `ids`."""
    return {name: [item for item in group if item.id not in ids] for name, group in folders.items()}


def check_has_crs(header: Header, with_crs: int) -> None:
    """with_crs: number of scenes that have a CRS."""
    if header.grid.crs is None and with_crs:
        raise DataError(f"{header.path}: has no CRS, but {with_crs} other scenes have one")


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


def _load_problems(file: IO[bytes]) -> dict[str, str]:
    problems = json.load(file)
    if not isinstance(problems, dict):
        raise ValueError("not a table")
    return problems


def listed(problems: Sequence[tuple[str, str]]) -> str:
    """The first few, a line each."""
    lines = [f"\n  {path}: {reason.removeprefix(f'{path}: ')}" for path, reason in problems[:5]]
    return "".join(lines) + (f"\n  and {len(problems) - 5} more" if len(problems) > 5 else "")
