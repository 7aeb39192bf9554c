"""Bands: the first convolution of a three-band (red, green, blue) model, fitted to N named input bands.

The rule. A band named red, green or blue takes that colour's own filter; any other band takes the mean of the
three. All filters are then multiplied by 3/N, so that equal inputs in all bands give the activation that the
weights were trained with (for N = 3 nothing is scaled: other orders of red, green, blue only permute).
Without names the filters are repeated red, green, blue, red, ... and scaled by 3/N, which is timm's rule
(`timm.models.adapt_input_conv`). Mean and standard deviation follow the same rule, unscaled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backbones.errors import BackboneError, WeightsError

COLOURS = {"red": 0, "r": 0, "b04": 0, "green": 1, "g": 1, "b03": 1, "blue": 2, "b": 2, "b02": 2}
"""Names (in any case) that stand for a colour; b04, b03, b02 are Sentinel-2's."""


def check_bands(in_chans: int, bands: Sequence[str] | None) -> None:
    """Refuse a count below one or a list of names of another length."""
    if in_chans < 1:
        raise BackboneError(f"in_chans is {in_chans}; a model needs at least 1 band")
    if bands is not None and len(bands) != in_chans:
        raise BackboneError(f"{len(bands)} band names ({', '.join(bands)}) for in_chans={in_chans}")


def band_mixture(in_chans: int, bands: Sequence[str] | None) -> Tensor:
    """(N, 3) float64: the share of red's, green's and blue's filter in each input band's; rows sum to 1."""
    mixture = torch.full((in_chans, 3), 1 / 3, dtype=torch.float64)
    if bands is None:
        return mixture if in_chans == 1 else torch.eye(3).double().repeat(in_chans, 1)[:in_chans]
    for row, band in enumerate(bands):
        if (colour := COLOURS.get(band.lower())) is not None:
            mixture[row] = torch.eye(3)[colour].double()
    return mixture


def adapt_convolution(weight: Tensor, in_chans: int, bands: Sequence[str] | None) -> Tensor:
    """First convolution (O, 3, h, w) -> (O, N, h, w).

    Space-to-depth stems hold (O, k * 3, h, w) with the colours innermost, and become (O, k * N, h, w).
    """
    if weight.ndim != 4 or weight.shape[1] % 3:
        raise WeightsError(
            f"a first layer of shape {tuple(weight.shape)} is not a convolution over red, green, blue; "
            f"it cannot be fitted to {in_chans} bands: choose another model, or weights='none'"
        )
    if in_chans == 3 and bands is None:
        return weight
    mixture = band_mixture(in_chans, bands) * (3 / in_chans)
    out, inputs, height, width = weight.shape
    groups = weight.reshape(out, inputs // 3, 3, height, width)
    mixed = torch.einsum("okchw,nc->oknhw", groups, mixture.to(weight.dtype))
    return mixed.reshape(out, -1, height, width).contiguous()


def adapt_statistics(
    values: Sequence[float], in_chans: int, bands: Sequence[str] | None
) -> tuple[float, ...]:
    """Mean or standard deviation of (red, green, blue) -> one value for each of the N bands."""
    if len(values) != 3:
        values = [sum(values) / len(values)] * 3
    mixed = band_mixture(in_chans, bands) @ torch.tensor(values, dtype=torch.float64)
    return tuple(mixed.tolist())
