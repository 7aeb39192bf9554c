"""Probing: pixels' features and dense answers beside plain interpolation, boxes as maps, and scores with intervals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score
from torch import Tensor

from datamodules import DataError, Item
from datamodules.objects import DetectionBatch, Target
from visionsft.evaluation.metrics import summarise
from visionsft.preparation import probing
from visionsft.preparation.probing import (
    Judgement,
    Samples,
    correct_bias,
    dense_logits,
    draw_boxes,
    features_at,
)
from visionsft.preparation.transferability import LinearProbe, fit_probe_at

STRIDES = (2, 4)
SIZE = (13, 18)
"""Not a multiple of the strides: the maps reach beyond the image."""


def maps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, channels, -(-SIZE[0] // stride), -(-SIZE[1] // stride), generator=generator)
        for channels, stride in zip((3, 5), STRIDES, strict=True)
    ]


def joined() -> Tensor:
    """The maps at every pixel, (B, 8, H, W)."""
    covered = [(each.shape[2] * s, each.shape[3] * s) for each, s in zip(maps(), STRIDES, strict=True)]
    grown = [F.interpolate(each, size, mode="bilinear") for each, size in zip(maps(), covered, strict=True)]
    return torch.cat([each[..., : SIZE[0], : SIZE[1]] for each in grown], dim=1)


def test_pixels_have_the_interpolated_maps() -> None:
    image, row, col = (index.ravel() for index in np.indices((2, *SIZE)))
    found = features_at(maps(), STRIDES, image, row, col)
    torch.testing.assert_close(found, joined()[image, :, row, col], atol=1e-5, rtol=1e-5)


def test_dense_logits_are_the_probe_of_every_pixel() -> None:
    rng = np.random.default_rng(0)
    probe = LinearProbe(rng.normal(size=(8, 4)), rng.normal(size=4), False, 0.1)
    found = dense_logits(probe, maps(), STRIDES, SIZE)
    expected = probe.logits(joined().permute(0, 2, 3, 1).reshape(-1, 8).numpy()).reshape(2, *SIZE, 4)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, atol=1e-4)


def test_the_corrected_bias_is_that_of_the_true_shares() -> None:
    """King & Zeng (2001): a regression on as many samples of each class finds the slope, and the bias but for this."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], (19_000, 1000))
    features = rng.normal(0, 1, (20_000, 2)) + labels[:, None]
    targets = np.eye(2)[labels]
    balanced = np.concatenate([rng.permutation(19_000)[:1000], np.arange(19_000, 20_000)])
    known = fit_probe_at(features[balanced], targets[balanced], 1e-4)
    corrected = correct_bias(known, drawn=np.array([1000.0, 1000]), true=np.array([19e6, 1e6]))
    expected = fit_probe_at(features, targets, 1e-4).probabilities(features)[:, 1].mean()
    assert expected == pytest.approx(0.05, abs=0.002)
    assert corrected.probabilities(features)[:, 1].mean() == pytest.approx(expected, abs=0.01)
    assert known.probabilities(features)[:, 1].mean() > 0.2


# ---------------------------------------------------------------------------------------------------- boxes


def batch_of(boxes: list[list[float]], labels: list[int], ignored: list[list[float]] = []) -> DetectionBatch:  # noqa: B006
    valid = torch.ones(1, 20, 20, dtype=torch.bool)
    valid[0, :, 19] = False
    target = Target(
        boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.int64),
        ignored=torch.tensor(ignored).reshape(-1, 4),
    )  # fmt: skip
    image, item = torch.zeros(1, 3, 20, 20), Item("a", "a", "a")
    return DetectionBatch(image=image, valid=valid, sizes=[(20, 20)], target=[target], item=[item])


def test_the_middle_of_a_box_is_its_object() -> None:
    mask = draw_boxes(batch_of([[4, 2, 12, 10]], [1]))[0]
    assert (mask[4:8, 6:10] == 2).all()
    assert mask[2, 4] == mask[9, 11] == 255
    assert mask[10, 4] == mask[2, 12] == 0
    assert (mask == 2).sum() == 16
    assert (mask[:, 19] == 255).all()


