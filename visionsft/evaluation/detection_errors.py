"""Detection errors: what kind of mistake costs how much average precision (TIDE; Bolya et al. 2020).

Each false positive is of the first kind below that fits, in the order of the authors' code, which tries
localisation before classification; each kind is then put right alone, and average precision counted again. The
gains needn't add up to what is missing to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.metrics.boxes import BoxTable, count_labels
from visionsft.evaluation.metrics.detection import average_precisions, mean
from visionsft.evaluation.metrics.matching import Matches, match_detections, same_key_pairs
from visionsft.evaluation.metrics.segmentation import number, without_nan

KINDS = {
    "localisation": "an object of its class overlaps, but too little; put right: its box becomes the object's",
    "classification": "an object of another class overlaps enough; put right: it gets that class",
    "duplicate": "its object was taken by a more certain detection; put right: it goes",
    "background": "hardly any object overlaps; put right: it goes",
    "both": "an object of another class overlaps, but too little; put right: it goes",
    "missed": "an object that no detection of the first two kinds could have found; put right: it needn't be found",
}
"""The kinds, each with its oracle. Of all detections of the first two kinds that would find one object when put right
the most certain does and the others go, all of them if it is found already (so the authors' code; by the paper's
text the most certain of each kind might, and might take the object from one that has it)."""

BACKGROUND_IOU = 0.1
"""Up to which a detection has nothing to do with an object."""


@dataclass(frozen=True)
class ErrorKind:
    """How often one kind of error occurs, and what it costs."""

    name: str
    count: int
    gain: float
    """Average precision at the IoU, once these errors are put right, minus what it is; nan without truth."""
    per_class: tuple[int, ...]
    """By class of the detection; of missed objects by their own."""


@dataclass(frozen=True)
class DetectionErrors:
    """The errors of a split by kind."""

    iou: float
    background_iou: float
    ap: float
    """At this IoU, the mean over classes in truth."""
    classes: tuple[str, ...]
    images: int
    objects: int
    kinds: tuple[ErrorKind, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: None in place of nan."""
        return {**without_nan(asdict(self)), "definitions": KINDS}

    def table(self) -> str:
        """A text table: one row a kind, the dearest first."""
        width = max(map(len, KINDS))
        gain = f"dAP{100 * self.iou:.0f}"
        head = f"{'error':{width}}      count  {gain:>6}  meaning"
        rows = sorted(self.kinds, key=lambda kind: -np.nan_to_num(kind.gain))
        lines = [
            f"{kind.name:{width}}  {kind.count:>9,}  {number(kind.gain):>6}  {KINDS[kind.name]}"
            for kind in rows
        ]
        enough = f"enough is IoU {self.iou:g}, hardly any is IoU {self.background_iou:g} or less"
        total = f"AP{100 * self.iou:.0f} {number(self.ap)}, {self.images:,} images, {self.objects:,} objects"
        return "\n".join([head, "-" * len(head), *lines, "-" * len(head), f"{total}; {enough}"])


def break_down_errors(
    counts: DetectionCounts,
    *,
    iou: float = 0.5,
    background_iou: float = BACKGROUND_IOU,
    max_detections: int | None = None,
) -> DetectionErrors:
    """All errors of a split at one IoU by kind; detections on ignored regions are none."""
    if not 0 <= background_iou < iou:
        raise ValueError(f"background_iou must be from 0 to below iou = {iou:g}, not {background_iou:g}")
    table = counts.table()
    (matches,) = match_detections(table, thresholds=(iou,), max_detections=max_detections)
    precisions = average_precisions(matches)[0]
    errors = _Errors.of(table, matches, iou, background_iou)
    return DetectionErrors(
        iou=iou,
        background_iou=background_iou,
        ap=mean(precisions),
        classes=counts.classes,
        images=table.images,
        objects=len(table.truth),
        kinds=tuple(_judge(kind, errors, precisions) for kind in KINDS),
    )


