"""Schedules: the learning rate's factor over the steps of a training, as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

CURVES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "poly": lambda progress: (1 - progress) ** 0.9,  # Chen et al. 2017 (DeepLab)
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from near 0 to 1 over a share of all steps, then a curve that ends at 0 (or stays)."""

    curve: str = "cosine"
    warmup: float = 0.05

    def factor(self, step: int, total: int) -> float:
        """Factor of the learning rate at optimizer step `step` (from 0) of `total`."""
        rising = round(self.warmup * total)
        if step < rising:
            return (step + 1) / rising
        return CURVES[self.curve](min(1.0, (step - rising) / max(1, total - rising)))
