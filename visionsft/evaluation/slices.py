"""Slices: the parts of a split on which a model does worst, by anything that is known of its samples.

A slice is all samples with one value: of their group (scene or drive), of a regular expression's match in
their name, of a column of a metadata file, or of their brightness in quarters. Whoever looks at many slices
finds a bad one by chance: their intervals are widened (Bonferroni) so that all hold at once.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules import DataError
from datamodules.batch import Item
from visionsft.errors import nearest
from visionsft.evaluation.counts import Counts
from visionsft.evaluation.intervals import (
    FEW_GROUPS,
    LEVEL,
    RESAMPLES,
    SEED,
    Ends,
    Unit,
    group_sums,
    resample,
    total_intervals,
)
from visionsft.evaluation.metrics import SegmentationScores, marginal_counts, summarise

MOST = 50
"""Slices of one kind, at most: more are no summary, and their widened intervals say nothing."""

QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")
"""Of a number."""

UNKNOWN = "unknown"
"""Value of samples that have none."""

BRIGHTNESS = "brightness"
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
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise DataError(f"{path}: row {number} has {len(row)} fields, the header {len(header)}")
            if not row[0]:
                raise DataError(f"{path}: row {number} names no sample (its first column is empty)")
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


def choose_kinds(given: Sequence[str], items: Sequence[Item], metadata: Metadata | None) -> tuple[str, ...]:
    """What a split is sliced by: what is given, and all metadata unless some of its columns are given.

    Nothing given: its groups, where they are some and not too many. Raises a DataError for what can't be sliced
    by, before anything is computed.
    """
    columns = () if metadata is None or set(given) & set(metadata.columns) else metadata.columns
    kinds = tuple(dict.fromkeys((*given, *columns)))
    for kind in kinds:
        if kind != BRIGHTNESS:  # known after the images were read
            label(kind, items, metadata)
    few = 2 <= len({item.group for item in items}) <= MOST
    return kinds or (("group",) if few else ())


def label(kind: str, items: Sequence[Item], metadata: Metadata | None) -> list[str]:
    """N samples' values of `kind`: "group", "name:REGEX" or a column of the metadata."""
    if kind == "group":
        values = [item.group for item in items]
    elif kind.startswith(_PATTERN):
        values = _matches(kind.removeprefix(_PATTERN), items)
    elif metadata is not None and kind in metadata.columns:
        values = _binned(metadata.column(kind, items))
    else:
        raise DataError(_unknown(kind, metadata))
    if len(set(values)) > MOST:
        raise DataError(
            f"slice by {kind}: {len(set(values))} different values in {len(items)} samples, "
            f"e.g. {values[0]!r}; at most {MOST} (--slice-by names what to slice by)"
        )
    return values


