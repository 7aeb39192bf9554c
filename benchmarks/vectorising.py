"""Vectorising: polygons of a class map in row bands, beside rasterio.features.shapes on the whole map.

    python benchmarks/vectorising.py [--quick]

The map is like land cover (the largest of six smooth random fields) with 0.4 % of its pixels random; the bound is
GDAL's polygonize as rasterio calls it, which needs the whole map and hands over Python lists: its time is that of
making the polygons, without writing any. Memory is the largest growth of the process's own pages (RssAnon).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio import features
from rasterio.crs import CRS

from visionsft.prediction.vectorising import VectorOptions, open_polygons

CLASSES, BAND, NOISE = 6, 1024, 0.004
CASES = {
    "exact": VectorOptions(),
    "simplify_1.5": VectorOptions(simplify=1.5),
    "min_area_and_fill_10_px": VectorOptions(min_area=1000, fill_holes=1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller map; under 50 s")
    side = 2048 if parser.parse_args().quick else 8192
    classes = land_cover(side)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for case, options in CASES.items():
            figures[case] = vectorise(classes, Path(folder) / f"{case}.fgb", options)
            print(f"{case:24} {figures[case]}", flush=True)
    reference = polygonise(classes)
    print(f"rasterio.features.shapes {reference}")
    versions = {"python": platform.python_version(), "gdal": pyogrio.__gdal_version_string__}
    print(
        json.dumps(
            {
                "size": [side, side],
                "band": BAND,
                "figures": figures,
                "rasterio_shapes": reference,
                "vs_rasterio_shapes": round(reference["cpu_s"] / figures["exact"]["cpu_s"], 2),
                "versions": {**versions, "rasterio": rasterio.__version__, "shapely": shapely.__version__},
            }
        )
    )


def land_cover(side: int) -> NDArray[np.uint8]:
    """(side, side) uint8"""
    rng = np.random.default_rng(1)
    classes, best = np.zeros((side, side), np.uint8), np.full((side, side), -np.inf, np.float32)
    for index in range(CLASSES):
        field = np.zeros((side, side), np.float32)
        for size, weight in ((512, 1.0), (128, 0.6), (32, 0.35), (8, 0.15), (2, 0.06)):
            coarse = rng.standard_normal((side // size + 2, side // size + 2)).astype(np.float32)
            field += weight * cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        classes[field > best] = index
        np.maximum(best, field, out=best)
    noisy = rng.random((side, side), dtype=np.float32) < NOISE
    classes[noisy] = rng.integers(0, CLASSES, int(noisy.sum()))
    return classes


def vectorise(classes: NDArray[np.uint8], path: Path, options: VectorOptions) -> dict[str, float]:
    names = [f"class {index}" for index in range(CLASSES)]
    place, crs = Affine(10, 0, 500_000, 0, -10, 5_000_000), CRS.from_epsg(32633)
    with (
        Watch() as watch,
        open_polygons(path, transform=place, crs=crs, names=names, options=options) as writer,
    ):
        for row in range(0, len(classes), BAND):
            writer.add(row, classes[row : row + BAND])
    polygons = pyogrio.read_info(path)["features"]
    return {**watch.figures, "polygons": polygons, "file_mb": round(path.stat().st_size / 1e6)}


def polygonise(classes: NDArray[np.uint8]) -> dict[str, float]:
    with Watch() as watch:
        polygons = sum(1 for _ in features.shapes(classes, connectivity=4))
    return {**watch.figures, "polygons": polygons}


class Watch:
    """Seconds and memory of a block."""

    figures: dict[str, float]

    def __enter__(self) -> Watch:
        self._before, self._peak, self._done = own_pages(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self._done.set()
        self._thread.join()
        peak_mb = round((self._peak - self._before) / 1e3)
        self.figures = {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_mb": peak_mb}

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._peak = max(self._peak, own_pages())


def own_pages() -> int:
    """Kilobytes in memory that belong to no file (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


if __name__ == "__main__":
    main()
