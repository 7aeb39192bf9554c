"""Operating points against scikit-learn's curves, the rule pixel by pixel, and what a run keeps of them."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from datamodules import DataError
from visionsft.errors import ConfigError
from visionsft.evaluation.thresholds import (
    STEPS,
    Requirement,
    apply_thresholds,
    choose,
    choose_thresholds,
    count_scores,
    parse_requirement,
    parse_requirements,
)
from visionsft.runs import Run

NAMES = ("Sky", "Road", "Pedestrian")


def draw(*, seed: int, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Batches of logits (2, 3, 30, 40) with labels drawn from them; Pedestrian is rare."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        logits = (
            2.0 * torch.randn(2, 3, 30, 40, generator=generator)
            + torch.tensor([0.0, 0.0, -3.0])[:, None, None]
        )
        chances = logits.softmax(1).movedim(1, -1).reshape(-1, 3)
        mask = torch.multinomial(chances, 1, generator=generator).reshape(2, 30, 40)
        mask[:, 0] = 255
        batches.append((logits, mask))
    return batches


def flat(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Probabilities (1, K, 1, P) and labels (1, 1, P) of all labelled pixels."""
    chances = torch.cat([logits.softmax(1).movedim(1, -1).reshape(-1, 3) for logits, _ in batches])
    labels = torch.cat([mask.reshape(-1) for _, mask in batches])
    return chances[labels != 255].T[None, :, None], labels[labels != 255][None, None]


# -------------------------------------------------------------------------------------------- requirements


def test_requirements_are_read() -> None:
    assert parse_requirement("recall[Pedestrian] >= 0.9", NAMES) == Requirement("recall", "Pedestrian", 0.9)
    assert parse_requirement(" precision[ Road ]>=1 ", NAMES) == Requirement("precision", "Road", 1.0)
    assert (
        str(parse_requirement("recall[built-up (old)]>=.5", ["built-up (old)"]))
        == "recall[built-up (old)] >= 0.5"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "recall[Pedestrain] >= 0.9",
            r"no class 'Pedestrain' \(nearest: Pedestrian\); there are Sky, Road, Pedest",
        ),
        ("recal[Sky] >= 0.9", r"'recal' can't be required \(nearest: recall\)"),
        ("iou[Sky] >= 0.9", r"'iou' can't be required; write it as 'recall\[CLASS\] >= 0.9'"),
        ("recall[Sky] > 0.9", "is no requirement; write it as"),
        ("recall[Sky] >= high", "'high' is not a number"),
        ("recall[Sky] >= 90", "90 is not a share"),
        ("recall[Sky] >= nan", "nan is not a share"),
    ],
)
def test_mistaken_requirements_say_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_requirement(text, NAMES)


def test_no_requirement_and_two_of_one_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="no requirement was given"):
        parse_requirements([], NAMES)
    with pytest.raises(ConfigError, match="'Sky' has two requirements"):
        parse_requirements(["recall[Sky] >= 0.9", "precision[Sky] >= 0.5"], NAMES)


# ------------------------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize(
    "thresholds",
    [[(2, 0.1)], [(2, 0.1), (0, 0.4)], [(0, 0.4), (2, 0.1)], [(1, 0.9), (0, 0.9), (2, 0.9)]],
)
def test_the_rule_pixel_by_pixel(thresholds: list[tuple[int, float]]) -> None:
    probabilities = draw(seed=3)[0][0].softmax(1)
    found = apply_thresholds(probabilities, thresholds)
    rest = [k for k in range(3) if k not in dict(thresholds)] or [0, 1, 2]
    for b, row, col in np.ndindex(*found.shape):
        chances = probabilities[b, :, row, col]
        reached = [k for k, value in thresholds if chances[k] >= value]
        expected = reached[0] if reached else max(rest, key=lambda k: float(chances[k]))
        assert found[b, row, col] == expected


def test_the_steps_are_fine_near_both_ends() -> None:
    odds = torch.logit(STEPS[1:].double())
    assert STEPS[0] == 0
    assert float(odds.diff().max()) < 0.02  # neighbours differ by 2 % in odds at most
    assert STEPS[1] < 1e-5 < 1 - 1e-5 < STEPS[-1]


@pytest.mark.parametrize("at_least", [0.3, 0.8, 0.95])
def test_a_wanted_recall_gets_scikit_learns_best_precision(at_least: float) -> None:
    probabilities, labels = flat(draw(seed=0, count=6))
    scores, positive = probabilities[0, 2, 0].numpy(), labels[0, 0].numpy() == 2
    counts = count_scores(probabilities, labels, 2, taken=torch.zeros_like(labels, dtype=torch.bool))
    found = choose(counts, int(positive.sum()), Requirement("recall", "Pedestrian", at_least))
    given = scores >= found.value
    assert found.recall == pytest.approx(sk.recall_score(positive, given))
    assert found.precision == pytest.approx(sk.precision_score(positive, given))
    precision, recall, _ = sk.precision_recall_curve(positive, scores)
    assert found.recall >= at_least
    assert found.recall == pytest.approx(recall[recall >= at_least].min(), abs=0.01)  # no more than is needed
    assert found.precision == pytest.approx(precision[recall >= at_least][-1], abs=0.02)


