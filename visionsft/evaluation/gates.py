"""Gates: acceptance judged from ``scores.json``, as a table, as JSON and as JUnit XML for CI.

A gate whose value isn't defined (a class without truth, an interval of too few groups) fails with the reason: only
a number on the right side of the limit passes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from visionsft.errors import RunError
from visionsft.evaluation.differences import differences
from visionsft.evaluation.samples import check_comparable, read_samples
from visionsft.files import write_text
from visionsft.gate import CALIBRATION, EFFICIENCY, VOCABULARIES, Gate, Vocabulary
from visionsft.runs import Run

Values = Mapping[str, float | None]
"""What gates can ask for, by `Gate.value`; None where it isn't defined."""

_EXTREMES: dict[str, Callable[..., float]] = {"min": min, "max": max}


@dataclass(frozen=True)
class Verdict:
    """One gate, judged."""

    expression: str
    value: float | None
    limit: float
    margin: float | None
    """Distance from the limit in the metric's unit, negative on the wrong side."""
    passed: bool
    note: str
    """Why there is no value, or what the value stands on."""


@dataclass(frozen=True)
class Judgement:
    """All gates of a run on one split."""

    run: str
    split: str
    warning: str | None
    """What speaks against taking the numbers for evidence."""
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate is."""
        return all(verdict.passed for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """The content of gates.json."""
        gates = [asdict(verdict) for verdict in self.verdicts]
        facts = {"run": self.run, "split": self.split, "warning": self.warning}
        return {**facts, "passed": self.passed, "gates": gates}

    def table(self) -> str:
        """What the command line prints: a line a gate."""
        width = max(len(verdict.expression) for verdict in self.verdicts)
        missed = sum(not verdict.passed for verdict in self.verdicts)
        head = f"gates: {len(self.verdicts) - missed} of {len(self.verdicts)} passed"
        lines = [
            f"  {'pass' if each.passed else 'FAIL'}  {each.expression:{width}}  {_describe(each)}"
            for each in self.verdicts
        ]
        warning = [f"!! {self.warning}"] if self.warning else []
        return "\n".join([*warning, head, *lines])

    def junit(self) -> str:
        """JUnit XML: a test case a gate, so that CI shows them as tests."""
        failures = sum(not verdict.passed for verdict in self.verdicts)
        suite = ElementTree.Element(
            "testsuite",
            name=f"{self.run} {self.split}",
            tests=str(len(self.verdicts)),
            failures=str(failures),
        )
        for verdict in self.verdicts:
            case = ElementTree.SubElement(suite, "testcase", classname=self.run, name=verdict.expression)
            if not verdict.passed:
                ElementTree.SubElement(case, "failure", message=_describe(verdict))
        suites = ElementTree.Element("testsuites")
        suites.append(suite)
        ElementTree.indent(suites)
        return ElementTree.tostring(suites, encoding="unicode") + "\n"


def judge(run: Run | str | Path, gates: Sequence[Gate], *, split: str = "test") -> Judgement:
    """Judge an evaluated split by its scores.json; writes gates.json and gates.xml beside it."""
    run = run if isinstance(run, Run) else Run.open(run)
    scores = run.scores(split)
    values = look_up(scores, run.task)
    verdicts = tuple(_judge(gate, values, scores, run) for gate in gates)
    judgement = Judgement(run.name, split, scores.get("warning"), verdicts)
    folder = run.evaluation(split)
    write_text(folder / "gates.xml", judgement.junit())
    write_text(folder / "gates.json", json.dumps(judgement.as_dict(), indent=2, ensure_ascii=False) + "\n")
    return judgement


def _judge(gate: Gate, values: Values, scores: Mapping[str, Any], run: Run) -> Verdict:
    value, note = _value_of(gate, values, scores, run)
    if value is None:
        return Verdict(str(gate), None, gate.limit, None, passed=False, note=note)
    margin = value - gate.limit if gate.is_floor else gate.limit - value
    return Verdict(str(gate), value, gate.limit, margin, passed=gate.admits(value), note=note)


def _value_of(gate: Gate, values: Values, scores: Mapping[str, Any], run: Run) -> tuple[float | None, str]:
    """The value that the gate limits, and a note; None with the reason."""
    if gate.baseline:
        return _drop(gate, scores["split"], run)
    value = values.get(gate.value)
    words = VOCABULARIES[run.task]
    if value is None or not math.isfinite(value):
        return None, _reason(gate, scores, words)
    return value, _sliced(gate, scores, words) if gate.by else ""


def _drop(gate: Gate, split: str, run: Run) -> tuple[float | None, str]:
    """The baseline's value minus this run's, or an end of its interval, if both are of the same test data."""
    baseline = Run.open(str(gate.baseline))
    try:
        first, second = (read_samples(each, split) for each in (baseline, run))
        check_comparable(first, second)
        before, now = (look_up(each.scores(split), run.task).get(_plain(gate)) for each in (baseline, run))
    except RunError as error:
        return None, str(error)
    if before is None or now is None:
        return None, f"not defined in {baseline.path} or here"
    note = f"{before:.4f} in {baseline.path}, {now:.4f} here"
    if gate.end is None:
        return before - now, note
    rows = differences(first, second, tested=False)
    row = next((row for row in rows if (row.metric, row.of) == (gate.metric, gate.of)), None)
    if row is None or row.ends is None:
        counted = VOCABULARIES[run.task].counted
        reason = "evaluate both again in the same way" if row is None else f"too few groups with {counted}s of it"
        return None, f"no interval of the drop: {reason} ({note})"
    return -row.ends[gate.end == "lower"], f"drop {-row.difference:.4f}: {note}"


# ---------------------------------------------------------------------------------------- values


def look_up(scores: Mapping[str, Any], task: str = "segmentation") -> dict[str, float | None]:
    """Everything in scores.json that a gate of that task can ask for, by `Gate.value`."""
    words = VOCABULARIES[task]
    return {
        **_metrics(scores, words),
        **_interval_ends(scores.get("intervals") or {}),
        **_interval_ends(scores.get("mask_intervals") or {}, prefix="mask_"),
        **_interval_ends((scores.get("boundaries") or {}).get("intervals") or {}),
        **_slice_extremes(scores.get("slices") or [], words),
        **_efficiency(scores.get("efficiency") or {}),
        **_calibration(scores),
    }


def _metrics(scores: Mapping[str, Any], words: Vocabulary) -> dict[str, float | None]:
    totals = {name: _total(scores, name) for name in words.totals}
    rows = {metric: _of_classes(scores, metric) for metric in words.per_class}
    return totals | {f"{metric}[{name}]": value for metric, row in rows.items() for name, value in row.items()}


def _part(scores: Mapping[str, Any], metric: str) -> tuple[Mapping[str, Any], str]:
    """Where a metric is in scores.json, and its name there."""
    if metric.startswith("mask_"):
        return scores.get("mask_scores") or {}, metric.removeprefix("mask_")
    return scores["scores"], metric


def _total(scores: Mapping[str, Any], metric: str) -> float | None:
    """Of the whole split; top_k.3 is top_k's 3."""
    if metric.startswith("mean_boundary") or metric == "object_recall":
        return (scores.get("boundaries") or {}).get(metric)
    part, name = _part(scores, metric)
    if name in part:
        return part[name]
    name, _, key = name.partition(".")
    return (part.get(name) or {}).get(key)


