"""Scoring: a run's model on a split, whatever its task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionsft.errors import ConfigError
from visionsft.evaluation.classifying import ClassificationEvaluation, evaluate_classes
from visionsft.evaluation.detecting import DetectionEvaluation, evaluate_detector
from visionsft.evaluation.evaluating import Evaluation, evaluate_segmentation
from visionsft.evaluation.intervals import Unit
from visionsft.runs import Checkpoint, Run


def evaluate(
    run: Run | str | Path,
    *,
    split: str = "test",
    checkpoint: Checkpoint = "best",
    group_by: Unit = "group",
    slice_by: Sequence[str] = (),
    metadata: str | Path | None = None,
    boundaries: bool = False,
    efficiency: bool = False,
) -> Evaluation | DetectionEvaluation | ClassificationEvaluation:
    """Score a run's model on a split ('train', 'val', 'test'); writes ``<run>/evaluation/<split>/``.

    See `evaluate_segmentation`, `evaluate_detector` and `evaluate_classes`; boundaries are of segmentation alone.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    common: dict[str, Any] = {
        "split": split, "checkpoint": checkpoint, "group_by": group_by, "efficiency": efficiency,
        "slice_by": slice_by, "metadata": metadata,
    }  # fmt: skip
    if run.task == "segmentation":
        return evaluate_segmentation(run, boundaries=boundaries, **common)
    if boundaries:
        raise ConfigError(f"boundaries: for segmentation; the task of {run.path} is {run.task}")
    return (evaluate_classes if run.task == "classification" else evaluate_detector)(run, **common)
