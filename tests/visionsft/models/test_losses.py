"""Losses: equality with PyTorch, smp and scikit-learn; properties; batches without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch.losses as smp_losses
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from sklearn.metrics import f1_score, jaccard_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from visionsft.config import SegmentationTask
from visionsft.errors import ConfigError
from visionsft.models.losses import LOSSES, build_loss, class_weights

K = 5


def build(name: str, **options: Any) -> nn.Module:
    return build_loss([{"name": name, **options}], class_counts=torch.tensor([900, 50, 30, 15, 5]))


def batch(seed: int = 0, *, ignored: float = 0.2, absent: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits (2, K, 19, 23) that know something of the mask (2, 19, 23), a share of which is ignored."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, K, (2, 19, 23), generator=generator)
    if absent is not None:
        mask[mask == absent] = (absent + 1) % K
    logits = 2 * torch.randn(2, K, 19, 23, generator=generator) + 2 * F.one_hot(mask, K).permute(0, 3, 1, 2)
    mask[torch.rand(mask.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), mask


def assert_equal_with_gradient(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (mine,) = torch.autograd.grad(ours, logits, retain_graph=True)
    (reference,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "inverse", "effective"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(kind: str, smoothing: float) -> None:
    logits, mask = batch()
    weights = class_weights(torch.tensor([900, 50, 30, 15, 5]), kind)
    theirs = F.cross_entropy(logits, mask, weights, ignore_index=255, label_smoothing=smoothing)
    ours = build("cross_entropy", class_weights=kind, label_smoothing=smoothing)(logits, mask)
    assert_equal_with_gradient(ours, theirs, logits)


@pytest.mark.parametrize("absent", [None, 2])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_dice_equals_smp(smooth: float, absent: int | None) -> None:
    logits, mask = batch(absent=absent)
    theirs = smp_losses.DiceLoss("multiclass", smooth=smooth, ignore_index=255)(logits, mask)
    assert_equal_with_gradient(build("dice", smooth=smooth)(logits, mask), theirs, logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_smp(gamma: float) -> None:
    """smp's softmax form, over the labelled pixels; for gamma 0 that is cross-entropy."""
    logits, mask = batch()
    labelled = logits.permute(0, 2, 3, 1)[mask != 255]
    theirs = softmax_focal_loss_with_logits(labelled, mask[mask != 255], gamma=gamma)
    ours = build("focal", gamma=gamma)(logits, mask)
    assert_equal_with_gradient(ours, theirs, logits)
    if gamma == 0:
        torch.testing.assert_close(ours, F.cross_entropy(logits, mask, ignore_index=255))


