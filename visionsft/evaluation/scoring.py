"""Scoring: a run's model on a split, whatever its task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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

    See `evaluate_segmentation`, `evaluate_detector` and `evaluate_classes`; the options after `group_by` are for
    segmentation, `efficiency` for classification, too.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    own = {"slice_by": slice_by, "metadata": metadata, "boundaries": boundaries, "efficiency": efficiency}
    if run.task == "segmentation":
        return evaluate_segmentation(run, split=split, checkpoint=checkpoint, group_by=group_by, **own)  # type: ignore[arg-type]
    if run.task == "classification":
        own.pop("efficiency")
    if given := [name for name, value in own.items() if value]:
        raise ConfigError(f"{', '.join(given)}: for segmentation; the task of {run.path} is {run.task}")
    if run.task == "classification":
        return evaluate_classes(
            run, split=split, checkpoint=checkpoint, group_by=group_by, efficiency=efficiency
        )
    return evaluate_detector(run, split=split, checkpoint=checkpoint, group_by=group_by)
