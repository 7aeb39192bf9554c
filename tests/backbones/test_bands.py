"""The band rule, against timm's where timm has one, and by what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv

from backbones import BackboneError, WeightsError, create_backbone
from backbones.bands import adapt_convolution, adapt_statistics
from backbones.weights import first_convolutions


@pytest.fixture
def weight() -> torch.Tensor:
    """(O, 3, h, w)"""
    return torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 7])
def test_without_names_it_is_timms_rule(weight: torch.Tensor, in_chans: int) -> None:
    expected = adapt_input_conv(in_chans, weight.clone())
    torch.testing.assert_close(adapt_convolution(weight, in_chans, None), expected)


def test_another_order_of_the_colours_only_permutes(weight: torch.Tensor) -> None:
    image = torch.randn(2, 3, 9, 9)
    adapted = adapt_convolution(weight, 3, ("Blue", "GREEN", "red"))
    torch.testing.assert_close(
        torch.conv2d(image.flip(1), adapted), torch.conv2d(image, weight), rtol=1e-5, atol=1e-5
    )


def test_colours_keep_their_filters_and_others_get_the_mean(weight: torch.Tensor) -> None:
    adapted = adapt_convolution(weight, 5, ("nir", "r", "swir", "b03", "blue")) * (5 / 3)
    torch.testing.assert_close(adapted[:, [1, 3, 4]], weight)
    torch.testing.assert_close(adapted[:, 0], weight.mean(1))
    torch.testing.assert_close(adapted[:, 2], weight.mean(1))


@pytest.mark.parametrize("bands", [("pan",), ("blue", "green", "red", "nir"), tuple("abcdefgh")])
def test_equal_bands_give_the_activation_of_equal_colours(
    weight: torch.Tensor, bands: tuple[str, ...]
) -> None:
    plane = torch.randn(1, 1, 9, 9)
    if bands == tuple("abcdefgh"):
        bands = tuple(f"band{i}" for i in range(8))
    adapted = adapt_convolution(weight, len(bands), bands)
    ours = torch.conv2d(plane.expand(1, len(bands), 9, 9), adapted)
    torch.testing.assert_close(ours, torch.conv2d(plane.expand(1, 3, 9, 9), weight), rtol=1e-4, atol=1e-4)


def test_mean_and_deviation_follow_the_names() -> None:
    assert adapt_statistics((0.4, 0.5, 0.6), 4, ("blue", "green", "red", "nir")) == pytest.approx(
        (0.6, 0.5, 0.4, 0.5)
    )
    assert adapt_statistics((0.4, 0.5, 0.6), 1, None) == pytest.approx((0.5,))


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_vit",
        "test_byobnet",
        "convnext_atto",
        "cs3darknet_focus_s",  # four slices of the image side by side
        "fastvit_t8",  # two first convolutions
    ],
)
def test_first_layers_of_many_kinds(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    path = str(tmp_path / "weights.safetensors")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    three = create_backbone(name, weights=path).eval()
    four = create_backbone(name, weights=path, in_chans=4, bands=("blue", "green", "red", "nir")).eval()
    assert set(four.weights_report.reshaped) == {f"{layer}.weight" for layer in first_convolutions(model)}
    plane = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        ours, reference = four(plane.expand(1, 4, 64, 64)), three(plane.expand(1, 3, 64, 64))
    for a, b in zip(ours, reference, strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()


def test_wrong_lists_and_first_layers_are_refused() -> None:
    with pytest.raises(BackboneError, match=r"2 band names \(red, nir\) for in_chans=3"):
        create_backbone("test_resnet", weights="none", bands=("red", "nir"))
    with pytest.raises(BackboneError, match="at least 1 band"):
        create_backbone("test_resnet", weights="none", in_chans=0)
    with pytest.raises(WeightsError, match="not a convolution over red, green, blue"):
        adapt_convolution(torch.zeros(8, 768), 4, None)
