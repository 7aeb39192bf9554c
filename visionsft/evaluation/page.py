"""Page: what the report of a run says of its task, beyond what the reports of all tasks say."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from visionsft import plots
from visionsft.evaluation.facts import Facts
from visionsft.evaluation.showing import PICTURE_BUDGET, Gallery, arrange, embed

Drawn = tuple[str, Figure, str]
"""A figure's name on the page, the figure, and what it shows in words."""

Columns = tuple[tuple[str, str], ...]
"""Keys of a row, and their heads."""

Told = tuple[str, str]
"""What a part of the results tells, and the command that stores it."""

GROUPS_SHOWN, SLICES_SHOWN = 40, 200
_SAME = 0.0005
"""Changes below are none for a reader: the page has three digits."""
_NO_COLUMNS = ("by", "value", "samples", "groups", "interval", "note", "classes_present", "pixels")
"""Keys of a slice that have a place of their own, or none."""


class Page(ABC):
    """The report of one task: what stands in its tables, figures and gallery."""

    template: ClassVar[str]
    comparison: ClassVar[str]
    """Template of two runs side by side."""
    noun: ClassVar[str]
    """The task, at the beginning of a sentence."""
    pipeline: ClassVar[str]
    """The task as the Hugging Face hub calls it."""
    headline: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    """Over all classes, in the order of telling."""
    class_metrics: ClassVar[Columns]
    marked: ClassVar[tuple[str, str]]
    """The two of them that are drawn."""
    counted: ClassVar[str]
    """What is counted of a class in truth: a key of its row."""
    part_metric: ClassVar[str]
    """Of slices, whose intervals it has, and under corruptions."""
    filters: ClassVar[Mapping[str, str]]
    """Of the gallery: what a sample's `traits` are called."""
    layers: ClassVar[tuple[str, ...]]
    """Of its pictures."""
    sections: ClassVar[Mapping[str, Told]] = {
        "intervals": ("how far the numbers may move", "visionsft evaluate {run} --split {split}"),
        "slices": ("parts of the data", "visionsft evaluate {run} --split {split} --slice-by group"),
        "efficiency": ("costs", "visionsft evaluate {run} --split {split} --efficiency"),
    }
    """Keys of scores.json that may be missing."""
    files: ClassVar[Mapping[str, Told]] = {
        "gates": ("requirements", "visionsft evaluate {run} --split {split} --gates"),
        "robustness": ("worse conditions", "visionsft robustness {run} --split {split}"),
    }
    """The same of files."""
    known: ClassVar[frozenset[str]] = frozenset(
        {"run", "task", "split", "warning", "checkpoint", "samples", "groups", "classes", "scores", "definitions",
         "confusion", "data", "environment", "slices_note", "operating_point"}
    )  # fmt: skip
    """Further keys of scores.json that the page tells of; what is in none of these is shown as it stands."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    # ------------------------------------------------------------------------------------- numbers

    @property
    def scores(self) -> Mapping[str, Any]:
        return self.facts.scores["scores"]

    def value(self, metric: str) -> float | None:
        """Over all classes; 'top_k.3' is an entry of 'top_k'."""
        name, _, key = metric.partition(".")
        found = self.scores[name]
        return found[key] if key else found

    def definition(self, metric: str) -> str:
        """What it means."""
        return str(self.facts.scores["definitions"][metric.partition(".")[0]])

    @property
    def intervals(self) -> Mapping[str, Any]:
        """By metric over all classes; empty where none were stored."""
        return (self.facts.scores.get("intervals") or {}).get("metrics") or {}

    def classes(self) -> list[dict[str, Any]]:
        """A row a class: its scores, their intervals, and its share of labels in training and on the split."""
        intervals = (self.facts.scores.get("intervals") or {}).get("per_class") or {}
        rows, trained = self.scores["per_class"], self.facts.data.get("class_shares") or {}
        total = max(1, sum(row[self.counted] for row in rows))
        return [
            {
                **row,
                "share": row[self.counted] / total,
                "interval": intervals.get(row["name"], {}),
                "trained": trained.get(row["name"]),
            }
            for row in rows
        ]

    def ranked(self) -> list[dict[str, Any]]:
        """The classes in truth, best first."""
        metric = self.marked[0]
        rows = [row for row in self.scores["per_class"] if row[self.counted] and row[metric] is not None]
        return sorted(rows, key=lambda row: -row[metric])

    @abstractmethod
    def limits(self) -> list[str]:
        """What goes wrong most, in sentences."""

    # -------------------------------------------------------------------------------------- groups

    group_columns: ClassVar[Columns]

    @abstractmethod
    def group_rows(self) -> list[dict[str, Any]]:
        """Scores of each scene or drive by `group_columns`, with its name, in any order."""

    def groups(self) -> list[dict[str, Any]]:
        """The worst first; none where each sample is its own group."""
        sizes = Counter(self.facts.samples.groups)
        if len(sizes) < 2 or max(sizes.values()) == 1:
            return []
        first = self.group_columns[0][0]
        rows = [{**row, "samples": sizes[row["name"]]} for row in self.group_rows() if not _is_nan(row[first])]
        return sorted(rows, key=lambda row: row[first])[:GROUPS_SHOWN]

    def slices(self) -> list[Mapping[str, Any]]:
        """The worst first."""
        rows = [row for row in self.facts.scores.get("slices") or () if self.part_metric in row]
        return sorted(rows, key=lambda row: math.inf if row[self.part_metric] is None else row[self.part_metric])

    def slice_columns(self) -> list[str]:
        """Further numbers of slices, beside that metric."""
        first = next(iter(self.slices()), {})
        return [
            key
            for key, value in first.items()
            if isinstance(value, (int, float, type(None))) and key not in (*_NO_COLUMNS, self.part_metric)
        ]

    # ------------------------------------------------------------------------------------- figures

    def figures(self) -> Iterator[Drawn]:
        """All that the run folder has numbers for."""
        yield from self._training_figures()
        scores, table = self.facts.scores, "the table has its numbers"
        names = " and ".join(plots.TITLES.get(each, each) for each in self.marked)
        figure = plots.class_scores(scores, metrics=self.marked)
        yield "classes", figure, f"Dot chart: {names} by class; {table}."
        singles = self.facts.samples.sample_scores()
        if not np.isnan(singles).all():
            what = self.facts.samples.sample_score
            yield "singles", plots.sample_scores(singles, what=what), _say_singles(singles, what)
        if slices := self.slices():
            figure = plots.slices(slices, metric=self.part_metric)
            yield "slices", figure, f"Dot chart: {plots.TITLES[self.part_metric]} by slice; {table}."

    def _training_figures(self) -> Iterator[Drawn]:
        rows = self.facts.metrics
        epochs = f"by epoch, {len(rows)} in all"
        if any(row.get("train/loss") is not None for row in rows):
            yield "losses", plots.losses(rows), f"Line chart: loss {epochs}.{self._last('loss')}"
        validated = [key for key in plots.VALIDATED if any(row.get(key) is not None for row in rows)]
        if validated:
            said = self._last(validated[0].removeprefix("val/"))
            yield "validation", plots.validation_scores(rows), f"Line chart: validation scores {epochs}.{said}"
        if outlines := self.facts.data.get("outlines"):
            yield "map", plots.footprints(outlines), _say_map(outlines)

    def _last(self, what: str) -> str:
        """The last values of the columns of that name, in words."""
        found = [
            f" Last {key.replace('/', ' ').replace('_', ' ')}: {value:.3f}."
            for key, value in self.facts.metrics[-1].items()
            if key.endswith(f"/{what}") and value is not None
        ]
        return "".join(found)

    @property
    def best(self) -> tuple[str, float, int] | None:
        """The validation metric that chose the weights, its best value and epoch."""
        finished = self.facts.finished or {}
        names = [key for key in finished if key.startswith("best_val_")]
        if not names or finished.get("best_epoch") is None or finished[names[0]] is None:
            return None
        return names[0].removeprefix("best_val_"), finished[names[0]], finished["best_epoch"]

    # ------------------------------------------------------------------------------------- gallery

    @abstractmethod
    def traits(self, sample: Mapping[str, Any]) -> dict[str, list[str]]:
        """What the gallery's filters look at, of an entry of its index."""

    def options(self, traits: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
        """The values of each filter."""
        return {key: list(dict.fromkeys(value for each in traits for value in each[key])) for key in self.filters}

    def gallery(self, *, budget: int = PICTURE_BUDGET) -> Gallery:
        """The worst samples of the run."""
        entries = (self.facts.gallery or {}).get("samples", ())
        samples = embed(entries, self.facts.folder / "gallery", budget=budget)
        traits = [self.traits(sample) for sample in samples]
        options = self.options(traits)
        filters = {key: (title, options[key]) for key, title in self.filters.items()}
        return arrange(samples, filters=filters, traits=traits, layers=self.layers, of=len(entries))

    def pair_gallery(self, other: Page) -> Gallery:
        """The samples that are in either run's gallery with both runs' answers, the largest change first."""
        one, two = (
            dict(zip(page.facts.samples.ids, page.facts.samples.sample_scores().tolist(), strict=True))
            for page in (self, other)
        )
        pairs = [
            {**sample, "first": one[sample["id"]], "second": two[sample["id"]]}
            for sample in self._pair(other, budget=PICTURE_BUDGET // 2)
        ]
        pairs.sort(key=lambda pair: -abs(_change(pair)))
        groups = list(dict.fromkeys(pair["group"] for pair in pairs))
        filters = {
            "change": ("the second run is", ("better", "worse", "the same")),
            "group": ("scene or drive", groups),
        }
        traits = [{"change": [_say_change(pair)], "group": [pair["group"]]} for pair in pairs]
        layers = ("image", "truth", "A", "B") if self.layers else ()
        return arrange(pairs, filters=filters, traits=traits, layers=layers, of=len(pairs))

    def _galleries(self, other: Page, budget: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The worst samples of both, with their pictures."""
        one, two = (
            embed((page.facts.gallery or {}).get("samples", ()), page.facts.folder / "gallery", budget=budget)
            for page in (self, other)
        )
        return one, two

    @abstractmethod
    def _pair(self, other: Page, *, budget: int) -> list[dict[str, Any]]:
        """Samples of both galleries, each once, with the answers of both; budget: bytes of each run's pictures."""

    # ------------------------------------------------------------------------------------ template

    def missing(self) -> list[Told]:
        """What could be told, but hasn't been measured, and the command that does; both with {run} and {split}."""
        asked = [told for key, told in self.sections.items() if not self.facts.scores.get(key)]
        return asked + [told for name, told in self.files.items() if getattr(self.facts, name) is None]

    def extras(self) -> dict[str, Any]:
        """What scores.json has and this version knows nothing of."""
        known = self.known | self.sections.keys()
        return {key: value for key, value in self.facts.scores.items() if key not in known and value}

    def context(self) -> dict[str, Any]:
        """What the task's own template needs besides."""
        return {}

    @cached_property
    def backbone(self) -> str:
        return str(json.loads(self.facts.settings["backbone.name"]))


def _change(pair: Mapping[str, Any]) -> float:
    change: float = pair["second"] - pair["first"]
    return 0.0 if math.isnan(change) else change


def _say_change(pair: Mapping[str, Any]) -> str:
    change = _change(pair)
    return "the same" if abs(change) < _SAME else "better" if change > 0 else "worse"


def _is_nan(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _say_map(outlines: Sequence[Mapping[str, Any]]) -> str:
    west, south, east, north = plots.bounds(outlines)
    where = f"longitude {west:.3f} to {east:.3f}, latitude {south:.3f} to {north:.3f}"
    return f"Map: outlines of {len(outlines)} scenes, coloured by split; {where} degrees."


def _say_singles(scores: np.ndarray, what: str) -> str:
    low, median, high = np.nanquantile(scores, (0.1, 0.5, 0.9))
    spread = f"Median {median:.3f}; 80 % of them from {low:.3f} to {high:.3f}."
    return f"Histogram: {what} of single samples. {spread}"
