"""Speed and memory of training samples from GeoTIFF scenes, beside rasterio and torchgeo in the same run.

    python benchmarks/geotiff_sampling.py [--quick] [--folder DIR] [--peer-python PYTHON]

Four scenes of 8192 x 8192 x 4 uint16 in deflate tiles of 512 with a label raster each, 256 x 256 chips with
mask in batches of 16. All readers do the same and no more: image and mask of a chip as arrays (torchgeo:
tensors), with neither augmentation nor normalisation; what a training sample costs with them is reported
apart ("dataset"). rasterio reads one window at a time from files that stay open. torchgeo's own
RandomGeoSampler runs in the interpreter that --peer-python names (this one by default); where torchgeo
isn't installed there, vs_torchgeo is null. Scenes are made once, below --folder.

Ratios are of chips a second: the median of the repetitions of each reader, which take turns. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterioWindow
from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules import Augment, GeoTiffDataModule
from datamodules.classes import ClassSpec
from datamodules.datasets import TrainingDataset
from datamodules.sampling import EpochSampler, SampleKey
from datamodules.splits import FolderSplit
from datamodules.statistics import Normalisation

# they are only read here
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

CHIP, BATCH = 256, 16
# bytes of unpacked blocks, a process: what visionsft asks for, and rasterio's own default, 5 % of the memory
OWN_CACHE, CACHE = 256 * 2**20, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 20

TORCHGEO = """
import json, sys, time
from pathlib import Path
try:
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import RandomGeoSampler
except ImportError as error:
    print(json.dumps({"missing": str(error)})); sys.exit()
folder, chips, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
class Images(RasterDataset):
    filename_glob = "*.tif"
class Masks(RasterDataset):
    filename_glob = "*.tif"
    is_image = False
data = Images(folder / "images") & Masks(folder / "labels")
sampler = RandomGeoSampler(data, size=256, length=chips)
loader = DataLoader(data, batch_size=16, sampler=sampler, num_workers=workers, collate_fn=stack_samples)
rates = []
for _ in range(3):
    start = time.perf_counter()
    count = sum(len(batch["image"]) for batch in loader)
    rates.append(count / (time.perf_counter() - start))
