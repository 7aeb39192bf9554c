"""A YAML document: plain values, and the line on which each of them stands.

Only what a configuration needs is read: mappings, lists and plain values by YAML 1.2's core rules, so that
``no`` is a text, ``1e-4`` a number and ``010`` ten. Tags, merge keys (``<<``), keys given twice and aliases
that multiply are refused, because each is either a mistake or an attack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Place = tuple[str | int, ...]
"""Where a value is: keys and list positions from the root."""

_LARGEST_TEXT = 256 * 1024  # characters
_MOST_VALUES = 10_000
_DEEPEST = 20
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str")}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_LONGEST_NUMBER = 100  # characters
FLOAT = r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
"""How a number with a fraction or an exponent is written (whole numbers too)."""
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True)
class Flaw:
    """A mistake that the text itself has; `line` counts from 1."""

    text: str
    line: int | None = None
    place: Place = ()


@dataclass
class Document:
    """The values of a YAML text with the line of every key and list item, and the flaws found in it."""

    values: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    flaws: list[Flaw] = field(default_factory=list)


def read_document(text: str) -> Document:
    """Parse `text`; a text that can't be parsed at all gives a document with one flaw and no values."""
    if len(text) > _LARGEST_TEXT:
        return Document(flaws=[Flaw(f"{len(text):,} characters are too many for a configuration")])
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        return Document(flaws=[_syntax_flaw(error, text.splitlines())])
    except yaml.YAMLError as error:  # characters that YAML doesn't allow
        return Document(flaws=[Flaw(f"not a YAML text: {' '.join(str(error).split())}")])
    except RecursionError:
        return Document(flaws=[Flaw(f"nested deeper than {_DEEPEST} levels")])
    document = Document()
    if root is not None:
        _Reader(document, text.splitlines()).read(root)
    return document


def read_value(text: str) -> Any:
    """The value of a short YAML text such as ``4`` or ``{kind: lora}``; flaws raise ValueError."""
    document = read_document(text)
    if document.flaws:
        raise ValueError("; ".join(flaw.text for flaw in document.flaws))
    return document.values


def _syntax_flaw(error: yaml.MarkedYAMLError, lines: list[str]) -> Flaw:
    mark = error.problem_mark or error.context_mark
    if error.context_mark and "flow" in str(error.context):  # a bracket that is never closed: where it opens
        mark = error.context_mark
    context = f" {error.context}" if error.context else ""
    if mark is None:
        return Flaw(f"YAML syntax: {error.problem}{context}")
    text = _unquoted_colour(lines, mark.line) or f"{error.problem}{context}"
    if "alias" in context:
        text += "; a text that begins with * needs quotes"
    return Flaw(f"YAML syntax at column {mark.column + 1}: {text}", mark.line + 1)


def _unquoted_colour(lines: list[str], number: int) -> str | None:
    """What to do about a '#rrggbb' in that line (counted from 0) which YAML doesn't see."""
    found = re.search(r"[\s,\[](#[0-9a-fA-F]{6})\b", lines[number]) if number < len(lines) else None
    return f"YAML takes {found[1]} for a comment: put it in quotes, '{found[1]}'" if found else None


class _TooMuchError(Exception):
    """The document is too large or too deep once its aliases are followed."""


class _Reader:
    """Turns composed nodes into values, noting lines and flaws in a document."""

    def __init__(self, document: Document, lines: list[str]) -> None:
        self.document = document
        self.lines = lines
        self.count = 0

    def read(self, root: yaml.Node) -> None:
        try:
            self.document.values = self._value(root, ())
        except _TooMuchError as error:
            self.document.values = None
            self.document.flaws = [Flaw(str(error))]

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self.count += 1
        if self.count > _MOST_VALUES:
            raise _TooMuchError(f"more than {_MOST_VALUES:,} values, aliases followed: too many")
        if len(place) > _DEEPEST:
            raise _TooMuchError(f"nested deeper than {_DEEPEST} levels, aliases followed")
        if node.tag not in _TAGS:
            self._flaw(node, place, f"the tag {node.tag!r} is not allowed: write the value plainly")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*place, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, place)

    def _item(self, node: yaml.Node, place: Place) -> Any:
        self.document.lines[place] = node.start_mark.line + 1
        return self._value(node, place)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str) or key == "<<":
                text = "merge keys ('<<') are not allowed" if key == "<<" else "a key must be a plain word"
                self._flaw(key_node, place, text)
            elif key in values:
                first = self.document.lines[(*place, key)]
                self._flaw(key_node, (*place, key), f"given twice, first in line {first}")
            else:
                self.document.lines[(*place, key)] = key_node.start_mark.line + 1
                values[key] = self._value(value_node, (*place, key))
        return values

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Any:
        if node.style is not None:  # quoted or a block, so a text
            return node.value
        if not node.value and (hint := _unquoted_colour(self.lines, node.end_mark.line)):
            self._flaw(node, place, hint)
        return _plain(node.value)

    def _flaw(self, node: yaml.Node, place: Place, text: str) -> None:
        self.document.flaws.append(Flaw(text, node.start_mark.line + 1, place))


def _plain(text: str) -> Any:
    """The value of an unquoted scalar, by the core schema of YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if re.fullmatch(FLOAT, text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", ""))
    return text
