"""Samples: what the evaluation of a run counted, sample by sample, read back from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from visionsft.errors import RunError
from visionsft.evaluation.counts import FILE, load_counts
from visionsft.evaluation.intervals import Unit
from visionsft.runs import Run

_FEW = 5
"""Names said of many."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What a run's evaluation counted, sample by sample, ordered by id."""

    run: Run
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    confusions: NDArray[np.int64]
    """(N, K, K), rows = truth."""
    positions: tuple[int, ...]
    """Where each sample is in the split's own order."""


def read_samples(run: Run, split: str, *, unit: Unit = "group") -> Samples:
    """per_sample.npz of an evaluated split, grouped by scene or drive, or each image by itself."""
    run.require_segmentation("a comparison of samples")
    path = run.path / "evaluation" / split / FILE
    run.scores(split)  # stands for a complete set of files
    try:
        counts = load_counts(path.parent)
    except (OSError, EOFError, BadZipFile) as error:
        raise RunError(
            f"{path}: can't be read ({error}); `visionsft evaluate {run.path}` makes it"
        ) from error
    ids, groups = counts.ids, counts.names(unit)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return Samples(
        run=run,
        ids=tuple(ids[i] for i in order),
        groups=tuple(groups[i] for i in order),
        classes=counts.classes,
        confusions=counts.confusions[order],
        positions=tuple(order),
    )


def check_comparable(first: Samples, second: Samples) -> None:
    """Refuse runs that were not scored on the same labelled pixels in the same classes."""
    runs = f"{first.run.path} and {second.run.path}"
    if first.classes != second.classes:
        raise RunError(f"{runs}: have different classes: {_say_difference(first, second, 'classes')}")
    if first.ids != second.ids:
        raise RunError(
            f"{runs}: were not scored on the same samples: {_say_difference(first, second, 'ids')}"
        )
    relabelled = (first.confusions.sum(axis=2) != second.confusions.sum(axis=2)).any(axis=1)
    if relabelled.any():
        names = [first.ids[i] for i in np.flatnonzero(relabelled)]
        raise RunError(f"{runs}: were scored with other labels in {_say_some(names)}")
    if first.groups != second.groups:
        moved = [
            id for id, *pair in zip(first.ids, first.groups, second.groups, strict=True) if pair[0] != pair[1]
        ]
        raise RunError(f"{runs}: group the samples differently, in {_say_some(moved)}")


def _say_difference(first: Samples, second: Samples, what: str) -> str:
    one, other = getattr(first, what), getattr(second, what)
    only = [
        f"{_say_some(names)} only in {samples.run.path}"
        for samples, names in (
            (first, [name for name in one if name not in set(other)]),
            (second, [name for name in other if name not in set(one)]),
        )
        if names
    ]
    return "; ".join(only) or "the same ones in another order"


def _say_some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{len(names)} ({', '.join(names[:_FEW])}{more})"