print(json.dumps({"rates": rates}))
"""


class Raw(Dataset[tuple[np.ndarray, np.ndarray]]):
    """What a training dataset reads, before augmentation."""

    def __init__(self, training: TrainingDataset) -> None:
        self.training = training

    def __len__(self) -> int:
        return len(self.training)

    def __getitem__(self, key: SampleKey) -> tuple[np.ndarray, np.ndarray]:
        item, _ = self.training.plan.draw(key, key.rng())
        raw = self.training.read(key, item)
        return raw.values, raw.mask


class OneByOne(Dataset[tuple[np.ndarray, np.ndarray]]):
    """rasterio, one window at a time."""

    def __init__(self, folder: Path, length: int) -> None:
        self.paths = sorted((folder / "images").glob("*.tif"))
        self.length = length
        self.files: list[Any] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not self.files:
            labels = [path.parent.parent / "labels" / path.name for path in self.paths]
            self.files = [
                (rasterio.open(path), rasterio.open(label))
                for path, label in zip(self.paths, labels, strict=True)
            ]
        rng = np.random.default_rng((index, time.perf_counter_ns()))
        image, label = self.files[rng.integers(len(self.files))]
        row, col = rng.integers(image.height - CHIP + 1), rng.integers(image.width - CHIP + 1)
        window = RasterioWindow(int(col), int(row), CHIP, CHIP)
        return image.read(window=window), label.read(1, window=window)


def make_scenes(folder: Path, *, scenes: int, side: int, **layout: Any) -> Path:
    """Smooth ground with noise, as reflectance x 10000 looks, and regions as labels; made once."""
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for scene in range(scenes):
        rng = np.random.default_rng(scene)
        place = {
            "transform": from_origin(500_000 + scene * side * 10, 5_400_000, 10, 10),
            "crs": "EPSG:32633",
        }
        profile = {"driver": "GTiff", "height": side, "width": side, "compress": "deflate", **place, **layout}
        smooth = _smooth(rng, side)
        with rasterio.open(
            folder / "images" / f"{scene}.tif", "w", count=4, dtype="uint16", **profile
        ) as file:
            for band in range(1, 5):
                noise = rng.normal(0, 40, (side, side)).astype(np.float32)
                values = 1500 + 400 * band + 900 * (smooth + 0.5 * _smooth(rng, side)) + noise
                file.write(values.clip(1, 10_000).astype(np.uint16), band)
        with rasterio.open(
            folder / "labels" / f"{scene}.tif", "w", count=1, dtype="uint8", **profile
        ) as file:
            file.write(np.digitize(smooth, (-0.8, 0.0, 0.8)).astype(np.uint8), 1)
    (folder / "complete").touch()
    return folder


def _smooth(rng: np.random.Generator, side: int) -> np.ndarray:
    coarse = rng.normal(size=(side // 64, side // 64)).astype(np.float32)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def open_data(folder: Path, kept: Path, *, chips: int, workers: int = 0, **options: Any) -> GeoTiffDataModule:
    """A data module whose training split is everything."""
    data = GeoTiffDataModule(
        folder.parent,
        classes=[
            ClassSpec(name, (value,)) for value, name in enumerate(("water", "forest", "field", "town"))
        ],
        images="{split}/images/*.tif",
        labels="{split}/labels/{name}.tif",
        split=FolderSplit(train=folder.name),
        chip=CHIP,
        chips_per_epoch=chips,
        augment=Augment("none"),
        normalise="data",
        batch_size=BATCH,
        workers=workers,
        cache_dir=kept,
        **options,
    )
    data.scan()
    # collecting statistics would read the labels of all scenes
    data.normalisation = Normalisation((2500.0,) * 4, (1000.0,) * 4)
    return data


def epochs(data: GeoTiffDataModule, *, workers: int, augmented: bool = False) -> Callable[[int], int]:
    """A function that goes through an epoch and returns the number of chips."""
    training = data.training_dataset()
    sampler = EpochSampler(training, seed=0, batch_size=BATCH, order=getattr(training.plan, "order", None))
    loader: DataLoader[Any]
    if augmented:
        loader = data.train_dataloader()
    else:
        loader = DataLoader(
            Raw(training),  # type: ignore[arg-type]
            batch_size=BATCH,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_arrays,
        )

    def run(epoch: int) -> int:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        with rasterio.Env(GDAL_CACHEMAX=OWN_CACHE):
            return sum(BATCH for _ in loader)

    return run


def _arrays(samples: list[tuple[np.ndarray, np.ndarray]]) -> Any:
    return [
        default_collate([torch.from_numpy(each) for each in part]) for part in zip(*samples, strict=True)
    ]


def windows(folder: Path, *, chips: int, workers: int) -> Callable[[int], int]:
    """The same of rasterio."""
    loader = DataLoader(
        OneByOne(folder, chips),
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_arrays,
    )

    def run(epoch: int) -> int:
        with rasterio.Env(GDAL_CACHEMAX=CACHE):
            return sum(BATCH for _ in loader)

    return run


def rate(run: Callable[[int], int], epoch: int) -> float:
    """Chips a second."""
    start = time.perf_counter()
    count = run(epoch)
    return count / (time.perf_counter() - start)


def compare(*runs: Callable[[int], int], repetitions: int) -> list[float]:
    """Median chips a second of each, taking turns; the first turn (files, processes) doesn't count."""
    for run in runs:
        run(0)
    rates = [[rate(run, epoch) for run in runs] for epoch in range(1, repetitions + 1)]
    return np.median(rates, axis=0).tolist()


