"""The detection model: a backbone, a pyramid where the backbone is a plain ViT, and a detection head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

from datamodules.objects import Target
from visionsft.errors import ConfigError
from visionsft.models.detections import Detections
from visionsft.models.heads.detection import FasterRcnnHead, FcosHead, MaskRcnnHead, RetinaNetHead, Size
from visionsft.models.heads.rotated_fcos import RotatedFcosHead
from visionsft.models.model import FeatureExtractor, build_head, has_one_stride, head_class
from visionsft.models.pyramid import SimpleFeaturePyramid

DETECTION_HEADS: dict[str, type[nn.Module]] = {
    "fcos": FcosHead,
    "retinanet": RetinaNetHead,
    "faster_rcnn": FasterRcnnHead,
    "mask_rcnn": MaskRcnnHead,
    "rotated_fcos": RotatedFcosHead,
}
"""Built-in heads of detectors; called with (channels, strides, num_classes, *, options)."""


class Detector(Protocol):
    """What a model needs of its detection head (an nn.Module)."""

    def losses(
        self, maps: list[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Maps (B, channels[i], h_i, w_i), finest first -> scalars float32; the loss is their sum."""

    def detect(self, maps: list[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Maps (B, channels[i], h_i, w_i), finest first -> the detections of each image, within its size."""


class DetectionModel(nn.Module):
    """Images in, detections out; in training, images and objects in, losses out.

    Works in either mode: `losses` after `eval()` is a validation loss.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: nn.Module, *, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.num_classes = num_classes

    def features(self, image: Tensor) -> list[Tensor]:
        """What the head sees. image: (B, C, H, W) float -> maps, finest first."""
        maps: list[Tensor] = self.neck(self.backbone(image))
        return maps

    def losses(self, image: Tensor, sizes: Sequence[Size], targets: Sequence[Target]) -> dict[str, Tensor]:
        """image: (B, C, H, W) float, normalised -> scalars float32 by name; the loss is their sum.

        sizes: (height, width) of each image without its padding at the right and below.
        """
        return cast(Detector, self.head).losses(self.features(image), sizes, targets)

    def detect(self, image: Tensor, sizes: Sequence[Size]) -> list[Detections]:
        """image: (B, C, H, W) float, normalised -> the detections of each image, clipped to its size."""
        return cast(Detector, self.head).detect(self.features(image), sizes)

    def forward(self, image: Tensor, sizes: Sequence[Size] | None = None) -> list[Detections]:
        """As `detect`; None: no image is padded."""
        height, width = image.shape[-2:]
        return self.detect(image, sizes or [(height, width)] * len(image))


def create_detector(
    backbone: nn.Module, num_classes: int, *, head: str = "fcos", options: Mapping[str, Any] | None = None
) -> DetectionModel:
    """A new detection head on `backbone`; plain ViTs get ViTDet's pyramid before it.

    `head` is one of DETECTION_HEADS or "my_package.heads:MyHead", an nn.Module called with
    (channels, strides, num_classes, **options) that has a Detector's methods; the strides are not rounded.
    `options` are checked against its signature.
    """
    cls = head_class(head, DETECTION_HEADS)
    if lacking := [name for name in ("losses", "detect") if not callable(getattr(cls, name, None))]:
        raise ConfigError(f"head '{head}': no detection head, it has no method {' or '.join(lacking)}")
    maps = cast(FeatureExtractor, backbone)
    neck: nn.Module = nn.Identity()
    channels: tuple[int, ...] = maps.channels
    strides: tuple[float, ...] = maps.strides
    if has_one_stride(backbone):
        neck = pyramid = SimpleFeaturePyramid(channels, maps.strides)
        channels, strides = pyramid.channels, pyramid.spacings
    built = build_head(cls, head, (channels, strides, num_classes), dict(options or {}))
    return DetectionModel(backbone, neck, built, num_classes=num_classes)
