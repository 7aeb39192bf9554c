"""Balance: classes are counted by split, the rule is applied as said, and a label turned over stands out."""

from __future__ import annotations

import numpy as np

from datamodules.batch import Item
from visionsft.preparation.balance import (
    LEARNED,
    MEASURED,
    check_balance,
    check_labels,
    count_classes,
    layout_scores,
)
from visionsft.preparation.findings import Findings
from visionsft.preparation.looks import GRID, Look


def _look(number: int, split: str, counts: list[int], group: str = "") -> Look:
    look = Look(Item(f"{number}", group or f"g{number}", f"{number}.png", f"{number}_mask.png"), split)
    look.counts = np.array(counts)
    return look


def _told(findings: Findings) -> set[tuple[str, str]]:
    return {(row.check, row.place) for group in findings.groups() for row in group.findings}


def test_rare_and_absent_classes_by_the_rule() -> None:
    looks = [_look(i, "train", [1000, 10 if i < LEARNED["images"] - 1 else 0, 3, 0]) for i in range(40)]
    looks += [_look(100 + i, "val", [10, 10 if i < MEASURED["images"] else 0, 1, 0]) for i in range(30)]
    counts = count_classes(looks, "abcd")
    findings = Findings()
    check_balance(counts, looks, findings, counted="pixels")
    assert _told(findings) == {
        ("too rare to learn", "train, class b"),
        ("rare pixels", "train, class c"),
        ("absent class", "train, class d"),
        ("too rare to measure", "val, class d"),
        ("empty split", "test"),
    }
    assert counts["train"]["b"].images == LEARNED["images"] - 1
    assert counts["train"]["a"].pixels == 40_000


def test_few_groups_are_told_once_for_a_split() -> None:
    looks = [_look(i, split, [5], group=f"drive{i % 2}") for split in ("train", "val", "test") for i in range(60)]
    findings = Findings()
    check_balance(count_classes(looks, "a"), looks, findings, counted="pixels")
    assert _told(findings) == {("few groups", "val"), ("few groups", "test")}


def test_image_labels_are_counted_as_images() -> None:
    looks = [_look(i, "train", [0, 0]) for i in range(3)]
    counts = count_classes(looks, "ab", labels={"0": [0], "1": [0, 1], "2": []})
    assert (counts["train"]["a"].images, counts["train"]["b"].images) == (2, 1)


def test_a_label_upside_down_stands_out_and_one_without_labels_is_told() -> None:
    rng = np.random.default_rng(0)
    looks = []
    for number in range(60):
        look = _look(number, "train", [1, 1])
        horizon = int(rng.integers(6, 10))
        layout = np.zeros((GRID, GRID), np.uint8)
        layout[horizon:] = 1
        look.layout = layout[::-1] if number == 17 else layout
        looks.append(look)
    looks[3].counts = np.array([0, 0])
    looks[3].layout = np.full((GRID, GRID), 255, np.uint8)
    findings = Findings()
    check_labels(looks, 2, findings)
    rows = {(row.check, row.file) for group in findings.groups() for row in group.findings}
    assert rows == {("label layout", "17_mask.png"), ("nothing labelled", "3_mask.png")}


def test_layouts_are_scored_without_themselves() -> None:
    layouts = np.zeros((3, GRID, GRID), np.uint8)
    layouts[2] = 1
    scores = layout_scores(layouts, 2)
    # two others, of two classes, one of each added: (0 + 1) / (2 + 2) where none agrees, (1 + 1) / 4 where one does
    np.testing.assert_allclose(scores, np.log([0.5, 0.5, 0.25]))
