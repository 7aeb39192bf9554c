"""Scenes: a map of any size from windows, in memory that doesn't grow with the scene.

The calling thread runs the model on tiles, and another makes row bands of what is complete, a step behind; tiles are
read by a third, a step ahead, where that is mostly waiting. Held at any time are a few tiles, the strips in which tiles
overlap, and two bands of the finished maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datamodules import Normalisation
from datamodules.batch import IGNORE, Window
from datamodules.paths import is_remote
from datamodules.raster import Grid as Ground
from datamodules.raster import Pool, read_resampled, read_window
from datamodules.scenes import Scene
from visionsft.evaluation.metrics import predict_classes
from visionsft.memory import limit_growth
from visionsft.prediction.blending import Blender, Grid

CHUNK = 32_000
"""Pixels of a piece that are reduced at a time: few enough for torch to do it in one thread. With more it would wait,
operation by operation, for the cores that the model is using."""
FULL = 254
"""Stands for 1.0 in maps of probabilities, confidence and entropy; 255 is nodata."""

CACHE_BYTES = 128 * 2**20
"""GDAL's, for the blocks that neighbouring tiles share: all those of a tile (measured: 64 MB read a tenth slower)."""

Item = TypeVar("Item")
Run = Callable[[Tensor], Tensor]
"""image (B, C, H, W) float32, normalised -> logits (B, K, H, W)."""


class Source(Protocol):
    """Where tiles come from; read by one thread."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the map."""

    @property
    def waits(self) -> bool:
        """Whether a tile is better read while the model is busy with the one before it; see `waiting`."""

    def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """image (C, h', w') float32, normalised, at the model's resolution; valid (h, w) bool, of the window."""


class SceneSource:
    """Tiles of a GeoTIFF, on its own pixels whatever the model's resolution."""

    def __init__(self, scene: Scene, normalisation: Normalisation) -> None:
        self.scene = scene
        self.normalisation = normalisation
        self._pool = Pool()

    @property
    def shape(self) -> tuple[int, int]:
        ground = self.scene.header.grid
        return ground.height, ground.width

    @property
    def waits(self) -> bool:
        return waiting(self.scene.header.path)

    @property
    def step(self) -> float:
        """Side of the model's pixels in the scene's."""
        return _pixel(self.scene.grid) / _pixel(self.scene.header.grid)

    def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        scene, file = self.scene, self._pool.file(self.scene.header.path)
        options = {"bands": scene.bands, "nodata": scene.nodata, "masked": scene.header.masked}
        # the heap has room that the model needs only later; pages new from the system cost a twentieth of a tile
        room = np.empty((len(scene.bands), window.height, window.width), scene.header.dtype)
        own = read_window(file, window, **options, out=room)  # type: ignore[arg-type]
        if scene.grid is scene.header.grid or not own.valid.any():
            return self.normalisation(own.values, own.valid), own.valid
        # a grid of its own for each tile, so that tile and window share their upper left corner
        shape = (window.height, window.width)
        ground = Ground(*shape, own.transform, own.crs).at_resolution(_pixel(scene.grid))
        seen = read_resampled(file, ground, ground.window, **options)  # type: ignore[arg-type]
        return self.normalisation(seen.values, seen.valid), own.valid