def _of_classes(scores: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    """By class."""
    if metric.startswith("boundary") or metric == "object_recall":
        key = f"{metric}_per_class" if metric == "object_recall" else metric
        rows = (scores.get("boundaries") or {}).get(key) or dict.fromkeys(scores["classes"])
        return {name: row["f1"] if isinstance(row, dict) else row for name, row in rows.items()}
    part, name = _part(scores, metric)
    return {row["name"]: row[name] for row in part.get("per_class", ())}


def _interval_ends(intervals: Mapping[str, Any], *, prefix: str = "") -> dict[str, float | None]:
    ends = {f"{prefix}{metric}": pair for metric, pair in intervals.get("metrics", {}).items()}
    for name, metrics in intervals.get("per_class", {}).items():
        ends |= {f"{prefix}{metric}[{name}]": pair for metric, pair in metrics.items() if _is_pair(pair)}
    return {
        f"{value}.{end}": pair and pair[index]
        for value, pair in ends.items()
        for index, end in enumerate(("lower", "upper"))
    }


def _is_pair(value: Any) -> bool:
    """Classes have a note and a count of groups, too."""
    return isinstance(value, list | tuple)


def _slice_extremes(slices: Sequence[Mapping[str, Any]], words: Vocabulary) -> dict[str, float | None]:
    """The least and the largest value over the slices in which it is defined."""
    found: dict[str, list[float]] = {}
    for each in slices:
        for value, number in _of_slice(each, words).items():
            if number is not None:
                found.setdefault(f"slice({each['by']}).{value}", []).append(number)
    return {
        f"{value}.{name}": of(numbers) for value, numbers in found.items() for name, of in _EXTREMES.items()
    }


def _of_slice(each: Mapping[str, Any], words: Vocabulary) -> dict[str, float | None]:
    """Segmentation has a class metric beside the totals; other tasks keep them under 'per_class'."""
    totals = {name: each.get(name) for name in words.sliced if not name.endswith("[]")}
    classes = each.get("per_class", each)
    names = [name.removesuffix("[]") for name in words.sliced if name.endswith("[]")]
    return totals | {
        f"{metric}[{name}]": number for metric in names for name, number in classes.get(metric, {}).items()
    }


def _calibration(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """The calibration error and the ends of its interval; earlier classification runs have it among the scores."""
    part = scores.get("calibration") or scores["scores"]
    (name,) = CALIBRATION
    return {name: part.get(name), **_interval_ends({"metrics": {name: part.get("interval")}})}


def _efficiency(efficiency: Mapping[str, Any]) -> dict[str, float | None]:
    throughput = efficiency.get("throughput") or {}
    flat = {**efficiency, **{f"throughput.{key}": value for key, value in throughput.items()}}
    return {name: flat.get(name) for name in EFFICIENCY}


# --------------------------------------------------------------------------------------- reasons


def _reason(gate: Gate, scores: Mapping[str, Any], words: Vocabulary) -> str:
    """Why the gate has no value."""
    if gate.metric in EFFICIENCY:
        return "not measured; `visionsft evaluate --efficiency` does"
    if gate.metric in CALIBRATION:
        reason = (scores.get("calibration") or {}).get("interval_note") if gate.end else None
        return f"no interval: {reason}" if reason else "no calibration was measured; `visionsft evaluate` does"
    if gate.by:
        return _sliced(gate, scores, words)
    if gate.is_about_boundaries and "boundaries" not in scores:
        return "not measured; `visionsft evaluate --boundaries` does"
    if _metrics(scores, words).get(_plain(gate)) is None:
        where = {"recall": "in truth", "precision": "in the prediction"}.get(
            gate.metric, "in truth or prediction"
        )
        of = f" of '{gate.of}'" if gate.of else ""
        return f"not defined: no {words.counted}{of} {where} of split '{scores['split']}'"
    kept = "mask_intervals" if gate.metric.startswith("mask_") else "intervals"
    part = scores["boundaries"] if gate.is_about_boundaries else scores
    return f"no interval: {_no_interval(gate, part.get(kept) or {})}"


def _no_interval(gate: Gate, intervals: Mapping[str, Any]) -> str:
    per_class = intervals.get("per_class", {}).get(gate.of, {})
    return per_class.get("note") or intervals.get("note") or "none was made"


def _sliced(gate: Gate, scores: Mapping[str, Any], words: Vocabulary) -> str:
    """In how many slices the value is defined."""
    slices = [each for each in scores.get("slices") or () if each["by"] == gate.by]
    if not slices:
        return f"no slices by '{gate.by}' were scored"
    defined = sum(_of_slice(each, words).get(_plain(gate)) is not None for each in slices)
    return f"defined in {defined} of {len(slices)} slices"


def _plain(gate: Gate) -> str:
    """The value itself, without slices or interval."""
    return f"{gate.metric}[{gate.of}]" if gate.of else gate.metric


def _describe(verdict: Verdict) -> str:
    """Value and margin, or why there is none."""
    if verdict.value is None or verdict.margin is None:
        return verdict.note
    note = f"  ({verdict.note})" if verdict.note else ""
    return f"is {verdict.value:.4g}, margin {verdict.margin:+.4g}{note}"
