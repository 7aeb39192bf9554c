"""Facts: what a run folder says about a run and its results on one split, read without the model."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionsft.errors import RunError
from visionsft.evaluation.paired import Samples
from visionsft.evaluation.samples import read_samples
from visionsft.runs import Run, flatten

_PART = re.compile(r"(?P<name>.+?)\s+(?P<parameters>[\d,]+)\s+(?P<trainable>[\d,]+)(?:\s+(?P<rate>\S+))?")
"""A row of trainable.txt."""


@dataclass(frozen=True)
class Part:
    """A part of the model, and how it trained."""

    name: str
    parameters: int
    trainable: int
    rate: str
    """Learning rate at the start, or 'frozen'."""


@dataclass(frozen=True)
class Facts:
    """A run and its results on a split; None where the run folder has no such file."""

    path: Path
    split: str
    settings: Mapping[str, str]
    """Dotted keys of the configuration and their values as JSON."""
    config: str
    """config.yaml as it stands."""
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    parts: tuple[Part, ...]
    """From input to output; without the sum."""
    metrics: tuple[Mapping[str, float | None], ...]
    """Rows of metrics.csv; None where a column has no value."""
    finished: Mapping[str, Any] | None
    scores: Mapping[str, Any]
    samples: Samples
    gates: Mapping[str, Any] | None
    robustness: Mapping[str, Any] | None
    thresholds: Mapping[str, Any] | None
    gallery: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def folder(self) -> Path:
        """Where the results on the split are."""
        return self.path / "evaluation" / self.split

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.scores["classes"])

    @property
    def task(self) -> str:
        """The kind of its task."""
        return str(json.loads(self.settings["task.kind"]))


def read_facts(run: Run | str | Path, *, split: str = "test") -> Facts:
    """Read a run folder that has been evaluated on `split`."""
    run = run if isinstance(run, Run) else Run.open(run)
    folder = run.path / "evaluation" / split
    if not (folder / "scores.json").is_file():
        raise RunError(_say_unevaluated(run, split))
    return Facts(
        path=run.path,
        split=split,
        settings=flatten(run.config),
        config=(run.path / "config.yaml").read_text(encoding="utf-8"),
        environment=_need(run.path / "environment.json"),
        data=_need(run.path / "data.json"),
        parts=_read_parts(run.path / "trainable.txt"),
        metrics=_read_metrics(run.path / "metrics.csv"),
        finished=_read(run.path / "finished.json"),
        scores=_need(folder / "scores.json"),
        samples=read_samples(run, split),
        gates=_read(folder / "gates.json"),
        robustness=_read(folder / "robustness.json"),
        thresholds=_read(run.path / "thresholds.json"),
        gallery=_read(folder / "gallery" / "index.json"),
    )


def _say_unevaluated(run: Run, split: str) -> str:
    there = sorted(path.parent.name for path in run.path.glob("evaluation/*/scores.json"))
    results = f"; there are those on {', '.join(there)}" if there else ""
    command = f"visionsft evaluate {run.path} --split {split}"
    return f"{run.path}: has no results on the split '{split}'{results}; `{command}` makes them"


def _need(path: Path) -> dict[str, Any]:
    values = _read(path)
    if values is None:
        raise RunError(f"{path}: is missing; this run folder is not complete")
    return values


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON file; None if it does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # of JSON, or of UTF-8
        raise RunError(f"{path}: is damaged ({error})") from error


def _read_parts(path: Path) -> tuple[Part, ...]:
    rows = [match for line in _lines(path)[1:] if (match := _PART.fullmatch(line.strip()))]
    return tuple(
        Part(row["name"], _integer(row["parameters"]), _integer(row["trainable"]), row["rate"])
        for row in rows
        if row["rate"]  # the sum has none
    )


def _integer(text: str) -> int:
    """Of a text such as '13,968'."""
    return int(text.replace(",", ""))


def _read_metrics(path: Path) -> tuple[dict[str, float | None], ...]:
    rows = csv.DictReader(_lines(path))
    return tuple({key: float(text) if text else None for key, text in row.items()} for row in rows)


def _lines(path: Path) -> list[str]:
    """Lines of a file that training writes; none if it was cut short before."""
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
