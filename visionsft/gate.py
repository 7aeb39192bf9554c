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
Each task has its own metrics, see `VOCABULARIES`; they have the names that they have in scores.json.
This is the language alone, for the configuration to check; `visionsft.acceptance` compares gates with what a
run can answer, and `visionsft.evaluation.gates` judges.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from visionsft.errors import nearest

EFFICIENCY = ("parameters", "gmacs_per_mpx", "throughput.mpx_s", "peak_memory_mb")
CALIBRATION = ("ece",)


@dataclass(frozen=True)
class Vocabulary:
    """The metrics that the gates of one task can ask for, beside those of efficiency and calibration."""

    totals: tuple[str, ...]
    """Of the whole split."""
    per_class: tuple[str, ...]
    """Some are totals, too: then the class is a choice."""
    with_interval: tuple[str, ...]
    """Of a total or of a class, as in `metric` or `metric[]`."""
    sliced: tuple[str, ...]
    """Scored slice by slice, likewise."""
    counted: str
    """What a class has none of where it isn't in truth."""
    slices: tuple[str, ...] = ("group", "brightness")
    """By what every split can be sliced, besides 'name:REGEX' and the columns of a metadata file."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Other words for a metric."""
    class_example: str = "recall[car]"

    @property
    def metrics(self) -> tuple[str, ...]:
        """All names, each once."""
        return tuple(dict.fromkeys((*self.totals, *self.per_class, *CALIBRATION, *EFFICIENCY)))

    def has_interval(self, metric: str, of: str | None) -> bool:
        return metric in CALIBRATION or (f"{metric}[]" if of else metric) in self.with_interval

    def is_sliced(self, metric: str, of: str | None) -> bool:
        return (f"{metric}[]" if of else metric) in self.sliced


def _of_class(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}[]" for name in names)


TOTALS = ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_recall")
"""Metrics of the whole split."""
PER_CLASS = ("iou", "recall", "precision", "f1")
_BOUNDARIES = ("mean_boundary_iou", "mean_boundary_f1", "object_recall")
_BOUNDARY_CLASS = ("boundary_iou", "boundary_f1", "object_recall")
_BOXES = ("map", "ap50", "ap75", "ar", "recall", "precision", "log_average_miss_rate",
          "recall_at_fppi.0.1", "recall_at_fppi.1")  # fmt: skip
_BOX_CLASS = ("ap", "ap50", "recall", "precision", "log_average_miss_rate", "best_recall", "best_precision", "best_f1")
_LABELS = ("accuracy", "macro_f1", "mean_recall", "mean_average_precision")
_TOP = ("top_k.2", "top_k.3", "top_k.5")
_LABEL_CLASS = ("recall", "precision", "f1", "average_precision")


def _masks(*names: str) -> tuple[str, ...]:
    """The same of outlines, by the overlap of masks."""
    return tuple(f"mask_{name}" for name in names)


_SEGMENTATION = Vocabulary(
    totals=(*TOTALS, *_BOUNDARIES),
    per_class=(*PER_CLASS, *_BOUNDARY_CLASS),
    with_interval=(*TOTALS, *_BOUNDARIES, *_of_class(*PER_CLASS, *_BOUNDARY_CLASS)),
    sliced=("mean_iou", "pixel_accuracy", "mean_recall", *_of_class("iou", "recall")),
    counted="pixel",
    slices=("group", "brightness", "object_size", "edge_distance"),
)
_DETECTION = Vocabulary(
    totals=_BOXES,
    per_class=_BOX_CLASS,
    with_interval=("map", "ap50", "recall", *_of_class("ap50", "recall")),
    sliced=("map", "ap50", "recall", "precision", *_of_class("ap50", "recall")),
    counted="object",
    slices=("group", "brightness", "object_size"),
    aliases=(("map50", "ap50"), ("map75", "ap75")),
    class_example="recall[Car]",
)
VOCABULARIES = {
    "segmentation": _SEGMENTATION,
    "detection": _DETECTION,
    "instance_segmentation": replace(
        _DETECTION,
        totals=(*_BOXES, *_masks(*_BOXES)),
        per_class=(*_BOX_CLASS, *_masks(*_BOX_CLASS)),
        with_interval=(*_DETECTION.with_interval, *_masks(*_DETECTION.with_interval)),
        aliases=(*_DETECTION.aliases, ("mask_map50", "mask_ap50"), ("mask_map75", "mask_ap75")),
    ),
    "classification": Vocabulary(
        totals=(*_LABELS, *_TOP),
        per_class=_LABEL_CLASS,
        with_interval=(*_LABELS, *_TOP, *_of_class(*_LABEL_CLASS)),
        sliced=("accuracy", "macro_f1", "mean_recall", *_of_class("recall", "precision", "f1")),
        counted="image",
        class_example="recall[forest]",
    ),
}
"""By the kind of the task."""

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
    def is_about_boundaries(self) -> bool:
        """Likewise."""
        return self.metric in (*_BOUNDARIES, *_BOUNDARY_CLASS)

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


