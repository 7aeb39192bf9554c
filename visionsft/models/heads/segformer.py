"""The all-MLP head of SegFormer (Xie et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visionsft.models.heads.blocks import bilinear_sum, classifier, projections


class SegformerHead(nn.Module):
    """Every map projected to `width`, upsampled to the finest, fused; BatchNorm, ReLU, classifier.

    The paper projects, upsamples, concatenates and fuses by a 1x1 convolution. All four are linear, and 1x1
    convolutions commute with bilinear upsampling: so projection and fusion are one 1x1 convolution a map at
    the map's own resolution, and the upsampled results are summed. The same functions at far lower cost.
    """

    plain_maps = True
    """Takes a plain ViT's maps as they are: it is the light head, of 1x1 convolutions alone."""

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
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, channels[i], h_i, w_i), finest first -> logits (B, num_classes, h_0, w_0)."""
        maps = [project(feature) for project, feature in zip(self.projections, features, strict=True)]
        logits: Tensor = self.classifier(self.norm(bilinear_sum(maps, training=self.training)))
        return logits
