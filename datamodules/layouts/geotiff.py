"""GeoTIFF scenes: image rasters and the label rasters or vector files that bear their names."""

from __future__ import annotations

from pathlib import Path

from datamodules.labels import is_vector
from datamodules.layouts import Listing, pairs


def scan(root: Path, *, images: str, labels: str, folder: str | None = None) -> Listing:
    """Every scene below `root` with its label file; a scene is its own group.

    images: glob, e.g. ``{split}/images/*.tif``; labels: path of a label raster with ``{name}``, the
    scene's stem, e.g. ``{split}/labels/{name}.tif``, or of a vector file, which may serve several scenes,
    e.g. ``all.gpkg``; folder: what ``{split}`` stands for, None: all.
    """
    return pairs.scan(root, images=images, labels=labels, folder=folder, shared=is_vector(labels))
