"""Answers: a scene is scored as it will be predicted, whatever chips it is counted in."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from torch import Tensor, nn

from datamodules import ClassSpec, GeoTiffDataModule
from visionsft.evaluation.answers import answers, infer
from visionsft.models.inference import compute_logits

PLACE = from_origin(500_000, 5_500_000, 10, 10)


class Blur(nn.Module):
    """image -> logits that depend on the neighbourhood, so that the place of a tile's edge shows."""

    num_classes = 2
    backbone = SimpleNamespace(strides=(1,), geometry=SimpleNamespace(size=None))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(2, 2, 9, padding=4)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image)


def write(path: Path, values: np.ndarray, *, nodata: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=values.dtype,
        crs="EPSG:32633", transform=PLACE, nodata=nodata,
    ) as file:  # fmt: skip
        file.write(values)


def make_loaded(root: Path, sizes: dict[str, tuple[int, int]], *, tile: int | None) -> SimpleNamespace:
    """A run on scenes of these sizes, all of them in test."""
    for name, size in sizes.items():
        rng = np.random.default_rng(len(name))
        for split in ("train", "test"):
            pixels = rng.integers(1, 2000, (2, *size)).astype(np.uint16)
            pixels[:, :5, :7] = 0
            write(root / split / "images" / f"{name}.tif", pixels, nodata=0)
            write(root / split / "labels" / f"{name}.tif", rng.integers(0, 2, (1, *size)).astype(np.uint8))
    data = GeoTiffDataModule(
        root, images="{split}/images/*.tif", labels="{split}/labels/{name}.tif", chip=32, workers=0,
        classes=[ClassSpec("a", (0,)), ClassSpec("b", (1,))], normalise="data", batch_size=3,
    )  # fmt: skip
    data.setup("test")
    model = Blur().eval()
    return SimpleNamespace(
        model=model, data=data, logits=partial(compute_logits, model, precision=None, channels_last=False),
        views={"scales": (1.0,), "symmetry": "none"}, tiles={"tile": tile, "overlap": None},
    )  # fmt: skip


def assemble(loaded: SimpleNamespace, name: str, size: tuple[int, int]) -> Tensor:
    """The logits (K, H, W) of one scene, put together from the cores of its samples."""
    loader = loaded.data.evaluation_loader("test")
    found, index = torch.full((2, *size), torch.nan), 0
    for batch, logits in answers(loaded, "test", loader, loader):
        for item, planes in zip(batch["item"], logits, strict=True):
            core = loader.dataset.cores[index]
            index += 1
            if f"/{name}.tif" in item.image:
                row, col = item.window.row + core.row, item.window.col + core.col
                inside = planes[:, core.row : core.row + core.height, core.col : core.col + core.width]
                found[:, row : row + core.height, col : col + core.width] = inside
    assert index == len(loader.dataset)
    return found


@pytest.mark.parametrize("tile", [None, 48])
def test_a_large_scene_is_scored_in_large_tiles(tmp_path: Path, tile: int | None) -> None:
    sizes = {"wide": (70, 150), "small": (20, 30), "tall": (131, 33)}
    loaded = make_loaded(tmp_path, sizes, tile=tile)
    for name, size in sizes.items():
        path = str(tmp_path / "test" / "images" / f"{name}.tif")
        (sample,) = loaded.data.prediction_dataset([path])
        whole = infer(loaded, sample["image"][None])[0]
        found = assemble(loaded, name, size)
        if tile is None:  # one tile a scene: no edge inside
            torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
        else:  # blended over a few pixels at tiles' edges, and the same elsewhere
            assert not found.isnan().any()
            assert ((found - whole).abs() < 1e-5).float().mean() > 0.75


def test_scenes_of_one_chip_are_seen_in_batches(tmp_path: Path) -> None:
    loaded = make_loaded(tmp_path, {"a": (32, 32), "bb": (20, 31), "ccc": (32, 9)}, tile=None)
    loader = loaded.data.evaluation_loader("test")
    ((batch, logits),) = answers(loaded, "test", loader, loader)
    assert len(batch["item"]) == 3
    torch.testing.assert_close(logits, infer(loaded, batch["image"]))
