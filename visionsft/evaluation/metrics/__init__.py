"""Metrics: pure functions on arrays, and torchmetrics classes around them."""

from visionsft.evaluation.metrics.segmentation import (
    DEFINITIONS,
    ClassScore,
    SegmentationConfusion,
    SegmentationScores,
    class_fractions,
    class_scores,
    confusion_matrix,
    marginal_counts,
    mean_iou,
    predict_classes,
    summarise,
    total_scores,
)

__all__ = [
    "DEFINITIONS",
    "ClassScore",
    "SegmentationConfusion",
    "SegmentationScores",
    "class_fractions",
    "class_scores",
    "confusion_matrix",
    "marginal_counts",
    "mean_iou",
    "predict_classes",
    "summarise",
    "total_scores",
]
