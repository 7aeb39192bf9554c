"""YAML documents: values by the core schema, lines, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from visionsft.document import read_document, read_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("-4", -4),
        ("010", 10),
        ("1e-4", 1e-4),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("true", True),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'4'", "4"),
        ('"null"', "null"),
        ("9" * 5000, "9" * 5000),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("{on: 1, 2: 3}", {"on": 1, "2": 3}),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


def test_nan() -> None:
    assert math.isnan(read_value(".nan"))


def test_lines_of_keys_and_items() -> None:
    document = read_document("a: 1\n\nb:\n  - x\n  - {c: 2}\n")
    assert document.values == {"a": 1, "b": ["x", {"c": 2}]}
    assert document.lines == {("a",): 1, ("b",): 3, ("b", 0): 4, ("b", 1): 5, ("b", 1, "c"): 5}
    assert not document.flaws


def test_an_alias_repeats_a_value_with_its_lines() -> None:
    document = read_document("a: &x {k: 1}\nb: *x\n")
    assert document.values == {"a": {"k": 1}, "b": {"k": 1}}
    assert document.lines["b", "k"] == 1


@pytest.mark.parametrize("text", ["", "# only a comment\n", "\n\n"])
def test_empty(text: str) -> None:
    document = read_document(text)
    assert document.values is None
    assert not document.flaws


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{key}: &{key} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, key in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [1,\nc: 2\n", 2, "YAML syntax at column 4"),
        ("a: 'x", 1, "unexpected end of stream"),
        ("a:\n\tb: 1", 2, r"'\t' that cannot start"),
        ("a: 1\n---\nb: 2", 2, "another document"),
        ("a: *x", 1, "undefined alias"),
        ("a: 1\nb: 2\na: 3", 3, "given twice, first in line 1"),
        ("a: !!python/object:os.system {}", 1, "the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: !mine 3", 1, "the tag '!mine'"),
        ("base: &x {a: 1}\nb:\n  <<: *x", 3, "merge keys"),
        ("? [1, 2]\n: 3", 1, "a key must be a plain word"),
        ("a:\n  colour: #ff0000", 2, "YAML takes #ff0000 for a comment: put it in quotes"),
        ("a:\n  values: [#ff0000]\nb: 1\n", 2, "YAML takes #ff0000 for a comment: put it in quotes"),
        ("a: &x [*x]", None, "nested deeper than 20"),
        ("[" * 100_000, None, "nested deeper than 20"),
        (BOMB, None, "more than 10,000 values"),
        ("a: " + "x" * 300_000, None, "300,003 characters are too many"),
        ("a: \x00", None, "not a YAML text"),
    ],
)
def test_flaws(text: str, line: int | None, message: str) -> None:
    (flaw,) = read_document(text).flaws
    assert flaw.line == line
    assert message in flaw.text


def test_a_value_with_a_flaw_is_no_value() -> None:
    with pytest.raises(ValueError, match="YAML syntax"):
        read_value("[1")
