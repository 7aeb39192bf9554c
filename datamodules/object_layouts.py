"""Object layouts: which reader a layout's name stands for, and which of the user's paths it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.drives import nearest
from datamodules.errors import DataError
from datamodules.layouts import bdd100k_objects, coco, dota, kitti_objects, table, voc, yolo
from datamodules.layouts.objects import ObjectListing

ObjectLayoutName = Literal["bdd100k", "coco", "csv", "dota", "kitti", "voc", "yolo"]


@dataclass(frozen=True)
class LayoutOptions:
    """What the user says of a layout; None: as the layout usually has it."""

    images: str | None = None
    """Glob below the root, perhaps with '{split}'; for the layouts with `annotations` the pictures' folder."""
    labels: str | None = None
    """Path of a picture's label file with '{name}', perhaps with '{split}'."""
    annotations: str | None = None
    """Path of the one label file of all pictures, perhaps with '{split}'."""
    first_pixel: Literal[0, 1] | None = None
    """The number of the first pixel: 1 in the VOC challenge's own files."""
    empty_without_label: bool | None = None
    """Whether a picture without a label file is one without objects, as Ultralytics takes it."""


@dataclass(frozen=True)
class _Reader:
    scan: Callable[[Path, str | None, LayoutOptions], ObjectListing]
    """(root, folder of a split or None for all, options) -> pictures with their labels."""
    takes: tuple[str, ...] = ()
    """The options that the user may give."""
    has_folders: bool = True


def _scan_bdd100k(root: Path, folder: str | None, options: LayoutOptions) -> ObjectListing:
    base = root / "bdd100k" if (root / "bdd100k").is_dir() else root
    if folder is not None and not any(base.glob(f"labels/**/*{folder}*")) and options.annotations is None:
        return ObjectListing()  # the releases have no labels of the test split
    return bdd100k_objects.scan(root, annotations=options.annotations, images=options.images, folder=folder)


def _scan_coco(root: Path, folder: str | None, options: LayoutOptions) -> ObjectListing:
    annotations = options.annotations or "annotations/instances_{split}.json"
    if _is_missing(root, annotations, folder):
        return ObjectListing()
    return coco.scan(root, annotations=annotations, images=options.images or "{split}", folder=folder)


def _scan_csv(root: Path, folder: str | None, options: LayoutOptions) -> ObjectListing:
    annotations = options.annotations or "{split}.csv"
    if _is_missing(root, annotations, folder):
        return ObjectListing()
    return table.scan(root, annotations=annotations, images=options.images or "", folder=folder)


def _scan_dota(root: Path, folder: str | None, options: LayoutOptions) -> ObjectListing:
    return dota.scan(root, images=options.images, labels=options.labels, folder=folder)


def _scan_kitti(root: Path, folder: str | None, options: LayoutOptions) -> ObjectListing:
    assert folder is None
    return kitti_objects.scan(root)


def _scan_voc(root: Path, folder: str | None, options: LayoutOptions) -> ObjectListing:
    first = options.first_pixel or 0
    return voc.scan(root, images=options.images, labels=options.labels, folder=folder, first_pixel=first)


def _scan_yolo(root: Path, folder: str | None, options: LayoutOptions) -> ObjectListing:
    return yolo.scan(
        root,
        images=options.images,
        labels=options.labels,
        folder=folder,
        empty_without_label=bool(options.empty_without_label),
    )


def _is_missing(root: Path, annotations: str, folder: str | None) -> bool:
    """Whether a split has no label file, as it may have no folder in other layouts."""
    return folder is not None and not (root / annotations.replace("{split}", folder)).exists()


READERS: Mapping[str, _Reader] = {
    "bdd100k": _Reader(_scan_bdd100k, ("images", "annotations")),
    "coco": _Reader(_scan_coco, ("images", "annotations")),
    "csv": _Reader(_scan_csv, ("images", "annotations")),
    "dota": _Reader(_scan_dota, ("images", "labels")),
    "kitti": _Reader(_scan_kitti, has_folders=False),
    "voc": _Reader(_scan_voc, ("images", "labels", "first_pixel")),
    "yolo": _Reader(_scan_yolo, ("images", "labels", "empty_without_label")),
}


@dataclass(frozen=True)
class ObjectLayout:
    """A layout with the user's options."""

    reader: _Reader
    options: LayoutOptions

    @property
    def has_folders(self) -> bool:
        """Whether each split can have a folder of its own."""
        paths = [each for each in (self.options.annotations, self.options.images) if each is not None]
        return self.reader.has_folders and (not paths or "{split}" in paths[0])

    def scan(self, root: Path, folder: str | None) -> ObjectListing:
        """folder: what '{split}' stands for; None: all."""
        return self.reader.scan(root, folder, self.options)


def choose_layout(name: str, options: LayoutOptions) -> ObjectLayout:
    """The layout of this name; options that it doesn't take are refused."""
    if name not in READERS:
        raise DataError(f"no layout '{name}' of objects: there are {', '.join(READERS)}{nearest(name, READERS)}")
    reader = READERS[name]
    for option, value in vars(options).items():
        if value is not None and option not in reader.takes:
            takes = ", ".join(reader.takes) or "none: it knows its own folders"
            raise DataError(f"layout '{name}' has no option {option} (given: {value!r}); it has {takes}")
    return ObjectLayout(reader, options)
