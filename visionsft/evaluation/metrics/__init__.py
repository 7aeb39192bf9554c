"""Metrics: pure functions on arrays, and torchmetrics classes around them."""

from visionsft.evaluation.metrics.boxes import BoxTable, ImageBoxes
from visionsft.evaluation.metrics.detection import AveragePrecision, average_precisions, largest_recalls
from visionsft.evaluation.metrics.detection_curves import DetectionCurve, OperatingScore, detection_curve
from visionsft.evaluation.metrics.matching import Matches, match_detections
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
    "AveragePrecision",
    "BoxTable",
    "ClassScore",
    "DetectionCurve",
    "ImageBoxes",
    "Matches",
    "OperatingScore",
    "SegmentationConfusion",
    "SegmentationScores",
    "average_precisions",
    "class_fractions",
    "class_scores",
    "confusion_matrix",
    "detection_curve",
    "largest_recalls",
    "marginal_counts",
    "match_detections",
    "mean_iou",
    "predict_classes",
    "summarise",
    "total_scores",
]
