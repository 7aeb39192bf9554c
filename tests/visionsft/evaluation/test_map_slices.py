"""Slices of maps that are parts of every sample: objects by size, and pixels by distance to a label's edge."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from datamodules.batch import Item
from visionsft.evaluation.boundaries import BoundaryCounts, count_boundaries
from visionsft.evaluation.counts import Counts
from visionsft.evaluation.map_slices import slice_counts
from visionsft.evaluation.metrics import summarise

NAMES = ("ground", "roof")


def samples(count: int = 12) -> tuple[Counts, BoundaryCounts, NDArray[np.uint8], NDArray[np.uint8]]:
    """Roofs of many sizes; small ones and edges are often wrong."""
    rng = np.random.default_rng(0)
    truths, predictions = np.zeros((2, count, 90, 90), np.uint8)
    for truth, prediction in zip(truths, predictions, strict=True):
        for row, col in ((5, 5), (5, 50), (50, 5), (50, 50)):
            side = int(rng.integers(3, 30))
            truth[row : row + side, col : col + side] = 1
            if rng.random() < side / 30:
                prediction[row + 1 : row + side, col + 1 : col + side] = 1
    codes = [np.bincount(each.ravel(), minlength=4).reshape(2, 2) for each in 2 * truths + predictions]
    items = tuple(Item(f"{i}.png", f"scene{i % 6}", f"{i}.png") for i in range(count))
    counts = Counts(items, NAMES, np.stack(codes), np.zeros(count))
    pairs = zip(predictions, truths, strict=True)
    return counts, BoundaryCounts.stack([count_boundaries(*pair, 2) for pair in pairs]), truths, predictions


def test_objects_by_size_are_those_that_scipy_labels() -> None:
    counts, boundaries, truths, predictions = samples()
    slices = slice_counts(counts, ["object_size"], boundaries=boundaries)
    assert slices is not None
    sizes, hits = [], []
    for truth, prediction in zip(truths, predictions, strict=True):
        labels, number = ndimage.label(truth == 1, np.ones((3, 3)))
        for k in range(1, number + 1):
            sizes.append((labels == k).sum())
            hits.append((prediction[labels == k] == 1).mean() >= 0.5)
    sizes, hits = np.array(sizes), np.array(hits)
    rows = {row.value: row for row in slices.rows}
    ranges = {"1 to 63 px": (1, 64), "64 to 255 px": (64, 256), "256 to 1,023 px": (256, 1024)}
    for value, (low, high) in ranges.items():
        inside = (sizes >= low) & (sizes < high)
        assert rows[value].as_dict()["recall"]["roof"] == pytest.approx(hits[inside].mean())
        assert rows[value].found.counted == inside.sum()
        low_end, high_end = rows[value].found.interval or (0, 0)
        assert low_end <= rows[value].found.score <= high_end
    assert "share of the objects" in slices.note


def test_pixels_by_distance_are_those_that_scipy_measures() -> None:
    counts, boundaries, truths, predictions = samples()
    slices = slice_counts(counts, ["edge_distance"], boundaries=boundaries)
    assert slices is not None
    rows = {row.value: row for row in slices.rows}
    distances = []
    for truth in truths:
        edge = np.zeros(truth.shape, bool)
        for axis in (0, 1):
            step = np.diff(truth, axis=axis) != 0
            for pad in ((0, 1), (1, 0)):
                edge |= np.pad(step, [pad if a == axis else (0, 0) for a in (0, 1)])
        distances.append(ndimage.distance_transform_edt(~edge))
    distance = np.stack(distances)
    for value, (low, high) in {"0 to 1 px": (0, 1), "2 to 4 px": (2, 4), "from 32 px": (32, np.inf)}.items():
        inside = (distance >= low) & (distance < high)
        confusion = np.bincount(2 * truths[inside] + predictions[inside], minlength=4).reshape(2, 2)
        expected, found = summarise(confusion, NAMES), rows[value].as_dict()
        assert found["mean_iou"] == pytest.approx(expected.mean_iou)
        assert found["pixel_accuracy"] == pytest.approx(expected.pixel_accuracy)
        assert found["pixels"] == inside.sum()
        assert found["iou"]["ground"] == pytest.approx(expected.per_class[0].iou)


def test_parts_and_samples_are_looked_at_together() -> None:
    counts, boundaries, *_ = samples()
    slices = slice_counts(counts, ["group", "edge_distance"], boundaries=boundaries)
    assert slices is not None
    assert len(slices.rows) == 6 + 7
    assert "13 slices were looked at" in slices.note
