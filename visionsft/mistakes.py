"""Mistakes: what pydantic finds wrong with a configuration, in words that a user can act on.

pydantic stops early in two cases: it doesn't look into a section whose ``kind`` it doesn't know, and it
checks fields against each other only when each of them is right. So the mistakes of one round are put right
in a copy of the values, and the copy is validated again, until nothing new is found.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from visionsft.config import CONFIGS, DEFAULT_TASK, Config, CustomHead, Section
from visionsft.document import Place
from visionsft.errors import nearest

_ROUNDS = 12


@dataclass(frozen=True)
class Mistake:
    """One thing to correct."""

    place: Place
    text: str
    others: tuple[Place, ...] = ()
    """Places that contradict this one: once they are mistaken, this says nothing new."""
    choice: Place | None = None
    """Where the section's kind is chosen, if another kind would make this right."""


def validate(values: dict[str, Any]) -> tuple[Config | None, list[Mistake]]:
    """The configuration, or every mistake in `values`."""
    config, found = correct(values)
    return (None if found else config), found


def correct(values: dict[str, Any]) -> tuple[Config | None, list[Mistake]]:
    """The configuration with every mistake in `values` put right (None where that fails), and the mistakes."""
    root, values, found = _choose_root(values)
    for _ in range(_ROUNDS):
        try:
            config = root.model_validate(values)
        except ValidationError as error:
            groups = _group(error.errors(include_url=False), root, values)
        else:
            return config, found
        for spot, errors in groups:
            mistake = _describe(spot, errors, root, values)
            if not says_nothing_new(mistake, found):
                found.append(mistake)
        values = copy.deepcopy(values)
        for spot, errors in groups:
            _put_right(values, spot, errors)
    return None, found


def _choose_root(values: dict[str, Any]) -> tuple[type[Config], dict[str, Any], list[Mistake]]:
    """The configuration that the task's kind asks for; an unknown kind is put right by the nearest one."""
    task = values.get("task")
    kind = task.get("kind", DEFAULT_TASK) if isinstance(task, dict) else DEFAULT_TASK
    if isinstance(kind, str) and kind in CONFIGS:
        return CONFIGS[kind], values, []
    text = f"{show(kind)} is not allowed; allowed: {', '.join(CONFIGS)}{_nearest(kind, CONFIGS)}"
    likely = nearest(str(kind), CONFIGS) or DEFAULT_TASK
    corrected = values | {"task": {**values["task"], "kind": likely}}
    return CONFIGS[likely], corrected, [Mistake(("task", "kind"), text)]


def says_nothing_new(mistake: Mistake, found: list[Mistake]) -> bool:
    """Whether its place, or one that contradicts it, is among the mistakes that are known."""
    return any(
        _one_holds_the_other(place, known.place)
        for known in found
        for place in (mistake.place, *mistake.others)
    )


def _one_holds_the_other(one: Place, other: Place) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


# ------------------------------------------------------------------------- where a finding is


@dataclass(frozen=True)
class _Spot:
    """What a location of pydantic's means: a place in the values, and the models that rule there."""

    place: Place
    model: type[Section]
    """The section whose key is last in `place`."""
    siblings: tuple[type[Section], ...]
    """What that section could have been instead, itself included."""
    field: FieldInfo | None
    """The field of that key; None where the model doesn't know it."""


def _group(
    errors: list[ErrorDetails], root: type[Config], values: dict[str, Any]
) -> list[tuple[_Spot, list[ErrorDetails]]]:
    """Errors by place: of `int | str` pydantic reports each branch, which is one mistake."""
    groups: dict[Place, tuple[_Spot, list[ErrorDetails]]] = {}
    for error in errors:
        spot = _locate(error["loc"], root, values)
        groups.setdefault(spot.place, (spot, []))[1].append(error)
    return list(groups.values())


