"""Maps that are projected, resized and summed, in forms that a CPU trains faster with than with PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from visionsft.models.upsampling import interpolation


def add_resized(finest: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """The sum of `finest` (B, C, H, W) and the maps (B, C, h_i, w_i), resized to it."""
    height, width = finest.shape[-2:]
    wide = _widened([each.permute(0, 2, 3, 1) for each in maps], width)
    shares = _row_shares(maps, height).T.expand(len(finest), -1, -1)  # (B, H, sum of h_i)
    lines = finest.permute(0, 2, 3, 1).flatten(2)  # (B, H, W * C)
    return torch.baddbmm(lines, shares, wide).unflatten(2, (width, -1)).permute(0, 3, 1, 2)


def projected_sum(projections: Iterable[nn.Module], maps: Sequence[Tensor]) -> Tensor:
    """What 1x1 convolutions without bias make of maps (B, C_i, h_i, w_i), resized to the first (bilinear) and summed.

    For training: as products with matrices, of which each adds to the one before, it takes a CPU three quarters of the
    time.
    """
    weights = [projection.weight for projection in projections]
    kind = maps[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else maps[0].dtype
    summed: Tensor = _ProjectedSum.apply(dtype, *maps, *weights)
    return summed


class _ProjectedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *arguments: Tensor) -> Tensor:
        count = len(arguments) // 2
        maps = [each.to(dtype) for each in arguments[:count]]
        matrices = [weight.flatten(1).to(dtype) for weight in arguments[count:]]  # (width, C_i)
        ctx.save_for_backward(*maps, *matrices)
        ctx.weight_dtype = arguments[count].dtype
        ctx.fine = [i for i in range(count) if maps[i].shape[-2:] == maps[0].shape[-2:]]
        ctx.coarse = [i for i in range(count) if i not in ctx.fine]
        batch, _, height, width = maps[0].shape
        with torch.autocast(maps[0].device.type, enabled=False):
            summed = None
            if ctx.coarse:
                coarse = [maps[i] for i in ctx.coarse]
                projected = [maps[i].permute(0, 2, 3, 1) @ matrices[i].T for i in ctx.coarse]
                summed = (_row_shares(coarse, height).T @ _widened(projected, width)).view(batch * height * width, -1)
            for i in ctx.fine:
                pixels, matrix = _pixels(maps[i]), matrices[i].T
                summed = pixels @ matrix if summed is None else summed.addmm_(pixels, matrix)
        assert summed is not None
        return summed.view(batch, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) // 2
        maps, matrices = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        batch, _, height, width = maps[0].shape
        slopes = dict.fromkeys(ctx.fine, _pixels(slope))  # of what each map was projected to
        turned = slopes[0].T.contiguous() if len(ctx.fine) > 1 else None  # pays from the second product on
        if ctx.coarse:
            coarse = [maps[i] for i in ctx.coarse]
            wide = _row_shares(coarse, height) @ slopes[0].reshape(batch, height, -1)  # (B, sum of h_i, W * C)
            parts = wide.split([each.shape[-2] for each in coarse], 1)
            for i, each, part in zip(ctx.coarse, coarse, parts, strict=True):
                columns = interpolation(each.shape[-1], width, device=slope.device, dtype=slope.dtype)
                slopes[i] = (columns @ part.unflatten(2, (width, -1))).flatten(0, 2)
        of_maps: list[Tensor | None] = [None] * count
        of_weights = []
        for i in range(count):
            if ctx.needs_input_grad[1 + i]:
                of_maps[i] = (slopes[i] @ matrices[i]).view(batch, *maps[i].shape[-2:], -1).permute(0, 3, 1, 2)
            pixels = _pixels(maps[i])
            of_weight = (pixels.T @ slopes[i]).T if turned is None or i in ctx.coarse else turned @ pixels
            of_weights.append(of_weight.to(ctx.weight_dtype)[..., None, None])
        return None, *of_maps, *of_weights


def sub_pixels(logits: Tensor, finer: int) -> Tensor:
    """F.pixel_shuffle, for training: (B, K * finer**2, h, w) -> (B, K, h * finer, w * finer)."""
    shuffled: Tensor = _SubPixels.apply(logits, finer)
    return shuffled


class _SubPixels(torch.autograd.Function):
    """What is side by side before and after is moved as one number, in half the time of F.pixel_shuffle on a CPU."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, finer: int) -> Tensor:
        run = finer * logits.itemsize
        ctx.finer = finer
        ctx.number = next(kind for kind in (torch.int64, torch.int32, torch.int16) if run % kind.itemsize == 0)
        batch, channels, height, width = logits.shape
        pixels = logits.permute(0, 2, 3, 1).contiguous().view(batch, height, width, -1, finer, finer)
        turned = pixels.view(ctx.number).permute(0, 3, 1, 4, 2, 5)
        return turned.reshape(batch, channels // finer**2, height * finer, -1).view(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        batch, classes, height, width = slope.shape
        height, width = height // ctx.finer, width // ctx.finer
        runs = slope.contiguous().view(ctx.number).view(batch, classes, height, ctx.finer, width, -1)
        pixels = runs.permute(0, 2, 4, 1, 3, 5).contiguous().view(slope.dtype)
        return pixels.view(batch, height, width, -1).permute(0, 3, 1, 2), None


def _pixels(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * H * W, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _row_shares(maps: Sequence[Tensor], height: int) -> Tensor:
    """(sum of h_i, height): of each row of maps (B, C, h_i, w_i) in each of `height`."""
    return torch.cat([interpolation(each.shape[-2], height, device=each.device, dtype=each.dtype) for each in maps])


def _widened(maps: Sequence[Tensor], width: int) -> Tensor:
    """Maps (B, h_i, w_i, C), their rows resized -> (B, sum of h_i, width * C)."""
    wide = []
    for each in maps:
        columns = interpolation(each.shape[2], width, device=each.device, dtype=each.dtype)
        wide.append((columns.T @ each).flatten(2))
    return torch.cat(wide, 1)
