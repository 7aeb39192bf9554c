"""Cutting: both halves together are bit for bit the whole, for every family that Backbone supports."""

from __future__ import annotations

import pytest
import timm
import torch

from backbones import Backbone, BackboneError, Cut, create_backbone, cut_backbone

FAMILIES = timm.list_models("test_*")
LARGE = ["tf_efficientnet_lite0", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"]


def make(name: str, frozen: int) -> Backbone:
    torch.manual_seed(0)
    backbone = create_backbone(name, weights="none", drop_path_rate=0.2 if name == "test_efficientnet" else 0.0)
    backbone.freeze([stage.name for stage in backbone.stages()][:frozen])
    return backbone.train()


def size_of(backbone: Backbone) -> tuple[int, int]:
    return backbone.geometry.size or (2 * backbone.geometry.multiple, 2 * backbone.geometry.multiple)


def assert_exact(backbone: Backbone, cut: Cut, size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)
    backbone.eval()
    with torch.no_grad():
        whole = backbone(image)
        halves = cut.suffix(cut.prefix(image), size)
    assert len(whole) == len(halves)
    for one, other in zip(whole, halves, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_cut_of_every_family_is_exact(name: str) -> None:
    count = len(make(name, 0).stages())
    for frozen in range(1, count + 1):
        backbone = make(name, frozen)
        size = size_of(backbone)
        cut = cut_backbone(backbone, size=size)
        assert cut.whole == (frozen == count)
        assert_exact(backbone, cut, size)


@pytest.mark.parametrize("name", LARGE)
def test_the_last_stage_alone_is_exact(name: str) -> None:
    backbone = make(name, 0)
    backbone = make(name, len(backbone.stages()) - 2)
    size = size_of(backbone)
    assert_exact(backbone, cut_backbone(backbone, size=size), size)


def test_sizes_off_the_grid_are_padded_and_cropped_as_ever() -> None:
    backbone = make("test_efficientnet", 3)
    assert_exact(backbone, cut_backbone(backbone, size=(64, 64)), (75, 53))


def test_gradients_are_those_of_the_whole() -> None:
    backbone = make("test_resnet", 3)
    cut = cut_backbone(backbone, size=(64, 64))
    image = torch.randn(2, 3, 64, 64)
    found = []
    for maps in (backbone(image), cut.suffix(cut.prefix(image), (64, 64))):
        backbone.zero_grad()
        sum(m.square().sum() for m in maps).backward()  # type: ignore[union-attr]
        found.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_cutting_changes_nothing_in_the_backbone() -> None:
    backbone = make("test_resnet", 2)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    cut = cut_backbone(backbone, size=(64, 64))
    cut.prefix(torch.randn(1, 3, 64, 64))
    assert backbone.training
    assert all("forward" not in vars(module) for module in backbone.modules())
    after = backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_prefix_stops_at_the_cut() -> None:
    backbone = make("test_resnet", 2)
    cut = cut_backbone(backbone, size=(64, 64))
    ran = []
    backbone.model.layer4.register_forward_hook(lambda *_: ran.append(True))  # type: ignore[union-attr, operator]
    cut.prefix(torch.randn(1, 3, 64, 64))
    assert not ran


@pytest.mark.parametrize("trained", [["stem"], None])
def test_without_a_frozen_beginning_there_is_no_cut(trained: list[str] | None) -> None:
    backbone = make("test_resnet", 0)
    if trained:
        backbone.freeze([s.name for s in backbone.stages() if s.name not in trained])
    with pytest.raises(BackboneError, match="can't be cut"):
        cut_backbone(backbone, size=(64, 64))
