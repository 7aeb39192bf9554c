"""The tables of layers and of models."""

from __future__ import annotations

import pytest
import timm

from backbones import BackboneError, create_backbone, describe_layers, list_backbones


def test_layers_of_a_cnn() -> None:
    backbone = create_backbone("resnet18", weights="none")
    rows = describe_layers(backbone)
    assert [(r.name, r.stride, r.channels) for r in rows] == [
        ("stem", 2, 64),
        ("layer1", 4, 64),
        ("layer2", 8, 128),
        ("layer3", 16, 256),
        ("layer4", 32, 512),
    ]
    assert sum(r.parameters for r in rows) == sum(p.numel() for p in backbone.parameters())


def test_layers_of_a_vit() -> None:
    rows = describe_layers(create_backbone("test_vit", weights="none"))
    assert [r.name for r in rows] == ["stem", *(f"blocks.{i}" for i in range(6)), "norm"]
    assert [r.stride for r in rows] == [None, *[16] * 6, None]


def test_models_by_pattern() -> None:
    rows = {row.name: row for row in list_backbones("resnet1*")}
    assert set(rows) == set(timm.list_models("resnet1*"))
    assert "a1_in1k" in rows["resnet18"].pretrained
    assert rows["resnet18"].parameters == sum(
        p.numel() for p in timm.create_model("resnet18", num_classes=0).parameters()
    )
    with pytest.raises(BackboneError, match="no timm model matches 'resmet\\*'"):
        list_backbones("resmet*")
