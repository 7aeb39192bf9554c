"""The search space: the keys of a configuration that `visionsft tune` varies, and the configuration of each choice.

A key that belongs to one kind only (``strategy.last`` to layerwise) is searched where that kind is chosen: keys on
which others hang are chosen first, and a key that the section so chosen doesn't have is left out. Before the first
trial every value is tried on the configuration, alone and with every value of each other key, without building
anything.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from visionsft.config import Config
from visionsft.dimension import Choices, Dimension, parse, write
from visionsft.document import Place
from visionsft.errors import ConfigError
from visionsft.loading import dot, set_value
from visionsft.mistakes import Mistake, split_key, validate, value_at

Chosen = Mapping[str, Any]
"""Values by dotted key."""

MOST_CHECKS = 20_000
"""Configurations at most that are validated before the first trial (about a millisecond each)."""

_FIXED = ("name", "runs", "tune", "gates", "task.kind", "data.kind", "data.root", "data.split", "data.classes",
          "data.ignore", "data.images", "data.labels", "data.layout", "data.annotations")  # fmt: skip
"""What decides where trials are kept and what their score means."""
_CHOOSING = ("kind", "name", "by")


class _NoPlaceError(ValueError):
    """A key goes through a plain value, or past the end of a list."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


@dataclass(frozen=True)
class Space:
    """Dimensions by dotted key, those on which others hang first, and the values that are the same in all trials."""

    base: Mapping[str, Any]
    dimensions: Mapping[str, Dimension]

    @classmethod
    def of(cls, config: Config) -> Space:
        """The space in a configuration's section ``tune``; empty without one."""
        base = config.model_dump(mode="json", exclude_unset=True)
        searched = base.pop("tune", None) or {}
        found = {key: parse(value) for key, value in searched.items() if key != "study"}
        order = sorted(found, key=lambda key: (not _decides(key, found), key.count(".")))
        return cls(base, {key: found[key] for key in order})

    def values(self, chosen: Chosen) -> dict[str, Any]:
        """The values of the configuration with these choices; the shallower keys are set first."""
        values = copy.deepcopy(dict(self.base))
        for key in sorted(chosen, key=lambda key: key.count(".")):
            try:
                set_value(values, key.split("."), copy.deepcopy(chosen[key]))
            except ValueError as error:
                raise _NoPlaceError(key, str(error)) from None
        return values

    def config(self, chosen: Chosen, *, name: str | None, runs: Path) -> Config:
        """The configuration of a trial; one that doesn't fit together raises ConfigError."""
        values = {**self.values(chosen), "name": name, "runs": str(runs)}
        config, mistakes = validate(values)
        if config is None:
            raise ConfigError("\n".join(f"{dot(mistake.place)}: {mistake.text}" for mistake in mistakes))
        return config

    def is_active(self, key: str, chosen: Chosen) -> bool:
        """Whether the sections that `chosen` gives know `key`, though others of their kinds may not."""
        return _belongs_elsewhere(key, self._try({**chosen, key: self.dimensions[key].probes()[0]})) is None

    def start(self, config: Config) -> dict[str, Any]:
        """What the configuration itself has for the keys, where the space holds it; see `visionsft.dimension`."""
        full = config.model_dump(mode="json")
        given = (
            (key, value_at(values, split_key(key))) for values in (full, self.base) for key in self.dimensions
        )
        return {key: value for key, value in given if self.dimensions[key].holds(value)}

    # ----------------------------------------------------------------------------------- checking

    def contexts(self) -> list[dict[str, Any]]:
        """Every combination of the keys on which others hang."""
        contexts: list[dict[str, Any]] = [{}]
        for key, dimension in self.dimensions.items():
            if _decides(key, self.dimensions):
                contexts = [
                    {**context, **choice}
                    for context in contexts
                    for choice in ([{key: v} for v in dimension.probes()] if self.is_active(key, context) else [{}])
                ]
        return contexts

    def probes(self, context: Chosen) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
        """Choices that try every value in `context`, and every pair of values, with the key or two that are on trial.

        The first has the first value of every key, and names none.
        """
        others = {
            key: dimension.probes()
            for key, dimension in self.dimensions.items()
            if key not in context and self.is_active(key, context)
        }
        first = {**context, **{key: values[0] for key, values in others.items()}}
        yield first, ()
        for key, values in others.items():
            yield from (({**first, key: value}, (key,)) for value in values[1:])
        for one, other in combinations(others, 2):
            for value in others[one][1:]:
                yield from (({**first, one: value, other: second}, (one, other)) for second in others[other][1:])

    def _try(self, chosen: Chosen) -> list[Mistake]:
        try:
            return validate(self.values(chosen))[1]
        except _NoPlaceError as error:
            return [Mistake(split_key(error.key), str(error))]


