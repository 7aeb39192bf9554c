"""Stages of many models: a partition of the parameters, in order, with names a user can guess."""

from __future__ import annotations

import pytest
import timm
import torch

from backbones import create_backbone
from backbones.backbone import Backbone
from backbones.stages import group_stages, modules_of

NAMES = [
    *timm.list_models("test_*"),
    "resnet18",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "regnetx_002",
    "mobilevit_xxs",
    "efficientvit_b0",
    "caformer_s18",  # timm gives it no groups
    "rdnet_tiny",  # timm gives it fine groups only
]


@pytest.fixture(scope="module", params=NAMES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return create_backbone(request.param, weights="none")


def test_every_parameter_is_in_exactly_one_stage(backbone: Backbone) -> None:
    stages = backbone.stages()
    grouped = [name for stage in stages for name in stage.parameters]
    assert sorted(grouped) == sorted(name for name, _ in backbone.named_parameters())
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert names[0] == "stem"
    assert all(stage.parameters for stage in stages)


def test_stages_run_in_their_order(backbone: Backbone) -> None:
    """By its last call, each stage runs after those before it (a ViT's norm runs after every map)."""
    stages = group_stages(backbone.model)
    seen: list[str] = []

    def note(owner: str) -> None:
        if owner in seen:
            seen.remove(owner)
        seen.append(owner)

    hooks = [
        module.register_forward_pre_hook(lambda *_, owners=owners: note(*owners))
        for _, module, owners in modules_of(backbone.model, stages)
        if len(owners) == 1 and list(module.parameters(recurse=False))
    ]
    size = backbone.geometry.size or (64, 64)
    with torch.no_grad():
        backbone.eval()(torch.randn(1, 3, *size))
    for hook in hooks:
        hook.remove()
    order = [stage.name for stage in stages]
    assert seen == [name for name in order if name in seen]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("convnext_atto", ["stem", "stages.0", "stages.1", "stages.2", "stages.3"]),
        ("tf_efficientnet_lite0", ["stem", *(f"blocks.{i}" for i in range(7))]),
        ("swin_tiny_patch4_window7_224", ["stem", "layers.0", "layers.1", "layers.2", "layers.3"]),
        ("vit_tiny_patch16_224", ["stem", *(f"blocks.{i}" for i in range(12)), "norm"]),
        ("mobilevit_xxs", ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "stages.4"]),
    ],
)
def test_names(name: str, expected: list[str]) -> None:
    assert [stage.name for stage in create_backbone(name, weights="none").stages()] == expected


def test_modules_without_parameters_go_with_the_module_before_them() -> None:
    model = create_backbone("test_vit", weights="none").model
    owners = {name: owner for name, _, owner in modules_of(model, group_stages(model))}
    assert owners["pos_drop"] == {"stem"}
    assert owners["blocks.2.drop_path1"] == {"blocks.2"}
    assert len(owners[""]) == 8
