"""Box page: the report of a detection run, with upright or turned boxes or outlines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from visionsft import plots
from visionsft.evaluation.box_gallery import marks
from visionsft.evaluation.box_samples import BoxSamples
from visionsft.evaluation.detection_calibration import DetectionCalibration
from visionsft.evaluation.detection_intervals import shares
from visionsft.evaluation.detection_scores import precision_recall_curves
from visionsft.evaluation.intervals import group_sums
from visionsft.evaluation.page import Drawn, Page
from visionsft.evaluation.reliability import bins_of


class BoxPage(Page):
    """Objects and what was found of them."""

    template, comparison = "report_boxes.html", "comparison_boxes.html"
    noun = "Detection"
    pipeline = "object-detection"
    headline = "map"
    metrics = ("map", "ap50", "ap75", "recall", "precision", "ar", "log_average_miss_rate")
    class_metrics = (("ap50", "AP50"), ("ap", "AP"), ("recall", "recall"), ("precision", "precision"))
    marked = ("ap50", "recall")
    counted = "objects"
    part_metric = "ap50"
    filters = {"kind": "kind of mistake", "class": "class", "group": "scene or drive"}  # noqa: RUF012
    layers = ("image", "truth", "prediction", "error")
    group_columns = (("f1", "F1"), ("recall", "recall"), ("precision", "precision"), ("objects", "objects"))

    known = Page.known | {"errors", "mask_scores", "mask_intervals", "calibration"}

    @property
    def samples(self) -> BoxSamples:
        assert isinstance(self.facts.samples, BoxSamples)
        return self.facts.samples

    @property
    def errors(self) -> Mapping[str, Any] | None:
        """By kind, if they were broken down."""
        found: Mapping[str, Any] | None = self.facts.scores.get("errors")
        return found

    def error_kinds(self) -> list[Mapping[str, Any]]:
        """The dearest first."""
        return sorted((self.errors or {}).get("kinds", ()), key=lambda kind: -(kind["gain"] or 0.0))

    def limits(self) -> list[str]:
        rows = [row for row in self.scores["per_class"] if row["objects"] and row["recall"] is not None]
        rows.sort(key=lambda row: row["recall"])
        score, iou = self.scores["score"], self.scores["iou"]
        lines = [
            f"{100 * (1 - row['recall']):.0f} % of {row['name']} ({row['objects']} objects) are missed at a score of "
            f"{score:g} and an IoU of {iou:g}."
            for row in rows[:5]
        ]
        return lines + [
            f"{row['name']} of {row['objects']} objects: AP {row['ap']:.2f}."
            for row in self.scores["by_size"]
            if row["ap"] is not None
        ]

    def group_rows(self) -> list[dict[str, Any]]:
        names, margins = group_sums(self.samples.margins, self.samples.groups)
        columns = {**shares(*margins.T), "objects": margins[:, 1]}
        return [
            {"name": name, **{key: values[i].item() for key, values in columns.items()}}
            for i, name in enumerate(names)
        ]

    @cached_property
    def reliability(self) -> dict[str, Any]:
        """How often detections of a score are right: bins of scores of all detections, and the calibration error."""
        found = DetectionCalibration.of(self.samples.counts, iou=self.scores["iou"])
        stored = self.facts.scores.get("calibration") or {}
        return {**bins_of(found.histogram), **found.as_dict(), **stored, "count_all": int(found.histogram[:, 0].sum())}

    def figures(self) -> Iterator[Drawn]:
        yield from super().figures()
        curves = precision_recall_curves(self.samples.counts, iou=self.scores["iou"])
        if curves:
            names = ", ".join(curves)
            yield "precision_recall", plots.precision_recall_curves(curves), f"Small curves: precision of {names}."
            yield "fppi", plots.false_alarm_curves(curves), f"Small curves: recall by false alarms of {names}."
        if self.reliability["count_all"]:
            figure = plots.reliability(self.reliability["bins"], what="a detection’s score", right="find an object")
            yield "reliability", figure, "Reliability curve: share of detections that find an object, by score."
        if self.errors and self.errors["objects"]:
            figure = plots.error_split(self.errors)
            yield "errors", figure, "Bar chart: average precision lost by kind of error; the table has its numbers."

    def traits(self, sample: Mapping[str, Any]) -> dict[str, list[str]]:
        classes = [name for name in (sample["class"], sample["true_class"]) if name]
        return {"kind": [sample["kind"]], "class": classes, "group": [sample["group"]]}

    def _pair(self, other: Page, *, budget: int) -> list[dict[str, Any]]:
        assert isinstance(other, BoxPage)
        rows: list[dict[str, Any]] = []
        for sample in chain(*self._galleries(other, budget)):
            if any(each["id"] == sample["id"] and _overlap(each["part"], sample["part"]) for each in rows):
                continue  # the same ground around another mistake
            part = tuple(sample["part"])
            answers = {name: page._marks(sample["id"], part) for name, page in (("A", self), ("B", other))}
            rows.append({**sample, "marks": {"truth": sample["marks"]["truth"], **answers}})
        return rows

    def _marks(self, id: str, part: tuple[int, int, int, int]) -> list[dict[str, Any]]:
        """The detections of one image, from the run's score on, in a part of it."""
        boxes, names = self.samples.counts.boxes[self.samples.ids.index(id)], self.facts.classes
        certain = boxes.scores >= np.float32(self.scores["score"])
        pairs = zip(boxes.labels[certain].tolist(), boxes.scores[certain].tolist(), strict=True)
        return marks(boxes.found[certain], [f"{names[k]} {score:.2f}" for k, score in pairs], part)

    def context(self) -> dict[str, Any]:
        return {
            "sizes": self.scores["by_size"],
            "errors": self.errors,
            "reliability": self.reliability,
        }


def _overlap(one: Sequence[int], two: Sequence[int]) -> bool:
    """Whether two parts (x1, y1, x2, y2) of an image share half of the smaller one, or more."""
    first, second = np.array(one), np.array(two)
    common = np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None).prod()
    smaller = min((each[2:] - each[:2]).prod() for each in (first, second))
    return bool(2 * common >= smaller)