class ArraySource:
    """Tiles of an image in memory."""

    waits = False

    def __init__(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """image: (C, H, W) normalised; valid: (H, W)."""
        self.image = image
        self.valid = valid

    @property
    def shape(self) -> tuple[int, int]:
        return self.valid.shape[0], self.valid.shape[1]

    def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        inside = np.s_[window.row : window.row + window.height, window.col : window.col + window.width]
        return self.image[:, *inside], self.valid[inside]


def _pixel(grid: Ground) -> float:
    """Side of a pixel in units of the CRS."""
    return float(np.hypot(grid.transform.a, grid.transform.d))


# --------------------------------------------------------------------------------------------------- pieces


@dataclass(frozen=True)
class Piece:
    """A finished rectangle of the scene."""

    window: Window
    logits: Tensor
    """(K, h, w) float32; arbitrary where not valid."""
    valid: NDArray[np.bool_]
    """(h, w)."""


@dataclass(frozen=True)
class Tile:
    """What the model is given of a scene."""

    place: tuple[int, int]
    image: Tensor | None
    """(C, h', w') float32; None where no pixel is valid."""
    valid: NDArray[np.bool_]
    """(h, w)."""
    size: tuple[int, int]
    """(h, w) of the image without its padding: the window, at the model's resolution."""

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the image for one of the window, down and across: a scene's pixels may not be square."""
        return self.size[0] / self.valid.shape[0], self.size[1] / self.valid.shape[1]


def blend_tiles(
    source: Source,
    run: Run,
    grid: Grid,
    *,
    num_classes: int,
    batch: int = 1,
    first: int = 0,
    last: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Piece]:
    """The scene in finished pieces, row by row of the grid, from row `first` to before row `last`.

    device: where the logits of `run` are, and the pieces'.
    Tiles without a valid pixel aren't computed. Any range of rows gives the very values that they have in the
    whole: the row of tiles above the first is computed too, for what it shares with it.
    """
    last = grid.rows.count if last is None else last
    groups = (
        [(row, col) for col in range(start, min(start + batch, grid.cols.count))]
        for row in range(max(first - 1, 0) if first < last else last, last)
        for start in range(0, grid.cols.count, batch)  # within a row, so that ranges don't change the batches
    )
    blender = Blender(grid)
    for tiles in read_groups(source, grid, groups):
        for tile, logits in zip(tiles, _infer(tiles, run, grid, num_classes, device), strict=True):
            own, seen = grid.own(*tile.place), grid.window(*tile.place)
            complete = blender.add(*tile.place, logits[:, : seen.height, : seen.width])
            if tile.place[0] >= first:
                yield Piece(own, complete, tile.valid[: own.height, : own.width])
            del tile, logits, complete  # before the next ones are there
        del tiles


def in_tiles(
    run: Run, image: Tensor, grid: Grid, *, num_classes: int, device: torch.device | str = "cpu"
) -> Tensor:
    """image (B, C, H, W) -> logits (B, K, H, W): `run` on tiles of each image in memory, blended.

    device: where the logits of `run` are, and the result.
    """
    logits = torch.empty(len(image), num_classes, *image.shape[2:], device=device)
    for pixels, found in zip(image.cpu().numpy(), logits, strict=True):
        source = ArraySource(pixels, np.ones(pixels.shape[1:], bool))
        for piece in blend_tiles(source, run, grid, num_classes=num_classes, device=device):
            own = piece.window
            found[:, own.row : own.row + own.height, own.col : own.col + own.width] = piece.logits
    return logits


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each made by another thread while the one before it is used."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = worker.submit(next, iterator, end)
            yield cast(Item, item)


def waiting(path: str) -> bool:
    """Whether reading a file is mostly waiting, or leaves cores idle that the model doesn't need.

    A model on the CPU has use for all of them, and stops at every operation for the one that a reader takes from it.
    Reading in turn, with all cores, is faster then (a detector on two cores: by 5 %).
    """
    return is_remote(path) or torch.accelerator.is_available()


def read_groups(
    source: Source, grid: Grid, groups: Iterable[Sequence[tuple[int, int]]]
) -> Iterator[list[Tile]]:
    """The tiles of each group of places, read ahead where that is faster."""
    tiles = _read_groups(source, grid, groups)
    return ahead(tiles) if source.waits else tiles


def _read_groups(
    source: Source, grid: Grid, groups: Iterable[Sequence[tuple[int, int]]]
) -> Iterator[list[Tile]]:
    """Between groups the process is kept from growing, once a model has computed one of them: has taken its memory."""
    usual: int | None = None
    given, wanted = 0, 2 if source.waits else 1  # read ahead, a second one is begun while the first is computed
    for group in groups:
        if given >= wanted:
            usual = limit_growth(usual)
        tiles = read_tiles(source, grid, group)
        given += any(tile.image is not None for tile in tiles)
        yield tiles
        del tiles  # before the next ones are there


def first_tile(source: Source, grid: Grid) -> Tensor | None:
    """(1, C, h, w) float32: the first tile with a valid pixel, as the model will see it; None if there is none."""
    images = (read_tiles(source, grid, [place])[0].image for place in grid)
    found = next((image for image in images if image is not None), None)
    return None if found is None else found[None]


def read_tiles(source: Source, grid: Grid, places: Iterable[tuple[int, int]]) -> list[Tile]:
    """Tiles, all padded with zeros to one size, so that a compiled model sees one shape only."""
    tiles = []
    for place in places:
        window = grid.window(*place)
        image, valid = source.read(window)
        tile, tensor = Tile(place, None, valid, (image.shape[1], image.shape[2])), None
        if valid.any():
            tensor = torch.from_numpy(image)
            tall, wide = (
                max(own, round(side * scale))
                for own, side, scale in zip(tile.size, grid.tile, tile.scale, strict=True)
            )
            if (tall, wide) != image.shape[1:]:
                tensor = F.pad(tensor, (0, wide - image.shape[2], 0, tall - image.shape[1]))
        tiles.append(replace(tile, image=tensor))
    return tiles


def _infer(
    tiles: Sequence[Tile], run: Run, grid: Grid, num_classes: int, device: torch.device | str
) -> Iterator[Tensor]:
    """(K, *grid.tile) float32 of each tile; zeros where none of it is valid."""
    images = [tile.image for tile in tiles if tile.image is not None]
    found = iter(run(images[0][None] if len(images) == 1 else torch.stack(images)) if images else ())
    for tile in tiles:
        if tile.image is None:
            yield torch.zeros(num_classes, *grid.tile, device=device)
            continue
        logits = next(found).float()
        yield logits if logits.shape[1:] == grid.tile else _to_window(logits, grid.tile, tile.scale)


def _to_window(logits: Tensor, size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    """logits (K, h', w') at the model's resolution -> (K, *size) on the window's pixels; same upper left corner."""
    covered = (logits.shape[1] / scale[0], logits.shape[2] / scale[1])
    return resample(logits[None], size, covered=covered, mode="bilinear")[0]


def resample(maps: Tensor, size: tuple[int, int], *, covered: tuple[float, float], mode: str) -> Tensor:
    """maps: (1, K, h, w) float, of which `covered` (height, width) is the extent in pixels of the result
    -> (1, K, *size). Both start at the same upper left corner; beyond the maps their edge is repeated."""
    rows, cols = (2 * own / extent for own, extent in zip(size, covered, strict=True))  # grid_sample's -1..1
    theta = torch.tensor([[[cols / 2, 0, cols / 2 - 1], [0, rows / 2, rows / 2 - 1]]], device=maps.device)
    grid = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    return F.grid_sample(maps, grid, mode=mode, padding_mode="border", align_corners=False)


# ---------------------------------------------------------------------------------------------------- bands


@dataclass(frozen=True)
class Layer:
    """A kind of map: what it says of each pixel, as uint8 with 255 for nodata."""

    name: str
    count: int
    """Bands."""
    reduce: Callable[[Tensor], Tensor]
    """logits (K, h, w) float32 -> (count, h, w) uint8."""


@dataclass(frozen=True)
class Band:
    """Finished rows of the scene, from edge to edge."""

    row: int
    """First of the rows in the scene."""
    maps: dict[str, NDArray[np.uint8]]
    """(count, h, W) of each layer by its name; 255 where nothing was measured."""

    @property
    def classes(self) -> NDArray[np.uint8]:
        """(h, W) class indices."""
        return self.maps["classes"][0]


LAYERS = ("classes", "probability", "confidence", "entropy")


def make_layers(
    names: Sequence[str],
    *,
    num_classes: int,
    temperature: float = 1.0,
    decide: Callable[[Tensor], Tensor] = predict_classes,
) -> tuple[Layer, ...]:
    """Layers by name, each 0..254 for 0..1 where it isn't a class index.

    classes: what `decide` makes of logits (1, K, h, w).

    probability: of every class, the softmax of the logits divided by `temperature`. confidence: the highest of
    them. entropy: of all of them, divided by the logarithm of their number.
    """

    def softmax(logits: Tensor) -> Tensor:
        return (logits / temperature).softmax(0)

    def entropy(logits: Tensor) -> Tensor:
        p = softmax(logits)
        return torch.special.entr(p).sum(0, keepdim=True) / np.log(max(num_classes, 2))

    known = {
        "classes": Layer("classes", 1, lambda logits: decide(logits[None])),
        "probability": Layer("probability", num_classes, lambda logits: _scaled(softmax(logits))),
        "confidence": Layer("confidence", 1, lambda logits: _scaled(softmax(logits).amax(0, keepdim=True))),
        "entropy": Layer("entropy", 1, lambda logits: _scaled(entropy(logits))),
    }
    return tuple(known[name] for name in names)


def _scaled(share: Tensor) -> Tensor:
    return (share * FULL).round_().clamp_(0, FULL).to(torch.uint8)


def row_bands(pieces: Iterable[Piece], layers: Sequence[Layer], *, width: int) -> Iterator[Band]:
    """Pieces, as `blend_tiles` gives them, as rows of finished maps.

    They are computed in the calling thread: what the main one frees glibc keeps best, see `visionsft.memory`. Another
    makes maps of each while the next is computed.
    """
    band: Band | None = None
    finished: Band | None = None
    filling: Future[None] | None = None
    with ThreadPoolExecutor(1) as worker:
        for piece in pieces:
            if filling is not None:
                filling.result()
            if finished is not None:
                yield finished
                finished = None
            window = piece.window
            if band is None:
                shape = (window.height, width)
                band = Band(
                    window.row, {layer.name: np.empty((layer.count, *shape), np.uint8) for layer in layers}
                )
            filling = worker.submit(_fill, band, piece, layers)
            del piece  # its logits go once they are maps
            if window.col + window.width == width:
                finished, band = band, None
        if filling is not None:
            filling.result()
        if finished is not None:
            yield finished


def _fill(band: Band, piece: Piece, layers: Sequence[Layer]) -> None:
    """Write the piece's part of the band."""
    window = piece.window
    step = max(1, CHUNK // window.width)
    for layer in layers:
        part = band.maps[layer.name][:, :, window.col : window.col + window.width]
        for top in range(0, window.height, step):
            rows = slice(top, top + step)
            part[:, rows] = layer.reduce(piece.logits[:, rows]).cpu().numpy()
        if not piece.valid.all():
            part[:, ~piece.valid] = IGNORE
