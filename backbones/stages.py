"""Stages: the parts of a model in order, from stem to norm, as timm's group_matcher divides it.

A CNN's stages are its resolutions, a plain ViT's its single blocks. Freezing, layer-wise learning rates and
gradual unfreezing all go by these.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from timm.models import group_parameters
from torch import nn

from backbones.errors import BackboneError
from backbones.geometry import TimmModel

_FINAL_NORM = re.compile(r"^(encoder\.)?(fc_)?norm\.")  # timm counts a ViT's final norm to its last block


@dataclass(frozen=True)
class Stage:
    """Some parameters that train or freeze together."""

    name: str
    parameters: tuple[str, ...]


def group_stages(model: TimmModel, *, prefix: str = "") -> list[Stage]:
    """Stages of a timm model, input to output; each parameter is in exactly one.

    prefix: what to put before the parameters' names.
    """
    groups = _split_final_norm(_parameter_groups(model))
    names = _stage_names(groups)
    return [
        Stage(name, tuple(prefix + key for key in group)) for name, group in zip(names, groups, strict=True)
    ]


def check_stages(names: Sequence[str], chosen: Iterable[str] | None) -> frozenset[str]:
    """The chosen stage names (None: all), or a BackboneError that names the nearest right ones."""
    if chosen is None:
        return frozenset(names)
    if isinstance(chosen, str):
        raise BackboneError(f"stages must be a list of names, not the string {chosen!r}")
    chosen = list(chosen)
    for name in chosen:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BackboneError(f"no stage {name!r}{hint} (stages: {', '.join(names)})")
    return frozenset(chosen)


def modules_of(model: nn.Module, stages: Iterable[Stage]) -> Iterator[tuple[str, nn.Module, frozenset[str]]]:
    """Each module with its name and the stages that own parameters in it.

    One without parameters (dropout, drop-path) belongs to the stage of the module before it, as modules are
    registered in the order in which they run.
    """
    owners: dict[str, set[str]] = {}
    for stage in stages:
        for name in stage.parameters:
            parts = name.split(".")[:-1]
            for depth in range(len(parts) + 1):
                owners.setdefault(".".join(parts[:depth]), set()).add(stage.name)
    previous: frozenset[str] = frozenset()
    for name, module in model.named_modules():
        own = frozenset(owners.get(name, ())) or previous
        if len(own) == 1:
            previous = own
        yield name, module, own


def _parameter_groups(model: TimmModel) -> list[list[str]]:
    """Parameter names by timm's coarse groups; where timm has none, by their numbered part of the model."""
    if not hasattr(model, "group_matcher"):
        parts: dict[str, list[str]] = {}
        for key, _ in model.named_parameters():
            numbered = _to_first_number(key.split(".")[:-1])
            part = numbered if numbered and numbered[-1][-1].isdigit() else numbered[:1]
            parts.setdefault(".".join(part), []).append(key)
        return list(parts.values())
    try:
        matcher = model.group_matcher(coarse=True)
    except AssertionError:  # "coarse grouping is not implemented"
        matcher = model.group_matcher(coarse=False)
    groups = group_parameters(model, matcher)
    return [groups[order] for order in sorted(groups)]


def _split_final_norm(groups: list[list[str]]) -> list[list[str]]:
    *others, last = groups
    norm = [key for key in last if _FINAL_NORM.match(key)]
    rest = [key for key in last if key not in norm]
    return [*others, *(group for group in (rest, norm) if group)]


def _stage_names(groups: Sequence[Sequence[str]]) -> list[str]:
    """timm's module names up to the first number ("layer1", "stages.0", "blocks.11"); the first is "stem"."""
    common = [_common_parts([key.split(".")[:-1] for key in group]) for group in groups]
    short = [".".join(_to_first_number(parts)) for parts in common]
    long = [".".join(parts) for parts in common]
    first = [".".join(_to_first_number(group[0].split(".")[:-1])) for group in groups]
    names = ["stem"]
    for order in range(1, len(groups)):
        known = [all_names for all_names in (short, long, first) if all_names[order]]
        unique = [all_names[order] for all_names in known if all_names.count(all_names[order]) == 1]
        names.append(next((name for name in unique if name not in names), f"stage{order}"))
    return names


def _common_parts(paths: list[list[str]]) -> list[str]:
    first, last = min(paths), max(paths)  # in sorted order: what they share, all share
    agree = [one == other for one, other in zip(first, last, strict=False)]
    return list(first[: agree.index(False) if False in agree else len(agree)])


def _to_first_number(parts: Sequence[str]) -> list[str]:
    for end, part in enumerate(parts, start=1):
        if part[-1].isdigit():
            return list(parts[:end])
    return list(parts)
