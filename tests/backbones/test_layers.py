"""Layers: one map of a backbone by the name that `describe_layers` gives it."""

from __future__ import annotations

import pytest
import torch

from backbones import BackboneError, at_layer, create_backbone, describe_layers, map_layers

MODELS = ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"]


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_those_that_are_described(name: str) -> None:
    backbone = create_backbone(name, weights="none").eval()
    described = {row.name: row for row in describe_layers(backbone) if row.stride is not None}
    assert list(map_layers(backbone)) == list(described)
    image = torch.randn(2, 3, 96, 64)
    for layer, row in described.items():
        one = at_layer(backbone, layer)
        assert (one.channels, one.strides) == ((row.channels,), (row.stride,))
        with torch.no_grad():
            (found,) = one(image)
        assert found.shape == (2, row.channels, -(-96 // row.stride), -(-64 // row.stride))


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_those_of_the_whole(name: str) -> None:
    backbone = create_backbone(name, weights="none").eval()
    image = torch.randn(1, 3, 64, 64)
    layers = {index: layer for layer, index in map_layers(backbone).items()}
    with torch.no_grad():
        whole = backbone(image)
        for index, expected in zip(backbone.geometry.indices, whole, strict=True):
            torch.testing.assert_close(at_layer(backbone, layers[index])(image)[0], expected)
        torch.testing.assert_close(at_layer(backbone)(image)[0], whole[-1])


def test_the_parameters_are_shared_and_the_mode_is_kept() -> None:
    backbone = create_backbone("test_resnet", weights="none")
    backbone.freeze(["stem"])
    one = at_layer(backbone.train(), "layer2")
    assert one.model is backbone.model
    assert one.training
    assert one.frozen == {"stem"}
    assert not at_layer(backbone.eval()).training


def test_a_wrong_layer_names_the_nearest() -> None:
    backbone = create_backbone("test_resnet", weights="none", indices=(0, 1, 2))
    with pytest.raises(BackboneError, match=r"no layer 'layer22' with a map; did you mean 'layer2'\? \(layers: stem"):
        at_layer(backbone, "layer22")
    with pytest.raises(BackboneError, match="no layer 'layer4'"):
        at_layer(backbone, "layer4")  # pruned with what follows the last map
