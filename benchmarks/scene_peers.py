"""Peers of scene prediction: a scene to a class map by torchgeo's or terratorch's own loop, with the same model.

    python benchmarks/scene_peers.py {torchgeo,terratorch} SCENE HEAD [--reduced]

Run by scene_prediction.py in an interpreter that has the peer and this project. Both end with the same product, a
tiled, deflated GeoTIFF of class indices. torchgeo: GridGeoSampler over a RasterDataset, chips of 512 without overlap
(its stride is its size by default) in batches of 4, as in its tutorial on surface water, float32. terratorch:
`tiled_inference` at its defaults (chips of 224, stride 192, 8 pixels cut off, batches of 16, blended), on the scene in
memory; float32, or with --reduced in bfloat16 and channels last, with huge pages and our faster depthwise
convolutions, as ours is. Only that module of terratorch is loaded, not its tasks and models. The last line is JSON:
seconds of one scene after a batch to warm up, or what is missing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from scene_prediction import BANDS, CLASSES, MEAN, STD, make_model
from torch import Tensor, nn

CHIP, BATCH = 512, 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("scene", type=Path)
    parser.add_argument("head")
    parser.add_argument("--reduced", action="store_true")
    given = parser.parse_args()
    run = as_run(make_model(given.head, accelerated=given.reduced), reduced=given.reduced)
    with tempfile.TemporaryDirectory() as folder:
        try:
            seconds = PEERS[given.peer](given.scene, Path(folder) / "map.tif", run)
        except ModuleNotFoundError as error:
            print(json.dumps({"missing": str(error)}))
            return
    print(json.dumps({"seconds": seconds}))


def as_run(model: nn.Module, *, reduced: bool) -> Callable[[Tensor], Tensor]:
    """image (B, C, H, W) float32, normalised -> logits."""
    if reduced:
        model = model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(image: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=reduced):
            logits: Tensor = model(image.contiguous(memory_format=torch.channels_last) if reduced else image)
        return logits

    return run


def by_torchgeo(scene: Path, target: Path, run: Callable[[Tensor], Tensor]) -> float:
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    class Images(RasterDataset):
        filename_glob = scene.name

    run(torch.zeros(BATCH, len(BANDS), CHIP, CHIP))
    start = time.perf_counter()
    data = Images(scene.parent)
    sampler = GridGeoSampler(data, size=CHIP)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler, collate_fn=stack_samples)
    with open_map(scene, target) as file:
        places = iter(list(sampler))
        for batch in loader:
            classes = run((batch["image"] - MEAN) / STD).argmax(1).to(torch.uint8).numpy()
            for chip, (x, y, *_) in zip(classes, places, strict=False):
                col, row = (round(value) for value in ~file.transform * (x.start, y.stop))
                height, width = min(CHIP, file.height - row), min(CHIP, file.width - col)
                file.write(chip[:height, :width], 1, window=Window(col, row, width, height))
    return time.perf_counter() - start


def by_terratorch(scene: Path, target: Path, run: Callable[[Tensor], Tensor]) -> float:
    tiled_inference = load_tiled_inference()
    run(torch.zeros(16, len(BANDS), 224, 224))
    start = time.perf_counter()
    with rasterio.open(scene) as file:
        image = torch.from_numpy(file.read().astype(np.float32)).sub_(MEAN).div_(STD)
    classes = tiled_inference(run, image[None]).argmax(1)[0].to(torch.uint8).numpy()
    with open_map(scene, target) as file:
        file.write(classes, 1)
    return time.perf_counter() - start


def load_tiled_inference() -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    """The packages around the module are stood in for by empty ones, whose own imports are many and slow."""
    spec = importlib.util.find_spec("terratorch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'terratorch'")
    folder = Path(spec.origin).parent
    for name in ("terratorch", "terratorch.models", "terratorch.tasks"):
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    registry = sys.modules["terratorch.registry"] = ModuleType("terratorch.registry")
    registry.BACKBONE_REGISTRY = None  # type: ignore[attr-defined]  # imported on the way, and not used by it
    function: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
    function = importlib.import_module("terratorch.tasks.tiled_inference").tiled_inference
    return function


def open_map(scene: Path, target: Path) -> rasterio.io.DatasetWriter:
    with rasterio.open(scene) as file:
        return rasterio.open(
            target, "w", driver="GTiff", height=file.height, width=file.width, count=1, dtype="uint8", crs=file.crs,
            transform=file.transform, nodata=255, compress="deflate", tiled=True, blockxsize=512, blockysize=512,
        )  # fmt: skip


PEERS = {"torchgeo": by_torchgeo, "terratorch": by_terratorch}


if __name__ == "__main__":
    assert CLASSES < 255
    main()
