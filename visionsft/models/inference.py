"""Inference: a model's logits or maps in the precision of its training, and the check that they are numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from visionsft.errors import RunError
from visionsft.memory import keeping_freed_memory

T = TypeVar("T")

_REASON = "its training has diverged, or the checkpoint is damaged"


@torch.no_grad()
def compute_logits(
    model: nn.Module, image: Tensor, *, precision: torch.dtype | None, channels_last: bool
) -> Tensor:
    """image: (B, C, H, W) float32, normalised -> logits (B, K, H, W) float32, on the model's device.

    precision: the number type of autocast; None: float32 throughout.
    """
    return check_numbers(run_model(model, model, image, precision=precision, channels_last=channels_last))


@torch.no_grad()
def compute_maps(
    backbone: nn.Module, image: Tensor, *, precision: torch.dtype | None, channels_last: bool
) -> list[Tensor]:
    """image: (B, C, H, W) float32, normalised -> the backbone's maps (B, C', h, w) float32, on its device."""
    maps = run_model(backbone, backbone, image, precision=precision, channels_last=channels_last)
    return [each.float() for each in maps]


def run_model(
    call: Callable[[Tensor], T],
    model: nn.Module,
    image: Tensor,
    *,
    precision: torch.dtype | None,
    channels_last: bool,
) -> T:
    """What `call`, which is `model` or one of its methods, gives for image (B, C, H, W) where the model is."""
    device = next(model.parameters()).device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with keeping_freed_memory(), torch.autocast(device.type, dtype=precision, enabled=precision is not None):
        return call(image.to(device).contiguous(memory_format=layout))


def check_numbers(logits: Tensor) -> Tensor:
    """The same logits; RunError if one of them is nan."""
    if _has_nan(logits):
        raise RunError(f"the model's output is not a number: {_REASON}")
    return logits


def check_weights(model: nn.Module) -> None:
    """RunError if a weight is nan: not every runtime's output shows it, as some make ReLU(nan) 0."""
    for name, values in model.state_dict().items():
        if _has_nan(values):
            raise RunError(f"the model's weight {name} is not a number: {_REASON}")


def _has_nan(values: Tensor) -> bool:
    return bool(values.sum().isnan())  # a nan anywhere makes the sum nan, in a fraction of isnan's time
