"""Boundaries against the definitions, class by class and pixel by pixel, with scipy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from visionsft.evaluation.boundaries import (
    DISTANCES,
    SIZES,
    BoundaryCounts,
    boundary_f1,
    boundary_iou,
    boundary_region,
    count_boundaries,
    describe,
    edge_map,
    summary,
)

CLASSES = 4


def draw(seed: int, shape: tuple[int, int], *, ignored: float) -> np.ndarray:
    """Blobs of classes 0..3, with some 255."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, CLASSES, (shape[0] // 8 + 2, shape[1] // 8 + 2))
    mask = np.kron(coarse, np.ones((8, 8)))[: shape[0], : shape[1]].astype(np.uint8)
    noise = rng.random(shape) < 0.03
    mask[noise] = rng.integers(0, CLASSES, noise.sum())
    mask[ndimage.binary_dilation(rng.random(shape) < ignored / 9, np.ones((3, 3)))] = 255
    return mask


masks = st.builds(
    lambda seed, shape, ignored: (draw(seed, shape, ignored=0.0), draw(seed + 1, shape, ignored=ignored)),
    st.integers(0, 10_000),
    st.tuples(st.integers(9, 70), st.integers(9, 70)),
    st.sampled_from([0.0, 0.1, 0.6]),
)


def published_region(mask: np.ndarray, width: int) -> np.ndarray:
    """boundary_utils.mask_to_boundary of the boundary IoU API, with scipy: erosion from the image's border, too."""
    eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)
    return mask & ~eroded


@settings(max_examples=40, deadline=None)
@given(masks, st.integers(1, 4))
def test_the_boundary_region_is_the_published_codes(pair: tuple[np.ndarray, np.ndarray], width: int) -> None:
    mask, _ = pair
    found = boundary_region(mask, width)
    for k in range(CLASSES):
        np.testing.assert_array_equal(found == k, published_region(mask == k, width))


@settings(max_examples=40, deadline=None)
@given(masks, st.integers(1, 4))
def test_ignored_pixels_are_no_edge_of_the_region(pair: tuple[np.ndarray, np.ndarray], width: int) -> None:
    _, mask = pair
    found = boundary_region(mask, width)
    for k in range(CLASSES):  # as if they were of the class itself
        expected = published_region((mask == k) | (mask == 255), width) & (mask == k)
        np.testing.assert_array_equal(found == k, expected)


@settings(max_examples=30, deadline=None)
@given(masks)
def test_boundary_iou_and_f1_by_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = pair
    counts = count_boundaries(prediction, truth, CLASSES)
    prediction = np.where(truth == 255, 255, prediction)
    diagonal = np.hypot(*truth.shape)
    tolerance = max(1.0, 0.0075 * diagonal)
    for k in range(CLASSES):
        width = max(1, round(0.02 * diagonal))
        filled = [
            published_region((mask == k) | (mask == 255), width) & (mask == k) for mask in (prediction, truth)
        ]
        assert counts.regions[k].tolist() == [(filled[0] & filled[1]).sum(), (filled[0] | filled[1]).sum()]

        predicted, true = (edge_map(mask) & (mask == k) for mask in (prediction, truth))
        near_true, near_predicted = (
            ndimage.distance_transform_edt(~edges) <= tolerance if edges.any() else edges
            for edges in (true, predicted)
        )
        expected = [predicted.sum(), (predicted & near_true).sum(), true.sum(), (true & near_predicted).sum()]
        assert counts.edges[k].tolist() == expected


def test_edges_pixel_by_pixel() -> None:
    mask = draw(5, (23, 31), ignored=0.2)
    expected = np.zeros(mask.shape, bool)
    for row, col in np.ndindex(mask.shape):
        for other in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
            if 0 <= other[0] < 23 and 0 <= other[1] < 31 and mask[row, col] != 255 != mask[other]:
                expected[row, col] |= mask[row, col] != mask[other]
    np.testing.assert_array_equal(edge_map(mask), expected)


@settings(max_examples=20, deadline=None)
@given(masks)
def test_the_trimap_by_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = pair
    bands = count_boundaries(prediction, truth, CLASSES).trimap
    edges = edge_map(truth)
    distance = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(truth.shape, np.inf)
    for limit, counts in zip((*DISTANCES, np.inf), bands.cumsum(axis=0), strict=True):
        near = (truth != 255) & (distance < limit if limit < np.inf else True)
        for k in range(CLASSES):
            own, found = (truth == k) & near, (prediction == k) & near
            assert counts[k].tolist() == [(own & found).sum(), own.sum(), found.sum()]


