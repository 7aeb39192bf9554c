"""Object faults: names, boxes and outlines in label files that are wrong, all of them, picture by picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from datamodules.classes import Value
from datamodules.detection import DetectionDataModule
from datamodules.layouts.objects import Annotations, ObjectListing, Repairs
from datamodules.objects import Objects
from datamodules.objects_reading import (
    CLIPPED,
    EMPTY,
    NO_OUTLINE,
    NOT_FINITE,
    OTHER_SIZE,
    OUTSIDE,
    ROUNDED,
    UNKNOWN,
    class_indices,
    owner_of,
    resolve_picture,
)
from datamodules.scenes import SceneModule
from visionsft.preparation.findings import Findings, Severity, shorten
from visionsft.preparation.looks import Look

_ALL = 1 << 30
_CHECKS = {
    NOT_FINITE: "degenerate box",
    EMPTY: "degenerate box",
    OUTSIDE: "box outside",
    CLIPPED: "box beyond edge",
    ROUNDED: "rounded box",
    NO_OUTLINE: "no outline",
    OTHER_SIZE: "other size",
}
"""Kinds of flaws that the readers count, and what they are here."""

TWICE = 0.95
"""Overlap (IoU) from which on two boxes are the same."""
TINY = 8.0
"""Side in pixels of the training size (square root of the area) below which an object is tiny; 8 is the stride of
the finest features of most detectors."""
SPELLING = 0.75
"""Similarity from which on a name is taken for a misspelt one."""


def resolve_objects(
    looks: Sequence[Look], module: DetectionDataModule, listing: ObjectListing, findings: Findings
) -> dict[str, Objects]:
    """The objects of every picture whose size is known, by its path, in its pixels; every flaw is a finding."""
    owners = class_indices(module.specs, ignore=module.ignore, legend=listing.legend)
    form = module.form_of(listing)
    pictures = {item.image: listing.annotations[item.id] for item in listing.items}
    found: dict[str, Objects] = {}
    for look in looks:
        raw, size = pictures.get(look.item.image), _size_of(look, module)
        if raw is None or look.item.image in found or size == (0, 0):
            continue
        flaws = Repairs(shown=_ALL)
        found[look.item.image] = resolve_picture(raw, owners, size, form=form, flaws=flaws)
        for kind, places in flaws.places.items():
            for text in places:
                place, _, what = text.removeprefix(f"{raw.source}, ").removeprefix(f"{raw.source}: ").rpartition(": ")
                allowed = f"inside of {size[1]} x {size[0]} pixels"
                findings.add(
                    _CHECKS[kind], raw.source, what or text, allowed=allowed, place=place, item=look.item.id
                )
        _check_names(raw, owners, module, look, findings)
        _check_twice(raw, owners, look, findings)
    return found


def _size_of(look: Look, module: DetectionDataModule) -> tuple[int, int]:
    """(height, width) of the whole file, in whose pixels its label file counts."""
    if not isinstance(module, SceneModule):
        return look.size
    grid = module.scene_of(look.item).header.grid
    return grid.height, grid.width


# ------------------------------------------------------------------------------------------------------- names


def _check_names(
    raw: Annotations,
    owners: Mapping[Value, int],
    module: DetectionDataModule,
    look: Look,
    findings: Findings,
) -> None:
    known = tuple(dict.fromkeys([*(spec.name for spec in module.specs), *map(str, owners)]))
    for index, name in enumerate(raw.names):
        if raw.ignored[index]:
            continue
        place, owner = raw.place(index).removeprefix(f"{raw.source}, "), owner_of(name, owners)
        box = _box_of(raw, index)
        if str(name).strip() == "":
            handled = owner != UNKNOWN
            found = "no name" + (" (ignored, as data.ignore says)" if handled else "")
            severity: Severity = "warning" if handled else "error"
            findings.add(
                "unnamed object", raw.source, found, allowed=shorten(known), place=place, item=look.item.id, box=box,
                severity=severity,
            )  # fmt: skip
        elif owner == UNKNOWN:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            found = repr(name) + (f", nearest: {near[0]}" if near else "")
            findings.add(
                "unknown name", raw.source, found, allowed=shorten(known), place=place, item=look.item.id, box=box
            )
        elif owner >= 0 and _is_misspelt(str(name), module.specs[owner].name):
            found = f"{name!r}, taken for {module.specs[owner].name!r}"
            findings.add(
                "misspelt name", raw.source, found, allowed=module.specs[owner].name, place=place, item=look.item.id,
                box=box,
            )  # fmt: skip


@lru_cache(maxsize=4096)
def _is_misspelt(name: str, meant: str) -> bool:
    """Whether a name is nearly that of its class, but for more than case and what joins words."""
    plain, wanted = (re.sub(r"[\s_-]+", "", each).lower() for each in (name, meant))
    if plain == wanted or not re.search(r"[^\W\d]", name):
        return False
    # a subclass, such as 'Tree_Oak' of 'Tree', is no slip; a stray sign is one
    if re.sub(r"\W+", "", plain) == re.sub(r"\W+", "", wanted):
        return True
    return SequenceMatcher(None, plain, wanted).ratio() >= SPELLING and abs(len(plain) - len(wanted)) <= 2


def _box_of(raw: Annotations, index: int) -> tuple[int, int, int, int] | None:
    """Row, column, height and width."""
    values = raw.boxes[index]
    if not np.isfinite(values).all() or np.abs(values).max() > 1e8:
        return None
    x1, y1, x2, y2 = values.tolist()
    return round(y1), round(x1), round(y2 - y1), round(x2 - x1)


# ------------------------------------------------------------------------------------------------------- boxes


def _check_twice(raw: Annotations, owners: Mapping[Value, int], look: Look, findings: Findings) -> None:
    boxes = raw.boxes
    usable = np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    usable &= ~raw.ignored
    index = np.flatnonzero(usable)
    for first, second in same_boxes(boxes[index]):
        one, other = int(index[first]), int(index[second])
        same = owner_of(raw.names[one], owners) == owner_of(raw.names[other], owners)
        check = "duplicated box" if same else "conflicting boxes"
        found = f"{raw.names[other]!r}, the same box as {raw.unit} {raw.places[one]}, {raw.names[one]!r}"
        place = raw.place(other).removeprefix(f"{raw.source}, ")
        findings.add(check, raw.source, found, place=place, item=look.item.id, box=_box_of(raw, other))


def same_boxes(boxes: NDArray[np.float64], *, least: float = TWICE) -> list[tuple[int, int]]:
    """boxes (N, 4) -> pairs of indices, the smaller first, whose intersection over union is at least `least`."""
    pairs = []
    for index in range(1, len(boxes)):
        overlap = overlaps(boxes[index : index + 1], boxes[:index])[0]
        best = int(overlap.argmax())
        if overlap[best] >= least:
            pairs.append((best, index))
    return pairs


def overlaps(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, 4), (M, 4) x1, y1, x2, y2 -> (N, M) intersection over union."""
    left = np.maximum(one[:, None, :2], other[None, :, :2])
    right = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(right - left, 0, None).prod(axis=2).astype(np.float64)
    areas = [(each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def check_sizes(
    looks: Sequence[Look], module: DetectionDataModule, objects: Mapping[str, Objects], findings: Findings
) -> None:
    """Objects tiny in the size that a training sees, and pictures without objects."""
    for look in looks:
        found = objects.get(look.item.id)
        if found is None:
            continue
        if len(found) == 0:
            findings.add("no objects", look.item.image, "0 objects", place=look.split, item=look.item.id)
        share = _training_share(module, look)
        boxes = found.boxes[~found.ignored]
        sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) * share
        for index in np.flatnonzero(sides < TINY).tolist():
            x1, y1, x2, y2 = boxes[index].tolist()
            findings.add(
                "tiny box", look.item.label or look.item.image, f"{sides[index]:.1f} pixels in training",
                allowed=f"from {TINY:g}", place=f"{look.split}, box ({x1:g}, {y1:g}, {x2:g}, {y2:g})",
                item=look.item.id, box=(round(y1), round(x1), round(y2 - y1), round(x2 - x1)),
            )  # fmt: skip


def _training_share(module: DetectionDataModule, look: Look) -> float:
    """Side of an object in training over its side in the picture."""
    fit = getattr(module, "fit", None)
    return 1.0 if fit is None else float(fit(look.size)[1] / max(look.size[1], 1))


def part_of(objects: Objects, look: Look) -> Objects:
    """Those whose middle lies in the item's window, for scenes that are divided."""
    window = look.item.window
    if window is None:
        return objects
    x, y = (objects.boxes[:, :2] + objects.boxes[:, 2:]).T / 2
    inside = (x >= window.col) & (x < window.col + window.width)
    inside &= (y >= window.row) & (y < window.row + window.height)
    return replace(objects.take(inside))
