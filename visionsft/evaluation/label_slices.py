"""Label slices: how often a classifier is right, by samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.intervals import (
    Unit,
    effective_groups,
    group_sums,
    interval,
    pair,
    resample,
    too_few,
)
from visionsft.evaluation.metrics import summarise_labels
from visionsft.evaluation.metrics.segmentation import ratio, without_nan
from visionsft.evaluation.slices import Finding, Metadata, Shown, Slices, cut

if TYPE_CHECKING:
    from visionsft.evaluation.classifying import Answers

_SHOWN = Shown("accuracy", "images", "macro F1 and mean recall are over the classes that occur in the slice")
_CLASS_METRICS = ("recall", "precision", "f1")


def slice_answers(
    answers: Answers,
    kinds: Sequence[str],
    *,
    thresholds: NDArray[np.float64] | None,
    metadata: Metadata | None = None,
    unit: Unit = "group",
) -> Slices | None:
    """All slices of a split; thresholds: (K,) where an image can have several classes."""

    def judge(part: Answers, unit: Unit, level: float) -> Finding:
        scores = summarise_labels(part.probabilities, part.labels, part.classes, thresholds=thresholds)
        groups = [item.group if unit == "group" else item.id for item in part.items]
        right = (part.decided(thresholds) == part.truth).all(axis=1)
        _, sums = group_sums(np.stack([right, np.ones(len(right))], axis=1).astype(np.int64), groups)
        effective, drawn = effective_groups(sums[:, 1]), resample(sums)
        note = too_few(len(sums), float(effective), unit, counted="images")
        ends = interval(ratio(drawn[:, 0], drawn[:, 1]), scores.accuracy, groups=effective, level=level)
        numbers = {
            **{name: getattr(scores, name) for name in ("images", "accuracy", "macro_f1", "mean_recall")},
            "per_class": {
                metric: {row.name: getattr(row, metric) for row in scores.per_class}
                for metric in _CLASS_METRICS
            },
        }
        interval_of = None if note else pair(*ends)
        return Finding(scores.accuracy, scores.images, interval_of, note, without_nan(numbers))

    return cut(answers, kinds, judge, shown=_SHOWN, metadata=metadata, unit=unit)
