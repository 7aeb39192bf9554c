"""The feature pyramid head: a narrow top-down path (Lin et al. 2017) with one smoothing convolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visionsft.models.heads.blocks import classifier, conv_bn_relu, nearest, projections


class FpnHead(nn.Module):
    """Maps projected to `width`, summed from coarse to fine, smoothed by a 3x3 convolution, classified.

    Panoptic FPN (Kirillov et al. 2019) adds up to three more convolutions a level with bilinear upsampling,
    which cost more than a small backbone on a CPU. Here the upsampling is nearest and only the finest map
    has a 3x3 convolution.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        width: int = 128,
        dropout: float = 0.1,
    ) -> None:
        """`channels` and `strides` describe the feature maps, finest first."""
        super().__init__()
        self.laterals = projections(channels, width)
        self.smooth = conv_bn_relu(width, width, 3)
        self.classifier = classifier(width, num_classes, dropout)

    def pyramid(self, features: list[Tensor]) -> Tensor:
        """Maps (B, channels[i], h_i, w_i), finest first -> their top-down sum (B, width, h_0, w_0)."""
        maps = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        summed = maps[-1]
        for fine in reversed(maps[:-1]):
            summed = fine + nearest(summed, fine)
        return summed

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, channels[i], h_i, w_i), finest first -> logits (B, num_classes, h_0, w_0)."""
        logits: Tensor = self.classifier(self.smooth(self.pyramid(features)))
        return logits
