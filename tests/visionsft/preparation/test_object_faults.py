"""Object faults: every flaw of every picture, overlaps as torchvision's, names as a reader would judge them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from visionsft.preparation.object_faults import _is_misspelt, overlaps, same_boxes

BOX = st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(0.1, 40), st.floats(0.1, 40))


@given(st.lists(BOX, min_size=1, max_size=6), st.lists(BOX, min_size=1, max_size=6))
def test_overlaps_are_those_of_torchvision(one, other) -> None:
    first, second = (np.array([(x, y, x + w, y + h) for x, y, w, h in boxes]) for boxes in (one, other))
    expected = box_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_allclose(overlaps(first, second), expected, atol=1e-9)


def test_the_same_box_twice() -> None:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10.1], [50, 50, 60, 70.0]])
    assert same_boxes(boxes) == [(0, 2)]


@pytest.mark.parametrize(("name", "meant"), [("Tree\\", "Tree"), ("pedestrain", "Pedestrian"), ("car.", "car")])
def test_misspelt(name: str, meant: str) -> None:
    assert _is_misspelt(name, meant)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("tree", "Tree"), ("Van", "Car"), ("person_sitting", "Person Sitting"), ("3", "Tree"), ("oak tree", "Tree")],
)
def test_another_word_or_another_way_to_write_it_is_not_misspelt(name: str, meant: str) -> None:
    assert not _is_misspelt(name, meant)
