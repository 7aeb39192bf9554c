"""The simple feature pyramid of ViTDet (Li et al. 2022): maps of several strides from a plain ViT's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

TARGET_STRIDES = (4, 8, 16, 32)


class SimpleFeaturePyramid(nn.Module):
    """A plain ViT's maps fused into one of `width` channels, then scaled up and down by powers of two.

    Two departures from ViTDet. It uses the last map only; a backbone here hands out several, and each is
    normalised, projected by a 1x1 convolution and added. It ends each level with a 1x1 and a 3x3 convolution
    to 256 channels; they are left out because every head starts with its own.

    The strides are the patch size times a power of two, nearest to 4, 8, 16 and 32. Patches of 14 give 3.5,
    7, 14 and 28: `strides` is rounded (4, 7, 14, 28), but the maps' sizes are exact: 4, 2, 1 and 1/2 (rounded
    up) times the size of the ViT's map, so that all levels cover the same ground. `spacings` isn't rounded.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, width: int = 256) -> None:
        """`channels` and `strides` describe the ViT's maps; the strides are all the same."""
        super().__init__()
        patch = strides[0]
        assert set(strides) == {patch}, f"a plain ViT has one stride, not {strides}"
        powers = [round(math.log2(patch / target)) for target in TARGET_STRIDES]
        self.norms = nn.ModuleList(LayerNorm2d(c) for c in channels)
        self.projections = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.levels = nn.ModuleList(_level(width, power) for power in powers)
        self.channels = tuple(width >> max(power, 0) for power in powers)
        self.spacings = tuple(patch * 2.0**-power for power in powers)
        self.strides = tuple(round(spacing) for spacing in self.spacings)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, channels[i], h, w) -> maps (B, self.channels[i], about 4h, 4w), ..., finest first."""
        base = self.projections[0](self.norms[0](features[0]))
        for norm, project, feature in zip(self.norms[1:], self.projections[1:], features[1:], strict=True):
            base = base + project(norm(feature))
        return [level(base) for level in self.levels]


class _Halve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, ceil(h / 2), ceil(w / 2))."""
        return F.max_pool2d(x, 2, ceil_mode=True)


class _Double(nn.ConvTranspose2d):
    """nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2), whose windows don't overlap.

    In training on a CPU it is computed as what it is, a linear map of each pixel to four: a quarter of the
    time of oneDNN's backward pass.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """x: (B, in_channels, h, w) -> (B, out_channels, 2h, 2w)."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x, output_size)
        assert self.bias is not None
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * out_channels, in_channels)
        four = F.linear(x.permute(0, 2, 3, 1), weight, self.bias.repeat(4)).unflatten(3, (2, 2, -1))
        return four.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _level(width: int, power: int) -> nn.Sequential:
    """Scale by 2**power: doublings halve the channels, with LayerNorm and GELU in between, as in ViTDet."""
    layers: list[nn.Module] = [_Halve() for _ in range(-power)]
    for i in range(power):
        if i:
            layers += [LayerNorm2d(width >> i), nn.GELU()]
        layers.append(_Double(width >> i, width >> (i + 1)))
    return nn.Sequential(*layers)
