"""Metrics: pure functions on arrays, and torchmetrics classes around them."""

from visionsft.evaluation.metrics.segmentation import (
    DEFINITIONS,
    ClassScore,
    SegmentationConfusion,
    SegmentationScores,
    confusion_matrix,
    mean_iou,
    predict_classes,
    summarise,
)

__all__ = [
    "DEFINITIONS",
    "ClassScore",
    "SegmentationConfusion",
    "SegmentationScores",
    "confusion_matrix",
    "mean_iou",
    "predict_classes",
    "summarise",
]