def _unknown(kind: str, metadata: Metadata | None) -> str:
    columns = metadata.columns if metadata else ()
    allowed = ("group", BRIGHTNESS, *columns)
    hint = nearest(kind, allowed)
    named = f"the columns of {metadata.path}" if metadata else "a column of --metadata FILE.csv"
    return (
        f"can't slice by {kind!r}{f' (nearest: {hint})' if hint else ''}; allowed: group, brightness, "
        f"name:REGEX, {named}{': ' + ', '.join(columns) if columns else ''}"
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


@dataclass(frozen=True)
class Slice:
    """The samples with one value, and how good the model is on them."""

    by: str
    value: str
    samples: int
    groups: int
    scores: SegmentationScores
    interval: Ends | None
    """Of mean IoU, at the widened level."""
    note: str | None
    """Why there is no interval, or what speaks against it."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: None in place of nan."""
        scores = self.scores.as_dict()
        return {
            "by": self.by,
            "value": self.value,
            "samples": self.samples,
            "groups": self.groups,
            "pixels": self.scores.pixels,
            "mean_iou": scores["mean_iou"],
            "classes_present": self.scores.classes_present,
            "interval": None if self.interval is None else list(self.interval),
            "pixel_accuracy": scores["pixel_accuracy"],
            "mean_recall": scores["mean_recall"],
            "recall": {row["name"]: row["recall"] for row in scores["per_class"]},
            "iou": {row["name"]: row["iou"] for row in scores["per_class"]},
            "note": self.note,
        }


@dataclass(frozen=True)
class Slices:
    """All slices of a split, the worst first."""

    rows: tuple[Slice, ...]
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
            f"that all hold at once with {self.level:.0%}; mean IoU is over the classes that occur in the slice"
        )
        return f"{note}; {self.unused}" if self.unused else note

    def table(self) -> str:
        """A text table, the worst slice first."""
        names = [f"{row.by} = {row.value}" for row in self.rows]
        width = max(len("slice"), *map(len, names))
        head = f"{'slice':{width}}  samples  groups         pixels  classes  mean IoU  interval"
        lines = [head, "-" * len(head)]
        for name, row in zip(names, self.rows, strict=True):
            ends = "-" if row.interval is None else "[{:.3f}, {:.3f}]".format(*row.interval)
            counts = f"{row.samples:>7,}  {row.groups:>6,}  {row.scores.pixels:>13,}  {row.scores.classes_present:>7}"
            note = f"  {row.note}" if row.note else ""
            lines.append(f"{name:{width}}  {counts}  {row.scores.mean_iou:>8.4f}  {ends}{note}")
        return "\n".join([*lines, "-" * len(head), self.note])

    def write_csv(self, path: Path) -> None:
        """One row a slice: its numbers, then recall and IoU of every class."""
        rows = [_flat(row.as_dict()) for row in self.rows]
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def slice_counts(
    counts: Counts,
    kinds: Sequence[str],
    *,
    metadata: Metadata | None = None,
    unit: Unit = "group",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Slices | None:
    """All slices of the given kinds, see `label`, and "brightness"; None where there is none.

    A slice of too few groups gets an interval over its images, with a note that it is too narrow.
    """
    chosen = [
        (kind, value, np.flatnonzero(values == value))
        for kind in kinds
        for values in [np.array(_label(kind, counts, metadata))]
        for value in sorted(set(values.tolist()))
    ]
    each = widened(level, len(chosen))
    rows = [
        _slice(kind, value, counts.take(index), unit, level=each, resamples=resamples, seed=seed)
        for kind, value, index in chosen
    ]
    order = np.argsort([row.scores.mean_iou for row in rows], kind="stable")  # nan comes last
    unused = metadata.unused(counts.items) if metadata else None
    return Slices(tuple(rows[i] for i in order), level, each, unused) if rows else None


def _label(kind: str, counts: Counts, metadata: Metadata | None) -> list[str]:
    return quarters(counts.brightness) if kind == BRIGHTNESS else label(kind, counts.items, metadata)


def _slice(
    kind: str, value: str, part: Counts, unit: Unit, *, level: float, resamples: int, seed: int
) -> Slice:
    def interval_by(unit: Unit) -> tuple[Ends | None, str | None]:
        _, sums = group_sums(marginal_counts(part.confusions), part.names(unit))
        ends, why = total_intervals(
            sums, resample(sums, resamples=resamples, seed=seed), unit=unit, level=level
        )
        return ends["mean_iou"], why

    interval, note = interval_by(unit)
    if note and unit == "group" and len(part.items) >= FEW_GROUPS:
        interval, note = interval_by("image")[0], f"{note}: by image, too narrow"
    return Slice(
        by=kind,
        value=value,
        samples=len(part.items),
        groups=len(set(part.groups)),
        scores=summarise(part.confusions.sum(axis=0), part.classes),
        interval=interval,
        note=note,
    )


def widened(level: float, count: int) -> float:
    """Level of each of `count` intervals that hold all at once with `level` (Bonferroni): both 0..1."""
    return 1 - (1 - level) / max(count, 1)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row.pop("interval") or (None, None)
    recall, iou = row.pop("recall"), row.pop("iou")
    classes = {f"{metric}[{name}]": value for metric, values in (("recall", recall), ("iou", iou))
               for name, value in values.items()}  # fmt: skip
    return {**row, "low": low, "high": high, **classes}