def torchgeo(python: str, folder: Path, *, chips: int, workers: int) -> float | None:
    """Chips a second, or None where it isn't installed."""
    command = [python, "-W", "ignore", "-c", TORCHGEO, str(folder), str(chips), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"torchgeo failed: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if "missing" in answer:
        print(f"torchgeo: {answer['missing']}")
        return None
    return float(np.median(answer["rates"]))


def mixture(data: GeoTiffDataModule) -> dict[str, float]:
    """How many scenes and super-tiles the batches of an epoch mix."""
    plan: Any = data.training_dataset().plan
    epoch = plan.epoch(0, 0)
    batches = epoch.order[: len(plan) // BATCH * BATCH].reshape(-1, BATCH)
    tiles = [len(set(epoch.of[batch].tolist())) for batch in batches]
    scenes = [len({epoch.groups[group].region for group in epoch.of[batch].tolist()}) for batch in batches]
    return {
        "super_tiles_per_batch_mean": float(np.mean(tiles)),
        "super_tiles_per_batch_least": min(tiles),
        "scenes_per_batch_mean": float(np.mean(scenes)),
        "scenes_per_batch_least": min(scenes),
    }


def rss() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def growth(run: Callable[[int], int]) -> float:
    """MB that the process grows by over ten epochs, from one median of five to the next, after two to warm up."""
    run(0), run(1)
    sizes = []
    for epoch in range(2, 12):
        run(epoch)
        sizes.append(rss())
    return float(np.median(sizes[5:]) - np.median(sizes[:5]))


def growth_alone() -> float:
    """Of a process that does nothing else."""
    command = [sys.executable, *sys.argv, "--growth"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def many_scenes(four: Path, count: int) -> Path:
    """`count` scenes that are links to four: as many files to index and to open, and no larger on disk."""
    many = four.with_name(f"{four.name}-{count}")
    if not (many / "complete").exists():
        for part in ("images", "labels"):
            (many / part).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                target = many / part / f"{index}.tif"
                if not target.exists():
                    os.link(four / part / f"{index % 4}.tif", target)
        (many / "complete").touch()
    return many


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller scenes, fewer chips: under a minute")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "geotiff_sampling")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has torchgeo")
    parser.add_argument("--growth", action="store_true", help="measure the growth of memory alone")
    given = parser.parse_args()
    global CACHE
    if given.quick:
        CACHE //= 16  # the scenes are as much smaller
    side, chips, repetitions = (2048, 256, 1) if given.quick else (8192, 1024, 3)
    many, folder = (500 if given.quick else 20_000), given.folder
    tiled = make_scenes(
        folder / f"tiled-{side}", scenes=4, side=side, tiled=True, blockxsize=512, blockysize=512
    )
    striped = make_scenes(folder / f"striped-{side}", scenes=4, side=side, blockysize=16)
    cache, result = folder / "cache", dict[str, Any]()
    data = open_data(tiled, cache, chips=chips)
    if given.growth:
        print(growth(epochs(data, workers=0)))
        return
    result |= mixture(data)
    own = epochs(data, workers=0)
    rates = compare(own, windows(tiled, chips=chips // 4, workers=0), repetitions=repetitions)
    result |= {"chips_per_s": rates[0], "rasterio_chips_per_s": rates[1], "vs_rasterio": rates[0] / rates[1]}
    peer = torchgeo(given.peer_python, tiled, chips=chips // 8, workers=0)
    result["vs_torchgeo"] = peer and rates[0] / peer
    result["rss_growth_mb"] = growth_alone()
    result["dataset_chips_per_s"] = rate(epochs(data, workers=0, augmented=True), 1)
    cached = epochs(open_data(tiled, cache, chips=2 * chips, cache="ram"), workers=0)
    for epoch in range(50, 53 if given.quick else 56):  # until nearly all cells are there
        cached(epoch)
    result["cached_chips_per_s"] = float(np.median([rate(cached, epoch) for epoch in range(5)]))
    result["cached_vs_rasterio"] = result["cached_chips_per_s"] / result["rasterio_chips_per_s"]
    del cached
    print(result, flush=True)
    rates = compare(
        epochs(data, workers=2), windows(tiled, chips=chips // 2, workers=2), repetitions=repetitions
    )
    result["two_workers_vs_rasterio"] = rates[0] / rates[1]
    peer = torchgeo(given.peer_python, tiled, chips=chips // 4, workers=2)
    result["two_workers_vs_torchgeo"] = peer and rates[0] / peer
    print(result, flush=True)
    rates = compare(
        epochs(open_data(striped, cache, chips=chips), workers=0),
        windows(striped, chips=64, workers=0),
        repetitions=repetitions,
    )
    result["striped_vs_rasterio"] = rates[0] / rates[1]
    print(result, flush=True)
    rates = compare(
        *(
            epochs(open_data(scenes, cache, chips=chips), workers=0)
            for scenes in (tiled, many_scenes(tiled, many))
        ),
        repetitions=repetitions,
    )
    result["many_scenes"] = many
    result["many_vs_four_scenes"] = rates[1] / rates[0]
    print(json.dumps({name: round(v, 3) if isinstance(v, float) else v for name, v in result.items()}))


if __name__ == "__main__":
    main()
