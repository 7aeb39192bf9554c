"""The U-Net head (Ronneberger et al. 2015): decoder blocks with skip connections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionsft.errors import ConfigError
from visionsft.models.heads.blocks import classifier, conv_bn_relu, nearest


class UnetBlock(nn.Module):
    """Upsample to the skip's size, concatenate, two 3x3 convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            conv_bn_relu(in_channels + skip_channels, width, 3), conv_bn_relu(width, width, 3)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x: (B, in_channels, h, w), skip: (B, skip_channels, H, W) -> (B, width, H, W)."""
        fused: Tensor = self.convs(torch.cat([nearest(x, skip), skip], dim=1))
        return fused


class UnetHead(nn.Module):
    """A centre convolution on the coarsest map, then one block a finer map; `widths` has one number a map."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        widths: Sequence[int] = (128, 64, 48, 32),
        dropout: float = 0.0,
    ) -> None:
        """`channels` and `strides` describe the maps, finest first; `widths` start at the coarsest."""
        super().__init__()
        if len(widths) != len(channels):
            raise ConfigError(
                f"head 'unet': {len(widths)} widths {list(widths)} for {len(channels)} feature maps; give "
                f"one a map, from coarse to fine (strides {', '.join(map(str, reversed(strides)))})"
            )
        coarsest, *skips = reversed(channels)
        self.centre = conv_bn_relu(coarsest, widths[0], 3)
        self.blocks = nn.ModuleList(UnetBlock(widths[i], skip, widths[i + 1]) for i, skip in enumerate(skips))
        self.classifier = classifier(widths[-1], num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, channels[i], h_i, w_i), finest first -> logits (B, num_classes, h_0, w_0)."""
        coarsest, *skips = reversed(features)
        x = self.centre(coarsest)
        for block, skip in zip(self.blocks, skips, strict=True):
            x = block(x, skip)
        logits: Tensor = self.classifier(x)
        return logits
