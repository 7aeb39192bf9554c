"""Slicing: the detections of an image or scene of any size, from overlapping tiles.

One thread reads tiles while the detector looks at those before them; what it finds is merged row by row
(`visionsft.prediction.merging`). Held at any time are two batches of tiles and what was found near the tiles to come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from affine import Affine
from numpy.typing import NDArray
from rasterio import features
from torch import Tensor

from datamodules import Normalisation
from datamodules.batch import Window
from datamodules.geotiff import Scene
from datamodules.raster import read_header
from visionsft.errors import ConfigError
from visionsft.models.detections import Detections
from visionsft.prediction.blending import Grid
from visionsft.prediction.merging import Merging, Parts, find_cuts, merge_tiles
from visionsft.prediction.scenes import (
    CACHE_BYTES,
    ArraySource,
    SceneSource,
    Source,
    Tile,
    read_groups,
    read_tiles,
)
from visionsft.prediction.tiling import batch_size, lay_tiles

SIDE, OVERLAP = 2688 + 128, 128
"""Of tiles, in pixels, where nothing else is said."""
REQUIRED = ("boxes", "scores", "labels")
"""Fields that all detections have."""
INSIDE = 0.5
"""Probability from which on a pixel belongs to an object."""


class Detector(Protocol):
    """Finds objects."""

    def detect(self, image: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
        """image: (B, C, H, W) float32, normalised, padded at the right and below; sizes: (height, width) of each
        without its padding."""


@dataclass(frozen=True)
class Slices:
    """How an image is cut and put together again."""

    tile: int | None = None
    """Side, in the model's pixels; None: 2816."""
    overlap: int | None = None
    """In the model's pixels: no less than an object usually has. Larger ones are put together from their parts, but
    no tile saw them whole. None: 128, or a quarter of a smaller tile; at most half of a tile."""
    multiple: int = 1
    """Tiles begin at a multiple of this: a detector's coarsest stride, so that all tiles show it an object alike."""
    batch: int | None = None
    """Tiles that the detector sees at once; None: as many as have 512 x 512 pixels together."""
    score: float = 0.0
    """Less certain detections are left out."""
    merging: Merging = Merging()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ConfigError(f"score is {self.score:g}; allowed: 0 to 1")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch is {self.batch}; allowed: 1 or more")

    def plan(self, shape: tuple[int, int], *, step: float = 1.0) -> Grid:
        """The tiles over (H, W) pixels. step: side of the model's pixels in these."""
        side = SIDE if self.tile is None else self.tile
        overlap = min(OVERLAP, side // 4) if self.overlap is None else self.overlap
        return lay_tiles(shape, side=side, overlap=overlap, multiple=self.multiple, step=step)


@dataclass(frozen=True)
class SceneDetections(Detections):
    """Found objects of a scene: outlines stand in for masks, which would be as large as the scene."""

    outlines: NDArray[np.object_] | None = None
    """(N,) shapely polygons in pixels; None for plain detectors."""

    def take(self, index: Tensor) -> SceneDetections:
        """Those of these indices, or where a mask (N,) is True."""
        turned = None if self.turned is None else self.turned[index]
        outlines = None if self.outlines is None else self.outlines[index.cpu().numpy()]
        return SceneDetections(
            self.boxes[index], self.scores[index], self.labels[index], turned=turned, outlines=outlines
        )


def detect_scene(
    detector: Detector,
    path: str | Path,
    *,
    normalisation: Normalisation,
    bands: Sequence[str] | None = None,
    slices: Slices = Slices(),
) -> Iterator[SceneDetections]:
    """What a GeoTIFF shows, in bands from top to bottom, in its pixels; see `detect_tiles`.

    bands: names of those that the detector sees, in its order; default: all.
    """
    header = read_header(path)
    chosen = header.indexes if bands is None else header.select(bands)
    scene = Scene(header=header, grid=header.grid, bands=chosen, nodata=header.nodata)
    source = SceneSource(scene, normalisation)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        yield from detect_tiles(detector, source, slices.plan(source.shape), slices)


def detect_image(
    detector: Detector,
    image: Tensor,
    *,
    valid: Tensor | None = None,
    slices: Slices = Slices(),
) -> SceneDetections:
    """What an image in memory shows, the most certain first.

    image: (C, H, W) float32, normalised; valid: (H, W) bool.
    """
    shape = (image.shape[1], image.shape[2])
    measured = np.ones(shape, bool) if valid is None else valid.cpu().numpy()
    source = ArraySource(image.cpu().numpy(), measured)
    return join_bands(detect_tiles(detector, source, slices.plan(shape), slices))


def detect_images(
    detector: Detector,
    images: Iterable[tuple[Tensor, Tensor]],
    *,
    slices: Slices = Slices(),
    batch: int = 4,
) -> Iterator[SceneDetections]:
    """What each of many images shows, in their order; those of one tile `batch` at a time, larger ones sliced.

    images: (C, H, W) float32, normalised, and valid (H, W) bool.
    """
    waiting: list[tuple[Tile, Grid]] = []
    for image, valid in images:
        source = ArraySource(image.cpu().numpy(), valid.cpu().numpy())
        grid = slices.plan(source.shape)
        small = (grid.rows.count, grid.cols.count) == (1, 1)
        if small:
            waiting += [(tile, grid) for tile in read_tiles(source, grid, [(0, 0)])]
        if len(waiting) == batch or not small:
            yield from _look(detector, waiting, slices)
            waiting = []
        if not small:
            yield join_bands(detect_tiles(detector, source, grid, slices))
    yield from _look(detector, waiting, slices)


def _look(
    detector: Detector, images: Sequence[tuple[Tile, Grid]], slices: Slices
) -> Iterator[SceneDetections]:
    """Of images of one tile each."""
    found = iter(_detect(detector, [tile for tile, _ in images]))
    for tile, grid in images:
        parts = Parts.none() if tile.image is None else _to_parts(next(found), tile, grid, slices.score)
        yield from map(_finished, merge_tiles([(tile.place, parts)], grid, slices.merging))


def detect_tiles(
    detector: Detector, source: Source, grid: Grid, slices: Slices = Slices()
) -> Iterator[SceneDetections]:  # fmt: skip
    """Detections of the source's pixels, a band for each row of tiles.

    A band holds what no later tile can change, the most certain first. The bands are the same whatever the batch.
    Tiles without a valid pixel aren't computed.
    """
    for parts in merge_tiles(_found(detector, source, grid, slices), grid, slices.merging):
        yield _finished(parts)


def join_bands(bands: Iterator[SceneDetections]) -> SceneDetections:
    """All of them as one, the most certain first."""
    found = [band for band in bands if len(band)]
    if not found:
        return _finished(Parts.none())
    turned = None if found[0].turned is None else torch.cat([each.turned for each in found])  # type: ignore[misc]
    outlines = None if found[0].outlines is None else np.concatenate([each.outlines for each in found])  # type: ignore[misc]
    boxes, scores, labels = (torch.cat([getattr(each, name) for each in found]) for name in REQUIRED)
    joined = SceneDetections(boxes, scores, labels, turned=turned, outlines=outlines)
    return joined.take(joined.scores.argsort(descending=True, stable=True))


def _found(
    detector: Detector, source: Source, grid: Grid, slices: Slices
) -> Iterator[tuple[tuple[int, int], Parts]]:
    """What each tile shows, in the grid's order."""
    places, size = list(grid), slices.batch or batch_size(grid)
    groups = (places[start : start + size] for start in range(0, len(places), size))
    for tiles in read_groups(source, grid, groups):
        seen = iter(_detect(detector, tiles))
        found = [
            (tile.place, Parts.none() if tile.image is None else _to_parts(next(seen), tile, grid, slices.score))
            for tile in tiles
        ]
        del tiles  # or they would still be here while others are read: two batches are enough
        yield from found


def _detect(detector: Detector, tiles: Sequence[Tile]) -> list[Detections]:
    """Of the tiles that show anything."""
    seen = [(tile.image, tile.size) for tile in tiles if tile.image is not None]
    if not seen:
        return []
    # tiles at the edge of a resampled scene may be a pixel larger or smaller
    tall, wide = (max(image.shape[axis] for image, _ in seen) for axis in (1, 2))
    images = [
        image
        if image.shape[1:] == (tall, wide)  # F.pad would copy it
        else F.pad(image, (0, wide - image.shape[2], 0, tall - image.shape[1]))
        for image, _ in seen
    ]
    batch = images[0][None] if len(images) == 1 else torch.stack(images)  # large tiles aren't copied
    with torch.inference_mode():
        found = detector.detect(batch, [size for _, size in seen])
    return [each.cpu() for each in found]


def _to_parts(found: Detections, tile: Tile, grid: Grid, score: float) -> Parts:
    """On the scene's pixels, inside the tile; without boxes that lie in its padding."""
    window = grid.window(*tile.place)
    scale = np.array([window.width / tile.size[1], window.height / tile.size[0]])
    edges = (window.col, window.row, window.col + window.width, window.row + window.height)
    own = np.tile(scale, 2) * found.boxes.double().numpy() + np.tile(edges[:2], 2)
    boxes = own.clip(np.tile(edges[:2], 2), np.tile(edges[2:], 2))
    real = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    kept = real & (found.scores.numpy() >= score)
    found, boxes = found.take(torch.from_numpy(kept)), boxes[kept]
    return Parts(
        boxes=boxes,
        scores=found.scores.double().numpy(),
        labels=found.labels.numpy(),
        cut=find_cuts(boxes, edges, grid.shape),
        tiles=np.tile(np.array(tile.place, np.int64), (len(boxes), 1)),
        turned=None if found.turned is None else _turned(found.turned, scale, window),
        outlines=None if found.masks is None else _outlines(found.masks, found.boxes, scale, window),
    )


def _turned(turned: Tensor, scale: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """(N, 5) on the scene's pixels."""
    own = scale_turned(turned, *scale.tolist()).double().numpy()
    own[:, :2] += window.col, window.row
    return own


def scale_turned(turned: Tensor, across: float, down: float) -> Tensor:
    """Turned boxes (N, 5) of an image whose width and height are multiplied by these numbers.

    Where the two differ the box becomes a parallelogram: kept are its sides' lengths and the direction of w.
    """
    x, y, w, h, angle = turned.unbind(1)
    cos, sin = angle.cos(), angle.sin()
    new = torch.atan2(down * sin, across * cos)
    sides = w * torch.hypot(across * cos, down * sin), h * torch.hypot(across * sin, down * cos)
    return torch.stack([x * across, y * down, *sides, (new + torch.pi / 2) % torch.pi - torch.pi / 2], dim=1)


def _outlines(
    masks: Tensor, boxes: Tensor, scale: NDArray[np.float64], window: Window
) -> NDArray[np.object_]:
    """(N,) shapely polygons around the pixels inside; masks: (N, H, W), boxes: (N, 4) on the tile's pixels."""
    import shapely
    from shapely.geometry import shape

    place = Affine.translation(window.col, window.row) * Affine.scale(*scale)
    outlines = np.empty(len(masks), object)
    for index, (mask, box) in enumerate(zip(masks, boxes.tolist(), strict=True)):
        left, top = (max(0, int(side) - 1) for side in box[:2])
        inside = (mask[top : int(box[3]) + 2, left : int(box[2]) + 2] >= INSIDE).numpy().astype(np.uint8)
        found = features.shapes(inside, inside > 0, transform=place * Affine.translation(left, top))
        # pixels that touch at a corner only make two polygons
        outlines[index] = shapely.union_all([shape(each) for each, _ in found])
    return outlines


def _finished(parts: Parts) -> SceneDetections:
    turned = None if parts.turned is None else torch.from_numpy(parts.turned).float()
    return SceneDetections(
        torch.from_numpy(parts.boxes).float(),
        torch.from_numpy(parts.scores).float(),
        torch.from_numpy(parts.labels),
        turned=turned,
        outlines=parts.outlines,
    )
