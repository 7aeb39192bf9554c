"""Cross-entropy of logits that are upsampled for it: loss and gradient in one pass over the CPU's cache.

At the image's size the logits, their log-softmax and the gradients of both are four arrays of some 25 MB a batch, and
writing and reading them takes most of a training step of a light head. Here some rows at a time are upsampled,
turned into their part of the gradient and brought back to the size of the head's logits, all within the cache:
the arrays of the image's size never exist. (The idea of taking softmax and gradient of a chunk at a time is that
of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, for language models.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from visionsft.models.upsampling import Upsampling

CHUNK = 1536 * 1024
"""Bytes of upsampled logits that are worked on at a time by a thread: about an L2 cache (measured on two cores: a
fifth faster than a third of it)."""
NARROW = 60.0
"""Logits of an image within this range are shifted by the largest of them all instead of each pixel's: none of their
exponentials is too small for float32."""


def upsampled_cross_entropy(
    logits: Tensor,
    mask: Tensor,
    upsampling: Upsampling,
    *,
    weights: Tensor,
    ignore: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """F.cross_entropy of upsampling(logits), on a CPU; 0 without labelled pixels. Differentiable once.

    logits: (B, K, h, w) of any float dtype, computed with in float32 (float64 stays);
    mask: (B, H, W) int64, a class or `ignore`; weights: (K,) -> scalar.
    """
    loss: Tensor = _UpsampledCrossEntropy.apply(
        logits, mask, upsampling, weights, ignore, label_smoothing, torch.is_grad_enabled()
    )
    return loss


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        mask: Tensor,
        upsampling: Upsampling,
        weights: Tensor,
        ignore: int,
        label_smoothing: float,
        differentiable: bool,
    ) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        targets = _Targets.of(weights.to(dtype), ignore=ignore, smoothing=label_smoothing)
        with torch.autocast("cpu", enabled=False):
            work = _Pass(upsampling.rows.to(dtype), upsampling.columns.to(dtype), targets)
            wanted = differentiable and ctx.needs_input_grad[0]
            gradient = logits.new_empty(logits.shape, dtype=dtype) if wanted else None
            for number, image in enumerate(logits.to(dtype)):
                work.add(image, mask[number], None if gradient is None else gradient[number])
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(work.divisor).to(logits.dtype))
        return (work.loss / work.divisor).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * slope, None, None, None, None, None, None


@dataclass(frozen=True)
class _Targets:
    """What a pixel's label stands for; the tables are indexed by labels."""

    index: Tensor
    """(labels,) int64: the class; 0 where ignored."""
    weight: Tensor
    """(labels,): of the class; 0 where ignored."""
    labelled: Tensor
    """(labels,): 0 where ignored, else 1."""
    smoothed: Tensor
    """(K,): the share of every class in a labelled pixel's loss."""
    rest: float
    """The share of the pixel's own class, in parts of its weight."""

    @classmethod
    def of(cls, weights: Tensor, *, ignore: int, smoothing: float) -> _Targets:
        count = max(ignore + 1, len(weights))
        index = torch.arange(count)  # what is neither a class nor `ignore` fails when it is looked up
        weight, labelled = weights.new_zeros(count), weights.new_ones(count)
        weight[: len(weights)] = weights
        index[ignore], weight[ignore], labelled[ignore] = 0, 0, 0
        return cls(index, weight, labelled, weights * (smoothing / len(weights)), 1 - smoothing)


class _Pass:
    """One pass over a batch."""

    def __init__(self, rows: Tensor, columns: Tensor, targets: _Targets) -> None:
        self.rows, self.columns, self.targets = rows, columns, targets
        self.loss = torch.zeros((), dtype=torch.float64)
        self.weight = torch.zeros((), dtype=torch.float64)
        self._bands: list[tuple[slice, slice]] | None = None

    @property
    def divisor(self) -> Tensor:
        """Scalar float64, the weight of all pixels; not 0."""
        return self.weight.clamp_min(1e-12)

    def add(self, logits: Tensor, mask: Tensor, gradient: Tensor | None) -> None:
        """Add an image's sums, and write its gradient. logits, gradient: (K, h, w), mask: (H, W) int64."""
        if self._bands is None:
            self._bands = list(_bands(self.rows, len(logits) * self.columns.shape[1] * logits.itemsize))
        wide = logits.contiguous() @ self.columns  # (K, h, W)
        low, high = wide.aminmax()
        narrow = bool(high - low < NARROW)
        if narrow:
            wide -= high  # what is upsampled from them is shifted as much
        slopes = None if gradient is None else torch.zeros_like(wide)
        for few, many in self._bands:
            share = self.rows[few, many]
            fine = share.T @ wide[:, few]  # (K, rows, W)
            self._replace(fine.flatten(1), mask[many].flatten(), shifted=narrow, keep=slopes is not None)
            if slopes is not None:
                slopes[:, few] += share @ fine
        if gradient is not None and slopes is not None:
            torch.matmul(slopes, self.columns.T, out=gradient)

    def _replace(self, logits: Tensor, labels: Tensor, *, shifted: bool, keep: bool) -> None:
        """Add the sums of some pixels, and put the gradient (times the divisor) in the place of their logits.

        logits: (K, N), labels: (N,) int64. `shifted`: to where their exponentials can be summed. `keep`: the gradient
        is wanted.
        """
        targets = self.targets
        index = targets.index.index_select(0, labels)[None]
        weight = targets.weight.index_select(0, labels)
        self.weight += weight.sum()
        if not shifted:
            logits -= logits.amax(0)
        own = weight * targets.rest
        loss = -torch.dot(own, logits.gather(0, index)[0])
        pull = own  # of the softmax: the weights of all classes
        smooth = targets.rest < 1
        if smooth:
            labelled = targets.labelled.index_select(0, labels)
            loss -= torch.dot(targets.smoothed, logits @ labelled)
            pull = own + labelled * targets.smoothed.sum()
        total = logits.exp_().sum(0)
        self.loss += loss + torch.dot(pull, total.log())
        if keep:
            logits *= pull / total
            logits.scatter_add_(0, index, -own[None])
            if smooth:
                logits.addr_(targets.smoothed, labelled, alpha=-1)


def _bands(rows: Tensor, row_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Rows that make up a chunk, behind those of the head's logits on which they depend. rows: (h, H)."""
    step = max(1, CHUNK * torch.get_num_threads() // row_bytes)
    for start in range(0, rows.shape[1], step):
        many = slice(start, min(start + step, rows.shape[1]))
        used = rows[:, many].any(1).nonzero()
        yield slice(int(used[0]), int(used[-1]) + 1), many
