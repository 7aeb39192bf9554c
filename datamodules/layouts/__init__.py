"""Layouts: how image and label files lie on disk; one module each, whose ``scan`` yields a `Listing`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from datamodules.batch import Item
from datamodules.classes import Legend
from datamodules.errors import DataError

__all__ = ["Listing", "MaskSource", "pair_by_name"]


class MaskSource(Protocol):
    """How a mask comes from a label file that isn't simply a picture of it; picklable."""

    def codes(self, path: str) -> NDArray[Any]:
        """(H, W) values of the mask of one picture, whose label file is `path`."""


@dataclass(frozen=True)
class Listing:
    """Pairs found below a folder, and what found no partner."""

    items: list[Item] = field(default_factory=list)
    """Images with their labels, sorted by id (the image's path below the root)."""
    images_without_label: list[str] = field(default_factory=list)
    labels_without_image: list[str] = field(default_factory=list)
    sources: Mapping[str, MaskSource] = field(default_factory=dict)
    """By path of the image; an image without one has a mask that is stored as its values or colours."""
    declared: Legend | None = None
    """The classes that the label files themselves declare."""
    beside: tuple[str, ...] = ()
    """Files, other than images and labels, that say what the masks hold."""

    @property
    def unmatched(self) -> list[str]:
        """Paths of all files without a partner."""
        return [*self.images_without_label, *self.labels_without_image]


def pair_by_name(
    root: Path, *, images: str, labels: str, folder: str | None = None, shared: bool = False
) -> Listing:
    """Pairs every image below `root` with the label that bears its name, never by order.

    images: glob, as ``{split}/images/*.tif``; labels: path with ``{name}``, the image's stem, as
    ``{split}/labels/{name}.tif``; folder: what ``{split}`` stands for; shared: one label file may serve
    several images, and need not have ``{name}``. An item's group is its id.
    """
    if "{name}" not in labels and not shared:
        raise DataError(f"labels: {labels!r} has no '{{name}}', which stands for the image's stem")
    if not root.is_dir():
        raise DataError(f"root: {root} is not a folder")
    pattern, template = (text.replace("{split}", folder or "") for text in (images, labels))
    if Path(pattern).is_absolute() or Path(template).is_absolute():
        raise DataError(f"images and labels are below root ({root}), not absolute: {pattern}, {template}")
    found = _files(root, pattern)
    label_of = {path: root / template.replace("{name}", path.stem) for path in found}
    # in one folder (a.tif, a_mask.tif) the glob finds labels too
    for label in set(label_of.values()).intersection(found):
        del label_of[label]
    if not shared:
        _refuse_shared_label(label_of)
    items = [
        Item(id=_below(path, root), group=_below(path, root), image=str(path), label=str(label))
        for path, label in label_of.items()
        if label.is_file()
    ]
    known = set(label_of.values())
    return Listing(
        items=items,
        images_without_label=[str(path) for path, label in label_of.items() if not label.is_file()],
        labels_without_image=[
            str(path)
            for path in _files(root, template.replace("{name}", "*"))
            if path not in known and path not in label_of
        ],
    )


def _files(root: Path, pattern: str) -> list[Path]:
    return sorted(path for path in root.glob(pattern) if path.is_file())


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _refuse_shared_label(label_of: dict[Path, Path]) -> None:
    """Two images whose stems agree (a.tif and a.jpg, or in two folders) would share one label."""
    owner: dict[Path, Path] = {}
    for image, label in label_of.items():
        if label in owner:
            raise DataError(f"{image} and {owner[label]} have the same name, so the label {label} fits both")
        owner[label] = image
