"""Objects in label files: what every reader of boxes, outlines and turned boxes yields.

A reader keeps what a file says (`Annotations`); `objects_reading.resolve` turns it into `Objects`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.batch import Item
from datamodules.classes import ClassSpec, Legend, Value
from datamodules.errors import DataError
from datamodules.layouts import Listing, pairs

Outline = tuple[NDArray[np.float64], ...]
"""Polygons of (n, 2) x, y in pixels, by the even-odd rule; () where the file gives this object none."""

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""

SHOWN = 5
"""Places at most that are kept and named for one kind of flaw."""


@dataclass(frozen=True)
class Annotations:
    """What a label file says about one picture: unchecked, in pixels, (0, 0) the picture's upper left corner."""

    source: str
    """Path of the label file, for messages."""
    unit: str
    """What `places` count in it: 'line', 'object', 'annotation'..."""
    places: NDArray[np.int64]
    """(N,) line, position or id of each object."""
    names: tuple[Value, ...]
    """(N) class as the file calls it: a name or a number; '' where it has none."""
    boxes: NDArray[np.float64]
    """(N, 4) x1, y1, x2, y2 as in the file: perhaps beyond the picture, empty, or not finite."""
    ignored: NDArray[np.bool_]
    """(N,) what the file marks as no object to find: crowds, KITTI's DontCare, difficult objects."""
    outlines: tuple[Outline, ...] | None = None
    turned: NDArray[np.float64] | None = None
    """(N, 5) cx, cy, w, h and angle, as in `Objects.turned`; w is the longer side."""
    size: tuple[int, int] | None = None
    """(height, width) that the label file states, or that the picture's header does where the format needs it."""
    extras: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """(N,) numbers that `Objects` has no place for: KITTI's and VOC's 'truncated' and 'occluded'; nan where
    an object has none."""

    def __len__(self) -> int:
        return len(self.names)

    def place(self, index: int) -> str:
        """Where object `index` is found: 'labels/a.txt, line 3'."""
        return f"{self.source}, {self.unit} {self.places[index]}"


@dataclass
class Repairs:
    """What was found flawed and repaired: how often, and the first few places of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    shown: int = SHOWN
    """Places at most that are kept of a kind."""

    def add(self, kind: str, place: str) -> None:
        """Counts one flaw; `place` names file, line and what was found."""
        self.counts[kind] += 1
        known = self.places.setdefault(kind, [])
        if len(known) < self.shown:
            known.append(place)

    def extend(self, other: Repairs) -> None:
        """Counts another's flaws too."""
        self.counts.update(other.counts)
        for kind, places in other.places.items():
            self.places[kind] = [*self.places.get(kind, []), *places][: self.shown]

    def describe(self) -> str:
        """A line a kind: its count and first places."""
        return "\n".join(
            f"{count} {kind}: {'; '.join(self.places[kind])}{' ...' if count > SHOWN else ''}"
            for kind, count in self.counts.most_common()
        )


@dataclass(frozen=True)
class ObjectListing(Listing):
    """Pictures with their raw annotations, and what found no partner.

    A picture that was looked at and is empty is an item with no annotations; a picture that no label file
    speaks of is in `images_without_label`.
    """

    annotations: dict[str, Annotations] = field(default_factory=dict)
    """By item id."""
    legend: Legend = field(default_factory=lambda: Legend(()))
    """The classes that the files declare or, where they declare none, use; `names` holds their numbers."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(path of the image, what is wrong with its label file); such pictures are no items."""
    repairs: Repairs = field(default_factory=Repairs)
    """What was left out or mended while reading, as BDD100K's open lines."""


@dataclass(frozen=True)
class Row:
    """One object of a label file."""

    place: int
    """Its line, position or id in the file."""
    name: Value
    box: Box
    ignored: bool = False
    outline: Outline = ()
    turned: tuple[float, float, float, float, float] | None = None
    extras: Mapping[str, float] = field(default_factory=dict)


