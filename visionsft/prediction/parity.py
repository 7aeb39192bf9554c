"""Parity: how closely one set of logits follows another, by a rule that a broken model can't meet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEAR_TIE = 0.1
"""A pixel whose two best classes are nearer than this in probability isn't asked for its class."""


@dataclass(frozen=True)
class Parity:
    """Logits against a reference's, on the same images."""

    agreement: float
    """Share of the clear pixels that have the reference's class; nan if there are none."""
    pixels: int
    """Clear ones: those that are no near tie in the reference."""
    probability: float
    """Mean over pixels of half the sum of absolute differences in probability (total variation), 0..1."""
    logits: float
    """Root mean square of the difference over that of the reference, each pixel's mean taken off.

    0: the same; about 1: unrelated. It tells, too, for models whose probabilities are all alike (new heads).
    """

    def __str__(self) -> str:
        classes = "no pixel has a clear class"
        if self.pixels:
            classes = f"classes agree on {self.agreement:.2%} of {self.pixels:,} clear pixels"
        return f"{classes}, probabilities differ by {self.probability:.4f}, logits by {self.logits:.2%}"


@dataclass(frozen=True)
class Tolerance:
    """What a Parity must not exceed."""

    agreement: float
    probability: float
    logits: float

    def admits(self, parity: Parity) -> bool:
        """False as well where a number is nan."""
        agrees = parity.pixels == 0 or parity.agreement >= self.agreement
        return agrees and parity.probability <= self.probability and parity.logits <= self.logits

    def __str__(self) -> str:
        return f"allowed: at least {self.agreement:.2%}, at most {self.probability:g} and {self.logits:.2%}"


REDUCED = Tolerance(agreement=0.99, probability=0.02, logits=0.05)
"""For bfloat16: it gave 0.4 to 1.4 % in logits with six backbones and four heads, and the image moved by a
single pixel gave 18 to 67 %."""
EXACT = Tolerance(agreement=0.9999, probability=1e-3, logits=1e-3)
"""For float32 computed in another order."""


def compare(logits: Tensor, reference: Tensor) -> Parity:
    """Both (B, K, H, W) float of any type, on any device."""
    found, wanted = (each.to("cpu", torch.float32) for each in (logits, reference))
    theirs, ours = wanted.softmax(1), found.softmax(1)
    clear = torch.ones_like(theirs[:, 0], dtype=torch.bool)
    if theirs.shape[1] > 1:
        best, second = theirs.topk(2, dim=1).values.unbind(1)
        clear = best - second >= NEAR_TIE
    same = found.argmax(1) == wanted.argmax(1)
    found, wanted = (each - each.mean(1, keepdim=True) for each in (found, wanted))
    return Parity(
        agreement=float(same[clear].double().mean()),
        pixels=int(clear.sum()),
        probability=float((ours - theirs).abs().sum(1).double().mean() / 2),
        logits=float((found - wanted).double().norm() / wanted.double().norm()),
    )
