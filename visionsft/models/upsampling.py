"""Upsampling: a head's logits brought to the image's size, as two matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Band = tuple[slice, slice, Tensor]
"""Rows (or columns) before upsampling, upsampled ones that depend on no others, and the shares of those in these."""


@dataclass(frozen=True)
class Axis:
    """One direction of an upsampling."""

    shares: Tensor
    """(few, many) float32: of each point in each upsampled one."""

    @cached_property
    def _reach(self) -> tuple[list[int], list[int]]:
        """The first and the last point that each upsampled one depends on."""
        used = (self.shares != 0).int()
        return used.argmax(0).tolist(), (len(used) - 1 - used.flip(0).argmax(0)).tolist()

    def bands(self, step: int, dtype: torch.dtype) -> list[Band]:
        """`step` upsampled points at a time; the shares as `dtype`."""
        (first, last), shares = self._reach, self.shares.to(dtype)
        found = []
        for start in range(0, shares.shape[1], step):
            stop = min(start + step, shares.shape[1])
            few, many = slice(first[start], last[stop - 1] + 1), slice(start, stop)
            found.append((few, many, shares[few, many]))
        return found


@dataclass(frozen=True)
class Upsampling:
    """Bilinear interpolation as a product with a matrix from either side, whose transposes are its gradient.

    The gradient of F.interpolate takes three times as long on a CPU, and isn't deterministic on a GPU.
    """

    rows: Axis
    columns: Axis

    def __call__(self, maps: Tensor) -> Tensor:
        """maps: (..., h, w) -> (..., H, W) float32."""
        with torch.autocast(maps.device.type, enabled=False):
            return self.rows.shares.T @ (maps.float().contiguous() @ self.columns.shares)


@lru_cache(maxsize=16)
def bilinear_upsampling(
    old: tuple[int, int], covered: tuple[int, int], size: tuple[int, int], *, device: torch.device
) -> Upsampling:
    """F.interpolate(maps of size `old`, covered, mode="bilinear") cut to `size`."""
    rows, columns = (
        Axis(interpolation(few, many, device=device)[:, :kept])
        for few, many, kept in zip(old, covered, size, strict=True)
    )
    return Upsampling(rows, columns)


@lru_cache(maxsize=64)
def interpolation(
    few: int, many: int, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(few, many): the share of each of `few` points in each of `many`. Kept for the next call: not to be changed.

    From one size to twice, four times, ... of it, all shares are exact in bfloat16.
    """
    with torch.inference_mode(False), torch.no_grad():  # who asks next may want gradients
        unit = torch.eye(few, device=device)[None]
        return F.interpolate(unit, many, mode="linear")[0].to(dtype)
