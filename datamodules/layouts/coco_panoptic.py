"""COCO panoptic: a PNG a picture whose colours are segments, and a JSON file a split that says their classes.

A segment's number is red + 256 green + 65536 blue; 0 is no segment, which is ignored (Kirillov et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.batch import Item
from datamodules.classes import ClassSpec, Colour, Legend
from datamodules.errors import DataError
from datamodules.layouts import Listing, MaskSource, pairs
from datamodules.layouts.coco import LARGEST, identity, read_classes, read_images
from datamodules.layouts.coco_masks import check_numbers
from datamodules.layouts.parsing import (
    IMAGES,
    entry,
    path_below,
    read_json,
    read_stored,
    refuse_unused_folder,
    shorten,
    split_file,
    split_names,
)

ANNOTATIONS = "annotations/panoptic_{split}.json"
PICTURES = "{split}"
MASKS = ("annotations/panoptic_{split}", "panoptic_{split}")

VOID = "void"


def scan(
    root: Path,
    *,
    annotations: str = ANNOTATIONS,
    images: str = PICTURES,
    labels: str | None = None,
    folder: str | None = None,
) -> Listing:
    """The pictures of `annotations`, a path below `root`, in the folder `images`; their PNGs in `labels`.

    folder: what ``{split}`` stands for in all three; None: every file that `annotations` fits. labels: None: the
    first of `MASKS` that is there.
    """
    refuse_unused_folder(folder, annotations)
    if folder is None and "{split}" in annotations:
        splits = split_names(root, annotations, layout="coco_panoptic")
        return pairs.merge(
            scan(root, annotations=annotations, images=images, labels=labels, folder=each) for each in splits
        )
    path = split_file(root, annotations, folder or "", layout="coco_panoptic")
    tried = [root / each.replace("{split}", folder or "") for each in ((labels,) if labels else MASKS)]
    masks = next((each for each in tried if each.is_dir()), None)
    if masks is None:
        raise DataError(f"{path}: no folder of its PNGs; looked for: {', '.join(map(str, tried))}")
    return _read(root, path, root / images.replace("{split}", folder or ""), masks)


def _read(root: Path, path: Path, pictures: Path, masks: Path) -> Listing:
    content = read_json(path, largest=LARGEST)
    categories = entry(content, "categories", list, str(path))
    classes = check_numbers(path, read_classes(path, categories))
    known = read_images(path, pictures, entry(content, "images", list, str(path)))
    items: dict[str, Item] = {}
    sources: dict[str, MaskSource] = {}
    without_label: list[str] = []
    without_image: list[str] = []
    labels: set[Path] = set()
    found = _read_segments(path, masks, entry(content, "annotations", list, str(path)), known, classes)
    void = max(classes) + 1
    for number, (image, size) in known.items():
        label, segments, numbers = found.get(number, (None, None, None))
        if label is not None:
            labels.add(label)
        if not image.is_file():
            without_image.append(f"{path}: {image}")
        elif label is None or segments is None or numbers is None or not label.is_file():
            without_label.append(str(image))
        else:
            name = image.relative_to(root).as_posix()
            items[name] = Item(name, name, str(image), str(label))
            sources[str(image)] = SegmentMask(str(path), size, segments, numbers, void)
    named = {image for image, _ in known.values()}
    others, unused = sorted(pictures.rglob(IMAGES)), sorted(masks.glob("*.png"))
    return Listing(
        items=[items[name] for name in sorted(items)],
        images_without_label=without_label + [str(each) for each in others if each not in named],
        labels_without_image=without_image + [str(each) for each in unused if each not in labels],
        sources=sources,
        declared=_legend(path, categories, classes, void),
        beside=(str(path),),
    )


@dataclass(frozen=True)
class SegmentMask:
    """One picture's segments; see `datamodules.layouts.MaskSource`."""

    source: str
    """The JSON file."""
    size: tuple[int, int]
    """(height, width), as the JSON file has it."""
    segments: NDArray[np.int32]
    """(n,) their numbers, rising."""
    categories: NDArray[np.int32]
    """(n,) of each segment."""
    void: int
    """Stands for no segment."""

    def codes(self, path: str) -> NDArray[np.int32]:
        """(H, W) numbers of categories."""
        colours = read_stored(path)
        if colours.dtype != np.uint8 or colours.ndim != 3 or colours.shape[2] < 3:
            kind = f"{colours.shape[2] if colours.ndim == 3 else 1} of {colours.dtype}"
            raise DataError(f"{path}: a panoptic PNG has three channels of 8 bits, not {kind}")
        if colours.shape[:2] != self.size:
            own, stated = (" x ".join(map(str, size)) for size in (colours.shape[:2], self.size))
            raise DataError(f"{path}: is {own} (height x width), but {self.source} says {stated}")
        return self._look_up(colours[..., :3].astype(np.int32) @ np.array([1, 256, 65536], np.int32), path)

    def _look_up(self, numbers: NDArray[np.int32], path: str) -> NDArray[np.int32]:
        known = np.concatenate([[np.int32(0)], self.segments])
        places = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
        strange = known[places] != numbers
        if strange.any():
            found = np.unique(numbers[strange])
            raise DataError(
                f"{path}: {strange.sum()} pixels are of segments that {self.source} doesn't have: "
                f"{shorten(', '.join(map(str, found.tolist())))}"
            )
        return np.concatenate([[np.int32(self.void)], self.categories])[places]


