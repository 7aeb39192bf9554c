"""Scene prediction: how much of the bare model's speed is left, and how memory grows, from file to finished map.

    python benchmarks/scene_prediction.py [--quick] [--scene FILE] [--backends torch openvino] [--peer-python FILE]

A scene of 8192 x 8192 x 4 uint16 (deflate, 512 tiles) is predicted by `tf_efficientnet_lite0` with random weights and
6 classes, with the unet and with the default head. The bound is the same model and precision on tiles of the same
size that lie in memory, each pixel counted once: with torch the model as it was trained, with onnxruntime and openvino
what they have made of it. Ours reads, blends and writes a Cloud-Optimised GeoTIFF; with torch it folds the model first,
and `of_backend` is what is left of the speed of the folded one (of the others' it is `of_bound`). They take turns,
figures are medians of the rounds.
`core_s`: seconds of computing, over all threads, of a prediction, and those of them that the backend doesn't take on as
many pixels in memory. Peers: how many times as fast the best
backend is on the same scene (scene_peers.py says as what), in the interpreter that --peer-python names; null for a
peer that it hasn't got. Memory: peak resident memory of a process that predicts scenes of 8,192 columns (and one of
32,768 x 32,768: the same file 16 times) with a model that costs next to nothing, less that of the same process after
the model has seen one tile in memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from zipfile import ZipFile

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the `visionsft` command does; torch reads it at its first need

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from torch import Tensor, nn

from backbones import accelerate_depthwise, create_backbone
from datamodules import ClassSpec, GeoTiffDataModule, Normalisation
from visionsft.models import create_model
from visionsft.models.inference import compute_logits
from visionsft.prediction.backends import create_backend
from visionsft.prediction.mapping import SceneOptions, ScenePredictor
from visionsft.prediction.scenes import first_tile
from visionsft.runs import Run
from visionsft.training.loading import LoadedRun
from visionsft.training.precision import DTYPES, resolve

NAME, BANDS, CLASSES = "tf_efficientnet_lite0", ("blue", "green", "red", "nir"), 6
HEADS = ("unet", "fpn")
MEAN, STD = 2000.0, 900.0
RUNS = 5
"""Of which a peak of memory is the median: how the allocator's threads meet changes it by 100 MB."""
PEERS = {
    "vs_terratorch": ["terratorch"],
    "vs_terratorch_same_precision": ["terratorch", "--reduced"],
    "vs_torchgeo": ["torchgeo"],
}


