"""Costs: parameters and multiply-accumulates of a backbone, and of every built-in head on it.

A head can cost more than a small backbone, so its cost is looked at before it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbones import Backbone
from visionsft.models import HEADS, create_model

T = TypeVar("T")


class Cost(NamedTuple):
    """What one part of a model costs for one image."""

    name: str
    parameters: int
    gmacs: float
    """10^9 multiply-accumulates of a forward pass: convolutions and matrix products, not resizing."""


def head_costs(backbone: Backbone, num_classes: int, size: tuple[int, int]) -> list[Cost]:
    """Cost of `backbone`, then of each built-in head on it, with the pyramid it needs on a plain ViT.

    size: (height, width) of the image in pixels.
    """
    image = torch.zeros(1, len(backbone.mean), *size)
    features, gmacs = _forward(backbone, image)
    costs = [Cost("backbone", _parameters(backbone), gmacs)]
    for name in HEADS:
        model = create_model(backbone, num_classes, head=name)
        top = nn.Sequential(model.neck, model.head)
        costs.append(Cost(name, _parameters(top), _forward(top, features)[1]))
    return costs


def count_gmacs(call: Callable[[], T]) -> tuple[T, float]:
    """What `call` returns, and the 10^9 multiply-accumulates of its forward passes."""
    # Attention as plain matrix products: the counter doesn't know the CPU's fused kernel and would say 0.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = call()
    return output, counter.get_total_flops() / 2e9  # a multiply-accumulate is two operations


@torch.no_grad()
def _forward(module: nn.Module, argument: Any) -> tuple[Any, float]:
    """The module's output in eval mode, and its 10^9 multiply-accumulates."""
    training = module.training
    output, gmacs = count_gmacs(lambda: module.eval()(argument))
    module.train(training)
    return output, gmacs


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
