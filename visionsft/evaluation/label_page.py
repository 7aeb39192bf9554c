"""Label page: the report of a classification run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from visionsft import plots
from visionsft.evaluation.intervals import group_sums
from visionsft.evaluation.label_calibration import stated
from visionsft.evaluation.label_samples import LabelSamples
from visionsft.evaluation.map_page import Confused, confused, confusion_rows
from visionsft.evaluation.metrics.classification import label_reliability
from visionsft.evaluation.metrics.segmentation import ratio
from visionsft.evaluation.page import Drawn, Page
from visionsft.evaluation.reliability import bins_of


class LabelPage(Page):
    """Images with one class, or with several."""

    template, comparison = "report_labels.html", "comparison_labels.html"
    noun = "Classification"
    pipeline = "image-classification"
    headline = "accuracy"
    class_metrics = (
        ("f1", "F1"),
        ("recall", "recall"),
        ("precision", "precision"),
        ("average_precision", "average precision"),
    )
    marked = ("f1", "recall")
    counted = "images"
    part_metric = "accuracy"
    filters = {  # noqa: RUF012
        "answer": "answer",
        "true": "true class",
        "predicted": "predicted class",
        "group": "scene or drive",
    }
    layers = ()
    group_columns = (("accuracy", "accuracy"), ("certainty", "mean probability of the truth"))

    known = Page.known | {"thresholds", "calibration"}

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """With top-k accuracy, of as many k as there are classes for."""
        top = (f"top_k.{k}" for k in self.scores["top_k"])
        return ("accuracy", *top, "macro_f1", "mean_recall", "mean_average_precision")

    @property
    def samples(self) -> LabelSamples:
        assert isinstance(self.facts.samples, LabelSamples)
        return self.facts.samples

    @property
    def is_single(self) -> bool:
        """An image has one class."""
        return self.samples.thresholds is None

    @cached_property
    def mistakes(self) -> list[Confused]:
        """Of what was taken for what; none where an image has several classes."""
        return confused(np.array(self.facts.scores["confusion"]), self.facts.classes) if self.is_single else []

    def limits(self) -> list[str]:
        if self.is_single:
            return [
                f"{each.truth} is taken for {each.prediction} in {100 * each.of_truth:.1f} % of its images "
                f"({100 * each.of_wrong:.1f} % of all mistakes)."
                for each in self.mistakes[:5]
            ]
        return [f"{row['name']}: {100 * row['recall']:.1f} % of its images are found." for row in self.ranked()[:-6:-1]]

    def group_rows(self) -> list[dict[str, Any]]:
        samples = self.samples
        right = (samples.decided == samples.truth).all(axis=1)
        columns = np.stack([np.ones(len(right)), right, samples.sample_scores()], axis=1)
        names, sums = group_sums(columns, samples.groups)
        accuracy, certainty = ratio(sums[:, 1], sums[:, 0]), ratio(sums[:, 2], sums[:, 0])
        rows = zip(names, accuracy.tolist(), certainty.tolist(), strict=True)
        return [{"name": name, "accuracy": one, "certainty": two} for name, one, two in rows]

    @cached_property
    def reliability(self) -> dict[str, Any]:
        """Of the most probable class, or of all answers where an image has several classes."""
        said = stated(self.samples.probabilities, self.samples.truth, several=not self.is_single)
        return bins_of(label_reliability(*(each.ravel() for each in said)))

    @property
    def baseline(self) -> float | None:
        """Accuracy of always answering the most frequent class."""
        counts = [row["images"] for row in self.scores["per_class"]]
        return max(counts) / max(1, sum(counts)) if self.is_single else None

    def figures(self) -> Iterator[Drawn]:
        yield from super().figures()
        figure = plots.reliability(self.reliability["bins"])
        yield "reliability", figure, "Reliability curve: accuracy by confidence; the table has its numbers."
        if calibration := self.facts.scores.get("calibration"):
            bins, known = calibration["bins_per_class"], ", ".join(calibration["bins_per_class"])
            yield "class_reliability", plots.class_reliability(bins), f"Small curves: reliability of {known}."
        names = list(self.facts.classes)
        figure = plots.label_curves(self.samples.probabilities, self.samples.truth, names)
        yield "precision_recall", figure, f"Small curves: precision and recall of {', '.join(names)}."

    def traits(self, sample: Mapping[str, Any]) -> dict[str, list[str]]:
        return {
            "answer": ["right, but unsure" if sample["right"] else "wrong"],
            "true": sample["true"],
            "predicted": sample["predicted"],
            "group": [sample["group"]],
        }

    def _pair(self, other: Page, *, budget: int) -> list[dict[str, Any]]:
        assert isinstance(other, LabelPage)
        rows = {sample["id"]: sample for sample in chain(*self._galleries(other, budget))}
        return [
            {**sample, "answers": [page._answer(id) for page in (self, other)]} for id, sample in rows.items()
        ]

    def _answer(self, id: str) -> dict[str, Any]:
        """What was said of one image."""
        index = self.samples.ids.index(id)
        right = bool((self.samples.decided[index] == self.samples.truth[index]).all())
        return {"said": self.samples.say(index), "right": right}

    def context(self) -> dict[str, Any]:
        return {
            "single": self.is_single,
            "baseline": self.baseline,
            "mistakes": self.mistakes[:8],
            "wrong": sum(each.count for each in self.mistakes),
            "confusion": confusion_rows(np.array(self.facts.scores["confusion"]), self.facts.classes)
            if self.is_single
            else [],
            "reliability": self.reliability,
            "thresholds": self.facts.scores["thresholds"] or {},
        }
