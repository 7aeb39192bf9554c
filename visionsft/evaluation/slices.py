"""Slices: the parts of a split on which a model does worst, by anything that is known of its samples.

A slice is all samples with one value: of their group (scene or drive), of a regular expression's match in
their name, of a column of a metadata file, or of their brightness in quarters; or it is a part of every sample, such
as its small objects. What is scored is a matter of the task. Whoever looks at many slices
finds a bad one by chance: their intervals are widened (Bonferroni) so that all hold at once.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from datamodules import DataError
from datamodules.batch import Item
from visionsft.errors import nearest
from visionsft.evaluation.intervals import FEW_GROUPS, LEVEL, Ends, Unit
from visionsft.evaluation.metrics.segmentation import number

MOST = 50
"""Slices of one kind, at most: more are no summary, and their widened intervals say nothing."""

QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")
"""Of a number."""

UNKNOWN = "unknown"
"""Value of samples that have none."""

BRIGHTNESS = "brightness"
OBJECT_SIZE = "object_size"
EDGE_DISTANCE = "edge_distance"
_PATTERN = "name:"
_EXAMPLES = 3


# ---------------------------------------------------------------------------------------------- metadata


@dataclass(frozen=True)
class Metadata:
    """A table about the samples: a CSV file with a header line, whose first column names the sample."""

    path: Path
    columns: tuple[str, ...]
    """Without the first."""
    rows: dict[str, tuple[str, ...]]
    """By sample id, file name or file name without suffix."""

    @classmethod
    def read(cls, path: str | Path) -> Metadata:
        """UTF-8, separated by commas."""
        path = Path(path)
        if not path.is_file():
            raise DataError(
                f"{path}: no such file (metadata: a CSV file, first column = sample id or file name)"
            )
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
        if len(lines) < 2 or len(lines[0]) < 2:
            raise DataError(
                f"{path}: needs a header line, rows below it and a column beside the sample's name"
            )
        header, rows = lines[0], lines[1:]
        for line, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise DataError(f"{path}: row {line} has {len(row)} fields, the header {len(header)}")
            if not row[0]:
                raise DataError(f"{path}: row {line} names no sample (its first column is empty)")
        twice = [key for key, count in Counter(row[0] for row in rows).items() if count > 1]
        if twice:
            raise DataError(f"{path}: {len(twice)} samples have several rows, e.g. {twice[0]!r}")
        return cls(path, tuple(header[1:]), {row[0]: tuple(row[1:]) for row in rows})

    def column(self, name: str, items: Sequence[Item]) -> list[str]:
        """The values of one column for N samples; every sample must have its row."""
        index = self.columns.index(name)
        return [self.rows[key][index] for key in self.match(items)]

    def match(self, items: Sequence[Item]) -> list[str]:
        """The samples' rows, found by id, path, file name or file name without suffix."""
        found = [next((key for key in _keys(item) if key in self.rows), "") for item in items]
        missing = [item.id for item, key in zip(items, found, strict=True) if key not in self.rows]
        if missing:
            examples = "; ".join(self._missing(id) for id in missing[:_EXAMPLES])
            raise DataError(
                f"{self.path}: {len(missing)} of {len(items)} samples have no row, e.g. {examples}. "
                "The first column holds a sample's id, file name or file name without suffix"
            )
        images: dict[str, set[str]] = {}
        for item, key in zip(items, found, strict=True):
            images.setdefault(key, set()).add(item.image)
        for key, paths in images.items():
            if len(paths) > 1:
                both = " or ".join(sorted(paths)[:2])
                raise DataError(f"{self.path}: row {key!r} could mean {both}: use their ids")
        return found

    def unused(self, items: Sequence[Item]) -> str | None:
        """Which rows are of none of these samples: of other splits, or mistyped."""
        rest = sorted(set(self.rows) - set(self.match(items)))
        return (
            f"{len(rest)} rows of {self.path.name} are of no sample here, e.g. {rest[0]!r}" if rest else None
        )

    def _missing(self, id: str) -> str:
        hint = nearest(id, self.rows) or nearest(Path(id).stem, self.rows)
        return f"{id!r}" + (f" (nearest row: {hint!r})" if hint else "")


def _keys(item: Item) -> tuple[str, ...]:
    """What a metadata file may call a sample; a window is called as its scene."""
    image = Path(item.image)
    return item.id, item.id.rpartition("@")[0], item.image, image.name, image.stem


# ---------------------------------------------------------------------------------------------- labelling


