"""Stratification: groups shared out between splits so that rare classes reach each of them.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data") with
groups in place of examples and amounts (pixels, objects, images) in place of labels: the rarest class is shared
out first. A class that has no more groups left than splits without it goes to those; what greed missed is mended
by moving and swapping groups, as long as more classes reach more splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

ROUNDS = 50
"""Moves and swaps at most."""
SWAPPED = 400
"""Groups up to which swaps are tried, of which there are as many as pairs of groups."""

Amounts = NDArray[np.float64]
"""(G, K): how much of each class each group holds."""


def stratify(
    names: Sequence[str], sizes: Sequence[float], amounts: Amounts, *, shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """The split of every group.

    sizes: of the groups, in what `shares` (of each split, above 0, summing to 1) are shares of. There are at
    least as many groups as splits. The seed decides between equals.
    """
    order = sorted(range(len(names)), key=lambda i: names[i])
    order = [order[i] for i in np.random.default_rng(seed).permutation(len(order))]
    splits = list(shares)
    wanted = np.array([shares[split] for split in splits])
    given = _share_out(np.asarray(sizes, np.float64)[order], amounts[order], wanted)
    _mend(given, amounts[order], len(splits))
    return {names[i]: splits[given[place]] for place, i in enumerate(order)}


def find_missing(
    owner: Mapping[str, str], names: Sequence[str], amounts: Amounts, *, splits: Sequence[str]
) -> list[tuple[int, int, list[str]]]:
    """(class, number of groups that hold it, splits that it doesn't reach) for classes that occur at all."""
    found = []
    for index in range(amounts.shape[1]):
        holders = [name for name, amount in zip(names, amounts[:, index], strict=True) if amount > 0]
        missing = [split for split in splits if all(owner[name] != split for name in holders)]
        if holders and missing:
            found.append((index, len(holders), missing))
    return found


def _share_out(sizes: NDArray[np.float64], amounts: Amounts, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """(G,) split of each group, by greed."""
    given = np.full(len(sizes), -1, np.int64)
    # what splits lack, in shares of all: of each class, and in the last column of the sizes
    together = np.column_stack([amounts, sizes])
    together = together / np.maximum(together.sum(axis=0), 1e-12)
    lack = np.repeat(shares[:, None], together.shape[1], axis=1)
    holds = np.column_stack([amounts > 0, np.ones(len(sizes), np.bool_)])
    reached = np.zeros_like(lack, np.bool_)
    while (left := given < 0).any():
        counts = holds[left].sum(axis=0)
        column = min(np.flatnonzero(counts).tolist(), key=lambda k: (counts[k], k == len(counts) - 1))
        groups = np.flatnonzero(left & holds[:, column])
        for group in groups[np.argsort(-together[groups, column], kind="stable")]:
            choice = _allowed(reached, column, int((given[groups] < 0).sum()), int((given < 0).sum()))
            split = max(choice, key=lambda split: (lack[split, column], lack[split, -1], -split))
            given[group] = split
            lack[split] -= together[group]
            reached[split] |= holds[group]
    return given


def _allowed(reached: NDArray[np.bool_], column: int, holders: int, groups: int) -> list[int]:
    """The splits that a group may go to: the last groups (holders: of a class) are kept for splits without any."""
    empty = np.flatnonzero(~reached[:, -1]).tolist()
    without = np.flatnonzero(~reached[:, column]).tolist()
    if empty and groups <= len(empty):
        return list(empty)
    return list(without) if without and holders <= len(without) else list(range(len(reached)))


def _mend(given: NDArray[np.int64], amounts: Amounts, splits: int) -> None:
    """Moves or swaps groups while that makes classes reach more splits; no split is emptied."""
    holds = amounts > 0
    for _ in range(ROUNDS):
        counts = np.stack([holds[given == split].sum(axis=0) for split in range(splits)])
        sizes = np.bincount(given, minlength=splits)
        change = _best_move(given, holds, counts, sizes) or _best_swap(given, holds, counts)
        if change is None:
            return
        for group, split in change:
            given[group] = split


def _best_move(
    given: NDArray[np.int64], holds: NDArray[np.bool_], counts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> list[tuple[int, int]] | None:
    """The group whose move to another split makes classes reach most, if any does."""
    best, gained = None, 0
    lost = (holds & (counts[given] == 1)).sum(axis=1)
    for split in range(len(counts)):
        gain = (holds & (counts[split] == 0)).sum(axis=1) - lost
        gain[(given == split) | (sizes[given] == 1)] = 0
        group = int(gain.argmax())
        if gain[group] > gained:
            best, gained = [(group, split)], int(gain[group])
    return best


def _best_swap(
    given: NDArray[np.int64], holds: NDArray[np.bool_], counts: NDArray[np.int64]
) -> list[tuple[int, int]] | None:
    """The two groups whose exchange makes classes reach most, if any does."""
    if len(given) > SWAPPED:
        return None
    best, gained = None, 0
    for one in range(len(given)):
        others = np.flatnonzero(given > given[one])
        here, there = counts[given[one]], counts[given[others]]
        change = holds[others].astype(np.int64) - holds[one]
        gain = ((here + change > 0).sum(axis=1) + (there - change > 0).sum(axis=1)) - (
            (here > 0).sum() + (there > 0).sum(axis=1)
        )
        if len(others) and gain.max() > gained:
            other = int(others[gain.argmax()])
            best, gained = [(one, int(given[other])), (other, int(given[one]))], int(gain.max())
    return best
