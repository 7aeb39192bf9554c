"""The segmentation model: a backbone, a pyramid where the backbone is a plain ViT, and a head."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from visionsft.errors import ConfigError, nearest
from visionsft.models.heads import HEADS
from visionsft.models.pyramid import SimpleFeaturePyramid
from visionsft.models.upsampling import Upsampling, bilinear_upsampling


class FeatureExtractor(Protocol):
    """What a model needs of its backbone (an nn.Module); see backbones.Backbone."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, image: Tensor) -> list[Tensor]:
        """image: (B, C, H, W) -> maps (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i]))."""


class SegmentationModel(nn.Module):
    """Image in, logits of the image's size out."""

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

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W) float, normalised -> logits (B, num_classes, H, W) float32."""
        return self.upsample(self.head(self.features(image)), image)

    def upsample(self, logits: Tensor, image: Tensor) -> Tensor:
        """logits: (B, num_classes, h, w) of the head -> (B, num_classes, H, W) float32, bilinear.

        The maps have ceil(H / stride) rows and cover whole strides: what lies beyond the image is cut off.
        Were they squeezed onto the image, the classes would be shifted near the bottom and right edges.
        """
        if self.training:
            return self.upsampling(logits, image)(logits)
        height, width = image.shape[-2:]
        # class by class: a third of the time of channels-last on a CPU, and what finds the largest needs it so
        logits = logits.float().contiguous()
        return F.interpolate(logits, self._covered(image), mode="bilinear")[..., :height, :width]

    def upsampling(self, logits: Tensor, image: Tensor) -> Upsampling:
        """`upsample`, as the matrices that training takes."""
        height, width = image.shape[-2:]
        old = (logits.shape[-2], logits.shape[-1])
        return bilinear_upsampling(old, self._covered(image), (height, width), device=logits.device)

    def _covered(self, image: Tensor) -> tuple[int, int]:
        """Rows and columns of the image's size that the maps cover."""
        stride = cast(FeatureExtractor, self.backbone).strides[0]
        height, width = (-(-size // stride) * stride for size in image.shape[-2:])
        return height, width


def create_model(
    backbone: nn.Module, num_classes: int, *, head: str = "fpn", options: Mapping[str, Any] | None = None
) -> SegmentationModel:
    """A new head on `backbone`; plain ViTs get ViTDet's pyramid before it.

    `head` is one of HEADS or "my_package.heads:MyHead", an nn.Module called with
    (channels, strides, num_classes, **options). `options` are checked against its signature.
    """
    cls = head_class(head)
    maps = cast(FeatureExtractor, backbone)
    neck: nn.Module = nn.Identity()
    channels, strides = maps.channels, maps.strides
    if has_one_stride(backbone) and not getattr(cls, "plain_maps", False):
        neck = pyramid = SimpleFeaturePyramid(channels, strides)
        channels, strides = pyramid.channels, pyramid.strides
    built = build_head(cls, head, (channels, strides, num_classes), dict(options or {}))
    return SegmentationModel(backbone, neck, built, num_classes=num_classes)


def has_one_stride(backbone: nn.Module) -> bool:
    """Whether all its maps are equally fine, as a plain ViT's are."""
    return len(set(cast(FeatureExtractor, backbone).strides)) == 1


def head_class(name: str, heads: Mapping[str, type[nn.Module]] = HEADS) -> type[nn.Module]:
    """The class of a name in `heads` or of "package.module:Class"."""
    if name in heads:
        return heads[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise ConfigError(
            f"head '{name}': no such head{_hint(name, heads)}; there are {', '.join(heads)}, "
            "and 'my_package.heads:MyHead' for your own"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"head '{name}': no module named '{error.name}' can be imported") from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        names = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise ConfigError(
            f"head '{name}': {module_name} has no nn.Module '{class_name}'{_hint(class_name, names)}"
        )
    return cast(type[nn.Module], found)


def build_head(cls: type[nn.Module], name: str, maps: tuple[Any, ...], options: dict[str, Any]) -> nn.Module:
    """The head, called with `maps` and the options, which are checked against its signature."""
    signature = inspect.signature(cls)
    try:
        signature.bind(*maps, **options)
    except TypeError as error:
        allowed = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        raise ConfigError(
            f"head '{name}': {error}; called with (channels, strides, num_classes) and the options "
            f"{options}; its own options are {', '.join(allowed) or 'none'}"
        ) from error
    return cls(*maps, **options)


def _hint(name: str, names: Iterable[str]) -> str:
    close = nearest(name, names)
    return f"; did you mean '{close}'?" if close else ""
