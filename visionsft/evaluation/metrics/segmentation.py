"""Segmentation metrics: one confusion matrix, and every number that is read from it.

A confusion matrix is ``(K, K) int64``, rows = truth, columns = prediction, counted in pixels. Pixels whose
truth is 255 (unlabelled, nodata, out of bounds) are in no row. A number that isn't defined (the recall of a
class without truth, say) is nan, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from datamodules.batch import IGNORE

DEFINITIONS = {
    "mean_iou": "one confusion matrix over the whole split, unweighted mean over the classes in truth or "
    "prediction",
    "classes_present": "number of classes that occur in truth or prediction: mean_iou averages over them",
    "frequency_weighted_iou": "mean of the IoU of the classes in truth, weighted by their pixels there",
    "pixel_accuracy": "share of the labelled pixels that are predicted right",
    "mean_recall": "mean of the recall of the classes that occur in truth, each class counting the same",
    "iou": "tp / (tp + fp + fn) in pixels",
    "recall": "tp / (tp + fn): share of the class's true pixels that are found",
    "precision": "tp / (tp + fp): share of the pixels predicted as the class that are it",
    "f1": "2 tp / (2 tp + fp + fn)",
    "share": "the class's share of all labelled pixels",
    "pixels": "labelled pixels of the class in truth",
    "predicted": "labelled pixels that are predicted as the class",
}
"""What each number means; written beside the numbers."""


# ------------------------------------------------------------------------------------------------ counting

CHUNK = 2**18
"""Logits of which the largest are found at a time: they fit into a core's cache."""


