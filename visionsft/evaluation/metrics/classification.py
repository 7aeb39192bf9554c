"""Classification metrics: from the probabilities and the true classes of images to every number.

Images have one class each (truth ``(N,)``) or any number of them (truth ``(N, K)`` of 0 and 1). Both are decided
into ``(N, K) bool``, so that one definition of recall, precision and F1 serves both. A number that isn't defined
(the recall of a class without images, say) is nan, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from visionsft.evaluation.metrics.segmentation import class_scores, number, ratio, without_nan

BINS = 15
"""Of equal width, as in Guo et al. 2017."""
TOP = (2, 3, 5)
"""The k of top-k accuracy, as far as there are more classes."""

LABEL_DEFINITIONS = {
    "accuracy": "share of the images whose classes are predicted right: all of them, where an image has several",
    "top_k": "share of the images whose class is among the k most probable ones",
    "macro_f1": "unweighted mean of F1 over the classes in truth or prediction",
    "mean_recall": "unweighted mean of recall over the classes in truth (balanced accuracy)",
    "mean_average_precision": "unweighted mean of average precision over the classes in truth",
    "average_precision": "of the class against the rest: sum over falling probabilities of precision times the "
    "growth of recall, not interpolated, equal probabilities at once (as scikit-learn's)",
    "ece": f"expected calibration error: {BINS} bins of equal width, mean of |share that is right - mean "
    "probability| weighted by the bins' counts; of the most probable class, or of all classes of all images "
    "where an image has several",
    "recall": "tp / (tp + fn): share of the class's images that are found",
    "precision": "tp / (tp + fp): share of the images predicted as the class that are it",
    "f1": "2 tp / (2 tp + fp + fn)",
    "images": "of the class in truth",
    "predicted": "images that are predicted as the class",
}
"""What each number means; written beside the numbers."""


# ------------------------------------------------------------------------------------------------ deciding


def one_hot(labels: NDArray[Any], num_classes: int) -> NDArray[np.bool_]:
    """(N,) class indices, or (N, K) of 0 and 1 -> (N, K) bool."""
    if labels.ndim == 2:
        return labels > 0.5
    return labels[:, None] == np.arange(num_classes)


def decide(probabilities: NDArray[Any], thresholds: NDArray[Any] | None) -> NDArray[np.bool_]:
    """(N, K) -> (N, K) bool: the most probable class, or with thresholds (K,) every class that reaches its own."""
    if thresholds is not None:
        return probabilities >= thresholds
    return one_hot(probabilities.argmax(axis=1), probabilities.shape[1])


def label_counts(decided: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N, K) each -> (N, 3, K): right, in truth and predicted; sums over images give `class_scores` all it needs."""
    return np.stack([decided & truth, truth, decided], axis=1).astype(np.int64)


def top_hits(probabilities: NDArray[Any], truth: NDArray[np.bool_]) -> dict[int, Any]:
    """By k, (N,) whether the one true class is among the k most probable; ties are decided for lower indices."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    found = np.take_along_axis(truth, order, axis=1)
    return {k: np.any(found[:, :k], axis=1) for k in TOP if k < probabilities.shape[1]}


def certainty(probabilities: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.float32]:
    """(N, K), and (N,) or (N, K) -> (N,) probability of what is true: of the class, or the lowest one among all
    answers of an image."""
    truth = one_hot(labels, probabilities.shape[1])
    right = np.where(truth, probabilities, 1 - probabilities if labels.ndim == 2 else 1)
    lowest: NDArray[np.float32] = right.min(axis=1)
    return lowest


# ------------------------------------------------------------------------------------------------- reading


def average_precision(
    probabilities: NDArray[Any], truth: NDArray[np.bool_], weights: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Of one class: (N,) each, and weights (..., N) of the images -> (...); nan without true images."""
    weights = np.ones(len(truth)) if weights is None else weights
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # equal probabilities at once
    taken = np.cumsum(weights[..., order], axis=-1, dtype=np.float64)[..., ends]
    right = np.cumsum(weights[..., order] * truth[order], axis=-1, dtype=np.float64)[..., ends]
    growth = np.diff(right, axis=-1, prepend=0.0)
    area = (growth * np.divide(right, taken, out=np.zeros_like(right), where=taken > 0)).sum(axis=-1)
    return ratio(area, right[..., -1])


