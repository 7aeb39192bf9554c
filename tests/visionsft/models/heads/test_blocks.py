"""Building blocks of heads: those that training computes in its own way equal PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visionsft.models.heads.blocks import bilinear_sum, classifier, projections
from visionsft.models.heads.fusing import projected_sum, sub_pixels

FORMATS = [torch.contiguous_format, torch.channels_last]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    channels=st.integers(1, 3),
    layout=st.sampled_from(FORMATS),
)
@settings(max_examples=40, deadline=None)
def test_sum_of_resized_maps(
    sizes: list[tuple[int, int]], channels: int, layout: torch.memory_format
) -> None:
    """As F.interpolate, whatever the sizes: equal, finer and coarser ones."""
    maps = [torch.randn(2, channels, *size).to(memory_format=layout).requires_grad_() for size in sizes]
    expected: Tensor = maps[0]
    for each in maps[1:]:
        expected = expected + F.interpolate(each, sizes[0], mode="bilinear")
    slope = torch.randn(expected.shape)
    for training in (True, False):
        found = bilinear_sum(maps, training=training)
        torch.testing.assert_close(found, expected)
        mine, theirs = (
            torch.autograd.grad(each, maps, slope, retain_graph=True) for each in (found, expected)
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_sum_under_autocast_is_as_exact_as_one_resized_map() -> None:
    """Shares of sizes that are powers of two apart are exact in bfloat16."""
    maps = [torch.randn(1, 4, size, size).bfloat16() for size in (32, 16, 8)]
    exact = bilinear_sum([each.double() for each in maps], training=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = bilinear_sum(maps, training=True)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() < 2**-5  # of numbers up to 8


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    equal=st.integers(0, 2),
    frozen=st.booleans(),
    layout=st.sampled_from(FORMATS),
)
@settings(max_examples=40, deadline=None)
def test_projected_sum(
    sizes: list[tuple[int, int]], equal: int, frozen: bool, layout: torch.memory_format
) -> None:
    """As convolutions, F.interpolate and sums, whatever the sizes, and with several maps of the first one's."""
    sizes = [sizes[0]] * equal + sizes
    layers = projections(range(2, 2 + len(sizes)), 5, bias=False)
    maps = [torch.randn(2, 2 + i, *size).to(memory_format=layout) for i, size in enumerate(sizes)]
    leaves = [*layers.parameters(), *([] if frozen else [each.requires_grad_() for each in maps])]
    parts = [layer(each) for layer, each in zip(layers, maps, strict=True)]
    expected = sum(F.interpolate(part, sizes[0], mode="bilinear") for part in parts)
    assert isinstance(expected, Tensor)
    found = projected_sum(layers, maps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    slope = torch.randn(expected.shape)
    mine, theirs = (torch.autograd.grad(each, leaves, slope) for each in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_projected_sum_computes_in_the_autocast_type_and_keeps_the_weights() -> None:
    torch.manual_seed(0)
    layers = projections((6, 7, 8), 5, bias=False)
    maps = [torch.randn(2, 6 + i, size, size) for i, size in enumerate((8, 8, 4))]
    exact = projected_sum(layers, maps)
    before = [each.clone() for each in (*maps, *layers.parameters())]
    with torch.autocast("cpu", torch.bfloat16):
        found = projected_sum(layers, maps)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)
    of_exact, of_found = (
        torch.autograd.grad(each.float().square().sum(), layers.parameters()) for each in (exact, found)
    )
    for mine, theirs in zip(of_found, of_exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.02 * theirs.norm()
    assert all(map(torch.equal, before, (*maps, *layers.parameters())))


@given(finer=st.integers(1, 5), dtype=st.sampled_from([torch.bfloat16, torch.float32]), layout=st.sampled_from(FORMATS))
@settings(max_examples=20, deadline=None)
def test_sub_pixels_are_those_of_pixel_shuffle(
    finer: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    logits = torch.randn(2, 3 * finer**2, 4, 5).to(dtype).to(memory_format=layout).requires_grad_()
    mine, theirs = sub_pixels(logits, finer), F.pixel_shuffle(logits, finer)
    assert torch.equal(mine, theirs)
    slope = torch.randn(theirs.shape).to(dtype)
    assert torch.equal(*(torch.autograd.grad(each, logits, slope)[0] for each in (mine, theirs)))


@pytest.mark.parametrize("layout", FORMATS)
def test_classifier_drops_channels_out_as_torch_does(layout: torch.memory_format) -> None:
    """In training some channels of an image count nothing and the others more, on average they count as they are."""
    head = classifier(64, 64, 0.25)
    head[1].weight.data = torch.eye(64)[:, :, None, None]  # type: ignore[union-attr]
    head[1].bias.data = torch.arange(64.0)  # type: ignore[union-attr]
    x = torch.rand(16, 64, 3, 5).add(1).to(memory_format=layout)
    shares = (head.train()(x) - torch.arange(64.0)[:, None, None]) / x
    share = shares[..., 0, 0]
    torch.testing.assert_close(shares, share[..., None, None].expand_as(shares), rtol=0, atol=1e-4)
    dropped = share.abs() < 1e-3
    assert 0.2 < dropped.float().mean() < 0.3
    torch.testing.assert_close(share[~dropped], torch.full_like(share[~dropped], 4 / 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(head.eval()(x), x + torch.arange(64.0)[:, None, None])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_classifier_keeps_its_parameters_names(dropout: float) -> None:
    """Saved runs load."""
    assert list(classifier(3, 2, dropout).state_dict()) == ["1.weight", "1.bias"]


def test_classifier_trains_in_the_autocast_type() -> None:
    head = classifier(8, 3, 0.1).train()
    x = torch.randn(2, 8, 4, 4).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(x)
    assert logits.dtype == torch.bfloat16
    assert logits.shape == (2, 3, 4, 4)
    logits.float().square().sum().backward()
    assert x.grad is not None
    assert head[1].weight.grad is not None  # type: ignore[union-attr]
