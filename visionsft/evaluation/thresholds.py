"""Thresholds: from which probability on a class is given, for a wanted recall or precision.

`RULE` says how a pixel's class is decided. Probabilities are those of the run, with its temperature if it has one.
Thresholds are chosen on validation, where the requirement is met, and their price is shown on test, where it
may not be: that is the evidence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules import DataError
from datamodules.batch import IGNORE, Batch
from visionsft.errors import ConfigError, nearest
from visionsft.evaluation.answers import infer
from visionsft.evaluation.evaluating import check_split, progress
from visionsft.evaluation.metrics import SegmentationScores, confusion_matrix, predict_classes, summarise
from visionsft.evaluation.metrics.segmentation import number
from visionsft.evaluation.operating import FILE, apply_thresholds, describe_owner
from visionsft.evaluation.temperature import read_temperature
from visionsft.runs import Checkpoint, Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

RULE = (
    "a pixel gets the first class, in this order, whose probability reaches its threshold; a pixel that reaches none "
    "gets the most probable of the classes without a threshold (of all, if every class has one)"
)
STEPS = torch.cat([torch.zeros(1), torch.linspace(-12, 12, 2401).sigmoid()])
"""Candidate thresholds (float32): 0, and an even lattice of log odds, fine near 0 and near 1."""
_WANTED = re.compile(r"\s*(\w+)\s*\[\s*(.+?)\s*\]\s*>=\s*(\S+)\s*")


@dataclass(frozen=True)
class Requirement:
    """What is wanted of one class."""

    metric: Literal["recall", "precision"]
    class_name: str
    at_least: float

    def __str__(self) -> str:
        return f"{self.metric}[{self.class_name}] >= {self.at_least:g}"


@dataclass(frozen=True)
class Threshold:
    """The probability from which on a class is given, and what that gives on validation."""

    wanted: Requirement
    value: float
    recall: float
    precision: float


@dataclass(frozen=True)
class Price:
    """What the rule changes on the test split."""

    plain: SegmentationScores
    """Of the most probable class."""
    ruled: SegmentationScores


@dataclass(frozen=True)
class OperatingPoint:
    """The result of `choose_thresholds`."""

    run: str
    checkpoint: str
    temperature: float
    thresholds: tuple[Threshold, ...]
    price: Price | None
    """None without a test split."""
    file: Path

    def table(self) -> str:
        """What the command line prints."""
        title = f"{self.run} · checkpoint {self.checkpoint} · temperature {self.temperature:.4f}"
        chosen = [
            f"  {each.wanted}: probability >= {each.value:.6g} gives recall {each.recall:.4f}, "
            f"precision {each.precision:.4f}"
            for each in self.thresholds
        ]
        price = _price_lines(self.price, self.thresholds) if self.price else ["no test split: no price"]
        written = f"written: {self.file}; `visionsft predict --operating-point` uses it"
        return "\n".join([title, "", "on val:", *chosen, "", *price, "", f"rule: {RULE}", written])

    def as_dict(self) -> dict[str, Any]:
        """For thresholds.json."""
        price = self.price and {"argmax": self.price.plain.as_dict(), "rule": self.price.ruled.as_dict()}
        rows = [
            {
                "class": chosen.wanted.class_name,
                "threshold": chosen.value,
                "wanted": str(chosen.wanted),
                "val": {"recall": chosen.recall, "precision": chosen.precision},
            }
            for chosen in self.thresholds
        ]
        return {"rule": RULE, "temperature": self.temperature, "thresholds": rows, "test": price}


def _price_lines(price: Price, thresholds: Sequence[Threshold]) -> list[str]:
    marked = {chosen.wanted.class_name for chosen in thresholds}
    width = max(len("mean"), *(len(row.name) for row in price.plain.per_class)) + 2
    head = f"{'on test':{width}}{'recall':>17}{'precision':>19}{'IoU':>19}   (most probable class -> rule)"
    lines = [head, "-" * len(head)]
    for old, new in zip(price.plain.per_class, price.ruled.per_class, strict=True):
        name = f"{old.name} *" if old.name in marked else old.name
        pairs = ((old.recall, new.recall), (old.precision, new.precision), (old.iou, new.iou))
        lines.append(f"{name:{width}}" + "  ".join(f"{number(a):>7} -> {number(b):>6}" for a, b in pairs))
    means = f"{number(price.plain.mean_iou)} -> {number(price.ruled.mean_iou)}"
    lines.append(f"mean IoU {means}, {price.plain.pixels:,} pixels; * has a threshold")
    return lines + [_verdict(chosen.wanted, price.ruled) for chosen in thresholds]


def _verdict(wanted: Requirement, scores: SegmentationScores) -> str:
    """Whether test has what validation promised."""
    row = next(row for row in scores.per_class if row.name == wanted.class_name)
    value = row.recall if wanted.metric == "recall" else row.precision
    held = "holds on test" if value >= wanted.at_least else "!! does not hold on test"
    return f"{wanted}: {held}, {number(value)}"


# -------------------------------------------------------------------------------------------- requirements


def parse_requirement(text: str, names: Sequence[str]) -> Requirement:
    """'recall[Pedestrian] >= 0.9' of one of the classes `names`."""
    form = "write it as 'recall[CLASS] >= 0.9' or 'precision[CLASS] >= 0.9'"
    match = _WANTED.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no requirement; {form}")
    metric, name, share = match.groups()
    if metric not in ("recall", "precision"):
        raise ConfigError(
            f"{text!r}: {metric!r} can't be required{_hint(metric, ('recall', 'precision'))}; {form}"
        )
    if name not in names:
        raise ConfigError(f"{text!r}: no class {name!r}{_hint(name, names)}; there are {', '.join(names)}")
    try:
        value = float(share)
    except ValueError:
        raise ConfigError(f"{text!r}: {share!r} is not a number; {form}") from None
    if not 0 < value <= 1:
        raise ConfigError(f"{text!r}: {share} is not a share; it must be above 0 and at most 1")
    return Requirement(metric, name, value)  # type: ignore[arg-type]


def parse_requirements(texts: Iterable[str], names: Sequence[str]) -> list[Requirement]:
    """Each class once; their order is that of the rule."""
    wanted = [parse_requirement(text, names) for text in texts]
    given = [each.class_name for each in wanted]
    if not given:
        raise ConfigError("no requirement was given, for example 'recall[CLASS] >= 0.9'")
    if twice := [name for name in given if given.count(name) > 1]:
        raise ConfigError(f"class {twice[0]!r} has two requirements; one threshold can't be chosen for both")
    return wanted


def _hint(given: str, allowed: Iterable[str]) -> str:
    close = nearest(given, allowed)
    return f" (nearest: {close})" if close else ""


# ------------------------------------------------------------------------------------------------ the rule


def count_scores(probabilities: Tensor, mask: Tensor, k: int, *, taken: Tensor) -> NDArray[np.int64]:
    """Labelled pixels by the largest of STEPS that their probability of class k reaches, those of k in row 1.

    probabilities: (B, K, H, W) float32; mask: (B, H, W), 255 = left out; taken: (B, H, W) bool, which an
    earlier class gets. -> (2, len(STEPS)).
    """
    free = (mask != IGNORE) & ~taken
    reached = torch.bucketize(probabilities[:, k][free], STEPS.to(mask.device), right=True) - 1
    codes = reached + (mask[free] == k) * len(STEPS)
    return torch.bincount(codes, minlength=2 * len(STEPS)).reshape(2, -1).cpu().numpy()


def choose(counts: NDArray[np.int64], positives: int, wanted: Requirement) -> Threshold:
    """The threshold that meets `wanted` at the least cost: the highest for a recall, the lowest for a precision.

    counts: `count_scores` over the split; positives: all pixels of the class, those that were taken too.
    """
    if not positives:
        raise DataError(f"{wanted}: no pixel of the validation split is labelled as {wanted.class_name}")
    false, true = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # given the class with each threshold
    recall, precision = true / positives, true / np.maximum(true + false, 1)
    values = recall if wanted.metric == "recall" else precision
    meets = np.flatnonzero(values >= wanted.at_least)
    if not len(meets):
        best = values.argmax()
        both = f"recall {recall[best]:.4f} and precision {precision[best]:.4f}"
        raise DataError(f"{wanted}: on the validation split the best is {both}, after the classes before it")
    index = meets[-1] if wanted.metric == "recall" else meets[0]
    return Threshold(wanted, float(STEPS[index]), float(recall[index]), float(precision[index]))


# ------------------------------------------------------------------------------------------------ choosing


def choose_thresholds(
    run: Run | str | Path, requirements: Sequence[str], *, checkpoint: Checkpoint = "best"
) -> OperatingPoint:
    """Choose a threshold for each of `requirements` ('recall[Pedestrian] >= 0.9') on validation, measure all
    on test, and keep them as ``<run>/thresholds.json``. Costs a pass over validation for each."""
    from visionsft.training.loading import load_run  # imported late, as in visionsft.evaluation

    run = run if isinstance(run, Run) else Run.open(run)
    run.require_segmentation("a requirement")
    loaded = load_run(run, checkpoint)
    loaded.data.setup("test")
    names = loaded.data.classes.names
    wanted = parse_requirements(requirements, names)
    check_split(loaded.data, "val")
    found = read_temperature(run, checkpoint)
    scorer = _Scorer(loaded, 1.0 if found is None else found.value)
    thresholds: list[Threshold] = []
    for each in wanted:
        counts, positives = scorer.count(names.index(each.class_name), _pairs(thresholds, names))
        thresholds.append(choose(counts, positives, each))
    price = scorer.price(_pairs(thresholds, names)) if loaded.data.items["test"] else None
    point = OperatingPoint(
        run.name, checkpoint, scorer.temperature, tuple(thresholds), price, run.path / FILE
    )
    run.write_json(FILE, {**point.as_dict(), "chosen_on": "val", **describe_owner(run, checkpoint)})
    return point


def _pairs(thresholds: Iterable[Threshold], names: Sequence[str]) -> list[tuple[int, float]]:
    return [(names.index(each.wanted.class_name), each.value) for each in thresholds]


@dataclass(frozen=True)
class _Scorer:
    """Passes over a run's splits."""

    loaded: LoadedRun
    temperature: float

    def count(self, k: int, earlier: Sequence[tuple[int, float]]) -> tuple[NDArray[np.int64], int]:
        """`count_scores` of class k over validation, and the class's pixels."""
        counts, positives = np.zeros((2, len(STEPS)), np.int64), 0
        for batch in self._batches("val"):
            probabilities, mask = self._probabilities(batch)
            taken = torch.zeros_like(mask, dtype=torch.bool)
            for owner, value in earlier:
                taken |= probabilities[:, owner] >= value
            counts += count_scores(probabilities, mask, k, taken=taken)
            positives += int((mask == k).sum())
        return counts, positives

    def price(self, thresholds: Sequence[tuple[int, float]]) -> Price:
        """The test split with the most probable class, and with the rule."""
        names = self.loaded.data.classes.names
        counts = torch.zeros(2, len(names), len(names), dtype=torch.int64)
        for batch in self._batches("test"):
            probabilities, mask = self._probabilities(batch)
            both = predict_classes(probabilities), apply_thresholds(probabilities, thresholds)
            counts += torch.stack([confusion_matrix(classes, mask, len(names)) for classes in both]).cpu()
        return Price(*(summarise(total, names) for total in counts))

    def _batches(self, split: str) -> Iterable[Batch]:
        return progress(self.loaded.data.evaluation_loader(split), f"thresholds on {split}")

    def _probabilities(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = infer(self.loaded, batch["image"])
        return (logits.float() / self.temperature).softmax(1), batch["mask"].to(logits.device)
