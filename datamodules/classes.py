"""Classes: what the values, colours and names in label files mean to a model.

A label file holds pixel values (or colours); a model sees class indices 0, 1, 2... and 255 for "no label".
`Classes` is the table between the two, and turns a whole mask by one look-up.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.batch import IGNORE
from datamodules.errors import DataError

Value = int | str
Colour = tuple[int, int, int]

_TABLE_SIZE = 1 << 24
"""Largest look-up table, a byte a value: every colour and every 16-bit label has a place in it."""

_LISTED = 64
"""Unknown values at most that are listed of one mask: a photograph in place of a mask has thousands."""

_UNKNOWN = 254
"""Marks a value that is in no class and not ignored, inside the look-up tables only."""

# Twenty colours that are far apart, also for most colour-blind readers (Sasha Trubetskoy, 2017).
_PALETTE = (
    "#4363d8", "#f58231", "#3cb44b", "#ffe119", "#911eb4", "#42d4f4", "#e6194b", "#bfef45", "#469990",
    "#dcbeff", "#9a6324", "#fabed4", "#800000", "#aaffc3", "#808000", "#ffd8b1", "#000075", "#f032e6",
    "#a9a9a9", "#fffac8",
)  # fmt: skip


@dataclass(frozen=True)
class ClassSpec:
    """One class: its name, what means it in the label files, and its colour in pictures."""

    name: str
    values: tuple[Value, ...]
    """Pixel values, '#rrggbb' colours, class names of the layout, or what a vector file's column holds; several
    are merged into this class."""
    colour: Colour | None = None
    """(red, green, blue), 0..255; None: one is chosen."""


@dataclass(frozen=True)
class Unknown:
    """A value in a label file that is in no class and not ignored."""

    value: str
    pixels: int
    box: tuple[int, int, int, int]
    """Row, column, height and width around its pixels."""


@dataclass(frozen=True)
class Legend:
    """A layout's own classes: what its label values mean as long as the user says nothing else."""

    classes: tuple[ClassSpec, ...]
    ignore: tuple[Value, ...] = ()
    """Values that mean 'no label'."""
    names: Mapping[str, Value] = field(default_factory=dict)
    """Every name of the layout, those of ignored values included, with its value."""


def legend_of_texts(specs: Sequence[ClassSpec], ignore: Sequence[Value]) -> Legend:
    """For labels whose values are any text, as in a column of a vector file: the texts in use, numbered."""
    values = [*(value for spec in specs for value in spec.values), *ignore]
    texts = [value for value in values if isinstance(value, str)]
    if 0 < len(texts) < len(values):
        raise DataError(f"classes mix text ({texts[0]!r}) and numbers: a column holds one or the other")
    return Legend(classes=(), names={text: number for number, text in enumerate(dict.fromkeys(texts))})


