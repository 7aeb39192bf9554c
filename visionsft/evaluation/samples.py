"""Samples: what the evaluation of a run counted, sample by sample, read back from its folder."""

from __future__ import annotations

from zipfile import BadZipFile

from visionsft.errors import RunError
from visionsft.evaluation.box_samples import BoxSamples
from visionsft.evaluation.intervals import Unit
from visionsft.evaluation.label_samples import LabelSamples
from visionsft.evaluation.map_samples import MapSamples
from visionsft.evaluation.paired import Samples
from visionsft.evaluation.wording import say_some
from visionsft.runs import Run

_KINDS: dict[str, type[MapSamples] | type[BoxSamples] | type[LabelSamples]] = {
    "segmentation": MapSamples,
    "detection": BoxSamples,
    "instance_segmentation": BoxSamples,
    "classification": LabelSamples,
}
"""By task."""


def read_samples(run: Run, split: str, *, unit: Unit = "group") -> Samples:
    """The counts of an evaluated split, grouped by scene or drive, or each image by itself."""
    run.scores(split)  # stands for a complete set of files
    kind = _KINDS[run.task]
    try:
        return kind.read(run, split, unit)
    except RunError:
        raise
    except (OSError, EOFError, BadZipFile, ValueError, KeyError) as error:
        path = run.path / "evaluation" / split / kind.file
        raise RunError(
            f"{path}: can't be read ({error}); `visionsft evaluate {run.path}` makes it"
        ) from error


def check_comparable(first: Samples, second: Samples) -> None:
    """Refuse runs that were not asked the same: of other tasks, classes, samples, labels or groups."""
    runs = f"{first.run.path} and {second.run.path}"
    if type(first) is not type(second):
        tasks = f"{first.run.task} and {second.run.task}"
        raise RunError(f"{runs}: have different tasks, {tasks}")
    if first.classes != second.classes:
        raise RunError(f"{runs}: have different classes: {_say_difference(first, second, 'classes')}")
    if first.ids != second.ids:
        raise RunError(
            f"{runs}: were not scored on the same samples: {_say_difference(first, second, 'ids')}"
        )
    if reason := first.differs(second):
        raise RunError(f"{runs}: {reason}")
    if first.groups != second.groups:
        moved = [
            id for id, *pair in zip(first.ids, first.groups, second.groups, strict=True) if pair[0] != pair[1]
        ]
        raise RunError(f"{runs}: group the samples differently, in {say_some(moved)}")


def _say_difference(first: Samples, second: Samples, what: str) -> str:
    one, other = getattr(first, what), getattr(second, what)
    only = [
        f"{say_some(names)} only in {samples.run.path}"
        for samples, names in (
            (first, [name for name in one if name not in set(other)]),
            (second, [name for name in other if name not in set(one)]),
        )
        if names
    ]
    return "; ".join(only) or "the same ones in another order"
