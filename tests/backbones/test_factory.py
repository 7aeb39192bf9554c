"""Names, tags and options that `create_backbone` refuses, and how it says so."""

from __future__ import annotations

import pytest
import timm
import torch

from backbones import BackboneError, create_backbone


def test_a_wrong_name_gets_the_nearest_ones() -> None:
    with pytest.raises(BackboneError, match=r"no model 'resnet_18'; did you mean .*resnet18"):
        create_backbone("resnet_18", weights="none")
    with pytest.raises(BackboneError, match="no model"):
        create_backbone("hf-hub:somebody/something", weights="none")


def test_a_wrong_tag_gets_the_right_ones() -> None:
    with pytest.raises(BackboneError, match=r"no tag 'a1_in1'; did you mean resnet18.a1_in1k\?"):
        create_backbone("resnet18.a1_in1", weights="none")


def test_a_renamed_model_says_its_new_name() -> None:
    with pytest.raises(BackboneError, match="renamed: use 'vit_small_r26_s32_224"):
        create_backbone("vit_small_r26_s32_224_in21k", weights="none")


def test_a_tag_decides_mean_and_deviation() -> None:
    augreg = create_backbone("vit_tiny_patch16_224.augreg_in21k", weights="none")
    assert augreg.mean == pytest.approx((0.5, 0.5, 0.5))
    assert augreg.name == "vit_tiny_patch16_224.augreg_in21k"


def test_drop_path_where_there_is_some() -> None:
    backbone = create_backbone("test_convnext", weights="none", drop_path_rate=0.5)
    assert any(type(module).__name__ == "DropPath" for module in backbone.modules())
    with pytest.raises(BackboneError, match="repghostnet_050 has no drop path"):
        create_backbone("repghostnet_050", weights="none", drop_path_rate=0.1)


def test_a_model_without_feature_maps_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    with pytest.raises(BackboneError, match="resnet18 has no forward_intermediates"):
        create_backbone("resnet18", weights="none")


def test_keys_stay_those_of_timm() -> None:
    ours = create_backbone("tf_efficientnet_lite0", weights="none").model.state_dict()
    theirs = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert set(theirs) - set(ours) == {
        key for key in theirs if key.startswith(("conv_head", "bn2", "classifier"))
    }
    assert not set(ours) - set(theirs)


def test_a_backbone_is_differentiable_and_takes_channels_last() -> None:
    backbone = create_backbone("test_resnet", weights="none").to(memory_format=torch.channels_last)
    image = torch.randn(2, 3, 64, 64, requires_grad=True)
    backbone(image.to(memory_format=torch.channels_last))[-1].sum().backward()
    assert image.grad is not None


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_resnet", "swin_tiny_patch4_window7_224", "resnetv2_50"]
)
def test_the_final_map_is_what_timm_itself_pools(name: str) -> None:
    backbone = create_backbone(name, weights="none", img_size=(224, 224), final=True).eval()
    whole = timm.create_model(name, num_classes=0).eval()
    shared = {key: value for key, value in backbone.model.state_dict().items() if key in whole.state_dict()}
    assert whole.load_state_dict(shared, strict=False).missing_keys == []
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(image)[-1].mean((2, 3)), whole(image).reshape(2, -1), rtol=1e-4, atol=1e-4
        )
    assert {p for stage in backbone.stages() for p in stage.parameters} == {
        f"model.{key}" for key, _ in backbone.model.named_parameters()
    }


def test_without_the_last_map_none_is_final() -> None:
    with pytest.raises(BackboneError, match=r"indices \[0, 1\] leave out the map"):
        create_backbone("test_resnet", weights="none", indices=(0, 1), final=True)
