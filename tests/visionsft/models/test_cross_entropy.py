"""Cross-entropy of coarse logits: equality with PyTorch's own upsampling and loss, for all shapes and options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visionsft.models import cross_entropy
from visionsft.models.cross_entropy import upsampled_cross_entropy
from visionsft.models.losses import SegmentationLoss, build_loss
from visionsft.models.upsampling import Upsampling, bilinear_upsampling

COUNTS = torch.tensor([900, 50, 30, 15, 5])
K = len(COUNTS)


@contextmanager
def chunks_of(size: int, *, columns: int = cross_entropy.COLUMNS) -> Iterator[None]:
    """So few bytes, and columns, that a small image is many chunks."""
    before = cross_entropy.CHUNK, cross_entropy.COLUMNS
    cross_entropy.CHUNK, cross_entropy.COLUMNS = size, columns
    try:
        yield
    finally:
        cross_entropy.CHUNK, cross_entropy.COLUMNS = before


def case(
    seed: int = 0,
    *,
    size: tuple[int, int] = (5, 7),
    factor: int = 4,
    cut: tuple[int, int] = (1, 2),
    ignored: float = 0.2,
) -> tuple[Tensor, Tensor, Upsampling]:
    """Logits (2, K, h, w), a mask (2, H, W) and the upsampling between them."""
    generator = torch.Generator().manual_seed(seed)
    covered = (size[0] * factor, size[1] * factor)
    whole = (max(1, covered[0] - cut[0]), max(1, covered[1] - cut[1]))
    mask = torch.randint(0, K, (2, *whole), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < ignored] = 255
    logits = 3 * torch.randn(2, K, *size, generator=generator)
    upsampling = bilinear_upsampling(size, covered, whole, device=logits.device)
    return logits.requires_grad_(), mask, upsampling


def reference(logits: Tensor, mask: Tensor, factor: int, weights: Tensor, smoothing: float) -> Tensor:
    height, width = mask.shape[-2:]
    fine = F.interpolate(logits, scale_factor=factor, mode="bilinear")[..., :height, :width]
    return F.cross_entropy(fine, mask, weights, ignore_index=255, label_smoothing=smoothing)


@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    factor=st.integers(1, 6),
    cut=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    chunk=st.sampled_from([1, 1000, 10**6]),
    columns=st.integers(1, 60),
)
@settings(max_examples=60, deadline=None)
def test_equals_torch(
    seed: int,
    size: tuple[int, int],
    factor: int,
    cut: tuple[int, int],
    smoothing: float,
    weighted: bool,
    chunk: int,
    columns: int,
) -> None:
    logits, mask, upsampling = case(seed, size=size, factor=factor, cut=cut)
    mask[0, 0, 0] = 1  # torch's mean of no labels isn't a number
    weights = torch.rand(K, generator=torch.Generator().manual_seed(seed)) if weighted else torch.ones(K)
    given_logits = logits.detach().clone()
    theirs = reference(logits, mask, factor, weights, smoothing)
    with chunks_of(chunk, columns=columns):
        ours = upsampled_cross_entropy(
            logits, mask, upsampling, weights=weights, ignore=255, label_smoothing=smoothing
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits, given_logits)
    mine, other = (torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_in_float64(smoothing: float) -> None:
    _, mask, upsampling = case(size=(2, 3))
    logits = torch.randn(2, K, 2, 3, dtype=torch.float64, requires_grad=True)

    def loss(logits: Tensor) -> Tensor:
        return upsampled_cross_entropy(
            logits, mask, upsampling, weights=torch.rand(K, generator=torch.Generator().manual_seed(0)),
            ignore=255, label_smoothing=smoothing,
        )  # fmt: skip

    with chunks_of(300):
        assert torch.autograd.gradcheck(loss, logits)


def build(*terms: dict[str, object]) -> SegmentationLoss:
    return build_loss(terms, class_counts=COUNTS)


@pytest.mark.parametrize(
    "terms",
    [
        [{"name": "cross_entropy", "class_weights": "inverse", "label_smoothing": 0.1}],
        [{"name": "cross_entropy", "weight": 0.5}, {"name": "cross_entropy", "label_smoothing": 0.3}],
        [{"name": "cross_entropy"}, {"name": "dice"}],
        [{"name": "lovasz"}],
    ],
)
def test_the_loss_of_coarse_logits_is_that_of_upsampled_ones(terms: list[dict[str, object]]) -> None:
    logits, mask, upsampling = case()
    loss = build(*terms)
    ours, plain = loss.of_coarse(logits, upsampling, mask), loss(upsampling(logits), mask)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain)
    mine, other = (torch.autograd.grad(value, logits)[0] for value in (ours, plain))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_a_batch_without_labels_gives_zero_and_a_zero_gradient() -> None:
    logits, mask, upsampling = case(ignored=2.0)
    loss = build({"name": "cross_entropy", "label_smoothing": 0.1}).of_coarse(logits, upsampling, mask)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_computed_in_float32_under_autocast(layout: torch.memory_format) -> None:
    logits, mask, upsampling = case()
    low = logits.detach().bfloat16().to(memory_format=layout).requires_grad_()
    wide = low.detach().float().requires_grad_()
    loss = build({"name": "cross_entropy"})
    with torch.autocast("cpu", torch.bfloat16):
        found = loss.of_coarse(low, upsampling, mask)
    expected = loss.of_coarse(wide, upsampling, mask)
    assert torch.equal(found, expected)
    found.backward()
    expected.backward()
    assert low.grad is not None
    assert wide.grad is not None
    assert torch.equal(low.grad, wide.grad.bfloat16())


def test_gradients_add_up_and_are_scaled() -> None:
    logits, mask, upsampling = case()
    loss = build({"name": "cross_entropy"})
    (once,) = torch.autograd.grad(loss.of_coarse(logits, upsampling, mask), logits)
    one = loss.of_coarse(logits, upsampling, mask)
    (one / 4).backward(retain_graph=True)
    (one / 4).backward()
    loss.of_coarse(logits * 0.5 + logits * 0.5, upsampling, mask).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, 1.5 * once)


def test_without_gradient_it_is_the_same_number() -> None:
    logits, mask, upsampling = case()
    loss = build({"name": "cross_entropy"})
    with torch.no_grad():
        value = loss.of_coarse(logits, upsampling, mask)
    assert not value.requires_grad
    assert torch.equal(value, loss.of_coarse(logits, upsampling, mask).detach())
    assert torch.equal(value, loss.of_coarse(logits.detach(), upsampling, mask))


@pytest.mark.parametrize("factor", [0.0, 1e4])
def test_extreme_logits_give_finite_gradients(factor: float) -> None:
    logits, mask, upsampling = case()
    extreme = (logits.detach() * factor).requires_grad_()
    loss = build({"name": "cross_entropy"}).of_coarse(extreme, upsampling, mask)
    loss.backward()
    assert torch.isfinite(loss)
    assert extreme.grad is not None
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_far_apart_logits_are_shifted_pixel_by_pixel(factor: float) -> None:
    logits, mask, upsampling = case()
    mask[0, 0, 0] = 1
    wide = (logits.detach() * factor).requires_grad_()
    spread = float(wide.detach().max() - wide.detach().min())
    assert (spread < cross_entropy.NARROW) == (factor == 1)
    ours = build({"name": "cross_entropy"}).of_coarse(wide, upsampling, mask)
    theirs = F.cross_entropy(upsampling(wide), mask, ignore_index=255)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    mine, other = (torch.autograd.grad(loss, wide)[0] for loss in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_logits_that_are_computed_with_as_they_are_stay_so() -> None:
    """Far apart and of one row, they are neither shifted nor copied."""
    logits, mask, upsampling = case(size=(1, 7))
    wide = (logits.detach() * 10).requires_grad_()
    before = wide.detach().clone()
    build({"name": "cross_entropy"}).of_coarse(wide, upsampling, mask).backward()
    assert torch.equal(wide, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(value: float) -> None:
    logits, mask, upsampling = case(ignored=0)
    broken = logits.detach().clone()
    broken[0, 1, 2, 3] = value
    assert build({"name": "cross_entropy"}).of_coarse(broken, upsampling, mask).isnan()


def test_masks_of_bytes_give_the_same() -> None:
    logits, mask, upsampling = case()
    loss = build({"name": "cross_entropy", "class_weights": "inverse"})
    mine, theirs = (loss.of_coarse(logits, upsampling, each) for each in (mask.to(torch.uint8), mask))
    assert torch.equal(mine, theirs)
    assert torch.equal(*(torch.autograd.grad(each, logits)[0] for each in (mine, theirs)))
    dice = build({"name": "dice"})
    assert torch.equal(*(dice.of_coarse(logits, upsampling, each) for each in (mask.to(torch.uint8), mask)))


@pytest.mark.parametrize("label", [K, 254, -1, 256])
def test_labels_that_are_no_classes_are_refused(label: int) -> None:
    logits, mask, upsampling = case()
    mask[1, 2, 3] = label
    with pytest.raises((RuntimeError, IndexError), match=r"out of (range|bounds)"):
        build({"name": "cross_entropy"}).of_coarse(logits, upsampling, mask)
