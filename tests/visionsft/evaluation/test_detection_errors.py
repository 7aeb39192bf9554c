"""Kinds of errors and their price on cases worked out by hand from Bolya et al. (2020)."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionsft.evaluation.detection_errors import KINDS, DetectionErrors, break_down_errors
from visionsft.evaluation.detection_scores import score_detections

A = (0, 0, 20, 20)
FAR = (100, 100, 120, 120)
QUARTER = (0, 0, 20, 6)  # IoU 0.3 with A


def errors(cases: Any, *rows: dict[str, Any]) -> DetectionErrors:
    return break_down_errors(cases.counts(("a", "b"), [cases.image(**row) for row in rows]))


def named(found: DetectionErrors) -> dict[str, tuple[int, float]]:
    return {kind.name: (kind.count, kind.gain) for kind in found.kinds if kind.count}


def test_localisation(cases: Any) -> None:
    found = errors(cases, {"truth": [(*A, 0)], "found": [(*QUARTER, 0, 0.9)]})
    assert (found.ap, named(found)) == (0, {"localisation": (1, 1.0)})


def test_classification(cases: Any) -> None:
    found = errors(cases, {"truth": [(*A, 0)], "found": [(*A, 1, 0.9)]})
    assert (found.ap, named(found)) == (0, {"classification": (1, 1.0)})
    assert {kind.name: kind.per_class for kind in found.kinds}["classification"] == (0, 1)


def test_both_leave_the_object_missed(cases: Any) -> None:
    found = errors(cases, {"truth": [(*A, 0)], "found": [(*QUARTER, 1, 0.9)]})
    assert named(found) == {"both": (1, 0.0), "missed": (1, 1.0)}


def test_duplicate_and_background(cases: Any) -> None:
    """Precision is 1/2 where the second object is found behind a duplicate and a ghost: 2/4."""
    row = {
        "truth": [(*A, 0), (*FAR, 0)],
        "found": [(*A, 0, 0.9), (0, 0, 20, 18, 0, 0.8), (50, 50, 60, 60, 0, 0.7), (*FAR, 0, 0.6)],
    }
    found = errors(cases, row)
    before = (51 * 1 + 50 * 2 / 4) / 101
    after = (51 * 1 + 50 * 2 / 3) / 101
    assert found.ap == pytest.approx(before)
    assert named(found) == {
        "duplicate": (1, pytest.approx(after - before)),
        "background": (1, pytest.approx(after - before)),
    }


def test_missed(cases: Any) -> None:
    found = errors(cases, {"truth": [(*A, 0), (*FAR, 0)], "found": [(*A, 0, 0.9)]})
    assert named(found) == {"missed": (1, pytest.approx(1 - 51 / 101))}


def test_a_corrected_class_may_only_duplicate(cases: Any) -> None:
    """A is found as 'a' behind a ghost, and as 'b', which is then one too many; 'b' has an object behind it."""
    row = {
        "truth": [(*A, 0), (*FAR, 1)],
        "found": [(*A, 0, 0.5), (50, 50, 60, 60, 0, 0.7), (*A, 1, 0.9), (*FAR, 1, 0.8)],
    }
    found = errors(cases, row)
    assert found.ap == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert named(found) == {
        "classification": (1, pytest.approx(0.25)),
        "background": (1, pytest.approx(0.25)),
    }


def test_the_most_certain_of_several_finds_the_object(cases: Any) -> None:
    row = {"truth": [(*A, 0)], "found": [(*QUARTER, 0, 0.9), (0, 0, 20, 7, 0, 0.8)]}
    assert named(errors(cases, row)) == {"localisation": (2, 1.0)}


def test_an_object_is_put_right_once(cases: Any) -> None:
    row = {"truth": [(*A, 0)], "found": [(*QUARTER, 0, 0.8), (*A, 1, 0.9)]}
    assert named(errors(cases, row)) == {"localisation": (1, 0.0), "classification": (1, 1.0)}


def test_localisation_comes_before_classification(cases: Any) -> None:
    row = {"truth": [(0, 0, 20, 6, 0), (*A, 1)], "found": [(*A, 0, 0.9)]}
    assert set(named(errors(cases, row))) == {"localisation", "missed"}


def test_ignored_regions_hold_no_errors(cases: Any) -> None:
    row = {"ignored": [(*FAR,)], "truth": [(*A, 0)], "found": [(*A, 0, 0.9), (*FAR, 1, 0.8)]}
    assert named(errors(cases, row)) == {}


def test_without_truth_there_is_no_price(cases: Any) -> None:
    found = errors(cases, {"found": [(*A, 0, 0.9)]})
    assert named(found)["background"][0] == 1
    assert all(math.isnan(kind.gain) for kind in found.kinds)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["ap"] is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_false_positive_is_of_one_kind_and_no_oracle_harms(cases: Any, seed: int) -> None:
    counts = cases.counts("abcd", cases.random(seed))
    found, scores = break_down_errors(counts), score_detections(counts, score=0.0)
    assert scores.ap50 == pytest.approx(found.ap, nan_ok=True)
    false = sum(kind.count for kind in found.kinds if kind.name != "missed")
    counted = sum(row.detections for row in scores.per_class)
    hits = round(np.nan_to_num(scores.recall) * scores.objects)
    assert false == counted - hits
    missed = next(kind.count for kind in found.kinds if kind.name == "missed")
    assert missed <= scores.objects - hits
    assert [kind.name for kind in found.kinds] == list(KINDS)
    assert all(kind.gain >= -1e-9 for kind in found.kinds if not math.isnan(kind.gain))


def test_the_table_names_the_dearest_first(cases: Any) -> None:
    found = errors(cases, {"truth": [(*A, 0)], "found": [(*QUARTER, 1, 0.9)]})
    lines = found.table().splitlines()
    assert lines[0].startswith("error")
    assert "dAP50" in lines[0]
    assert lines[2].startswith("missed")
    assert "AP50 0.0000, 1 images, 1 objects; enough is IoU 0.5" in lines[-1]


def test_background_is_below_the_threshold(cases: Any) -> None:
    with pytest.raises(ValueError, match=r"background_iou must be from 0 to below iou = 0\.5, not 0\.6"):
        break_down_errors(cases.counts(("a",), []), background_iou=0.6)
