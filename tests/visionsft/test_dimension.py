"""Dimensions: what is one, what isn't, and what they hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionsft.dimension import Choices, Range, parse, write


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1, "1", 1.5, True, None], Choices((1, "1", 1.5, True, None))),
        ([{"name": "fpn"}, {"name": "linear"}], Choices(({"name": "fpn"}, {"name": "linear"}))),
        ({"log": [1e-5, 1e-2]}, Range("log", 1e-5, 1e-2)),
        ({"uniform": [0, 0.5]}, Range("uniform", 0, 0.5)),
        ({"int": [5, 20]}, Range("int", 5, 20)),
    ],
)
def test_parse(value: Any, found: Choices | Range) -> None:
    assert parse(value) == found


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "must be a list of values, or a range"),
        ("adamw", "must be a list of values, or a range"),
        (None, "must be a list of values, or a range"),
        ({}, "must be a list of values, or a range"),
        ({"log": [1, 2], "int": [1, 2]}, "must be a list of values, or a range"),
        ({"lgo": [1, 2]}, "'lgo' is none of them, nearest: log"),
        ([], "at least one value"),
        ([1, 2, 1], "1 is there 2 times"),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], "is there 2 times"),
        ({"log": [1e-5]}, "two numbers"),
        ({"log": 3}, "two numbers"),
        ({"uniform": ["0", 1]}, "two numbers"),
        ({"uniform": [False, True]}, "two numbers"),
        ({"int": [1.5, 3]}, "two whole numbers"),
        ({"int": [5, 5]}, "must have finite ends that rise"),
        ({"uniform": [2, 1]}, "must have finite ends that rise"),
        ({"uniform": [0, float("inf")]}, "must have finite ends that rise"),
        ({"uniform": [float("nan"), 1]}, "must have finite ends that rise"),
        ({"log": [0, 1]}, "must begin above 0"),
    ],
)
def test_what_is_none(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"must ") as caught:
        parse(value)
    assert words in str(caught.value)


def test_one_and_true_are_different_choices() -> None:
    assert parse([1, True]).probes() == (1, True)
    assert not Choices((1,)).holds(True)
    assert not Range("int", 0, 2).holds(True)
    assert not Range("int", 0, 2).holds(1.5)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(json_values, min_size=1, max_size=6, unique_by=write))
def test_choices_hold_themselves(values: list[Any]) -> None:
    dimension = parse(values)
    assert all(dimension.holds(value) for value in values)
    assert list(dimension.probes()) == values


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1))
def test_a_range_holds_what_is_between(one: float, other: float, share: float) -> None:
    low, high = sorted((one, other))
    if low == high:
        return
    dimension = parse({"uniform": [low, high]})
    assert all(dimension.holds(end) for end in dimension.probes())
    assert dimension.holds(min(max(low + share * (high - low), low), high))
    assert not dimension.holds(high + 1)
