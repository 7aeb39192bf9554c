"""Slices of a split's detections: what its images or its objects give alone, with intervals that hold at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datamodules import DataError
from visionsft.evaluation.detection_intervals import bootstrap_detections
from visionsft.evaluation.detection_scores import score_detections
from visionsft.evaluation.detection_slices import PARTS, slice_detections
from visionsft.evaluation.slices import choose_kinds


@pytest.fixture
def counts(cases: Any) -> Any:
    """48 images of eight drives, every image as bright as its number."""
    made = cases.counts(
        ("a", "b", "never"), cases.random(3, images=48, classes=2), [f"drive{i % 8}" for i in range(48)]
    )
    made.brightness[:] = [float(i) for i in range(48)]
    return made


def test_a_slice_has_the_numbers_of_its_images_alone(counts: Any) -> None:
    slices = slice_detections(counts, ["group", "brightness"], score=0.3)
    assert slices is not None
    assert len(slices.rows) == 12
    scores = [row.found.score for row in slices.rows]
    assert scores == sorted(scores)
    for row in slices.rows:
        chosen = [row.value in (group, _quarter(i)) or row.value.startswith(_quarter(i))
                  for i, group in enumerate(counts.groups)]  # fmt: skip
        alone = score_detections(counts.take(np.flatnonzero(chosen)), score=0.3)
        found = row.as_dict()
        assert (found["map"], found["ap50"], found["recall"], found["precision"]) == pytest.approx(
            (alone.map, alone.ap50, alone.recall, alone.precision)
        )
        assert found["objects"] == alone.objects
        assert found["per_class"]["recall"]["a"] == pytest.approx(alone.per_class[0].recall)
        assert found["per_class"]["ap50"]["never"] is None
    assert "12 slices were looked at: each interval is widened to 99.58%" in slices.table()


def _quarter(index: int) -> str:
    return ("lowest", "second", "third", "highest")[index // 12]


def test_sizes_are_those_of_the_scores(counts: Any) -> None:
    slices = slice_detections(counts, ["object_size"], size_limits=(20, 35))
    assert slices is not None
    expected = {row.name.replace("-", " to "): row for row in score_detections(counts, size_limits=(20, 35)).by_size}
    for row in slices.rows:
        assert row.found.numbers["map"] == pytest.approx(expected[row.value].ap)
        assert row.found.counted == expected[row.value].objects
        assert 0 < row.samples <= 48


def test_intervals_lie_around_ap50_as_those_of_the_whole_do(counts: Any) -> None:
    slices = slice_detections(counts, ["brightness"])
    whole = bootstrap_detections(counts).metrics["ap50"]
    assert slices is not None
    assert whole is not None
    for row in slices.rows:
        assert row.found.interval is not None
        low, high = row.found.interval
        assert low < row.found.score < high
        assert high - low > whole[1] - whole[0]  # of a quarter of the images, and widened


def test_few_groups_are_said(counts: Any) -> None:
    slices = slice_detections(counts, ["group"])
    assert slices is not None
    assert {row.found.note for row in slices.rows} == {"only 1 group: by image, too narrow"}


def test_what_a_split_cannot_be_sliced_by(counts: Any) -> None:
    assert choose_kinds(["object_size"], counts.items, None, parts=PARTS) == ("object_size",)
    with pytest.raises(DataError, match=r"nearest: object_size\); allowed: group, brightness, object_size, name"):
        choose_kinds(["objectsize"], counts.items, None, parts=PARTS)
    with pytest.raises(DataError, match="can't slice by 'edge_distance'"):
        choose_kinds(["edge_distance"], counts.items, None, parts=PARTS)
