"""Folding: a trained network that computes the same on a CPU in about half the time.

Once trained, batch norm scales and shifts each channel: the convolution before it can do both. Of bfloat16, whose bits
are ordered as the numbers are, ReLU and ReLU6 can compare the bits as integers, which takes an eighth of the time. And
TensorFlow's "same" padding, one pixel less on one side than on the other, needs no padded copy of the maps where the
kernel has the zeros instead.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.hooks import RemovableHandle

from backbones.depthwise import Depthwise
from visionsft.models import DetectionModel

Network = TypeVar("Network", bound=nn.Module)
Compute = Callable[[Any], Sequence[Tensor]]

NORMS = (nn.BatchNorm2d, BatchNormAct2d)
CONVOLUTIONS = (nn.Conv2d, Conv2dSame, Depthwise)
"""Whose weights are used as they are; kinds derived from them may first make others of them."""
TOLERANCE = 1e-3
"""Between outputs before and after folding, as a share of the largest of those before, in float32."""
PROBE = 64
"""Side of the image on which a model is checked, where its backbone takes any."""
_REFUSALS = (RuntimeError, AssertionError, AttributeError, IndexError, TypeError, ValueError)
_SIX = torch.tensor(6.0, dtype=torch.bfloat16).view(torch.int16).item()


class Rectifier(nn.Module):
    """ReLU or ReLU6, for inference: what is no number may become one."""

    def __init__(self, act: nn.ReLU | nn.ReLU6) -> None:
        super().__init__()
        self.act = act
        self.limit = _SIX if isinstance(act, nn.ReLU6) else None

    def forward(self, values: Tensor) -> Tensor:
        """values: (...) float; changed in place if the one that it stands for does that."""
        if values.dtype != torch.bfloat16 or values.requires_grad:
            rectified: Tensor = self.act(values)
            return rectified
        bits = values.view(torch.int16)
        if self.act.inplace:
            bits.clamp_(0, self.limit)
            return values
        return bits.clamp(0, self.limit).view(torch.bfloat16)


class SameConvolution(nn.Module):
    """A convolution of stride 2 with "same" padding.

    Before an even side it has a pixel less than after it. Here both have the same, and the kernel begins with a zero.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.padding = tuple(side // 2 for side in conv.kernel_size)

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether it can stand for a module."""
        return (
            (type(module) is Conv2dSame or (type(module) is Depthwise and module.same))
            and tuple(module.stride) == (2, 2)
            and tuple(module.dilation) == (1, 1)
            and all(side > 1 and side % 2 for side in module.kernel_size)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, C', ceil(H / 2), ceil(W / 2))."""
        conv = self.conv
        top, left = (1 - side % 2 for side in maps.shape[-2:])
        weight = F.pad(conv.weight, (left, 0, top, 0))
        return F.conv2d(maps, weight, conv.bias, conv.stride, self.padding, 1, conv.groups)


def fold_model(model: Any) -> Any:
    """A model of this project folded, checked on an image of noise; see `fold`.

    A backbone without anything to fold isn't computed: a large ViT would take seconds. Noise stands for its maps.
    """
    backbone = model.backbone
    size = backbone.geometry.size or (PROBE, PROBE)
    generator = torch.Generator().manual_seed(0)
    if any(type(each) in NORMS or SameConvolution.fits(each) for each in backbone.modules()):
        image = torch.randn(1, len(backbone.mean), *size, generator=generator)
        return fold(model, lambda model: _outputs(model, model.backbone(image)))
    maps = [
        torch.randn(1, channels, *(-(-side // stride) for side in size), generator=generator)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    return fold(model, lambda model: _outputs(model, maps))


def _outputs(model: Any, maps: list[Tensor]) -> list[Tensor]:
    """All that a model computes of its backbone's maps, but a detector's objects: those that it finds are few."""
    seen: list[Tensor] = model.neck(maps)
    return seen if isinstance(model, DetectionModel) else [*seen, model.head(seen)]


def fold(model: Network, compute: Compute) -> Network:
    """A copy for inference on a CPU that shares all weights with `model`, in eval mode, but those that were folded.

    compute: what `model` makes of some image, in float32; norms that it doesn't reach are left as they are. If a folded
    copy gives anything else, convolutions are left alone: another layer may read what one gives, too. A model that
    refuses the image or can't be copied or changed, as a head of one's own may, is returned itself, with a warning.
    """
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            folded = _fold_convolutions(model, compute)
    except _REFUSALS as error:
        warnings.warn(f"the model isn't folded and so is slower: {type(error).__name__}: {error}", stacklevel=2)
        return model
    for name, module in list(folded.named_modules()):
        if type(module) in (nn.ReLU, nn.ReLU6):
            _replace(folded, name, Rectifier(module))
    return folded


def _fold_convolutions(model: Network, compute: Compute) -> Network:
    """A copy; an unchanged one where it would give anything else."""
    folded = _copy(model)
    pairs, before = _find_pairs(folded, compute)
    names = {module: name for name, module in folded.named_modules()}
    for norm, conv in pairs:
        _replace(folded, names[norm], _fold_norm(norm, conv))
    for module, name in names.items():
        if SameConvolution.fits(module):
            _replace(folded, name, SameConvolution(module))  # type: ignore[arg-type]
    return folded if _agree(before, compute(folded)) else _copy(model)


def _copy(model: Network) -> Network:
    """Other modules with the same tensors."""
    shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _fold_norm(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> nn.Module:
    """Changes the convolution; returns what is left of the norm."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias)
    conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    return rest.eval()


def _find_pairs(
    model: nn.Module, compute: Compute
) -> tuple[list[tuple[nn.BatchNorm2d, nn.Conv2d]], Sequence[Tensor]]:
    """Each norm that sees all that one convolution gives, and nothing else, with it; and what `model` computes."""
    given: dict[int, tuple[nn.Module, Tensor]] = {}  # with the tensor, or another could get its id
    read: dict[nn.Module, list[nn.Module | None]] = {}

    def note_conv(module: nn.Module, _: Any, output: Tensor) -> None:
        given[id(output)] = (module, output)

    def note_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.setdefault(module, []).append(given.get(id(inputs[0]), (None, None))[0])

    handles: list[RemovableHandle] = []
    for module in model.modules():
        if type(module) in CONVOLUTIONS and "weight" in module._parameters:
            handles.append(module.register_forward_hook(note_conv))
        elif type(module) in NORMS and module.running_var is not None:
            handles.append(module.register_forward_pre_hook(note_norm))
    try:
        outputs = compute(model)
    finally:
        for handle in handles:
            handle.remove()
    times_given = Counter(conv for conv, _ in given.values())
    times_read = Counter(conv for sources in read.values() for conv in sources)
    pairs = [
        (norm, sources[0])
        for norm, sources in read.items()
        if sources[0] is not None and len(sources) == sources.count(sources[0])
        and len(sources) == times_given[sources[0]] == times_read[sources[0]]
    ]  # fmt: skip
    return pairs, outputs  # type: ignore[return-value]


def _agree(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    return all(
        bool((new - old).abs().max() <= TOLERANCE * old.abs().max()) for old, new in zip(before, after, strict=True)
    )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