def parse(text: str, task: str = "segmentation") -> Gate:
    """The gate that `text` is for a task; a ValueError says what it has instead of what is allowed."""
    words = VOCABULARIES[task]
    whole = _GATE.fullmatch(text.strip())
    if whole is None:
        raise ValueError(
            f"must be a value, one of >= <= > < and a number, for example '{words.totals[0]} >= 0.70' or "
            f"'{words.class_example}.lower >= 0.55'"
        )
    drop = _DROP.fullmatch(whole["value"])
    gate = Gate(
        **_parse_value(drop["value"] if drop else whole["value"], words),
        comparison=whole["comparison"],
        limit=float(whole["limit"]),
        baseline=drop["baseline"] if drop else None,
    )
    _check_parts(gate, words)
    _check_limit(gate)
    return gate


def _parse_value(text: str, words: Vocabulary) -> dict[str, Any]:
    """The fields of a gate that name its value."""
    match = _VALUE.fullmatch(text)
    if match is None:
        raise ValueError(f"must name a metric before its comparison, not {text!r}; {_allowed(words)}")
    names = match["rest"].split(".")[1:]
    metric = match["metric"]
    if match["of"] is None:  # a metric's own name may have a dot
        metric, names = ".".join([metric, *(n for n in names if n not in _PARTS)]), _parts(names)
    metric = dict(words.aliases).get(metric, metric)
    if metric not in words.metrics:
        hint = nearest(metric, [*words.metrics, *(f"{name}.{part}" for name in words.totals for part in _PARTS)])
        raise ValueError(
            f"must name a metric; {metric!r} is none; " + (f"nearest: {hint}" if hint else _allowed(words))
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


def _allowed(words: Vocabulary) -> str:
    return f"allowed: {', '.join(words.metrics)}"


def _check_parts(gate: Gate, words: Vocabulary) -> None:
    """Refuse what has no meaning together."""
    is_total = gate.metric in (*words.totals, *CALIBRATION, *EFFICIENCY)
    if not is_total and not gate.of:
        raise ValueError(f"must say the class, for example '{gate.metric}[car]'")
    if gate.metric not in words.per_class and gate.of is not None:
        raise ValueError(f"must not name a class: {gate.metric} is of the whole split")
    if bool(gate.by) != bool(gate.extreme):
        raise ValueError(
            "must have .min or .max with slices, and only there, as in 'slice(drive).mean_iou.min'"
        )
    if gate.by and not words.is_sliced(gate.metric, gate.of):
        raise ValueError(f"must not have slice(): slices have {_listed(words.sliced)}, not {_name(gate)}")
    if gate.by and (gate.end or gate.baseline):
        raise ValueError("must not combine slice() with .lower, .upper or drop_vs: that has no value")
    part = (gate.baseline and "drop_vs") or (gate.end and f".{gate.end}")
    if part and (gate.metric in EFFICIENCY or (gate.baseline and gate.metric in CALIBRATION)):
        raise ValueError(f"must not have {part}: {gate.metric} is one number of the whole split")
    if gate.end and not words.has_interval(gate.metric, gate.of):
        told = _listed(words.with_interval)
        raise ValueError(f"must not have .{gate.end}: intervals are of {told}, not {_name(gate)}")


def _name(gate: Gate) -> str:
    return f"{gate.metric}[{gate.of}]" if gate.of else gate.metric


def _listed(names: Sequence[str]) -> str:
    """A class's metric is shown as such."""
    return ", ".join(name.replace("[]", "[CLASS]") for name in names)


def _check_limit(gate: Gate) -> None:
    """A limit outside of what the metric can be is a slip, such as 70 for 70 %."""
    if gate.metric in EFFICIENCY:
        if math.isinf(gate.limit):
            raise ValueError("must have a finite limit")
        return
    smallest = -1.0 if gate.baseline else 0.0
    if not smallest <= gate.limit <= 1.0:
        raise ValueError(f"must have a limit from {smallest:g} to 1; given {gate.limit:g}")
