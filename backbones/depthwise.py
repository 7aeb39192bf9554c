"""Depthwise convolutions whose backward pass isn't slow in bfloat16 on a CPU.

oneDNN's bfloat16 kernels for the backward pass of a depthwise convolution take 5 to 40 times as long as its float32
ones (measured: 836 ms against 119 ms for the input gradient of 96 channels at 180x240, stride 2, batch 8). Under
autocast these layers then take most of a training step of an EfficientNet or ConvNeXt. Here the forward pass stays
in bfloat16 and the backward pass runs in float32, which is also the more exact.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from backbones.gradients import wants_gradient


class _Convolve(torch.autograd.Function):
    """conv2d in the input's dtype with a float32 backward pass."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, layer: Depthwise) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.layer, ctx.has_bias = layer, bias is not None
        return F.conv2d(image, weight, bias, layer.stride, layer.zeros, layer.dilation, layer.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        layer: Depthwise = ctx.layer  # type: ignore[attr-defined]
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias)  # type: ignore[attr-defined]
        found = torch.ops.aten.convolution_backward(
            gradient.float(), image.float(), weight.float(), [layer.groups] if wanted[2] else None,
            layer.stride, layer.zeros, layer.dilation, False, [0, 0], layer.groups, wanted,
        )  # fmt: skip
        return *(None if g is None else g.to(gradient.dtype) for g in found), None


class Depthwise(nn.Conv2d):
    """An nn.Conv2d (or timm's Conv2dSame) that `accelerate_depthwise` has changed; the parameters are the same."""

    same: bool
    zeros: tuple[int, ...]

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W) -> (B, C, H', W')."""
        if self.same:
            image = pad_same(image, list(self.kernel_size), list(self.stride), list(self.dilation))
        if not (image.device.type == "cpu" and torch.is_autocast_enabled("cpu") and wants_gradient(self, image)):
            return F.conv2d(
                image, self.weight, self.bias, self.stride, self.zeros, self.dilation, self.groups
            )
        dtype = torch.get_autocast_dtype("cpu")
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Convolve.apply(image.to(dtype), self.weight.to(dtype), bias, self)


def accelerate_depthwise(model: nn.Module) -> int:
    """Change the depthwise convolutions of `model` in place; parameters, keys and outputs stay. Returns how many."""
    changed = 0
    for module in model.modules():
        if type(module) in (nn.Conv2d, Conv2dSame) and _is_depthwise(module):
            same = isinstance(module, Conv2dSame)
            module.__class__ = Depthwise
            assert isinstance(module, Depthwise)
            module.same = same
            module.zeros = (0, 0) if same else tuple(map(int, module.padding))
            changed += 1
    return changed


def _is_depthwise(layer: nn.Module) -> bool:
    assert isinstance(layer, nn.Conv2d)
    return (
        layer.groups == layer.in_channels > 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )
