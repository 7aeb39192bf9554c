"""Runs side by side: what is written and said, and that the order of samples is none of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from visionsft.errors import RunError
from visionsft.evaluation.comparison import compare, table
from visionsft.runs import Run

WriteRun = Callable[..., Run]
RNG = np.random.default_rng(0)
FIRST = RNG.integers(5, 50, (12, 3, 3)) + 100 * np.eye(3, dtype=int)
GROUPS = [f"drive{i % 6}" for i in range(12)]


def better(confusions: np.ndarray, *, share: float) -> np.ndarray:
    """So much of the errors put right, in every sample."""
    errors = confusions * (1 - np.eye(3, dtype=int))
    fixed = np.rint(errors * share).astype(int)
    return confusions - fixed + np.eye(3, dtype=int) * fixed.sum(axis=2, keepdims=True)


def test_a_better_run_wins_in_every_group(write_run: WriteRun) -> None:
    runs = [write_run("a", FIRST, groups=GROUPS), write_run("b", better(FIRST, share=0.3), groups=GROUPS)]
    (pair,) = compare(runs)
    assert len(pair.groups) == 6
    assert all(group.difference > 0 for group in pair.groups)
    headline = pair.differences[0]
    assert (headline.metric, headline.p) == ("mean_iou", 2 / 2**6)
    assert "B better in 6, worse in 0, of 6" in pair.table()
    assert "no pictures" in pair.table()  # these runs have no checkpoint
    assert len(pair.changed) == 8

    folder = runs[0].path / "evaluation" / "test" / "compare-b"
    report = json.loads((folder / "compare.json").read_text(), parse_constant=pytest.fail)
    assert report["pairs"][0]["differences"][0]["difference"] == pytest.approx(headline.difference)
    assert "permutation" in report["method"]
    assert (folder / "table.txt").read_text() == table([pair]) + "\n"


def test_the_order_of_samples_does_not_matter(write_run: WriteRun, tmp_path: Path) -> None:
    second = better(FIRST, share=0.1)
    order = RNG.permutation(12)
    ids = [f"{i}.png" for i in range(12)]
    shuffled = {"ids": [ids[i] for i in order], "groups": [GROUPS[i] for i in order]}
    first = write_run("a", FIRST, groups=GROUPS, ids=ids)
    (one,) = compare([first, write_run("b", second, groups=GROUPS, ids=ids)], out=tmp_path / "1")
    (other,) = compare([first, write_run("c", second[order], **shuffled)], out=tmp_path / "2")
    assert one.differences == other.differences
    assert (one.groups, one.changed) == (other.groups, other.changed)


def test_several_runs_are_corrected_for(write_run: WriteRun) -> None:
    runs = [
        write_run(name, better(FIRST, share=share), groups=GROUPS)
        for name, share in (("a", 0.0), ("b", 0.02), ("c", 0.3))
    ]
    pairs = compare(runs)
    assert [(pair.first, pair.second) for pair in pairs] == [
        (str(runs[0].path), str(run.path)) for run in runs[1:]
    ]
    assert [pair.differences[0].p_holm for pair in pairs] == [2 * pair.differences[0].p for pair in pairs]
    assert (runs[0].path / "evaluation" / "test" / "compare-b-c" / "compare.json").is_file()


def test_what_else_differs(write_run: WriteRun) -> None:
    first = write_run("a", FIRST, config={"seed": 1})
    second = write_run("b", FIRST, config={"seed": 2})
    (pair,) = compare([first, second])
    assert pair.setup == {"config": {"seed": ("1", "2")}, "data": {}, "weights": {}, "code": {}}
    assert "config: 1 differ\n  seed: 1 in A, 2 in B\ndata: the same" in pair.table()
    assert (pair.changed, pair.problem) == ((), "no sample changed")


def test_few_groups_are_told_and_images_are_no_way_out(write_run: WriteRun) -> None:
    two = ["north", "south"] * 6
    runs = [write_run("a", FIRST, groups=two), write_run("b", better(FIRST, share=0.3), groups=two)]
    (pair,) = compare(runs)
    assert pair.differences[0].ends is None
    assert "with 2 groups no p can be below 0.5" in pair.table()
    (pair,) = compare(runs, group_by="image")
    assert (len(pair.groups), pair.differences[0].p) == (12, 2 / 2**12)
    assert "share their errors" in pair.table()


def test_a_run_is_not_compared_with_itself(write_run: WriteRun) -> None:
    run = write_run("a", FIRST)
    for runs in ([run], [run, run], [run, Run(run.path / ".." / "a")]):
        with pytest.raises(RunError, match="two different runs"):
            compare(runs)
