"""Layers: a backbone that gives the map of one layer, named as `describe_layers` names it."""

from __future__ import annotations

import difflib
from dataclasses import replace

import torch

from backbones.backbone import Backbone
from backbones.errors import BackboneError
from backbones.geometry import feature_rows
from backbones.stages import group_stages, modules_of


def map_layers(backbone: Backbone) -> dict[str, int]:
    """timm's index of the last feature map of each layer that ends with one, from input to output.

    Layers behind the last map that the backbone gives are no longer in the model.
    """
    owners = {name: owner for name, _, owner in modules_of(backbone.model, group_stages(backbone.model))}
    found: dict[str, int] = {}
    for index, row in enumerate(feature_rows(backbone.model)):
        owner = owners.get(row["module"], frozenset())
        if len(owner) == 1 and index <= max(backbone.geometry.indices):
            found[next(iter(owner))] = index
    return found


@torch.no_grad()
def at_layer(backbone: Backbone, layer: str | None = None) -> Backbone:
    """The same model (its parameters are shared) as a backbone of one map: that of `layer`, None: the last one."""
    known = map_layers(backbone)
    if layer is not None and layer not in known:
        near = difflib.get_close_matches(layer, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BackboneError(f"{backbone.name} has no layer {layer!r} with a map{hint} (layers: {', '.join(known)})")
    geometry = backbone.geometry
    if layer is None or known[layer] == geometry.indices[-1]:
        one = replace(
            geometry, indices=geometry.indices[-1:], channels=geometry.channels[-1:], strides=geometry.strides[-1:]
        )
    else:
        row = feature_rows(backbone.model)[known[layer]]
        channels, stride = int(row["num_chs"]), int(row["reduction"])
        one = replace(geometry, indices=(known[layer],), channels=(channels,), strides=(stride,))
    found = Backbone(
        backbone.name, backbone.model, one, mean=backbone.mean, std=backbone.std,
        weights_report=backbone.weights_report,
    )  # fmt: skip
    found.frozen = backbone.frozen
    _check(found.train(backbone.training), layer)
    return found


def _check(backbone: Backbone, layer: str | None) -> None:
    """timm's table of maps is right for nearly every model; a wrong stride would put features elsewhere."""
    multiple = backbone.geometry.multiple
    height, width = backbone.geometry.size or (2 * multiple, 2 * multiple)
    example = next(backbone.parameters())
    training = backbone.training
    shape = backbone.eval()(torch.zeros(1, len(backbone.mean), height, width, device=example.device))[0].shape
    backbone.train(training)
    stride = backbone.strides[0]
    if shape[1:] != (backbone.channels[0], height // stride, width // stride):
        raise BackboneError(
            f"{backbone.name}: its layer {layer!r} gives {tuple(shape[1:])} for {height}x{width}, which is not what "
            f"timm says of it ({backbone.channels[0]} channels, stride {stride})"
        )
