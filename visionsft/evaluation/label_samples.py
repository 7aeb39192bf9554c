"""Label samples: what a classifier answered for each image of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from datamodules.labelled import LabelledDataset
from visionsft.errors import RunError
from visionsft.evaluation.classifying import show_sample
from visionsft.evaluation.counts import FILE
from visionsft.evaluation.intervals import Unit, group_sums
from visionsft.evaluation.label_intervals import LabelSums
from visionsft.evaluation.metrics import decide, label_counts, one_hot
from visionsft.evaluation.metrics.classification import certainty
from visionsft.evaluation.metrics.segmentation import ratio
from visionsft.evaluation.paired import PERMUTATIONS, Change, Samples, Scorer, Scores, keyed
from visionsft.evaluation.pictures import Rgb, picture_sheet
from visionsft.evaluation.wording import say_some
from visionsft.runs import Run

if TYPE_CHECKING:
    from datamodules import ClassificationDataModule

_WORK = 300_000_000
"""Answers (images times classes) times permutations that take about a minute."""


@dataclass(frozen=True, eq=False)
class LabelSamples(Samples):
    """Probabilities and true classes of each image."""

    group_score = "accuracy"
    sample_score = "probability of what is true"
    headline = "accuracy"
    shown = ("recall", "f1")
    file = FILE

    probabilities: NDArray[np.float32]
    """(N, K)"""
    labels: NDArray[Any]
    """(N,) class index; of several labels (N, K) of 0 and 1."""
    thresholds: NDArray[np.float64] | None
    """(K,) where an image can have several classes."""

    @classmethod
    def read(cls, run: Run, split: str, unit: Unit) -> LabelSamples:
        """per_sample.npz of an evaluated split."""
        with np.load(run.path / "evaluation" / split / FILE, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in ("ids", "groups", "classes", "probabilities", "labels")}
        classes, thresholds = tuple(arrays["classes"].tolist()), run.scores(split)["thresholds"]
        order = np.argsort(arrays["ids"], kind="stable")
        groups = arrays["groups" if unit == "group" else "ids"]
        return cls(
            run=run,
            ids=tuple(arrays["ids"][order].tolist()),
            groups=tuple(groups[order].tolist()),
            classes=classes,
            positions=tuple(order.tolist()),
            probabilities=arrays["probabilities"][order],
            labels=arrays["labels"][order],
            thresholds=None if thresholds is None else np.array([thresholds[name] for name in classes]),
        )

    @property
    def permutations(self) -> int:
        return int(np.clip(_WORK / max(1, self.probabilities.size), 999, PERMUTATIONS))

    @property
    def truth(self) -> NDArray[np.bool_]:
        """(N, K)"""
        return one_hot(self.labels, len(self.classes))

    @property
    def decided(self) -> NDArray[np.bool_]:
        """(N, K): the classes given to each image."""
        return decide(self.probabilities, self.thresholds)

    def differs(self, other: Samples) -> str | None:
        assert isinstance(other, LabelSamples)
        if self.labels.shape != other.labels.shape:
            return "one has one class an image, the other several"
        relabelled = (self.truth != other.truth).any(axis=1)
        if not relabelled.any():
            return None
        return f"were scored with other labels in {say_some([self.ids[i] for i in np.flatnonzero(relabelled)])}"

    def _sums(self) -> LabelSums:
        return LabelSums.of(self.probabilities, self.truth, self.decided, self.owners, single=self.labels.ndim == 1)

    def estimates(self) -> Scores:
        totals, classes = self._sums().scores_of(np.ones((1, len(self.group_names))))
        return keyed(*({name: value[0] for name, value in each.items()} for each in (totals, classes)))

    def weights(self) -> NDArray[np.int64]:
        return group_sums(label_counts(self.decided, self.truth), self.groups)[1][:, 1]

    def group_scores(self) -> NDArray[np.float64]:
        right = (self.decided == self.truth).all(axis=1)
        found = group_sums(np.stack([right, np.ones_like(right)], axis=1).astype(np.int64), self.groups)[1]
        return ratio(*found.T)

    def sample_scores(self) -> NDArray[np.float64]:
        return certainty(self.probabilities, self.labels).astype(np.float64)

    def scorer(self, other: LabelSamples) -> Scorer:
        sums = LabelSums.of(
            np.concatenate([self.probabilities, other.probabilities]),
            np.concatenate([self.truth, other.truth]),
            np.concatenate([self.decided, other.decided]),
            np.concatenate([self.owners, other.owners + len(self.group_names)]),
            single=self.labels.ndim == 1,
        )
        return lambda weights: keyed(*sums.scores_of(weights))

    def draw(self, other: LabelSamples, split: str, changes: Sequence[Change], *, title: str) -> Figure:
        from visionsft.training.loading import load_data  # its modules use this package's metrics

        data: ClassificationDataModule = load_data(self.run)
        data.setup("test")
        dataset = cast(LabelledDataset, data.evaluation_loader(split).dataset)
        pictures: list[tuple[str, Rgb]] = []
        for change in changes:
            sample = dataset[self.position(change.name)]
            if sample["item"].id != change.name:
                raise RunError(f"{data.root}: has changed since {self.run.path} was evaluated")
            picture = show_sample(data, sample)
            index = self.ids.index(change.name)
            said = f"A: {self.say(index)} · B: {other.say(index)}"
            pictures.append((f"{change.line()}\nis {self.say_truth(index)}\n{said}", picture))
        return picture_sheet(pictures, title=title)

    def say_truth(self, index: int) -> str:
        """The classes that an image has."""
        names = zip(self.classes, self.truth[index].tolist(), strict=True)
        return ", ".join(name for name, on in names if on) or "none"

    def say(self, index: int) -> str:
        """The classes that an image was given, with their probabilities."""
        given = np.flatnonzero(self.decided[index]).tolist()
        return ", ".join(f"{self.classes[k]} {self.probabilities[index, k]:.2f}" for k in given) or "none"
