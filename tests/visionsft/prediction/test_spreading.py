"""Spreading: a local Ray of two workers makes the very files of one process, also when a worker is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from datamodules import DataError
from visionsft.prediction import SceneOptions, predict
from visionsft.prediction.spreading import row_ranges
from visionsft.runs import Run

BANDS = ("red", "green", "nir")
ray = pytest.importorskip("ray", reason="ray is not installed")

KILLER = """
import os, signal
from pathlib import Path
from torch import nn

class Head(nn.Module):
    plain_maps = True
    def __init__(self, channels, strides, num_classes, *, fuse):
        super().__init__()
        self.fuse = Path(fuse)
        self.layer = nn.Conv2d(channels[0], num_classes, 1)

    def forward(self, features):
        if features[0].abs().sum() > 0 and "RAY_ADDRESS_OF_TEST" in os.environ:
            try:
                self.fuse.unlink()  # one of the workers is the first
            except FileNotFoundError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(features[0])
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As Ray's workers have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two workers, which find the module `killer`."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "killer.py").write_text(KILLER)
    paths = [str(Path(__file__).parents[3]), str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        variables = {"PYTHONPATH": ":".join(paths), "RAY_ADDRESS_OF_TEST": "1"}
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables}
        )
        yield
        ray.shutdown()


def write_scene(
    path: Path, *, height: int, width: int, seed: int = 0, bands: tuple[str, ...] = BANDS
) -> Path:
    rng = np.random.default_rng(seed)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=len(bands), dtype="uint16",
        crs="EPSG:32633", transform=from_origin(5e5, 5e6, 10, 10),
    ) as file:  # fmt: skip
        file.write(rng.normal(3000, 1000, (len(bands), height, width)).clip(1, 9000).astype(np.uint16))
        file.descriptions = bands
    return path


def test_the_files_are_those_of_one_process(write_run: Callable[..., Run], tmp_path: Path) -> None:
    run = write_run(tmp_path)
    scenes = [
        write_scene(tmp_path / f"{n}.tif", height=h, width=90, seed=h) for n, h in {"a": 300, "b": 40}.items()
    ]
    options = SceneOptions(("classes", "probability"), tile=64, overlap=16)
    local = predict(run, scenes, tmp_path / "local", scenes=options)
    spread = predict(run, scenes, tmp_path / "ray", scenes=options, engine="ray")
    assert [path.name for path in local] == [path.name for path in spread]
    assert len(spread) == 4
    for one, two in zip(local, spread, strict=True):
        assert one.read_bytes() == two.read_bytes()
    with rasterio.open(spread[0]) as file:
        assert len(np.unique(file.read(1))) == 3


def test_a_killed_worker_costs_its_rows_and_not_the_run(
    write_run: Callable[..., Run], tmp_path: Path
) -> None:
    fuse = tmp_path / "fuse"
    run = write_run(tmp_path, head={"name": "killer:Head", "options": {"fuse": str(fuse)}})
    scene = write_scene(tmp_path / "a.tif", height=400, width=64)
    (local,) = predict(run, scene, tmp_path / "local", scenes=SceneOptions(tile=64, overlap=16))
    fuse.touch()
    (spread,) = predict(run, scene, tmp_path / "ray", scenes=SceneOptions(tile=64, overlap=16), engine="ray")
    assert not fuse.exists()  # somebody was killed
    assert local.read_bytes() == spread.read_bytes()


def test_a_broken_scene_is_reported_and_the_others_are_done(
    write_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = write_run(tmp_path)
    good = write_scene(tmp_path / "good.tif", height=100, width=64)
    few = write_scene(tmp_path / "few.tif", height=64, width=64, bands=BANDS[:2])
    with pytest.raises(DataError, match=r"1 of 2 inputs can't be predicted.*\n.*few\.tif: no band 'nir'"):
        predict(run, [few, good], tmp_path / "out", engine="ray")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.tif"]


@pytest.mark.parametrize(
    ("first", "count", "workers"), [(0, 16, 2), (5, 16, 2), (0, 1, 8), (3, 3, 2), (0, 100, 3)]
)
def test_ranges_cover_the_rows_that_are_left_once(first: int, count: int, workers: int) -> None:
    ranges = row_ranges(first, count, workers)
    assert [row for low, high in ranges for row in range(low, high)] == list(range(first, count))
    assert len(ranges) <= 2 * workers
