"""LoRA adapters on a ViT and CNNs: start at nothing, train alone, merge without a trace."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from backbones import BackboneError, add_lora, create_backbone, merge_lora

pytest.importorskip("peft")

MODELS = ["test_vit", "test_convnext", "test_efficientnet", "test_resnet"]


@pytest.mark.parametrize("name", MODELS)
def test_adapters_train_alone_and_merge_without_a_trace(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, weights="none").eval()
    image = torch.randn(2, 3, 64, 64)
    plain, keys = backbone(image), list(backbone.state_dict())

    add_lora(backbone, rank=4)
    for ours, theirs in zip(backbone(image), plain, strict=True):
        torch.testing.assert_close(ours, theirs)
    before = copy.deepcopy(backbone.state_dict())
    backbone.train()
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        sum((m - 1).square().mean() for m in backbone(image)).backward()  # type: ignore[union-attr]
        optimizer.step()
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all("lora_" in key for key in changed)

    adapted = backbone.eval()(image)
    merge_lora(backbone)
    assert list(backbone.state_dict()) == keys
    for ours, theirs, first in zip(backbone(image), adapted, plain, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-4)
        assert not torch.equal(ours, first)
    backbone.freeze([])
    assert all(p.requires_grad for p in backbone.parameters())


def test_default_targets_of_a_vit() -> None:
    backbone = create_backbone("test_vit", weights="none")
    add_lora(backbone)
    layers = {name.split(".lora_A")[0] for name, p in backbone.model.named_parameters() if ".lora_A" in name}
    assert layers == {
        f"blocks.{i}.{part}" for i in range(6) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


def test_default_targets_of_a_cnn_leave_out_depthwise_and_first() -> None:
    backbone = create_backbone("tf_efficientnet_lite0", weights="none")
    add_lora(backbone, rank=2)
    layers = {name.split(".lora_A")[0] for name, p in backbone.model.named_parameters() if ".lora_A" in name}
    assert {name.rpartition(".")[2] for name in layers} == {"conv_pw", "conv_pwl"}


def test_a_layer_whose_weight_is_used_without_a_call_is_left_out() -> None:
    backbone = create_backbone("beit_base_patch16_224", weights="none", indices=[0])
    with pytest.raises(
        BackboneError, match=r"no layer for LoRA is named 'qkv' .*\(last parts of names: fc1, fc2, proj\)"
    ):
        add_lora(backbone, targets=["qkv"])


def test_chosen_targets_and_dropout() -> None:
    backbone = create_backbone("test_vit", weights="none")
    add_lora(backbone, targets=["attn.qkv", "blocks.0.mlp.fc1"], dropout=0.5)
    layers = {name.split(".lora_A")[0] for name, p in backbone.model.named_parameters() if ".lora_A" in name}
    assert layers == {*(f"blocks.{i}.attn.qkv" for i in range(6)), "blocks.0.mlp.fc1"}
    backbone.train()
    training = {name for name, module in backbone.model.named_modules() if module.training}
    assert "blocks.0.attn.qkv.lora_dropout.default" in training
    assert all("lora_" in name for name in training)


def test_stages_of_an_adapted_backbone_hold_the_adapters() -> None:
    backbone = create_backbone("test_vit", weights="none")
    names = [stage.name for stage in backbone.stages()]
    add_lora(backbone)
    stages = backbone.stages()
    assert [stage.name for stage in stages] == names
    assert sorted(n for s in stages for n in s.parameters) == sorted(
        n for n, _ in backbone.named_parameters()
    )


def test_mistakes() -> None:
    backbone = create_backbone("test_vit", weights="none")
    with pytest.raises(BackboneError, match="no layer for LoRA is named 'qvk'; did you mean 'qkv'"):
        add_lora(backbone, targets=["qvk"])
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(BackboneError, match=f"LoRA {next(iter(wrong))}"):
            add_lora(backbone, **wrong)  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="no LoRA adapters"):
        merge_lora(backbone)
    add_lora(backbone)
    with pytest.raises(BackboneError, match="has LoRA adapters already"):
        add_lora(backbone)
    with pytest.raises(BackboneError, match="merge_lora"):
        backbone.freeze([])


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    backbone = create_backbone("test_vit", weights="none")
    with pytest.raises(BackboneError, match=r"pip install 'visionsft\[lora\]'"):
        add_lora(backbone)
    assert backbone.frozen == frozenset()
