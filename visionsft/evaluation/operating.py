"""The operating point: the class thresholds that a run keeps, read back to be applied, and what they cost.

``thresholds.json`` belongs to one checkpoint and one set of views, and names the temperature of its probabilities.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from visionsft.errors import RunError
from visionsft.evaluation.metrics import predict_classes
from visionsft.evaluation.metrics.segmentation import number, without_nan
from visionsft.runs import Checkpoint, Run

FILE = "thresholds.json"


@dataclass(frozen=True)
class AppliedPoint:
    """Thresholds of some or all classes of a run."""

    thresholds: tuple[tuple[int, float], ...]
    """(class index, threshold) in the order of the rule."""
    names: tuple[str, ...]
    """Of all K classes."""
    rule: str
    temperature: float
    """Of the probabilities that the thresholds are of; 1 for the scores of detectors."""
    sha256: str
    """Of the checkpoint."""

    def by_class(self, other: float) -> list[float]:
        """K thresholds, `other` of classes without their own."""
        known = dict(self.thresholds)
        return [known.get(k, other) for k in range(len(self.names))]

    def decide(self, logits: Tensor) -> Tensor:
        """The rule of maps: (B, K, H, W) float -> (B, H, W) uint8."""
        return apply_thresholds((logits.float() / self.temperature).softmax(1), self.thresholds)

    def as_dict(self) -> dict[str, Any]:
        """To be kept with what was made with it."""
        values = {self.names[k]: value for k, value in self.thresholds}
        known = {"temperature": self.temperature, "checkpoint_sha256": self.sha256}
        return {"thresholds": values, "rule": self.rule, **known}


def apply_thresholds(probabilities: Tensor, thresholds: Sequence[tuple[int, float]]) -> Tensor:
    """The rule of maps: ``(B, K, H, W) float32`` and (class, threshold) in order -> ``(B, H, W) uint8``."""
    own = [k for k, _ in thresholds]
    rest = probabilities
    if len(own) < probabilities.shape[1]:
        rest = probabilities.clone()
        rest[:, own] = -1.0
    classes = predict_classes(rest)
    for k, value in reversed(thresholds):  # the first is written last, over the others
        classes[probabilities[:, k] >= value] = k
    return classes


# ------------------------------------------------------------------------------------------------ reading


def describe_owner(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """What thresholds hold for, to be kept beside them."""
    return {"checkpoint": run.identify(checkpoint), "views": _views(run)}


def read_point(run: Run, names: Sequence[str], checkpoint: Checkpoint = "best") -> AppliedPoint:
    """The run's operating point; a RunError where there is none, or one of another checkpoint or other views."""
    path = run.path / FILE
    if not path.is_file():
        raise RunError(f"{run.path}: has no operating point; {_say_how(run)}")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        point = AppliedPoint(
            tuple((names.index(name), value) for name, value in _values(stored["thresholds"])),
            tuple(names),
            str(stored["rule"]),
            _positive(stored.get("temperature", 1.0)),
            str(stored["checkpoint"]["sha256"]),
        )
        views = stored.get("views", _views(run))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: can't be read ({error!r}); {_say_how(run)}") from error
    if point.sha256 != run.identify(checkpoint)["sha256"]:
        raise RunError(
            f"{path}: is for another checkpoint than {checkpoint}.ckpt as it is now; {_say_how(run)} anew"
        )
    if views != _views(run):
        raise RunError(f"{path}: was chosen with other inference views; {_say_how(run)} anew")
    return point


def find_point(run: Run, names: Sequence[str], checkpoint: Checkpoint) -> AppliedPoint | None:
    """The same, for what can be done without: None where there is none, with a warning if it is for something else."""
    if not (run.path / FILE).is_file():
        return None
    try:
        return read_point(run, names, checkpoint)
    except RunError as error:
        warnings.warn(f"{error}; its price isn't shown", stacklevel=2)
        return None


def _values(stored: Any) -> list[tuple[str, float]]:
    """By class, in order: a row each, or a mapping."""
    if isinstance(stored, Mapping):
        return [(name, float(value)) for name, value in stored.items()]
    return [(row["class"], float(row["threshold"])) for row in stored]


def _positive(value: Any) -> float:
    found = float(value)
    if not 0 < found < math.inf:
        raise ValueError(f"temperature {value}")
    return found


def _views(run: Run) -> dict[str, Any]:
    """How predictions are averaged."""
    inference = run.config.model_dump(mode="json", include={"inference"})["inference"]
    return {name: inference[name] for name in ("scales", "symmetry")}


def _say_how(run: Run) -> str:
    wanted = "" if run.task == "classification" else " 'recall[CLASS] >= 0.9'"
    return f"`visionsft thresholds {run.path}{wanted}` chooses it on validation"


# -------------------------------------------------------------------------------------------------- price


@dataclass(frozen=True)
class ClassPrice:
    """What the thresholds change for one class; nan where a number isn't defined."""

    name: str
    threshold: float | None
    recall: tuple[float, float]
    """Without the thresholds, and with them."""
    precision: tuple[float, float]
    f1: tuple[float, float]


@dataclass(frozen=True)
class PointPrice:
    """What a run's thresholds change on a split."""

    point: AppliedPoint
    without: str
    """What is decided without them."""
    per_class: tuple[ClassPrice, ...]

    @classmethod
    def of(cls, point: AppliedPoint, plain: Sequence[Any], ruled: Sequence[Any], *, without: str) -> PointPrice:
        """plain, ruled: the classes' scores with `recall`, `precision` and `f1`."""
        known, rows = dict(point.thresholds), []
        for k, (name, *scores) in enumerate(zip(point.names, plain, ruled, strict=True)):
            recall, precision, f1 = (
                (getattr(scores[0], metric), getattr(scores[1], metric)) for metric in ("recall", "precision", "f1")
            )
            rows.append(ClassPrice(name, known.get(k), recall, precision, f1))
        return cls(point, without, tuple(rows))

    def lines(self) -> list[str]:
        """For the table."""
        width = max(len("operating point"), *(len(row.name) for row in self.per_class))
        heads = "".join(f"{head:>19}" for head in ("recall", "precision", "F1"))
        lines = [f"{'operating point':{width}}  threshold{heads}   ({self.without} -> rule)"]
        for row in self.per_class:
            pairs = (row.recall, row.precision, row.f1)
            threshold = "-" if row.threshold is None else f"{row.threshold:.4g}"
            numbers = "".join(f"{number(a):>9} -> {number(b):>6}" for a, b in pairs)
            lines.append(f"{row.name:{width}}  {threshold:>9}{numbers}")
        return [*lines, f"rule: {self.point.rule}"]

    def as_dict(self) -> dict[str, Any]:
        """For scores.json: numbers in pairs, without and with the thresholds."""
        rows = [asdict(row) for row in self.per_class]
        return {**self.point.as_dict(), "without": self.without, "per_class": without_nan(rows)}
