"""Evaluation: metrics, the judged result of a run, its calibration and operating points, areas, and pictures."""

from visionsft.evaluation.area import estimate_areas, pixel_area
from visionsft.evaluation.calibrating import calibrate
from visionsft.evaluation.classifying import Answers, ClassificationEvaluation, choose_label_thresholds
from visionsft.evaluation.comparison import Pair, compare
from visionsft.evaluation.counts import Counts, load_counts
from visionsft.evaluation.detecting import DetectionEvaluation
from visionsft.evaluation.detection_counts import (
    DetectionCounts,
    load_detection_counts,
    save_detection_counts,
)
from visionsft.evaluation.detection_errors import DetectionErrors, break_down_errors
from visionsft.evaluation.detection_intervals import DetectionIntervals, bootstrap_detections
from visionsft.evaluation.detection_scores import (
    DetectionScores,
    precision_recall_curves,
    score_detections,
)
from visionsft.evaluation.evaluating import Evaluation
from visionsft.evaluation.gates import Judgement, Verdict, judge
from visionsft.evaluation.intervals import SegmentationIntervals, segmentation_intervals
from visionsft.evaluation.label_intervals import LabelIntervals, label_intervals
from visionsft.evaluation.label_thresholds import LabelThresholds
from visionsft.evaluation.map_slices import slice_counts
from visionsft.evaluation.pictures import (
    Example,
    colourise,
    confusion_figure,
    contact_sheet,
    display,
    error_map,
    overlay,
    picture_sheet,
    reliability_figure,
)
from visionsft.evaluation.robustness import Robustness, measure_robustness
from visionsft.evaluation.score_thresholds import choose_scores
from visionsft.evaluation.scoring import evaluate
from visionsft.evaluation.slices import Metadata, Slices
from visionsft.evaluation.temperature import load_temperature
from visionsft.evaluation.thresholds import choose_thresholds

__all__ = [
    "Answers",
    "ClassificationEvaluation",
    "Counts",
    "DetectionCounts",
    "DetectionErrors",
    "DetectionEvaluation",
    "DetectionIntervals",
    "DetectionScores",
    "Evaluation",
    "Example",
    "Judgement",
    "LabelIntervals",
    "LabelThresholds",
    "Metadata",
    "Pair",
    "Robustness",
    "SegmentationIntervals",
    "Slices",
    "Verdict",
    "bootstrap_detections",
    "break_down_errors",
    "calibrate",
    "choose_label_thresholds",
    "choose_scores",
    "choose_thresholds",
    "colourise",
    "compare",
    "confusion_figure",
    "contact_sheet",
    "display",
    "error_map",
    "estimate_areas",
    "evaluate",
    "judge",
    "label_intervals",
    "load_counts",
    "load_detection_counts",
    "load_temperature",
    "measure_robustness",
    "overlay",
    "picture_sheet",
    "pixel_area",
    "precision_recall_curves",
    "reliability_figure",
    "save_detection_counts",
    "score_detections",
    "segmentation_intervals",
    "slice_counts",
]