def class_average_precisions(
    probabilities: NDArray[Any], truth: NDArray[np.bool_], weights: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """The same of K classes: (N, K) each, weights (..., N) -> (..., K)."""
    pairs = zip(probabilities.T, truth.T, strict=True)
    return np.stack([average_precision(*pair, weights) for pair in pairs], axis=-1)


def label_reliability(
    probabilities: NDArray[Any],
    right: NDArray[np.bool_],
    *,
    owners: NDArray[np.int64] | None = None,
    count: int = 1,
) -> NDArray[np.float64]:
    """(P,) each -> (BINS, 3): answers in each bin, the sum of their probabilities, and how many are right.

    As `visionsft.evaluation.calibration` has it; a bin has its upper edge, not its lower one. owners: (P,) which of
    `count` images each answer is of -> (count, BINS, 3).
    """
    codes = np.clip(np.ceil(probabilities * BINS).astype(int), 1, BINS) - 1
    codes = codes if owners is None else codes + BINS * owners
    columns = (np.ones(len(codes)), probabilities, right)
    sums = np.stack([np.bincount(codes, column, count * BINS).astype(np.float64) for column in columns], axis=-1)
    return sums if owners is None else sums.reshape(count, BINS, 3)


@dataclass(frozen=True)
class LabelScore:
    """The numbers of one class; nan where a number isn't defined."""

    name: str
    recall: float
    precision: float
    f1: float
    average_precision: float
    images: int
    """In truth."""
    predicted: int


@dataclass(frozen=True)
class ClassificationScores:
    """What probabilities and truth say; `LABEL_DEFINITIONS` has the meaning of each number."""

    accuracy: float
    top_k: dict[int, float]
    """By k; none where an image has several classes."""
    macro_f1: float
    mean_recall: float
    mean_average_precision: float
    ece: float
    images: int
    per_class: tuple[LabelScore, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: None in place of nan."""
        return without_nan(asdict(self))

    def totals(self) -> dict[str, float]:
        """The metrics over all classes by name, top-k as "top_k.3"."""
        top = {f"top_k.{k}": value for k, value in self.top_k.items()}
        names = ("macro_f1", "mean_recall", "mean_average_precision")
        return {"accuracy": self.accuracy, **top, **{name: getattr(self, name) for name in names}}

    def table(self) -> str:
        """A text table: one row a class, then the totals."""
        width = max(len("class"), *(len(row.name) for row in self.per_class))
        head = f"{'class':{width}}  recall  precision      F1      AP  images  predicted"
        lines = [head, "-" * len(head)]
        for row in self.per_class:
            numbers = f"{number(row.recall):>6}  {number(row.precision):>9}  {number(row.f1):>6}"
            numbers += f"  {number(row.average_precision):>6}  {row.images:>6,}  {row.predicted:>9,}"
            lines.append(f"{row.name:{width}}  {numbers}")
        return "\n".join([*lines, "-" * len(head), *self._total_lines()])

    def _total_lines(self) -> list[str]:
        rows = [*self.totals().items(), ("ece", self.ece)]
        return [f"{title(name):24}{number(value)}" for name, value in rows]


def title(metric: str) -> str:
    """A metric's name for readers: 'top_k.3' is 'top-3 accuracy'."""
    if metric.startswith("top_k."):
        return f"top-{metric.removeprefix('top_k.')} accuracy"
    known = {"macro_f1": "macro F1", "ece": "calibration error (ECE)"}
    return known.get(metric, metric.replace("_", " "))


def summarise_labels(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    names: Sequence[str],
    *,
    thresholds: NDArray[Any] | None = None,
) -> ClassificationScores:
    """Every number. probabilities: (N, K); labels: (N,) class indices, or (N, K) of 0 and 1 with thresholds (K,)."""
    truth, decided = one_hot(labels, len(names)), decide(probabilities, thresholds)
    margins = label_counts(decided, truth).sum(axis=0)
    scores, precisions = class_scores(margins), class_average_precisions(probabilities, truth)
    columns = (scores["recall"], scores["precision"], scores["f1"], precisions, margins[1], margins[2])
    top = top_hits(probabilities, truth) if thresholds is None else {}
    return ClassificationScores(
        accuracy=float((decided == truth).all(axis=1).mean()),
        top_k={k: float(hits.mean()) for k, hits in top.items()},
        macro_f1=mean_of_defined(scores["f1"]),
        mean_recall=mean_of_defined(scores["recall"]),
        mean_average_precision=mean_of_defined(precisions),
        ece=_calibration_error(probabilities, truth, thresholds),
        images=len(truth),
        per_class=tuple(
            LabelScore(*row) for row in zip(names, *(column.tolist() for column in columns), strict=True)
        ),
    )


def mean_of_defined(values: NDArray[np.float64]) -> Any:
    """Mean over the last axis of what is defined; nan where nothing is."""
    defined = ~np.isnan(values)
    mean = ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))
    return float(mean) if mean.ndim == 0 else mean


def _calibration_error(
    probabilities: NDArray[Any], truth: NDArray[np.bool_], thresholds: NDArray[Any] | None
) -> float:
    if thresholds is None:
        best = probabilities.argmax(axis=1)
        rows = np.arange(len(best))
        histogram = label_reliability(probabilities[rows, best], truth[rows, best])
    else:
        histogram = label_reliability(probabilities.ravel(), truth.ravel())
    count, confidence, right = histogram.T
    return float(np.abs(right - confidence).sum() / max(count.sum(), 1))


def best_thresholds(probabilities: NDArray[Any], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N, K) each -> (K,): the threshold of highest F1 of each class, halfway to the next lower probability.

    Of several the highest; 0.5 for a class without true images.
    """
    return np.array([_best_threshold(*pair) for pair in zip(probabilities.T, truth.T, strict=True)])


def _best_threshold(probabilities: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    if not truth.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order].astype(np.float64)
    lower = np.append(ordered[1:], 0.0)
    f1 = 2 * np.cumsum(truth[order]) / (np.arange(1, len(order) + 1) + truth.sum())
    f1[lower == ordered] = -1.0  # a threshold can't part equal probabilities
    best = int(f1.argmax())
    return float((ordered[best] + lower[best]) / 2)


class LabelAnswers(Metric):
    """The logits and labels of everything it has seen, over all processes: for training loops.

    ``update(logits, label)``: (B, K) float, and (B,) int or (B, K) float. ``compute()``: both, of all images.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    logits: list[Tensor]
    label: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("label", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Keep one batch."""
        self.logits.append(logits.detach().float())
        self.label.append(label)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(N, K) float32 and (N,) or (N, K)."""
        logits, label = self.logits, self.label
        return (torch.cat(logits), torch.cat(label)) if isinstance(logits, list) else (logits, label)
