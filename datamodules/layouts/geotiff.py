"""GeoTIFF scenes: image rasters and the label rasters that bear their names."""

from __future__ import annotations

from pathlib import Path

from datamodules.layouts import Listing, pairs


def scan(root: Path, *, images: str, labels: str, folder: str | None = None) -> Listing:
    """Every scene below `root` with its label raster; a scene is its own group.

    images: glob, e.g. ``{split}/images/*.tif``; labels: path of a label raster with ``{name}``, the
    scene's stem, e.g. ``{split}/labels/{name}.tif``; folder: what ``{split}`` stands for, None: all.
    """
    return pairs.scan(root, images=images, labels=labels, folder=folder)
