"""Upsampling: a head's logits brought to the image's size, as two matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Upsampling:
    """Bilinear interpolation as a product with a matrix from either side, whose transposes are its gradient.

    The gradient of F.interpolate takes three times as long on a CPU, and isn't deterministic on a GPU.
    """

    rows: Tensor
    """(h, H) float32: the share of each row in each upsampled one."""
    columns: Tensor
    """(w, W) float32."""

    def __call__(self, maps: Tensor) -> Tensor:
        """maps: (..., h, w) -> (..., H, W) float32."""
        with torch.autocast(maps.device.type, enabled=False):
            return self.rows.T @ (maps.float().contiguous() @ self.columns)


def bilinear_upsampling(
    old: tuple[int, int], covered: tuple[int, int], size: tuple[int, int], *, device: torch.device
) -> Upsampling:
    """F.interpolate(maps of size `old`, covered, mode="bilinear") cut to `size`."""
    like = torch.empty(0, device=device)
    rows, columns = (
        interpolation(few, many, like=like)[:, :kept]
        for few, many, kept in zip(old, covered, size, strict=True)
    )
    return Upsampling(rows, columns)


def interpolation(few: int, many: int, *, like: Tensor) -> Tensor:
    """(few, many): the share of each of `few` points in each of `many`, of the number type of `like`.

    From one size to twice, four times, ... of it, all shares are exact in bfloat16.
    """
    unit = torch.eye(few, device=like.device)[None]
    return F.interpolate(unit, many, mode="linear")[0].to(like.dtype)
