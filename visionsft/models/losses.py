"""Segmentation losses: weighted sums of cross-entropy, dice, focal and Lovász terms over the labelled pixels.

All terms share one float32 log-softmax. Dice and Lovász have the definitions of segmentation_models_pytorch
(smp), and the focal loss that of smp's softmax form (its FocalLoss has a sigmoid for each class, which is
for classes that don't exclude each other). They are written anew because smp's take several times as long on
a CPU, seconds for a batch of camera frames: benchmarks/heads.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionsft.errors import ConfigError, nearest
from visionsft.models.cross_entropy import upsampled_cross_entropy
from visionsft.models.upsampling import Upsampling

IGNORE = 255
"""The label that no loss counts (datamodules.batch.IGNORE; importing it here would load rasterio)."""


@dataclass(frozen=True)
class Scores:
    """What a loss term sees of a batch."""

    log_p: Tensor
    """(B, K, H, W) float32, log-probabilities."""
    mask: Tensor
    """(B, H, W) int64, class index; 0 where not valid."""
    valid: Tensor
    """(B, H, W) bool: the pixel has a label."""

    @cached_property
    def log_p_true(self) -> Tensor:
        """(B, H, W): the log-probability of each pixel's class; of class 0 where not valid."""
        return self.log_p.gather(1, self.mask[:, None])[:, 0]

    @cached_property
    def p(self) -> Tensor:
        """(B, K, H, W), probabilities."""
        return self.log_p.exp()

    @cached_property
    def counts(self) -> Tensor:
        """(K,) int64: labelled pixels of each class."""
        return torch.bincount(self.mask[self.valid], minlength=self.log_p.shape[1])

    def class_sums(self, values: Tensor) -> Tensor:
        """values: (B, K, H, W) -> (K,), their sums over labelled pixels, without a masked copy."""
        return (values.flatten(2) @ self.valid.flatten(1).to(values.dtype)[..., None]).sum((0, 2))


class CrossEntropy(nn.Module):
    """torch.nn.functional.cross_entropy: the mean weighs each pixel by its class."""

    weights: Tensor

    def __init__(self, weights: Tensor, *, label_smoothing: float = 0.0) -> None:
        """weights: (K,) float32, one a class."""
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)  # recomputed from the data, never restored
        self.label_smoothing = label_smoothing

    def forward(self, scores: Scores) -> Tensor:
        """Scalar; 0 without labelled pixels."""
        weights = self.weights[scores.mask] * scores.valid  # (B, H, W)
        loss = -(scores.log_p_true * weights).sum()
        if self.label_smoothing:
            uniform = -(scores.class_sums(scores.log_p) * self.weights).sum()
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing / len(self.weights) * uniform
        return loss / _not_zero(weights.sum())

    def of_coarse(self, logits: Tensor, upsampling: Upsampling, mask: Tensor) -> Tensor:
        """The same of logits (B, K, h, w) that are yet to be upsampled, on a CPU; mask: (B, H, W) int64 or uint8."""
        return upsampled_cross_entropy(
            logits, mask, upsampling,
            weights=self.weights, ignore=IGNORE, label_smoothing=self.label_smoothing,
        )  # fmt: skip


class Dice(nn.Module):
    """1 - soft dice coefficient of each class over the batch; the mean of all K, absent classes being 0."""

    def __init__(self, *, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, scores: Scores) -> Tensor:
        """Scalar; 0 without labelled pixels."""
        counts = scores.counts
        p_true = scores.log_p_true.exp() * scores.valid
        overlap = torch.zeros(len(counts), device=p_true.device)
        overlap = overlap.index_add(0, scores.mask.flatten(), p_true.flatten())
        predicted = scores.class_sums(scores.p)
        dice = (2 * overlap + 2 * self.smooth) / (predicted + counts + 2 * self.smooth).clamp_min(1e-7)
        return ((1 - dice) * (counts > 0)).mean()


class Focal(nn.Module):
    """Cross-entropy times (1 - p) ** gamma, p the probability of the true class (Lin et al. 2017)."""

    def __init__(self, *, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, scores: Scores) -> Tensor:
        """Scalar; 0 without labelled pixels."""
        # The floor keeps the gradient finite where p is 1 and gamma below 1.
        missing = (-scores.log_p_true.expm1()).clamp_min(1e-6)
        loss = -(missing**self.gamma * scores.log_p_true * scores.valid).sum()
        return loss / _not_zero(scores.valid.sum())


