"""Calibration: how far a model's probabilities are from how often it is right.

Everything is read from reliability histograms: ``(..., bins, 3) float64`` with, for each bin of probability,
the pixels in it, the sum of their probabilities and how many of them were right. Histograms of samples add up
to that of the split, so they can be counted in one pass, kept by sample and resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datamodules.batch import IGNORE
from visionsft.evaluation.intervals import (
    Ends,
    Unit,
    effective_groups,
    group_sums,
    interval,
    pair,
    resample,
    too_few,
)
from visionsft.evaluation.metrics.segmentation import ratio, without_nan

BINS = 15
"""Of equal width, as in Guo et al. 2017."""
STEP = 4
"""An evaluation counts every fourth pixel of every fourth row: neighbours tell nearly the same."""
SAMPLE = 200_000
"""Pixels at most from which a temperature is fitted."""
TEMPERATURES = (0.05, 20.0)
"""Within these the temperature is searched."""

DEFINITIONS = {
    "ece": f"expected calibration error: {BINS} bins of equal width of the highest probability, mean of "
    "|share that is right - mean probability| weighted by the bins' pixels",
    "ece_per_class": "the same of each class's own probability in all pixels, one class against the rest; most "
    "pixels have a probability near 0, so these numbers are small",
    "pixels": f"labelled pixels on a lattice: every {STEP}th pixel of every {STEP}th row",
    "temperature": "the logits are divided by it before the softmax, which changes no class; fitted on "
    "validation by the negative log-likelihood (Guo et al. 2017)",
}
"""What each number means; written beside the numbers."""


# -------------------------------------------------------------------------------------------- histograms


def reliability(
    logits: Tensor, truth: Tensor, *, temperature: float = 1.0, classes: Tensor | None = None
) -> NDArray[np.float64]:
    """Count B samples: ``(K, B, H, W) float`` and ``(B, H, W)``, 255 = left out -> ``(B, K + 1, BINS, 3) float64``.

    Row 0 is the highest probability, right where its class is the true one; row 1 + k is class k's own
    probability, right where the truth is k. A bin has its upper edge, not its lower one (as scikit-learn's).
    classes: (B, H, W) integer, the classes of the highest logits, if they are known.
    """
    labels = truth.reshape(-1)
    planes = logits.reshape(len(logits), -1).float()
    scores = torch.empty(len(planes) + 1, planes.shape[1], device=planes.device)
    torch.softmax(planes if temperature == 1 else planes / temperature, 0, out=scores[1:])
    torch.amax(scores[1:], 0, out=scores[0])
    codes = _codes(scores, labels == IGNORE, samples=len(truth))
    found = planes.argmax(0) if classes is None else classes.reshape(-1)
    own = labels.long().clamp(max=len(planes) - 1) + 1  # a pixel that is left out has the same code in all rows
    # each pixel is right in one class's row, and in the first if that class is its best
    right = torch.cat([codes.gather(0, own[None])[0], codes[0, found == labels]])
    return _histogram(scores, codes, right=right, samples=len(truth))


def best_reliability(logits: Tensor, truth: Tensor, *, temperature: float = 1.0) -> NDArray[np.float64]:
    """Row 0 of `reliability` alone, in a fraction of its time: ``(BINS, 3) float64``."""
    kept = truth != IGNORE
    best, found = (logits[:, kept].float() / temperature).softmax(0).max(0)
    codes = _codes(best[None], torch.zeros_like(found, dtype=torch.bool))
    return _histogram(best[None], codes, right=codes[0, found == truth[kept]])[0, 0]


def _codes(scores: Tensor, left_out: Tensor, *, samples: int = 1) -> Tensor:
    """scores: (R, P) float32 in 0..1, of samples of as many pixels one after another -> (R, P), which of the
    samples * R * BINS bins each is in; one more where left_out (P,) is True.

    Counting is bound by the bytes that are read, and so small codes count faster.
    """
    size = len(scores) * BINS
    kind = torch.int16 if samples * size <= torch.iinfo(torch.int16).max else torch.int32
    rows = torch.arange(0, size, BINS, device=scores.device, dtype=kind)[:, None]
    codes = scores.mul(BINS).ceil_().sub_(1).clamp_(0, BINS - 1).to(kind).add_(rows)
    if samples > 1:
        starts = torch.arange(0, samples * size, size, device=scores.device, dtype=kind)
        codes.view(len(scores), samples, -1).add_(starts[:, None])
    return codes.masked_fill_(left_out, samples * size)


def _histogram(scores: Tensor, codes: Tensor, *, right: Tensor, samples: int = 1) -> NDArray[np.float64]:
    """scores, codes: (R, P); right: the codes of those that are right -> (samples, R, BINS, 3)."""
    size, flat = samples * len(scores) * BINS, codes.ravel()
    # one count for both: each pixel adds its probability, and a unit that is more than all of them can sum up to
    unit = 2.0 ** scores.shape[1].bit_length()
    sums = torch.bincount(flat, weights=scores.ravel().double().add_(unit), minlength=size + 1)
    pixels = (sums / unit).floor_()
    columns = [pixels, sums - pixels * unit, torch.bincount(right, minlength=size + 1)]
    found = torch.stack([column[:size].double() for column in columns], -1)
    return found.reshape(samples, -1, BINS, 3).cpu().numpy()


def calibration_error(histogram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected calibration error of each histogram: ``(..., bins, 3) -> (...)``; nan without pixels."""
    pixels, confidence, right = np.moveaxis(histogram, -1, 0)
    return ratio(np.abs(right - confidence).sum(-1), pixels.sum(-1))


def equal_mass_error(confidence: NDArray[np.float64], right: NDArray[np.bool_], *, bins: int = BINS) -> float:
    """The same error with bins of equal pixel counts, which needs all pixels at once: two ``(P,)`` arrays.

    It doesn't depend on where the edges of equal width happen to lie (Nguyen and O'Connor 2015).
    """
    order = np.argsort(confidence, kind="stable")
    gaps = np.array_split(right[order] - confidence[order], bins)
    return float(sum(abs(gap.sum()) for gap in gaps) / len(order))


@dataclass(frozen=True)
class ErrorInterval:
    """The interval of a calibration error; None with the reason."""

    ends: Ends | None
    note: str | None

    def as_dict(self) -> dict[str, Any]:
        """For scores.json, beside the error."""
        return {"interval": self.ends and list(self.ends), "interval_note": self.note}

    def show(self) -> str:
        """For a table."""
        return f"no interval: {self.note}" if self.ends is None else "[{:.4f}, {:.4f}]".format(*self.ends)


def error_interval(
    histograms: NDArray[np.float64], groups: Sequence[str], *, unit: Unit, counted: str = "pixels"
) -> ErrorInterval:
    """95 % bootstrap by group, from each sample's histogram (N, BINS, 3); see `visionsft.evaluation.intervals`.

    The number is too large where bins hold few independent samples, since chance alone drives share and probability
    apart (Nixon et al. 2019). Draws are so again beyond it, by about as much: the lower end takes that off, the upper
    end doesn't, so that it is safe. Simulated with 10 to 200 groups that err alike, 95-98 % hold an error of 0.05 or
    0.15; one of nearly 0 only 79 %, of which the rest lie above it.
    """
    gaps, counts = histograms[..., 2] - histograms[..., 1], histograms[..., 0].sum(axis=-1)
    _, sums = group_sums(np.concatenate([gaps, counts[:, None]], axis=-1), groups)
    effective = effective_groups(sums[:, -1])
    note = too_few(int((sums[:, -1] > 0).sum()), float(effective), unit, counted=counted)
    if note:
        return ErrorInterval(None, note)
    drawn = resample(sums)
    values = ratio(np.abs(drawn[:, :-1]).sum(axis=-1), drawn[:, -1])
    estimate = calibration_error(histograms.sum(axis=0))
    low, _ = interval(values, 2 * estimate - values.mean(), groups=effective, method="t")
    _, high = interval(values, estimate, groups=effective)
    return ErrorInterval(pair(max(0.0, float(low)), high), None)


def describe(
    histogram: NDArray[np.float64],
    names: Sequence[str],
    *,
    counted: str = "pixels",
    definitions: Mapping[str, str] = DEFINITIONS,
) -> dict[str, Any]:
    """The numbers of a ``(K + 1, BINS, 3)`` histogram for scores.json; None where a bin is empty.

    counted: key of the numbers of what was judged.
    """
    top, *classes = [_curve(row, counted) for row in histogram]
    overall, *errors = calibration_error(histogram).tolist()
    report = {
        "ece": overall,
        "ece_per_class": dict(zip(names, errors, strict=True)),
        counted: int(histogram[0, :, 0].sum()),
        "bins": top,
        "bins_per_class": dict(zip(names, classes, strict=True)),
        "definition": dict(definitions),
    }
    return without_nan(report)


def _curve(histogram: NDArray[np.float64], counted: str) -> list[dict[str, float]]:
    """One reliability curve: (BINS, 3) -> a dict a bin."""
    pixels, confidence, right = histogram.T
    columns = (ratio(confidence, pixels), ratio(right, pixels))
    rows = zip(pixels.astype(int).tolist(), *(column.tolist() for column in columns), strict=True)
    return [
        {"from": i / BINS, "to": (i + 1) / BINS, counted: count, "confidence": mean, "accuracy": share}
        for i, (count, mean, share) in enumerate(rows)
    ]


# ------------------------------------------------------------------------------------------- temperature


class PixelSample:
    """A uniform sample without replacement of the labelled pixels of a stream, bounded and seeded.

    Each pixel draws a random number, and those of the smallest numbers stay: so a pixel's chance doesn't
    depend on the image that it is in.
    """

    def __init__(self, size: int = SAMPLE, *, seed: int = 0) -> None:
        self.size = size
        self.seen = 0
        """Labelled pixels so far."""
        self._random = torch.Generator().manual_seed(seed)
        self._limit = 1.0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, logits: Tensor, mask: Tensor) -> None:
        """logits: (B, K, H, W) float; mask: (B, H, W) integer, 255 = left out."""
        numbers = torch.rand(mask.shape, generator=self._random, dtype=torch.float64)
        labelled = mask != IGNORE
        self.seen += int(labelled.sum())
        kept = labelled & (numbers < self._limit)
        if int(kept.sum()) > self.size:  # of one batch, too, no more than that can stay
            self._limit = float(numbers[kept].kthvalue(self.size).values)
            kept &= numbers <= self._limit
        planes = logits.movedim(1, -1)[kept.to(logits.device)]
        self._parts.append((planes.float().cpu(), mask[kept], numbers[kept]))
        if sum(len(part[1]) for part in self._parts) > 2 * self.size:
            self._shrink()

    def pixels(self) -> tuple[Tensor, Tensor]:
        """Logits (P, K) float32 and truth (P,) int64 of the sample."""
        self._shrink()
        logits, truth, _ = self._parts[0]
        return logits, truth.long()

    def _shrink(self) -> None:
        logits, truth, numbers = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        order = numbers.argsort()[: self.size]
        self._parts = [(logits[order], truth[order], numbers[order])]
        if len(order) == self.size:
            self._limit = float(numbers[order[-1]])


