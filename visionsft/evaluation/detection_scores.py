"""Detection scores: every number of a split's detections, with its definition and what it was counted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.metrics.boxes import BoxTable, count_labels
from visionsft.evaluation.metrics.detection import average_precisions, largest_recalls, mean
from visionsft.evaluation.metrics.detection_curves import DetectionCurve, detection_curve
from visionsft.evaluation.metrics.matching import (
    ALL_SIZES,
    COCO_DETECTIONS,
    COCO_IOUS,
    Matches,
    Range,
    match_detections,
)
from visionsft.evaluation.metrics.segmentation import number, without_nan
from visionsft.evaluation.operating import AppliedPoint, PointPrice

COCO_SIZES = (32.0, 96.0)
"""COCO's limits between small, medium and large, in pixels: roots of areas."""

FPPI = (0.1, 1.0)
"""False positives per image at which recall is told."""

DETECTION_DEFINITIONS = {
    "map": "COCO's mAP: average precision, the mean over IoU 0.50:0.05:0.95 and over the classes in truth",
    "ap50": "average precision at IoU 0.50; of the totals: the mean over the classes in truth",
    "ap75": "the same at IoU 0.75: with boxes that fit well",
    "ar": "average recall: share of the objects found at any score, the mean over IoU 0.50:0.05:0.95 and classes",
    "ap": "average precision: the mean over 101 recalls 0:0.01:1 of the largest precision at that recall or beyond",
    "best": "the score of largest F1 of the class on these very images, and recall and precision from it on",
    "recall": "share of the objects that a detection of at least the score finds at the IoU",
    "precision": "share of the detections of at least the score that find an object at the IoU",
    "recall_at_fppi": "largest recall at the IoU with no more than so many false positives per image; of the totals: "
    "of all classes under one score",
    "log_average_miss_rate": "geometric mean of 1 - recall at nine rates of 0.01 to 1 false positives per image, "
    "evenly spaced in logarithm (Dollár et al. 2012); of the totals: the mean over classes",
    "sizes": "roots of box areas in pixels; objects and unmatched detections of other sizes are ignored",
    "ignored": "regions that are neither objects nor background: detections in them count neither for nor against; "
    "DOTA's difficult objects: detections of their class that reach them",
    "max_detections": "detections of each image and class that count, the most certain ones; none: all that the "
    "model gives",
    "map_at_100": "mAP of the 100 most certain detections of each image and class alone, as COCO has it; only where "
    "the model gives more",
}
"""What each number means; written beside the numbers."""


@dataclass(frozen=True)
class ClassDetectionScore:
    """The numbers of one class; nan where a number isn't defined."""

    name: str
    ap: float
    """Mean over IoU 0.50:0.95."""
    ap50: float
    best_score: float
    """Of largest F1; the next three are from it on."""
    best_recall: float
    best_precision: float
    best_f1: float
    recall: float
    """From the given score on."""
    precision: float
    recall_at_fppi: dict[str, float]
    log_average_miss_rate: float
    objects: int
    detections: int


@dataclass(frozen=True)
class SizeScore:
    """The numbers of the objects of one range of sizes."""

    name: str
    smallest: float
    """Root of the area in pixels, included."""
    largest: float | None
    """Included; None without limit."""
    ap: float
    ar: float
    objects: int


