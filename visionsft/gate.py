"""The gate: one requirement on a run's results, as a line of text such as ``recall[car].lower >= 0.55``.

::

    gate  = value comparison number
    value = metric                        mean_iou           of the whole split
          | metric[class]                 recall[car]
          | value.lower, value.upper      recall[car].lower  the end of its interval
          | slice(name).value.min, .max   slice(group).recall[car].min, over the slices where it is defined
          | value drop_vs run             iou[water] drop_vs runs/baseline: that run's value minus this one's;
                                          with .lower or .upper, the end of the paired interval of the drop

Slices have the names that `visionsft evaluate --slice-by` takes; 'drive' and 'scene' are other words for 'group'.
This is the language alone, for the configuration to check; `visionsft.acceptance` compares gates with what a
run can answer, and `visionsft.evaluation.gates` judges.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from visionsft.errors import nearest

TOTALS = ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_recall")
"""Metrics of the whole split."""
PER_CLASS = ("iou", "recall", "precision", "f1")
EFFICIENCY = ("parameters", "gmacs_per_mpx", "throughput.mpx_s", "peak_memory_mb")
CALIBRATION = ("ece",)
SLICED = ("mean_iou", "pixel_accuracy", "mean_recall", "iou", "recall")
"""Metrics that are scored slice by slice."""
METRICS = (*TOTALS, *PER_CLASS, *CALIBRATION, *EFFICIENCY)

_ENDS = ("lower", "upper")
_EXTREMES = ("min", "max")
_GROUPS = ("drive", "scene")
_PARTS = (*_ENDS, *_EXTREMES)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_GATE = re.compile(rf"(?P<value>.+?)\s*(?P<comparison>>=|<=|>|<)\s*(?P<limit>{_NUMBER})")
_DROP = re.compile(r"(?P<value>.+?)\s+drop_vs\s+(?P<baseline>\S.*)")
_VALUE = re.compile(r"(?:slice\((?P<by>.+?)\)\.)?(?P<metric>\w+)(?:\[(?P<of>.+)\])?(?P<rest>(?:\.\w+)*)")


@dataclass(frozen=True)
class Gate:
    """A parsed gate; its text is parsed to an equal one."""

    metric: str
    comparison: str
    """``>=``, ``<=``, ``>`` or ``<``."""
    limit: float
    of: str | None = None
    """The class."""
    end: str | None = None
    """'lower' or 'upper' end of the interval, in place of the value."""
    by: str | None = None
    """What the split is sliced by."""
    extreme: str | None = None
    """'min' or 'max' over the slices."""
    baseline: str | None = None
    """Path of the run whose value this one's is subtracted from."""

    def __str__(self) -> str:
        drop = f" drop_vs {self.baseline}" if self.baseline else ""
        return f"{self.value}{drop} {self.comparison} {self.limit!r}"

    @property
    def value(self) -> str:
        """What is looked up, without baseline and limit."""
        by, of = (f"slice({self.by})." if self.by else "", f"[{self.of}]" if self.of else "")
        return ".".join(filter(None, (f"{by}{self.metric}{of}", self.end, self.extreme)))

    @property
    def is_about_efficiency(self) -> bool:
        """Its value is only measured on request."""
        return self.metric in EFFICIENCY

    @property
    def is_floor(self) -> bool:
        """More is better."""
        return self.comparison in (">=", ">")

    def admits(self, value: float) -> bool:
        """Whether `value` is on the right side of the limit; nan never is."""
        strict = len(self.comparison) == 1
        beyond = value > self.limit if self.is_floor else value < self.limit
        return beyond or (value == self.limit and not strict)


# --------------------------------------------------------------------------------------- parsing


def parse(text: str) -> Gate:
    """The gate that `text` is; a ValueError says what it has instead of what is allowed."""
    whole = _GATE.fullmatch(text.strip())
    if whole is None:
        raise ValueError(
            "must be a value, one of >= <= > < and a number, for example 'mean_iou >= 0.70' or "
            "'recall[car].lower >= 0.55'"
        )
    drop = _DROP.fullmatch(whole["value"])
    gate = Gate(
        **_parse_value(drop["value"] if drop else whole["value"]),
        comparison=whole["comparison"],
        limit=float(whole["limit"]),
        baseline=drop["baseline"] if drop else None,
    )
    _check_parts(gate)
    _check_limit(gate)
    return gate


def _parse_value(text: str) -> dict[str, Any]:
    """The fields of a gate that name its value."""
    match = _VALUE.fullmatch(text)
    if match is None:
        raise ValueError(f"must name a metric before its comparison, not {text!r}; {_allowed()}")
    names = match["rest"].split(".")[1:]
    metric = match["metric"]
    if match["of"] is None:  # a metric's own name may have a dot
        metric, names = ".".join([metric, *(n for n in names if n not in _PARTS)]), _parts(names)
    if metric not in METRICS:
        hint = nearest(metric, [*METRICS, *(f"{name}.{part}" for name in TOTALS for part in _PARTS)])
        raise ValueError(
            f"must name a metric; {metric!r} is none; " + (f"nearest: {hint}" if hint else _allowed())
        )
    for name in names:
        if name not in _PARTS:
            raise ValueError(
                f"must end in {', '.join('.' + part for part in _PARTS)} if anything, not in .{name}"
            )
    end, extreme = _only(names, _ENDS), _only(names, _EXTREMES)
    of, by = (match[key] and match[key].strip() for key in ("of", "by"))
    by = "group" if by in _GROUPS else by
    return {"metric": metric, "of": of, "end": end, "by": by, "extreme": extreme}


def _parts(names: Sequence[str]) -> list[str]:
    return [name for name in names if name in _PARTS]


def _only(names: Sequence[str], allowed: Sequence[str]) -> str | None:
    """The one name that is among `allowed`, if any is."""
    found = [name for name in names if name in allowed]
    if len(found) > 1:
        raise ValueError(f"must have one of {', '.join('.' + name for name in allowed)} at most")
    return found[0] if found else None


def _allowed() -> str:
    return f"allowed: {', '.join(METRICS)}"


def _check_parts(gate: Gate) -> None:
    """Refuse what has no meaning together."""
    if gate.metric in PER_CLASS and not gate.of:
        raise ValueError(f"must say the class, for example '{gate.metric}[car]'")
    if gate.metric not in PER_CLASS and gate.of is not None:
        raise ValueError(f"must not name a class: {gate.metric} is of the whole split")
    if bool(gate.by) != bool(gate.extreme):
        raise ValueError(
            "must have .min or .max with slices, and only there, as in 'slice(drive).mean_iou.min'"
        )
    if gate.by and gate.metric not in SLICED:
        raise ValueError(f"must not have slice(): slices have {', '.join(SLICED)}, not {gate.metric}")
    if gate.by and (gate.end or gate.baseline):
        raise ValueError("must not combine slice() with .lower, .upper or drop_vs: that has no value")
    part = (gate.end and f".{gate.end}") or (gate.baseline and "drop_vs")
    if part and gate.metric in (*EFFICIENCY, *CALIBRATION):
        raise ValueError(f"must not have {part}: {gate.metric} is one number of the whole split")


def _check_limit(gate: Gate) -> None:
    """A limit outside of what the metric can be is a slip, such as 70 for 70 %."""
    if gate.metric in EFFICIENCY:
        if math.isinf(gate.limit):
            raise ValueError("must have a finite limit")
        return
    smallest = -1.0 if gate.baseline else 0.0
    if not smallest <= gate.limit <= 1.0:
        raise ValueError(f"must have a limit from {smallest:g} to 1; given {gate.limit:g}")