def choose_kinds(
    given: Sequence[str], items: Sequence[Item], metadata: Metadata | None, *, parts: Sequence[str] = ()
) -> tuple[str, ...]:
    """What a split is sliced by: what is given, and all metadata unless some of its columns are given.

    parts: what the task has beside that. Nothing given: its groups, where they are some and not too many. Raises a
    DataError for what can't be sliced by, before anything is computed.
    """
    columns = () if metadata is None or set(given) & set(metadata.columns) else metadata.columns
    kinds = tuple(dict.fromkeys((*given, *columns)))
    for kind in kinds:
        if kind not in (BRIGHTNESS, *parts):  # known after the images were read
            label(kind, items, metadata, parts=parts)
    few = 2 <= len({item.group for item in items}) <= MOST
    return kinds or (("group",) if few else ())


def label(
    kind: str, items: Sequence[Item], metadata: Metadata | None, *, parts: Sequence[str] = ()
) -> list[str]:
    """N samples' values of `kind`: "group", "name:REGEX" or a column of the metadata."""
    if kind == "group":
        values = [item.group for item in items]
    elif kind.startswith(_PATTERN):
        values = _matches(kind.removeprefix(_PATTERN), items)
    elif metadata is not None and kind in metadata.columns:
        values = _binned(metadata.column(kind, items))
    else:
        raise DataError(_unknown(kind, metadata, parts))
    if len(set(values)) > MOST:
        raise DataError(
            f"slice by {kind}: {len(set(values))} different values in {len(items)} samples, "
            f"e.g. {values[0]!r}; at most {MOST} (--slice-by names what to slice by)"
        )
    return values


def _unknown(kind: str, metadata: Metadata | None, parts: Sequence[str]) -> str:
    columns = metadata.columns if metadata else ()
    allowed = ("group", BRIGHTNESS, *parts, *columns)
    hint = nearest(kind, allowed)
    named = f"the columns of {metadata.path}" if metadata else "a column of --metadata FILE.csv"
    return (
        f"can't slice by {kind!r}{f' (nearest: {hint})' if hint else ''}; allowed: "
        f"{', '.join(('group', BRIGHTNESS, *parts))}, name:REGEX, {named}{': ' + ', '.join(columns) if columns else ''}"
    )


def _matches(pattern: str, items: Sequence[Item]) -> list[str]:
    """What a regular expression finds in the files' names, or else in the ids: its first group, if it has one."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"slice by name: {pattern!r} is no regular expression: {error}") from None
    found = [expression.search(Path(item.image).name) for item in items]
    if not any(found):
        found = [expression.search(item.id) for item in items]
    if not any(found):
        raise DataError(
            f"slice by name: {pattern!r} matches none of {len(items)} names, e.g. {items[0].id!r}"
        )
    part = min(1, expression.groups)
    return [UNKNOWN if match is None or match[part] is None else match[part] for match in found]


def _binned(values: list[str]) -> list[str]:
    """A column as it is; one of many different numbers in quarters."""
    try:
        numbers = np.array([float(value or "nan") for value in values])
    except ValueError:
        numbers = np.array([])
    if len(numbers) and len(set(values)) > 2 * len(QUARTERS):
        return quarters(numbers)
    return [value or UNKNOWN for value in values]


def quarters(numbers: NDArray[np.float64]) -> list[str]:
    """In which quarter of all samples each number lies, with the quarter's range; nan is `UNKNOWN`."""
    known = numbers[~np.isnan(numbers)]
    edges = np.quantile(known, (0.25, 0.5, 0.75)) if len(known) else np.zeros(3)
    index = np.searchsorted(edges, numbers, side="left")
    names = []
    for k, name in enumerate(QUARTERS):
        inside = numbers[(index == k) & ~np.isnan(numbers)]
        names.append(f"{name} ({inside.min():.4g} to {inside.max():.4g})" if len(inside) else name)
    return [UNKNOWN if math.isnan(number) else names[k] for number, k in zip(numbers, index, strict=True)]


# ------------------------------------------------------------------------------------------------ slicing


class Sliceable(Protocol):
    """What a pass over a split leaves of its samples, whatever the task."""

    @property
    def items(self) -> Sequence[Item]: ...
    @property
    def brightness(self) -> Sequence[float] | NDArray[np.float64]: ...
    def take(self, index: NDArray[np.intp]) -> Self: ...


@dataclass(frozen=True)
class Finding:
    """How good a model is on one slice."""

    score: float
    """By which slices are ordered; nan where it isn't defined."""
    counted: int
    """Pixels, objects or images that it was counted on."""
    interval: Ends | None
    """Of the score."""
    note: str | None
    """Why there is no interval, or what speaks against it."""
    numbers: dict[str, Any]
    """For JSON: None in place of nan."""


@dataclass(frozen=True)
class Slice:
    """The samples with one value, or a part of every sample, and how good the model is there."""

    by: str
    value: str
    samples: int
    groups: int
    found: Finding

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        ends = self.found.interval
        return {
            "by": self.by,
            "value": self.value,
            "samples": self.samples,
            "groups": self.groups,
            **self.found.numbers,
            "interval": None if ends is None else list(ends),
            "note": self.found.note,
        }


