"""Pooled heads: classifiers of the whole image, from the mean of the coarsest feature map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class PooledLinearHead(nn.Module):
    """One linear map of the mean feature: the usual head of classifiers, and a linear probe of a frozen backbone.

    The map is normalised by BatchNorm without weights before its mean is taken (He et al. 2022 do so for linear
    probing), so that one learning rate suits every backbone. A plain ViT's mean is that of its last patch tokens.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_classes: int, *, dropout: float = 0.0
    ) -> None:
        """`channels` and `strides` describe the feature maps, finest first; the last one is used."""
        super().__init__()
        self.pool = _Pool(channels[-1])
        self.classify = _classifier(channels[-1], num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, channels[i], h_i, w_i), finest first -> logits (B, num_classes)."""
        logits: Tensor = self.classify(self.pool(features[-1]))
        return logits


class PooledMlpHead(nn.Module):
    """Two linear maps of the mean feature with a GELU between them, for classes that no hyperplane divides."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        hidden: int = 512,
        dropout: float = 0.0,
    ) -> None:
        """`channels` and `strides` describe the feature maps, finest first; the last one is used."""
        super().__init__()
        self.pool = _Pool(channels[-1])
        self.hidden = nn.Sequential(nn.Linear(channels[-1], hidden), nn.GELU())
        self.classify = _classifier(hidden, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, channels[i], h_i, w_i), finest first -> logits (B, num_classes)."""
        logits: Tensor = self.classify(self.hidden(self.pool(features[-1])))
        return logits


class _Pool(nn.Module):
    """(B, C, h, w) -> (B, C), the mean over all positions of the normalised map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, feature: Tensor) -> Tensor:
        mean: Tensor = self.norm(feature).mean((2, 3))
        return mean


def _classifier(features: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Its first logits are near zero, so all classes start alike."""
    linear = nn.Linear(features, num_classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Dropout(dropout), linear)
