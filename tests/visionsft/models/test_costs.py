"""Costs of heads, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones import create_backbone
from visionsft.models import HEADS
from visionsft.models.costs import _forward, head_costs


def test_multiply_accumulates_of_a_convolution() -> None:
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    _, gmacs = _forward(convolution, torch.zeros(1, 3, 10, 12))
    assert gmacs * 1e9 == pytest.approx(10 * 12 * 3 * 8 * 9)


def test_multiply_accumulates_of_attention() -> None:
    """Attention's own two matrix products count, whichever kernel computes them."""
    tokens, width = 16, 32

    class Sdpa(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    _, gmacs = _forward(Sdpa(), torch.zeros(1, 4, tokens, width // 4))
    assert gmacs * 1e9 == pytest.approx(2 * tokens * tokens * width)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_every_head_is_listed(name: str) -> None:
    backbone = create_backbone(name, weights="none", in_chans=4).train()
    costs = head_costs(backbone, 5, (64, 96))
    assert [cost.name for cost in costs] == ["backbone", *HEADS]
    assert costs[0].parameters == sum(parameter.numel() for parameter in backbone.parameters())
    assert all(cost.parameters > 0 and cost.gmacs > 0 for cost in costs)
    assert backbone.training


def test_costs_of_a_fully_convolutional_head_grow_with_the_area() -> None:
    backbone = create_backbone("test_resnet", weights="none")
    small, large = (
        {cost.name: cost for cost in head_costs(backbone, 5, size)} for size in [(64, 64), (128, 128)]
    )
    for name in ("backbone", "linear", "fpn", "unet"):
        assert large[name].parameters == small[name].parameters
        assert large[name].gmacs == pytest.approx(4 * small[name].gmacs)