@dataclass(frozen=True)
class DetectionScores:
    """What matching a split's detections says; `DETECTION_DEFINITIONS` has the meaning of each number."""

    map: float
    ap50: float
    ap75: float
    ar: float
    iou: float
    """At which curves and operating points are read."""
    score: float
    """From which on recall and precision are counted."""
    recall: float
    precision: float
    recall_at_fppi: dict[str, float]
    log_average_miss_rate: float
    max_detections: int | None
    """Per image and class; None: all."""
    map_at_100: float | None
    """With COCO's limit; None where no image has more detections of a class."""
    images: int
    objects: int
    ignored: int
    """Ignored regions."""
    detections: int
    classes_present: int
    """In truth."""
    by_size: tuple[SizeScore, ...]
    per_class: tuple[ClassDetectionScore, ...]

    @property
    def definition(self) -> str:
        """What `map` means, to be printed with it."""
        present = f"{self.classes_present} of {len(self.per_class)} classes"
        return f"{DETECTION_DEFINITIONS['map']} ({present}), {self._limit}"

    @property
    def _limit(self) -> str:
        if self.max_detections is None:
            return "all detections that the model gives"
        return f"{self.max_detections} detections an image and class"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: None in place of nan."""
        return without_nan(asdict(self))

    def table(self) -> str:
        """A text table: one row a class, one row a size, then the totals and their definitions."""
        names = [row.name for row in self.per_class] + [row.name for row in self.by_size]
        width = max(map(len, ("class", *names)))
        head = f"{'class':{width}}      AP    AP50  best score  recall  precision"
        head += "".join(f"  R@{float(fppi):g}fppi".rjust(11) for fppi in self.recall_at_fppi)
        head += "    LAMR    objects"
        lines = [head, "-" * len(head), *(_class_line(row, width) for row in self.per_class), "-" * len(head)]
        lines += [f"{'size':{width}}      AP      AR    objects"]
        lines += [
            f"{row.name:{width}}  {number(row.ap):>6}  {number(row.ar):>6}  {row.objects:>9,}"
            for row in self.by_size
        ]
        return "\n".join([*lines, "-" * len(head), *self._totals()])

    def _totals(self) -> list[str]:
        counted = (
            f"{self.objects:,} objects, {self.ignored:,} ignored regions, {self.detections:,} detections"
        )
        fppi = [
            f"recall at FPPI {rate:<6}   {number(value)}   IoU {self.iou:g}, all classes under one score"
            for rate, value in self.recall_at_fppi.items()
        ]
        limit = f"{COCO_DETECTIONS} detections an image and class"
        capped = [] if self.map_at_100 is None else [f"  with COCO's limit of {limit}: {number(self.map_at_100)}"]
        return [
            f"mAP 0.50:0.95           {number(self.map)}",
            f"  = {self.definition}",
            *capped,
            f"AP50                    {number(self.ap50)}",
            f"AP75                    {number(self.ap75)}",
            f"{f'AR{self.max_detections or str()}':<24}{number(self.ar)}   {DETECTION_DEFINITIONS['ar']}",
            f"recall                  {number(self.recall)}   IoU {self.iou:g}, score >= {self.score:g}",
            f"precision               {number(self.precision)}   IoU {self.iou:g}, score >= {self.score:g}",
            *fppi,
            f"LAMR                    {number(self.log_average_miss_rate)}   log-average miss rate, IoU {self.iou:g}: "
            "mean over classes (Dollár et al. 2012)",
            f"best score              {DETECTION_DEFINITIONS['best']}, IoU {self.iou:g}",
            f"counted on              {self.images:,} images: {counted}",
        ]


def _class_line(row: ClassDetectionScore, width: int) -> str:
    numbers = f"{number(row.ap):>6}  {number(row.ap50):>6}  {number(row.best_score):>10}"
    numbers += f"  {number(row.best_recall):>6}  {number(row.best_precision):>9}"
    numbers += "".join(f"{number(value):>11}" for value in row.recall_at_fppi.values())
    return f"{row.name:{width}}  {numbers}  {number(row.log_average_miss_rate):>6}  {row.objects:>9,}"


# ------------------------------------------------------------------------------------------------ scoring


def score_detections(
    counts: DetectionCounts,
    *,
    size_limits: Sequence[float] = COCO_SIZES,
    iou: float = 0.5,
    score: float = 0.5,
    max_detections: int | None = None,
    masks: bool = False,
) -> DetectionScores:
    """Every number of a split.

    size_limits: between the ranges of sizes, in pixels (roots of areas), rising; iou: of curves and operating
    points; score: from which on recall and precision are counted; max_detections: per image and class, None: all;
    masks: overlaps and areas are those of masks and not of boxes.
    """
    table = counts.table(masks=masks)
    ranges = size_ranges(size_limits)
    whole, *parts = match_detections(table, sizes=(ALL_SIZES, *ranges), max_detections=max_detections)
    (matches,) = match_detections(table, thresholds=(iou,), max_detections=max_detections)
    precisions = average_precisions(whole)
    rows = tuple(
        _score_class(name, precisions[:, k], detection_curve(matches, k, iou=iou), score)
        for k, name in enumerate(counts.classes)
    )
    pooled = detection_curve(matches, None, iou=iou)
    return DetectionScores(
        map=mean(precisions),
        ap50=mean(precisions[whole.threshold(0.5)]),
        ap75=mean(precisions[whole.threshold(0.75)]),
        ar=mean(largest_recalls(whole)),
        iou=iou,
        score=score,
        recall=pooled.at(score).recall,
        precision=pooled.at(score).precision,
        recall_at_fppi=_recalls(pooled),
        log_average_miss_rate=mean(np.array([row.log_average_miss_rate for row in rows])),
        max_detections=max_detections,
        map_at_100=_capped_map(table, max_detections),
        **_sizes_of(table),
        by_size=tuple(_score_size(part, limits) for part, limits in zip(parts, ranges, strict=True)),
        per_class=rows,
    )


def _capped_map(table: BoxTable, max_detections: int | None) -> float | None:
    """With COCO's limit, where it leaves something out."""
    most = count_labels(table.image, table.labels, images=table.images, classes=table.classes).max(initial=0)
    if most <= COCO_DETECTIONS or max_detections is not None:
        return None
    (matches,) = match_detections(table, max_detections=COCO_DETECTIONS)
    return mean(average_precisions(matches))


