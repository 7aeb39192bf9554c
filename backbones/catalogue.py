"""Catalogue: which backbones there are, and what layers one of them consists of, as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

import timm

from backbones.backbone import Backbone
from backbones.errors import BackboneError
from backbones.factory import build_meta_model
from backbones.geometry import feature_rows
from backbones.stages import group_stages, modules_of


@dataclass(frozen=True)
class LayerRow:
    """One stage of a backbone. stride and channels: of the feature map that it ends with, if any."""

    name: str
    parameters: int
    stride: int | None
    channels: int | None


@dataclass(frozen=True)
class BackboneRow:
    """One timm model. parameters: without classifier. pretrained: tags of the weights on the hub."""

    name: str
    parameters: int
    pretrained: tuple[str, ...]


def describe_layers(backbone: Backbone) -> list[LayerRow]:
    """One row for each stage, from input to output."""
    stages = group_stages(backbone.model)
    sizes = {name: parameter.numel() for name, parameter in backbone.model.named_parameters()}
    owners = {name: owner for name, _, owner in modules_of(backbone.model, stages)}
    maps: dict[str, tuple[int, int]] = {}
    for row in feature_rows(backbone.model):
        owner = owners.get(row["module"], frozenset())  # pruned modules have none
        if len(owner) == 1:
            maps[next(iter(owner))] = (int(row["reduction"]), int(row["num_chs"]))
    return [
        LayerRow(
            stage.name, sum(sizes[name] for name in stage.parameters), *maps.get(stage.name, (None, None))
        )
        for stage in stages
    ]


def list_backbones(pattern: str) -> list[BackboneRow]:
    """Models whose name matches a shell pattern ("convnext*"); counted on shapes alone, 0.1 s a model."""
    names = timm.list_models(pattern)
    if not names:
        raise BackboneError(
            f"no timm model matches {pattern!r}; patterns look like 'convnext*' or '*dinov2*'"
        )
    return [_row(name) for name in names]


def _row(name: str) -> BackboneRow:
    model = build_meta_model(name, {"num_classes": 0})
    tagged = timm.list_pretrained(f"{name}.*")
    tags = tuple(full.partition(".")[2] for full in tagged)
    return BackboneRow(name, sum(parameter.numel() for parameter in model.parameters()), tags)
