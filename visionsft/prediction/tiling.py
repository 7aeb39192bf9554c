"""Tiling: how large a model's tiles are over a scene, and how much they overlap.

The larger the tiles, the smaller the share that is computed twice. A model that looks at its neighbourhood only is
given the largest that suit the machine. One that looks at its whole input (attention, pooling over the whole map,
as in UPerNet's head) answers differently to another size of input: it gets the size that it was trained on.
"""

from __future__ import annotations

import math
import re
from typing import cast

from torch import Tensor, nn

from datamodules.datamodule import SegmentationDataModule
from visionsft.errors import ConfigError
from visionsft.models import SegmentationModel
from visionsft.models.model import FeatureExtractor
from visionsft.prediction.blending import Grid, plan_grid
from visionsft.prediction.scenes import Run, in_tiles

LARGEST = 2048 + 64
"""Side of a tile at most: of what it adds to the map, and the overlap."""
LOGITS_MB = 256
"""Of a tile at most: with many classes tiles are smaller."""
BATCH_PIXELS = 512 * 512
"""Of small tiles that the model sees at once."""
_GLOBAL = re.compile(
    r"Attention|Attn|Squeeze|^SE|EffectiveSE|Global(Context|Response)|AdaptiveAvg|PyramidPooling|Mixer"
)
"""In the class names of modules that look at their whole input."""


def plan_tiles(
    model: SegmentationModel,
    data: SegmentationDataModule,
    shape: tuple[int, int],
    *,
    tile: int | None = None,
    overlap: int | None = None,
    step: float = 1.0,
) -> Grid:
    """Tiles over a map of shape (H, W).

    tile, overlap: in the model's pixels; None: chosen. The overlap chosen is 64 pixels for large tiles, an eighth of
    small ones. step: side of the model's pixels in the map's.
    """
    limit = size_limit(model)
    side = tile or limit or _choose(model, min(data.chip), longest=round(max(shape) / step))
    if limit is not None and side > limit:
        raise ConfigError(f"inference.tile is {side}; this model takes inputs up to {limit} x {limit}")
    margin = min(64, side // 8) if overlap is None else overlap
    multiple = math.lcm(*cast(FeatureExtractor, model.backbone).strides)
    return lay_tiles(shape, side=side, overlap=margin, multiple=multiple, step=step)


def lay_tiles(
    shape: tuple[int, int], *, side: int, overlap: int, multiple: int = 1, step: float = 1.0
) -> Grid:
    """Tiles over a map of shape (H, W); side, overlap and multiple (see `plan_axis`) in the model's pixels."""
    if side < 1 or overlap < 0:
        raise ConfigError(f"a tile of {side} pixels, overlap {overlap}; allowed: 1 or more, 0 or more")
    if overlap > side // 2:
        raise ConfigError(f"inference.overlap is {overlap}; at most half of a tile ({side // 2}) is allowed")
    side, overlap, multiple = (
        max(least, round(pixels * step)) for pixels, least in ((side, 1), (overlap, 0), (multiple, 1))
    )
    return plan_grid(shape, size=side, overlap=min(overlap, side // 2), multiple=multiple)


def fitting(run: Run, model: SegmentationModel, data: SegmentationDataModule) -> Run:
    """`run` for images of any size: those larger than the model's only size go through it in tiles."""
    limit = size_limit(model)
    if limit is None:
        return run

    def fit(image: Tensor) -> Tensor:
        shape = (image.shape[2], image.shape[3])
        if max(shape) <= limit:
            return run(image)
        device = next(model.parameters()).device
        grid = plan_tiles(model, data, shape)
        return in_tiles(run, image, grid, num_classes=model.num_classes, device=device)

    return fit


def batch_size(grid: Grid) -> int:
    """Tiles that the model sees at once."""
    return max(1, BATCH_PIXELS // (grid.tile[0] * grid.tile[1]))


def _choose(model: SegmentationModel, trained: int, *, longest: int) -> int:
    """trained: side of the chips of training. longest: side of the map."""
    if longest <= trained or not is_local(model):
        return trained
    affordable = int((LOGITS_MB * 2**20 / 4 / model.num_classes) ** 0.5)
    return max(trained, min(LARGEST, affordable))


def size_limit(model: SegmentationModel) -> int | None:
    """Side of the only input that the backbone takes, where it is built for one."""
    size = model.backbone.geometry.size  # type: ignore[union-attr]
    return None if size is None else min(size)  # type: ignore[arg-type]


def is_local(model: nn.Module) -> bool:
    """Whether a pixel's answer depends on its neighbourhood only, by the kinds of the model's modules."""
    return not any(_GLOBAL.search(type(module).__name__) for module in model.modules())