def size_ranges(limits: Sequence[float]) -> list[Range]:
    """Ranges of areas in square pixels between rising `limits` in pixels: 32, 96 -> three ranges."""
    edges = [0.0, *(float(limit) ** 2 for limit in limits), np.inf]
    if any(high <= low for low, high in pairwise(edges)):
        raise ValueError(f"size limits must be above 0 and rising, not {list(limits)}")
    return list(pairwise(edges))


def precision_recall_curves(
    counts: DetectionCounts, *, iou: float = 0.5, max_detections: int | None = None
) -> dict[str, DetectionCurve]:
    """The curve of each class in truth, by name, for a plot."""
    (matches,) = match_detections(counts.table(), thresholds=(iou,), max_detections=max_detections)
    present = matches.positives.sum(axis=0) > 0
    names = [(k, name) for k, name in enumerate(counts.classes) if present[k]]
    return {name: detection_curve(matches, k, iou=iou) for k, name in names}


def curves_by_class(counts: DetectionCounts, *, iou: float) -> list[DetectionCurve]:
    """The curve of each of the K classes."""
    (matches,) = match_detections(counts.table(), thresholds=(iou,))
    return [detection_curve(matches, k, iou=iou) for k in range(len(counts.classes))]


def price_scores(counts: DetectionCounts, point: AppliedPoint, *, iou: float, score: float) -> PointPrice:
    """What thresholds by class change on these images, where one score would be for all."""
    curves, values = curves_by_class(counts, iou=iou), point.by_class(score)
    plain = [curve.at(score) for curve in curves]
    ruled = [curve.at(value) for curve, value in zip(curves, values, strict=True)]
    return PointPrice.of(point, plain, ruled, without=f"score >= {score:g}, IoU {iou:g}")


def _sizes_of(table: BoxTable) -> dict[str, Any]:
    return {
        "images": table.images,
        "objects": len(table.truth),
        "ignored": len(table.ignored),
        "detections": len(table.found),
        "classes_present": len(np.unique(table.truth_labels)),
    }


def _score_class(
    name: str, precisions: NDArray[np.float64], curve: DetectionCurve, score: float
) -> ClassDetectionScore:
    best, given = curve.best_f1(), curve.at(score)
    return ClassDetectionScore(
        name=name,
        ap=mean(precisions),
        ap50=float(precisions[COCO_IOUS.index(0.5)]),
        best_score=best.score,
        best_recall=best.recall,
        best_precision=best.precision,
        best_f1=best.f1,
        recall=given.recall,
        precision=given.precision,
        recall_at_fppi=_recalls(curve),
        log_average_miss_rate=curve.log_average_miss_rate(),
        objects=curve.positives,
        detections=int((curve.hits + curve.false)[-1]) if len(curve.scores) else 0,
    )


def _recalls(curve: DetectionCurve) -> dict[str, float]:
    return {f"{fppi:g}": curve.recall_at_fppi(fppi) for fppi in FPPI}


def _score_size(matches: Matches, limits: Range) -> SizeScore:
    low, high = (float(np.sqrt(limit)) for limit in limits)
    unlimited = np.isinf(high)
    return SizeScore(
        name=f"from {low:g} px" if unlimited else f"{low:g}-{high:g} px",
        smallest=low,
        largest=None if unlimited else high,
        ap=mean(average_precisions(matches)),
        ar=mean(largest_recalls(matches)),
        objects=int(matches.positives.sum()),
    )
