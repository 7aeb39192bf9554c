"""Upsampling by matrices: equality with PyTorch, forwards and backwards."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from visionsft.models.upsampling import bilinear_upsampling

CPU = torch.device("cpu")


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), factor=st.integers(1, 5), cut=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_equals_interpolate(rows: int, columns: int, factor: int, cut: int) -> None:
    covered = (rows * factor, columns * factor)
    size = (max(1, covered[0] - cut), covered[1])
    maps = torch.randn(2, 3, rows, columns, requires_grad=True)
    theirs = F.interpolate(maps, covered, mode="bilinear")[..., : size[0], : size[1]]
    ours = bilinear_upsampling((rows, columns), covered, size, device=CPU)(maps)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn(theirs.shape)
    torch.testing.assert_close(
        torch.autograd.grad(ours, maps, slope), torch.autograd.grad(theirs, maps, slope), rtol=1e-4, atol=1e-5
    )


def test_float32_under_autocast() -> None:
    maps = torch.randn(1, 2, 4, 4)
    upsampling = bilinear_upsampling((4, 4), (16, 16), (16, 16), device=CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsampling(maps), upsampling(maps.contiguous(memory_format=torch.channels_last)))
        assert upsampling(maps.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(upsampling(maps), F.interpolate(maps, (16, 16), mode="bilinear"))


def test_what_was_asked_for_without_gradients_trains() -> None:
    """The matrices are kept between calls; tensors of the inference mode can't take part in a backward pass."""
    sizes = (3, 7), (33, 77), (32, 75)  # of no other test
    with torch.inference_mode():
        first = bilinear_upsampling(*sizes, device=CPU)
    maps = torch.randn(1, 2, *sizes[0], requires_grad=True)
    upsampling = bilinear_upsampling(*sizes, device=CPU)
    assert upsampling is first
    upsampling(maps).sum().backward()
    assert maps.grad is not None
