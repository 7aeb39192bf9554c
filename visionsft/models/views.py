"""Views: test-time augmentation, the mean of a model's probabilities over scaled and mirrored views of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class View:
    """One way to show a model an image."""

    scale: float = 1.0
    turns: int = 0
    """Quarter turns, as `torch.rot90` counts them."""
    mirrored: bool = False
    """Whether left and right are exchanged, after the turns."""

    def show(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W) -> (B, C, h, w)."""
        if self.scale != 1:
            scaled = [max(1, round(side * self.scale)) for side in image.shape[-2:]]
            image = F.interpolate(image, scaled, mode="bilinear", antialias=self.scale < 1)
        image = _turn(image, self.turns)
        return image.flip(3) if self.mirrored else image


def list_views(scales: Sequence[float], symmetry: str) -> list[View]:
    """All of them; scales: zooms, symmetry: of `SYMMETRIES`."""
    return [View(scale, *way) for scale, way in product(scales, SYMMETRIES[symmetry])]


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
    views = (model(view.show(image)).float() for view in list_views(scales, symmetry))
    return torch.stack([view.sigmoid() if multi_label else view.softmax(1) for view in views]).mean(0)


def _views(
    model: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float], symmetry: str
) -> Iterator[Tensor]:
    """The logits of each view, turned and scaled back onto the image."""
    size = image.shape[-2:]
    for view in list_views(scales, symmetry):
        logits = model(view.show(image))
        logits = _turn(logits.flip(3) if view.mirrored else logits, -view.turns)
        yield logits if view.scale == 1 else F.interpolate(logits.float(), size, mode="bilinear")


def _turn(maps: Tensor, turns: int) -> Tensor:
    """maps: (B, C, H, W). torch copies all of them for no turn, too."""
    return torch.rot90(maps, turns, (2, 3)) if turns else maps