@pytest.mark.parametrize("at_least", [0.2, 0.5, 0.8])
def test_a_wanted_precision_gets_scikit_learns_best_recall(at_least: float) -> None:
    probabilities, labels = flat(draw(seed=0, count=6))
    scores, positive = probabilities[0, 2, 0].numpy(), labels[0, 0].numpy() == 2
    counts = count_scores(probabilities, labels, 2, taken=torch.zeros_like(labels, dtype=torch.bool))
    found = choose(counts, int(positive.sum()), Requirement("precision", "Pedestrian", at_least))
    assert found.precision >= at_least
    assert found.precision == pytest.approx(sk.precision_score(positive, scores >= found.value))
    precision, recall, _ = sk.precision_recall_curve(positive, scores)
    assert found.recall == pytest.approx(recall[precision >= at_least].max(), abs=0.02)


def test_what_can_not_be_reached_is_said() -> None:
    probabilities = torch.tensor([0.9, 0.8, 0.1]).reshape(1, 1, 1, 3)
    labels = torch.tensor([1, 0, 0]).reshape(1, 1, 3)
    counts = count_scores(probabilities, labels, 0, taken=torch.zeros_like(labels, dtype=torch.bool))
    with pytest.raises(
        DataError, match=r"precision\[x\] >= 0.9: .* best is recall 1.0000 and precision 0.6667"
    ):
        choose(counts, 2, Requirement("precision", "x", 0.9))
    with pytest.raises(DataError, match=r"recall\[x\] >= 0.9: .* best is recall 0.5000"):
        choose(counts, 4, Requirement("recall", "x", 0.9))  # half were taken by an earlier class
    with pytest.raises(DataError, match="no pixel of the validation split is labelled as x"):
        choose(counts, 0, Requirement("recall", "x", 0.9))


# ----------------------------------------------------------------------------------------------- on a run


def test_thresholds_of_a_run_hold_together_on_val_and_cost_on_test(mirror_run: Callable[..., Run]) -> None:
    splits = {"val": draw(seed=0, count=4), "test": draw(seed=1)}
    run = mirror_run(NAMES, **splits)
    point = choose_thresholds(run, ["recall[Pedestrian] >= 0.9", "precision[Sky] >= 0.7"])
    pairs = [(2, point.thresholds[0].value), (0, point.thresholds[1].value)]

    probabilities, labels = flat(splits["val"])
    given, truth = apply_thresholds(probabilities, pairs).flatten().numpy(), labels.flatten().numpy()
    recall = sk.recall_score(truth, given, labels=[2, 0], average=None)
    precision = sk.precision_score(truth, given, labels=[2, 0], average=None)
    assert [each.recall for each in point.thresholds] == pytest.approx(recall)
    assert [each.precision for each in point.thresholds] == pytest.approx(precision)
    assert 0.9 <= recall[0] < 0.92
    assert precision[1] >= 0.7

    probabilities, labels = flat(splits["test"])
    given, truth = apply_thresholds(probabilities, pairs).flatten().numpy(), labels.flatten().numpy()
    plain = probabilities.argmax(1).flatten().numpy()
    written = json.loads((run.path / "thresholds.json").read_text())
    for name, prediction in (("rule", given), ("argmax", plain)):
        rows = written["test"][name]["per_class"]
        assert [row["iou"] for row in rows] == pytest.approx(
            sk.jaccard_score(truth, prediction, average=None)
        )
        assert [row["recall"] for row in rows] == pytest.approx(
            sk.recall_score(truth, prediction, average=None)
        )
    assert [row["threshold"] for row in written["thresholds"]] == [value for _, value in pairs]
    assert written["chosen_on"] == "val"
    lines = point.table().splitlines()
    assert any(line.startswith("Pedestrian *") for line in lines)
    kept = written["test"]["rule"]["per_class"][2]["recall"]
    verdict = "holds on test" if kept >= 0.9 else "!! does not hold on test"
    assert f"recall[Pedestrian] >= 0.9: {verdict}, {kept:.4f}" in lines


def test_a_requirement_that_test_breaks_is_marked(mirror_run: Callable[..., Run]) -> None:
    harder = [(torch.zeros_like(logits), mask) for logits, mask in draw(seed=1)]  # nothing is told apart
    point = choose_thresholds(
        mirror_run(NAMES, val=draw(seed=0), test=harder), ["precision[Pedestrian] >= 0.6"]
    )
    assert "precision[Pedestrian] >= 0.6: !! does not hold on test, -" in point.table()  # it is never given


def test_the_runs_temperature_is_in_the_probabilities(mirror_run: Callable[..., Run]) -> None:
    from visionsft.evaluation.calibrating import calibrate

    batches = [(3 * logits, mask) for logits, mask in draw(seed=0, count=4)]
    run = mirror_run(NAMES, val=batches)
    sharp = choose_thresholds(run, ["recall[Pedestrian] >= 0.9"])
    value = calibrate(run).temperature.value
    mild = choose_thresholds(run, ["recall[Pedestrian] >= 0.9"])
    assert (sharp.temperature, mild.temperature) == (1.0, value)
    assert mild.thresholds[0].value > 2 * sharp.thresholds[0].value
    assert mild.price is None
    assert "no test split" in mild.table()


def test_a_mistaken_class_is_refused_before_any_pass(mirror_run: Callable[..., Run]) -> None:
    with pytest.raises(ConfigError, match="nearest: Road"):
        choose_thresholds(mirror_run(NAMES, val=draw(seed=0)), ["recall[road] >= 0.9"])
