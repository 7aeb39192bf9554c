"""Gates judged from files: what passes, what fails and why, and what CI reads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from visionsft.evaluation.gates import Verdict, judge, look_up
from visionsft.gate import VOCABULARIES, parse
from visionsft.runs import Run

WriteRun = Callable[..., Run]
CONFUSIONS = np.array([[[80, 20], [10, 90]], [[60, 40], [0, 100]]])
"""road: recall 0.7, car: recall 0.95."""
INTERVALS = {
    "note": None,
    "metrics": {"mean_iou": [0.6, 0.8], "pixel_accuracy": None},
    "per_class": {
        "road": {"iou": [0.5, 0.7], "recall": [0.65, 0.75], "groups": 6, "note": None},
        "car": {"iou": None, "recall": None, "groups": 2, "note": "only 2 groups"},
    },
}
SLICES = [
    {"by": "group", "value": "drive0", "mean_iou": 0.7, "recall": {"road": 0.8, "car": 0.9}},
    {"by": "group", "value": "drive1", "mean_iou": 0.6, "recall": {"road": 0.6, "car": None}},
    {"by": "site", "value": "north", "mean_iou": 0.1, "recall": {"road": 0.1, "car": None}},
]
EFFICIENCY = {
    "parameters": 1000,
    "gmacs_per_mpx": 2.5,
    "throughput": {"mpx_s": 3.0, "shape": [1, 3, 8, 8], "repeats": 5},
    "peak_memory_mb": None,
    "machine": "cpu",
}


@pytest.fixture
def run(write_run: WriteRun) -> Run:
    return write_run(
        "tiny",
        CONFUSIONS,
        intervals=INTERVALS,
        slices=SLICES,
        efficiency=EFFICIENCY,
        calibration={"ece": 0.04},
    )


def verdict(run: Run, text: str) -> Verdict:
    (found,) = judge(run, [parse(text)]).verdicts
    return found


@pytest.mark.parametrize(
    ("text", "value", "margin"),
    [
        ("pixel_accuracy >= 0.8", 0.825, 0.025),
        ("recall[road] >= 0.75", 0.7, -0.05),
        ("recall[car] <= 0.75", 0.95, -0.2),
        ("recall[road].lower >= 0.6", 0.65, 0.05),
        ("mean_iou.upper < 0.9", 0.8, 0.1),
        ("slice(group).recall[road].min >= 0.5", 0.6, 0.1),
        ("slice(group).recall[car].max >= 0.95", 0.9, -0.05),
        ("slice(site).mean_iou.min >= 0.1", 0.1, 0.0),
        ("ece <= 0.05", 0.04, 0.01),
        ("throughput.mpx_s >= 1", 3.0, 2.0),
        ("parameters <= 900", 1000, -100),
    ],
)
def test_values_and_margins(run: Run, text: str, value: float, margin: float) -> None:
    found = verdict(run, text)
    assert (found.value, found.margin) == (pytest.approx(value), pytest.approx(margin))
    assert found.passed == (margin >= 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("recall[car].lower >= 0", "no interval: only 2 groups"),
        ("pixel_accuracy.lower >= 0", "no interval: none was made"),
        ("mean_recall.lower >= 0", "no interval: none was made"),
        ("slice(weather).mean_iou.min >= 0", "no slices by 'weather' were scored"),
        ("slice(site).recall[car].min >= 0", "defined in 0 of 1 slices"),
        ("peak_memory_mb <= 1e9", "not measured"),
    ],
)
def test_what_is_not_defined_fails_with_the_reason(run: Run, text: str, reason: str) -> None:
    found = verdict(run, text)
    assert (found.value, found.margin, found.passed) == (None, None, False)
    assert reason in found.note


def test_a_run_of_old_scores_fails_all_newer_gates(write_run: WriteRun) -> None:
    run = write_run("old", CONFUSIONS)
    for text in ("mean_iou.lower >= 0", "ece <= 1", "parameters >= 0", "slice(group).mean_iou.min >= 0"):
        assert not verdict(run, text).passed
    assert "visionsft evaluate --efficiency" in verdict(run, "parameters >= 0").note


def test_a_class_without_truth_fails(write_run: WriteRun) -> None:
    run = write_run("absent", np.pad(CONFUSIONS, ((0, 0), (0, 1), (0, 1))))
    assert verdict(run, "recall[person] >= 0").note == (
        "not defined: no pixel of 'person' in truth of split 'test'"
    )
    assert not verdict(run, "iou[person] <= 1").passed


def test_how_many_slices_a_value_stands_on(run: Run) -> None:
    assert verdict(run, "slice(group).recall[car].min >= 0.5").note == "defined in 1 of 2 slices"


def test_a_drop_against_a_baseline(run: Run, write_run: WriteRun) -> None:
    baseline = write_run("baseline", CONFUSIONS + np.array([[10, -10], [0, 0]]))  # road: recall 0.8
    found = verdict(run, f"recall[road] drop_vs {baseline.path} <= 0.02")
    assert (found.value, found.margin, found.passed) == (pytest.approx(0.1), pytest.approx(-0.08), False)
    assert verdict(baseline, f"recall[road] drop_vs {run.path} <= 0.02").value == pytest.approx(-0.1)
    assert verdict(run, f"recall[road] drop_vs {run.path} <= 0").passed


def test_an_end_of_the_drops_interval(write_run: WriteRun) -> None:
    """That a model is surely not much worse: groups of the same drop give a tight interval around it."""
    errors = np.arange(8)[:, None, None] % 2 * np.array([[-2, 2], [0, 0]])
    before = np.repeat(CONFUSIONS, 4, axis=0)
    run, baseline = (write_run(name, matrix) for name, matrix in (("new", before + errors), ("old", before)))
    drop = verdict(run, f"recall[road] drop_vs {baseline.path} <= 0.02")
    low, high = (
        verdict(run, f"recall[road].{end} drop_vs {baseline.path} <= 0.05") for end in ("lower", "upper")
    )
    assert drop.value == pytest.approx(0.01)
    assert low.value is not None
    assert high.value is not None
    assert -0.01 < low.value < 0.01 < high.value < 0.03
    assert low.value + high.value == pytest.approx(0.02)
    assert "drop 0.0100" in high.note


def test_a_drop_without_an_interval_fails(run: Run) -> None:
    found = verdict(run, f"mean_iou.upper drop_vs {run.path} <= 1")
    assert not found.passed
    assert "no interval of the drop: too few groups" in found.note


def test_a_baseline_on_other_data_fails(run: Run, write_run: WriteRun) -> None:
    other = write_run("other", CONFUSIONS, ids=["a.png", "0001.png"])
    found = verdict(run, f"mean_iou drop_vs {other.path} <= 1")
    assert not found.passed
    assert "1 (a.png) only in" in found.note


def test_gates_on_the_training_split_are_marked(write_run: WriteRun) -> None:
    judgement = judge(write_run("tiny", CONFUSIONS, warning="TRAINING SPLIT"), [parse("mean_iou >= 0")])
    assert judgement.table().startswith("!! TRAINING SPLIT\n")
    assert judgement.as_dict()["warning"] == "TRAINING SPLIT"


def test_every_metric_of_the_language_is_looked_up(run: Run) -> None:
    names = {name.split("[")[0] for name in look_up(run.scores("test"))}
    assert set(VOCABULARIES["segmentation"].metrics) <= names


def test_what_ci_reads(run: Run) -> None:
    texts = ["pixel_accuracy >= 0.8", "recall[road] >= 0.75", "recall[car].lower > 0"]
    judgement = judge(run, [parse(text) for text in texts])
    assert not judgement.passed
    folder = run.path / "evaluation" / "test"

    report: dict[str, Any] = json.loads((folder / "gates.json").read_text(), parse_constant=pytest.fail)
    assert report["passed"] is False
    assert [gate["passed"] for gate in report["gates"]] == [True, False, False]
    assert set(report["gates"][0]) == {"expression", "value", "limit", "margin", "passed", "note"}
    assert math.isclose(report["gates"][1]["margin"], -0.05)

    suite = ElementTree.parse(folder / "gates.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [gate["expression"] for gate in report["gates"]]
    messages = [case.find("failure") for case in cases]
    assert messages[0] is None
    assert "margin -0.05" in str(messages[1].get("message"))
    assert "only 2 groups" in str(messages[2].get("message"))

    lines = judgement.table().splitlines()
    assert lines[0] == "gates: 1 of 3 passed"
    assert [line.split()[0] for line in lines[1:]] == ["pass", "FAIL", "FAIL"]
    assert judge(run, [parse(texts[0])]).passed
