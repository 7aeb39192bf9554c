"""Frozen in all four senses, by bits, over training steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backbones import Backbone, BackboneError, create_backbone

MODELS = [("test_resnet", 0.0), ("test_efficientnet", 0.2), ("test_convnext", 0.5), ("test_vit", 0.5)]


def train(backbone: Backbone, steps: int) -> None:
    """Steps of AdamW with weight decay over what is trainable, in train mode."""
    backbone.train()
    head = nn.LazyConv2d(1, 1)
    head(backbone(torch.randn(2, 3, 64, 64))[-1])
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*trainable, *head.parameters()], lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        head(backbone(torch.randn(2, 3, 64, 64))[-1]).square().mean().backward()
        optimizer.step()


def stage_tensors(backbone: Backbone, frozen: bool) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the frozen stages, or of the others."""
    state = backbone.state_dict()
    of_stage = {name: stage.name for stage in backbone.stages() for name in stage.parameters}
    by_module = {
        name.rpartition(".")[0]: stage for name, stage in of_stage.items()
    }  # a norm's buffers lie beside
    owner = {key: of_stage.get(key, by_module.get(key.rpartition(".")[0])) for key in state}
    return {key: value.clone() for key, value in state.items() if (owner[key] in backbone.frozen) == frozen}


@pytest.mark.parametrize(("name", "drop_path"), MODELS)
@pytest.mark.parametrize("whole", [True, False])
def test_frozen_parameters_and_buffers_stay_to_the_bit(name: str, drop_path: float, whole: bool) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, weights="none", drop_path_rate=drop_path)
    names = [stage.name for stage in backbone.stages()]
    backbone.freeze(None if whole else names[: len(names) // 2])
    frozen, rest = stage_tensors(backbone, True), stage_tensors(backbone, False)
    train(backbone, steps=3)
    assert frozen
    assert all(torch.equal(value, frozen[key]) for key, value in stage_tensors(backbone, True).items())
    if not whole:
        changed = [
            key for key, value in stage_tensors(backbone, False).items() if not torch.equal(value, rest[key])
        ]
        assert any(key.endswith("weight") for key in changed)
        assert all(key in changed for key in rest if key.endswith("running_mean"))


@pytest.mark.parametrize(("name", "drop_path"), MODELS)
def test_frozen_modules_stay_in_eval_mode(name: str, drop_path: float) -> None:
    """Dropout and drop-path stand still: in train mode a wholly frozen backbone repeats itself."""
    backbone = create_backbone(name, weights="none", drop_path_rate=drop_path)
    image = torch.randn(2, 3, 64, 64)
    reference = backbone.eval()(image)
    backbone.freeze()
    backbone.train()
    assert not any(module.training for module in backbone.model.modules())
    for ours, theirs in zip(backbone(image), reference, strict=True):
        torch.testing.assert_close(ours, theirs.detach())
    backbone.freeze([])
    assert all(module.training for module in backbone.modules())
    backbone.eval()
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize(("name", "drop_path"), MODELS)
def test_no_graph_for_the_frozen_prefix(name: str, drop_path: float) -> None:
    backbone = create_backbone(name, weights="none", drop_path_rate=drop_path).train()
    image = torch.randn(2, 3, 64, 64)
    backbone.freeze()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        maps = backbone(image)
    assert all(m.grad_fn is None for m in maps)
    assert not saved

    names = [stage.name for stage in backbone.stages()]
    backbone.freeze(names[:-2])  # the last map's stages train, those before don't
    first, *_, last = backbone(image)
    assert last.grad_fn is not None
    if len(set(backbone.strides)) > 1:  # a plain ViT's maps all pass through the last norm
        assert first.grad_fn is None
    last.square().sum().backward()
    has_gradient = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert has_gradient == {name for stage in backbone.stages()[-2:] for name in stage.parameters}


def test_freeze_replaces_the_frozen_set_mid_training() -> None:
    backbone = create_backbone("test_resnet", weights="none").train()
    train(backbone, steps=1)
    backbone.freeze(["stem", "layer1"])
    assert backbone.frozen == {"stem", "layer1"}
    assert all(p.grad is None for name, p in backbone.named_parameters() if not p.requires_grad)
    modes = {name: m.training for name, m in backbone.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {name.split(".")[0] for name, training in modes.items() if training} == {
        "layer2",
        "layer3",
        "layer4",
    }
    backbone.freeze(["layer4"])
    assert [name for name, p in backbone.named_parameters() if not p.requires_grad] == list(
        backbone.stages()[-1].parameters
    )
    train(backbone, steps=1)


def test_an_optimizer_that_holds_frozen_parameters_does_not_move_them() -> None:
    backbone = create_backbone("test_resnet", weights="none").train()
    optimizer = torch.optim.AdamW(backbone.parameters(), weight_decay=0.1)
    backbone(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    optimizer.step()
    backbone.freeze()
    before = copy.deepcopy(backbone.state_dict())
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_copy_is_frozen_alike() -> None:
    backbone = create_backbone("test_resnet", weights="none")
    backbone.freeze(["stem"])
    twin = copy.deepcopy(backbone).train()
    assert twin.frozen == {"stem"}
    assert not twin.model.get_submodule("bn1").training


def test_the_gradient_to_the_image_survives_freezing() -> None:
    backbone = create_backbone("test_resnet", weights="none")
    backbone.freeze()
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    backbone(image)[-1].sum().backward()
    assert image.grad is not None


def test_wrong_stages_get_the_nearest_right_one() -> None:
    backbone = create_backbone("test_resnet", weights="none")
    with pytest.raises(BackboneError, match="no stage 'layer9'; did you mean 'layer"):
        backbone.freeze(["layer9"])
    with pytest.raises(BackboneError, match="not the string 'stem'"):
        backbone.freeze("stem")
    assert backbone.frozen == frozenset()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_resnet"])
def test_odd_sizes_lie_on_the_grid_of_even_ones(name: str) -> None:
    """TensorFlow's "same" padding would shift the maps of an odd size by half a pixel a stage."""
    backbone = create_backbone(name, weights="none").eval()
    image = torch.randn(1, 3, 90, 121)
    whole = torch.zeros(1, 3, 96, 128)
    whole[..., :90, :121] = image
    with torch.no_grad():
        for one, other in zip(backbone(image), backbone(whole), strict=True):
            torch.testing.assert_close(one, other[..., : one.shape[2], : one.shape[3]])
