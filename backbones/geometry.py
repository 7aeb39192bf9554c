"""Geometry: the shapes of a model's feature maps and the input sizes it takes, measured without computing.

A copy of the model on PyTorch's meta device (shapes, no numbers) is run at a few sizes, so that what a
`Backbone` promises was seen and does not rest on metadata alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from backbones.errors import BackboneError

TimmModel: TypeAlias = Any
"""An nn.Module with timm's attributes: pretrained_cfg, feature_info, forward_intermediates, ..."""

Look: TypeAlias = Callable[[Tensor], list[Tensor]]
"""image (B, C, H, W) -> maps (B, c, h, w)."""

_REFUSALS = (RuntimeError, AssertionError, ValueError, IndexError, TypeError)  # how timm models refuse a size


@dataclass(frozen=True)
class Geometry:
    """What one choice of feature maps looks like."""

    indices: tuple[int, ...]  # into timm's forward_intermediates, in the order of computation
    norm: bool  # the model's final norm is applied to every map (plain ViTs)
    final: bool  # the last map is what the model's own classifier pools: after its final convolution or norm
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int  # inputs are padded to a multiple of this many pixels
    size: tuple[int, int] | None  # not None: the model takes exactly this (H, W), after padding


def reductions(model: TimmModel) -> list[int]:
    """timm's stated stride of each feature map, finest first."""
    return [int(row["reduction"]) for row in feature_rows(model)]


def feature_rows(model: TimmModel) -> list[dict[str, Any]]:
    """timm's feature table: module, num_chs and reduction of each feature map."""
    info = model.feature_info
    return list(info if isinstance(info, list) else info.info)


def default_indices(strides: Sequence[int]) -> tuple[int, ...]:
    """The last map of each of the last four strides; four evenly spread ones where all strides are equal."""
    if len(set(strides)) == 1:
        count = min(4, len(strides))
        return tuple(round(len(strides) * (i + 1) / count) - 1 for i in range(count))
    last = {stride: index for index, stride in enumerate(strides)}
    return tuple(last.values())[-4:]


def resolve_indices(strides: Sequence[int], indices: Sequence[int] | None) -> tuple[int, ...]:
    """Absolute, ascending indices; -1 is the last map."""
    if indices is None:
        return default_indices(strides)
    count = len(strides)
    wrong = [i for i in indices if not -count <= i < count]
    if wrong or not indices:
        raise BackboneError(
            f"indices {list(indices)}: the model has {count} feature maps, 0..{count - 1} or -{count}..-1"
        )
    absolute = [i % count for i in indices]
    if absolute != sorted(set(absolute)):
        raise BackboneError(
            f"indices {list(indices)} must ascend without repeats, so that the finest map comes first"
        )
    return tuple(absolute)


def features(
    model: TimmModel, image: Tensor, indices: Sequence[int], *, norm: bool, final: bool
) -> list[Tensor]:
    """Feature maps (B, C, h, w) of `image` (B, C, H, W), by timm's forward_intermediates."""
    if isinstance(model, VisionTransformer) and not final:
        return _token_maps(model, image, indices, norm=norm)
    found = model.forward_intermediates(
        image, indices=list(indices), norm=norm, output_fmt="NCHW", intermediates_only=not final
    )
    if not final:
        return list(found)
    last, maps = found
    if last.ndim == 4:  # tokens: the last map has the final norm already
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        maps = [*maps[:-1], last.permute(0, 3, 1, 2) if channels_last else last]
    return list(maps)


def _token_maps(model: TimmModel, image: Tensor, indices: Sequence[int], *, norm: bool) -> list[Tensor]:
    """A plain ViT's tokens seen as maps (B, C, h, w): timm copies them to another order, and back in the gradient."""
    tokens = model.forward_intermediates(
        image, indices=list(indices), norm=norm, output_fmt="NLC", intermediates_only=True
    )
    height, width = model.patch_embed.dynamic_feat_size(image.shape[-2:])
    return [each.unflatten(1, (height, width)).permute(0, 3, 1, 2) for each in tokens]


def measure(
    model: TimmModel, *, in_chans: int, size: tuple[int, int], indices: Sequence[int] | None, final: bool
) -> Geometry:
    """Geometry of `model`, which lies on the meta device; `size`: an input (H, W) it takes for certain."""
    stated = reductions(model)
    chosen = resolve_indices(stated, indices)
    if final and chosen[-1] != len(stated) - 1:
        raise BackboneError(f"indices {list(chosen)} leave out the map {len(stated) - 1}, so none is final")
    norm = len(set(stated)) == 1

    def look(image: Tensor) -> list[Tensor]:
        return features(model, image, chosen, norm=norm, final=final)

    maps = _shapes(look, in_chans, size)
    if maps is None:
        raise BackboneError(f"{type(model).__name__} gives no feature maps at input {size[0]}x{size[1]}")
    strides = tuple(_stride(size, shape, stated[i]) for shape, i in zip(maps, chosen, strict=True))
    multiple = _multiple(look, in_chans, size, strides)
    channels = tuple(shape[0] for shape in maps)
    return Geometry(chosen, norm, final, channels, strides, multiple or 1, None if multiple else size)


def ceil_to(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `length`."""
    return -(-length // multiple) * multiple


def _shapes(look: Look, in_chans: int, size: tuple[int, int]) -> list[tuple[int, int, int]] | None:
    """(channels, h, w) of each map at the input size, or None if the model refuses the size."""
    image = torch.empty(1, in_chans, *size, device="meta")
    try:
        with torch.no_grad():
            maps = look(image)
    except _REFUSALS:
        return None
    return [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]


def _stride(size: tuple[int, int], shape: tuple[int, int, int], stated: int) -> int:
    """timm's stated stride where the measured shape agrees with it, else the measured one."""
    height = size[0]
    if -(-height // stated) == shape[1]:
        return stated
    if height % shape[1] == 0 and size[1] % shape[2] == 0:
        return height // shape[1]
    raise BackboneError(
        f"a feature map of {shape[1]}x{shape[2]} at input {size[0]}x{size[1]} has no whole stride, "
        "which heads need: choose another model"
    )


def _multiple(look: Look, in_chans: int, size: tuple[int, int], strides: Sequence[int]) -> int | None:
    """Smallest tried number whose multiples all give maps of H / stride; None if only `size` works.

    Never below the coarsest stride, though most CNNs take any size: where a map has an odd number of rows,
    TensorFlow's "same" padding (timm's tf_ models) puts the next stride's grid half a pixel elsewhere than for
    an even one. Fine-tuned on crops of 288x384, tf_efficientnet_lite0 lost 7 points of mIoU on frames of 360x480
    (CamVid) for want of some rows of zeros.
    """
    coarsest = math.lcm(*strides)
    for multiple in sorted({coarsest, 2 * coarsest, *(size if size[0] == size[1] else ())}):
        trial = (2 * multiple, 3 * multiple)
        if _agrees(_shapes(look, in_chans, trial), trial, strides):
            return multiple
    return None


def _agrees(maps: list[tuple[int, int, int]] | None, size: tuple[int, int], strides: Sequence[int]) -> bool:
    if maps is None:
        return False
    return all(
        shape[1:] == (-(-size[0] // stride), -(-size[1] // stride))
        for shape, stride in zip(maps, strides, strict=True)
    )
