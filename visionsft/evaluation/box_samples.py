"""Box samples: what the evaluation of a detector kept of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from visionsft.errors import RunError
from visionsft.evaluation.box_pictures import (
    MISSED,
    RIGHT,
    TRUTH,
    WRONG,
    corners,
    draw_boxes,
    judge_boxes,
    show_item,
)
from visionsft.evaluation.detection_counts import FILE, DetectionCounts, load_detection_counts
from visionsft.evaluation.detection_intervals import GroupDetections, image_margins, shares
from visionsft.evaluation.intervals import Unit, group_sums
from visionsft.evaluation.metrics.boxes import ImageBoxes
from visionsft.evaluation.metrics.matching import match_detections
from visionsft.evaluation.paired import PERMUTATIONS, Change, Samples, Scorer, Scores, keyed
from visionsft.evaluation.pictures import Rgb, picture_sheet
from visionsft.evaluation.wording import say_some
from visionsft.runs import Run

if TYPE_CHECKING:
    from datamodules.detection import DetectionDataModule

LONGEST = 900
"""Pixels of a changed image's longer side."""

_WORK = 25_000_000
"""Detections times permutations that take about a minute."""


@dataclass(frozen=True, eq=False)
class BoxSamples(Samples):
    """Objects and detections of each image, upright or turned boxes."""

    group_score = sample_score = "F1 (at the run's score and IoU)"
    headline = "map"
    shown = ("ap50", "recall", "precision", "mask_ap50", "mask_recall")
    file = FILE

    counts: DetectionCounts
    """In the order of `ids`."""
    iou: float
    """At which recall, precision and F1 are counted..."""
    score: float
    """...from this score on: both as the run was evaluated."""

    @classmethod
    def read(cls, run: Run, split: str, unit: Unit) -> BoxSamples:
        """per_image_boxes.npz of an evaluated split."""
        counts = load_detection_counts(run.path / "evaluation" / split)
        order = sorted(range(len(counts.ids)), key=counts.ids.__getitem__)
        counts = counts.take(np.array(order, np.intp))
        scores = run.scores(split)["scores"]
        return cls(
            run=run,
            ids=tuple(counts.ids),
            groups=tuple(counts.names(unit)),
            classes=counts.classes,
            positions=tuple(order),
            counts=counts,
            iou=scores["iou"],
            score=scores["score"],
        )

    @property
    def permutations(self) -> int:
        work = sum(len(row.found) for row in self.counts.boxes) * (2 if self.counts.masks else 1)
        return int(np.clip(_WORK / max(1, work), 999, PERMUTATIONS))

    def differs(self, other: Samples) -> str | None:
        assert isinstance(other, BoxSamples)
        if self.iou != other.iou:
            return f"count an object as found at different IoU (task.match_iou): {self.iou:g} and {other.iou:g}"
        if bool(self.counts.masks) != bool(other.counts.masks):
            return "have outlines in one run and none in the other; evaluate both again"
        pairs = zip(self.ids, self.counts.boxes, other.counts.boxes, strict=True)
        relabelled = [id for id, one, two in pairs if not _same_truth(one, two)]
        return f"were scored with other labels in {say_some(relabelled)}" if relabelled else None

    @cached_property
    def _sums(self) -> GroupDetections:
        return GroupDetections.of(self.counts, self.owners, scores=self._scores, iou=self.iou)

    @cached_property
    def _mask_sums(self) -> GroupDetections | None:
        """The same by the overlap of masks, where objects have them."""
        if not self.counts.masks:
            return None
        return GroupDetections.of(self.counts, self.owners, scores=self._scores, iou=self.iou, masks=True)

    @property
    def _scores(self) -> NDArray[np.float64]:
        """(I,) from which score on the detections of each image count."""
        return np.full(len(self.ids), self.score)

    @cached_property
    def margins(self) -> NDArray[np.int64]:
        """(I, 3) found, objects and detections of each image."""
        table = self.counts.table()
        (matches,) = match_detections(table, thresholds=(self.iou,))
        return image_margins(matches, table, self._scores).sum(axis=2)

    def estimates(self) -> Scores:
        found = _exact(self._sums)
        return found if self._mask_sums is None else found | _by_mask(_exact(self._mask_sums))

    def weights(self) -> NDArray[np.int64]:
        return self._sums.margins[:, 1]

    def group_scores(self) -> NDArray[np.float64]:
        return _f1(group_sums(self.margins, self.groups)[1])

    def sample_scores(self) -> NDArray[np.float64]:
        return _f1(self.margins)

    def scorer(self, other: BoxSamples) -> Scorer:
        both = DetectionCounts(self.classes)
        for samples in (self, other):
            both.extend(samples.counts)
        count = len(self.group_names)
        owners = np.concatenate([self.owners, other.owners + count])
        scores = np.concatenate([self._scores, other._scores])
        sums = GroupDetections.of(both, owners, scores=scores, iou=self.iou)
        if self._mask_sums is None:
            return lambda weights: keyed(*sums.scores_of(weights))
        masks = GroupDetections.of(both, owners, scores=scores, iou=self.iou, masks=True)
        return lambda weights: keyed(*sums.scores_of(weights)) | _by_mask(keyed(*masks.scores_of(weights)))

    def draw(self, other: BoxSamples, split: str, changes: Sequence[Change], *, title: str) -> Figure:
        from visionsft.training.loading import load_data  # its modules use this package's metrics

        data: DetectionDataModule = load_data(self.run)
        data.setup("test")
        items = {item.id: item for item in data.items[split]}
        pictures: list[tuple[str, Rgb]] = []
        for change in changes:
            if change.name not in items:
                raise RunError(f"{data.root}: has changed since {self.run.path} was evaluated")
            index = self.ids.index(change.name)
            plain, scale = show_item(data, items[change.name], longest=LONGEST)
            truth = draw_boxes(plain, corners(self.counts.boxes[index].truth) * scale, TRUTH)
            pictures.append((f"{change.line()}\ntruth", truth))
            pictures += [
                (f"\n{name}", samples._show(plain, index, scale))
                for name, samples in (("A", self), ("B", other))
            ]
        colours = "blue: found rightly, red: false alarm, yellow: missed"
        return picture_sheet(pictures, title=f"{title}\n{colours}", columns=3, side=4.2)

    def _show(self, plain: Rgb, index: int, scale: float) -> Rgb:
        boxes = self.counts.boxes[index]
        judged = judge_boxes(boxes, classes=len(self.classes), iou=self.iou, score=self.score)
        layers = ((boxes.truth[judged.missed], MISSED), (boxes.found[judged.right], RIGHT),
                  (boxes.found[judged.wrong], WRONG))  # fmt: skip
        for part, colour in layers:
            plain = draw_boxes(plain, corners(part) * scale, colour)
        return plain


def _exact(sums: GroupDetections) -> Scores:
    totals, classes = sums.exact()
    return keyed({name: np.asarray(value) for name, value in totals.items()}, classes)


def _by_mask(scores: Scores) -> Scores:
    """Under their names in gates."""
    return {(f"mask_{name}", by_class): values for (name, by_class), values in scores.items()}


def _f1(margins: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, 3) -> (N,); 1 where there is nothing to find and nothing is found."""
    f1 = shares(*margins.T)["f1"]
    return np.where(np.isnan(f1), 1.0, f1)


def _same_truth(one: ImageBoxes, two: ImageBoxes) -> bool:
    pairs = ((getattr(one, name), getattr(two, name)) for name in ("truth", "truth_labels", "ignored"))
    return all(a.shape == b.shape and np.allclose(a, b, atol=1e-2) for a, b in pairs)
