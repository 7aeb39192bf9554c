"""Gradients: what a layer that computes differently in training asks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def wants_gradient(module: nn.Module, x: Tensor) -> bool:
    """Whether the module's output for x will have a gradient: it, or what comes before it, trains."""
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters()))