def fit_temperature(logits: Tensor, truth: Tensor) -> float:
    """The temperature of lowest negative log-likelihood (Guo et al. 2017): ``(P, K) float`` and ``(P,)``.

    The loss is convex in 1 / temperature, so the sign of its slope there, mean(E[z] - z of the true class),
    leads to the only minimum. One that lies outside TEMPERATURES gives the nearer end.
    """
    logits = logits.double()
    true = logits.gather(1, truth[:, None]).mean()
    low, high = np.log(TEMPERATURES)
    for _ in range(32):
        middle = (low + high) / 2
        expected = ((logits / np.exp(middle)).softmax(1) * logits).sum(1).mean()
        if expected > true:  # too confident: warmer
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def measure(logits: Tensor, truth: Tensor, *, temperature: float = 1.0) -> dict[str, float]:
    """Negative log-likelihood and calibration errors of pixels: ``(P, K) float`` and ``(P,) int64``."""
    scaled = logits.float() / temperature
    confidence, found = scaled.softmax(1).max(1)
    return {
        "nll": float(F.cross_entropy(scaled.double(), truth)),
        "ece": float(calibration_error(best_reliability(scaled.T, truth))),
        "ece_equal_mass": equal_mass_error(confidence.double().numpy(), (found == truth).numpy()),
    }
