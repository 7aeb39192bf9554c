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
ROWS = 16
"""Of upsampled logits at a time, at least, where a chunk has room for them: a few rows depend on almost as many of the
head's. Only then do several images share a chunk."""
COLUMNS = 96
"""The same of columns, of which all depend on few, too (measured for 64 to 256 columns and 128 to 512: with half or
twice as many it takes as long, without such bands up to twice as long)."""
NARROW = 60.0
"""Logits of some images within this range are shifted by the largest of them all instead of each pixel's: none of
their exponentials is too small for float32."""

Band = tuple[slice, slice, Tensor]
"""Rows or columns of the head's logits, upsampled ones that depend on no others, and the shares of these in those."""


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
            work.add(logits.to(dtype), mask, gradient)
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
        self._across = list(_bands(columns, COLUMNS))
        self.loss = torch.zeros((), dtype=torch.float64)
        self.weight = torch.zeros((), dtype=torch.float64)

    @property
    def divisor(self) -> Tensor:
        """Scalar float64, the weight of all pixels; not 0."""
        return self.weight.clamp_min(1e-12)

    def add(self, logits: Tensor, mask: Tensor, gradient: Tensor | None) -> None:
        """Add all sums, and write the gradient. logits, gradient: (B, K, h, w), mask: (B, H, W) int64."""
        # upsampled rows, of one image each, that are worked on at a time
        lines = CHUNK * torch.get_num_threads() // (logits.shape[1] * self.columns.shape[1] * logits.itemsize)
        count = min(len(logits), max(1, lines // ROWS))
        bands = list(_bands(self.rows, max(1, lines // count)))
        for start in range(0, len(logits), count):
            some = slice(start, start + count)
            self._add(logits[some], mask[some], bands, None if gradient is None else gradient[some])

    def _add(self, logits: Tensor, mask: Tensor, bands: list[Band], gradient: Tensor | None) -> None:
        """The same of some images."""
        low, high = logits.aminmax()
        narrow = bool(high - low < NARROW)
        if narrow:
            logits = logits - high  # what is upsampled from them is shifted as much
        coarse = logits.permute(2, 0, 1, 3).contiguous()  # (h, B, K, w)
        wide = coarse.new_empty(*coarse.shape[:3], self.columns.shape[1])  # (h, B, K, W)
        for few, many, share in self._across:
            torch.mm(coarse.flatten(0, 2)[:, few], share, out=wide.flatten(0, 2)[:, many])
        slopes = torch.zeros_like(wide)
        room = wide.new_empty(bands[0][1].stop, *wide.shape[1:])  # one for all bands stays in the cache
        pixels = _Pixels.of(self.targets, mask.transpose(0, 1).contiguous())
        for few, many, share in bands:
            fine = room[: share.shape[1]]  # (rows, B, K, W)
            torch.mm(share.T, wide[few].flatten(1), out=fine.flatten(1))
            if not narrow:
                fine -= fine.amax(2, keepdim=True)
            pixels.replace(many, fine, keep=gradient is not None)
            if gradient is not None:
                slopes[few].flatten(1).addmm_(share, fine.flatten(1))
        if gradient is not None:
            found = torch.zeros_like(coarse)
            for few, many, share in self._across:
                found.flatten(0, 2)[:, few].addmm_(slopes.flatten(0, 2)[:, many], share.T)
            gradient.copy_(found.permute(1, 2, 0, 3))
        self.loss += pixels.loss()
        self.weight += pixels.weight.sum()


@dataclass(frozen=True)
class _Pixels:
    """All pixels of some images, (H, B, W): what their labels stand for, and what becomes of their logits."""

    targets: _Targets
    labelled: Tensor | None
    """None: the loss has no smoothing."""
    index: Tensor
    """(H, B, 1, W)."""
    weight: Tensor
    own: Tensor
    """Of the pixel's own class in the loss."""
    pull: Tensor
    """Of the softmax in the gradient: the weights of all classes."""
    logit: Tensor
    """Of the pixel's own class, and with smoothing its share of all; filled in."""
    total: Tensor
    """Of the exponentials of its logits; filled in."""

    @classmethod
    def of(cls, targets: _Targets, labels: Tensor) -> _Pixels:
        """labels: (H, B, W) int64, contiguous."""

        def look_up(table: Tensor) -> Tensor:
            return table.index_select(0, labels.flatten()).view_as(labels)

        weight = look_up(targets.weight)
        pull = own = weight * targets.rest
        labelled = None
        if targets.rest < 1:
            labelled = look_up(targets.labelled)
            pull = own + labelled * targets.smoothed.sum()
        logit, total = torch.empty_like(weight), torch.empty_like(weight)
        return cls(targets, labelled, look_up(targets.index).unsqueeze(2), weight, own, pull, logit, total)

    def replace(self, rows: slice, logits: Tensor, *, keep: bool) -> None:
        """Put the gradient (times the divisor) in the place of some rows' logits (rows, B, K, W).

        Their exponentials can be summed. `keep`: the gradient is wanted.
        """
        index, own, logit = self.index[rows], self.own[rows], self.logit[rows]
        torch.gather(logits, 2, index, out=logit.unsqueeze(2))
        logit *= own
        if self.labelled is not None:
            logit += (self.targets.smoothed @ logits) * self.labelled[rows]
        torch.sum(logits.exp_(), 2, out=self.total[rows])
        if not keep:
            return
        logits *= (self.pull[rows] / self.total[rows]).unsqueeze(2)
        logits.scatter_add_(2, index, -own.unsqueeze(2))
        if self.labelled is not None:
            logits.addcmul_(self.targets.smoothed[:, None], self.labelled[rows].unsqueeze(2), value=-1)

    def loss(self) -> Tensor:
        """Scalar, times the divisor."""
        return torch.dot(self.pull.flatten(), self.total.log().flatten()) - self.logit.sum()


def _bands(matrix: Tensor, step: int) -> Iterator[Band]:
    """`step` points at a time. matrix: (few, many), as in `Upsampling`."""
    used = (matrix != 0).int()
    first, last = used.argmax(0).tolist(), (len(matrix) - 1 - used.flip(0).argmax(0)).tolist()
    for start in range(0, matrix.shape[1], step):
        stop = min(start + step, matrix.shape[1])
        few, many = slice(first[start], last[stop - 1] + 1), slice(start, stop)
        yield few, many, matrix[few, many]
