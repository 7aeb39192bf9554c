"""Detections: what a detector finds in one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """Found objects, the most certain first; coordinates in pixels of the image that was looked at."""

    boxes: Tensor
    """(N, 4) float32 x1, y1, x2, y2."""
    scores: Tensor
    """(N,) float32 in 0..1."""
    labels: Tensor
    """(N,) int64, class index from 0."""
    masks: Tensor | None = None
    """(N, H, W) float32: probability that a pixel belongs to the object; None for plain detectors."""
    turned: Tensor | None = None
    """(N, 5) float32, see `datamodules.objects.Objects.turned`; None for upright boxes."""

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, index: Tensor) -> Detections:
        """Those of these indices, or where a mask (N,) is True."""
        optional = (None if each is None else each[index] for each in (self.masks, self.turned))
        return Detections(self.boxes[index], self.scores[index], self.labels[index], *optional)

    def cpu(self) -> Detections:
        """The same in main memory."""
        moved = (None if each is None else each.cpu() for each in (self.masks, self.turned))
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu(), *moved)

    @classmethod
    def none(cls, device: torch.device | str = "cpu") -> Detections:
        """Nothing found."""
        empty = torch.empty
        return cls(
            empty((0, 4), device=device),
            empty(0, device=device),
            empty(0, dtype=torch.int64, device=device),
        )
