"""Frame layouts: which reader of masks a layout's name stands for, and which of the user's paths it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datamodules.classes import ClassSpec, Legend
from datamodules.drives import nearest
from datamodules.errors import DataError
from datamodules.layouts import (
    Listing,
    bdd100k,
    camvid,
    cityscapes,
    coco_masks,
    coco_panoptic,
    coco_stuff,
    kitti,
    mapillary,
    pairs,
    video,
    voc_masks,
)

FrameLayoutName = Literal[
    "pairs",
    "bdd100k",
    "camvid",
    "cityscapes",
    "coco",
    "coco_panoptic",
    "coco_stuff",
    "kitti",
    "mapillary",
    "mapillary_v1.2",
    "video",
    "voc",
]
LabelForm = Literal["index", "colour", "polygons", "instances"]


@dataclass(frozen=True)
class FrameOptions:
    """What the user says of a layout; None: as the layout usually has it."""

    images: str | None = None
    """'pairs', 'video': glob below the root; 'coco', 'coco_panoptic': the pictures' folder. Perhaps with '{split}'."""
    labels: str | None = None
    """'pairs': path of a frame's mask with '{name}'; 'video': also '{frame}'; 'coco_panoptic': the PNGs' folder."""
    annotations: str | None = None
    """'coco', 'coco_panoptic': path of the JSON file, perhaps with '{split}'."""


@dataclass(frozen=True)
class Layout:
    """What the data module knows of a layout before it looks at the disk."""

    scan: Callable[[Path, str | None, str, FrameOptions], Listing]
    """(root, folder of a split or None for all, label form, options) -> pairs."""
    legends: Mapping[str, Legend | None]
    """The layout's own classes for each label form; the first is the usual one. None: the files declare them."""
    drive_pattern: str | None = None
    """None: every frame is its own group."""
    has_folders: bool = True
    folders: Mapping[str, str] = field(default_factory=dict)
    """What the layout calls the folders that are usually called train, val and test."""
    takes: tuple[str, ...] = ()
    """The options that the user may give."""


def _scan_pairs(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    assert options.images is not None
    assert options.labels is not None
    return pairs.scan(root, images=options.images, labels=options.labels, folder=folder)


def _scan_camvid(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    return camvid.scan(root, folder=folder)


def _scan_cityscapes(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    return cityscapes.scan(root, folder=folder, label_form=form)


def _scan_bdd100k(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    return bdd100k.scan(root, folder=folder, label_form=form)


def _scan_kitti(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    assert folder is None
    return kitti.scan(root, label_form=form)


def _scan_mapillary(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    return mapillary.scan(root, folder=folder, label_form=form)


def _scan_mapillary_1(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    return mapillary.scan(root, version="v1.2", folder=folder, label_form=form)


def _scan_video(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    images, labels = options.images or video.IMAGES, options.labels or video.LABELS
    return video.scan(root, images=images, labels=labels, folder=folder)


def _scan_voc(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    return voc_masks.scan(root, folder=folder)


def _scan_coco(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    annotations = options.annotations or coco_masks.ANNOTATIONS
    if _is_missing(root, annotations, folder):
        return Listing()
    images = options.images or coco_masks.PICTURES
    return coco_masks.scan(root, annotations=annotations, images=images, folder=folder)


def _scan_coco_panoptic(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    annotations = options.annotations or coco_panoptic.ANNOTATIONS
    if _is_missing(root, annotations, folder):
        return Listing()
    images = options.images or coco_panoptic.PICTURES
    return coco_panoptic.scan(
        root, annotations=annotations, images=images, labels=options.labels, folder=folder
    )


def _scan_coco_stuff(root: Path, folder: str | None, form: str, options: FrameOptions) -> Listing:
    return coco_stuff.scan(root, folder=folder)


def _is_missing(root: Path, annotations: str, folder: str | None) -> bool:
    """Whether a split has no label file, as it may have no folder in other layouts."""
    return folder is not None and not (root / annotations.replace("{split}", folder)).exists()


_PAIRED: dict[str, Legend | None] = {form: Legend(()) for form in pairs.LABEL_FORMS}
_VISTAS: dict[str, Legend | None] = dict.fromkeys(mapillary.LABEL_FORMS)

LAYOUTS: Mapping[str, Layout] = {
    "pairs": Layout(_scan_pairs, _PAIRED, takes=("images", "labels")),
    "bdd100k": Layout(_scan_bdd100k, bdd100k.LEGENDS),
    "camvid": Layout(_scan_camvid, camvid.LEGENDS, camvid.DRIVE_PATTERN),
    "cityscapes": Layout(_scan_cityscapes, cityscapes.LEGENDS, cityscapes.DRIVE_PATTERN),
    "coco": Layout(_scan_coco, {"index": None}, takes=("images", "annotations")),
    "coco_panoptic": Layout(_scan_coco_panoptic, {"index": None}, takes=("images", "labels", "annotations")),
    "coco_stuff": Layout(_scan_coco_stuff, coco_stuff.LEGENDS),
    "kitti": Layout(_scan_kitti, kitti.LEGENDS, has_folders=False),
    "mapillary": Layout(_scan_mapillary, _VISTAS, folders=mapillary.FOLDERS),
    "mapillary_v1.2": Layout(_scan_mapillary_1, _VISTAS, folders=mapillary.FOLDERS),
    "video": Layout(_scan_video, _PAIRED, takes=("images", "labels")),
    "voc": Layout(_scan_voc, voc_masks.LEGENDS),
}


@dataclass(frozen=True)
class FrameLayout:
    """A layout with the user's options."""

    name: str
    layout: Layout
    options: FrameOptions

    @property
    def has_folders(self) -> bool:
        """Whether each split can have a folder of its own."""
        paths = [each for each in (self.options.annotations, self.options.images) if each is not None]
        return self.layout.has_folders and (not paths or "{split}" in paths[0])

    def scan(self, root: Path, folder: str | None, form: str) -> Listing:
        """folder: what '{split}' stands for; None: all."""
        known = folder if folder is None else self.layout.folders.get(folder, folder)
        return self.layout.scan(root, known, form, self.options)

    def choose_form(self, form: str | None, classes: Sequence[ClassSpec] | None) -> str:
        """How masks are coded: as the user says, else as the classes are given, else as is usual."""
        forms = self.layout.legends
        if form is None:
            values = [value for spec in classes or () for value in spec.values]
            coloured = any(isinstance(value, str) and value.startswith("#") for value in values)
            return "colour" if coloured and "colour" in forms else next(iter(forms))
        if form not in forms:
            raise DataError(f"layout '{self.name}' has no label form '{form}': there are {', '.join(forms)}")
        return form


def choose_layout(name: str, options: FrameOptions) -> FrameLayout:
    """The layout of this name; options that it doesn't take are refused."""
    if name not in LAYOUTS:
        raise DataError(f"no layout '{name}': there are {', '.join(LAYOUTS)}{nearest(name, LAYOUTS)}")
    layout = LAYOUTS[name]
    if name == "pairs" and (options.images is None or options.labels is None):
        raise DataError(
            "layout 'pairs' needs `images`, e.g. 'images/{split}/*.png', "
            "and `labels`, e.g. 'masks/{split}/{name}.png'"
        )
    for option, value in vars(options).items():
        if value is not None and option not in layout.takes:
            takes = ", ".join(layout.takes) or "none: it knows its own folders"
            raise DataError(f"layout '{name}' has no option `{option}` (given: {value!r}); it has {takes}")
    return FrameLayout(name, layout, options)
