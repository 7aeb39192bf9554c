"""Leakage: files, pictures, drives and ground that two splits share, or that one split holds twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from datamodules.datamodule import DataModule
from datamodules.leaks import PAIRS, find_leaks
from datamodules.lookalikes import Looks, find_identical, find_repeats, find_twins, look_at
from visionsft.preparation.findings import Findings
from visionsft.preparation.looks import Look

_KINDS = {
    "ground": "shared ground",
    "near": "shared ground",
    "drive": "shared drive",
    "neighbour": "shared drive",
    "contradiction": "contradiction",
}
"""What of `datamodules.leaks` is told here; identical files and lookalikes are found in the looks."""


def check_leaks(looks: Sequence[Look], module: DataModule, findings: Findings) -> None:
    """Of the data module's splits, and of the looks that were taken of them."""
    for leak in find_leaks(module, labels=True) if module.items else ():
        if leak.kind in _KINDS:
            place = f"{leak.splits[0]} and {leak.splits[1]}"
            example = leak.examples[0] if leak.examples else None
            item = None if example is None else example.second
            findings.add(_KINDS[leak.kind], None, leak.text, place=place, count=leak.count, item=item)
    twins = _check_identical(looks, findings)
    _check_lookalikes([look for look in looks if look.small is not None], twins, findings)


def _check_identical(looks: Sequence[Look], findings: Findings) -> set[tuple[str, str]]:
    """Files with the same bytes; returns the pairs of their paths."""
    owners: dict[str, list[Look]] = defaultdict(list)
    for look in looks:
        owners[look.item.image].append(look)
    pairs = set()
    for group in find_identical(list(owners)):
        first = min(group, key=lambda path: _rank(owners[path][0]))
        for path in group:
            if path == first or not owners[path][0].is_read:
                continue
            one, other = owners[first][0], owners[path][0]
            check = "identical" if one.split == other.split else "identical across splits"
            findings.add(
                check, path, f"the same bytes as {first}", place=f"{one.split} and {other.split}",
                item=other.item.id, other=first,
            )  # fmt: skip
            pairs.add((first, path))
    return pairs


def _rank(look: Look) -> int:
    """What is learned from comes first."""
    return ("train", "val", "test").index(look.split)


def _check_lookalikes(looks: Sequence[Look], known: set[tuple[str, str]], findings: Findings) -> None:
    seen = look_at([_grey(look) for look in looks])
    index = {split: np.array([i for i, look in enumerate(looks) if look.split == split], np.int64) for split in _SPLITS}
    for first, second in PAIRS:
        if not len(index[first]) or not len(index[second]):
            continue
        pairs = find_twins(seen.take(index[second]), seen.take(index[first]))
        for row, column in pairs.tolist():
            one, other = looks[index[first][column]], looks[index[second][row]]
            if (one.item.image, other.item.image) not in known and one.item.image != other.item.image:
                found = f"looks as {one.item.id} does ({_apart(seen, index[first][column], index[second][row])})"
                findings.add(
                    "lookalike across splits", other.item.image, found, place=f"{first} and {second}",
                    item=other.item.id, other=one.item.image,
                )  # fmt: skip
    for split, own in index.items():
        pairs = find_repeats(seen.take(own)) if len(own) else np.empty((0, 2), np.int64)
        for row, column in pairs.tolist():
            one, other = looks[own[column]], looks[own[row]]
            if one.item.image != other.item.image and (one.item.image, other.item.image) not in known:
                found = f"looks as {one.item.id} does"
                findings.add(
                    "repeats", other.item.image, found, place=split, item=other.item.id, other=one.item.image
                )


_SPLITS = ("train", "val", "test")


def _grey(look: Look) -> np.ndarray:
    """(SIDE, SIDE) as 8 bits have it, for the comparison."""
    assert look.small is not None
    grey = np.nan_to_num(look.small, nan=0.0).mean(axis=0)
    if look.dtype == "uint8":
        return grey
    low, high = float(grey.min()), float(grey.max())
    return (grey - low) * (255.0 / max(high - low, 1e-9))


def _apart(seen: Looks, one: int, other: int) -> str:
    pair = seen.thumbnails[[one, other]].astype(np.float32)
    bits = int(np.bitwise_count(seen.hashes[one] ^ seen.hashes[other]))
    return f"{np.abs(pair[0] - pair[1]).mean():.1f} of 255 apart, hashes {bits} of 64 bits"
