"""Feature maps at many sizes: what `channels` and `strides` promise is what a forward pass gives."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from backbones import Backbone, BackboneError, create_backbone
from backbones.geometry import default_indices, resolve_indices

PYRAMID = (4, 8, 16, 32)


def check_maps(backbone: Backbone, height: int, width: int) -> None:
    image = torch.randn(1, len(backbone.mean), height, width)
    with torch.no_grad():
        maps = backbone.eval()(image)
    expected = [
        (1, c, -(-height // s), -(-width // s))
        for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("test_resnet", PYRAMID),
        ("test_efficientnet", PYRAMID),
        ("test_convnext", PYRAMID),
        ("tf_efficientnet_lite0", PYRAMID),
        ("mobilenetv3_small_050", PYRAMID),
        ("mobilevit_xxs", PYRAMID),
        ("regnetx_002", PYRAMID),
        ("swin_tiny_patch4_window7_224", PYRAMID),
        ("repghostnet_050", PYRAMID),
        ("test_vit", (16,) * 4),
        ("vit_tiny_patch16_224", (16,) * 4),
        ("xcit_nano_12_p8_224", (8,) * 4),
    ],
)
def test_maps_at_sizes_on_and_off_the_grid(name: str, strides: tuple[int, ...]) -> None:
    backbone = create_backbone(name, weights="none")
    assert backbone.strides == strides
    check_maps(backbone, 64, 96)
    check_maps(backbone, 75, 101)


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_every_parameter_that_is_kept_is_used(name: str) -> None:
    """Nothing after the last map is left to train on nothing: no head, final convolution or spare norm."""
    backbone = create_backbone(name, weights="none").train()
    size = backbone.geometry.size or (64, 64)
    sum(m.square().sum() for m in backbone(torch.randn(2, 3, *size))).backward()  # type: ignore[union-attr]
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "test_convnext"])
def test_nothing_runs_that_the_maps_do_not_need(name: str) -> None:
    backbone = create_backbone(name, weights="none").eval()
    called: list[str] = []
    for key, module in backbone.model.named_modules():
        module.register_forward_hook(lambda *_, key=key: called.append(key))
    with torch.no_grad():
        backbone(torch.randn(1, 3, 64, 64))
    kept = {key for key, _ in backbone.model.named_parameters()}
    assert not any(key.startswith(("head", "classifier", "conv_head", "bn2")) for key in kept)
    assert all(
        isinstance(backbone.model.get_submodule(key), nn.Identity) or key not in ("conv_head", "bn2")
        for key in called
    )


def test_a_vit_of_patch_14_takes_any_size() -> None:
    backbone = create_backbone("eva02_tiny_patch14_224", weights="none", in_chans=5)
    assert backbone.strides == (14,) * 4
    check_maps(backbone, 50, 70)


def test_vit_maps_equal_timms_own_at_the_native_size() -> None:
    backbone = create_backbone("test_vit", weights="none").eval()
    reference = timm.create_model("test_vit", num_classes=0).eval()
    reference.load_state_dict(backbone.model.state_dict())
    image = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        expected = reference.get_intermediate_layers(
            image, n=list(backbone.geometry.indices), reshape=True, norm=True
        )
        for ours, theirs in zip(backbone(image), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_padding_is_zeros_below_and_to_the_right() -> None:
    backbone = create_backbone("test_convnext", weights="none").eval()
    image = torch.randn(1, 3, 50, 70)
    padded = torch.zeros(1, 3, 64, 96)
    padded[..., :50, :70] = image
    with torch.no_grad():
        for ours, whole in zip(backbone(image), backbone(padded), strict=True):
            torch.testing.assert_close(ours, whole[..., : ours.shape[-2], : ours.shape[-1]])


def test_models_of_one_size_say_which() -> None:
    backbone = create_backbone("test_vit_relpos", weights="none")
    check_maps(backbone, 160, 160)
    check_maps(backbone, 99, 120)  # padded
    with pytest.raises(
        BackboneError, match=r"up to 160x160 .* not 161x200: build it with img_size=\(161, 200\)"
    ):
        backbone(torch.randn(1, 3, 161, 200))
    check_maps(create_backbone("test_vit_relpos", weights="none", img_size=(161, 200)), 161, 200)


def test_models_without_whole_strides_are_refused() -> None:
    with pytest.raises(BackboneError, match="no whole stride"):
        create_backbone("inception_v3", weights="none")


def test_default_indices() -> None:
    assert default_indices([2, 4, 8, 16, 32]) == (1, 2, 3, 4)
    assert default_indices([16] * 12) == (2, 5, 8, 11)
    assert default_indices([16] * 24) == (5, 11, 17, 23)
    assert default_indices([16] * 3) == (0, 1, 2)
    assert default_indices([7, 14, 14, 14]) == (0, 3)


def test_chosen_indices() -> None:
    assert create_backbone("test_resnet", weights="none", indices=[0, -1]).strides == (2, 32)
    first = create_backbone("test_vit", weights="none", indices=[1])
    assert [stage.name for stage in first.stages()] == ["stem", "blocks.0", "blocks.1", "norm"]
    for wrong in ([5], [], [2, 1], [1, 1]):
        with pytest.raises(BackboneError, match="indices"):
            resolve_indices([2, 4, 8, 16, 32], wrong)
