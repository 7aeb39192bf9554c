"""Backbone: a timm model as an image -> list of feature maps, with stages that can be frozen."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import BackboneError
from backbones.geometry import Geometry, TimmModel, ceil_to, features
from backbones.stages import Stage, check_stages, group_stages, modules_of
from backbones.weights import WeightsReport

_ADAPTER = "lora_"  # in the name of every module that peft adds


class Backbone(nn.Module):
    """The whole timm model without classifier; made by `create_backbone`.

    channels, strides: of each feature map, finest first. mean, std: of the input bands on a 0..1 scale.
    """

    def __init__(
        self,
        name: str,
        model: TimmModel,
        geometry: Geometry,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        weights_report: WeightsReport,
    ) -> None:
        super().__init__()
        self.name = name
        self.model: nn.Module = model
        self.geometry = geometry
        self.mean = mean
        self.std = std
        self.weights_report = weights_report
        self.frozen: frozenset[str] = frozenset()

    @property
    def channels(self) -> tuple[int, ...]:
        return self.geometry.channels

    @property
    def strides(self) -> tuple[int, ...]:
        return self.geometry.strides

    @property
    def has_adapters(self) -> bool:
        """Whether LoRA adapters are in the model, between `add_lora` and `merge_lora`."""
        return any(_ADAPTER in name for name, _ in self.model.named_modules())

    def forward(self, image: Tensor) -> list[Tensor]:
        """image: (B, C, H, W) float, normalised -> maps (B, channels[i], ceil(H/strides[i]), ...).

        Sizes off the model's grid are padded below and to the right with zeros, the mean after normalisation,
        and the maps are cropped accordingly. Without trainable parameters no gradient graph is built.
        """
        height, width = image.shape[-2:]
        seen, own = self._padded(image), self.geometry
        maps = features(self.model, seen, own.indices, norm=own.norm, final=own.final)
        cropped = zip(maps, self.strides, strict=True)
        return [m[..., : ceil_to(height, s) // s, : ceil_to(width, s) // s] for m, s in cropped]

    def _padded(self, image: Tensor) -> Tensor:
        """The image with zeros below and to the right, at a size the model takes."""
        height, width = image.shape[-2:]
        size = self.geometry.size
        if size is None:
            size = (ceil_to(height, self.geometry.multiple), ceil_to(width, self.geometry.multiple))
        if height > size[0] or width > size[1]:
            raise BackboneError(
                f"{self.name} takes images up to {size[0]}x{size[1]} as built, not {height}x{width}: "
                f"build it with img_size=({height}, {width}), or use windows of {size[0]}x{size[1]}"
            )
        if (height, width) == size:
            return image
        return F.pad(image, (0, size[1] - width, 0, size[0] - height))

    def stages(self) -> list[Stage]:
        """Stages from input to output; every parameter is in exactly one."""
        return group_stages(self.model, prefix="model.")

    def freeze(self, stages: Iterable[str] | None = None) -> None:
        """Freeze these stages (None: all) and make all others trainable.

        Frozen is without gradient, in eval mode whatever `train()` is told, and without a pending `.grad`;
        the optimizer must be given only parameters that require a gradient.
        """
        if self.has_adapters:
            raise BackboneError(
                "a backbone with LoRA adapters keeps all its stages frozen; merge_lora(backbone) first"
            )
        own = self.stages()
        frozen = check_stages([s.name for s in own], stages)
        parameters = dict(self.named_parameters())
        for stage in own:
            for name in stage.parameters:
                parameters[name].requires_grad_(stage.name not in frozen)
                if stage.name in frozen:
                    parameters[name].grad = None
        self.frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of everything that is not frozen; frozen modules stay in eval mode."""
        super().train(mode)
        if self.frozen:
            for name, module, owners in modules_of(self.model, group_stages(self.model)):
                if owners <= self.frozen and _ADAPTER not in name:
                    module.training = False
        return self
