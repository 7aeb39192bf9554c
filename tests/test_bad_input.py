"""Bad input, through the command line: exit code 2, a message that names what is wrong, and nothing half-written."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.transform import from_origin
from typer.testing import CliRunner

from visionsft.cli import app

SIZE = 64


def write_tif(path: Path, values: np.ndarray, **changes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "crs": "EPSG:32632",
        "transform": from_origin(5e5, 5e6, 10, 10),
    }
    with rasterio.open(path, "w", **{**profile, **changes}) as file:
        file.write(values)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Three splits of two float32 scenes with labels 1 and 2; returns the configuration's path."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in (1, 2):
            mask = rng.integers(1, 3, (1, SIZE // 8, SIZE // 8), np.uint8).repeat(8, 1).repeat(8, 2)
            image = mask.repeat(3, 0) * 0.2 + rng.normal(0, 0.02, (3, SIZE, SIZE))
            write_tif(tmp_path / "data" / split / "images" / f"{split}{number}.tif", image.astype(np.float32))
            write_tif(tmp_path / "data" / split / "labels" / f"{split}{number}.tif", mask, nodata=0)
    data = {
        "kind": "geotiff",
        "root": str(tmp_path / "data"),
        "images": "{split}/images/*.tif",
        "labels": "{split}/labels/{name}.tif",
        "classes": [{"name": "low", "values": 1}, {"name": "high", "values": 2}],
        "normalise": "data",
        "chip": 32,
        "chips_per_epoch": 4,
        "batch_size": 2,
        "workers": 0,
    }
    return config(tmp_path, data)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Two frames a split with masks 0 and 1; returns the configuration's path."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in (1, 2):
            mask = rng.integers(0, 2, (SIZE // 8, SIZE // 8), np.uint8).repeat(8, 0).repeat(8, 1)
            image = (mask[..., None] * 100 + rng.integers(0, 40, (SIZE, SIZE, 3))).astype(np.uint8)
            for kind, pixels in (("images", image), ("masks", mask)):
                (tmp_path / "data" / kind / split).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(tmp_path / "data" / kind / split / f"{split}{number}.png"), pixels)
    data = {
        "kind": "camera",
        "root": str(tmp_path / "data"),
        "images": "images/{split}/*.png",
        "labels": "masks/{split}/{name}.png",
        "classes": [{"name": "dark", "values": 0}, {"name": "bright", "values": 1}],
        "normalise": "data",
        "batch_size": 2,
        "workers": 0,
    }
    return config(tmp_path, data)


def config(folder: Path, data: dict[str, Any]) -> Path:
    values = {
        "runs": str(folder / "runs"),
        "data": data,
        "backbone": {"name": "test_resnet", "weights": "none"},
        "head": {"name": "linear"},
        "trainer": {"epochs": 1, "accelerator": "cpu", "precision": "32"},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and message."""
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr


def image(path: Path) -> Path:
    return path.parent / "data" / "train" / "images" / "train1.tif"


def label(path: Path) -> Path:
    return path.parent / "data" / "train" / "labels" / "train1.tif"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], **profile: Any) -> None:
    with rasterio.open(path) as file:
        values = file.read()
    write_tif(path, change(values), **profile)


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.full_like(values, value)


def all_nodata(path: Path) -> None:
    for number in (1, 2):
        rewrite(image(path).with_name(f"train{number}.tif"), with_value(-1), nodata=-1)


SCENE_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated image": (lambda path: truncate(image(path)), "train1.tif"),
    "truncated label": (lambda path: truncate(label(path)), "train1.tif"),
    "empty file": (lambda path: image(path).write_bytes(b""), "train1.tif"),
    "label of another size": (
        lambda path: rewrite(label(path), lambda values: values[:, :32], crs=None, transform=None),
        "train1.tif",
    ),
    "label value outside the classes": (lambda path: rewrite(label(path), with_value(9)), "9"),
    "no CRS on one scene": (lambda path: rewrite(image(path), lambda values: values, crs=None), "CRS"),
    "bands missing on one scene": (lambda path: rewrite(image(path), lambda values: values[:2]), "train1.tif"),
    "all scenes nodata": (all_nodata, "valid pixel"),
    "image without label": (lambda path: label(path).unlink(), "without label"),
    "label without image": (lambda path: image(path).unlink(), "without image"),
    "NaN throughout": (
        lambda path: [rewrite(image(path).with_name(f"train{n}.tif"), with_value(np.nan)) for n in (1, 2)],
        "valid pixel",
    ),
}