class Stub(nn.Module):
    """A model that costs next to nothing."""

    num_classes = CLASSES
    backbone = SimpleNamespace(strides=(4, 8, 16, 32), geometry=SimpleNamespace(size=None))

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(len(BANDS), CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2048 x 2048, one head, one round; under 50 s")
    parser.add_argument("--scene", type=Path, help="use this file; made if it isn't there")
    parser.add_argument("--backends", nargs="+", help="default: those that are installed")
    parser.add_argument("--heads", nargs="+", default=list(HEADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=8192, help="of the scene that is made")
    parser.add_argument("--peer-python", help="an interpreter that has the peers; default: none are run")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out")
    parser.add_argument("--no-speed", action="store_true", help="leave speed and peers out")
    parser.add_argument("--memory", nargs=2, type=int, metavar=("ROWS", "COLS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        side = 2048 if given.quick else given.side
        scene = make_scene(given.scene or Path(folder) / "scene.tif", side)
        if given.memory:
            print(measure_memory(make_mosaic(scene, Path(folder), *given.memory), Path(folder)))
            return
        heads, rounds = (given.heads[:1], 1) if given.quick else (given.heads, given.rounds)
        speeds: dict[str, dict[str, Any]] = {}
        for head in [] if given.no_speed else heads:
            for name in given.backends or installed():
                speeds[f"{name} {head}"] = found = measure_speed(
                    scene, Path(folder), name, head, rounds=rounds
                )
                print(f"{name:12} {head:6} {found}", flush=True)
        peers = measure_peers(given.peer_python, scene, heads[0], speeds) if given.peer_python and speeds else {}
        memory = {} if given.quick or given.no_memory else peaks(scene)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gdal": rasterio.__gdal_version__,
    }
    report = {"of_bound": {key: row["of_bound"] for key, row in speeds.items()},
              "of_backend": {key: row["of_backend"] for key, row in speeds.items()},
              **{key: peers.get(key) for key in PEERS}, "peak_mb": memory, "speeds": speeds, "pixels": side * side,
              "threads": torch.get_num_threads(), "precision": resolve("auto"), "versions": versions}  # fmt: skip
    print(json.dumps(report))


def installed() -> list[str]:
    """Backends that can be used here."""
    return ["torch", *(name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name))]


# ----------------------------------------------------------------------------------------------------- speed


def measure_speed(scene: Path, folder: Path, backend: str, head: str, *, rounds: int) -> dict[str, Any]:
    """Scene megapixels a second of the bound and of a whole prediction."""
    predictor = make_predictor(make_model(head), folder, backend)
    source = predictor.open(str(scene))
    grid = predictor.plan(source)
    run, tile = create_backend(predictor.loaded, backend), first_tile(source, grid)
    assert tile is not None
    predictor._backend = run  # converted once, for both
    plain = partial(compute_logits, predictor.loaded.model, precision=predictor.loaded.precision, channels_last=True)
    folds = backend == "torch"

    def speed(each: Any) -> float:
        return tile[0, 0].numel() / timed(lambda: [each(tile) for _ in range(4)]) * 4 / 1e6

    for each in (plain, run) if folds else (run,):  # the first ones take the memory that all later ones use again
        speed(each)
    bound, alone, ours, cores = [], [], [], []
    for _ in range(rounds):
        used = time.process_time()
        alone.append(speed(run))
        bare = (time.process_time() - used) / 4 * source.shape[0] * source.shape[1] / tile[0, 0].numel()
        bound.append(speed(plain) if folds else alone[-1])
        targets = predictor.targets(str(scene), folder / "out")
        used = time.process_time()
        seconds = timed(lambda targets=targets: predictor.predict(str(scene), targets, overwrite=True))
        ours.append(source.shape[0] * source.shape[1] / seconds / 1e6)
        cores.append((time.process_time() - used, time.process_time() - used - bare))
    of_bound, of_backend = (
        statistics.median(own / most for own, most in zip(ours, each, strict=True)) for each in (bound, alone)
    )
    return {
        "bound_mpx_s": round(statistics.median(bound), 3),
        "mpx_s": round(statistics.median(ours), 3),
        "of_bound": round(of_bound, 3),
        "of_backend": round(of_backend, 3),
        "core_s": [round(statistics.median(each), 2) for each in zip(*cores, strict=True)],
        "tile": grid.tile,
        "repeated": round(grid.pixels / (source.shape[0] * source.shape[1]), 3),
    }


def measure_peers(
    python: str, scene: Path, head: str, speeds: dict[str, dict[str, Any]]
) -> dict[str, float | None]:
    """How many times as fast the best backend is; None where a peer is missing."""
    with rasterio.open(scene) as file:
        pixels = file.height * file.width / 1e6
    best = max(row["mpx_s"] for name, row in speeds.items() if name.endswith(f" {head}"))
    found: dict[str, float | None] = {}
    for key, (peer, *options) in PEERS.items():
        command = [python, "-W", "ignore", str(Path(__file__).with_name("scene_peers.py")), peer]
        pages = {"THP_MEM_ALLOC_ENABLE": "1" if options else "0"}
        done = subprocess.run(
            [*command, str(scene), head, *options],
            capture_output=True, text=True, check=False, env={**os.environ, **pages},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{peer} failed: {done.stderr[-2000:]}")
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"{key}: {answer}, ours {pixels / best:.1f} s", flush=True)
        found[key] = None if "missing" in answer else round(best * answer["seconds"] / pixels, 2)
    return found


def timed(run: Any) -> float:
    """Seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


# ---------------------------------------------------------------------------------------------------- memory


def peaks(scene: Path) -> dict[str, float]:
    """Megabytes over the model's own, by scene size, each in a process of its own; medians, the largest once."""
    found = {}
    for rows, cols in ((4096, 8192), (8192, 8192), (32768, 8192), (32768, 32768)):
        command = [sys.executable, __file__, "--scene", str(scene), "--memory", str(rows), str(cols)]
        runs = 1 if rows == cols == 32768 else RUNS
        answers = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(runs)]
        peaks = sorted(float(answer.split()[-1]) for answer in answers)
        found[f"{rows} x {cols}"] = statistics.median(peaks)
        print(f"{rows} x {cols}: {', '.join(f'{peak:.0f}' for peak in peaks)} MB", flush=True)
    return found


def measure_memory(scene: Path, folder: Path) -> float:
    """Peak of predicting the scene over the peak of the model on one tile in memory, in MB."""
    predictor = make_predictor(Stub().eval().requires_grad_(False), folder, "torch")
    source = predictor.open(str(scene))
    grid = predictor.plan(source)
    predictor.backend(source, grid)(torch.zeros(1, len(BANDS), *grid.tile))
    before = peak()
    predictor.predict(str(scene), predictor.targets(str(scene), folder / "out"), overwrite=True)
    return peak() - before


def peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


# ------------------------------------------------------------------------------------------------------ data


def make_model(head: str, *, accelerated: bool = True) -> nn.Module:
    """With random weights, the same ones each time. accelerated: with our depthwise convolutions, not timm's."""
    torch.manual_seed(0)
    net = create_backbone(NAME, weights="none", in_chans=len(BANDS))
    if accelerated:
        accelerate_depthwise(net)
    return create_model(net, CLASSES, head=head).eval().requires_grad_(False)


def make_predictor(model: nn.Module, folder: Path, backend: Any) -> ScenePredictor:
    """As from a trained run."""
    specs = [ClassSpec(f"class {i}", (i,)) for i in range(CLASSES)]
    data = GeoTiffDataModule(folder, classes=specs, normalise="data")
    data.bands, data.dtype = BANDS, np.dtype(np.uint16)
    data.normalisation = Normalisation((MEAN,) * 4, (STD,) * 4)
    run = Run(folder / "run")
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    with ZipFile(run.checkpoints / "best.ckpt", "w") as file:
        file.writestr("weights", "")
    return ScenePredictor(as_loaded(model, data, run), SceneOptions(backend=backend))


class Loaded(LoadedRun):
    """A model as from a trained run with the usual settings."""

    views: ClassVar = {"scales": (1.0,), "symmetry": "none"}  # type: ignore[misc]
    tiles: ClassVar = {"tile": None, "overlap": None}  # type: ignore[misc]
    merge: ClassVar = "nms"  # type: ignore[misc]


def as_loaded(model: Any, data: Any, run: Any = None) -> LoadedRun:
    """Stubs, which aren't made of a backbone and a head, aren't folded."""
    settings: Any = {"config": None, "run": run, "precision": DTYPES[resolve("auto")], "channels_last": True}
    loaded = Loaded(model=model.to(memory_format=torch.channels_last), **settings)
    vars(loaded)["data"] = data
    if not hasattr(model, "neck"):
        vars(loaded)["folded"] = model
    return loaded


def make_scene(path: Path, side: int) -> Path:
    """Smooth ground with noise, which compresses about as imagery does."""
    if path.is_file():
        return path
    rng = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=len(BANDS), dtype="uint16", crs="EPSG:32633",
        transform=from_origin(500_000, 5_500_000, 10, 10), compress="deflate", tiled=True, blockxsize=512,
        blockysize=512,
    ) as file:  # fmt: skip
        for index, band in enumerate(BANDS, start=1):
            coarse = rng.normal(2000, 800, (side // 64, side // 64))
            ground = np.kron(coarse, np.ones((64, 64), np.float32)).astype(np.float32)
            ground += rng.normal(0, 60, ground.shape).astype(np.float32)
            file.write(ground.clip(1, 9999).astype(np.uint16), index)
            file.set_band_description(index, band)
    return path


def make_mosaic(scene: Path, folder: Path, rows: int, cols: int) -> Path:
    """A scene of rows x cols pixels, made of the one file over and over."""
    with rasterio.open(scene) as file:
        height, width, wkt = file.height, file.width, file.crs.to_wkt()
    bands = ""
    for index, name in enumerate(BANDS, start=1):
        parts = "".join(
            f"<SimpleSource><SourceFilename>{scene.resolve()}</SourceFilename><SourceBand>{index}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" xSize="{min(width, cols - col)}" ySize="{min(height, rows - row)}"/>'
            f'<DstRect xOff="{col}" yOff="{row}" xSize="{min(width, cols - col)}" ySize="{min(height, rows - row)}"/>'
            "</SimpleSource>"
            for row in range(0, rows, height)
            for col in range(0, cols, width)
        )
        bands += f'<VRTRasterBand dataType="UInt16" band="{index}" blockXSize="512" blockYSize="512">'
        bands += f"<Description>{name}</Description>{parts}</VRTRasterBand>"
    place = f"<SRS>{wkt}</SRS><GeoTransform>500000, 10, 0, 5500000, 0, -10</GeoTransform>"
    path = folder / f"mosaic_{rows}_{cols}.vrt"
    path.write_text(f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}">{place}{bands}</VRTDataset>')
    return path


if __name__ == "__main__":
    main()
