"""The dimension: what `visionsft tune` may try for one key of the configuration.

::

    dimension = [value, value...]         one of these; a value may be a mapping, which replaces the section
              | {log: [from, to]}         a number, searched in its logarithm
              | {uniform: [from, to]}     a number
              | {int: [from, to]}         a whole number, both ends included

This is the language alone, for the configuration to check; `visionsft.training.search_space` has the keys.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from visionsft.errors import nearest

Scale = Literal["log", "uniform", "int"]

_SCALES = get_args(Scale)


@dataclass(frozen=True)
class Choices:
    """A value out of several, without an order."""

    values: tuple[Any, ...]

    def probes(self) -> tuple[Any, ...]:
        """The values that a configuration has to accept before the first trial."""
        return self.values

    def holds(self, value: Any) -> bool:
        return write(value) in map(write, self.values)


@dataclass(frozen=True)
class Range:
    """A number between two, both included."""

    scale: Scale
    low: float
    high: float

    def probes(self) -> tuple[Any, ...]:
        """Both ends."""
        return self.low, self.high

    def holds(self, value: Any) -> bool:
        right = int if self.scale == "int" else int | float
        return isinstance(value, right) and not isinstance(value, bool) and self.low <= value <= self.high


Dimension = Choices | Range


def parse(value: Any) -> Dimension:
    """The dimension that a value of the section ``tune`` describes; ValueError says what is wrong with it."""
    if isinstance(value, list | tuple):
        return _choices(value)
    if isinstance(value, dict) and len(value) == 1:
        return _range(*next(iter(value.items())))
    raise ValueError(f"must be a list of values, or a range: {_forms()}")


def write(value: Any) -> str:
    """A value as JSON, by which choices are told apart."""
    return json.dumps(value, sort_keys=True)


def _choices(values: list[Any] | tuple[Any, ...]) -> Choices:
    if not values:
        raise ValueError("must have at least one value")
    texts = [write(value) for value in values]
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise ValueError(f"must have each value once; {twice[0]} is there {texts.count(twice[0])} times")
    return Choices(tuple(values))


def _range(scale: Any, ends: Any) -> Range:
    if scale not in _SCALES:
        match = nearest(str(scale), _SCALES)
        hint = f", nearest: {match}" if match else ""
        raise ValueError(f"must be a list of values, or a range: {_forms()}; {scale!r} is none of them{hint}")
    right = (int,) if scale == "int" else (int, float)
    if not (isinstance(ends, list | tuple) and len(ends) == 2 and all(type(end) in right for end in ends)):
        kind = "whole numbers" if scale == "int" else "numbers"
        raise ValueError(f"must give {scale} two {kind}: {{{scale}: [from, to]}}; {scale} is {ends!r}")
    low, high = ends
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"must have finite ends that rise; {scale} is [{low}, {high}]")
    if scale == "log" and low <= 0:
        raise ValueError(f"must begin above 0 to have a logarithm; log is [{low}, {high}]")
    return Range(cast(Scale, scale), low, high)


def _forms() -> str:
    return ", ".join(f"{{{scale}: [from, to]}}" for scale in _SCALES)