Segments = tuple[Path, NDArray[np.int32], NDArray[np.int32]]
"""A PNG, its segments' numbers, and their categories."""


def _read_segments(
    path: Path,
    masks: Path,
    records: list[Any],
    known: dict[int, tuple[Path, tuple[int, int]]],
    classes: dict[int, str],
) -> dict[int, Segments]:
    """By image."""
    found: dict[int, Segments] = {}
    for index, record in enumerate(records):
        where = f"{path}, annotations[{index}]"
        image = identity(record, "image_id", where)
        if image not in known:
            raise DataError(f"{where}: image_id {image} is no image of this file")
        if image in found:
            raise DataError(f"{where}: the image {image} has an annotation already")
        label = path_below(masks, entry(record, "file_name", str, where), where)
        infos = entry(record, "segments_info", list, where)
        segments = dict(
            _read_info(info, classes, f"{where}, segments_info[{i}]") for i, info in enumerate(infos)
        )
        if len(segments) < len(infos):
            raise DataError(f"{where}: a segment is given twice")
        numbers = sorted(segments)
        found[image] = (
            label,
            np.array(numbers, np.int32),
            np.array([segments[number] for number in numbers], np.int32),
        )
    return found


def _read_info(record: Any, classes: dict[int, str], where: str) -> tuple[int, int]:
    """(segment, category)."""
    segment, category = (identity(record, key, where) for key in ("id", "category_id"))
    if not 0 < segment < 1 << 24:
        raise DataError(f"{where}: the id {segment} can't be a colour; allowed: 1 to {(1 << 24) - 1}")
    if category not in classes:
        raise DataError(f"{where}: category_id {category} is none of {shorten(str(sorted(classes)))}")
    return segment, category


def _legend(path: Path, records: list[Any], classes: dict[int, str], void: int) -> Legend:
    specs = tuple(
        ClassSpec(name, (number,), _colour(record.get("color"), f"{path}, categories[{index}]"))
        for index, (record, (number, name)) in enumerate(zip(records, classes.items(), strict=True))
    )
    names = {name: number for number, name in classes.items()}
    return Legend(specs, ignore=(void,), names={VOID: void} | names)


def _colour(values: Any, where: str) -> Colour | None:
    if values is None:
        return None
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(type(v) is int and 0 <= v < 256 for v in values)
    ):
        raise DataError(f"{where}: color is {shorten(values)}; allowed: red, green, blue from 0 to 255")
    return values[0], values[1], values[2]
