"""Segmentation metrics against scikit-learn and torchmetrics, and where nothing is defined."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_jaccard_index

from visionsft.evaluation.metrics import (
    SegmentationConfusion,
    confusion_matrix,
    mean_iou,
    predict_classes,
    segmentation,
    summarise,
)


def random_pair(classes: list[int], *, seed: int = 0, size: int = 5000) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction that is right in about half the pixels, and a truth with some ignored."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, size)
    prediction = np.where(rng.random(size) < 0.5, truth, rng.choice(classes, size))
    truth[rng.random(size) < 0.1] = 255
    return torch.from_numpy(prediction.astype(np.uint8)), torch.from_numpy(truth)


@pytest.mark.parametrize(
    "num_classes", [2, 11, 15, 16, 30, 180, 181, 254]
)  # on both sides of every code type
def test_confusion_matrix_is_scikit_learns(num_classes: int) -> None:
    prediction, truth = random_pair(list(range(num_classes)))
    kept = truth != 255
    expected = sk.confusion_matrix(truth[kept], prediction[kept], labels=range(num_classes))
    counted = confusion_matrix(prediction.reshape(50, 100), truth.reshape(50, 100), num_classes)
    assert counted.dtype == torch.int64
    assert np.array_equal(counted.numpy(), expected)


@pytest.mark.parametrize("absent", [[], [0], [3, 5], [0, 1, 6]])
def test_summary_is_scikit_learns_with_absent_classes(absent: list[int]) -> None:
    prediction, truth = random_pair([k for k in range(7) if k not in absent])
    names = [f"class {k}" for k in range(7)]
    scores = summarise(confusion_matrix(prediction, truth, 7), names)
    kept = truth != 255
    truth, prediction = truth[kept], prediction[kept]

    present = [k for k in range(7) if k not in absent]
    rows = [scores.per_class[k] for k in present]
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, prediction, labels=present)
    np.testing.assert_allclose(
        [row.iou for row in rows], sk.jaccard_score(truth, prediction, labels=present, average=None)
    )
    np.testing.assert_allclose([row.precision for row in rows], precision)
    np.testing.assert_allclose([row.recall for row in rows], recall)
    np.testing.assert_allclose([row.f1 for row in rows], f1)
    assert [row.pixels for row in rows] == support.tolist()
    assert [row.name for row in scores.per_class] == names

    assert scores.mean_iou == pytest.approx(sk.jaccard_score(truth, prediction, average="macro"))
    assert scores.frequency_weighted_iou == pytest.approx(
        sk.jaccard_score(truth, prediction, average="weighted")
    )
    assert scores.pixel_accuracy == pytest.approx(sk.accuracy_score(truth, prediction))
    assert scores.mean_recall == pytest.approx(sk.balanced_accuracy_score(truth, prediction))
    assert scores.classes_present == len(present)
    for k in absent:
        row = scores.per_class[k]
        assert all(math.isnan(value) for value in (row.iou, row.recall, row.precision, row.f1))
        assert (row.share, row.pixels, row.predicted) == (0, 0, 0)


def test_a_class_that_is_only_predicted_counts_in_mean_iou_and_not_in_mean_recall() -> None:
    truth = torch.tensor([0, 0, 1, 1])
    scores = summarise(confusion_matrix(torch.tensor([0, 2, 1, 1]), truth, 4), list("abcd"))
    assert scores.mean_iou == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores.mean_recall == pytest.approx((1 / 2 + 1) / 2)
    assert scores.per_class[2].iou == 0
    assert math.isnan(scores.per_class[2].recall)
    assert scores.per_class[2].precision == 0
    assert "3 of 4 classes" in scores.definition


def test_nothing_labelled_is_nan_and_null() -> None:
    scores = summarise(torch.zeros(3, 3, dtype=torch.int64), ["a", "b", "c"])
    assert math.isnan(scores.mean_iou)
    assert math.isnan(scores.pixel_accuracy)
    assert math.isnan(scores.frequency_weighted_iou)
    assert math.isnan(scores.mean_recall)
    text = json.dumps(scores.as_dict(), allow_nan=False)
    assert json.loads(text)["per_class"][1]["recall"] is None
    assert " - " in scores.table()


def test_values_outside_the_classes_are_refused() -> None:
    fine = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"truth has the values \[3, 254\]; allowed are 0..2 and 255"):
        confusion_matrix(fine, torch.tensor([3, 254, 255]), 3)
    with pytest.raises(ValueError, match="prediction has the value 3; there are 3 classes"):
        confusion_matrix(torch.tensor([0, 1, 3]), fine, 3)
    with pytest.raises(ValueError, match=r"prediction is \(3,\), truth is \(2,\)"):
        confusion_matrix(fine, fine[:2], 3)
    with pytest.raises(ValueError, match="3 class names"):
        summarise(torch.zeros(2, 2), ["a", "b", "c"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("chunk", [1, 1000, segmentation.CHUNK])
def test_predicted_classes_are_argmax(
    dtype: torch.dtype, layout: torch.memory_format, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 20, 31, generator=generator).to(dtype).contiguous(memory_format=layout)
    logits[:, :, :4] = 0.0  # ties: the first class
    found = predict_classes(logits)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), logits.argmax(1))


def test_metric_accumulates_merges_and_resets() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 16, 16, generator=generator)
    mask = torch.randint(0, 5, (4, 16, 16), generator=generator)
    mask[0, :3] = 255
    whole, first, second = (SegmentationConfusion(5) for _ in range(3))
    whole.update(logits, mask)
    first.update(logits[:2], mask[:2])
    second.update(logits[2:].argmax(1), mask[2:])  # logits or classes
    first.merge_state(second)  # what a sum over processes does
    assert torch.equal(first.compute(), whole.compute())
    expected = multiclass_jaccard_index(logits, mask, 5, average="macro", ignore_index=255)
    assert summarise(whole.compute(), list("abcde")).mean_iou == pytest.approx(float(expected))
    whole.reset()
    assert whole.confusion.sum() == 0
    assert first.compute().sum() == (mask != 255).sum()


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_renaming_the_classes_changes_no_total(num_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, 50, (num_classes, num_classes)) * (
        rng.random((num_classes, num_classes)) < 0.6
    )
    order = rng.permutation(num_classes)
    names = [str(k) for k in range(num_classes)]
    before, after = summarise(confusion, names), summarise(confusion[np.ix_(order, order)], names)
    for field in ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_recall"):
        np.testing.assert_allclose(getattr(before, field), getattr(after, field))


def test_mean_iou_of_many_matrices() -> None:
    rng = np.random.default_rng(0)
    many = rng.integers(0, 9, (4, 3, 3))
    many[1] = 0
    many[2, 1] = many[2, :, 1] = 0
    expected = [summarise(one, ["a", "b", "c"]).mean_iou for one in many]
    np.testing.assert_allclose(mean_iou(many), expected)
    assert math.isnan(expected[1])
