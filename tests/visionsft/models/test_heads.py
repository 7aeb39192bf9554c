"""Heads: shapes, gradients, learning, and equality with smp's decoders where the designs agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from visionsft.errors import ConfigError
from visionsft.models.heads import HEADS, FpnHead, LinearHead, SegformerHead, UnetHead, UperNetHead

CHANNELS, STRIDES, CLASSES = (6, 8, 12, 16), (4, 8, 16, 32), 5


def maps_of(height: int, width: int, batch: int = 2, channels: Sequence[int] = CHANNELS) -> list[Tensor]:
    """Random feature maps of an image of this size, each half as fine as the one before."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, c, math.ceil(height / s), math.ceil(width / s), generator=generator)
        for c, s in zip(channels, [4 * 2**i for i in range(len(channels))], strict=True)
    ]


def make(name: str, channels: Sequence[int] = CHANNELS, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    if name == "unet":
        options.setdefault("widths", (16, 12, 8, 8, 8)[: len(channels)])
    strides = [4 * 2**i for i in range(len(channels))]
    return HEADS[name](channels, strides, CLASSES, **options)


def without_classifier(head: nn.Module) -> nn.Module:
    """The same head, returning the features that the classifier sees."""
    head.classifier = nn.Identity()
    return head


def randomise(module: nn.Module) -> None:
    """Give BatchNorms parameters and statistics that aren't the neutral ones."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers between modules that hold the same layers in the same order."""
    values = list(source.state_dict().values())
    keys = list(target.state_dict())
    assert len(values) == len(keys)
    target.load_state_dict(dict(zip(keys, values, strict=True)))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("size", [(64, 96), (45, 61), (360, 33), (7, 5)])
def test_logits_have_the_finest_maps_size(name: str, size: tuple[int, int]) -> None:
    maps = maps_of(*size)
    assert make(name)(maps).shape == (2, CLASSES, *maps[0].shape[2:])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_maps(name: str, count: int) -> None:
    channels = (4, 6, 8, 12, 16)[:count]
    logits = make(name, channels)(maps_of(50, 70, channels=channels))
    assert logits.shape == (2, CLASSES, 13, 18)


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_of_one_can_be_trained_on(name: str) -> None:
    """BatchNorm refuses a single value a channel, which UPerNet's global average of one sample would be."""
    make(name).train()(maps_of(64, 64, batch=1)).sum().backward()


@pytest.mark.parametrize("name", HEADS)
def test_gradient_reaches_every_parameter_and_every_map(name: str) -> None:
    maps = [m.requires_grad_() for m in maps_of(64, 96)]
    head = make(name, dropout=0.0)
    (head(maps) * torch.randn(2, CLASSES, 16, 24)).sum().backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in maps)


@pytest.mark.parametrize("name", HEADS)
def test_an_untrained_head_is_undecided(name: str) -> None:
    loss = F.cross_entropy(make(name)(maps_of(64, 96)), torch.zeros(2, 16, 24, dtype=torch.int64))
    assert loss.item() == pytest.approx(math.log(CLASSES), rel=0.15)