def test_small_boxes_lie_over_large_ones_and_none_is_lost() -> None:
    mask = draw_boxes(batch_of([[9, 9, 10, 10], [0, 0, 19, 19]], [0, 1], [[0, 15, 3, 19]]))[0]
    assert mask[9, 9] == 1
    assert mask[8, 8] == 2
    assert (mask[15:19, :3] == 255).all()


def test_no_boxes_is_background() -> None:
    assert draw_boxes(batch_of([], []))[0, :, :19].eq(0).all()


# ------------------------------------------------------------------------------------------------ judgement


def items(count: int, groups: int) -> list[Item]:
    return [Item(f"i{i}", f"g{i % groups}", f"i{i}") for i in range(count)]


def test_accuracy_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    chances = rng.random((60, 3)) + np.eye(3)[truth] * 0.5
    found = probing._judge_classes(chances, np.eye(3)[truth], items(60, 20))
    assert found.value == pytest.approx(accuracy_score(truth, chances.argmax(1)))
    assert (found.unit, found.groups, found.effective) == ("group", 20, pytest.approx(20))
    low, high = found.ends or (1, 0)
    assert 0 < low < found.value < high < 1


def test_few_groups_fall_back_to_images() -> None:
    chances = np.eye(2)[np.arange(40) % 2]
    found = probing._judge_classes(chances, chances, items(40, 2))
    assert (found.unit, found.groups) == ("image", 40)


def test_a_candidate_behind_itself_is_not_behind() -> None:
    truth = np.eye(2)[np.arange(40) % 2]
    rng = np.random.default_rng(0)
    good, bad = (truth + rng.random((40, 2)) * noise for noise in (1.1, 3.0))
    better, worse = (probing._judge_classes(each, truth, items(40, 40)) for each in (good, bad))
    assert better.behind(better) == (0, 0)
    ahead, behind = worse.behind(better), better.behind(worse)
    assert ahead is not None
    assert behind is not None
    assert ahead == pytest.approx((-behind[1], -behind[0]))
    assert ahead[0] <= better.value - worse.value <= ahead[1]


def test_mean_iou_is_the_projects() -> None:
    rng = np.random.default_rng(0)
    confusions = rng.integers(0, 50, (12, 3, 3))
    found = probing._judge_pixels(confusions, items(12, 12), "mean_iou")
    assert found.value == pytest.approx(summarise(confusions.sum(0), "abc").mean_iou)


def test_a_single_image_has_no_interval() -> None:
    found = Judgement("accuracy", 0.5, np.full(9, 0.5), "image", 1, 1.0)
    assert found.ends is None
    assert found.behind(found) is None
    assert found.note == "only 1 image"


# -------------------------------------------------------------------------------------------------- samples


class Module:
    """A data module of names alone."""

    root = "data"

    def __init__(self, train: list[Item], val: list[Item]) -> None:
        self.items = {"train": train, "val": val, "test": items(3, 3)}
        self.asked: set[str] = set()

    def evaluation_loader(self, split: str) -> Any:
        self.asked.add(split)
        return SimpleNamespace(dataset=SimpleNamespace(items=self.items[split]))


def test_validation_judges_and_the_test_split_is_left_alone() -> None:
    data = Module(items(30, 30), items(9, 9))
    found: Samples = probing.choose_samples(data, count=10, seed=0)  # type: ignore[arg-type]
    assert (len(found.learned), len(found.judged), found.judge) == (10, 9, "val")
    assert found.describe() == "learned from 10 of 30 training samples, judged on all 9 validation samples"
    assert data.asked == {"train", "val"}
    again = probing.choose_samples(data, count=10, seed=0)  # type: ignore[arg-type]
    assert again.learned == found.learned
    assert probing.choose_samples(data, count=10, seed=1).learned != found.learned  # type: ignore[arg-type]


def test_without_validation_whole_groups_are_held_out() -> None:
    data = Module(items(40, 10), [])
    found = probing.choose_samples(data, count=None, seed=0)  # type: ignore[arg-type]
    groups = [{data.items["train"][i].group for i in each} for each in (found.learned, found.judged)]
    assert not groups[0] & groups[1]
    assert len(groups[1]) == 2
    assert len(found.learned) + len(found.judged) == 40


def test_one_group_without_validation_is_refused() -> None:
    with pytest.raises(DataError, match="of one group"):
        probing.choose_samples(Module(items(9, 1), []), count=None, seed=0)  # type: ignore[arg-type]