def check(config: Config) -> list[Mistake]:
    """Every mistake in the search space of `config`, each at its value in the section ``tune``."""
    space = Space.of(config)
    if not space.dimensions:
        text = "missing section; it needs at least one key to search, e.g. strategy.lr: {log: [1e-4, 1e-2]}"
        return [Mistake(("tune",), text)]
    wrong = [mistake for key in space.dimensions for mistake in _misplaced(key, space.dimensions)]
    sound = {key: d for key, d in space.dimensions.items() if all(m.place != ("tune", key) for m in wrong)}
    return [*wrong, *_Check(Space(space.base, sound)).run()] if sound else wrong


@dataclass
class _Check:
    """One check of a whole space."""

    space: Space
    contexts: list[dict[str, Any]] = field(default_factory=list)
    found: dict[tuple[Place, str], list[dict[str, Any]]] = field(default_factory=dict)
    """Where and what, and the contexts in which it is so."""

    def run(self) -> list[Mistake]:
        self.contexts = self.space.contexts()
        checks = 0
        for context in self.contexts:
            usual: set[tuple[Place, str]] = set()
            for chosen, keys in self.space.probes(context):
                checks += 1
                if checks > MOST_CHECKS:
                    text = f"more than {MOST_CHECKS:,} combinations, too many to check them; give fewer choices"
                    return [Mistake(("tune",), text)]
                found = [m for m in self.space._try(chosen) if (m.place, m.text) not in usual]
                if not usual:  # these choices are the first: what is wrong with them is wrong with the next, too
                    usual = {(m.place, m.text) for m in found} | {((), "")}
                    alone = {(m.place, m.text) for m in self.space._try(context)}
                    for mistake in found:
                        by_context = context and (mistake.place, mistake.text) in alone
                        self._note(mistake, chosen, tuple(context if by_context else chosen), context)
                else:
                    for mistake in found:
                        self._note(mistake, chosen, keys, context, pair=len(keys) == 2)
        placed = [Mistake(place, text + self._where(place, seen)) for (place, text), seen in self.found.items()]
        return [*self._homeless(), *placed]

    def _homeless(self) -> Iterator[Mistake]:
        """Keys that no choice of the space knows."""
        for key in self.space.dimensions:
            if not any(self.space.is_active(key, context) for context in self.contexts):
                mistakes = self.space._try({key: self.space.dimensions[key].probes()[0]})
                mistake = _belongs_elsewhere(key, mistakes)
                assert mistake is not None
                yield Mistake(("tune", key), mistake.text)

    def _note(
        self,
        mistake: Mistake,
        chosen: Chosen,
        keys: Sequence[str],
        context: dict[str, Any],
        *,
        pair: bool = False,
    ) -> None:
        """keys: one of which is mistaken, or two of which exclude each other."""
        key = _nearest_key(mistake.place, keys, chosen)
        place, text = self._describe(mistake, key, chosen)
        partners = [other for other in keys if other != key] if pair else []
        known = {found for found, _ in self.found}
        if partners and (place in known or any(self._place(other, chosen) in known for other in partners)):
            return  # one of the two is wrong alone
        text += "".join(f" (with {other}: {describe(chosen[other])})" for other in partners)
        seen = self.found.setdefault((place, text), [])
        if context not in seen:
            seen.append(context)

    def _describe(self, mistake: Mistake, key: str, chosen: Chosen) -> tuple[Place, str]:
        own = mistake.place == split_key(key)
        value = "" if own or mistake.place[: len(split_key(key))] == split_key(key) else f"{describe(chosen[key])}: "
        return self._place(key, chosen), f"{value}{'' if own else f'{dot(mistake.place)}: '}{mistake.text}"

    def _place(self, key: str, chosen: Chosen) -> Place:
        dimension = self.space.dimensions[key]
        if not isinstance(dimension, Choices):
            return ("tune", key)
        return ("tune", key, [write(v) for v in dimension.values].index(write(chosen[key])))

    def _where(self, place: Place, seen: Sequence[Chosen]) -> str:
        """The choices without which a mistake doesn't show."""
        needed = []
        for key in self.contexts[0]:
            values = {write(context.get(key)) for context in seen}
            if key not in place and len(values) == 1 < len({write(context.get(key)) for context in self.contexts}):
                needed.append(f"{key}: {describe(seen[0].get(key))}")
        return f" (with {', '.join(needed)})" if needed else ""


