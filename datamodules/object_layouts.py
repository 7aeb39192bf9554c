"""Object layouts: which reader a layout's name stands for, and which of the user's paths it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.drives import nearest
from datamodules.errors import DataError
from datamodules.layouts import dota, kitti_objects, voc
from datamodules.layouts.objects import ObjectListing

ObjectLayoutName = Literal["voc", "kitti", "dota"]


@dataclass(frozen=True)
class Paths:
    """What the user says of a layout's paths; None: as the layout usually has it."""

    images: str | None = None
    """Glob below the root, perhaps with '{split}'."""
    labels: str | None = None
    """Path of a picture's label file with '{name}', perhaps with '{split}'."""
    annotations: str | None = None
    """Path of the one label file of all pictures, perhaps with '{split}'."""


@dataclass(frozen=True)
class _Reader:
    scan: Callable[[Path, str | None, Paths], ObjectListing]
    """(root, folder of a split or None for all, paths) -> pictures with their labels."""
    takes: tuple[str, ...] = ()
    """The paths that the user may give."""
    has_folders: bool = True


def _scan_voc(root: Path, folder: str | None, paths: Paths) -> ObjectListing:
    return voc.scan(root, images=paths.images, labels=paths.labels, folder=folder)


def _scan_dota(root: Path, folder: str | None, paths: Paths) -> ObjectListing:
    return dota.scan(root, images=paths.images, labels=paths.labels, folder=folder)


def _scan_kitti(root: Path, folder: str | None, paths: Paths) -> ObjectListing:
    assert folder is None
    return kitti_objects.scan(root)


READERS: Mapping[str, _Reader] = {
    "dota": _Reader(_scan_dota, ("images", "labels")),
    "kitti": _Reader(_scan_kitti, has_folders=False),
    "voc": _Reader(_scan_voc, ("images", "labels")),
}


@dataclass(frozen=True)
class ObjectLayout:
    """A layout with the user's paths."""

    reader: _Reader
    paths: Paths

    @property
    def has_folders(self) -> bool:
        """Whether each split can have a folder of its own."""
        given = [each for each in (self.paths.images, self.paths.annotations) if each is not None]
        return self.reader.has_folders and (not given or any("{split}" in each for each in given))

    def scan(self, root: Path, folder: str | None) -> ObjectListing:
        """folder: what '{split}' stands for; None: all."""
        return self.reader.scan(root, folder, self.paths)


def choose_layout(
    name: str, *, images: str | None = None, labels: str | None = None, annotations: str | None = None
) -> ObjectLayout:
    """The layout of this name; paths that it doesn't take are refused."""
    if name not in READERS:
        raise DataError(f"no layout '{name}' of objects: there are {', '.join(READERS)}{nearest(name, READERS)}")
    paths = Paths(images, labels, annotations)
    for option, value in vars(paths).items():
        if value is not None and option not in READERS[name].takes:
            takes = ", ".join(READERS[name].takes) or "none: it knows its own folders"
            raise DataError(f"layout '{name}' takes no `{option}` ({value!r}); it takes {takes}")
    return ObjectLayout(READERS[name], paths)
