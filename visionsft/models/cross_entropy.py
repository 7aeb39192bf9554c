"""Cross-entropy of logits that are upsampled for it: loss and gradient in one pass over the CPU's cache.

At the image's size the logits, their log-softmax and the gradients of both are four arrays of some 25 MB a batch, and
writing and reading them takes most of a training step of a light head. Here some rows at a time are upsampled,
turned into their part of the gradient and brought back to the size of the head's logits, all within the cache:
the arrays of the image's size never exist. (The idea of taking softmax and gradient of a chunk at a time is that
of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, for language models.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from visionsft.models.upsampling import Band, Upsampling

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
    mask: (B, H, W) int64 or uint8, a class or `ignore`; weights: (K,) -> scalar.
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
        wanted = differentiable and ctx.needs_input_grad[0]
        with torch.autocast("cpu", enabled=False):
            work = _Pass(upsampling, targets, dtype, with_gradient=wanted)
            parts = work.add(logits, mask)
        if wanted:
            gradient = torch.empty_like(logits)
            for some, part in parts:
                gradient[some] = part.div_(work.divisor).permute(1, 2, 0, 3)
            ctx.save_for_backward(gradient)
        return weights.new_tensor(work.loss / work.divisor, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * slope, None, None, None, None, None, None


@dataclass(frozen=True)
class _Targets:
    """What a pixel's label stands for."""

    weights: Tensor
    """(K,)."""
    even: float | None
    """The weight of all classes, if it is one."""
    ignore: int
    rest: float
    """The share of the pixel's own class, in parts of its weight."""
    smoothed: Tensor | None
    """(K,): the share of every class in a labelled pixel's loss; None without smoothing."""

    @classmethod
    def of(cls, weights: Tensor, *, ignore: int, smoothing: float) -> _Targets:
        low, high = (bound.item() for bound in weights.aminmax())
        smoothed = weights * (smoothing / len(weights)) if smoothing else None
        return cls(weights, low if low == high else None, ignore, 1 - smoothing, smoothed)


class _Pass:
    """One pass over a batch."""

    def __init__(self, upsampling: Upsampling, targets: _Targets, dtype: torch.dtype, *, with_gradient: bool) -> None:
        self.upsampling, self.targets, self.dtype = upsampling, targets, dtype
        self.with_gradient = with_gradient
        self.loss = 0.0
        self.weight = 0.0

    @property
    def divisor(self) -> float:
        """The weight of all pixels; not 0."""
        return max(self.weight, 1e-12)

    def add(self, logits: Tensor, mask: Tensor) -> list[tuple[slice, Tensor]]:
        """Add all sums; returns some images each and their gradient (h, B, K, w) times the divisor, where it's wanted.

        logits: (B, K, h, w), mask: (B, H, W).
        """
        (count, classes), width = logits.shape[:2], mask.shape[2]
        # upsampled rows, of one image each, that are worked on at a time
        lines = CHUNK * torch.get_num_threads() // (classes * width * self.dtype.itemsize)
        together = min(count, max(1, lines // ROWS))
        down = self.upsampling.rows.bands(max(1, lines // together), self.dtype)
        across = self.upsampling.columns.bands(COLUMNS, self.dtype)
        some = [slice(start, start + together) for start in range(0, count, together)]
        return [(each, self._add(logits[each], mask[each], down, across)) for each in some]

    def _add(self, logits: Tensor, mask: Tensor, down: list[Band], across: list[Band]) -> Tensor:
        coarse = logits.permute(2, 0, 1, 3).to(self.dtype, copy=True, memory_format=torch.contiguous_format)
        low, high = coarse.aminmax()
        narrow = bool(high - low < NARROW)
        if narrow:
            coarse -= high  # what is upsampled from them is shifted as much
        labels = _narrowed(mask).transpose(0, 1).contiguous().unsqueeze(2)  # (H, B, 1, W)
        labelled = labels != self.targets.ignore
        labels = labels * labelled.view(torch.uint8)
        wide = coarse.new_empty(*coarse.shape[:3], labels.shape[3])  # (h, B, K, W)
        for few, many, share in across:
            torch.mm(coarse.flatten(0, 2)[:, few], share, out=wide.flatten(0, 2)[:, many])
        slopes = torch.zeros_like(wide) if self.with_gradient else wide
        weight = labelled.view(torch.uint8).to(self.dtype)
        if self.targets.even is None:
            weight *= self.targets.weights.take(labels.long())
        else:
            weight *= self.targets.even
        pull, own = weight, weight * -self.targets.rest
        if self.targets.smoothed is not None:
            pull = labelled * self.targets.smoothed.sum() - own
        logit, total = torch.empty_like(weight), torch.empty_like(weight)
        # as few calls as can be in the loop: on small images they take as long as the work
        step = down[0][1].stop
        parts = zip(down, *(each.split(step) for each in (labels, labelled, pull, own, logit, total)), strict=True)
        lines, sums = wide.flatten(1), slopes.flatten(1)
        fine = wide.new_empty(step, *wide.shape[1:])  # (rows, B, K, W), one for all bands stays in the cache
        for (few, _, share), *pixels in parts:
            fine = fine[: share.shape[1]]
            torch.mm(share.T, lines[few], out=fine.flatten(1))
            if not narrow:
                fine -= fine.amax(2, keepdim=True)
            self._replace(fine, *pixels)
            if self.with_gradient:
                sums[few].addmm_(share, fine.flatten(1))
        self.weight += weight.sum().item()
        self.loss += torch.dot(pull.flatten(), total.log_().flatten()).item()
        self.loss += torch.dot(own.flatten(), logit.flatten()).item()
        if self.with_gradient:
            coarse.zero_()
            for few, many, share in across:
                coarse.flatten(0, 2)[:, few].addmm_(slopes.flatten(0, 2)[:, many], share.T)
        return coarse

    def _replace(
        self,
        logits: Tensor,
        labels: Tensor,
        labelled: Tensor,
        pull: Tensor,
        own: Tensor,
        logit: Tensor,
        total: Tensor,
    ) -> None:
        """Put the gradient of some rows (times the divisor) in the place of their logits (rows, B, K, W).

        All others are (rows, B, 1, W). labels: 0 where not labelled; pull: of the softmax in the gradient, which is
        what all classes weigh in the pixel's loss; own: of the pixel's class in the gradient. Filled in: the logit of
        that class, and the sum of the exponentials of all.
        """
        index, smoothed = labels.long(), self.targets.smoothed
        torch.gather(logits, 2, index, out=logit)
        if smoothed is not None:
            self.loss -= ((smoothed @ logits) * labelled.squeeze(2)).sum().item()
        torch.sum(logits.exp_(), 2, keepdim=True, out=total)
        if not self.with_gradient:
            return
        logits *= pull / total
        logits.scatter_add_(2, index, own)
        if smoothed is not None:
            logits.addcmul_(smoothed[:, None], labelled, value=-1)


def _narrowed(mask: Tensor) -> Tensor:
    """As bytes, which are several times as fast to work with, if all labels fit."""
    if mask.dtype != torch.uint8:
        low, high = mask.aminmax()
        if low >= 0 and high <= 255:
            return mask.to(torch.uint8)
    return mask
