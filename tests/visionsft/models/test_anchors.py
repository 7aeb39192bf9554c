"""Fitted anchors: planted sizes come out, the fit is what torchvision's IoU says, and better than the usual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from visionsft.errors import ConfigError
from visionsft.models.anchors import AnchorFit, best_ious, cluster_boxes, fit_anchors
from visionsft.models.heads.detection import LevelAnchors, RetinaNetHead

STRIDES = (8, 16, 32, 64, 128)
USUAL = [[4 * s * 2 ** (i / 3) for i in range(3)] for s in STRIDES]


def make_boxes(sides: list[float], ratios: list[float], each: int = 40, noise: float = 0.03) -> np.ndarray:
    rng = np.random.default_rng(0)
    boxes = [(s / np.sqrt(r), s * np.sqrt(r)) for s in sides for r in ratios for _ in range(each)]
    return np.array(boxes) * rng.uniform(1 - noise, 1 + noise, (len(boxes), 2))


def test_planted_sizes_and_ratios_come_out() -> None:
    """Cars of 12, 18 and 25 pixels, lying and standing: the finest level has their sizes, the others the usual."""
    fit = fit_anchors(make_boxes([12, 18, 25], [0.4, 2.5]), strides=STRIDES, ratios=2)
    np.testing.assert_allclose(fit.anchor_sizes[0], [12, 18, 25], rtol=0.02)
    np.testing.assert_allclose(fit.anchor_sizes[1:], USUAL[1:], rtol=0.005)
    np.testing.assert_allclose(fit.aspect_ratios, [0.4, 2.5], rtol=0.03)
    assert fit.boxes == sum(fit.boxes_per_level) == fit.boxes_per_level[0] == 240
    assert fit.good == 1
    assert fit.mean_iou > 0.93


def test_boxes_go_to_the_level_of_their_size() -> None:
    fit = fit_anchors(
        make_boxes([33, 65, 131, 260, 900], [1.0], noise=0), strides=(4, 8, 16, 32, 64), sizes_per_level=1,
        ratios=1, smallest=8,
    )  # fmt: skip
    assert fit.boxes_per_level == [40] * 5
    assert fit.anchor_sizes == [[33], [65], [131], [260], [900]]
    assert fit.aspect_ratios == [1]
    assert fit.mean_iou == pytest.approx(1)


sides = st.floats(2, 500)
boxes = st.lists(st.tuples(sides, sides), min_size=4, max_size=30).map(np.array)


@settings(max_examples=50, deadline=None)
@given(boxes)
def test_the_report_is_what_torchvision_says(sizes: np.ndarray) -> None:
    """Of the anchors that a head makes of the fit, at one position."""
    fit = fit_anchors(sizes, strides=STRIDES)
    anchors = LevelAnchors(STRIDES, fit.anchor_sizes, fit.aspect_ratios)
    maps = [torch.zeros(1, 1, 1, 1) for _ in STRIDES]
    half = torch.from_numpy(sizes).float() / 2
    iou = box_iou(torch.cat([-half, half], dim=1), torch.cat(anchors.levels(maps))).amax(1)
    assert fit.mean_iou == pytest.approx(iou.mean().item(), abs=1e-4)
    np.testing.assert_allclose(best_ious(sizes, fit.anchor_sizes, fit.aspect_ratios), iou, atol=1e-4)
    assert fit.good == (best_ious(sizes, fit.anchor_sizes, fit.aspect_ratios) >= 0.5).mean()


@settings(max_examples=50, deadline=None)
@given(boxes, st.integers(1, 4))
def test_clusters_fit_no_worse_than_the_boxes_that_they_start_from(sizes: np.ndarray, k: int) -> None:
    """And with one for each box nothing is left to fit."""
    found = cluster_boxes(sizes, k, np.random.default_rng(3))
    start = cluster_boxes(sizes, k, np.random.default_rng(3), steps=1)
    assert found.shape == (k, 2)
    assert mean_iou(sizes, found) >= mean_iou(sizes, start) - 1e-12
    distinct = np.unique(sizes, axis=0)
    assert mean_iou(sizes, cluster_boxes(distinct, len(distinct), np.random.default_rng(3))) == pytest.approx(
        1
    )


def mean_iou(sizes: np.ndarray, centres: np.ndarray) -> float:
    first, second = (torch.from_numpy(np.concatenate([-each, each], axis=1)) for each in (sizes, centres))
    return box_iou(first, second).amax(1).mean().item()


def test_it_scales_with_the_boxes_and_strides() -> None:
    sizes = make_boxes([10, 40, 90], [0.5, 1, 2], noise=0.3)
    fit, doubled = (fit_anchors(sizes * k, strides=[s * k for s in STRIDES]) for k in (1, 2))
    np.testing.assert_allclose(np.array(doubled.anchor_sizes), 2 * np.array(fit.anchor_sizes), rtol=0.01)
    assert doubled.aspect_ratios == fit.aspect_ratios


def test_it_beats_the_usual_anchors_where_objects_are_small() -> None:
    sizes = np.random.default_rng(0).lognormal(2.3, 0.5, (500, 2))
    fit = fit_anchors(sizes, strides=STRIDES)
    assert isinstance(fit, AnchorFit)
    assert fit.mean_iou > best_ious(sizes, USUAL, (0.5, 1, 2)).mean() + 0.3


def test_a_head_takes_them() -> None:
    fit = fit_anchors(make_boxes([12, 18, 25], [0.4, 2.5]), strides=STRIDES)
    RetinaNetHead(
        (8, 8, 8, 8), (4, 8, 16, 32), 2, width=16,
        anchor_sizes=fit.anchor_sizes, aspect_ratios=fit.aspect_ratios,
    )  # fmt: skip


def test_too_few_or_flat_boxes_are_named() -> None:
    with pytest.raises(ConfigError, match="0 boxes in the training split; fitting needs at least 3"):
        fit_anchors(np.empty((0, 2)), strides=STRIDES)
    with pytest.raises(ConfigError, match="box 2 has no width or height"):
        fit_anchors(np.array([[3, 4], [3, 4], [0, 4.0]]), strides=STRIDES)