@pytest.mark.parametrize("absent", [None, 2])
@pytest.mark.parametrize("ignored", [0.0, 0.2])
def test_lovasz_equals_smp(absent: int | None, ignored: float) -> None:
    """smp sorts the pixels, we count them in bins: equal but for the order of almost equal errors."""
    logits, mask = batch(absent=absent, ignored=ignored)
    theirs = smp_losses.LovaszLoss("multiclass", ignore_index=255)(logits, mask)
    ours = build("lovasz")(logits, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (mine,) = torch.autograd.grad(ours, logits)
    (reference,) = torch.autograd.grad(theirs, logits)
    assert (mine - reference).norm() < 0.05 * reference.norm()


def test_lovasz_equals_smp_on_many_pixels() -> None:
    """Bins full of pixels, as in a batch of frames."""
    low = 3 * torch.randn(2, K, 12, 16, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(low, size=(180, 240), mode="bilinear").requires_grad_()
    mask = (logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).argmax(1)
    theirs = smp_losses.LovaszLoss("multiclass", ignore_index=255)(logits, mask)
    ours = build("lovasz")(logits, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (mine,) = torch.autograd.grad(ours, logits)
    (reference,) = torch.autograd.grad(theirs, logits)
    assert (mine - reference).norm() < 0.05 * reference.norm()


def test_hard_predictions_give_the_metrics_of_scikit_learn() -> None:
    """Of certain predictions Lovász is 1 - mean Jaccard index, dice 1 - mean F1, over the labelled pixels."""
    logits, mask = batch()
    prediction = logits.argmax(1)
    certain = 200.0 * F.one_hot(prediction, K).permute(0, 3, 1, 2)
    truth, predicted = mask[mask != 255].numpy(), prediction[mask != 255].numpy()
    lovasz = build("lovasz")(certain, mask).item()
    dice = build("dice", smooth=0.0)(certain, mask).item()
    assert lovasz == pytest.approx(1 - jaccard_score(truth, predicted, average="macro"), abs=1e-5)
    assert dice == pytest.approx(1 - f1_score(truth, predicted, average="macro"), abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_order_of_pixels_and_ignored_logits_do_not_matter(name: str, seed: int) -> None:
    logits, mask = batch(seed)
    loss, expected = build(name), build(name)(logits, mask)
    order = torch.randperm(19 * 23, generator=torch.Generator().manual_seed(seed))
    shuffled = loss(logits.flatten(2)[..., order].view_as(logits), mask.flatten(1)[..., order].view_as(mask))
    torch.testing.assert_close(shuffled, expected, rtol=1e-4, atol=1e-5)
    elsewhere = torch.where((mask == 255)[:, None], logits + torch.arange(K)[:, None, None], logits)
    torch.testing.assert_close(loss(elsewhere, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_get_no_gradient(name: str) -> None:
    logits, mask = batch()
    build(name, **({"label_smoothing": 0.1} if name == "cross_entropy" else {}))(logits, mask).backward()
    assert logits.grad is not None
    gradient = logits.grad.abs().sum(1)
    assert (gradient[mask == 255] == 0).all()
    assert (gradient[mask != 255] > 0).float().mean() > 0.9


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_gives_zero_and_a_zero_gradient(name: str) -> None:
    logits, mask = batch(ignored=2.0)
    loss = build(name)(logits, mask)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5}])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("factor", [0.0, 1e4])
def test_extreme_logits_give_finite_gradients(name: str, factor: float, options: dict[str, float]) -> None:
    logits, mask = batch()
    extreme = (logits.detach() * factor).requires_grad_()
    loss = build(name, **(options if name == "focal" else {}))(extreme, mask)
    loss.backward()
    assert torch.isfinite(loss)
    assert extreme.grad is not None
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_computed_in_float32_under_autocast(name: str) -> None:
    logits, mask = batch()
    low = logits.detach().bfloat16()
    expected = build(name)(low.float(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = build(name)(low.contiguous(memory_format=torch.channels_last), mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_every_loss_falls_when_it_is_descended() -> None:
    for name in LOSSES:
        logits, mask = batch()
        loss = build(name)
        before = loss(logits, mask)
        (gradient,) = torch.autograd.grad(before, logits)
        assert loss(logits - 0.1 * gradient / gradient.abs().max(), mask) < before


def test_terms_of_a_config_are_summed_by_weight() -> None:
    logits, mask = batch()
    terms = [
        {"name": "cross_entropy", "weight": 0.5, "class_weights": "inverse", "label_smoothing": 0.1},
        {"name": "dice", "weight": 2.0, "smooth": 0.0},
        {"name": "focal", "weight": 3.0, "gamma": 1.0},
        {"name": "lovasz"},
    ]
    task = SegmentationTask.model_validate({"loss": terms})
    counts = torch.tensor([900, 50, 30, 15, 5])
    total = build_loss(task.loss, class_counts=counts)(logits, mask)
    parts = [build_loss([{**term, "weight": 1.0}], class_counts=counts)(logits, mask) for term in terms]
    torch.testing.assert_close(total, 0.5 * parts[0] + 2 * parts[1] + 3 * parts[2] + parts[3])


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ConfigError, match=r"loss 'dize'.*did you mean 'dice'"):
        build("dize")


# ---------------------------------------------------------------------------- class weights


def test_inverse_weights_equal_scikit_learns() -> None:
    """'balanced' of scikit-learn, up to the factor that makes the mean 1."""
    counts = torch.tensor([100, 50, 7])
    labels = np.repeat([0, 1, 2], counts)
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(counts, "inverse"), balanced / balanced.mean(), rtol=1e-6)


def test_effective_weights_equal_the_papers_formula() -> None:
    counts = torch.tensor([4.0, 10.0, 1000.0])
    beta = 1 - 1 / 10
    paper = (1 - beta) / (1 - beta ** counts.numpy())
    np.testing.assert_allclose(class_weights(counts, "effective"), paper / paper.mean(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["none", "inverse", "effective"])
def test_weights_of_camvid_sized_counts(kind: str) -> None:
    """Mean 1, the rarer the heavier, an absent class 1: nothing explodes."""
    counts = torch.tensor([50_000_000, 9_000_000, 400_000, 0, 12_000])
    weights = class_weights(counts, kind)
    assert weights.dtype == torch.float32
    assert weights[counts > 0].mean().item() == pytest.approx(1)
    assert weights[3] == 1
    assert weights[0] <= weights[1] <= weights[2] <= weights[4]


def test_weights_without_any_count_are_ones() -> None:
    assert class_weights(torch.zeros(3, dtype=torch.int64), "inverse").tolist() == [1, 1, 1]


def test_unknown_class_weights_are_named() -> None:
    with pytest.raises(ConfigError, match=r"class_weights 'median'.*none, inverse, effective"):
        class_weights(torch.ones(3), "median")
