"""Views: test-time augmentation, the mean of a model's probabilities over scaled and mirrored views of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

SYMMETRIES: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "left_right": ((0, False), (0, True)),
    "d4": tuple(product(range(4), (False, True))),
}
"""Quarter turns, and then whether left and right are exchanged: those of a camera, and of a view from above."""


def average_views(
    model: Callable[[Tensor], Tensor], image: Tensor, *, scales: Sequence[float], symmetry: str
) -> Tensor:
    """image: (B, C, H, W) -> (B, K, H, W): logits of a single plain view, else log of the mean probability.

    model: an image of any size -> logits (B, K, H, W) of that size. scales: zoom of each view (bilinear).
    """
    views = list(_views(model, image, scales, symmetry))
    if len(views) == 1:
        return views[0]
    mean = torch.stack([view.float().softmax(1) for view in views]).mean(0)
    return mean.clamp_min(1e-12).log()


def average_labels(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    scales: Sequence[float],
    symmetry: str,
    multi_label: bool,
) -> Tensor:
    """image: (B, C, H, W) -> probabilities (B, K), the mean over all views.

    model: an image of any size -> logits (B, K). multi_label: each class has a probability of its own (sigmoid),
    else they sum to 1 (softmax).
    """
    views = (model(view).float() for view, _, _, _ in _seen(image, scales, symmetry))
    return torch.stack([view.sigmoid() if multi_label else view.softmax(1) for view in views]).mean(0)


def _views(
    model: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float], symmetry: str
) -> Iterator[Tensor]:
    """The logits of each view, turned and scaled back onto the image."""
    size = image.shape[-2:]
    for view, scale, turns, mirrored in _seen(image, scales, symmetry):
        logits = model(view)
        logits = torch.rot90(logits.flip(3) if mirrored else logits, -turns, (2, 3))
        yield logits if scale == 1 else F.interpolate(logits.float(), size, mode="bilinear")


def _seen(
    image: Tensor, scales: Sequence[float], symmetry: str
) -> Iterator[tuple[Tensor, float, int, bool]]:
    """Each view of the image, with its scale, its quarter turns, and whether it is mirrored after them."""
    size = image.shape[-2:]
    for scale, (turns, mirrored) in product(scales, SYMMETRIES[symmetry]):
        view = image
        if scale != 1:
            scaled = [max(1, round(side * scale)) for side in size]
            view = F.interpolate(image, scaled, mode="bilinear", antialias=scale < 1)
        view = torch.rot90(view, turns, (2, 3))
        yield view.flip(3) if mirrored else view, scale, turns, mirrored
