"""The UPerNet head (Xiao et al. 2018): pyramid pooling, a feature pyramid, fusion of all its levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionsft.models.heads.blocks import bilinear, bilinear_sum, classifier, conv_bn_relu, projections


class PyramidPooling(nn.Module):
    """PSPNet's context (Zhao et al. 2017): a map beside its averages over 1x1, 2x2, ... cells, fused."""

    def __init__(self, in_channels: int, width: int, pool_sizes: Sequence[int]) -> None:
        super().__init__()
        self.pool_sizes = tuple(pool_sizes)
        # No BatchNorm here: over a handful of cells it is noise, and one cell of one sample has no variance.
        self.projections = projections([in_channels] * len(self.pool_sizes), width)
        self.fuse = conv_bn_relu(in_channels + len(self.pool_sizes) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, h, w) -> (B, width, h, w)."""
        contexts = [
            bilinear(F.relu(project(F.adaptive_avg_pool2d(x, size))), x)
            for size, project in zip(self.pool_sizes, self.projections, strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat([x, *contexts], dim=1))
        return fused


class UperNetHead(nn.Module):
    """Pyramid pooling on the coarsest map, top-down sums smoothed by 3x3 convolutions, all levels fused.

    The usual fusion is a 3x3 convolution of the wide concatenation at the finest resolution: most of the
    head's cost. Here it is a 1x1 convolution, which commutes with upsampling and so runs before it.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        width: int = 128,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        """`channels` and `strides` describe the feature maps, finest first."""
        super().__init__()
        self.pooling = PyramidPooling(channels[-1], width, pool_sizes)
        self.laterals = nn.ModuleList(conv_bn_relu(c, width) for c in channels[:-1])
        self.smooths = nn.ModuleList(conv_bn_relu(width, width, 3) for _ in channels[:-1])
        self.fusions = projections(
            [width] * len(channels), width, bias=False
        )  # BatchNorm's shift is the bias
        self.norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.classifier = classifier(width, num_classes, dropout)

    def levels(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, channels[i], h_i, w_i), finest first -> levels (B, width, h_i, w_i), finest first."""
        summed = self.pooling(features[-1])
        levels = [summed]
        for i in reversed(range(len(self.laterals))):
            fine = self.laterals[i](features[i])
            summed = fine + bilinear(summed, fine)
            levels.insert(0, self.smooths[i](summed))
        return levels

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, channels[i], h_i, w_i), finest first -> logits (B, num_classes, h_0, w_0)."""
        maps = [fuse(level) for fuse, level in zip(self.fusions, self.levels(features), strict=True)]
        logits: Tensor = self.classifier(self.norm(bilinear_sum(maps, training=self.training)))
        return logits
