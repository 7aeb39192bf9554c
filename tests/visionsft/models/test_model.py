"""The segmentation model: size and alignment of its logits, pyramids for plain ViTs, a user's own heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import create_backbone
from visionsft.errors import ConfigError
from visionsft.models import HEADS, SegmentationModel, SimpleFeaturePyramid, create_model


class TinyBackbone(nn.Module):
    """Strided convolutions; fulfils the contract of a backbone."""

    def __init__(self, strides: tuple[int, ...] = (4, 8, 16, 32)) -> None:
        super().__init__()
        self.strides = strides
        self.channels = tuple(8 for _ in strides)
        self.convs = nn.ModuleList(nn.Conv2d(3, 8, 1) for _ in strides)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image: (B, 3, H, W) -> maps (B, 8, ceil(H / stride), ceil(W / stride))."""
        return [
            conv(F.avg_pool2d(image, stride, ceil_mode=True))
            for conv, stride in zip(self.convs, self.strides, strict=True)
        ]


class RampHead(nn.Module):
    """Its logits are the rows and columns that the centres of the finest map's pixels have in the image."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.stride = strides[0]

    def forward(self, features: list[Tensor]) -> Tensor:
        """-> (B, 2, h, w)."""
        _, _, height, width = features[0].shape
        centres = [(torch.arange(n) + 0.5) * self.stride - 0.5 for n in (height, width)]
        return torch.stack(torch.meshgrid(*centres, indexing="ij")).expand(len(features[0]), -1, -1, -1)


@pytest.mark.parametrize("size", [(64, 96), (61, 33)])
@pytest.mark.parametrize("head", HEADS)
def test_logits_have_the_images_size_and_float32(head: str, size: tuple[int, int]) -> None:
    model = create_model(TinyBackbone(), 3, head=head)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_real_backbones(name: str) -> None:
    """A CNN's or a plain ViT's maps fit the heads at a size that is no multiple of anything."""
    backbone = create_backbone(name, weights="none", img_size=(75, 101) if name == "test_vit" else None)
    for head in HEADS:
        model = create_model(backbone, 4, head=head).eval()
        assert model(torch.randn(1, 3, 75, 101)).shape == (1, 4, 75, 101)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (61, 75)])
def test_logits_lie_where_their_pixels_are(size: tuple[int, int], training: bool) -> None:
    """A map of pixel coordinates comes out as pixel coordinates, at sizes off the stride too."""
    model = create_model(TinyBackbone(), 2, head=f"{__name__}:RampHead").train(training)
    logits = model(torch.zeros(1, 3, *size))
    expected = torch.stack(
        torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    ).float()
    inner = (..., slice(2, -2), slice(2, -2))  # bilinear upsampling repeats half a stride at the edges
    torch.testing.assert_close(logits[0][inner], expected[inner], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (61, 33)])
def test_training_and_evaluation_upsample_alike(size: tuple[int, int]) -> None:
    model = create_model(TinyBackbone(), 3)
    logits, image = torch.randn(2, 3, -(-size[0] // 4), -(-size[1] // 4)), torch.zeros(2, 3, *size)
    torch.testing.assert_close(model.train().upsample(logits, image), model.eval().upsample(logits, image))


def test_divisible_sizes_are_plain_bilinear() -> None:
    model = create_model(TinyBackbone(), 3).eval()
    image = torch.randn(2, 3, 64, 96)
    expected = F.interpolate(
        model.head(model.features(image)), size=(64, 96), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(model(image), expected)


def test_plain_vits_get_a_pyramid_but_for_heads_that_take_their_maps() -> None:
    backbone = TinyBackbone((16, 16, 16))
    model = create_model(backbone, 3, head="fpn")
    assert isinstance(model.neck, SimpleFeaturePyramid)
    assert [f.shape[-1] for f in model.features(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]
    for head in ("linear", "segformer"):
        plain = create_model(backbone, 3, head=head)
        assert isinstance(plain.neck, nn.Identity)
        assert plain(torch.randn(2, 3, 64, 60)).shape == (2, 3, 64, 60)
    assert isinstance(create_model(TinyBackbone(), 3, head="fpn").neck, nn.Identity)


def test_options_reach_the_head() -> None:
    model = create_model(TinyBackbone(), 3, head="segformer", options={"width": 24, "dropout": 0.0})
    assert model.head.projections[0].out_channels == 24  # type: ignore[index, union-attr]
    assert isinstance(model, SegmentationModel)


def test_a_head_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strip_heads.py").write_text(
        "import torch\n"
        "class StripHead(torch.nn.Module):\n"
        "    def __init__(self, channels, strides, num_classes, *, strips=1):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(channels[0], num_classes, (strips, 1), padding='same')\n"
        "    def forward(self, features):\n"
        "        return self.conv(features[0])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = create_model(TinyBackbone(), 3, head="strip_heads:StripHead", options={"strips": 5})
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    with pytest.raises(
        ConfigError, match=r"unexpected keyword argument 'stripes'.*its own options are strips"
    ):
        create_model(TinyBackbone(), 3, head="strip_heads:StripHead", options={"stripes": 5})
    with pytest.raises(ConfigError, match=r"no nn.Module 'StripeHead'; did you mean 'StripHead'"):
        create_model(TinyBackbone(), 3, head="strip_heads:StripeHead")


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("upernetz", {}, "no such head; did you mean 'upernet'"),
        ("fpn", {"widht": 64}, "unexpected keyword argument 'widht'.*its own options are width, dropout"),
        ("fpn", {"channels": [1]}, "multiple values for argument 'channels'"),
        ("no_such_package.heads:MyHead", {}, "no module named 'no_such_package' can be imported"),
        ("collections:OrderedDict", {}, "collections has no nn.Module 'OrderedDict'"),
    ],
)
def test_mistakes_are_named(head: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model(TinyBackbone(), 3, head=head, options=options)