def _judge(kind: str, errors: _Errors, precisions: NDArray[np.float64]) -> ErrorKind:
    table = errors.table
    labels = (
        table.truth_labels[errors.missed] if kind == "missed" else errors.matches.labels[errors.kinds == kind]
    )
    per_class = np.bincount(labels, minlength=table.classes)
    fixed = average_precisions(errors.put_right(kind))[0]
    # without an object left to be found the class is found completely
    fixed = np.where(np.isnan(fixed) & ~np.isnan(precisions), 1.0, fixed)
    return ErrorKind(kind, len(labels), mean(fixed) - mean(precisions), tuple(per_class.tolist()))


@dataclass(frozen=True)
class _Errors:
    table: BoxTable
    matches: Matches
    kinds: NDArray[np.str_]
    """(D,) of each detection in `matches`; empty for those that are right or ignored."""
    meant: NDArray[np.int64]
    """(D,) the object that a detection put right would find; -1 for none."""
    missed: NDArray[np.int64]
    """Rows of the missed objects."""

    @classmethod
    def of(cls, table: BoxTable, matches: Matches, iou: float, background_iou: float) -> _Errors:
        (own, own_truth), (other, other_truth) = _nearest(table, matches)
        wrong = ~matches.hits[0] & ~matches.ignored[0]
        choices = {
            "localisation": (own >= background_iou) & (own > 0) & (own < iou),
            "classification": other >= iou,
            "duplicate": own >= iou,
            "background": np.maximum(own, other) <= background_iou,
        }
        kinds = np.where(wrong, np.select(list(choices.values()), list(choices), "both"), "")
        meant = np.select([kinds == "localisation", kinds == "classification"], [own_truth, other_truth], -1)
        lost = np.ones(len(table.truth), bool)
        lost[matches.truth[0, matches.hits[0]]] = False
        lost[meant[meant >= 0]] = False
        return cls(table, matches, kinds, meant, np.flatnonzero(lost))

    def put_right(self, kind: str) -> Matches:
        """The matches without the errors of one kind; a detection that goes is an ignored one."""
        matches, table = self.matches, self.table
        chosen = self.kinds == kind
        if kind == "missed":
            gone = (table.truth_image[self.missed], table.truth_labels[self.missed])
            missed = count_labels(*gone, images=table.images, classes=table.classes)
            return replace(matches, positives=matches.positives - missed)
        if kind not in ("localisation", "classification"):
            return replace(matches, ignored=matches.ignored | chosen)
        truth = np.where(matches.hits[0], matches.truth[0], self.meant)
        fixed = chosen & _first_of_each(truth, matches.scores, matches.hits[0])
        labels = matches.labels.copy()
        labels[fixed] = table.truth_labels[self.meant[fixed]]
        hits, ignored = matches.hits | fixed, matches.ignored | (chosen & ~fixed)
        return replace(matches, labels=labels, hits=hits, ignored=ignored)


def _first_of_each(
    truth: NDArray[np.int64], scores: NDArray[np.float64], hits: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which detection finds its object (-1: none): what already does, and else the most certain of each."""
    order = np.lexsort((-scores, ~hits, truth))
    claimed, first = np.unique(truth[order], return_index=True)
    found = np.zeros(len(truth), bool)
    found[order[first[claimed >= 0]]] = True
    return found


def _nearest(table: BoxTable, matches: Matches) -> Sequence[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """The largest IoU (D,) and whose it is (D,) among the objects of a detection's class, and of others; 0 and -1
    where there are none."""
    count = len(matches.index)
    nearest = [(np.zeros(count), np.full(count, -1)) for _ in range(2)]
    for detection, truth in same_key_pairs(matches.image, table.truth_image):
        overlap = table.overlaps(matches.index[detection], truth)
        same = matches.labels[detection] == table.truth_labels[truth]
        for (largest, owner), kind in zip(nearest, (same, ~same), strict=True):
            pairs = np.flatnonzero(kind & (overlap > 0))
            pairs = pairs[np.argsort(overlap[pairs], kind="stable")]  # the last written is the largest
            largest[detection[pairs]], owner[detection[pairs]] = overlap[pairs], truth[pairs]
    return nearest
