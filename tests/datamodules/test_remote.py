"""Remote scenes: trained on as if they were here, over a server that sometimes breaks off."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import raster
from datamodules.augment import Augment
from datamodules.batch import Item, Window
from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.geotiff import GeoTiffDataModule
from datamodules.paths import UNWATCHED, forget_states, gdal_path, state_of
from datamodules.raster import Pool, read_header, read_window
from datamodules.splits import FolderSplit, SceneSplit

SIDE = 160


class Server:
    """Of the files in `folder`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.address = f"http://127.0.0.1:{port}"

    def control(self, **settings: int) -> dict[str, int]:
        query = "&".join(f"{key}={value}" for key, value in settings.items())
        with urllib.request.urlopen(f"{self.address}/control?{query}") as answer:
            return dict(json.load(answer))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "far"
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("range_server.py")), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Server(folder, int(process.stdout.readline()))
        process.terminate()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "PAUSES", (0.01, 0.02))
    forget_states()


def write_scenes(folder: Path, write_raster: Callable[..., Path], count: int = 4) -> None:
    """Random pixels, tiled, with labels that are the first band's largest bit."""
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 4000, (3, SIDE, SIDE)).astype(np.uint16)
        west = 500_000.0 + 10_000 * number
        write_raster(
            folder / f"s{number}.tif",
            pixels,
            west=west,
            tiled=True,
            blockxsize=64,
            blockysize=64,
            compress="deflate",
        )
        write_raster(folder / f"s{number}_label.tif", (pixels[0] > 2000).astype(np.uint8), west=west)


def module(root: Path, **options: Any) -> GeoTiffDataModule:
    settings = {
        "classes": [ClassSpec("low", (0,)), ClassSpec("high", (1,))],
        "split": SceneSplit(val=0.25, test=0.25, seed=1),
        "chip": 32,
        "normalise": "data",
        "augment": Augment("nadir"),
        "batch_size": 4,
        "workers": 0,
        "cache_dir": root / "cache",
    }
    return GeoTiffDataModule(root, **{**settings, **options})


def batches(data: GeoTiffDataModule) -> list[Any]:
    return [batch for loader in (data.train_dataloader(), data.val_dataloader()) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_remote_scenes_is_as_on_files_here(tmp_path, write_raster, server, workers):
    write_scenes(server.folder, write_raster)
    (tmp_path / "near.txt").write_text("\n".join(f"far/s{k}.tif" for k in range(4)))
    addresses = [f"{server.address}/s{k}.tif" for k in range(4)]
    (tmp_path / "far.txt").write_text("# by address\n\n" + "\n".join(addresses))
    near = module(tmp_path, images="near.txt", labels="far/{name}_label.tif")
    far = module(tmp_path, images="far.txt", labels=f"{server.address}/{{name}}_label.tif", workers=workers)
    for one, other in zip(batches(near), batches(far), strict=True):
        assert [Path(item.image).name for item in one["item"]] == [
            Path(item.image).name for item in other["item"]
        ]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["mask"], other["mask"])
    assert {item.id for items in far.items.values() for item in items} == set(addresses)


@pytest.mark.parametrize(
    "scheme", ["/vsicurl/{address}/s0.tif", "{address}/s0.tif", "s3://bucket/s0.tif", "/vsis3/bucket/s0.tif"]
)
def test_every_way_of_writing_a_remote_path(write_raster, server, scheme, monkeypatch):
    write_scenes(server.folder, write_raster, 1)
    for key, value in {
        "AWS_S3_ENDPOINT": f"127.0.0.1:{server.port}",
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_NO_SIGN_REQUEST": "YES",
    }.items():
        monkeypatch.setenv(key, value)
    path = scheme.format(address=server.address)
    header = read_header(path)
    pixels = read_window(
        Pool().file(path, header.state), Window(10, 20, 70, 50), bands=(1, 3), nodata=None, masked=False
    )
    expected = np.random.default_rng(0).integers(0, 4000, (3, SIDE, SIDE))[[0, 2], 10:80, 20:70]
    np.testing.assert_array_equal(pixels.values, expected)
    assert (header.state[0][1:] == UNWATCHED) == ("s3" in scheme)


def test_paths_as_gdal_writes_them():
    assert gdal_path("s3://b/k.tif") == "/vsis3/b/k.tif"
    assert gdal_path("gs://b/k.tif") == "/vsigs/b/k.tif"
    assert gdal_path("https://h/k.tif?a=b") == "/vsicurl/https://h/k.tif?a=b"
    assert gdal_path("/data/k.tif") == "/data/k.tif"


