"""Pairs: folders of images and of masks that bear the same names, in any arrangement the user describes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from datamodules.classes import Legend
from datamodules.errors import DataError
from datamodules.layouts import Listing, pair_by_name

LABEL_FORMS = ("index", "colour")
"""How the masks can be coded; what their values mean, the user says."""


def scan(root: Path, *, images: str, labels: str, folder: str | None = None, shared: bool = False) -> Listing:
    """Every image below `root` with the mask of its name.

    images: glob, e.g. ``images/{split}/*.png``; labels: path of a mask with ``{name}``, the image's stem,
    e.g. ``masks/{split}/{name}.png``; folder: what ``{split}`` stands for, None: every folder that it fits;
    shared: see `pair_by_name`.
    """
    if folder is not None or "{split}" not in images or not ("{name}" in labels or shared):
        return pair_by_name(root, images=images, labels=labels, folder=folder, shared=shared)
    found = split_folders(root, images=images, labels=labels)
    return merge(
        pair_by_name(root, images=images, labels=labels, folder=each, shared=shared) for each in found
    )


def split_folders(root: Path, *, images: str, labels: str) -> list[str]:
    """What ``{split}`` can stand for: folders of images that have a folder of labels."""
    parts = Path(images).parts
    depth = next(index for index, part in enumerate(parts) if "{split}" in part)
    before, after = parts[depth].split("{split}", maxsplit=1)
    names = {
        path.name.removeprefix(before).removesuffix(after)
        for path in root.glob("/".join((*parts[:depth], f"{before}*{after}")))
        if path.is_dir()
    }
    holder = labels.partition("{name}")[0].rpartition("/")[0]
    return sorted(name for name in names if (root / holder.replace("{split}", name)).is_dir())


def first_present(root: Path, variants: Iterable[tuple[str, str]], *, layout: str) -> tuple[str, str]:
    """The (images, labels) of a layout's releases that lies below `root`."""
    tried = list(variants)
    for images, labels in tried:
        anywhere = (images.replace("{split}", "*"), labels.replace("{split}", "*").replace("{name}", "*"))
        if all(any(root.glob(pattern)) for pattern in anywhere):
            return images, labels
    looked = "; ".join(f"{images} with {labels}" for images, labels in tried)
    raise DataError(f"{root} is not in the layout '{layout}'. Looked for: {looked}")


def merge(listings: Iterable[Listing]) -> Listing:
    """One listing of several folders' ones, sorted by id."""
    together = list(listings)
    return Listing(
        items=sorted((item for each in together for item in each.items), key=lambda item: item.id),
        images_without_label=[path for each in together for path in each.images_without_label],
        labels_without_image=[path for each in together for path in each.labels_without_image],
        sources={path: source for each in together for path, source in each.sources.items()},
        declared=agreed_legend(each.declared for each in together),
        beside=tuple(dict.fromkeys(path for each in together for path in each.beside)),
    )


def agreed_legend(legends: Iterable[Legend | None]) -> Legend | None:
    """The classes that the label files of several splits declare, which must be the same."""
    declared = [legend for legend in legends if legend is not None]
    for other in declared[1:]:
        if dict(other.names) != dict(declared[0].names):
            differ = {*other.names.items()} ^ {*declared[0].names.items()}
            name, _ = min(differ, key=str)
            values = [legend.names.get(name, "missing") for legend in (declared[0], other)]
            raise DataError(
                f"the label files of two splits declare different classes: '{name}' is {values[0]} in one and "
                f"{values[1]} in the other ({len({name for name, _ in differ})} names differ)"
            )
    return declared[0] if declared else None
