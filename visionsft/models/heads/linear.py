"""The linear head: a linear classifier of the feature maps, to probe what a backbone already knows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visionsft.models.heads.blocks import bilinear_sum, classifier


class LinearHead(nn.Module):
    """BatchNorm, then one linear map of all features upsampled and concatenated (as in DINOv2's evaluation).

    A 1x1 convolution and bilinear upsampling commute, so each map is classified at its own resolution and the
    logits are upsampled and summed: the same function at a fraction of the cost.
    """

    plain_maps = True
    """Takes a plain ViT's maps as they are: a trained pyramid before it would not be a linear probe."""

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_classes: int, *, dropout: float = 0.0
    ) -> None:
        """`channels` and `strides` describe the feature maps, finest first."""
        super().__init__()
        self.classifiers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), classifier(c, num_classes, dropout)) for c in channels
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, channels[i], h_i, w_i), finest first -> logits (B, num_classes, h_0, w_0)."""
        logits = [classify(feature) for classify, feature in zip(self.classifiers, features, strict=True)]
        return bilinear_sum(logits, training=self.training)
