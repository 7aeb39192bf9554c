"""Evaluation: metrics, the judged result of a run, and its pictures."""

from visionsft.evaluation.comparison import Pair, compare
from visionsft.evaluation.counts import Counts, load_counts
from visionsft.evaluation.evaluating import Evaluation, evaluate
from visionsft.evaluation.gates import Judgement, Verdict, judge
from visionsft.evaluation.intervals import SegmentationIntervals, segmentation_intervals
from visionsft.evaluation.pictures import (
    Example,
    colourise,
    confusion_figure,
    contact_sheet,
    display,
    error_map,
    overlay,
)
from visionsft.evaluation.robustness import Robustness, measure_robustness
from visionsft.evaluation.slices import Metadata, Slices, slice_counts

__all__ = [
    "Counts",
    "Evaluation",
    "Example",
    "Judgement",
    "Metadata",
    "Pair",
    "Robustness",
    "SegmentationIntervals",
    "Slices",
    "Verdict",
    "colourise",
    "compare",
    "confusion_figure",
    "contact_sheet",
    "display",
    "error_map",
    "evaluate",
    "judge",
    "load_counts",
    "measure_robustness",
    "overlay",
    "segmentation_intervals",
    "slice_counts",
]