@pytest.mark.parametrize("name", HEADS)
def test_memory_format_does_not_matter(name: str) -> None:
    head, maps = make(name).eval(), maps_of(45, 61)
    expected = head(maps)
    found = head.to(memory_format=torch.channels_last)(  # type: ignore[call-overload]
        [m.contiguous(memory_format=torch.channels_last) for m in maps]
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_heads_learn_from_coarse_and_fine_maps(name: str) -> None:
    """The class is one bit of the coarsest map and one of the finest: neither map alone suffices."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 2, (4, 1, 2, 3), generator=generator).float()
    fine = torch.randint(0, 2, (4, 1, 16, 24), generator=generator).float()
    truth = (2 * F.interpolate(coarse, size=(16, 24)) + fine)[:, 0].long()
    maps = maps_of(64, 96, batch=4)
    maps[3][:, :1] += 4 * coarse
    maps[0][:, :1] += 4 * fine
    head = make(name, **({"width": 16} if name in ("segformer", "fpn", "upernet") else {}))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(head(maps), truth).backward()
        optimizer.step()
    accuracy = (head.eval()(maps).argmax(1) == truth).float().mean().item()
    assert accuracy > 0.8


def test_linear_equals_classifying_the_upsampled_concatenation() -> None:
    """The textbook order of operations: upsample all maps, concatenate, BatchNorm, one 1x1 convolution."""
    head = LinearHead(CHANNELS, STRIDES, CLASSES)
    randomise(head)
    head.eval()
    maps = maps_of(45, 61)
    upsampled = []
    for m, branch in zip(maps, head.classifiers, strict=True):
        normed = branch[0](m)
        upsampled.append(F.interpolate(normed, size=maps[0].shape[2:], mode="bilinear", align_corners=False))
    convs = [branch[1][1] for branch in head.classifiers]
    weight = torch.cat([conv.weight for conv in convs], dim=1)
    expected = F.conv2d(torch.cat(upsampled, dim=1), weight, sum(conv.bias for conv in convs))
    torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_segformer_equals_smp(training: bool) -> None:
    """smp's whole decoder, its projections and fusion multiplied into ours: equal in both modes."""
    torch.manual_seed(0)
    theirs = SegformerDecoder([3, 0, *CHANNELS], segmentation_channels=10)
    randomise(theirs)
    ours = SegformerHead(CHANNELS, STRIDES, CLASSES, width=10)
    fuse, norm = theirs.fuse_stage[0], theirs.fuse_stage[1]
    copy_in_order(norm, ours.norm[0])
    coarse_first = fuse.weight[:, :, 0, 0].split(10, dim=1)
    bias = torch.zeros(10)
    with torch.no_grad():
        for part, mlp, project in zip(
            coarse_first, theirs.mlp_stage, reversed(ours.projections), strict=True
        ):
            project.weight.copy_((part @ mlp.linear.weight)[..., None, None])
            bias += part @ mlp.linear.bias
        ours.norm[0].running_mean -= bias
    ours, theirs = without_classifier(ours).train(training), theirs.train(training)
    maps = maps_of(64, 96)
    image = torch.zeros(2, 3, 64, 96)
    torch.testing.assert_close(ours(maps), theirs([image, image[:, :0], *maps]), rtol=1e-5, atol=1e-5)


def test_segformer_draws_finer_logits_from_each_patch_of_a_plain_vit() -> None:
    torch.manual_seed(0)
    head = SegformerHead((12, 12), (16, 16), CLASSES, width=10).eval()
    maps = [torch.randn(1, 12, 3, 5) for _ in range(2)]
    before = head(maps)
    assert before.shape == (1, CLASSES, 12, 20)
    maps[1][:, :, 1, 2] += 1
    changed = (head(maps) != before).any(1)[0]
    assert changed[4:8, 8:12].all()
    assert changed.sum() == 16


def test_fpn_pyramid_equals_smp() -> None:
    """smp's top-down path; what follows differs on purpose: smp smooths every level, we the finest only."""
    torch.manual_seed(0)
    theirs = FPNDecoder(list(CHANNELS), pyramid_channels=10, segmentation_channels=32)
    ours = FpnHead(CHANNELS, STRIDES, CLASSES, width=10)
    laterals = [theirs.p2.skip_conv, theirs.p3.skip_conv, theirs.p4.skip_conv, theirs.p5]
    for mine, lateral in zip(ours.laterals, laterals, strict=True):
        copy_in_order(lateral, mine)
    c2, c3, c4, c5 = maps = maps_of(64, 96)
    expected = theirs.p2(theirs.p3(theirs.p4(theirs.p5(c5), c4), c3), c2)
    torch.testing.assert_close(ours.pyramid(maps), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (45, 61)])
def test_unet_equals_smp(size: tuple[int, int]) -> None:
    """smp's decoder blocks behind our centre convolution (smp's blocks start from the encoder's own map)."""
    torch.manual_seed(0)
    widths = (16, 12, 10, 8)
    ours = UnetHead(CHANNELS, STRIDES, CLASSES, widths=widths)
    theirs = UnetDecoder((3, *CHANNELS[:-1], widths[0]), widths[1:], n_blocks=3)
    randomise(theirs)
    copy_in_order(theirs, ours.blocks)
    without_classifier(ours).eval()
    theirs.eval()
    maps = maps_of(*size)
    expected = theirs([torch.zeros(2, 3, *size), *maps[:-1], ours.centre(maps[-1])])
    torch.testing.assert_close(ours(maps), expected, rtol=1e-5, atol=1e-5)


def test_upernet_equals_smp() -> None:
    """smp's decoder with its 3x3 fusion zero outside the centre (ours is 1x1), and without the normalisations
    that ours leaves out: the LayerNorms before it and the BatchNorms of the pooled branches."""
    torch.manual_seed(0)
    theirs = UPerNetDecoder([3, 4, *CHANNELS], decoder_channels=10)
    randomise(theirs)
    theirs.feature_norms = nn.ModuleList(nn.Identity() for _ in CHANNELS)
    for block in theirs.psp.blocks:
        block[1][1] = nn.Identity()
    ours = UperNetHead(CHANNELS, STRIDES, CLASSES, width=10)
    with torch.no_grad():
        for project, block in zip(ours.pooling.projections, theirs.psp.blocks, strict=True):
            project.weight.copy_(block[1][0].weight)
            project.bias.zero_()
        centre = theirs.fusion_block[0].weight[:, :, 1:2, 1:2].clone()
        theirs.fusion_block[0].weight.zero_()[:, :, 1:2, 1:2] = centre
        for fuse, part in zip(ours.fusions, centre.split(10, dim=1), strict=True):
            fuse.weight.copy_(part)
    copy_in_order(theirs.psp.out_conv, ours.pooling.fuse)
    copy_in_order(theirs.fusion_block[1], ours.norm[0])
    for i in range(3):
        copy_in_order(theirs.fpn_lateral_blocks[i].conv_norm_relu, ours.laterals[2 - i])
        copy_in_order(theirs.fpn_conv_blocks[i], ours.smooths[2 - i])
    without_classifier(ours).eval()
    theirs.eval()
    maps = maps_of(64, 96)
    empty = torch.zeros(2, 3, 64, 96)
    torch.testing.assert_close(ours(maps), theirs([empty, empty, *maps]), rtol=1e-5, atol=1e-5)


def test_unet_wants_one_width_a_map() -> None:
    with pytest.raises(ConfigError, match=r"2 widths \[16, 8\] for 4 feature maps.*strides 32, 16, 8, 4"):
        UnetHead(CHANNELS, STRIDES, CLASSES, widths=(16, 8))
