"""Map page: the report of a segmentation run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionsft import plots
from visionsft.evaluation.intervals import group_sums
from visionsft.evaluation.map_samples import MapSamples
from visionsft.evaluation.metrics import summarise
from visionsft.evaluation.page import Drawn, Page


@dataclass(frozen=True)
class Confused:
    """What of one class was taken for another."""

    truth: str
    prediction: str
    count: int
    """Pixels or images."""
    of_truth: float
    """Share of what is truly of the class."""
    of_wrong: float
    """Share of all that is wrong."""


def confused(confusion: NDArray[np.int64], classes: Sequence[str]) -> list[Confused]:
    """Every mistake between two classes, the most frequent first. confusion: (K, K), rows = truth."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    total = int(wrong.sum())
    order = np.argsort(-wrong, axis=None, kind="stable")[: int((wrong > 0).sum())]
    pairs = [divmod(int(index), len(confusion)) for index in order]
    return [
        Confused(
            classes[truth],
            classes[prediction],
            count=int(wrong[truth, prediction]),
            of_truth=wrong[truth, prediction] / confusion[truth].sum(),
            of_wrong=wrong[truth, prediction] / total,
        )
        for truth, prediction in pairs
    ]


def confusion_rows(confusion: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the matrix as (count, share of the row); None for a class without truth."""
    rows = []
    for name, counts in zip(classes, confusion.tolist(), strict=True):
        total = sum(counts)
        rows.append({"name": name, "cells": [(n, n / total) for n in counts] if total else None})
    return rows


class MapPage(Page):
    """Classes of pixels."""

    template, comparison = "report_map.html", "comparison_map.html"
    noun = "Semantic segmentation"
    pipeline = "image-segmentation"
    headline = "mean_iou"
    metrics = ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_recall")
    class_metrics = (("iou", "IoU"), ("recall", "recall"), ("precision", "precision"), ("f1", "F1"))
    marked = ("iou", "recall")
    counted = "pixels"
    part_metric = "mean_iou"
    filters = {"present": "contains the class", "weakest": "weakest class", "group": "scene or drive"}  # noqa: RUF012
    layers = ("image", "truth", "prediction", "error")
    group_columns = (
        ("mean_iou", "mean IoU"),
        ("classes_present", "classes"),
        ("pixel_accuracy", "pixel accuracy"),
        ("mean_recall", "mean recall"),
    )

    sections = {  # noqa: RUF012
        **Page.sections,
        "calibration": ("confidence", "visionsft evaluate {run} --split {split}"),
        "boundaries": ("edges and objects", "visionsft evaluate {run} --split {split} --boundaries"),
        "area": ("areas on the ground", "visionsft evaluate {run} --split {split}, of georeferenced scenes"),
    }
    files = {  # noqa: RUF012
        **Page.files,
        "thresholds": ("operating point", "visionsft thresholds {run} 'recall[CLASS] >= 0.9'"),
    }

    @property
    def samples(self) -> MapSamples:
        assert isinstance(self.facts.samples, MapSamples)
        return self.facts.samples

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(K, K) over the whole split, rows = truth."""
        return self.samples.confusions.sum(axis=0)

    @cached_property
    def mistakes(self) -> list[Confused]:
        return confused(self.confusion, self.facts.classes)

    def limits(self) -> list[str]:
        return [
            f"{each.truth} is taken for {each.prediction} in {100 * each.of_truth:.1f} % of its pixels "
            f"({100 * each.of_wrong:.1f} % of all mistakes)."
            for each in self.mistakes[:5]
        ]

    def group_rows(self) -> list[dict[str, Any]]:
        names, sums = group_sums(self.samples.confusions, self.samples.groups)
        return [
            {"name": name, **vars(summarise(confusion, self.facts.classes))}
            for name, confusion in zip(names, sums, strict=True)
        ]

    def figures(self) -> Iterator[Drawn]:
        yield from super().figures()
        scores, table = self.facts.scores, "the table has its numbers"
        if calibration := scores.get("calibration"):
            alt = f"Reliability curve: accuracy by confidence; {table}."
            yield "reliability", plots.reliability(calibration["bins"]), alt
            bins, names = calibration["bins_per_class"], ", ".join(calibration["bins_per_class"])
            yield "class_reliability", plots.class_reliability(bins), f"Small curves: reliability of {names}."
            yield (
                "precision_recall",
                plots.precision_recall(bins),
                f"Small curves: precision and recall of {names}.",
            )
        if trimap := scores.get("boundaries", {}).get("trimap"):
            yield "trimap", plots.trimap(trimap), f"Line chart: scores by distance to the true edge; {table}."

    def traits(self, sample: Mapping[str, Any]) -> dict[str, list[str]]:
        known = {name: iou for name, iou in sample["iou"].items() if iou is not None}
        weakest = min(known, key=lambda name: known[name])
        return {"present": sample["present"], "weakest": [weakest], "group": [sample["group"]]}

    def options(self, traits: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
        names = list(self.facts.classes)
        return {**super().options(traits), "present": names, "weakest": names}

    def _pair(self, other: Page, *, budget: int) -> list[dict[str, Any]]:
        """Predictions are stored of each run's own worst samples alone."""
        galleries = [{sample["id"]: sample for sample in each} for each in self._galleries(other, budget)]
        rows = []
        for id in dict.fromkeys([*galleries[0], *galleries[1]]):
            found = [gallery.get(id) for gallery in galleries]
            there = next(each for each in found if each)
            pictures = {layer: there["pictures"][layer] for layer in ("image", "truth")}
            answers = zip("AB", found, strict=True)
            pictures |= {name: each["pictures"]["prediction"] for name, each in answers if each}
            rows.append({**there, "pictures": pictures})
        return rows

    def context(self) -> dict[str, Any]:
        return {
            "mistakes": self.mistakes[:8],
            "wrong": sum(each.count for each in self.mistakes),
            "confusion": confusion_rows(self.confusion, self.facts.classes),
        }
