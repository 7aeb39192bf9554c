"""Heads: feature maps, finest first -> logits at the finest map's resolution; a head never sees the image."""

from __future__ import annotations

from torch import nn

from visionsft.models.heads.fpn import FpnHead
from visionsft.models.heads.linear import LinearHead
from visionsft.models.heads.pooled import PooledLinearHead, PooledMlpHead
from visionsft.models.heads.segformer import SegformerHead
from visionsft.models.heads.unet import UnetHead
from visionsft.models.heads.upernet import UperNetHead

HEADS: dict[str, type[nn.Module]] = {
    "linear": LinearHead,
    "segformer": SegformerHead,
    "fpn": FpnHead,
    "unet": UnetHead,
    "upernet": UperNetHead,
}
"""Built-in heads by their name in a config; called with (channels, strides, num_classes, *, options)."""

IMAGE_HEADS: dict[str, type[nn.Module]] = {"linear": PooledLinearHead, "mlp": PooledMlpHead}
"""Built-in heads that classify whole images, called likewise: feature maps -> (B, num_classes)."""

__all__ = [
    "HEADS",
    "IMAGE_HEADS",
    "FpnHead",
    "LinearHead",
    "PooledLinearHead",
    "PooledMlpHead",
    "SegformerHead",
    "UnetHead",
    "UperNetHead",
]