@pytest.mark.parametrize("drops", [1, 4])
def test_a_connection_that_breaks_off_is_tried_again(tmp_path, write_raster, server, drops):
    write_scenes(server.folder, write_raster)
    (tmp_path / "far.txt").write_text("\n".join(f"{server.address}/s{k}.tif" for k in range(4)))
    data = module(tmp_path, images="far.txt", labels="far/{name}_label.tif")
    data.setup()
    server.control(drop=drops, above=16_384)
    (item,) = data.items["test"]
    raw = data._reader().read(Item(item.id, item.group, item.image, item.label, Window(80, 80, 64, 64)))
    number = int(Path(item.image).stem[1:])
    expected = np.random.default_rng(number).integers(0, 4000, (3, SIDE, SIDE))[:, 80:144, 80:144]
    np.testing.assert_array_equal(raw.values, expected)
    assert server.control()["dropped"] == drops


def test_a_server_that_keeps_breaking_off_is_one_error_with_scene_and_window(tmp_path, write_raster, server):
    write_scenes(server.folder, write_raster)
    (tmp_path / "far.txt").write_text("\n".join(f"{server.address}/s{k}.tif" for k in range(4)))
    data = module(tmp_path, images="far.txt", labels="far/{name}_label.tif")
    data.setup()
    server.control(drop=10_000, above=16_384)
    (item,) = data.items["test"]
    with pytest.raises(
        DataError, match=rf"^{item.image}: can't be read \(rows 80 to 144, columns 80 to 144\)"
    ):
        data._reader().read(Item(item.id, item.group, item.image, item.label, Window(80, 80, 64, 64)))
    # an answer later the same reader goes on
    server.control(drop=0)
    data._reader().read(Item(item.id, item.group, item.image, item.label, Window(80, 80, 64, 64)))


def test_what_is_not_there_is_said_at_once(server, monkeypatch):
    monkeypatch.setattr(raster, "PAUSES", (1000.0,))
    with pytest.raises(DataError, match=r"/none\.tif: can't be read \(opening\)"):
        read_header(f"{server.address}/none.tif")


def test_a_remote_scene_that_changes_is_noticed(tmp_path, write_raster, server):
    write_scenes(server.folder, write_raster)
    (tmp_path / "far.txt").write_text("\n".join(f"{server.address}/s{k}.tif" for k in range(4)))
    options = {"images": "far.txt", "labels": "far/{name}_label.tif"}
    first = module(tmp_path, **options)
    first.scan()
    path = f"{server.address}/s2.tif"
    before = state_of(path)
    asked = server.control(answers=0)
    again = module(tmp_path, **options)
    again.scan()
    assert again.notes == []
    assert server.control()["answers"] == 0, asked  # the index holds, by what the server says of the files
    write_raster(server.folder / "s2.tif", np.ones((3, SIDE, SIDE), np.uint16), west=520_000.0)
    forget_states()
    assert state_of(path) != before
    changed = module(tmp_path, **options)
    changed.scan()
    assert changed.notes == [f"{path}: changed since the last run, and looked at again"]
    # and a run that knew the old one doesn't mix the two
    header = next(scene.header for scene in again._scenes.values() if scene.header.path == path)
    with pytest.raises(DataError, match=r"s2\.tif: has changed since this run looked at it first"):
        Pool().file(path, header.state)


def test_lists_that_can_not_be_meant(tmp_path, write_raster, server):
    write_scenes(server.folder, write_raster, 1)
    listed = tmp_path / "far.txt"
    listed.write_text(f"{server.address}/s0.tif\n{server.address}/s0.tif\n")
    with pytest.raises(DataError, match=r"far\.txt, line 2: .* is in line 1 already"):
        module(tmp_path, images="far.txt", labels="far/{name}_label.tif").scan()
    listed.write_text(f"{server.address}/s0.tif\nfar/s9.tif\n")
    with pytest.raises(DataError, match="1 images without label"):
        module(tmp_path, images="far.txt", labels="far/{name}_label.tif").scan()
    with pytest.raises(DataError, match=r"no image with a label matches 'none\.txt'"):
        module(tmp_path, images="none.txt", labels="far/{name}_label.tif").scan()


def test_a_list_a_split(tmp_path, write_raster, server):
    write_scenes(server.folder, write_raster, 3)
    for split, numbers in {"train": (0, 1), "val": (2,)}.items():
        (tmp_path / f"{split}.txt").write_text("\n".join(f"{server.address}/s{k}.tif" for k in numbers))
    data = module(tmp_path, images="{split}.txt", labels="far/{name}_label.tif", split=FolderSplit())
    data.scan()
    assert {split: len(items) for split, items in data.items.items()} == {"train": 2, "val": 1, "test": 0}
