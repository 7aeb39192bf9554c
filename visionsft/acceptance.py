"""Acceptance: the gates that a run has to pass, read and known to have a meaning before anything slow begins."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from visionsft.config import ClassificationConfig
from visionsft.errors import ConfigError, RunError, nearest
from visionsft.gate import VOCABULARIES, Gate, parse
from visionsft.runs import Run


def read_gates(path: str | Path, task: str = "segmentation") -> tuple[Gate, ...]:
    """The gates of a text file for runs of that task, one a line; empty lines and what follows a ``#`` are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
    gates, mistakes = [], []
    for number, line in enumerate(lines, start=1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        try:
            gates.append(parse(text, task))
        except ValueError as error:
            mistakes.append(f"{path}:{number}: given {text!r}; {error}")
    if not gates and not mistakes:
        mistakes = [f"{path}: has no gate; a gate is a line such as '{VOCABULARIES[task].totals[0]} >= 0.70'"]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return tuple(gates)


def gates_of(
    run: Run, *, file: str | Path | None = None, split: str = "test", metadata: str | Path | None = None
) -> tuple[Gate, ...]:
    """The gates of `file`, else of the run's configuration, each one known to have a meaning for this run.

    metadata: the CSV file whose columns can be sliced by. A baseline must have been evaluated on the same split.
    """
    words = VOCABULARIES[run.task]
    gates = read_gates(file, run.task) if file else tuple(parse(text, run.task) for text in run.config.gates)
    if not gates:
        raise ConfigError(
            f"{run.path / 'config.yaml'}: has no gates; add them there, or give --gates-file FILE"
        )
    classes, slices = list(run.read_json("data.json")["classes"]), (*words.slices, *_columns(metadata))
    found = [(gate, _mistake(gate, classes, slices, split) or _meaningless(gate, run)) for gate in gates]
    if mistakes := [f"{file or run.path / 'config.yaml'}: {gate}: {text}" for gate, text in found if text]:
        raise ConfigError("\n".join(mistakes))
    return gates


def _columns(metadata: str | Path | None) -> list[str]:
    """Of a CSV file, without the first, which names the samples."""
    if metadata is None:
        return []
    try:
        with open(metadata, encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])[1:]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{metadata}: can't be read: {error}") from None


def _mistake(gate: Gate, classes: Sequence[str], slices: Sequence[str], split: str) -> str | None:
    """What makes the gate meaningless for a run of these classes and slices."""
    if gate.of and gate.of not in classes:
        return _unknown("class", gate.of, classes)
    if gate.by and gate.by not in slices and not gate.by.startswith("name:"):
        return _unknown("slice", gate.by, slices)
    if gate.baseline:
        try:
            known = Run.open(gate.baseline).scores(split)["classes"]
        except RunError as error:
            return f"baseline {error}"
        if gate.of and gate.of not in known:
            return f"{gate.baseline}: {_unknown('class', gate.of, known)}"
    return None


def _meaningless(gate: Gate, run: Run) -> str | None:
    """What a run of this task doesn't have."""
    if gate.metric.startswith("top_k."):
        config, count = run.config, len(run.read_json("data.json")["classes"])
        if isinstance(config, ClassificationConfig) and config.task.multi_label:
            return "an image has several classes here, and no most probable one"
        if int(gate.metric.removeprefix("top_k.")) >= count:
            return f"there are {count} classes: the first {count} are always right"
    if gate.by == "object_size" and run.task == "segmentation" and gate.metric != "recall":
        return f"slices by object_size have recall[CLASS], the share of the objects found, not {gate.metric}"
    return None


def _unknown(kind: str, given: str, allowed: Sequence[str]) -> str:
    hint = nearest(given, allowed)
    return f"no {kind} {given!r}; " + (f"nearest: {hint}" if hint else f"there: {', '.join(allowed)}")
