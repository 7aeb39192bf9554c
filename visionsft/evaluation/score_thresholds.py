"""Score thresholds: from which score on a detection of a class is kept, for a wanted recall or precision.

Chosen on validation among all scores that the detector gives; their price is counted on test. A detection is right
as matching decides it at the run's IoU (``task.match_iou``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules import DataError
from visionsft.config import DetectionConfig
from visionsft.evaluation.detecting import count_detections
from visionsft.evaluation.detection_scores import curves_by_class, price_scores
from visionsft.evaluation.evaluating import check_split
from visionsft.evaluation.metrics.detection_curves import DetectionCurve
from visionsft.evaluation.operating import FILE, AppliedPoint, PointPrice, describe_owner
from visionsft.evaluation.thresholds import Requirement, Threshold, parse_requirements
from visionsft.runs import Checkpoint, Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

RULE = "a detection is kept if its score reaches the threshold of its class; other classes keep the score given"


@dataclass(frozen=True)
class ScorePoint:
    """The result of `choose_scores`."""

    run: str
    checkpoint: str
    iou: float
    thresholds: tuple[Threshold, ...]
    price: PointPrice | None
    """On the test split; None without one."""
    file: Path

    def table(self) -> str:
        """What the command line prints."""
        chosen = [
            f"  {each.wanted}: score >= {each.value:.6g} gives recall {each.recall:.4f}, "
            f"precision {each.precision:.4f}"
            for each in self.thresholds
        ]
        price = ["on test:", *self.price.lines(), *map(self._verdict, self.thresholds)] if self.price else []
        title = f"{self.run} · checkpoint {self.checkpoint} · IoU {self.iou:g}"
        lines = [title, "", "on val:", *chosen, "", *(price or ["no test split: no price"]), ""]
        return "\n".join([*lines, f"written: {self.file}; `visionsft predict --operating-point` uses it"])

    def _verdict(self, chosen: Threshold) -> str:
        """Whether test has what validation promised."""
        assert self.price is not None
        row = next(row for row in self.price.per_class if row.name == chosen.wanted.class_name)
        value = (row.recall if chosen.wanted.metric == "recall" else row.precision)[1]
        held = "holds on test" if value >= chosen.wanted.at_least else "!! does not hold on test"
        return f"{chosen.wanted}: {held}, {value:.4f}"


def choose_scores(
    run: Run | str | Path, requirements: Sequence[str], *, checkpoint: Checkpoint = "best"
) -> ScorePoint:
    """Choose a score for each of `requirements` ('recall[Car] >= 0.9') on validation, measure all on test, and keep
    them as ``<run>/thresholds.json``."""
    from visionsft.training.loading import load_run  # imported late, as in visionsft.evaluation

    run = run if isinstance(run, Run) else Run.open(run)
    config = run.config
    assert isinstance(config, DetectionConfig)
    loaded = load_run(run, checkpoint)
    loaded.data.setup("test")
    names = loaded.data.classes.names
    wanted = parse_requirements(requirements, names)
    check_split(loaded.data, "val")
    curves = curves_by_class(count_detections(loaded, "val"), iou=config.task.match_iou)
    thresholds = tuple(choose(curves[names.index(each.class_name)], each) for each in wanted)
    owner = describe_owner(run, checkpoint)
    pairs = tuple((names.index(each.wanted.class_name), each.value) for each in thresholds)
    point = AppliedPoint(pairs, tuple(names), RULE, 1.0, owner["checkpoint"]["sha256"])
    found = ScorePoint(
        run.name, checkpoint, config.task.match_iou, thresholds, _price(loaded, point, config), run.path / FILE
    )
    run.write_json(FILE, {**_as_dict(found), **owner})
    return found


def choose(curve: DetectionCurve, wanted: Requirement) -> Threshold:
    """The score that meets `wanted` at the least cost: the highest for a recall, the lowest for a precision; halfway
    to the next lower score that occurs."""
    if not curve.positives:
        raise DataError(f"{wanted}: no object of the validation split is labelled as {wanted.class_name}")
    values = curve.recall if wanted.metric == "recall" else curve.precision
    meets = np.flatnonzero(values >= wanted.at_least)
    if not len(meets):
        best = f"the best is {values.max():.4f}" if len(values) else "nothing is found"
        raise DataError(f"{wanted}: on the validation split {best}, at any score")
    place = meets[0] if wanted.metric == "recall" else meets[-1]  # scores fall
    lower = curve.scores[place + 1] if place + 1 < len(curve.scores) else 0.0
    score = float((curve.scores[place] + lower) / 2)
    return Threshold(wanted, score, float(curve.recall[place]), float(curve.precision[place]))


def _price(loaded: LoadedRun, point: AppliedPoint, config: DetectionConfig) -> PointPrice | None:
    if not loaded.data.items["test"]:
        return None
    task = config.task
    return price_scores(count_detections(loaded, "test"), point, iou=task.match_iou, score=task.match_score)


def _as_dict(found: ScorePoint) -> dict[str, Any]:
    rows = [
        {
            "class": each.wanted.class_name,
            "threshold": each.value,
            "wanted": str(each.wanted),
            "val": {"recall": each.recall, "precision": each.precision},
        }
        for each in found.thresholds
    ]
    test = found.price and found.price.as_dict()["per_class"]
    return {"rule": RULE, "iou": found.iou, "thresholds": rows, "test": test, "chosen_on": "val"}