def parse_colour(text: str) -> Colour:
    """'#rrggbb' -> (red, green, blue)."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise DataError(f"'{text}' is not a colour: write '#rrggbb', e.g. '#804080'")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


class Classes:
    """The classes of a dataset in order; class k is index k of the model's output."""

    names: tuple[str, ...]
    specs: tuple[ClassSpec, ...]
    """With every value resolved to an integer or a colour, and every colour chosen."""
    ignore: tuple[Value, ...]
    colours: NDArray[np.uint8]
    """(K, 3) uint8, red green blue."""

    def __init__(
        self,
        specs: Sequence[ClassSpec],
        *,
        ignore: Sequence[Value] = (),
        legend: Legend | None = None,
        fewest: int = 2,
    ) -> None:
        """`legend`: resolves class names, and adds its ignored values where no class claims them.
        fewest: classes that a task needs: a detector has its background beside them."""
        names = {} if legend is None else legend.names
        _check_names([spec.name for spec in specs], fewest)
        resolved = [
            replace(spec, values=tuple(_resolve(value, names, spec.name) for value in spec.values))
            for spec in specs
        ]
        ignored = [_resolve(value, names, "ignore") for value in ignore]
        claimed = {value for spec in resolved for value in spec.values}
        if legend is not None:
            ignored += [value for value in legend.ignore if value not in claimed and value not in ignored]
        self._owners = _check_values(resolved, ignored)
        self.specs = _with_colours(resolved)
        self.names = tuple(spec.name for spec in specs)
        self.ignore = tuple(ignored)
        self.colours = np.array([spec.colour for spec in self.specs], dtype=np.uint8)
        self._meanings = {_number(value): name for name, value in names.items()}
        self._table = self._build_table()

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def are_colours(self) -> bool:
        """Whether label files hold colours and not pixel values."""
        return isinstance(next(iter(self._owners)), str)

    def lookup(
        self, values: NDArray[Any], *, source: str, valid: NDArray[np.bool_] | None = None
    ) -> NDArray[np.uint8]:
        """Class index of every pixel; 255 where it is ignored or not `valid`.

        values: (H, W) of any integer or whole-number float type; for colours (H, W, 3) uint8 red green blue.
        valid: (H, W) bool; what stands in the other pixels (nodata) doesn't matter.
        source: names the file (and window) in errors.
        """
        mask, codes = self._find(values, source, valid)
        unknown = mask == _UNKNOWN
        if unknown.any():
            raise DataError(self._describe_unknown(codes[unknown], source))
        return mask

    def inspect(
        self, values: NDArray[Any], *, source: str, valid: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.uint8], list[Unknown]]:
        """As `lookup`, but values in no class become 255 too, and are listed, those of most pixels first."""
        mask, codes = self._find(values, source, valid)
        unknown = mask == _UNKNOWN
        if not unknown.any():
            return mask, []
        mask[unknown] = IGNORE
        found, counts = np.unique(codes[unknown], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_LISTED]
        places = [_box_around(unknown & (codes == found[i])) for i in order]
        return mask, [
            Unknown(self._show(found[i]), int(counts[i]), box) for i, box in zip(order, places, strict=True)
        ]

    def _find(
        self, values: NDArray[Any], source: str, valid: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Class indices with `_UNKNOWN` where there is none, and what stands in the file, colours packed."""
        self._check_form(values, source)
        codes = _pack(values) if values.ndim == 3 else values
        if codes.dtype == np.uint8:
            # several times as fast as numpy, which makes 64-bit indices of the codes first
            table = np.take(self._table, np.arange(256), mode="clip")
            mask = np.asarray(cv2.LUT(np.ascontiguousarray(codes), table), np.uint8)
        elif codes.dtype.kind in "iu" and codes.min() >= 0 and codes.max() < _TABLE_SIZE:
            mask = np.take(self._table, codes, mode="clip")  # the table's last entry stands for all above it
        else:
            mask = self._search(codes)
        if valid is not None:
            mask[~valid] = IGNORE
        return mask, codes

    def _build_table(self) -> NDArray[np.uint8]:
        """Class index by value, for values from 0 up; the last entry stands for all larger values."""
        known = {_number(value): index for value, index in self._owners.items()}
        known = {value: index for value, index in known.items() if 0 <= value < _TABLE_SIZE}
        table = np.full(max(known, default=-1) + 2, _UNKNOWN, dtype=np.uint8)
        table[list(known)] = list(known.values())
        return table

    def _search(self, codes: NDArray[Any]) -> NDArray[np.uint8]:
        """The same for negative, huge and float values, which can't index a table."""
        known = np.array(sorted(_number(value) for value in self._owners))
        owners = {_number(value): index for value, index in self._owners.items()}
        indices = np.array([owners[int(value)] for value in known], dtype=np.uint8)
        places = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        return np.where(known[places] == codes, indices[places], np.uint8(_UNKNOWN))

    def _check_form(self, values: NDArray[Any], source: str) -> None:
        if values.ndim == 3 and not self.are_colours:
            raise DataError(
                f"{source}: the mask has {values.shape[2]} channels, but the classes are pixel values; "
                "for colour-coded masks give them as '#rrggbb' colours (and label_form: colour)"
            )
        if values.ndim == 2 and self.are_colours:
            raise DataError(f"{source}: the mask has one channel, but the classes are given as colours")

    def _describe_unknown(self, codes: NDArray[Any], source: str) -> str:
        found, counts = np.unique(codes, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:8]
        listed = ", ".join(f"{self._show(found[i])} ({counts[i]} pixels)" for i in most)
        more = f" and {len(found) - len(most)} values more" if len(found) > len(most) else ""
        allowed = ", ".join(f"{spec.name} {_show_values(spec.values)}" for spec in self.specs)
        ignored = f"; ignored: {_show_values(self.ignore)}" if self.ignore else ""
        return (
            f"{source}: label {listed}{more} in no class. Allowed: {allowed}{ignored}. "
            "Add it to a class's `values` or to `ignore`"
        )

    def _show(self, code: np.generic) -> str:
        if self.are_colours:
            return f"#{int(code):06x}"
        number = code.item()
        return f"{number} '{self._meanings[number]}'" if number in self._meanings else f"{number}"


def _box_around(where: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, cols = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    top, left = int(rows[0]), int(cols[0])
    return top, left, int(rows[-1]) + 1 - top, int(cols[-1]) + 1 - left


def _check_names(names: list[str], fewest: int) -> None:
    if not fewest <= len(names) < _UNKNOWN:
        task = "segmentation needs" if fewest > 1 else "allowed:"
        more = ", the background included" if fewest > 1 else ""
        raise DataError(f"{len(names)} classes; {task} {fewest} to {_UNKNOWN - 1}{more}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"class name '{twice[0]}' is given twice")


def _resolve(value: Value, names: Mapping[str, Value], owner: str) -> Value:
    """A class name of the layout -> its value; a colour in lower case; a number as it is."""
    if isinstance(value, int):
        return value
    if value in names:
        return names[value]
    if value.startswith("#"):
        parse_colour(value)
        return value.lower()
    nearest = get_close_matches(value, names, n=3, cutoff=0.5)
    if nearest:
        hint = f"did you mean {' or '.join(repr(name) for name in nearest)}?"
    elif names:
        hint = f"the layout's names are {', '.join(names)}"
    else:
        hint = "this layout has no names of its own: give pixel values or '#rrggbb' colours"
    raise DataError(f"classes, '{owner}': '{value}' is no class name of the layout; {hint}")


def _check_values(specs: Sequence[ClassSpec], ignore: Sequence[Value]) -> dict[Value, int]:
    """Index of the class (255: ignored) that each value means."""
    owners: dict[Value, int] = {}
    pairs = [(value, index) for index, spec in enumerate(specs) for value in spec.values]
    for value, index in [*pairs, *((value, IGNORE) for value in ignore)]:
        if value in owners:
            first, second = (_owner(specs, owners[value]), _owner(specs, index))
            raise DataError(f"label value {value} is given twice: in {first} and in {second}")
        owners[value] = index
    if len({isinstance(value, str) for value in owners}) > 1:
        raise DataError("classes mix pixel values and '#rrggbb' colours: a label file holds one or the other")
    empty = [spec.name for spec in specs if not spec.values]
    if empty:
        raise DataError(f"class '{empty[0]}' has no values")
    return owners


def _owner(specs: Sequence[ClassSpec], index: int) -> str:
    return "ignore" if index == IGNORE else f"class '{specs[index].name}'"


def _with_colours(specs: Sequence[ClassSpec]) -> tuple[ClassSpec, ...]:
    """Classes without a colour get the colour of their label, else one that is not taken."""
    taken = {spec.colour for spec in specs}
    free = (colour for colour in _endless_colours() if colour not in taken)
    chosen = []
    for spec in specs:
        own = spec.colour
        if own is None:
            own = parse_colour(spec.values[0]) if isinstance(spec.values[0], str) else next(free)
        chosen.append(replace(spec, colour=own))
    return tuple(chosen)


def _endless_colours() -> Iterator[Colour]:
    yield from (parse_colour(text) for text in _PALETTE)
    hue = 0.0
    while True:
        hue = (hue + 0.618034) % 1  # the golden ratio keeps neighbouring hues far apart
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, 0.85)
        yield round(red * 255), round(green * 255), round(blue * 255)


def _number(value: Value) -> int:
    return value if isinstance(value, int) else int(value[1:], 16)


def _show_values(values: Sequence[Value]) -> str:
    return "/".join(str(value) for value in values)


def _pack(values: NDArray[Any]) -> NDArray[np.int32]:
    """(H, W, 3) uint8 red green blue -> (H, W) 0xrrggbb."""
    # Blue, green, red, 0 in memory are one little-endian number; OpenCV is faster at it than numpy's shifts.
    packed = cv2.cvtColor(np.ascontiguousarray(values, dtype=np.uint8), cv2.COLOR_RGB2BGRA)
    packed[..., 3] = 0
    return packed.view("<i4")[..., 0]
