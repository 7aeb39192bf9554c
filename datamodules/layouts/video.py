"""Videos with masks of some of their frames, each named by its frame's number.

Frames are counted from 0 in the order shown. A video is a group of its own: a split by folder or by drive keeps it
whole.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from datamodules.batch import Item
from datamodules.errors import DataError
from datamodules.layouts import Listing, pairs
from datamodules.videos import VIDEO_SUFFIXES, count_frames, frame_path

IMAGES = "videos/{split}/*"
LABELS = "labels/{split}/{name}/{frame}.png"


def scan(root: Path, *, images: str = IMAGES, labels: str = LABELS, folder: str | None = None) -> Listing:
    """The frames of every video below `root` that have a mask.

    images: glob of the videos; labels: path of a mask with ``{name}``, the video's stem, and ``{frame}``, its
    frame's number (with or without zeros before it); folder: what ``{split}`` stands for, None: all.
    """
    missing = [each for each in ("{name}", "{frame}") if each not in labels]
    if missing:
        raise DataError(
            f"labels: {labels!r} has no {missing[0]}: masks are found by their video and frame number"
        )
    if "{frame}" not in Path(labels).name or labels.count("{frame}") > 1:
        raise DataError(f"labels: {labels!r} has {{frame}} elsewhere than once in the file's name")
    if not root.is_dir():
        raise DataError(f"root: {root} is not a folder")
    if folder is None and "{split}" in images:
        folders = pairs.split_folders(root, images=images, labels=labels)
        return pairs.merge(scan(root, images=images, labels=labels, folder=each) for each in folders)
    pattern, template = (text.replace("{split}", folder or "") for text in (images, labels))
    found = [path for path in sorted(root.glob(pattern)) if path.suffix.lower() in VIDEO_SUFFIXES]
    _refuse_equal_stems(found)
    listings = [_read(root, path, template.replace("{name}", path.stem)) for path in found]
    used = {item.label for listing in listings for item in listing.items}
    used |= {path for listing in listings for path in listing.labels_without_image}
    every = root.glob(template.replace("{name}", "*").replace("{frame}", "*"))
    strays = [str(path) for path in sorted(every) if str(path) not in used]
    together = pairs.merge(listings)
    return replace(together, labels_without_image=[*together.labels_without_image, *strays])


def _read(root: Path, video: Path, template: str) -> Listing:
    """The labelled frames of one video."""
    masks = _numbered(root, template)
    if not masks:
        return Listing(images_without_label=[str(video)])
    count = count_frames(str(video))
    group = video.relative_to(root).as_posix()
    return Listing(
        items=[
            Item(f"{group}#{number:06d}", group, frame_path(video, number), str(masks[number]))
            for number in sorted(masks)
            if number < count
        ],
        labels_without_image=[str(masks[number]) for number in sorted(masks) if number >= count],
    )


def _numbered(root: Path, template: str) -> dict[int, Path]:
    """Masks by the number in their names."""
    name = re.compile(r"(\d+)".join(re.escape(part) for part in Path(template).name.split("{frame}")))
    found: dict[int, Path] = {}
    for path in sorted(root.glob(_escape(template).replace("{frame}", "*"))):
        match = name.fullmatch(path.name)
        if match is None:
            continue
        number = int(match[1])
        if number in found:
            raise DataError(f"{path} and {found[number]} are both masks of frame {number}")
        found[number] = path
    return found


def _escape(template: str) -> str:
    """A video's name may hold what means something in a glob."""
    return re.sub(r"([*?\[])", r"[\1]", template)


def _refuse_equal_stems(paths: list[Path]) -> None:
    owners: dict[str, Path] = {}
    for path in paths:
        if owners.setdefault(path.stem, path) != path:
            raise DataError(f"{path} and {owners[path.stem]} have the same name, so masks fit both")