def predict_classes(logits: Tensor) -> Tensor:
    """The class of highest logit: ``(B, K, H, W) float -> (B, H, W) uint8``; the first one where several tie.

    On a CPU ``argmax`` over dim 1 strides through memory for every pixel. A running maximum over whole class
    planes gives the same classes in vector instructions: 16 x 11 x 512 x 512 float32 in 0.1 s instead of 1 s.
    NumPy's are used, which take half of torch's time for comparisons.
    """
    if logits.is_cuda:
        return logits.argmax(1).to(torch.uint8)
    classes = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.uint8)
    step = max(1, CHUNK // max(logits.shape[1] * logits.shape[3], 1))
    for planes, found in zip(logits.detach(), classes.numpy(), strict=True):
        for top in range(0, planes.shape[1], step):
            rows = planes[:, top : top + step]
            # channels-last logits: one copy is cheaper than K strided reads, if it stays within the cache
            rows = rows if rows.stride(-1) == 1 else rows.contiguous()
            _find_largest(rows.float().numpy(), found[top : top + step])
    return classes


def _find_largest(planes: NDArray[np.float32], found: NDArray[np.uint8]) -> None:
    """planes: (K, H, W); found: (H, W) zeros, becomes the first of the largest planes."""
    best, larger = planes[0].copy(), np.empty(found.shape, bool)
    code = larger.view(np.uint8)
    for k in range(1, len(planes)):
        np.greater(planes[k], best, out=larger)
        # k only grows, so the larger of the code so far and the new one is the newer one
        np.multiply(code, np.uint8(k), out=code)
        np.maximum(found, code, out=found)
        np.maximum(best, planes[k], out=best)


def confusion_matrix(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Count pixels by (truth, prediction): two integer tensors of one shape -> ``(K, K) int64``.

    prediction: 0..K-1; truth: 0..K-1, or 255 for pixels that are left out.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {tuple(prediction.shape)}, truth is {tuple(truth.shape)}")
    prediction, truth = prediction.reshape(-1).to(torch.uint8), truth.reshape(-1).to(torch.uint8)
    if prediction.numel() and int(prediction.max()) >= num_classes:
        raise ValueError(f"prediction has the value {int(prediction.max())}; there are {num_classes} classes")
    if truth.numel() and int((truth + 1).max()) > num_classes:  # uint8: 255 + 1 is 0
        wrong = truth[(truth >= num_classes) & (truth != IGNORE)].unique().tolist()
        allowed = f"0..{num_classes - 1} and {IGNORE} (ignored)"
        raise ValueError(f"truth has the values {wrong}; allowed are {allowed}")
    # Codes of the smallest integer type: counting is bound by the bytes that are read.
    codes = truth.clamp(max=num_classes).to(_code_type(num_classes)).mul_(num_classes).add_(prediction)
    counts = torch.bincount(codes, minlength=(num_classes + 1) * num_classes)
    return counts[: num_classes * num_classes].reshape(num_classes, num_classes)


def _code_type(num_classes: int) -> torch.dtype:
    """Smallest integer type for the codes of K + 1 truth values (the last is 'ignored') x K predictions."""
    largest = (num_classes + 1) * num_classes - 1
    return next(kind for kind in (torch.uint8, torch.int16, torch.int32) if largest <= torch.iinfo(kind).max)


class SegmentationConfusion(Metric):
    """The confusion matrix of everything it has seen, summed over processes: for training loops.

    ``update(prediction, mask)``: logits (B, K, H, W) float or classes (B, H, W) int, and truth (B, H, W) int.
    ``compute()``: (K, K) int64, for `summarise`.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Count one batch."""
        classes = predict_classes(prediction.detach()) if prediction.is_floating_point() else prediction
        self.confusion += confusion_matrix(classes, mask, self.num_classes)

    def compute(self) -> Tensor:
        """Counts so far, over all processes."""
        return self.confusion


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class ClassScore:
    """The numbers of one class; nan where a number isn't defined."""

    name: str
    iou: float
    recall: float
    precision: float
    f1: float
    share: float
    """Of all labelled pixels."""
    pixels: int
    """In truth."""
    predicted: int
    """Labelled pixels that are predicted as this class."""


@dataclass(frozen=True)
class SegmentationScores:
    """What one confusion matrix says; `DEFINITIONS` has the meaning of each number."""

    mean_iou: float
    classes_present: int
    frequency_weighted_iou: float
    pixel_accuracy: float
    mean_recall: float
    pixels: int
    """Labelled pixels that were counted."""
    per_class: tuple[ClassScore, ...]

    @property
    def definition(self) -> str:
        """What `mean_iou` means, to be printed with it: other definitions give other numbers."""
        return f"{DEFINITIONS['mean_iou']} ({self.classes_present} of {len(self.per_class)} classes)"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: None in place of nan."""
        return without_nan(asdict(self))

    def table(self) -> str:
        """A text table: one row a class, then the totals and their definition."""
        width = max(len("class"), *(len(row.name) for row in self.per_class))
        head = f"{'class':{width}}     IoU  recall  precision      F1   share         pixels"
        lines = [head, "-" * len(head)]
        for row in self.per_class:
            numbers = f"{number(row.iou):>6}  {number(row.recall):>6}  {number(row.precision):>9}"
            numbers += f"  {number(row.f1):>6}  {_percent(row.share):>6}  {row.pixels:>13,}"
            lines.append(f"{row.name:{width}}  {numbers}")
        return "\n".join([*lines, "-" * len(head), *self._totals()])

    def _totals(self) -> list[str]:
        return [
            f"mean IoU                {number(self.mean_iou)}",
            f"  = {self.definition}",
            f"frequency-weighted IoU  {number(self.frequency_weighted_iou)}",
            f"pixel accuracy          {number(self.pixel_accuracy)}",
            f"mean recall             {number(self.mean_recall)}",
        ]


def summarise(confusion: Tensor | NDArray[np.int64], names: Sequence[str]) -> SegmentationScores:
    """Every number of a ``(K, K)`` confusion matrix (rows = truth); `names` are the K classes' names."""
    counts = np.asarray(confusion.cpu() if isinstance(confusion, Tensor) else confusion, dtype=np.int64)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"a confusion matrix of shape {counts.shape} for {len(names)} class names")
    margins = marginal_counts(counts)
    _, truth, predicted = margins
    share = ratio(truth, np.full_like(truth, truth.sum()))
    columns = [*class_scores(margins).values(), share, truth, predicted]
    rows = zip(names, *(column.tolist() for column in columns), strict=True)
    return SegmentationScores(
        **{name: float(value) for name, value in total_scores(margins).items()},
        classes_present=int((truth + predicted > 0).sum()),
        pixels=int(truth.sum()),
        per_class=tuple(ClassScore(*row) for row in rows),
    )


def marginal_counts(confusions: NDArray[Any]) -> NDArray[Any]:
    """All that the metrics read of confusion matrices: ``(..., K, K) -> (..., 3, K)``, in pixels.

    The three rows are right (true positives), truth and predicted of each class. They add up over samples as
    the matrices do, so that resampling them costs 3 K numbers a group, not K x K.
    """
    right = np.diagonal(confusions, axis1=-2, axis2=-1)
    return np.stack([right, confusions.sum(axis=-1), confusions.sum(axis=-2)], axis=-2)


def class_fractions(margins: NDArray[Any]) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Each class metric as (part, whole) in pixels: marginal counts ``(..., 3, K) -> (..., K)`` each."""
    right, truth, predicted = np.moveaxis(margins, -2, 0)
    return {
        "iou": (right, truth + predicted - right),
        "recall": (right, truth),
        "precision": (right, predicted),
        "f1": (2 * right, truth + predicted),
    }


def class_scores(margins: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """The class metrics of marginal counts: ``(..., 3, K) -> (..., K)`` each, by name; nan if not defined."""
    return {name: ratio(*fraction) for name, fraction in class_fractions(margins).items()}


def total_scores(margins: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """The metrics over all classes of marginal counts: ``(..., 3, K) -> (...)`` each, by name."""
    right, truth, _ = np.moveaxis(margins, -2, 0)
    scores, labelled = class_scores(margins), truth.sum(axis=-1)
    weighted = np.where(truth > 0, truth * np.nan_to_num(scores["iou"]), 0.0)
    return {
        "mean_iou": _mean(scores["iou"]),
        "frequency_weighted_iou": ratio(weighted.sum(axis=-1), labelled),
        "pixel_accuracy": ratio(right.sum(axis=-1), labelled),
        "mean_recall": _mean(scores["recall"]),
    }


def mean_iou(confusions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean IoU of each of many matrices: ``(..., K, K) -> (...)``; nan where nothing is labelled."""
    right, truth, predicted = np.moveaxis(marginal_counts(confusions), -2, 0)
    return _mean(ratio(right, truth + predicted - right))


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """part / whole; nan where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is defined; nan where nothing is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def without_nan(value: Any) -> Any:
    """Nested values for JSON: None in place of nan, lists in place of tuples."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"