class Lovasz(nn.Module):
    """Lovász-softmax over the whole batch (Berman et al. 2018), the mean of the classes that are present.

    A class's loss is the sum of the pixels' errors (1 - p on the class, p elsewhere) times slopes: how much
    the class's Jaccard loss grows when the pixels are added in the order of falling errors. Instead of being
    sorted the pixels are counted in `bins` of equal width, and those of a bin share the mean of their slopes:
    a tenth of the time, and the loss changes by far less than a bin's width.
    """

    def __init__(self, *, bins: int = 2**13) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, scores: Scores) -> Tensor:
        """Scalar; 0 without labelled pixels."""
        present = scores.counts.nonzero().flatten().tolist()
        valid = scores.valid.float()
        labels = scores.mask.where(scores.valid, IGNORE).to(torch.uint8)  # compared with every class below
        slopes = torch.zeros_like(scores.p)  # of a class's loss by its p
        offset = scores.p.new_zeros(())
        for k in present:  # one class at a time keeps the temporary maps small
            slopes[:, k], on_class = self.slopes(scores.p[:, k], (labels == k).float(), valid)
            offset += on_class
        return ((scores.p * slopes).sum() + offset) / max(len(present), 1)

    @torch.no_grad()
    def slopes(self, p: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes of one class's loss by its probability p, and the sum of those on the class, positive.

        All maps are (B, H, W) float32; truth: 1 on the class. Sum of slopes * p, plus the second: the loss.
        """
        code = (p * valid).sub_(truth).abs_().mul_(self.bins - 1).add_(truth, alpha=self.bins).int()
        off, on = torch.bincount(code.flatten(), minlength=2 * self.bins).view(2, self.bins).double()
        off[0] -= valid.numel() - valid.sum(dtype=torch.float64)  # pixels without a label
        off_slopes, on_slopes = _mean_slopes(off, on)
        table = torch.cat([off_slopes, -on_slopes]).float()
        return table.index_select(0, code.flatten()).view_as(p).mul_(valid), (on_slopes * on).sum()


def _mean_slopes(off: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
    """Mean growth of the Jaccard loss by a pixel off and on the class; (M,) pixels a bin, errors rising.

    The shares of a bin's two kinds of pixels depend on which kind is added first: the mean of both orders.
    """
    off_after, on_after = off.flip(0).cumsum(0).flip(0), on.flip(0).cumsum(0).flip(0)
    off_before, on_before = off_after - off, on_after - on
    total = on.sum()

    def jaccard(off_added: Tensor, on_added: Tensor) -> Tensor:
        return 1 - (total - on_added) / (total + off_added)

    growth = jaccard(off_after, on_after) - jaccard(off_before, on_before)
    difference = jaccard(off_after, on_before) - jaccard(off_before, on_after)
    return (growth + difference) / 2 / off.clamp_min(1), (growth - difference) / 2 / on.clamp_min(1)


class SegmentationLoss(nn.Module):
    """The sum of terms times their factors."""

    def __init__(self, terms: Sequence[nn.Module], factors: Sequence[float]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.factors = tuple(factors)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """logits: (B, K, H, W) of any float dtype, mask: (B, H, W) int64 with 255 = ignore -> float32 scalar.

        Without a labelled pixel the loss is 0, and so is its gradient.
        """
        valid = mask != IGNORE
        # bfloat16 is too coarse, and over channels_last logits a softmax takes twice the time.
        with torch.autocast(logits.device.type, enabled=False):
            log_p = F.log_softmax(logits.float().contiguous(), dim=1)
            scores = Scores(log_p, mask.where(valid, 0), valid)
            losses = [factor * term(scores) for factor, term in zip(self.factors, self.terms, strict=True)]
            return torch.stack(losses).sum()

    def of_coarse(self, logits: Tensor, upsampling: Upsampling, mask: Tensor) -> Tensor:
        """The loss of upsampling(logits), which cross-entropy alone takes some rows at a time on a CPU.

        logits: (B, K, h, w), mask: (B, H, W) int64 or uint8, which the CPU is faster with.
        """
        if logits.device.type != "cpu" or not all(isinstance(term, CrossEntropy) for term in self.terms):
            loss: Tensor = self(upsampling(logits), mask.long())
            return loss
        losses = [
            factor * term.of_coarse(logits, upsampling, mask)  # type: ignore[operator]
            for factor, term in zip(self.factors, self.terms, strict=True)
        ]
        return torch.stack(losses).sum()


class ImageLoss(nn.Module):
    """Cross-entropy of images with one label each: torch's, whose mean weighs each image by its class."""

    weights: Tensor

    def __init__(self, weights: Tensor, *, label_smoothing: float = 0.0) -> None:
        """weights: (K,) float32, one a class."""
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)  # recomputed from the data, never restored
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """logits: (B, K) of any float dtype, label: (B,) int64 -> float32 scalar."""
        return F.cross_entropy(
            logits.float(), label, weight=self.weights, label_smoothing=self.label_smoothing
        )


