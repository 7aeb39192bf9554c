"""Evaluation: metrics, the judged result of a run, and its pictures."""

from visionsft.evaluation.evaluating import Evaluation, evaluate
from visionsft.evaluation.gates import Judgement, Verdict, judge
from visionsft.evaluation.pictures import (
    Example,
    colourise,
    confusion_figure,
    contact_sheet,
    display,
    error_map,
    overlay,
)

__all__ = [
    "Evaluation",
    "Example",
    "Judgement",
    "Verdict",
    "colourise",
    "confusion_figure",
    "contact_sheet",
    "display",
    "error_map",
    "evaluate",
    "judge",
    "overlay",
]
