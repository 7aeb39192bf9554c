"""Stages of many models: a partition of the parameters, in order, with names a user can guess."""

from __future__ import annotations

import pytest
import timm
import torch

from backbones.factory import build_meta_model
from backbones.geometry import TimmModel, default_indices, features, reductions
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


def pruned(name: str) -> TimmModel:
    """What `create_backbone` keeps of a model, on the meta device."""
    model = build_meta_model(name, {"num_classes": 0})
    strides = reductions(model)
    norm = len(set(strides)) == 1
    model.prune_intermediate_layers(list(default_indices(strides)), prune_norm=not norm, prune_head=True)
    return model


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> TimmModel:
    return pruned(request.param)


def test_every_parameter_is_in_exactly_one_stage(model: TimmModel) -> None:
    stages = group_stages(model)
    grouped = [name for stage in stages for name in stage.parameters]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert names[0] == "stem"
    assert all(stage.parameters for stage in stages)


def test_stages_run_in_their_order(model: TimmModel) -> None:
    """By its last call, each stage runs after those before it (a ViT's norm runs after every map)."""
    stages = group_stages(model)
    seen: list[str] = []

    def note(owner: str) -> None:
        if owner in seen:
            seen.remove(owner)
        seen.append(owner)

    for _, module, owners in modules_of(model, stages):
        if len(owners) == 1 and list(module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda *_, owners=owners: note(*owners))
    height, width = model.pretrained_cfg["input_size"][1:]
    strides = reductions(model)
    with torch.no_grad():
        image = torch.empty(1, 3, height, width, device="meta")
        features(model, image, default_indices(strides), norm=len(set(strides)) == 1, final=False)
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
    assert [stage.name for stage in group_stages(pruned(name))] == expected


def test_modules_without_parameters_go_with_the_module_before_them() -> None:
    model = pruned("test_vit")
    owners = {name: owner for name, _, owner in modules_of(model, group_stages(model))}
    assert owners["pos_drop"] == {"stem"}
    assert owners["blocks.2.drop_path1"] == {"blocks.2"}
    assert len(owners[""]) == 8
