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
from visionsft.gate import CALIBRATION, EFFICIENCY, PER_CLASS, TOTALS, Gate
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
    values = look_up(scores)
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
    if value is None or not math.isfinite(value):
        return None, _reason(gate, scores)
    return value, _sliced(gate, scores) if gate.by else ""


def _drop(gate: Gate, split: str, run: Run) -> tuple[float | None, str]:
    """The baseline's value minus this run's, or an end of its interval, if both are of the same test data."""
    baseline = Run.open(str(gate.baseline))
    try:
        first, second = (read_samples(each, split) for each in (baseline, run))
        check_comparable(first, second)
    except RunError as error:
        return None, str(error)
    rows = differences(first, second)
    row = next(row for row in rows if (row.metric, row.of) == (gate.metric, gate.of))
    if math.isnan(row.difference):
        return None, f"not defined in {baseline.path} or here: no pixel of '{gate.of}'"
    note = f"{row.first:.4f} in {baseline.path}, {row.second:.4f} here"
    if gate.end is None:
        return -row.difference, note
    if row.ends is None:
        return None, f"no interval of the drop: too few groups with pixels of it ({note})"
    return -row.ends[gate.end == "lower"], f"drop {-row.difference:.4f}: {note}"


# ---------------------------------------------------------------------------------------- values


def look_up(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Everything in scores.json that a gate can ask for, by `Gate.value`."""
    return {
        **_metrics(scores["scores"]),
        **_interval_ends(scores.get("intervals") or {}),
        **_slice_extremes(scores.get("slices") or []),
        **_efficiency(scores.get("efficiency") or {}),
        **{name: (scores.get("calibration") or {}).get(name) for name in CALIBRATION},
    }


def _metrics(scores: Mapping[str, Any]) -> dict[str, float | None]:
    rows = scores["per_class"]
    per_class = {f"{metric}[{row['name']}]": row[metric] for row in rows for metric in PER_CLASS}
    return {name: scores[name] for name in TOTALS} | per_class


def _interval_ends(intervals: Mapping[str, Any]) -> dict[str, float | None]:
    ends = dict(intervals.get("metrics", {}))
    for name, metrics in intervals.get("per_class", {}).items():
        ends |= {f"{metric}[{name}]": metrics.get(metric) for metric in PER_CLASS}
    return {
        f"{value}.{end}": pair and pair[index]
        for value, pair in ends.items()
        for index, end in enumerate(("lower", "upper"))
    }


def _slice_extremes(slices: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The least and the largest value over the slices in which it is defined."""
    found: dict[str, list[float]] = {}
    for each in slices:
        for value, number in _of_slice(each).items():
            if number is not None:
                found.setdefault(f"slice({each['by']}).{value}", []).append(number)
    return {
        f"{value}.{name}": of(numbers) for value, numbers in found.items() for name, of in _EXTREMES.items()
    }


def _of_slice(each: Mapping[str, Any]) -> dict[str, float | None]:
    totals = {name: each.get(name) for name in TOTALS}
    per_class = {
        f"{metric}[{name}]": number for metric in PER_CLASS for name, number in each.get(metric, {}).items()
    }
    return totals | per_class


def _efficiency(efficiency: Mapping[str, Any]) -> dict[str, float | None]:
    throughput = efficiency.get("throughput") or {}
    flat = {**efficiency, **{f"throughput.{key}": value for key, value in throughput.items()}}
    return {name: flat.get(name) for name in EFFICIENCY}


# --------------------------------------------------------------------------------------- reasons


def _reason(gate: Gate, scores: Mapping[str, Any]) -> str:
    """Why the gate has no value."""
    if gate.metric in EFFICIENCY:
        return "not measured; `visionsft evaluate --efficiency` does"
    if gate.metric in CALIBRATION:
        return "no calibration was measured"
    if gate.by:
        return _sliced(gate, scores)
    if _metrics(scores["scores"])[_plain(gate)] is None:
        where = {"recall": "in truth", "precision": "in the prediction"}.get(
            gate.metric, "in truth or prediction"
        )
        return f"not defined: no pixel of '{gate.of}' {where} of split '{scores['split']}'"
    return f"no interval: {_no_interval(gate, scores.get('intervals') or {})}"


def _no_interval(gate: Gate, intervals: Mapping[str, Any]) -> str:
    per_class = intervals.get("per_class", {}).get(gate.of, {})
    return per_class.get("note") or intervals.get("note") or "none was made"


def _sliced(gate: Gate, scores: Mapping[str, Any]) -> str:
    """In how many slices the value is defined."""
    slices = [each for each in scores.get("slices") or () if each["by"] == gate.by]
    if not slices:
        return f"no slices by '{gate.by}' were scored"
    defined = sum(_of_slice(each).get(_plain(gate)) is not None for each in slices)
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
