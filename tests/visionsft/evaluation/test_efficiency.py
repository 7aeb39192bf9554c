"""Efficiency: counts against arithmetic, and that speed and memory are measured where the work is."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from visionsft.evaluation.efficiency import REPEATS, measure


def test_operations_and_parameters_are_those_of_the_layer() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    found = measure(layer, torch.no_grad()(layer), torch.zeros(2, 3, 20, 30))
    assert found.parameters == 3 * 8 * 9
    assert found.gmacs_per_mpx == pytest.approx(
        3 * 8 * 9 / 1e3
    )  # a pixel: parameters; 10^6 pixels: 10^6 of them
    assert (found.throughput.shape, found.throughput.repeats) == ((2, 3, 20, 30), REPEATS)
    assert "batch of 2 x 3 x 20 x 30" in found.table()


def test_throughput_and_memory_see_the_work() -> None:
    def work(image: Tensor) -> Tensor:
        time.sleep(0.02)
        return torch.ones(30_000_000).sum()  # 120 MB

    small = measure(nn.Linear(1, 1), lambda image: image, torch.zeros(1, 1, 100, 100))
    large = measure(nn.Linear(1, 1), work, torch.zeros(1, 1, 100, 100))
    assert large.throughput.mpx_s < 0.01 / 0.02
    assert small.peak_memory_mb is not None
    assert large.peak_memory_mb is not None
    assert large.peak_memory_mb > small.peak_memory_mb + 100
