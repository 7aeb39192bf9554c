"""Verification: that two runs of objects or image labels were scored on the same images with the same labels."""

from __future__ import annotations

from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from visionsft.errors import RunError
from visionsft.evaluation.counts import FILE
from visionsft.evaluation.detection_counts import load_detection_counts
from visionsft.runs import Run

Truth = dict[str, NDArray[np.generic]]
"""The arrays of each image that say what it shows, by id."""


def same_truth(first: Run, second: Run, split: str) -> None:
    """Refuse runs of one task whose evaluations of a split didn't see the same; a RunError says the difference."""
    pair = f"{first.path} and {second.path}"
    if first.task != second.task:
        raise RunError(f"{pair}: are runs of {first.task} and of {second.task}")
    (names, one), (others, other) = (_read(run, split) for run in (first, second))
    if names != others:
        raise RunError(f"{pair}: have different classes: {', '.join(names)}; {', '.join(others)}")
    if one.keys() != other.keys():
        alone = sorted(one.keys() ^ other.keys())
        raise RunError(f"{pair}: were not scored on the same images: {len(alone)} only in one, e.g. {alone[0]}")
    changed = [id for id, truth in one.items() if not np.array_equal(truth, other[id])]
    if changed:
        raise RunError(f"{pair}: were scored with other labels in {len(changed)} images, e.g. {changed[0]}")


def _read(run: Run, split: str) -> tuple[tuple[str, ...], Truth]:
    """Class names, and what each image shows."""
    run.scores(split)  # stands for a complete set of files
    folder = run.path / "evaluation" / split
    try:
        if run.task == "classification":
            with np.load(folder / FILE, allow_pickle=False) as kept:
                rows = zip(kept["ids"].tolist(), kept["labels"], strict=True)
                return tuple(kept["classes"].tolist()), dict(rows)
        counts = load_detection_counts(folder)
    except (OSError, EOFError, LookupError, BadZipFile) as error:
        raise RunError(
            f"{folder}: its counts can't be read ({error}); `visionsft evaluate {run.path}` makes them"
        ) from error
    rows = zip(counts.ids, counts.boxes, strict=True)
    return counts.classes, {id: np.column_stack([each.truth, each.truth_labels]) for id, each in rows}