def _locate(location: Place, root: type[Config], values: Any) -> _Spot:
    """Walk the models along `location`, leaving out the names of a union's branches that pydantic puts in."""
    model: type[Section] = root
    siblings: tuple[type[Section], ...] = (root,)
    members: tuple[type[Section], ...] = (root,)
    field: FieldInfo | None = None
    place: list[str | int] = []
    for part in location:
        if isinstance(part, int):
            if isinstance(values, list):  # a single loss counts as a list of one
                place.append(part)
                values = values[part] if part < len(values) else None
        elif len(members) > 1:
            siblings, members = members, (_member(members, part),)
        elif members:
            model, siblings = members[0], siblings if members[0] in siblings else members
            field = model.model_fields.get(part)
            place.append(part)
            members = tuple(_sections(field.annotation)) if field else ()
            values = values.get(part) if isinstance(values, dict) else None
    return _Spot(tuple(place), model, siblings, field)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The models in an annotation such as ``tuple[Annotated[A | B, ...], ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _choices(members: tuple[type[Section], ...]) -> tuple[str, dict[str, type[Section]]]:
    """The key that chooses between `members`, and what it may be."""
    for key in ("kind", "name", "by"):
        fields = {member: member.model_fields.get(key) for member in members}
        names = {
            get_args(field.annotation)[0]: member
            for member, field in fields.items()
            if field and get_origin(field.annotation) is Literal
        }
        if names:
            return key, names
    raise AssertionError(f"nothing distinguishes {members}")


def _member(members: tuple[type[Section], ...], tag: str) -> type[Section]:
    return _choices(members)[1].get(tag, CustomHead)


# ---------------------------------------------------------------------------- what to say of it


def _describe(
    spot: _Spot, errors: list[ErrorDetails], root: type[Config], values: dict[str, Any]
) -> Mistake:
    kind = errors[0]["type"]
    if kind == "extra_forbidden":
        return _unknown_key(spot, root)
    if kind.startswith("union_tag") or kind == "model_attributes_type":
        return _wrong_choice(spot, values)
    if kind == "conflict":
        return _conflict(spot, errors[0]["ctx"])
    if kind == "missing":
        return _missing(spot, values)
    return Mistake(spot.place, _wrong_value(spot, errors, values))


def _unknown_key(spot: _Spot, root: type[Config]) -> Mistake:
    key = str(spot.place[-1])
    own = spot.model.model_fields
    if spot.model is CustomHead:
        return Mistake(spot.place, "unknown key; arguments of your own class go below 'options'")
    for sibling in spot.siblings:
        if key in sibling.model_fields:
            choice, names = _choices(spot.siblings)
            here, there = (
                next(name for name, member in names.items() if member is model)
                for model in (spot.model, sibling)
            )
            text = f"unknown key for {choice} '{here}'; it belongs to {choice} '{there}'"
            return Mistake(spot.place, text, choice=(*spot.place[:-1], choice))
    if match := nearest(key, own):
        return Mistake(spot.place, f"unknown key; nearest: {match}")
    here = ".".join(str(part) for part in spot.place)
    tasks = [kind for kind, config in CONFIGS.items() if config is not root and here in _all_keys(config)]
    if tasks:
        return Mistake(spot.place, f"unknown key for this task; it belongs to task.kind {' or '.join(tasks)}")
    if elsewhere := [place for place in _all_keys(root) if place.split(".")[-1] == key]:
        return Mistake(spot.place, f"unknown key here; it belongs to {' or '.join(elsewhere)}")
    return Mistake(spot.place, f"unknown key; allowed: {', '.join(own)}")


def _all_keys(model: type[Section], prefix: str = "") -> list[str]:
    """Dotted names of all keys of `model`; lists of sections are left out."""
    keys: dict[str, None] = {}
    for name, field in model.model_fields.items():
        keys[f"{prefix}{name}"] = None
        if get_origin(field.annotation) is not tuple:
            for section in _sections(field.annotation):
                keys.update(dict.fromkeys(_all_keys(section, f"{prefix}{name}.")))
    return list(keys)


def _wrong_choice(spot: _Spot, values: dict[str, Any]) -> Mistake:
    """A section whose kind is missing or unknown, or that isn't a section at all."""
    key, names = _choices(_members_at(spot))
    section = value_at(values, spot.place)
    allowed = f"allowed: {', '.join(names)}"
    if CustomHead in _members_at(spot):
        allowed += ", or a class of your own as 'my_package.heads:MyHead'"
    if not isinstance(section, dict):
        match = nearest(section, names) if isinstance(section, str) else None
        example = f"{{{key}: {match or next(iter(names))}}}"
        return Mistake(spot.place, f"{show(section)} is not a mapping; write {example}; {allowed}")
    place = (*spot.place, key)
    if key not in section:
        return Mistake(place, f"missing; {allowed}")
    given = section[key]
    return Mistake(place, f"{show(given)} is not allowed; {allowed}{_nearest(given, names)}")


def _members_at(spot: _Spot) -> tuple[type[Section], ...]:
    return tuple(_sections(spot.field.annotation)) if spot.field else ()


def _conflict(spot: _Spot, context: dict[str, Any]) -> Mistake:
    place, *others = ((*spot.place, *split_key(key)) for key in (context["key"], *context["others"]))
    return Mistake(place, context["text"], tuple(others))


def _missing(spot: _Spot, values: dict[str, Any]) -> Mistake:
    if isinstance(spot.place[-1], int):
        place = spot.place[:-1]
        return Mistake(place, f"too few values; given {show(value_at(values, place))}")
    sections = _members_at(spot)
    if len(sections) == 1:
        needed = [name for name, field in sections[0].model_fields.items() if field.is_required()]
        return Mistake(spot.place, f"missing section; it needs at least {', '.join(needed)}")
    if sections:
        key, names = _choices(sections)
        return Mistake(spot.place, f"missing section; its '{key}' may be {', '.join(names)}")
    description = f": {spot.field.description}" if spot.field and spot.field.description else ""
    return Mistake(spot.place, f"missing{description}")


def _wrong_value(spot: _Spot, errors: list[ErrorDetails], values: dict[str, Any]) -> str:
    given = value_at(values, spot.place)
    if names := _literals(errors):
        return f"{show(given)} is not allowed; allowed: {', '.join(names)}{_nearest(given, names)}"
    errors = [
        error for error in errors if error["type"] != "too_short"
    ] or errors  # it counts the right items
    wishes = dict.fromkeys(_wish(error, spot) for error in errors)
    wish = " or ".join(wishes).replace(" or must be ", " or ")
    return f"given {show(given)}; {wish}"


def _literals(errors: list[ErrorDetails]) -> list[str]:
    """The texts that are allowed, where nothing but some texts is."""
    if any(error["type"] != "literal_error" for error in errors):
        return []
    return [name for error in errors for name in re.findall(r"'([^']*)'", error["ctx"]["expected"])]


def _wish(error: ErrorDetails, spot: _Spot) -> str:
    """What pydantic wants, beginning with 'must'."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "path_type":
        return "must be a path"
    if error["type"] == "model_type":
        return f"must be a mapping with keys such as {', '.join(list(_members_at(spot)[0].model_fields)[:4])}"
    message = (
        re.sub(", (unable|got) .*", "", error["msg"])
        .replace("valid tuple", "list")
        .replace("valid string", "text")
    )
    return re.sub(r"^\w+ should ", "must ", message)


def _nearest(given: Any, names: Any) -> str:
    match = nearest(str(given), names)
    return f"; nearest: {match}" if match else ""


def split_key(key: str) -> Place:
    """The place that a dotted key names; numbers are positions in a list."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def show(value: Any) -> str:
    """A value as the user wrote it, shortened."""
    if value is None:
        return "null (nothing)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --------------------------------------------------------------------------------- putting right


def _put_right(values: dict[str, Any], spot: _Spot, errors: list[ErrorDetails]) -> None:
    """Change `values` so that the next round sees past this mistake."""
    place = spot.place
    replacement: str | int | None = None  # the key is removed then, and its default counts
    kind = errors[0]["type"]
    if kind == "conflict":
        place = _conflict(spot, errors[0]["ctx"]).place
    elif kind == "missing":
        replacement = 1 if spot.field and spot.field.annotation in (int, float) else "anything"
    elif kind == "union_tag_invalid":
        key, names = _choices(_members_at(spot))
        if match := nearest(str(value_at(values, (*place, key))), names):
            place, replacement = (*place, key), match
    elif allowed := _literals(errors):
        replacement = nearest(str(value_at(values, place)), allowed) or allowed[0]
    _replace(values, place, replacement)


def _replace(values: dict[str, Any], place: Place, replacement: str | int | None) -> None:
    """Replace the value at `place`, or remove its key; of a list item, the key of the list."""
    while isinstance(place[-1], int):
        place, replacement = place[:-1], None
    section = value_at(values, place[:-1])
    if isinstance(section, dict):
        section.pop(place[-1], None)
        if replacement is not None:
            section[place[-1]] = replacement


def value_at(values: Any, place: Place) -> Any:
    """The value at `place`, or None."""
    for part in place:
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values
