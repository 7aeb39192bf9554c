"""Loading: a configuration file and ``--set`` overrides become a `Config`, or a list of every mistake."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from visionsft.config import Config
from visionsft.document import FLOAT, Document, Place, read_document, read_value
from visionsft.errors import ConfigError, nearest
from visionsft.mistakes import Mistake, correct, says_nothing_new, show

_MOST_LINES = 50
_AFTER_THE_FILE = 1_000_000  # in the order of mistakes


def load_config(
    path: str | Path,
    overrides: Iterable[str] = (),
    *,
    check: Callable[[Config], list[Mistake]] | None = None,
) -> Config:
    """Read the YAML file `path`, apply `overrides` (``"data.batch_size=4"``) and validate.

    A run without a name gets the file's. check: finds further mistakes, in the configuration put right.
    One ConfigError has all mistakes, a line each: where (file and line,
    or ``--set``), the dotted key, what was given, what is allowed, the nearest match.
    """
    path = Path(path)
    document = read_document(_read_text(path))
    source = _Source(str(path), document)
    config = None
    if document.values is None and not document.flaws:
        source.add((), "is empty; it needs at least the sections data and backbone")
    elif document.values is not None and not isinstance(document.values, dict):
        keys = ", ".join(Config.model_fields)
        source.add((), f"must be a mapping with the keys {keys}; given {show(document.values)}")
    elif document.values is not None:
        source.override(overrides)
        if document.values.get("name") is None:
            document.values["name"] = _name_of(path)
        config, mistakes = correct(document.values)
        source.add_all(mistakes)
        if check is not None and config is not None:
            source.add_all(new for new in check(config) if not says_nothing_new(new, mistakes))
    if config is None or source.lines:
        raise ConfigError(source.report())
    return config


def dump_config(config: Config, *, defaults: bool = True) -> str:
    """The YAML text of `config`, from which `load_config` reads an equal one; defaults: with what was left to them."""
    values = config.model_dump(mode="json", exclude_unset=not defaults)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or `visionsft.document` would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"(?:{FLOAT})$"), list("-+.0123456789"))


# ------------------------------------------------------------------------------------ the file


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(_say_missing(path)) from None
    except IsADirectoryError:
        inside = f"; in it: {', '.join(_configs(path)[:10])}" if _configs(path) else ""
        raise ConfigError(f"{path}: is a folder, not a configuration file{inside}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not a UTF-8 text (byte {error.start}); YAML is needed") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None


def _configs(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))


def _say_missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path}: no such file, and no folder {path.parent}"
    names = _configs(path.parent)
    if match := nearest(path.name, names):
        return f"{path}: no such file; nearest: {path.with_name(match)}"
    return f"{path}: no such file" + (f"; in that folder: {', '.join(names[:10])}" if names else "")


def _name_of(path: Path) -> str:
    """The file's stem, made fit to name a folder."""
    return re.sub(r"[^\w.-]+", "-", path.stem)[:100].strip("-.") or "run"


@dataclass
class _Source:
    """Where the values came from, and the mistakes in them so far."""

    name: str
    document: Document
    sets: dict[Place, str] = field(default_factory=dict)
    """The ``--set`` that gave a place its value."""
    lines: list[tuple[int, str]] = field(default_factory=list)
    """Mistakes with their line in the file, by which they are ordered."""

    def __post_init__(self) -> None:
        for flaw in self.document.flaws:
            where = f"{self.name}:{flaw.line}" if flaw.line else self.name
            self._add(flaw.line or 0, where, flaw.place, flaw.text)

    def override(self, overrides: Iterable[str]) -> None:
        """Change the document's values by ``key=value`` texts."""
        for override in overrides:
            key, equals, text = override.partition("=")
            try:
                if not equals or "" in key.split("."):
                    raise ValueError("must have the form key=value, for example data.batch_size=4")
                if not text.strip():
                    raise ValueError("has no value; write null for none")
                place = set_value(self.document.values, key.strip().split("."), read_value(text))
            except ValueError as error:
                self._add(_AFTER_THE_FILE, f"--set {override}", (), str(error))
            else:
                self.sets = {old: by for old, by in self.sets.items() if old[: len(place)] != place}
                self.sets[place] = f"--set {override}"

    def add_all(self, mistakes: Iterable[Mistake]) -> None:
        flawed = {flaw.place for flaw in self.document.flaws}
        for mistake in mistakes:
            if mistake.place not in flawed:
                self.add(mistake.place, mistake.text + self._blame_set(mistake))

    def add(self, place: Place, text: str) -> None:
        line, where = self._origin(place)
        self._add(line, where, place, text)

    def _add(self, line: int, where: str, place: Place, text: str) -> None:
        dotted = f"{dot(place)}: " if place else ""
        self.lines.append((line, f"{where}: {dotted}{text}"))

    def _origin(self, place: Place) -> tuple[int, str]:
        """File and line, or the ``--set``, of the value at `place` or of the nearest section around it."""
        for length in range(len(place), 0, -1):
            if by := self.sets.get(place[:length]):
                return _AFTER_THE_FILE, by
            if line := self.document.lines.get(place[:length]):
                return line, f"{self.name}:{line}"
            for below, by in self.sets.items():
                if below[:length] == place[:length]:  # it made the section
                    return _AFTER_THE_FILE, by
        return 0, self.name

    def _blame_set(self, mistake: Mistake) -> str:
        """A key of the file that doesn't fit any more because ``--set`` changed the kind of its section."""
        by = self.sets.get(mistake.choice) if mistake.choice else None
        if not by or not mistake.choice or self._origin(mistake.place)[0] == _AFTER_THE_FILE:
            return ""
        *section, key = mistake.choice
        value = by.partition("=")[2].strip()
        return f" ({by} changed it; --set '{dot(tuple(section))}={{{key}: {value}}}' replaces the section)"

    def report(self) -> str:
        texts = [text for _, text in sorted(self.lines, key=lambda line: line[0])]
        hidden = len(texts) - _MOST_LINES
        return "\n".join(texts[:_MOST_LINES] + ([f"... and {hidden} more mistakes"] if hidden > 0 else []))


def dot(place: Place) -> str:
    """A place as the user writes it: ``data.classes.0.name``; odd keys in quotes."""
    parts = (str(part) for part in place)
    return ".".join(part if re.fullmatch(r"[\w:/+-]+", part) else repr(part[:60]) for part in parts)


def set_value(values: Any, keys: list[str], value: Any) -> Place:
    """Set the value at `keys` and return its place; sections that don't exist are made.

    A key that can't be there raises ValueError.
    """
    place: Place = ()
    for key in keys:
        here = dot(place)
        part: str | int = key
        if isinstance(values, list):
            if not (key.isdecimal() and int(key) < len(values)):
                raise ValueError(f"{here} is a list of {len(values)} items, counted from 0: no item {key!r}")
            part = int(key)
        elif not isinstance(values, dict):
            raise ValueError(f"{here} is {show(values)}, which has no keys")
        place = (*place, part)
        if len(place) == len(keys):
            values[part] = value
        elif isinstance(values, dict) and values.get(key) is None:
            values[part] = {}
        values = values[part]
    return place
