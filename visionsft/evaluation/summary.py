"""The summary: what the facts about a run come to, as plain values for machines and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionsft.evaluation.facts import Facts

SCHEMA = 1
"""Version of report.json; ``templates/report.schema.json`` describes it."""

METRICS = ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_recall")


@dataclass(frozen=True)
class Mistake:
    """Pixels of one class that were taken for another."""

    truth: str
    prediction: str
    pixels: int
    of_truth: float
    """Share of the true class's pixels."""
    of_wrong: float
    """Share of all wrong pixels."""


def mistakes(facts: Facts) -> list[Mistake]:
    """Every mistake between two classes, the most frequent first."""
    confusion = facts.confusion
    wrong = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    total = int(wrong.sum())
    order = np.argsort(-wrong, axis=None, kind="stable")[: int((wrong > 0).sum())]
    pairs = [divmod(int(index), len(confusion)) for index in order]
    return [
        Mistake(
            facts.classes[truth],
            facts.classes[prediction],
            pixels=int(wrong[truth, prediction]),
            of_truth=wrong[truth, prediction] / confusion[truth].sum(),
            of_wrong=wrong[truth, prediction] / total,
        )
        for truth, prediction in pairs
    ]


def intervals_of(facts: Facts) -> Mapping[str, list[float] | None]:
    """Intervals of the split's metrics by name; empty if evaluation stored none."""
    return facts.scores.get("intervals", {}).get("metrics", {})


def summary(facts: Facts) -> dict[str, Any]:
    """The content of report.json."""
    scores, intervals = facts.scores["scores"], intervals_of(facts)
    definitions = facts.scores["definitions"]
    per_class = facts.scores.get("intervals", {}).get("per_class", {})
    metrics = {
        name: {"value": scores[name], "interval": intervals.get(name), "definition": definitions[name]}
        for name in METRICS
    }
    return {
        "schema": SCHEMA,
        "run": facts.name,
        "split": facts.split,
        "warning": facts.scores["warning"],
        "checkpoint": facts.scores["checkpoint"],
        "headline": {"metric": "mean_iou", **metrics["mean_iou"]},
        "metrics": metrics,
        "interval_method": _interval_method(facts),
        "classes": [{**row, "intervals": per_class.get(row["name"])} for row in scores["per_class"]],
        "samples": facts.scores["samples"],
        "groups": facts.scores["groups"],
        "pixels": scores["pixels"],
        "gates": facts.gates,
        "data": {key: facts.data[key] for key in ("root", "samples", "groups", "class_shares", "warnings")}
        | {"fingerprint": facts.scores["data"]["fingerprint"]},
        "training": {
            "settings": dict(facts.settings),
            "finished": facts.finished,
            "parameters": sum(part.parameters for part in facts.parts),
            "trainable": sum(part.trainable for part in facts.parts),
        },
        "environment": dict(facts.environment),
        "worst_samples": [_without_files(entry) for entry in (facts.gallery or {}).get("samples", ())],
    }


def words(name: str) -> str:
    """A key of the files as a reader's words."""
    return name.replace("_", " ").replace("iou", "IoU").replace("f1", "F1")


def _interval_method(facts: Facts) -> dict[str, Any] | None:
    intervals = facts.scores.get("intervals")
    told = ("level", "resamples", "seed", "method", "unit", "groups", "note")
    return intervals and {key: intervals[key] for key in told}


def _without_files(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("files", "width", "height")}
