"""Map samples: what the evaluation of a segmentation run counted, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.batch import Sample
from visionsft.errors import RunError
from visionsft.evaluation.answers import infer
from visionsft.evaluation.boundaries import BoundaryCounts
from visionsft.evaluation.boundary_intervals import boundary_margins, boundary_scores
from visionsft.evaluation.counts import FILE, load_counts
from visionsft.evaluation.evaluating import make_example
from visionsft.evaluation.intervals import Unit, group_sums
from visionsft.evaluation.metrics import (
    class_scores,
    marginal_counts,
    mean_iou,
    predict_classes,
    total_scores,
)
from visionsft.evaluation.paired import Change, Samples, Scorer, Scores, keyed
from visionsft.evaluation.pictures import Example, PairExample, contact_sheet
from visionsft.evaluation.wording import say_some
from visionsft.runs import Run


@dataclass(frozen=True, eq=False)
class MapSamples(Samples):
    """A confusion matrix a sample."""

    group_score = sample_score = "mean IoU"
    headline = "mean_iou"
    shown = ("iou", "recall")
    file = FILE

    confusions: NDArray[np.int64]
    """(N, K, K), rows = truth."""
    edges: NDArray[np.int64] | None = None
    """(N, K, 8), see `boundary_margins`, where boundaries were scored."""

    @classmethod
    def read(cls, run: Run, split: str, unit: Unit) -> MapSamples:
        """per_sample.npz of an evaluated split."""
        folder = run.path / "evaluation" / split
        counts, edges = load_counts(folder), _read_edges(folder)
        order = sorted(range(len(counts.ids)), key=counts.ids.__getitem__)
        groups = counts.names(unit)
        return cls(
            run=run,
            ids=tuple(counts.ids[i] for i in order),
            groups=tuple(groups[i] for i in order),
            classes=counts.classes,
            positions=tuple(order),
            confusions=counts.confusions[order],
            edges=None if edges is None else edges[order],
        )

    def differs(self, other: Samples) -> str | None:
        assert isinstance(other, MapSamples)
        relabelled = (self.confusions.sum(axis=2) != other.confusions.sum(axis=2)).any(axis=1)
        if not relabelled.any():
            return None
        return f"were scored with other labels in {say_some([self.ids[i] for i in np.flatnonzero(relabelled)])}"

    def _sums(self) -> NDArray[np.int64]:
        """(G, 3, K) marginal counts by group."""
        return group_sums(marginal_counts(self.confusions), self.groups)[1]

    def estimates(self) -> Scores:
        found = _score(self._sums().sum(axis=0))
        return found if self.edges is None else found | keyed(*boundary_scores(self.edges.sum(axis=0)))

    def weights(self) -> NDArray[np.int64]:
        return self._sums()[:, 1]

    def group_scores(self) -> NDArray[np.float64]:
        return mean_iou(group_sums(self.confusions, self.groups)[1])

    def sample_scores(self) -> NDArray[np.float64]:
        return mean_iou(self.confusions)

    def scorer(self, other: MapSamples) -> Scorer:
        sums = np.concatenate([self._sums(), other._sums()])
        if self.edges is None or other.edges is None:
            return lambda weights: _score(_draw(weights, sums))
        pair = (group_sums(edges, self.groups)[1] for edges in (self.edges, other.edges))
        edges = np.concatenate(list(pair))
        return lambda weights: _score(_draw(weights, sums)) | keyed(*boundary_scores(_draw(weights, edges)))

    def draw(self, other: MapSamples, split: str, changes: Sequence[Change], *, title: str) -> Figure:
        (ours, colours), (theirs, _) = (_examples(each, split, changes) for each in (self, other))
        rows = [PairExample(**vars(a), other=b.prediction) for a, b in zip(ours, theirs, strict=True)]
        return contact_sheet(rows, names=self.classes, colours=colours, title=title)


def _read_edges(folder: Path) -> NDArray[np.int64] | None:
    with np.load(folder / FILE, allow_pickle=False) as kept:
        names = [field.name for field in fields(BoundaryCounts)]
        if not {f"boundary_{name}" for name in names} <= set(kept):
            return None
        return boundary_margins(BoundaryCounts(*(kept[f"boundary_{name}"] for name in names)))


def _draw(weights: NDArray[np.float64], sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of R draws (R, G) and sums of groups (G, ...) -> (R, ...)."""
    return (weights @ sums.reshape(len(sums), -1).astype(np.float64)).reshape(-1, *sums.shape[1:])


def _score(margins: NDArray[Any]) -> Scores:
    """Of marginal counts (..., 3, K)."""
    return keyed(total_scores(margins), class_scores(margins))


def _examples(
    samples: MapSamples, split: str, changes: Sequence[Change]
) -> tuple[list[Example], NDArray[np.uint8]]:
    """The changed samples with one run's predictions, and the classes' colours."""
    from visionsft.training.loading import load_run  # its modules use this package's metrics

    loaded = load_run(samples.run, samples.run.scores(split)["checkpoint"]["name"])
    loaded.data.setup("test")
    dataset = cast(Dataset[Sample], loaded.data.evaluation_loader(split).dataset)
    examples = []
    for change in changes:
        sample = dataset[samples.position(change.name)]
        if sample["item"].id != change.name:
            raise RunError(f"{loaded.data.root}: has changed since {samples.run.path} was evaluated")
        prediction = predict_classes(infer(loaded, sample["image"][None]))[0].cpu().numpy()
        examples.append(make_example(loaded.data, sample, prediction, change.line()))
    return examples, loaded.data.classes.colours
