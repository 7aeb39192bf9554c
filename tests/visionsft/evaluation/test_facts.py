"""Facts: what is read from a run folder, and what a folder gets that isn't whole."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from visionsft.errors import RunError
from visionsft.evaluation.facts import Part, read_facts
from visionsft.evaluation.pages import page_of


def test_every_file_is_read(make_run):
    facts = read_facts(make_run("one"))
    assert facts.parts == (
        Part("stem", 928, 0, "frozen"),
        Part("blocks.0", 13_968, 13_968, "0.0005"),
        Part("head", 213_131, 213_131, "0.002"),
    )
    assert [row["val/mean_iou"] for row in facts.metrics] == [None, 0.2, 0.4]
    assert facts.settings["trainer.epochs"] == "3"
    assert facts.samples.confusions.sum(axis=0).tolist() == facts.scores["confusion"]
    assert facts.gates is None


def test_group_scores_are_those_of_the_groups_pixels(make_run):
    page = page_of(read_facts(make_run("one")))
    cells = page.facts.samples.confusions[4:].sum(axis=0)  # the second drive
    truth, prediction = np.indices(cells.shape)
    weights = cells.ravel()
    expected = jaccard_score(truth.ravel(), prediction.ravel(), average="macro", sample_weight=weights)
    assert {row["name"]: row["mean_iou"] for row in page.groups()}["drive b"] == pytest.approx(expected)


def test_a_run_without_results_on_the_split_says_which_there_are(make_run):
    with pytest.raises(RunError, match=r"split 'val'; there are those on test; `visionsft evaluate .*--split val`"):
        read_facts(make_run("one"), split="val")


def test_damaged_and_missing_files_are_named(make_run):
    run = make_run("one")
    scores = run.evaluation("test") / "scores.json"
    scores.write_text(scores.read_text()[:50])
    with pytest.raises(RunError, match=r"scores\.json: is damaged"):
        read_facts(run)
    (run.path / "data.json").unlink()
    with pytest.raises(RunError, match=r"data\.json: is missing"):
        read_facts(run)


def test_an_interrupted_training_has_no_end(make_run):
    run = make_run("one")
    (run.path / "finished.json").unlink()
    (run.path / "metrics.csv").unlink()
    facts = read_facts(run)
    assert (facts.finished, facts.metrics) == (None, ())