@pytest.mark.parametrize("fault", SCENE_FAULTS)
def test_scene(scenes: Path, fault: str) -> None:
    spoil, said = SCENE_FAULTS[fault]
    spoil(scenes)
    code, message = run("fit", scenes)
    assert code == 2, message
    assert said in message
    assert not list(scenes.parent.rglob("*.partial*"))
    assert not list(scenes.parent.rglob("*.ckpt"))


@pytest.mark.parametrize("fault", ["truncated image", "bands missing on one scene", "image without label"])
def test_skipped_scene_is_counted_and_named(scenes: Path, fault: str) -> None:
    SCENE_FAULTS[fault][0](scenes)
    code, message = run("fit", scenes, "--set", "data.on_error=skip")
    assert code == 0, message
    card = json.loads((scenes.parent / "runs" / "job" / "data.json").read_text())
    named = [path for path, _ in card["skipped"]] + card["unmatched"]
    assert any("train1.tif" in path for path in named)
    assert card["samples"]["train"] == 1


def test_some_nan_is_only_invalid(scenes: Path) -> None:
    def half(values: np.ndarray) -> np.ndarray:
        values[:, :32] = np.nan
        return values

    rewrite(image(scenes), half)
    code, message = run("fit", scenes)
    assert code == 0, message


def test_class_that_never_occurs_is_noted(scenes: Path) -> None:
    values = yaml.safe_load(scenes.read_text())
    values["data"]["classes"].append({"name": "absent", "values": 7})
    scenes.write_text(yaml.safe_dump(values))
    result = CliRunner().invoke(app, ["fit", str(scenes)])
    assert result.exit_code == 0, result.stderr
    assert "'absent' never occurs" in result.output


def test_empty_folder(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, message = run("fit", scenes, "--set", f"data.root={tmp_path / 'empty'}")
    assert code == 2
    assert "empty" in message


FRAME_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a PNG that isn't one": (lambda root: (root / "images/train/train1.png").write_text("hello"), "train1.png"),
    "truncated PNG": (lambda root: truncate(root / "images/train/train1.png"), "train1.png"),
    "mask of another size": (
        lambda root: cv2.imwrite(str(root / "masks/train/train1.png"), np.zeros((8, 9), np.uint8)),
        "train1.png",
    ),
    "mask value outside the classes": (
        lambda root: cv2.imwrite(str(root / "masks/train/train1.png"), np.full((SIZE, SIZE), 7, np.uint8)),
        "7",
    ),
    "image without mask": (lambda root: (root / "masks/train/train1.png").unlink(), "train1.png"),
    "mask without image": (lambda root: (root / "images/train/train1.png").unlink(), "train1.png"),
}


@pytest.mark.parametrize("fault", FRAME_FAULTS)
def test_frame(frames: Path, fault: str) -> None:
    spoil, said = FRAME_FAULTS[fault]
    spoil(frames.parent / "data")
    code, message = run("fit", frames)
    assert code == 2, message
    assert said in message
    assert not (frames.parent / "runs").exists()


def test_weights_of_another_architecture(frames: Path, tmp_path: Path) -> None:
    weights = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(3)}, weights)
    code, message = run("fit", frames, "--set", f"backbone.weights={weights}")
    assert code == 2
    assert "another architecture" in message
    assert not (tmp_path / "runs").exists()


class Code:
    def __reduce__(self) -> Any:
        return print, ("this code must not run",)


def test_pickle_with_code(frames: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "evil.pth"
    weights.write_bytes(pickle.dumps({"state_dict": Code()}))
    code, message = run("fit", frames, "--set", f"backbone.weights={weights}")
    assert code == 2
    assert "evil.pth" in message
    assert "must not run" not in capfd.readouterr().out


def test_disk_that_fills(frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    code, message = run("fit", frames)
    assert code == 2
    assert ".ckpt" in message
    assert not list(frames.parent.rglob("*.ckpt"))


def test_half_written_run(frames: Path) -> None:
    assert run("fit", frames)[0] == 0
    folder = frames.parent / "runs" / "job"
    (folder / "data.json").write_text("{")
    code, message = run("evaluate", folder)
    assert code == 2
    assert "data.json" in message
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"PK")
    code, message = run("evaluate", folder)
    assert code == 2
    assert "best.ckpt" in message
    (folder / "config.yaml").unlink()
    code, message = run("evaluate", folder)
    assert code == 2
    assert "config.yaml" in message
