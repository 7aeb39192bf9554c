"""Balance: what of each class there is in each split, which classes are too rare, and labels laid out unlike others.

The rule, said with every finding: to be learned a class needs LEARNED images (or objects), to be measured MEASURED
images, or objects, of at least as many independent groups as an interval needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from datamodules.objects import Objects
from visionsft.evaluation.intervals import FEW_GROUPS
from visionsft.preparation.findings import Findings
from visionsft.preparation.looks import GRID, Look
from visionsft.preparation.value_faults import robust_deviations

LEARNED = {"images": 20, "objects": 50}
"""What a class needs in train..."""
MEASURED = {"images": 10, "objects": 25}
"""...and in val and test: one error more or less is then at most 10 or 4 % of its recall."""
RARE = 0.005
"""Share of the labelled training pixels below which a plain loss neglects a class."""
UNLIKE = 8.0
"""Robust standard deviations below the usual from which on a layout is unlike the others."""
_FLOOR = 0.15
_FEWEST = 30


@dataclass
class ClassCount:
    """What one split has of one class."""

    pixels: int = 0
    images: int = 0
    objects: int = 0
    groups: set[str] = field(default_factory=set)


Counts = dict[str, dict[str, ClassCount]]
"""By split, then by class."""


def count_classes(
    looks: Sequence[Look],
    names: Sequence[str],
    *,
    objects: Mapping[str, Objects] | None = None,
    labels: Mapping[str, Sequence[int]] | None = None,
) -> Counts:
    """objects, labels: of detection and of classification, by item id; None: the looks' masks are counted."""
    counts: Counts = {split: {name: ClassCount() for name in names} for split in ("train", "val", "test")}
    for look in looks:
        own = counts[look.split]
        if objects is not None:
            found = objects.get(look.item.id)
            number = np.zeros(0, int) if found is None else np.bincount(found.labels[~found.ignored])
        elif labels is not None:
            number = np.bincount(np.array(labels.get(look.item.id, ()), int))
        else:
            number = np.zeros(0, int) if look.counts is None else look.counts
        for index in np.flatnonzero(number).tolist():
            each = own[names[index]]
            each.images += 1
            each.groups.add(look.item.group)
            if objects is not None:
                each.objects += int(number[index])
            elif labels is None:
                each.pixels += int(number[index])
    return counts


def check_balance(counts: Counts, looks: Sequence[Look], findings: Findings, *, counted: str) -> None:
    """counted: 'pixels', 'objects' or 'images'."""
    unit = "objects" if counted == "objects" else "images"
    groups = {split: {look.item.group for look in looks if look.split == split} for split in counts}
    sizes = {split: sum(look.split == split for look in looks) for split in counts}
    for split in ("val", "test"):
        if not sizes[split]:
            findings.add("empty split", None, "0 samples", place=split)
        elif len(groups[split]) < FEW_GROUPS and sizes[split] > len(groups[split]):
            found = f"{sizes[split]} samples of {len(groups[split])} groups: {', '.join(sorted(groups[split]))}"
            findings.add("few groups", None, found, allowed=f"at least {FEW_GROUPS}", place=split)
    labelled = sum(each.pixels for each in counts["train"].values())
    for name, each in counts["train"].items():
        _check_learned(name, each, unit, labelled if counted == "pixels" else 0, findings)
    for split in ("val", "test"):
        if sizes[split]:
            many = len(groups[split]) >= FEW_GROUPS
            for name, each in counts[split].items():
                _check_measured(name, each, unit, split, many, findings)


def _check_learned(name: str, count: ClassCount, unit: str, labelled: int, findings: Findings) -> None:
    place, number = f"train, class {name}", getattr(count, unit)
    if not number:
        findings.add("absent class", None, f"0 {unit}", place=place, allowed=f"at least {LEARNED[unit]}")
    elif number < LEARNED[unit]:
        found = f"{number} {unit} of {len(count.groups)} groups"
        findings.add("too rare to learn", None, found, place=place, allowed=f"at least {LEARNED[unit]} {unit}")
    elif labelled and count.pixels < RARE * labelled:
        found = f"{count.pixels / labelled:.2%} of the labelled pixels, in {count.images} images"
        findings.add("rare pixels", None, found, place=place, allowed=f"from {RARE:.1%}")


def _check_measured(
    name: str, count: ClassCount, unit: str, split: str, many_groups: bool, findings: Findings
) -> None:
    """many_groups: whether the split has enough groups at all; else that is said once."""
    number = getattr(count, unit)
    allowed = f"at least {MEASURED[unit]} {unit} of {FEW_GROUPS} groups"
    if number < MEASURED[unit] or (many_groups and len(count.groups) < FEW_GROUPS):
        found = f"{number} {unit} of {len(count.groups)} groups"
        findings.add("too rare to measure", None, found, place=f"{split}, class {name}", allowed=allowed)


# ------------------------------------------------------------------------------------------------------ layout


def check_labels(looks: Sequence[Look], classes: int, findings: Findings) -> None:
    """Masks without any label, and masks laid out unlike the others."""
    for look in looks:
        if look.counts is not None and not look.counts.any() and not look.unknown:
            findings.add(
                "nothing labelled", look.item.label, "every pixel is ignored", place=look.split, item=look.item.id
            )
    laid = [look for look in looks if look.layout is not None and (look.layout != 255).mean() > 0.25]
    if len(laid) < _FEWEST:
        return
    scores = layout_scores(np.stack([look.layout for look in laid if look.layout is not None]), classes)
    apart, far = robust_deviations(scores[:, None], np.array([_FLOOR]))
    for look, difference, deviation in zip(laid, apart[:, 0].tolist(), far[:, 0].tolist(), strict=True):
        if deviation < -UNLIKE:
            found = f"its classes stand where they are {np.exp(-difference):.1f} times rarer than usual"
            findings.add(
                "label layout", look.item.label, f"{found} ({-deviation:.1f} robust deviations)",
                allowed=f"within {UNLIKE:g} robust deviations of the others", place=look.split, item=look.item.id,
            )  # fmt: skip


def layout_scores(layouts: NDArray[np.uint8], classes: int) -> NDArray[np.float64]:
    """(N, GRID, GRID) classes, 255 for none -> (N,) mean logarithm of how frequent each cell's class is there in
    the other layouts (with one of each class added)."""
    flat = layouts.reshape(len(layouts), GRID * GRID)
    known = flat != 255
    cells = np.arange(GRID * GRID)
    table = np.zeros((GRID * GRID, classes))
    for row, seen in zip(flat, known, strict=True):
        table[cells[seen], row[seen]] += 1
    scores = np.zeros(len(layouts))
    for index, (row, seen) in enumerate(zip(flat, known, strict=True)):
        others = table[cells[seen]]
        own = others[np.arange(seen.sum()), row[seen]] - 1
        scores[index] = np.log((own + 1) / (others.sum(axis=1) - 1 + classes)).mean() if seen.any() else 0.0
    return scores
