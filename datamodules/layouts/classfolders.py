"""Class folders: images in a folder for each class, whose name is their label, as in ImageNet or EuroSAT."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.batch import Item
from datamodules.errors import DataError, one_record
from datamodules.layouts import Listing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Of pictures, in lower case."""


@dataclass(frozen=True)
class LabelListing(Listing):
    """Images found below a folder, and what each one's label says."""

    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of an item's classes by its id; none of several labels is fine, too."""
    places: dict[str, str] = field(default_factory=dict)
    """Where that is said by item id: a folder, or a line of a file."""
    names: tuple[str, ...] = ()
    """Of the classes, sorted."""


def scan(root: Path, *, images: str = "", folder: str | None = None) -> LabelListing:
    """Every picture in, or at any depth below, a class folder; an image is its own group.

    images: the folder below `root` that holds the class folders, e.g. ``{split}``; folder: what ``{split}``
    stands for, None: every folder there. Names that begin with a dot are left out.
    """
    if not root.is_dir():
        raise DataError(f"root: {root} is not a folder")
    if Path(images).is_absolute():
        raise DataError(f"images is a folder below root ({root}), not absolute: {images}")
    pattern = images.replace("{split}", "*" if folder is None else folder)
    found: list[tuple[Path, Path]] = []
    loose: list[Path] = []
    empty: list[Path] = []
    for holder in sorted(root.glob(pattern)) if pattern else [root]:
        for entry in sorted(holder.iterdir()) if holder.is_dir() else ():
            if entry.is_dir() and not entry.name.startswith("."):
                inside = pictures_below(entry)
                found += [(path, entry) for path in inside]
                empty += [] if inside else [entry]
            elif _is_picture(entry):
                loose.append(entry)
    with one_record():
        if empty:
            raise DataError(f"{empty[0]}: this class folder has no image{_more(len(empty) - 1)}")
    return list_labelled(
        root,
        [(path, (entry.name,), str(entry)) for path, entry in found],
        names={entry.name for _, entry in found},
        images_without_label=[str(path) for path in loose],
    )


def pictures_below(folder: Path) -> list[Path]:
    """All pictures, sorted; hidden files and folders are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if _is_picture(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def list_labelled(
    root: Path,
    found: Iterable[tuple[Path, tuple[str, ...], str]],
    *,
    names: Iterable[str],
    images_without_label: list[str],
    labels_without_image: list[str] | None = None,
) -> LabelListing:
    """A listing of (image, its labels, where these are said), sorted by id."""
    rows = sorted((path.relative_to(root).as_posix(), path, labels, place) for path, labels, place in found)
    return LabelListing(
        items=[Item(id=id, group=id, image=str(path)) for id, path, _, _ in rows],
        images_without_label=images_without_label,
        labels_without_image=labels_without_image or [],
        labels={id: labels for id, _, labels, _ in rows},
        places={id: place for id, _, _, place in rows},
        names=tuple(sorted(names)),
    )


def _more(count: int) -> str:
    return f", and neither have {count} more" if count else ""
