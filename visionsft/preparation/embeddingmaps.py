"""Embedding maps: a scene's dense features as a Cloud-Optimised GeoTIFF with a band for each number.

Tiles overlap and are blended as predictions are (`visionsft.prediction.blending`), in positions of the map. Rows of
tiles are written to plain bytes beside the target as they are finished, which GDAL then turns into the GeoTIFF.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.sax.saxutils import escape

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray

from datamodules import DataError
from datamodules.batch import Window
from datamodules.raster import Grid as Ground
from visionsft.errors import ConfigError
from visionsft.evaluation.answers import RegionSource
from visionsft.files import disk_trouble
from visionsft.prediction.blending import Blender, Grid, plan_grid
from visionsft.prediction.maps import write_cog
from visionsft.prediction.scenes import ahead
from visionsft.preparation.embedding import Embedded, Encoder, has_cells, open_scene, valid_share
from visionsft.preparation.embeddingfiles import MARK

SIDE = 256
"""Of a tile, in pixels, at least; larger chips of the training have larger tiles."""


def write_map(encoder: Encoder, paths: Sequence[str], out: Path) -> Embedded:
    """The map of one scene; nan where nothing was measured."""
    if not has_cells(encoder.data):
        raise ConfigError(f"{out}: maps are of GeoTIFF scenes; images become rows of .parquet or .npz")
    if len(paths) != 1:
        raise ConfigError(f"{out}: a map is of one scene, {len(paths)} are given; .parquet takes them all")
    source, ground = open_scene(encoder.data, paths[0])
    grid = plan_positions(source.shape, encoder.stride, side=max(SIDE, min(encoder.data.chip)))
    rows, cols = grid.shape
    seen = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as name, disk_trouble(out, temporary=Path(name)):
        folder = Path(name)
        with open(folder / "map.raw", "wb") as file:
            for first, band in _bands(encoder, source, grid):
                for index, plane in enumerate(band):
                    file.seek(4 * cols * (index * rows + first))
                    file.write(np.ascontiguousarray(plane).data)
                seen += int((~np.isnan(band[0])).sum())
        if not seen:
            raise DataError(f"{paths[0]}: has no valid pixel")
        virtual = _virtual("map.raw", (encoder.channels, rows, cols), ground, encoder)
        (folder / "map.vrt").write_text(virtual, encoding="utf-8")
        write_cog(folder / "map.vrt", out, overviews="AVERAGE")
    return Embedded(out, seen, encoder.channels, {}, 0)


def plan_positions(shape: tuple[int, int], stride: int, *, side: int) -> Grid:
    """Tiles of about `side` pixels over a scene (H, W), counted in positions of the map."""
    positions = (-(-shape[0] // stride), -(-shape[1] // stride))
    size = max(4, side // stride)
    return plan_grid(positions, size=size, overlap=size // 4)


def _bands(encoder: Encoder, source: RegionSource, grid: Grid) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """First row and values (D, h, W) of each finished row of tiles."""
    blender, stride = Blender(grid), encoder.stride
    parts: list[NDArray[np.float32]] = []
    for (row, col), (pixels, valid) in ahead(
        (place, source.read(_pixels(grid, place, stride, source.shape))) for place in grid
    ):
        own, seen = grid.own(row, col), grid.window(row, col)
        found = torch.zeros(encoder.channels, seen.height, seen.width)
        if valid.any():
            found = encoder.map(torch.from_numpy(np.ascontiguousarray(pixels))[None])[0]
        share = valid_share(valid, (seen.height, seen.width), stride)[: own.height, : own.width]
        # the blender changes in place and keeps what it was given
        complete = blender.add(row, col, found.clone())[:, : own.height, : own.width].numpy().copy()
        complete[:, share.numpy() == 0] = np.nan
        parts.append(complete)
        if own.col + own.width == grid.shape[1]:
            yield own.row, np.concatenate(parts, axis=2)
            parts = []


def _pixels(grid: Grid, place: tuple[int, int], stride: int, shape: tuple[int, int]) -> Window:
    """What a tile sees of the scene."""
    seen = grid.window(*place)
    row, col = seen.row * stride, seen.col * stride
    return Window(row, col, min(seen.height * stride, shape[0] - row), min(seen.width * stride, shape[1] - col))


def _virtual(raw: str, shape: tuple[int, int, int], ground: Ground, encoder: Encoder) -> str:
    """The VRT that tells GDAL what the bytes are; shape: (D, h, w)."""
    count, rows, cols = shape
    place = "" if ground.crs is None else f"<SRS>{escape(ground.crs.to_wkt())}</SRS>"
    transform = ground.transform * Affine.scale(encoder.stride)
    if ground.transform != Affine.identity():
        place += f"<GeoTransform>{', '.join(map(repr, transform.to_gdal()))}</GeoTransform>"
    told = f'<Metadata><MDI key="{MARK}">{escape(json.dumps(encoder.identity))}</MDI></Metadata>'
    bands = "".join(
        f'<VRTRasterBand dataType="Float32" band="{index + 1}" subClass="VRTRawRasterBand">'
        f"<Description>embedding {index}</Description><NoDataValue>nan</NoDataValue>"
        f'<SourceFilename relativeToVRT="1">{escape(raw)}</SourceFilename>'
        f"<ImageOffset>{4 * rows * cols * index}</ImageOffset><PixelOffset>4</PixelOffset>"
        f"<LineOffset>{4 * cols}</LineOffset></VRTRasterBand>"
        for index in range(count)
    )
    return f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}">{place}{told}{bands}</VRTDataset>'
