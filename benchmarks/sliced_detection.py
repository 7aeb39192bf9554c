"""Sliced detection: how much of the bare detector's speed is left, and how memory grows, from file to finished layer.

    python benchmarks/sliced_detection.py [--quick] [--scene FILE] [--densities 50 1000]

A landscape of 8192 x 8192 x 4 uint16 (deflate, 512 tiles) is searched as `visionsft predict` does it, by
`tf_efficientnet_lite0` with the fcos head as it is by default and 3 classes. The bound is the same detector as it was
trained, its suppression within a tile included, in the same precision on tiles of the same size and number that lie
in memory, each pixel counted once; ours folds it, reads, merges and writes a GeoPackage. `of_folded` is what is left
of the speed of the folded one. They take turns; figures are medians of the rounds, by the clock and in CPU seconds,
which other processes disturb less.

Weights are random, so the last layer is set such that a tile (2816 x 2816 pixels) shows a given number of
objects above the score that is written, and several times as many less certain ones. The first density is a common
one, the second that of a town's cars or of trees.

Merging alone: seconds for scenes of ever more objects, 1000 a tile, a fifth of them seen by two tiles.
Memory: peak resident memory of a process that predicts scenes of 8,192 columns with a detector that costs next to
nothing and finds 200 objects a tile, less that of the same process after the detector has seen one tile in memory.
It is that of two tiles and of reading one; tiles are as high as divides the scene evenly, and never larger than 2816.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rasterio
import torch
import torchvision
from rasterio.transform import from_origin
from scene_prediction import BANDS, as_loaded, make_mosaic, peak
from torch import Tensor, nn

from backbones import accelerate_depthwise, create_backbone
from datamodules import ClassSpec, GeoTiffDataModule, Normalisation
from visionsft.models import create_detector
from visionsft.models.detections import Detections
from visionsft.models.inference import run_model
from visionsft.prediction.detections import DetectionOptions, SceneDetectionPredictor
from visionsft.prediction.merging import Parts, find_cuts, merge_tiles
from visionsft.prediction.scenes import read_tiles
from visionsft.prediction.slicing import Slices
from visionsft.prediction.tiling import batch_size
from visionsft.preparation.landscapes import landscape
from visionsft.training.precision import resolve

NAME, CLASSES = "tf_efficientnet_lite0", 3
DENSITIES = (50, 1000)
SCORE = DetectionOptions().score
SPREAD = 1.5
"""Standard deviation that the class logits are given; those of trained heads have 1 to 2."""
STUB_OBJECTS = 200


class Stub(nn.Module):
    """A detector that costs next to nothing: the same random boxes in each image.

    It waits, so that the next tile is read while it holds one, as with a real detector.
    """

    backbone = SimpleNamespace(strides=(4, 8, 16, 32), geometry=SimpleNamespace(size=None))

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def detect(self, image: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
        time.sleep(1)
        generator = torch.Generator().manual_seed(0)
        shares = torch.rand(STUB_OBJECTS, 2, generator=generator)
        corners = [shares * torch.tensor([width - 20.0, height - 20.0]) for height, width in sizes]
        labels = torch.arange(STUB_OBJECTS) % CLASSES
        scores = torch.linspace(0.99, 0.5, STUB_OBJECTS)
        return [Detections(torch.cat([each, each + 20], 1), scores, labels) for each in corners]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="3072 x 3072, one density, one round; under 50 s"
    )
    parser.add_argument("--scene", type=Path, help="use this file; made if it isn't there")
    parser.add_argument("--densities", nargs="+", type=int, default=list(DENSITIES), help="objects a tile")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, metavar="ROWS", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        side = 3072 if given.quick else 8192
        scene = make_scene(given.scene or Path(folder) / "scene.tif", side)
        if given.memory:
            print(json.dumps(measure_memory(scene, Path(folder), given.memory)))
            return
        densities, rounds = (given.densities[:1], 1) if given.quick else (given.densities, given.rounds)
        speeds: dict[str, dict[str, Any]] = {}
        for density in densities:
            speeds[str(density)] = found = measure_speed(scene, Path(folder), density, rounds=rounds)
            print(f"{density:5} a tile  {found}", flush=True)
        memory = {} if given.quick else peaks(scene)
    merging = {
        str(count): measure_merging(count) for count in ((10_000,) if given.quick else (50_000, 400_000))
    }
    print(f"merging alone, seconds: {merging}", flush=True)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "gdal": rasterio.__gdal_version__,
    }
    report = {
        "of_bound": {key: row["of_bound"] for key, row in speeds.items()},
        "peak_mb": {key: row["mb"] for key, row in memory.items()},
        "detections": {key: row["detections"] for key, row in speeds.items()},
        "speeds": speeds,
        "memory": memory,
        "merging_s": merging,
        "model": NAME,
        "pixels": side * side,
        "threads": torch.get_num_threads(),
        "precision": resolve("auto"),
        "versions": versions,
    }
    print(json.dumps(report))


# ----------------------------------------------------------------------------------------------------- speed


def measure_speed(scene: Path, folder: Path, density: int, *, rounds: int) -> dict[str, Any]:
    """Scene megapixels a second of the bound and of a whole prediction."""
    predictor = make_predictor(make_model(density), folder)
    source = predictor.open(str(scene))
    slices = predictor.usual_slices()
    grid = slices.plan(source.shape)
    pixels = source.shape[0] * source.shape[1]
    size = batch_size(grid)
    tiles = read_tiles(source, grid, list(islice(grid, 3 * size)))
    images, sizes = torch.stack([tile.image for tile in tiles]), [tile.size for tile in tiles]  # type: ignore[misc]
    calibrate(predictor.loaded.model, images[:1], density)

    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    models = {"bound": predictor.loaded.model, "folded": predictor.loaded.folded}
    settings = {"precision": predictor.loaded.precision, "channels_last": predictor.loaded.channels_last}

    def look(model: Any) -> None:
        for part in parts:
            run_model(partial(model.detect, sizes=sizes[part]), model, images[part], **settings)  # type: ignore[arg-type]

    targets = predictor.targets(str(scene), folder / "out")
    said: list[str] = []
    speeds: dict[str, list[tuple[float, float]]] = {"bound": [], "folded": [], "ours": []}
    with torch.inference_mode():
        for model in models.values():
            look(model)
        for _ in range(rounds):
            for name, model in models.items():
                speeds[name].append(timed(partial(look, model), pixels=images[:, 0].numel()))
            speeds["ours"].append(
                timed(lambda: said.append(predictor.predict(str(scene), targets, overwrite=True)), pixels=pixels)
            )

    def share(of: str, kind: int) -> float:
        ratios = (own[kind] / most[kind] for own, most in zip(speeds["ours"], speeds[of], strict=True))
        return round(statistics.median(ratios), 3)

    return {
        "bound_mpx_s": round(statistics.median(clock for clock, _ in speeds["bound"]), 3),
        "mpx_s": round(statistics.median(clock for clock, _ in speeds["ours"]), 3),
        "of_bound": share("bound", 0),
        "of_bound_cpu": share("bound", 1),
        "of_folded": share("folded", 0),
        "of_folded_cpu": share("folded", 1),
        "detections": int(said[0].split()[0]),
        "tile": grid.tile,
        "tiles": grid.rows.count * grid.cols.count,
        "repeated": round(grid.pixels / pixels, 3),
    }


def timed(run: Callable[[], Any], *, pixels: int) -> tuple[float, float]:
    """Megapixels for a second, and for a CPU second."""
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    return pixels / (time.perf_counter() - clock) / 1e6, pixels / (time.process_time() - cpu) / 1e6


def make_model(density: int) -> nn.Module:
    """A detector that may find more in a tile than the density asks for."""
    torch.manual_seed(0)
    net = create_backbone(NAME, weights="none", in_chans=len(BANDS))
    limit = max(100, 2 * density)
    model = create_detector(net, CLASSES, options={"detections_per_image": limit})
    accelerate_depthwise(model)
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def calibrate(model: Any, image: Tensor, density: int) -> None:
    """Scales and moves the class logits, until the image (1, C, H, W) shows `density` objects."""
    head, size = model.head, tuple(image.shape[2:])
    last = head.detector.head.classification_head.cls_logits
    outputs, levels = head.predict(model.features(image.contiguous(memory_format=torch.channels_last)))
    logits = outputs["cls_logits"] - last.bias[0]
    scale = SPREAD / logits.std()
    low, high = -20.0, 0.0
    for _ in range(12):
        bias = (low + high) / 2
        outputs["cls_logits"] = logits * scale + bias
        split = {name: each.split(list(map(len, levels)), dim=1) for name, each in outputs.items()}
        found = head.detector.postprocess_detections(split, [levels], [size])[0]
        many = int((found["scores"] >= SCORE).sum()) > density
        low, high = (low, bias) if many else (bias, high)
    last.weight *= scale
    last.bias.fill_(low)


# --------------------------------------------------------------------------------------------------- merging


def measure_merging(count: int) -> float:
    """Seconds to merge this many objects in tiles of 1000."""
    side, overlap = 2048, 200
    across = round((count / 1000) ** 0.5)
    length = across * (side - overlap) + overlap
    grid = Slices(tile=side, overlap=overlap).plan((length, length))
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, length - 20, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 20, (count, 2))], axis=1)
    parts = [(place, _seen(boxes, grid.window(*place), place, grid.shape)) for place in grid]
    started = time.perf_counter()
    found = sum(len(each) for each in merge_tiles(iter(parts), grid))
    assert 0.9 * count < found <= count, f"{found} of {count} objects are left"
    return round(time.perf_counter() - started, 2)


def _seen(boxes: Any, window: Any, place: tuple[int, int], shape: tuple[int, int]) -> Parts:
    """What a tile shows of the objects."""
    edges = (window.col, window.row, window.col + window.width, window.row + window.height)
    low, high = np.tile(edges[:2], 2), np.tile(edges[2:], 2)
    own = boxes.clip(low, high)
    own = own[(own[:, 2:] > own[:, :2]).all(1)]
    return Parts(
        own, np.linspace(0.9, 0.4, len(own)), np.arange(len(own)) * 0, find_cuts(own, edges, shape),
        np.tile(np.array(place), (len(own), 1)),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- memory


def peaks(scene: Path) -> dict[str, dict[str, Any]]:
    """Megabytes over the detector's own and the tiles' size, by scene size, each in a process of its own."""
    found = {}
    for rows in (4096, 8192, 32768):
        command = [sys.executable, __file__, "--scene", str(scene), "--memory", str(rows)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        found[f"{rows} x 8192"] = one = json.loads(answer.stdout.splitlines()[-1])
        print(f"{rows} x 8192: {one}", flush=True)
    return found


def measure_memory(scene: Path, folder: Path, rows: int) -> dict[str, Any]:
    """Peak of predicting the scene over the peak of the detector on one tile in memory, in MB."""
    path = make_mosaic(scene, folder, rows, 8192)
    predictor = make_predictor(Stub().eval().requires_grad_(False), folder)
    grid = predictor.usual_slices().plan(predictor.open(str(path)).shape)
    predictor.detector.detect(torch.zeros(1, len(BANDS), *grid.tile), [grid.tile])
    before = peak()
    predictor.predict(str(path), predictor.targets(str(path), folder / "out"), overwrite=True)
    return {"mb": round(peak() - before, 1), "tile": grid.tile}


# ------------------------------------------------------------------------------------------------------ data


def make_predictor(model: nn.Module, folder: Path) -> SceneDetectionPredictor:
    """As from a trained run."""
    specs = [ClassSpec(f"class {i}", (i,)) for i in range(CLASSES)]
    data = GeoTiffDataModule(folder, classes=specs, normalise="data")
    data.bands, data.dtype = BANDS, np.dtype(np.uint16)
    data.normalisation = Normalisation((700.0, 900.0, 900.0, 2300.0), (350.0, 400.0, 500.0, 900.0))
    return SceneDetectionPredictor(as_loaded(model, data))


def make_scene(path: Path, side: int) -> Path:
    """A landscape, mirrored over and over until it is large enough."""
    if path.is_file():
        return path
    size = 512
    image = landscape(np.random.default_rng(0), size=size, swath_edge=False, holes=False).image[: len(BANDS)]
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=len(BANDS), dtype="uint16", crs="EPSG:32633",
        transform=from_origin(500_000, 5_500_000, 10, 10), compress="deflate", tiled=True, blockxsize=512,
        blockysize=512,
    ) as file:  # fmt: skip
        for index, band in enumerate(BANDS, start=1):
            file.set_band_description(index, band)
        for row, col in _places(side, size):
            mirrored = image[:, :: -1 if row % (2 * size) else 1, :: -1 if col % (2 * size) else 1]
            file.write(mirrored, window=rasterio.windows.Window(col, row, size, size))
    return path


def _places(side: int, size: int) -> Iterator[tuple[int, int]]:
    return ((row, col) for row in range(0, side, size) for col in range(0, side, size))


if __name__ == "__main__":
    main()
