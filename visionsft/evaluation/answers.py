"""Answers: the model's logits for the samples of a split, as prediction will make them.

Scenes larger than a chip are seen in the large, overlapping, blended tiles of `visionsft.prediction.scenes`; what is
counted, chip by chip, is cut from that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import GeoTiffDataModule, Normalisation
from datamodules.batch import Batch, Item, Window
from datamodules.datasets import EvaluationDataset
from datamodules.scenes import SceneReader
from visionsft.models.views import average_views

if TYPE_CHECKING:
    from visionsft.prediction.scenes import Piece
    from visionsft.training.loading import LoadedRun


def infer(loaded: LoadedRun, image: Tensor) -> Tensor:
    """image: (B, C, H, W) float32, normalised -> logits (B, K, H, W), in the precision of training.

    With the run's `inference` views, if it has any: a split is scored as new files are predicted.
    """
    return average_views(loaded.logits, image, **loaded.views)


def answers(
    loaded: LoadedRun, split: str, loader: DataLoader[Batch], batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Tensor]]:
    """The loader's batches, in order, each with logits (B, K, H, W) float32.

    batches: the loader's, perhaps behind a progress bar.
    """
    regions = _large_regions(loaded, split)
    if regions is None:
        for batch in batches:
            yield batch, infer(loaded, batch["image"])
        return
    dataset = cast(EvaluationDataset, loader.dataset)
    logits = _blended(loaded, dataset, regions)
    for batch in batches:
        yield batch, torch.stack(list(islice(logits, len(batch["item"]))))


def _large_regions(loaded: LoadedRun, split: str) -> list[tuple[Item, int]] | None:
    """Each region of scenes with the number of its samples; None where every sample is a whole scene or frame, or
    shows no more than the ground around sparse labels."""
    data = loaded.data
    if not isinstance(data, GeoTiffDataModule) or data.sparse:
        return None
    regions = data.evaluation_regions(split)
    return regions if any(count > 1 for _, count in regions) else None


class RegionSource:
    """Tiles of a part of a scene, in the resolution of the model."""

    def __init__(self, reader: SceneReader, region: Item, normalisation: Normalisation) -> None:
        self.reader = reader
        self.region = replace(region, label=None)
        self.normalisation = normalisation
        whole = reader.scenes[region.image].grid.window
        self.window = region.window or whole

    @property
    def shape(self) -> tuple[int, int]:
        return self.window.height, self.window.width

    @property
    def waits(self) -> bool:
        from visionsft.prediction.scenes import waiting  # which uses this package's metrics

        return waiting(self.region.image)

    def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        place = replace(window, row=window.row + self.window.row, col=window.col + self.window.col)
        raw = self.reader.read(replace(self.region, window=place))
        return self.normalisation(raw.values, raw.valid), raw.valid


def _blended(
    loaded: LoadedRun, dataset: EvaluationDataset, regions: Sequence[tuple[Item, int]]
) -> Iterator[Tensor]:
    """(K, H, W) of every sample in the dataset's order."""
    from visionsft.prediction.scenes import blend_tiles  # which uses this package's metrics
    from visionsft.prediction.tiling import batch_size, fitting, plan_tiles

    model, data, tiles = loaded.model, loaded.data, loaded.tiles
    run = partial(average_views, fitting(loaded.logits, model, data), **loaded.views)
    reader = SceneReader(cast(SceneReader, dataset.reader).scenes)  # of the thread that reads tiles
    first = 0
    for region, count in regions:
        source = RegionSource(reader, region, dataset.normalisation)
        grid = plan_tiles(model, data, source.shape, tile=tiles["tile"], overlap=tiles["overlap"])
        pieces = blend_tiles(
            source, run, grid, num_classes=model.num_classes, batch=batch_size(grid),
            device=next(model.parameters()).device,
        )  # fmt: skip
        windows = [
            _inside(source.window, dataset.items[index].window) for index in range(first, first + count)
        ]
        first += count
        for logits in _cut(pieces, windows, grid.shape[1]):
            yield _padded(logits, dataset.size)


def _inside(region: Window, window: Window | None) -> Window:
    """A window of a scene in pixels of its region."""
    assert window is not None
    return replace(window, row=window.row - region.row, col=window.col - region.col)


def _padded(logits: Tensor, size: tuple[int, int] | None) -> Tensor:
    """(K, h, w) in the upper left of (K, *size), as the dataset pads its samples."""
    assert size is not None
    return F.pad(logits, (0, size[1] - logits.shape[2], 0, size[0] - logits.shape[1]))


def _cut(pieces: Iterable[Piece], windows: Sequence[Window], width: int) -> Iterator[Tensor]:
    """(K, h, w) of each window, which come row by row as the pieces do; holds the rows that are still needed."""
    waiting = iter(windows)
    window = next(waiting, None)
    top, rows = 0, None
    for row, band in _bands(pieces, width):
        rows = band if rows is None else torch.cat([rows, band], dim=1)
        while window is not None and window.row + window.height <= row + band.shape[1]:
            rows, top = rows[:, window.row - top :], window.row
            yield rows[:, : window.height, window.col : window.col + window.width]
            window = next(waiting, None)


def _bands(pieces: Iterable[Piece], width: int) -> Iterator[tuple[int, Tensor]]:
    """First row and logits (K, h, width) of each row of pieces."""
    parts: list[Tensor] = []
    for piece in pieces:
        parts.append(piece.logits)
        if piece.window.col + piece.window.width == width:
            yield piece.window.row, torch.cat(parts, dim=2)
            parts = []
