"""Building blocks that several heads share: convolutions, resizing, the classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionsft.models.heads.fusing import add_resized


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def projections(channels: Sequence[int], width: int, *, bias: bool = True) -> nn.ModuleList:
    """One 1x1 convolution a feature map, each to `width` channels."""
    return nn.ModuleList(nn.Conv2d(c, width, 1, bias=bias) for c in channels)


class _Classifier(nn.Sequential):
    """Channel dropout and a 1x1 convolution.

    In training what is dropped out of the maps is dropped out of the weights, one matrix an image: the same
    function, without a pass over the maps forwards and two backwards.
    """

    def __init__(self, conv: nn.Conv2d, dropout: float) -> None:
        super().__init__(nn.Dropout2d(dropout) if dropout else nn.Identity(), conv)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> logits (B, num_classes, H, W)."""
        conv = self[1]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        if not (self.training and self.dropout):
            return conv(x)  # type: ignore[no-any-return]
        kept = F.dropout(x.new_ones(x.shape[:2]), self.dropout)  # (B, C), 0 or 1 / (1 - dropout)
        weights = conv.weight[:, :, 0, 0] * kept[:, None]  # (B, num_classes, C)
        logits = torch.baddbmm(conv.bias, x.permute(0, 2, 3, 1).flatten(1, 2), weights.mT)
        return logits.mT.unflatten(2, x.shape[2:])


def classifier(in_channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Channel dropout and a 1x1 convolution; its first logits are near zero, so all classes start alike."""
    conv = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return _Classifier(conv, dropout)


def nearest(x: Tensor, like: Tensor) -> Tensor:
    """Resize to the height and width of `like`: ceil(H / stride) isn't always twice the coarser map's."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def bilinear(x: Tensor, like: Tensor) -> Tensor:
    """As `nearest`, smoothly."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def bilinear_sum(maps: Sequence[Tensor], *, training: bool) -> Tensor:
    """maps[0] (B, C, H, W) and the others, each resized to it by `bilinear`.

    For training all coarser maps are resized by one product with a matrix from either side, which a CPU does
    three times as fast, forwards and backwards. For exported models F.interpolate is the simpler graph.
    """
    summed = maps[0]
    coarse = []
    for each in maps[1:]:
        if training and each.shape[-2:] != summed.shape[-2:]:
            coarse.append(each)
        else:
            summed = summed + bilinear(each, summed)
    return add_resized(summed, coarse) if coarse else summed
