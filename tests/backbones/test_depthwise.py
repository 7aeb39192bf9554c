"""Accelerated depthwise convolutions against torch's own."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from backbones import accelerate_depthwise


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_float32(stride: int, bias: bool) -> None:
    """Within bfloat16's rounding of the operands; torch's own bfloat16 kernel is the yardstick."""
    torch.manual_seed(0)
    exact = nn.Conv2d(16, 16, 5, stride, 2, groups=16, bias=bias)
    fast = copy.deepcopy(exact)
    assert accelerate_depthwise(fast) == 1
    assert isinstance(fast, nn.Conv2d)
    image = torch.randn(2, 16, 19, 23)
    one, other = image.clone().requires_grad_(), image.clone().requires_grad_()
    out = exact(one)
    gradient = torch.randn_like(out)
    out.backward(gradient)
    with torch.autocast("cpu", torch.bfloat16):
        fast_out = fast(other)
    assert fast_out.dtype == torch.bfloat16
    fast_out.backward(gradient.bfloat16())
    for a, b in [
        (one.grad, other.grad),
        *zip((p.grad for p in exact.parameters()), (p.grad for p in fast.parameters()), strict=True),
    ]:
        assert (a - b.float()).norm() < 0.01 * a.norm()


@pytest.mark.parametrize("name", ["test_efficientnet", "tf_efficientnet_lite0", "test_convnext"])
def test_model_keeps_keys_and_outputs(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    fast = copy.deepcopy(model)
    assert accelerate_depthwise(fast) > 0
    assert list(model.state_dict()) == list(fast.state_dict())
    image = torch.randn(1, 3, 65, 66)
    assert torch.equal(model(image), fast(image))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(model(image), fast(image))
    copy.deepcopy(fast)


def test_frozen_layer_has_no_graph() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=4).requires_grad_(False)
    accelerate_depthwise(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(1, 4, 8, 8)).grad_fn is None
