"""The classification model: a backbone and a head that sees the whole image at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from visionsft.models.heads import IMAGE_HEADS
from visionsft.models.model import FeatureExtractor, build_head, head_class


class ClassificationModel(nn.Module):
    """Image in, logits of its classes out."""

    def __init__(self, backbone: nn.Module, head: nn.Module, *, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Identity()
        """Nothing: every model has one between its backbone and its head."""
        self.head = head
        self.num_classes = num_classes

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W) float, normalised -> logits (B, num_classes) float32."""
        logits: Tensor = self.head(self.backbone(image))
        return logits.float()


def create_classifier(
    backbone: nn.Module, num_classes: int, *, head: str = "linear", options: Mapping[str, Any] | None = None
) -> ClassificationModel:
    """A new head on `backbone`.

    `head` is one of IMAGE_HEADS or "my_package.heads:MyHead", an nn.Module called with
    (channels, strides, num_classes, **options) whose output is (B, num_classes). `options` are checked against its
    signature.
    """
    cls = head_class(head, IMAGE_HEADS)
    maps = cast(FeatureExtractor, backbone)
    built = build_head(cls, head, (maps.channels, maps.strides, num_classes), dict(options or {}))
    return ClassificationModel(backbone, built, num_classes=num_classes)