@dataclass(frozen=True)
class Slices:
    """All slices of a split, the worst first."""

    rows: tuple[Slice, ...]
    score: str
    """What is scored and has the intervals, e.g. "mean IoU"."""
    counted: str
    """On what, e.g. "pixels"."""
    meaning: str
    """What the score is in a slice."""
    level: float
    """At which all intervals hold together."""
    each: float
    """At which each one is laid."""
    unused: str | None
    """Which rows of the metadata are of no sample."""

    @property
    def note(self) -> str:
        """What many looks mean for each."""
        note = (
            f"{len(self.rows)} slices were looked at: each interval is widened to {self.each:.2%} (Bonferroni), so "
            f"that all hold at once with {self.level:.0%}; {self.meaning}"
        )
        return f"{note}; {self.unused}" if self.unused else note

    def table(self) -> str:
        """A text table, the worst slice first."""
        names = [f"{row.by} = {row.value}" for row in self.rows]
        width = max(len("slice"), *map(len, names))
        column = max(8, len(self.score))
        head = f"{'slice':{width}}  samples  groups  {self.counted:>13}  {self.score:>{column}}  interval"
        lines = [head, "-" * len(head)]
        for name, row in zip(names, self.rows, strict=True):
            ends = "-" if row.found.interval is None else "[{:.3f}, {:.3f}]".format(*row.found.interval)
            counts = f"{row.samples:>7,}  {row.groups:>6,}  {row.found.counted:>13,}"
            note = f"  {row.found.note}" if row.found.note else ""
            lines.append(f"{name:{width}}  {counts}  {number(row.found.score):>{column}}  {ends}{note}")
        return "\n".join([*lines, "-" * len(head), self.note])

    def write_csv(self, path: Path) -> None:
        """One row a slice: its numbers, then those of every class."""
        rows = [_flat(row.as_dict()) for row in self.rows]
        columns = dict.fromkeys(key for row in rows for key in row)
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(columns))
            writer.writeheader()
            writer.writerows(rows)


Counted = TypeVar("Counted", bound=Sliceable)
Judge = Callable[[Counted, Unit, float], Finding]
"""Scores some samples, with an interval by unit at a level."""
Part = Callable[[float], Slice]
"""A slice that is a part of every sample, with an interval at a level."""


@dataclass(frozen=True)
class Shown:
    """How the slices of a task are spoken of, see `Slices`."""

    score: str
    counted: str
    meaning: str


def cut(
    counts: Counted,
    kinds: Sequence[str],
    judge: Judge[Counted],
    *,
    shown: Shown,
    parts: Sequence[Part] = (),
    metadata: Metadata | None = None,
    unit: Unit = "group",
    level: float = LEVEL,
) -> Slices | None:
    """All slices of the given kinds, see `label`, and "brightness", and `parts`; None where there is none.

    A slice of too few groups gets an interval over its images, with a note that it is too narrow.
    """
    chosen = [
        (kind, value, np.flatnonzero(values == value))
        for kind in kinds
        for values in [np.array(_label(kind, counts, metadata))]
        for value in sorted(set(values.tolist()))
    ]
    each = widened(level, len(chosen) + len(parts))
    rows = [_slice(kind, value, counts.take(index), judge, unit, each) for kind, value, index in chosen]
    rows += [part(each) for part in parts]
    order = np.argsort([row.found.score for row in rows], kind="stable")  # nan comes last
    unused = metadata.unused(counts.items) if metadata else None
    if not rows:
        return None
    return Slices(
        tuple(rows[i] for i in order), shown.score, shown.counted, shown.meaning, level, each, unused
    )


def _label(kind: str, counts: Sliceable, metadata: Metadata | None) -> list[str]:
    if kind == BRIGHTNESS:
        return quarters(np.asarray(counts.brightness, np.float64))
    return label(kind, counts.items, metadata)


def _slice(
    kind: str, value: str, part: Counted, judge: Judge[Counted], unit: Unit, level: float
) -> Slice:
    found = judge(part, unit, level)
    if found.note and unit == "group" and len(part.items) >= FEW_GROUPS:
        ends = judge(part, "image", level).interval
        found = replace(found, interval=ends, note=f"{found.note}: by image, too narrow")
    return Slice(kind, value, len(part.items), len({item.group for item in part.items}), found)


def widened(level: float, count: int) -> float:
    """Level of each of `count` intervals that hold all at once with `level` (Bonferroni): both 0..1."""
    return 1 - (1 - level) / max(count, 1)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Class metrics (dictionaries) as columns of their own, after the others."""
    low, high = row.pop("interval") or (None, None)
    nested = row.pop("per_class", {}) | {key: value for key, value in row.items() if isinstance(value, dict)}
    plain = {key: value for key, value in row.items() if not isinstance(value, dict)}
    classes = {f"{metric}[{name}]": value for metric, values in nested.items() for name, value in values.items()}
    return {**plain, "low": low, "high": high, **classes}
