"""The summary: what the facts about a run come to, as plain values for machines and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionsft.evaluation.page import Page

SCHEMA = 2
"""Version of report.json; ``templates/report.schema.json`` describes it."""

_WORDS = {"map": "mAP", "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ar": "average recall", "ece": "calibration error",
          "fppi": "FPPI", "log_average_miss_rate": "log-average miss rate"}  # fmt: skip


def summary(page: Page) -> dict[str, Any]:
    """The content of report.json."""
    facts = page.facts
    per_class = (facts.scores.get("intervals") or {}).get("per_class") or {}
    metrics = {
        name: {
            "value": page.value(name),
            "interval": page.intervals.get(name),
            "definition": page.definition(name),
        }
        for name in page.metrics
    }
    return {
        "schema": SCHEMA,
        "task": facts.task,
        "run": facts.name,
        "split": facts.split,
        "warning": facts.scores["warning"],
        "checkpoint": facts.scores["checkpoint"],
        "headline": {"metric": page.headline, **metrics[page.headline]},
        "metrics": metrics,
        "interval_method": _interval_method(facts.scores.get("intervals")),
        "classes": [
            {**row, "intervals": per_class.get(row["name"])} for row in facts.scores["scores"]["per_class"]
        ],
        "samples": facts.scores["samples"],
        "groups": facts.scores["groups"],
        "counted": {page.counted: sum(row[page.counted] for row in facts.scores["scores"]["per_class"])},
        "gates": facts.gates,
        "data": {
            "fingerprint": facts.scores["data"]["fingerprint"],
            **{key: facts.data[key] for key in ("root", "samples", "groups", "warnings")},
            "class_shares": facts.data.get("class_shares") or {},
        },
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
    if name in _WORDS:
        return _WORDS[name]
    if name.startswith("top_k."):
        return f"top-{name.removeprefix('top_k.')} accuracy"
    return name.replace("_", " ").replace("iou", "IoU").replace("f1", "F1")


def _interval_method(intervals: Mapping[str, Any] | None) -> dict[str, Any] | None:
    told = ("level", "resamples", "seed", "method", "unit", "groups", "note")
    return {key: intervals[key] for key in told} if intervals else None


def _without_files(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a picture shows, without where it is and the boxes drawn on it."""
    return {key: value for key, value in entry.items() if key not in ("files", "width", "height", "marks", "part")}
