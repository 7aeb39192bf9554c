"""Turned boxes against shapely's polygons."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules.layouts.dota import turned_box
from datamodules.views import turned_corners
from visionsft.models import rotated
from visionsft.models.rotated import canonicalise, enclose, from_corners, rotated_iou, rotated_nms, to_corners

SIDE = st.one_of(st.floats(0.5, 100), st.sampled_from([1e-3, 1.0, 10.0, 5000.0]))
ANGLE = st.one_of(
    st.floats(-7, 7), st.sampled_from([0.0, math.pi / 4, math.pi / 2, -math.pi / 2, math.pi, 1e-7])
)
BOX = st.tuples(st.floats(-60, 60), st.floats(-60, 60), SIDE, SIDE, ANGLE)
BOXES = st.lists(BOX, min_size=1, max_size=6).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


def polygons(turned: Tensor) -> np.ndarray:
    """By shapely's own rotation; it counts angles towards y as well."""
    return np.array(
        [
            shapely.affinity.rotate(
                shapely.box(x - w / 2, y - h / 2, x + w / 2, y + h / 2),
                angle,
                origin=(x, y),
                use_radians=True,
            )
            for x, y, w, h, angle in turned.tolist()
        ]
    )


def shapely_iou(first: Tensor, second: Tensor) -> Tensor:
    a, b = polygons(first)[:, None], polygons(second)[None]
    common = shapely.area(shapely.intersection(a, b))
    return torch.from_numpy(common / (shapely.area(a) + shapely.area(b) - common))


def random_boxes(count: int, *, span: float, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    middles = torch.rand((count, 2), generator=draw, dtype=torch.float64) * span
    sides = torch.rand((count, 2), generator=draw, dtype=torch.float64) * 50 + 3
    angle = torch.rand((count, 1), generator=draw, dtype=torch.float64) * 6 - 3
    return torch.cat([middles, sides, angle], 1)


@given(BOXES, BOXES)
def test_iou_is_that_of_polygons(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(rotated_iou(first, second), shapely_iou(first, second), atol=1e-5, rtol=0)


@given(BOXES, st.sampled_from([0.0, 1e-12, 1e-9, 1e-7, 1e-6, 1e-4]), st.integers(-2, 2))
def test_boxes_that_are_nearly_the_same(boxes: Tensor, turn: float, quarters: int) -> None:
    other = boxes.clone()
    if quarters % 2:
        other[:, [2, 3]] = boxes[:, [3, 2]]
    other[:, 4] += turn + quarters * math.pi / 2
    torch.testing.assert_close(rotated_iou(boxes, other), shapely_iou(boxes, other), atol=1e-5, rtol=0)
    if not turn:
        torch.testing.assert_close(rotated_iou(boxes, other).diag(), torch.ones(len(boxes)).double())


@given(BOXES, BOXES)
def test_iou_has_no_order(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(rotated_iou(first, second), rotated_iou(second, first).T, atol=1e-9, rtol=0)


@given(BOX, st.floats(0.1, 1), st.floats(0.1, 1))
def test_a_box_in_another_has_the_ratio_of_their_areas(row: tuple[float, ...], a: float, b: float) -> None:
    outer = torch.tensor([row], dtype=torch.float64)
    inner = outer * torch.tensor([1, 1, a, b, 1], dtype=torch.float64)
    assert rotated_iou(outer, inner).item() == pytest.approx(a * b, abs=1e-9)


@given(BOX)
def test_boxes_that_touch_have_nothing_in_common(row: tuple[float, ...]) -> None:
    x, y, w, h, angle = row
    beside = (x + w * math.cos(angle), y + w * math.sin(angle), w, h, angle)
    both = torch.tensor([row, beside], dtype=torch.float64)
    assert rotated_iou(both, both)[0, 1].item() < 1e-6


def test_boxes_without_area_have_no_overlap() -> None:
    flat, full = torch.tensor([[5.0, 5, 4, 0, 0.3]]), torch.tensor([[5.0, 5, 4, 4, 0.3]])
    assert rotated_iou(flat, torch.cat([flat, full])).tolist() == [[0, 0]]
    assert rotated_iou(torch.empty(0, 5), full).shape == (0, 1)
    assert rotated_iou(full, torch.empty(0, 5)).shape == (1, 0)


def test_iou_far_from_the_origin_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = random_boxes(40, span=150, seed=0), random_boxes(30, span=150, seed=1)
    expected = shapely_iou(first, second)
    monkeypatch.setattr(rotated, "PAIRS", 7)
    monkeypatch.setattr(rotated, "CELLS", 50)
    moved = torch.tensor([1e5, 2e5, 0, 0, 0])
    assert (expected > 0.05).sum() > 50
    torch.testing.assert_close(rotated_iou(first + moved, second + moved), expected, atol=1e-9, rtol=0)
    assert rotated_iou(first.float(), second.float()).dtype == torch.float32


@given(BOXES)
def test_corners_and_back(boxes: Tensor) -> None:
    canonical = canonicalise(boxes)
    w, h, angle = canonical[:, 2:].unbind(1)
    limit = torch.where(w == h, math.pi / 4, math.pi / 2)
    assert (w >= h).all()
    assert ((angle >= -limit) & (angle < limit)).all()
    torch.testing.assert_close(rotated_iou(boxes, canonical).diag(), torch.ones(len(boxes)).double())
    back = from_corners(to_corners(boxes))
    torch.testing.assert_close(
        rotated_iou(boxes, back).diag(), torch.ones(len(boxes)).double(), rtol=0, atol=1e-6
    )


@given(BOXES)
def test_the_upright_box_around(boxes: Tensor) -> None:
    torch.testing.assert_close(
        enclose(boxes), torch.from_numpy(shapely.bounds(polygons(boxes))), atol=1e-7, rtol=0
    )


def test_the_angle_s_end_in_float32() -> None:
    end = torch.tensor([[0.0, 0, 4, 2, math.nextafter(math.pi / 2, 0)], [0, 0, 4, 2, 5 * math.pi / 2]])
    assert (canonicalise(end)[:, 4] < math.pi / 2).all()


def test_corners_and_the_smallest_rectangle_are_those_of_the_data() -> None:
    boxes = random_boxes(20, span=100, seed=2).float()
    np.testing.assert_allclose(to_corners(boxes.double()), turned_corners(boxes.numpy()), atol=1e-9)
    fitted = torch.tensor([turned_box(corners.numpy()) for corners in to_corners(boxes.double())])
    assert (rotated_iou(boxes, fitted).diag() > 0.9999).all()


# ------------------------------------------------------------------------------------------------- suppression


def brute_force(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> list[int]:
    overlap = shapely_iou(boxes, boxes)
    chosen: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        if all(labels[i] != labels[j] or overlap[i, j] <= iou for j in chosen):
            chosen.append(i)
    return chosen


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([0, 1, 5, 60]),
    st.sampled_from([0.1, 0.5]),
    st.sampled_from([3, 128]),
)
def test_nms_is_greedy_by_class(seed: int, count: int, iou: float, block: int) -> None:
    boxes = random_boxes(count, span=60, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    scores, labels = torch.rand(count, generator=draw), torch.randint(0, 3, (count,), generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotated, "BLOCK", block)
        assert rotated_nms(boxes, scores, labels, iou).tolist() == brute_force(boxes, scores, labels, iou)


def test_of_equal_scores_the_first_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 2, 0], [0, 0, 4, 2, math.pi], [50, 0, 4, 2, 0]])
    assert rotated_nms(boxes, torch.ones(3), torch.zeros(3, dtype=torch.int64), 0.5).tolist() == [0, 2]
