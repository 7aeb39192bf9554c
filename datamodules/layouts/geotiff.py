"""GeoTIFF scenes: image rasters and the label rasters or vector files that bear their names.

Scenes are found by a glob, with a file a band where it has ``{band}``; or they are named by a list (a text file) or
by STAC JSON (see `datamodules.layouts.stac`), both of which may name remote files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.batch import Item
from datamodules.errors import DataError
from datamodules.labels import is_vector
from datamodules.layouts import Listing, pairs, stac
from datamodules.layouts.parsing import read_text
from datamodules.paths import is_remote, stem_of, together

LIST_SUFFIX = ".txt"

SIGNS = "_-. "
"""What may stand between the band and the rest of a file's name."""


def scan(
    root: Path,
    *,
    images: str,
    labels: str,
    folder: str | None = None,
    bands: Sequence[str] | None = None,
) -> Listing:
    """Every scene with its label file; a scene is its own group.

    images: glob below `root`, e.g. ``{split}/images/*.tif``, or ``{split}/*_{band}.tif`` for scenes with a file a
    band; or a list of paths (.txt), or STAC (.json, .geojson), below root, absolute or remote; labels: path of a label
    raster with ``{name}``, the scene's stem, e.g. ``{split}/labels/{name}.tif``, or of a vector file, which may serve
    several scenes, e.g. ``all.gpkg``; for STAC also the key of an asset; folder: what ``{split}`` stands for, None:
    all; bands: names of the bands, which ``{band}`` stands for and STAC's assets bear.
    """
    if is_listed(images) or stac.is_stac(images):
        if "{split}" in images and folder is None:
            folders = _folders(root, images)
            return pairs.merge(
                scan(root, images=images, labels=labels, folder=each, bands=bands) for each in folders
            )
        images, labels = (text.replace("{split}", folder or "") for text in (images, labels))
        if stac.is_stac(images):
            return stac.scan(root, items=images, labels=labels, bands=bands)
        return _scan_list(root, images, labels)
    if "{band}" in images:
        return _scan_bands(root, images, labels, folder, bands)
    return pairs.scan(root, images=images, labels=labels, folder=folder, shared=is_vector(labels))


def is_listed(images: str) -> bool:
    """Whether scenes are named in a text file."""
    return images.lower().endswith(LIST_SUFFIX)


def _folders(root: Path, images: str) -> list[str]:
    before, after = images.split("{split}", maxsplit=1)
    names = [path.relative_to(root).as_posix() for path in sorted(root.glob(f"{before}*{after}"))]
    if not names:
        raise DataError(f"{root}: no file matches {before}*{after}")
    return [name.removeprefix(before).removesuffix(after) for name in names]


# ------------------------------------------------------------------------------------- lists


def _scan_list(root: Path, images: str, labels: str) -> Listing:
    """A path or address a line; paths are below the list's folder or absolute; lines with # are comments."""
    path = root / images
    if not path.is_file():
        return Listing()
    places: dict[str, int] = {}
    items, without_label = [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if name in places:
            raise DataError(f"{path}, line {number}: {name} is in line {places[name]} already")
        places[name] = number
        image = name if is_remote(name) else str(path.parent / name)
        label = label_path(root, labels, stem_of(name))
        if is_remote(label) or Path(label).is_file():
            items.append(Item(name, name, image, label))
        else:
            without_label.append(image)
    return Listing(sorted(items, key=lambda item: item.id), images_without_label=without_label)


def label_path(root: Path, template: str, name: str) -> str:
    """Of the scene `name`; a remote one isn't looked for."""
    label = template.replace("{name}", name)
    return label if is_remote(label) else str(root / label)


# ------------------------------------------------------------------------------------- a file a band


def _scan_bands(
    root: Path, images: str, labels: str, folder: str | None, bands: Sequence[str] | None
) -> Listing:
    """Scenes are found by the file of their first band; whether the others are there, is seen when they are opened."""
    if bands is None or len(bands) < 2:
        raise DataError(f"images: {images!r} has {{band}}, so `bands` must name the bands, two or more")
    first = images.replace("{band}", bands[0])
    if folder is None and "{split}" in images:
        folders = pairs.split_folders(root, images=first, labels=labels)
        return pairs.merge(_scan_bands(root, images, labels, each, bands) for each in folders)
    pattern = _BandPattern.of(images.replace("{split}", folder or ""))
    template = labels.replace("{split}", folder or "")
    found: dict[str, Item] = {}
    without_label, used = [], set()
    for path in sorted(root.glob(first.replace("{split}", folder or ""))):
        place = path.relative_to(root)
        id = pattern.scene(place, bands[0])
        if id in found:
            raise DataError(f"{path}: this and another file would both be band {bands[0]} of the scene {id}")
        label = label_path(root, template, Path(id).stem)
        used.add(label)
        if not is_remote(label) and not Path(label).is_file():
            without_label.append(str(path))
            continue
        image = together([str(root / pattern.sibling(place, bands[0], band)) for band in bands])
        found[id] = Item(id, id, image, label)
    if is_remote(template) or "{name}" not in template:
        strays = []
    else:
        strays = [
            str(path) for path in sorted(root.glob(template.replace("{name}", "*"))) if str(path) not in used
        ]
    return Listing([found[id] for id in sorted(found)], without_label, strays)


@dataclass(frozen=True)
class _BandPattern:
    """Where in a path the band stands."""

    depth: int
    """Of the folder or file with the band in its name, counted from the end."""
    name: str
    """Regular expression of what stands before and behind the band there, with `{}` for the band."""

    @classmethod
    def of(cls, images: str) -> _BandPattern:
        """images: a glob with ``{band}``."""
        parts = Path(images).parts
        places = [index for index, part in enumerate(parts) if "{band}" in part]
        if (
            len(places) != 1
            or images.count("{band}") > 1
            or "[" in parts[places[0]]
            or "**" in parts[places[0] :]
        ):
            raise DataError(
                f"images: {images!r} has {{band}} twice, before '**', or in a name with '['; allowed: once, beside "
                "'*' and '?'"
            )
        before, after = (_to_regex(text) for text in parts[places[0]].split("{band}"))
        return cls(len(parts) - places[0], f"({before}){{}}({after})")

    def scene(self, place: Path, band: str) -> str:
        """The scene's name as a path: without the band, and without a folder or file that is named by it alone."""
        before, after = self._around(place, band)
        parts = list(place.parts)
        joined = before.rstrip(SIGNS) + (after if before.rstrip(SIGNS) else after.lstrip(SIGNS))
        if self.depth > 1:
            parts[-self.depth : len(parts) - self.depth + 1] = [joined] if joined else []
        elif before or Path(f"x{after}").stem != "x":
            parts[-1] = joined
        else:  # a folder a scene
            parts[-2:] = [f"{place.parent.name}{place.suffix}"]
        return "/".join(parts)

    def sibling(self, place: Path, band: str, other: str) -> Path:
        """The path of another band of the same scene."""
        before, after = self._around(place, band)
        parts = list(place.parts)
        parts[-self.depth] = f"{before}{other}{after}"
        return Path(*parts)

    def _around(self, place: Path, band: str) -> tuple[str, str]:
        match = re.fullmatch(self.name.format(re.escape(band)), place.parts[-self.depth])
        assert match is not None, f"{place} was found by the same pattern"
        return match[1], match[2]


def _to_regex(text: str) -> str:
    """Of a glob without sets; braces are doubled, for `str.format`."""
    plain = re.escape(text).replace(r"\*", ".*").replace(r"\?", ".")
    return plain.replace("{", "{{").replace("}", "}}")
