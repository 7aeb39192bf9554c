"""ViTDet's simple feature pyramid: strides, sizes, locality."""

from __future__ import annotations

import pytest
import torch

from visionsft.models.pyramid import SimpleFeaturePyramid


@pytest.mark.parametrize(
    ("patch", "strides", "channels", "sizes"),
    [
        (16, (4, 8, 16, 32), (16, 32, 64, 64), [(20, 28), (10, 14), (5, 7), (3, 4)]),
        (14, (4, 7, 14, 28), (16, 32, 64, 64), [(20, 28), (10, 14), (5, 7), (3, 4)]),
        (8, (4, 8, 16, 32), (32, 64, 64, 64), [(10, 14), (5, 7), (3, 4), (2, 2)]),
        (32, (4, 8, 16, 32), (8, 16, 32, 64), [(40, 56), (20, 28), (10, 14), (5, 7)]),
    ],
)
def test_levels(
    patch: int, strides: tuple[int, ...], channels: tuple[int, ...], sizes: list[tuple[int, int]]
) -> None:
    """Strides nearest to 4, 8, 16, 32 for any patch size, and the maps that are promised."""
    pyramid = SimpleFeaturePyramid((6, 6), (patch, patch), width=64)
    assert pyramid.strides == strides
    assert pyramid.channels == channels
    levels = pyramid([torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7)])
    assert [tuple(level.shape) for level in levels] == [
        (2, c, *s) for c, s in zip(channels, sizes, strict=True)
    ]


def test_every_map_and_parameter_is_used() -> None:
    pyramid = SimpleFeaturePyramid((6, 6, 6), (16, 16, 16), width=16)
    maps = [torch.randn(1, 6, 4, 4, requires_grad=True) for _ in range(3)]
    sum((level * torch.randn_like(level)).sum() for level in pyramid(maps)).backward()  # type: ignore[union-attr]
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in maps)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pyramid.parameters())


def test_levels_stay_in_place() -> None:
    """A pixel of the finest level sees exactly the ViT's patch that it lies in: nothing is shifted."""
    pyramid = SimpleFeaturePyramid((6,), (16,), width=16)
    features = torch.randn(1, 6, 4, 5, requires_grad=True)
    finest, *_, coarsest = pyramid([features])
    (gradient,) = torch.autograd.grad(finest[0, :, 9, 6].square().sum(), features, retain_graph=True)
    assert gradient[0].abs().sum(0).nonzero().tolist() == [[2, 1]]
    (gradient,) = torch.autograd.grad(coarsest[0, :, 1, 2].square().sum(), features)
    assert set(map(tuple, gradient[0].abs().sum(0).nonzero().tolist())) <= {(2, 4), (3, 4)}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_doubling_equals_the_transposed_convolution(layout: torch.memory_format) -> None:
    """Training multiplies matrices, everything else convolves: the same function and gradients."""
    pyramid = SimpleFeaturePyramid((6,), (16,), width=16)
    double = pyramid.levels[0][0]  # type: ignore[index]
    assert isinstance(double, torch.nn.ConvTranspose2d)
    x = torch.randn(2, 16, 3, 5).to(memory_format=layout).requires_grad_()
    trained, expected = double.train()(x), torch.nn.ConvTranspose2d.forward(double, x)
    torch.testing.assert_close(trained, expected)
    assert trained.is_contiguous(memory_format=torch.channels_last)
    leaves = [x, double.weight, double.bias]
    slope = torch.randn(expected.shape)
    mine, theirs = (torch.autograd.grad(y, leaves, slope) for y in (trained, expected))  # type: ignore[arg-type]
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(double.eval()(x), expected)
