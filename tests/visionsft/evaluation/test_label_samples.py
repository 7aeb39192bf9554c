"""Two classifiers on the same images: against scikit-learn, scipy and McNemar's test, and from their folders."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from visionsft.errors import RunError
from visionsft.evaluation import evaluate
from visionsft.evaluation.comparison import compare
from visionsft.evaluation.differences import differences, permutation_test
from visionsft.evaluation.label_samples import LabelSamples
from visionsft.evaluation.samples import check_comparable, read_samples
from visionsft.runs import Run

RNG = np.random.default_rng(0)


def samples(probabilities: np.ndarray, labels: np.ndarray, groups: list[str] | None = None) -> LabelSamples:
    ids = tuple(f"{i:03}" for i in range(len(labels)))
    thresholds = None if labels.ndim == 1 else np.full(labels.shape[1], 0.5)
    names, order = tuple("abcd"[: probabilities.shape[1]]), tuple(range(len(ids)))
    run = Run(Path("runs/x"))
    return LabelSamples(run, ids, tuple(groups or ids), names, order, probabilities, labels, thresholds)


def answers(rng: np.random.Generator, labels: np.ndarray, skill: float) -> np.ndarray:
    """(N, 3) probabilities, the more often right the more skill."""
    raw = rng.random((len(labels), 3)) + skill * (labels[:, None] == np.arange(3))
    return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)


def test_estimates_are_scikit_learns() -> None:
    labels = RNG.integers(0, 3, 90)
    probabilities = answers(RNG, labels, 0.4)
    found = samples(probabilities, labels).estimates()
    predicted = probabilities.argmax(axis=1)
    assert found["accuracy", False] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["macro_f1", False] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    reference = [sk.average_precision_score(labels == k, probabilities[:, k]) for k in range(3)]
    assert found["average_precision", True].tolist() == pytest.approx(reference)


def test_of_single_images_it_is_mcnemars_exact_test() -> None:
    labels = RNG.integers(0, 3, 13)
    first, second = (samples(answers(RNG, labels, skill), labels) for skill in (0.2, 0.8))
    right = [each.probabilities.argmax(axis=1) == labels for each in (first, second)]
    gains, losses = int((~right[0] & right[1]).sum()), int((right[0] & ~right[1]).sum())
    reference = stats.binomtest(gains, gains + losses).pvalue
    p = permutation_test(first.scorer(second), 13)["accuracy", False]
    assert p == pytest.approx(reference)


def test_p_values_of_groups_are_scipys() -> None:
    labels, groups = RNG.integers(0, 3, 60), [f"site{i % 8}" for i in range(60)]
    first, second = (samples(answers(RNG, labels, skill), labels, groups) for skill in (0.3, 0.5))

    said = np.concatenate([each.probabilities.argmax(axis=1) for each in (first, second)])
    owners, truth = np.concatenate([first.owners, second.owners + 8]), np.tile(labels, 2)

    def gap(*parts: np.ndarray) -> float:
        rows = [np.isin(owners, part) for part in parts]
        scores = [sk.recall_score(truth[each], said[each], average="macro") for each in rows]
        return float(scores[1] - scores[0])

    reference = stats.permutation_test(
        (np.arange(8), np.arange(8) + 8), gap, permutation_type="samples", n_resamples=1e9, vectorized=False
    )
    p = permutation_test(first.scorer(second), 8)["mean_recall", False]
    assert p == pytest.approx(reference.pvalue)


def test_equal_classifiers_are_told_apart_as_seldom_as_stated() -> None:
    """200 comparisons over ten groups; shares of small p within three standard errors."""
    rng = np.random.default_rng(1)
    groups, p = [f"{i % 10}" for i in range(60)], []
    for _ in range(200):
        labels = rng.integers(0, 3, 60)
        first, second = (samples(answers(rng, labels, 0.4), labels, groups) for _ in range(2))
        p.append(float(permutation_test(first.scorer(second), 10)["macro_f1", False]))
    for level in (0.05, 0.25, 0.5, 0.75):
        assert abs((np.array(p) <= level).mean() - level) < 3 * np.sqrt(level * (1 - level) / 200)


def test_several_labels_have_no_ranks() -> None:
    labels = (RNG.random((30, 3)) < 0.4).astype(np.float32)
    pair = [samples(RNG.random((30, 3)).astype(np.float32), labels) for _ in range(2)]
    metrics = {row.metric for row in differences(*pair)}
    assert "accuracy" in metrics
    assert not any(metric.startswith("top_k") for metric in metrics)
    single = replace(pair[0], labels=labels.argmax(axis=1), thresholds=None)
    with pytest.raises(RunError, match="one has one class an image, the other several"):
        check_comparable(pair[0], single)
    other = replace(pair[0], labels=1 - labels)
    assert "were scored with other labels in 30 (000, 001, " in str(pair[0].differs(other))


def test_runs_are_compared_from_their_folders(label_run: Run, tmp_path: Path) -> None:
    evaluate(label_run)
    shutil.copytree(label_run.path, tmp_path / "worse")
    worse = Run(tmp_path / "worse")
    path = worse.evaluation("test") / "per_sample.npz"
    arrays = dict(np.load(path))
    arrays["probabilities"][:5] = 1 - arrays["probabilities"][:5]
    np.savez(path, **arrays)
    (pair,) = compare([label_run, worse], out=tmp_path / "out")
    accuracy = pair.differences[0]
    assert (accuracy.metric, accuracy.difference) == ("accuracy", pytest.approx(-5 / 12))
    assert accuracy.p == 2 / 2**5  # five images differ, all for the worse
    assert [change.name for change in pair.changed].count(read_samples(worse, "test").ids[0]) == 1
    assert "accuracy by group: B better in 0, worse in 5, of 12" in pair.table()
    assert pair.problem is None
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        "table.txt", "compare.json", "changed-1-worse.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["pairs"][0]["sample_score"]