def box_around(points: NDArray[np.float64]) -> Box:
    """The upright box of (n, 2) points."""
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x1, y1, x2, y2


def annotate(
    source: str, unit: str, rows: Sequence[Row], *, size: tuple[int, int] | None = None
) -> Annotations:
    """The objects of one picture, put together."""
    keys = dict.fromkeys(key for row in rows for key in row.extras)
    return Annotations(
        source=source,
        unit=unit,
        places=np.array([row.place for row in rows], np.int64),
        names=tuple(row.name for row in rows),
        boxes=np.array([row.box for row in rows], np.float64).reshape(-1, 4),
        ignored=np.array([row.ignored for row in rows], np.bool_),
        outlines=tuple(row.outline for row in rows) if any(row.outline for row in rows) else None,
        turned=_turned(rows),
        size=size,
        extras={key: np.array([row.extras.get(key, np.nan) for row in rows], np.float64) for key in keys},
    )


def _turned(rows: Sequence[Row]) -> NDArray[np.float64] | None:
    """A format has turned boxes for all of its objects or for none."""
    turned = [row.turned for row in rows if row.turned is not None]
    return np.array(turned, np.float64).reshape(-1, 5) if turned else None


def legend_of(declared: Mapping[str, Value]) -> Legend:
    """A legend of class names and the values that stand for them in the files."""
    return Legend(tuple(ClassSpec(name, (value,)) for name, value in declared.items()), names=dict(declared))


def legend_of_names(annotations: Iterable[Annotations]) -> Legend:
    """The classes that files use without declaring them: every name of an object that counts, sorted."""
    used = {
        name
        for each in annotations
        for name, ignored in zip(each.names, each.ignored.tolist(), strict=True)
        if name != "" and not ignored
    }
    return legend_of({str(name): name for name in sorted(used, key=lambda name: (str(type(name)), name))})


def list_pictures(
    root: Path,
    found: Sequence[tuple[Path, Annotations]],
    *,
    legend: Legend | None = None,
    images_without_label: Sequence[str] = (),
    labels_without_image: Sequence[str] = (),
    unreadable: Sequence[tuple[str, str]] = (),
    repairs: Repairs | None = None,
) -> ObjectListing:
    """The listing of pictures below `root`; a picture is its own group. legend: None: the names in use."""
    by_id = {path.relative_to(root).as_posix(): (path, each) for path, each in found}
    return ObjectListing(
        items=[
            Item(id=name, group=name, image=str(by_id[name][0]), label=by_id[name][1].source)
            for name in sorted(by_id)
        ],
        images_without_label=list(images_without_label),
        labels_without_image=list(labels_without_image),
        annotations={name: by_id[name][1] for name in sorted(by_id)},
        legend=legend_of_names(each for _, each in found) if legend is None else legend,
        unreadable=list(unreadable),
        repairs=Repairs() if repairs is None else repairs,
    )


def merge(listings: Iterable[ObjectListing]) -> ObjectListing:
    """One listing of several splits' ones, sorted by id; their legends must agree."""
    together = list(listings)
    plain = pairs.merge(together)
    repairs = Repairs()
    for each in together:
        repairs.extend(each.repairs)
    annotations = {name: found for each in together for name, found in each.annotations.items()}
    return ObjectListing(
        items=plain.items,
        images_without_label=plain.images_without_label,
        labels_without_image=plain.labels_without_image,
        annotations={item.id: annotations[item.id] for item in plain.items},
        legend=_merge_legends([each.legend for each in together]),
        unreadable=[pair for each in together for pair in each.unreadable],
        repairs=repairs,
    )


def _merge_legends(legends: Sequence[Legend]) -> Legend:
    names: dict[str, Value] = {}
    for legend in legends:
        for name, value in legend.names.items():
            if names.setdefault(name, value) != value:
                raise DataError(
                    f"the class '{name}' is {names[name]} in one split's labels and {value} in another's"
                )
    return legend_of(names)
