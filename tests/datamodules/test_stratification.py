"""Stratification against brute force: as many classes reach as many splits as any assignment allows."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.stratification import find_missing, stratify

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def reached(owner: tuple[int, ...], holds: np.ndarray) -> int:
    owners = np.array(owner)
    return sum(int(holds[owners == split].any(axis=0).sum()) for split in range(3))


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=3, max_size=6), st.integers(0, 3)
)
def test_no_split_is_empty_and_close_to_the_best(rows: list[list[int]], seed: int) -> None:
    amounts = np.array(rows, np.float64)
    names = [f"g{i}" for i in range(len(rows))]
    owner = stratify(names, [1.0] * len(rows), amounts, shares=SHARES, seed=seed)
    assert set(owner.values()) == set(SHARES)
    mine = reached(tuple(list(SHARES).index(owner[name]) for name in names), amounts > 0)
    best = max(
        reached(each, amounts > 0) for each in product(range(3), repeat=len(rows)) if len(set(each)) == 3
    )
    assert mine >= best - 1  # local search
    missing = find_missing(owner, names, amounts, splits=list(SHARES))
    occurring = int((amounts > 0).any(axis=0).sum())
    assert sum(len(without) for _, _, without in missing) == 3 * occurring - mine
