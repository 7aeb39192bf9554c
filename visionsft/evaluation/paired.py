"""Paired: what a comparison asks of the samples of two runs, whatever their task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from visionsft.runs import Run

Metric = tuple[str, bool]
"""A metric's name, and whether each class has its own."""

Scores = dict[Metric, NDArray[np.float64]]
"""(...) of a metric over all classes, (..., K) of one by class; nan where it isn't defined."""

Scorer = Callable[[NDArray[np.float64]], Scores]
"""The scores of R draws from two runs: weights (R, 2 G) of the first run's groups and then the second's."""

PERMUTATIONS = 9999

Own = TypeVar("Own", bound="Samples")


def keyed(totals: Mapping[str, NDArray[Any]], classes: Mapping[str, NDArray[Any]]) -> Scores:
    """Scores of both kinds."""
    scores: Scores = {(name, False): np.asarray(value, np.float64) for name, value in totals.items()}
    return scores | {(name, True): np.asarray(value, np.float64) for name, value in classes.items()}


@dataclass(frozen=True)
class Change:
    """A score of one group or sample in both runs."""

    name: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        return self.second - self.first

    def line(self) -> str:
        """For readers."""
        return f"{self.difference:+.4f}  {self.first:.4f} -> {self.second:.4f}  {self.name}"


@dataclass(frozen=True, eq=False)
class Samples(ABC):
    """What a run's evaluation counted, sample by sample, ordered by id."""

    group_score: ClassVar[str]
    """In words: what wins and losses of groups are told by..."""
    sample_score: ClassVar[str]
    """...and the changes of single samples."""
    headline: ClassVar[str]
    """The metric over all classes that is told first."""
    shown: ClassVar[tuple[str, ...]]
    """Class metrics in the text table; the others are in compare.json."""
    file: ClassVar[str]
    """In the folder of an evaluation."""

    run: Run
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    positions: tuple[int, ...]
    """Where each sample is in the split's own order."""

    @property
    def owners(self) -> NDArray[np.intp]:
        """(N,) the index of each sample's group among the sorted names."""
        return np.unique(np.asarray(self.groups, np.str_), return_inverse=True)[1]

    @property
    def group_names(self) -> list[str]:
        """G sorted names."""
        return sorted(set(self.groups))

    @property
    def permutations(self) -> int:
        """That are drawn, at most, where all ways would be more."""
        return PERMUTATIONS

    @abstractmethod
    def differs(self, other: Samples) -> str | None:
        """Why the two weren't asked the same, though their samples and classes are: None if they were."""

    @abstractmethod
    def estimates(self) -> Scores:
        """Every metric of the run, exactly: () and (K,)."""

    @abstractmethod
    def weights(self) -> NDArray[np.int64]:
        """(G, K) of what the labels have in each group."""

    @abstractmethod
    def group_scores(self) -> NDArray[np.float64]:
        """(G,) see `group_score`; nan where there is nothing to score."""

    @abstractmethod
    def sample_scores(self) -> NDArray[np.float64]:
        """(N,) see `sample_score`."""

    @abstractmethod
    def scorer(self: Own, other: Own) -> Scorer:
        """Scores of draws from this run and another."""

    @abstractmethod
    def draw(self: Own, other: Own, split: str, changes: Sequence[Change], *, title: str) -> Figure:
        """The changed samples with both runs' answers; loads the data, and where needed the models."""

    def position(self, id: str) -> int:
        """Where the sample of this id is in the split's own order."""
        return self.positions[self.ids.index(id)]
