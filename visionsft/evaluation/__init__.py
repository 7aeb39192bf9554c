"""Evaluation: metrics, the judged result of a run, its calibration and operating points, areas, and pictures."""

from visionsft.evaluation.area import estimate_areas, pixel_area
from visionsft.evaluation.calibrating import calibrate
from visionsft.evaluation.evaluating import Evaluation, evaluate
from visionsft.evaluation.pictures import (
    Example,
    colourise,
    confusion_figure,
    contact_sheet,
    display,
    error_map,
    overlay,
    reliability_figure,
)
from visionsft.evaluation.temperature import load_temperature
from visionsft.evaluation.thresholds import choose_thresholds

__all__ = [
    "Evaluation",
    "Example",
    "calibrate",
    "choose_thresholds",
    "colourise",
    "confusion_figure",
    "contact_sheet",
    "display",
    "error_map",
    "estimate_areas",
    "evaluate",
    "load_temperature",
    "overlay",
    "pixel_area",
    "reliability_figure",
]
