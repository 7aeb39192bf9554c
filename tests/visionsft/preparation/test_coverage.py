"""The greedy choice beside a naive one, distance by distance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from visionsft.preparation import coverage
from visionsft.preparation.coverage import choose


@given(st.integers(1, 25), st.integers(0, 6), st.integers(1, 30), st.integers(0, 2**16))
def test_the_choice_is_the_naive_one(rows: int, known: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, there, weights = rng.normal(size=(rows, 3)), rng.normal(size=(known, 3)), rng.uniform(0.1, 1, rows)
    every = np.concatenate([points, there])
    unit = np.sqrt(np.square(every - every.mean(axis=0)).sum(axis=1).mean()) or 1.0
    found = choose(points, weights, known=there, count=count, closest=0.3)
    chosen: list[int] = []
    for _ in range(count):
        others = np.concatenate([there, points[chosen]])
        far = cdist(points, others).min(axis=1) / unit if len(others) else np.full(rows, np.inf)
        merits = np.where(far > 0.3, weights * np.where(np.isinf(far), 1, far), -1)
        if merits.max() < 0:
            break
        chosen.append(int(merits.argmax()))
        assert found.distances[len(chosen) - 1] == pytest.approx(far[chosen[-1]], rel=1e-4)
    assert found.chosen == chosen


def test_of_near_duplicates_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "BLOCK", 8)
    places = np.random.default_rng(0).normal(size=(10, 5)) * 10
    points = np.repeat(places, 3, axis=0).astype(np.float16) + np.float16(0.01) * np.arange(30)[:, None]
    found = choose(points, np.ones(30), known=places[:2], count=30, closest=0.1)
    assert sorted(index // 3 for index in found.chosen) == list(range(2, 10))


def test_a_model_that_is_sure_of_everything_still_spreads() -> None:
    points = np.array([[0.0], [1.0], [10.0]])
    assert choose(points, np.zeros(3), known=points[:1], count=1, closest=0).chosen == [2]