@settings(max_examples=20, deadline=None)
@given(masks)
def test_objects_by_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = pair
    found = count_boundaries(prediction, truth, CLASSES).objects
    expected = np.zeros_like(found)
    for k in range(CLASSES):
        labels, count = ndimage.label(truth == k, np.ones((3, 3)))
        for index in range(1, count + 1):
            own = labels == index
            size = sum(own.sum() >= start for start in SIZES)
            expected[k, size] += (1, (prediction[own] == k).mean() >= 0.5)
    np.testing.assert_array_equal(found, expected)


def test_a_perfect_prediction_and_a_shifted_one() -> None:
    truth = np.zeros((200, 200), np.uint8)
    truth[50:150, 50:150] = 1
    perfect = describe(count_boundaries(truth, truth, 3), ["ground", "house", "never"])
    assert perfect["mean_boundary_iou"] == 1
    assert perfect["boundary_iou"] == {"ground": 1, "house": 1, "never": None}
    assert perfect["boundary_f1"]["house"] == {"precision": 1, "recall": 1, "f1": 1}
    assert perfect["boundary_f1"]["never"]["f1"] is None
    assert perfect["trimap"][0] == {
        "distance": 1,
        "mean_iou": 1,
        "pixel_accuracy": 1,
        "pixels": 2 * 4 * 100 - 4,
    }
    assert perfect["objects"]["house"][4] == {
        "from": 4096,
        "to": 16383,
        "objects": 1,
        "found": 1,
        "recall": 1,
    }
    assert perfect["objects"]["house"][0]["recall"] is None
    json.dumps(perfect, allow_nan=False)

    # by 2 pixels: within the tolerance of 0.0075 * 283 = 2.1; by 4: beyond it on the sides that moved away
    for shift, f1 in ((2, 1.0), (4, 0.5)):
        moved = count_boundaries(np.roll(truth, shift, axis=1), truth, 3)
        assert boundary_f1(moved.edges)[1, 2] == pytest.approx(f1, abs=0.03)
        ring = boundary_iou(moved.regions)[1]
        assert ring < 1 - shift * 2 / 100  # lower than the IoU of the whole square


def test_wrong_and_missed_classes_are_zero_and_absent_ones_undefined() -> None:
    edges = np.array([[10, 0, 0, 0], [0, 0, 10, 0], [10, 0, 10, 0], [0, 0, 0, 0]])
    precision, recall, f1 = boundary_f1(edges).T
    np.testing.assert_array_equal(f1, [0, 0, 0, np.nan])
    np.testing.assert_array_equal(precision, [0, np.nan, 0, np.nan])
    np.testing.assert_array_equal(recall, [np.nan, 0, 0, np.nan])


def test_what_lies_under_ignored_pixels_changes_nothing() -> None:
    prediction, truth = draw(1, (50, 60), ignored=0.0), draw(2, (50, 60), ignored=0.3)
    other = np.where(truth == 255, draw(3, (50, 60), ignored=0.0), prediction)
    one, two = (count_boundaries(each, truth, CLASSES) for each in (prediction, other))
    for name in ("regions", "edges", "trimap", "objects"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_sums_of_samples() -> None:
    pairs = [(draw(i, (40, 40), ignored=0.0), draw(i + 1, (40, 40), ignored=0.1)) for i in (1, 5)]
    counts = [count_boundaries(*pair, CLASSES) for pair in pairs]
    stacked = BoundaryCounts.stack(counts)
    assert stacked.trimap.shape == (2, len(DISTANCES) + 1, CLASSES, 3)
    np.testing.assert_array_equal(stacked.sum().edges, counts[0].edges + counts[1].edges)
    assert "within 1 px" in summary(stacked.sum())[-1]


def test_a_sample_without_labels_counts_nothing() -> None:
    counts = count_boundaries(np.zeros((20, 20), np.uint8), np.full((20, 20), 255, np.uint8), CLASSES)
    assert not any(getattr(counts, name).any() for name in ("regions", "edges", "trimap", "objects"))
    assert describe(counts, "abcd")["trimap"][0]["mean_iou"] is None