class LabelsLoss(nn.Module):
    """Binary cross-entropy of images with any number of labels: the mean over images and classes.

    The weights count where an image has the class: as much weight as a rare class has, its few images pull.
    Smoothing moves 0 and 1 towards a half.
    """

    weights: Tensor

    def __init__(self, weights: Tensor, *, label_smoothing: float = 0.0) -> None:
        """weights: (K,) float32, one a class."""
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """logits: (B, K) of any float dtype, label: (B, K) float32 of 0 and 1 -> float32 scalar."""
        target = label * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=self.weights)


def class_weights(counts: Tensor, kind: str) -> Tensor:
    """Weights (K,) float32 of classes with `counts` (K,) pixels or images; the mean over the classes that occur is 1.

    'none': ones. 'inverse': proportional to 1 / counts (median frequency balancing, Eigen and Fergus 2015).
    'effective': proportional to 1 / (1 - beta ** counts) (Cui et al. 2019) with beta = 1 - 1 / N, where N is
    the median count of the classes that occur. Cui's betas, 0.9 to 0.9999, are for counts of images: of
    pixels they give equal weights. With the median, rare classes get nearly the weights of 'inverse', and
    common ones nearly equal weights.

    A class that never occurs gets weight 1: only label smoothing ever uses it.
    """
    present = counts > 0
    weights = torch.ones(len(counts), dtype=torch.float64)
    pixels = counts[present].double()
    if kind == "none" or not len(pixels):
        return weights.float()
    if kind == "inverse":
        raw = 1 / pixels
    elif kind == "effective":
        raw = 1 / -torch.expm1(pixels * torch.log1p(-1 / pixels.quantile(0.5)))  # beta ** n, without rounding
    else:
        raise ConfigError(f"class_weights '{kind}': allowed are none, inverse, effective")
    weights[present] = raw / raw.mean()
    return weights.float()


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "dice": Dice,
    "focal": Focal,
    "lovasz": Lovasz,
}
"""Loss terms by their name in a config."""


def build_loss(
    terms: Sequence[Mapping[str, Any] | Iterable[tuple[str, Any]]], *, class_counts: Tensor
) -> SegmentationLoss:
    """The sum of `terms`: mappings (or a config's sections) of `name`, `weight` and the term's own options.

    class_counts: (K,) pixels of each class in the training split, for the class weights of cross-entropy.
    """
    built, factors = [], []
    for term in terms:
        options = dict(term)
        name, factor = options.pop("name"), options.pop("weight", 1.0)
        if name not in LOSSES:
            close = nearest(name, LOSSES)
            hint = f"; did you mean '{close}'?" if close else ""
            raise ConfigError(f"loss '{name}': no such loss{hint}; there are {', '.join(LOSSES)}")
        if name == "cross_entropy":
            options["weights"] = class_weights(class_counts, options.pop("class_weights", "none"))
        built.append(LOSSES[name](**options))
        factors.append(factor)
    return SegmentationLoss(built, factors)


def _not_zero(divisor: Tensor) -> Tensor:
    """Divisor of a sum over labelled pixels that is 0 where there are none."""
    return divisor.clamp_min(1e-12)
