"""The all-MLP head of SegFormer (Xie et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from visionsft.models.heads.blocks import bilinear_sum, classifier, projections
from visionsft.models.heads.fusing import projected_sum, sub_pixels

FINEST = 4
"""About the stride of the logits from a plain ViT's maps. Measured with a frozen ViT-S/14: on s2_forest logits at 14, 7
and 3.5 give a val mIoU of 0.759, 0.788 and 0.797, a trained pyramid 0.803; on CamVid 3.5 give 0.592, the pyramid
0.628."""


class SegformerHead(nn.Module):
    """Every map projected to `width`, upsampled to the finest, fused; BatchNorm, ReLU, classifier.

    The paper projects, upsamples, concatenates and fuses by a 1x1 convolution. All four are linear, and 1x1
    convolutions commute with bilinear upsampling: so projection and fusion are one 1x1 convolution a map at
    the map's own resolution, and the upsampled results are summed. The same functions at far lower cost.

    A plain ViT's maps are all as coarse as its patches, but what they hold isn't: each of their pixels gives 4 x 4
    logits (of patches of 14 or 16 pixels; sub-pixel convolution, Shi et al. 2016).
    """

    plain_maps = True
    """Takes a plain ViT's maps as they are: a pyramid before them would cost several times this head."""

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
        self.projections = projections(channels, width, bias=False)  # BatchNorm's shift is the bias
        self.norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.finer = max(1, round(strides[0] / FINEST)) if len(set(strides)) == 1 else 1
        self.classifier = classifier(width, num_classes * self.finer**2, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, channels[i], h_i, w_i), finest first -> logits (B, num_classes, h_0, w_0); of a plain ViT's maps
        `finer` times as many rows and columns."""
        if self.training:
            fused = projected_sum(self.projections, features)
        else:
            maps = [project(feature) for project, feature in zip(self.projections, features, strict=True)]
            fused = bilinear_sum(maps, training=False)
        logits: Tensor = self.classifier(self.norm(fused))
        if self.finer == 1:
            return logits
        return sub_pixels(logits, self.finer) if self.training else F.pixel_shuffle(logits, self.finer)
