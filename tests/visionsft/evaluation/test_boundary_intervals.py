"""Intervals of boundary and object scores: the numbers themselves, scipy's spread, pairs, and gates on the ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
from scipy.stats import bootstrap

from visionsft.evaluation.boundaries import BoundaryCounts, count_boundaries, describe
from visionsft.evaluation.boundary_intervals import boundary_intervals, boundary_margins, boundary_scores
from visionsft.evaluation.counts import load_counts, save_counts
from visionsft.evaluation.differences import differences
from visionsft.evaluation.gates import judge
from visionsft.evaluation.samples import read_samples
from visionsft.gate import parse
from visionsft.runs import Run

NAMES = ("road", "car", "person")


def draw(seed: int, samples: int, *, wrong: float = 0.15) -> BoundaryCounts:
    """Blocks of two classes (person never occurs), predicted with errors that are a sample's own."""
    rng = np.random.default_rng(seed)
    counts = []
    for _ in range(samples):
        truth = rng.integers(0, 2, (6, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        share = rng.uniform(0, 2 * wrong)
        flipped = (rng.random((24, 24)) < share).repeat(2, 0).repeat(2, 1)
        counts.append(count_boundaries(np.where(flipped, 1 - truth, truth), truth, 3))
    return BoundaryCounts.stack(counts)


def test_the_numbers_are_those_of_the_description() -> None:
    counts = draw(0, 6)
    totals, classes = boundary_scores(boundary_margins(counts.sum()))
    report = describe(counts.sum(), NAMES)
    for metric, value in totals.items():
        assert value == pytest.approx(report[metric])
    assert classes["boundary_iou"][:2] == pytest.approx([report["boundary_iou"][name] for name in NAMES[:2]])
    assert classes["boundary_f1"][1] == pytest.approx(report["boundary_f1"]["car"]["f1"])
    sizes = report["objects"]["car"]
    recall = sum(row["found"] for row in sizes) / sum(row["objects"] for row in sizes)
    assert classes["object_recall"][1] == pytest.approx(recall) == report["object_recall_per_class"]["car"]
    assert report["object_recall_per_class"]["person"] is None


@pytest.mark.parametrize("metric", ["boundary_iou", "boundary_f1", "object_recall"])
def test_the_spread_is_scipys_bootstrap(metric: str) -> None:
    counts = draw(1, 50, wrong=0.45)
    found = boundary_intervals(counts, [f"{i:02}" for i in range(50)], NAMES)
    margins = boundary_margins(counts)[:, 0]  # (N, 8) of the first class

    def statistic(*columns: np.ndarray, axis: int) -> np.ndarray:
        sums = np.stack([column.sum(axis=axis) for column in columns], axis=-1)
        return boundary_scores(sums[..., None, :])[1][metric][..., 0]

    drawn = bootstrap(tuple(margins.T), statistic, paired=True, n_resamples=2000, rng=np.random.default_rng(2))
    ends = found.per_class[0].ends[metric]
    assert ends is not None
    estimate = float(boundary_scores(margins.sum(axis=0)[None])[1][metric][0])
    logit = np.log(np.array(ends) / (1 - np.array(ends)))
    error = drawn.standard_error / (estimate * (1 - estimate))  # of the logit
    assert np.diff(logit)[0] == pytest.approx(2 * 2.01 * error, rel=0.1)
    assert ends[0] < estimate < ends[1]


def test_few_groups_and_absent_classes_say_so() -> None:
    counts = draw(2, 12)
    found = boundary_intervals(counts, ["a", "b", "c"] * 4, NAMES)
    assert found.metrics == {"mean_boundary_iou": None, "mean_boundary_f1": None, "object_recall": None}
    totals = boundary_scores(boundary_margins(counts.sum()))[0]
    assert "no 95% intervals" in found.lines(totals)[-1]
    assert "only 3 groups" in found.lines(totals)[-1]
    enough = boundary_intervals(counts, [str(i) for i in range(12)], NAMES)
    assert enough.metrics["object_recall"] is not None
    assert enough.per_class[2].note == "only 0 groups"
    assert enough.per_class[2].ends == {"boundary_iou": None, "boundary_f1": None, "object_recall": None}


def evaluated(write_run: Callable[..., Run], name: str, counts: BoundaryCounts) -> Run:
    """A run whose evaluation scored boundaries, too."""
    matrices = np.tile(np.array([[80, 20, 0], [10, 90, 0], [0, 0, 0]]), (12, 1, 1))
    groups = [f"drive{i}" for i in range(12)]
    intervals = boundary_intervals(counts, groups, NAMES).as_dict()
    run = write_run(name, matrices, groups=groups, boundaries={**describe(counts.sum(), NAMES), "intervals": intervals})
    folder = run.evaluation("test")
    arrays = {f"boundary_{field.name}": getattr(counts, field.name) for field in fields(counts)}
    save_counts(load_counts(folder), folder, details=arrays)
    return run


def test_gates_and_pairs(write_run: Callable[..., Run]) -> None:
    good, bad = (
        evaluated(write_run, name, draw(3, 12, wrong=wrong)) for name, wrong in (("good", 0.05), ("bad", 0.3))
    )
    texts = ["mean_boundary_iou.lower >= 0", "object_recall[car].lower >= 0.1", "boundary_f1[road].upper <= 1",
             "object_recall >= 0.5", "boundary_iou[person].lower >= 0.1",
             f"boundary_iou[road] drop_vs {good.path} <= 1",
             f"boundary_iou[road].upper drop_vs {good.path} <= 1"]  # fmt: skip
    verdicts = judge(bad, [parse(text) for text in texts]).verdicts
    assert [each.passed for each in verdicts] == [True] * 4 + [False, True, True]
    assert verdicts[4].note.startswith("not defined: no pixel of 'person'")
    drop, upper = verdicts[5].value, verdicts[6].value
    assert drop is not None
    assert upper is not None
    assert 0 < drop < upper
    rows = differences(read_samples(good, "test"), read_samples(bad, "test"))
    row = next(row for row in rows if (row.metric, row.of) == ("boundary_iou", "road"))
    assert row.difference == pytest.approx(-drop)
    assert row.ends is not None
    assert row.ends[0] == pytest.approx(-upper)
    assert row.p < 0.01


def test_runs_of_which_one_has_no_boundaries_are_compared_without(write_run: Callable[..., Run]) -> None:
    one = evaluated(write_run, "one", draw(3, 12))
    matrices = np.tile(np.array([[80, 20, 0], [10, 90, 0], [0, 0, 0]]), (12, 1, 1))
    two = write_run("two", matrices)
    for pair in ((one, two), (two, one)):
        rows = differences(*(read_samples(each, "test") for each in pair), tested=False)
        assert {row.metric for row in rows} >= {"mean_iou", "recall"}
        assert not any("boundary" in row.metric for row in rows)
    (found,) = judge(two, [parse(f"object_recall.upper drop_vs {one.path} <= 1")]).verdicts
    assert found.note == f"not defined in {one.path} or here"
