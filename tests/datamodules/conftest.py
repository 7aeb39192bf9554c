"""Fixtures of the data tests: small georeferenced rasters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import settings
from rasterio.transform import from_origin

settings.register_profile("steady", deadline=None)  # a busy machine is no failure
settings.load_profile("steady")

WriteRaster = Callable[..., Path]


@pytest.fixture
def write_raster() -> WriteRaster:
    """Writes an array (C, H, W) or (H, W) as a GeoTIFF, by default with 10 m pixels in UTM 33N."""

    def write(
        path: Path,
        array: np.ndarray,
        *,
        crs: str | None = "EPSG:32633",
        west: float = 500_000.0,
        north: float = 5_400_000.0,
        pixel: float = 10.0,
        names: tuple[str, ...] = (),
        mask: np.ndarray | None = None,
        **profile: Any,
    ) -> Path:
        array = array if array.ndim == 3 else array[None]
        path.parent.mkdir(parents=True, exist_ok=True)
        place = {} if crs is None else {"crs": crs, "transform": from_origin(west, north, pixel, pixel)}
        shape = {"count": array.shape[0], "height": array.shape[1], "width": array.shape[2]}
        with rasterio.open(path, "w", driver="GTiff", dtype=array.dtype, **shape, **place, **profile) as file:
            file.write(array)
            for index, name in enumerate(names, start=1):
                file.set_band_description(index, name)
            if mask is not None:
                file.write_mask(mask)
        return path

    return write
