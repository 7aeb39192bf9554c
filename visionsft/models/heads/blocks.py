"""Building blocks that several heads share: convolutions, resizing, the classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def projections(channels: Sequence[int], width: int, *, bias: bool = True) -> nn.ModuleList:
    """One 1x1 convolution a feature map, each to `width` channels."""
    return nn.ModuleList(nn.Conv2d(c, width, 1, bias=bias) for c in channels)


def classifier(in_channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Channel dropout and a 1x1 convolution; its first logits are near zero, so all classes start alike."""
    conv = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(nn.Dropout2d(dropout) if dropout else nn.Identity(), conv)


def nearest(x: Tensor, like: Tensor) -> Tensor:
    """Resize to the height and width of `like`: ceil(H / stride) isn't always twice the coarser map's."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def bilinear(x: Tensor, like: Tensor) -> Tensor:
    """As `nearest`, smoothly."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
