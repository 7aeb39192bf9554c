"""Objects of a model's classes, from what label files say: names become indices, flaws are named or mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.classes import ClassSpec, Legend, Value
from datamodules.errors import DataError
from datamodules.layouts.objects import SHOWN, Annotations, ObjectListing, Outline, Repairs
from datamodules.objects import Objects, Rings

Form = Literal["boxes", "outlines", "turned"]
"""What a task needs of each object: its upright box alone, its outline too, or its turned box too."""

ROUNDING = 1.0
"""Pixels that a box may reach beyond its picture by the rounding of annotation tools: clipped and counted, no error."""

NOT_FINITE = "boxes have coordinates that are not finite (skip: left out)"
EMPTY = "boxes are empty, x2 <= x1 or y2 <= y1 (skip: left out)"
OUTSIDE = "boxes lie wholly outside of their picture (skip: left out)"
CLIPPED = f"boxes reach more than {ROUNDING:g} px beyond their picture (skip: clipped)"
ROUNDED = f"boxes reach at most {ROUNDING:g} px beyond their picture (clipped)"
UNNAMED = "boxes have no name; name them in the label files (skip: ignored regions)"
NO_OUTLINE = "boxes have no outline (skip: ignored regions)"
OTHER_SIZE = "label files state another size than their picture's (skip: boxes kept as they are)"

_IGNORED = -1
UNKNOWN = -2
"""The 'class' of a name that is in no class and not ignored."""


@dataclass(frozen=True)
class Reading:
    """The objects of a listing's pictures and what had to be mended."""

    objects: dict[str, Objects]
    """By item id."""
    repairs: Repairs


def resolve(
    listing: ObjectListing,
    *,
    classes: Sequence[ClassSpec],
    ignore: Sequence[Value] = (),
    sizes: Mapping[str, tuple[int, int]],
    form: Form = "boxes",
    on_error: Literal["stop", "skip"] = "stop",
) -> Reading:
    """Every picture's objects: class indices for names, boxes within the picture.

    classes: a class's index is its place; its `values` (or, if no other class has that value, its name) are
    compared with what the files say, a name or its number in the files' legend. ignore: names or numbers
    whose objects become ignored regions. sizes: (height, width) of each picture by item id.
    on_error: 'stop' raises a DataError with every kind of flaw, its count and first places; 'skip' mends:
    boxes that are not finite, empty or outside are left out, others clipped, and what has no known class or
    no outline becomes an ignored region. Outlines and turned boxes are not clipped.
    """
    _require_form(listing, form)
    owners = class_indices(classes, ignore=ignore, legend=listing.legend)
    repairs = Repairs()
    repairs.extend(listing.repairs)
    flaws, unknown = Repairs(), _unknown_names(listing, owners)
    objects = {
        item.id: resolve_picture(
            listing.annotations[item.id], owners, sizes[item.id], form=form, flaws=flaws, unknown=unknown
        )
        for item in listing.items
    }
    if on_error == "stop":
        _stop(listing, flaws)
    repairs.extend(flaws)
    return Reading(objects, repairs)


def class_indices(
    classes: Sequence[ClassSpec], *, ignore: Sequence[Value] = (), legend: Legend
) -> dict[Value, int]:
    """Index of the class that every name and number in label files means; -1 where it is ignored."""
    owners: dict[Value, int] = {}
    pairs = [(value, index) for index, spec in enumerate(classes) for value in spec.values]
    for value, index in [*pairs, *((value, _IGNORED) for value in ignore)]:
        if owners.setdefault(value, index) != index:
            raise DataError(f"the label {value!r} is given twice, in two classes or in a class and in ignore")
    for index, spec in enumerate(classes):
        owners.setdefault(spec.name, index)
    for name, value in legend.names.items():
        if value in owners:
            owners.setdefault(name, owners[value])
        elif name in owners:
            owners[value] = owners[name]
    return owners


def count_objects(raw: Annotations, owners: Mapping[Value, int], *, classes: int) -> NDArray[np.int64]:
    """(K,) objects of each class in a label file that are not ignored; owners: see `class_indices`."""
    labels = np.array([owner_of(name, owners) for name in raw.names], np.int64)
    return np.bincount(labels[(labels >= 0) & ~raw.ignored], minlength=classes)


def _require_form(listing: ObjectListing, form: Form) -> None:
    """Pictures without objects say nothing about what their labels could hold."""
    described = [each for each in listing.annotations.values() if len(each)]
    if form == "boxes" or not described:
        return
    if all((each.outlines if form == "outlines" else each.turned) is None for each in described):
        raise DataError(f"no label file has {form}, e.g. {described[0].source}; boxes alone it has")


def _unknown_names(listing: ObjectListing, owners: Mapping[Value, int]) -> dict[Value, str]:
    """The kind of flaw that each name without a class is."""
    names = {name for each in listing.annotations.values() for name in each.names}
    unknown = [name for name in names if owner_of(name, owners) == UNKNOWN]
    return {name: UNNAMED if name == "" else _unknown_kind(name, owners) for name in unknown}


def resolve_picture(
    raw: Annotations,
    owners: Mapping[Value, int],
    size: tuple[int, int],
    *,
    form: Form,
    flaws: Repairs,
    unknown: Mapping[Value, str] | None = None,
) -> Objects:
    """The objects of one picture, mended as by `resolve`; every flaw is added to `flaws`.

    owners: see `class_indices`. unknown: the kind of flaw of each name without a class; None: such names are
    left to the caller.
    """
    if raw.size is not None and raw.size != size:
        flaws.add(OTHER_SIZE, f"{raw.source}: {_show_size(raw.size)}, but {_show_size(size)}")
    boxes, kept = _check_boxes(raw, size, flaws)
    labels = np.array([owner_of(name, owners) for name in raw.names], np.int64)
    if unknown is not None:
        for index in np.flatnonzero((labels == UNKNOWN) & ~raw.ignored & kept).tolist():
            flaws.add(unknown[raw.names[index]], raw.place(index))
    ignored = raw.ignored | (labels < 0)
    outlines = raw.outlines or ((),) * len(raw)
    if form == "outlines":
        bare = np.array([not outline for outline in outlines], np.bool_)
        _note(raw, bare & ~ignored & kept, NO_OUTLINE, flaws)
        ignored = ignored | bare
    turned = np.empty((0, 5)) if raw.turned is None else raw.turned[kept]
    return Objects(
        boxes=boxes[kept],
        labels=np.where(ignored, 0, labels)[kept],
        ignored=ignored[kept],
        shapes=tuple(_rings(outlines[i], boxes[i]) for i in np.flatnonzero(kept))
        if form == "outlines"
        else None,
        turned=turned.astype(np.float32) if form == "turned" else None,
        difficult=None if raw.turned is None else np.where(raw.ignored & (labels >= 0), labels, -1)[kept],
    )


def _check_boxes(
    raw: Annotations, size: tuple[int, int], flaws: Repairs
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(N, 4) boxes clipped to the picture, and which of them are left."""
    height, width = size
    finite = _finite(raw)
    # float32, as training sees them: a box thinner than its precision is empty too
    given = np.where(finite[:, None], raw.boxes, 0).astype(np.float32)
    full = finite & (given[:, 2] > given[:, 0]) & (given[:, 3] > given[:, 1])
    edges = np.array([width, height, width, height], np.float32)
    clipped = np.clip(given, 0, edges)
    inside = full & (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    beyond = np.abs(given - clipped).max(axis=1, initial=0)
    _note(raw, ~finite, NOT_FINITE, flaws)
    _note(raw, finite & ~full, EMPTY, flaws)
    _note(raw, full & ~inside, OUTSIDE, flaws)
    _note(raw, inside & (beyond > ROUNDING), CLIPPED, flaws)
    _note(raw, inside & (beyond > 0) & (beyond <= ROUNDING), ROUNDED, flaws)
    return clipped, inside


def _finite(raw: Annotations) -> NDArray[np.bool_]:
    """(N,) whether every coordinate is a number that float32 has."""
    finite = _is_finite(raw.boxes)
    if raw.turned is not None:
        finite = finite & _is_finite(raw.turned)
    if raw.outlines is not None:
        whole = [all(_is_finite(ring).all() for ring in outline) for outline in raw.outlines]
        finite = finite & np.array(whole, np.bool_)
    return finite


def _is_finite(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    within: NDArray[np.bool_] = np.abs(values) <= np.finfo(np.float32).max
    return np.logical_and.reduce(within, axis=1)


def _rings(outline: Outline, box: NDArray[np.float32]) -> Rings:
    """An ignored region without an outline has that of its box."""
    if outline:
        return tuple(ring.astype(np.float32) for ring in outline)
    x1, y1, x2, y2 = box.tolist()
    return (np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32),)


def owner_of(name: Value, owners: Mapping[Value, int]) -> int:
    """Index of the class that a name in a label file means; -1: ignored; UNKNOWN."""
    if name in owners:
        return owners[name]
    if isinstance(name, str) and name.isdecimal() and len(name) < 10:  # '3' in a CSV or VOC file
        return owners.get(int(name), UNKNOWN)
    return UNKNOWN


def _note(raw: Annotations, where: NDArray[np.bool_], kind: str, flaws: Repairs) -> None:
    for index in np.flatnonzero(where).tolist():
        shown = ", ".join(f"{value:g}" for value in raw.boxes[index])
        flaws.add(kind, f"{raw.place(index)}: ({shown})")


def _unknown_kind(name: Value, owners: Mapping[Value, int]) -> str:
    known = [str(owner) for owner in owners]
    nearest = get_close_matches(str(name), known, n=1)
    hint = f"nearest: {nearest[0]}" if nearest else f"known: {', '.join(known)}"
    return (
        f"boxes are named '{name}', {hint}; add it to the class's values or to data.ignore "
        "(skip: ignored regions)"
    )


def _stop(listing: ObjectListing, flaws: Repairs) -> None:
    serious = Repairs(Counter(flaws.counts), flaws.places)
    del serious.counts[ROUNDED]
    lines = [serious.describe()] if serious.counts else []
    if listing.unreadable:
        reasons = "; ".join(reason for _, reason in listing.unreadable[:SHOWN])
        more = " ..." if len(listing.unreadable) > SHOWN else ""
        lines.append(f"{len(listing.unreadable)} label files can't be read: {reasons}{more}")
    if lines:
        text = "\n".join(lines)
        raise DataError(f"the labels have flaws:\n{text}\non_error: skip mends what can be, and counts it")


def _show_size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels"