# -------------------------------------------------------------------------------------- helpers


def _decides(key: str, found: Mapping[str, Dimension]) -> bool:
    """Whether other keys of the space hang on the choice of `key`: it is a kind, or a whole section."""
    dimension = found[key]
    if not isinstance(dimension, Choices):
        return False
    section, _, last = key.rpartition(".")
    if last not in _CHOOSING:
        section = key if any(isinstance(value, dict | list) for value in dimension.values) else ""
    return bool(section) and any(other != key and other.startswith(f"{section}.") for other in found)


def _misplaced(key: str, found: Mapping[str, Dimension]) -> Iterator[Mistake]:
    """What is wrong with a key whatever its values."""
    place = ("tune", key)
    if "" in key.split("."):
        yield Mistake(place, "must be a key of the configuration, for example strategy.lr")
    for fixed in _FIXED:
        if key == fixed or key.startswith(f"{fixed}.") or fixed.startswith(f"{key}."):
            reason = "it says what is scored, on what, and where it is kept"
            yield Mistake(place, f"must be the same in all trials, since {fixed} is: {reason}")
            break
    for other, dimension in found.items():
        if not key.startswith(f"{other}."):
            continue
        if not all(isinstance(value, dict | list) for value in dimension.probes()):
            yield Mistake(place, f"can't be searched, since {other} is, by values that have no keys")
        elif any(value_at(v, split_key(key)[len(split_key(other)) :]) is not None for v in dimension.probes()):
            yield Mistake(place, f"is searched, and given by choices of {other}, too; leave it out of one")


def _belongs_elsewhere(key: str, mistakes: Sequence[Mistake]) -> Mistake | None:
    """The mistake that says that `key` is of another kind than the chosen one."""
    place = split_key(key)
    return next((m for m in mistakes if m.choice and m.place == place[: len(m.place)]), None)


def _nearest_key(place: Place, keys: Sequence[str], chosen: Chosen) -> str:
    """The key that a mistake at `place` is about: of those on trial, else of all chosen."""

    def common(key: str) -> int:
        pairs = zip(split_key(key), place, strict=False)
        return next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(split_key(key)), len(place)))

    if whole := [key for key in chosen if common(key) == min(len(split_key(key)), len(place))]:
        return max(whole, key=lambda key: (key in keys, common(key)))
    return max(keys, key=common)


def describe(value: Any) -> str:
    """A value as short YAML."""
    if isinstance(value, dict):
        order = sorted(value, key=lambda key: key not in _CHOOSING)  # its kind or name says most
        return "{" + ", ".join(f"{key}: {describe(value[key])}" for key in order) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(describe, value)) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else write(value)



