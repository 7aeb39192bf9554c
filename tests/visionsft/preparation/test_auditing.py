"""The audit: small data sets of every task with known faults, of which each is found and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from typer.testing import CliRunner

import visionsft
from datamodules.errors import DataError
from visionsft.cli import app
from visionsft.preparation.auditing import audit

SCHEMA = Path(visionsft.__file__).parent / "evaluation/templates/audit.schema.json"
BACKBONE = "backbone: {name: test_resnet, weights: none}\n"
FRAMES = """\
data:
  kind: camera
  root: {root}
  layout: pairs
  images: "images/{{split}}/*.png"
  labels: "masks/{{split}}/{{name}}.png"
  classes: [{{name: ground, values: 0}}, {{name: sky, values: 1}}]
  ignore: [2]
"""


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _frame(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(30, 220, (8, 12, 3)).astype(np.uint8)
    return cv2.resize(small, (48, 32), interpolation=cv2.INTER_CUBIC)


def _frames(root: Path, *, train: int = 40) -> None:
    """Frames of noise, the sky above."""
    mask = np.zeros((32, 48), np.uint8)
    mask[:12] = 1
    for split, first, count in (("train", 0, train), ("val", 100, 12), ("test", 200, 12)):
        for seed in range(first, first + count):
            _write(root / f"images/{split}/{seed}.png", _frame(seed))
            _write(root / f"masks/{split}/{seed}.png", mask)


def _config(tmp_path: Path, text: str, **values: object) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text.format(**values) + BACKBONE)
    return path


def _found(result) -> set[tuple[str, str]]:
    """(check, file's name or place) of errors and warnings."""
    rows = [row for group in result.kinds if group.severity != "note" for row in group.findings]
    return {(row.check, Path(row.file).name if row.file else row.place) for row in rows}


@pytest.fixture
def frames(tmp_path: Path) -> tuple[Path, Path]:
    _frames(tmp_path / "data")
    return _config(tmp_path, FRAMES, root=tmp_path / "data"), tmp_path / "data"


def test_nothing_is_found_in_good_frames(frames, tmp_path) -> None:
    result = audit(frames[0], out=tmp_path / "out")
    assert _found(result) == set()
    assert result.exit_code(strict=True) == 0
    assert result.classes["train"]["sky"].pixels == 40 * 12 * 48
    assert "nothing found" in result.table() or not result.findings.count("warning")


def test_all_faults_of_frames_are_found_at_once(frames, tmp_path) -> None:
    config, root = frames
    data = (root / "images/train/1.png").read_bytes()
    (root / "images/train/1.png").write_bytes(data[: len(data) // 2])
    (root / "images/val/100.png").write_bytes(b"")
    (root / "masks/train/2.png").unlink()
    (root / "images/train/3.png").unlink()
    mask = np.array(Image.open(root / "masks/train/4.png"))
    _write(root / "masks/train/4.png", mask[:16])
    odd = mask.copy()
    odd[3:5, 10:14] = 9
    _write(root / "masks/train/5.png", odd)
    _write(root / "masks/train/6.png", np.stack([mask] * 3, axis=2))
    _write(root / "masks/train/7.png", np.full_like(mask, 2))
    _write(root / "images/train/8.png", np.zeros((32, 48, 3), np.uint8))
    _write(root / "images/train/9.png", np.repeat(_frame(9)[..., :1], 3, axis=2))
    (root / "images/test/300.png").write_bytes((root / "images/train/10.png").read_bytes())
    (root / "masks/test/300.png").write_bytes((root / "masks/train/10.png").read_bytes())
    result = audit(config, out=tmp_path / "out")
    assert _found(result) == {
        ("unreadable image", "1.png"), ("unreadable image", "100.png"), ("image without label", "2.png"),
        ("label without image", "3.png"), ("label size", "4.png"), ("unknown value", "5.png"),
        ("label form", "6.png"), ("nothing labelled", "7.png"), ("constant image", "8.png"),
        ("grey image", "9.png"), ("identical across splits", "300.png"),
    }  # fmt: skip
    row = next(row for group in result.kinds if group.check == "unknown value" for row in group.findings)
    assert (row.found, row.count, row.box) == ("9 in 8 pixels", 8, (3, 10, 2, 4))
    assert result.exit_code() == 1
    written = json.loads((tmp_path / "out/audit.json").read_text())
    jsonschema.validate(written, json.loads(SCHEMA.read_text()))
    page = (tmp_path / "out/index.html").read_text()
    assert "data:image/jpeg" in page
    assert "5.png" in page


def test_exit_codes_of_the_command(frames, tmp_path) -> None:
    config, root = frames
    call = lambda *more: CliRunner().invoke(app, ["audit", str(config), "--out", str(tmp_path / "out"), *more])  # noqa: E731
    assert call("--strict").exit_code == 0
    _write(root / "images/train/8.png", np.zeros((32, 48, 3), np.uint8))
    assert call().exit_code == 0
    assert call("--strict").exit_code == 1
    (root / "images/train/8.png").write_bytes(b"no picture")
    assert call().exit_code == 1
    assert call("--set", "data.batch_size=no").exit_code == 2
    assert call("--set", "data.root=nowhere").exit_code == 2
    assert call("--run", "nowhere").exit_code == 2


def test_a_pool_unlike_the_data_is_told(frames, tmp_path) -> None:
    for seed in range(30):
        _write(tmp_path / f"pool/{seed}.png", (_frame(500 + seed) // 3).astype(np.uint8))
    result = audit(frames[0], pool=[tmp_path / "pool"], out=tmp_path / "out")
    assert ("unlike train", "train and pool") in _found(result)


def _scene(path: Path, values: np.ndarray, *, crs: str | None = "EPSG:32633", west: int = 0, nodata=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    place = {} if crs is None else {"crs": crs, "transform": from_origin(500_000 + west, 5_400_000, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", nodata=nodata, **shape, **place) as file:
        file.write(values)


SCENES = """\
data:
  kind: geotiff
  root: {root}
  images: "{{split}}/images/*.tif"
  labels: "{{split}}/labels/{{name}}.tif"
  classes: [{{name: a, values: 1}}, {{name: b, values: 2}}]
  chip: 32
  scale: {scale}
"""


def test_faults_of_scenes(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        split = ("train", "train", "train", "train", "val", "test")[number]
        values = rng.integers(200, 3000, (3, 48, 48)).astype(np.uint16)
        label = rng.integers(1, 3, (1, 48, 48)).astype(np.uint8)
        if number == 0:
            values[1] = 77
        if number == 1:
            label[0, :2, :3] = 7
        _scene(tmp_path / f"data/{split}/images/{number}.tif", values, west=number * 5000)
        _scene(tmp_path / f"data/{split}/labels/{number}.tif", label, west=number * 5000)
    broken = tmp_path / "data/train/images/2.tif"
    broken.write_bytes(broken.read_bytes()[:3000])
    _scene(tmp_path / "data/train/images/3.tif", np.ones((2, 48, 48), np.uint16), west=15_000)
    result = audit(_config(tmp_path, SCENES, root=tmp_path / "data", scale=1), out=tmp_path / "out")
    found = {pair for pair in _found(result) if not pair[0].startswith("too rare")}
    assert found >= {
        ("unreadable image", "2.tif"), ("band count", "3.tif"), ("unknown value", "1.tif"), ("empty band", "0.tif"),
    }  # fmt: skip
    assert {check for check, _ in found} <= {
        "unreadable image", "band count", "unknown value", "empty band", "value range",
    }  # fmt: skip
    assert any(check == "value range" for check, _ in found)  # scale 1 for values up to 3000
    result = audit(_config(tmp_path, SCENES, root=tmp_path / "data", scale=3000), out=tmp_path / "out")
    assert not any(check == "value range" for check, _ in _found(result))


def test_labels_that_contradict_each_other_about_the_same_ground(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for number, west in enumerate((0, 240, 5000, 10_000)):  # the second shows half of what the first does
        split = ("train", "train", "val", "test")[number]
        values = rng.integers(200, 3000, (3, 48, 48)).astype(np.uint16)
        _scene(tmp_path / f"data/{split}/images/{number}.tif", values, west=west)
        label = np.full((1, 48, 48), 1 + number % 2, np.uint8)
        _scene(tmp_path / f"data/{split}/labels/{number}.tif", label, west=west)
    result = audit(_config(tmp_path, SCENES, root=tmp_path / "data", scale=3000), out=tmp_path / "out")
    (text,) = [row.found for group in result.kinds for row in group.findings if row.check == "contradiction"]
    assert "labels of 1 of 2 train samples contradict those of train" in text


OBJECTS = """\
task: {{kind: detection}}
data:
  kind: camera
  layout: voc
  root: {root}
  split: {{by: scene, val: 0.2, test: 0.2}}
  classes: [{{name: Tree, values: [Tree, Treee]}}, {{name: Bush, values: Bush}}]
  ignore: [Weed]
"""


def _voc(path: Path, objects: list[tuple[str, object, object, object, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = ("xmin", "ymin", "xmax", "ymax")
    texts = [
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
        + "</bndbox></object>"
        for name, *box in objects
    ]
    path.write_text(f"<annotation>{''.join(texts)}</annotation>")


def test_all_faults_of_objects_are_found_at_once(tmp_path) -> None:
    root = tmp_path / "data"
    for seed in range(10):
        _write(root / f"images/{seed}.png", _frame(seed))
        _voc(root / f"annotations/{seed}.xml", [("Tree", 5, 5, 25, 25), ("Bush", 25, 4, 44, 28)])
    _voc(
        root / "annotations/0.xml",
        [
            ("Tree", 5, 5, 25, 25), ("Treee", 5, 5, 25, 25.2), ("Tre", 9, 9, 30, 30), ("", 2, 2, 20, 20),
            ("Bush", 30, 10, 20, 20), ("Bush", "nan", 1, 20, 20), ("Bush", 100, 100, 120, 120),
            ("Bush", 20, 5, 60, 25), ("Bush", 1, 1, 4, 4), ("Bush", "left", 1, 20, 20), ("Weed", 1, 1, 20, 20),
        ],
    )  # fmt: skip
    result = audit(_config(tmp_path, OBJECTS, root=root), out=tmp_path / "out")
    counts = {group.check: group.count for group in result.kinds if "rare" not in group.check}
    assert counts == {
        "broken record": 1, "unknown name": 1, "unnamed object": 1, "degenerate box": 2, "box outside": 1,
        "misspelt name": 1, "duplicated box": 1, "box beyond edge": 1, "tiny box": 1,
    }  # fmt: skip
    names = [row.found for group in result.kinds if group.check == "unknown name" for row in group.findings]
    assert names == ["'Tre', nearest: Tree"]


LABELLED = """\
task: {{kind: classification}}
data:
  kind: camera
  layout: csv
  root: {root}
  annotations: labels.csv
  split: {{by: scene, val: 0.25, test: 0.25}}
  classes: [{{name: a, values: a}}, {{name: b, values: b}}]
"""


def test_faults_of_labelled_images(tmp_path) -> None:
    root = tmp_path / "data"
    lines = ["image,label"]
    for seed in range(40):
        _write(root / f"{seed}.png", _frame(seed))
        lines.append(f"{seed}.png,{'ab'[seed % 2]}")
    lines[6], lines[8] = "5.png,aa", "7.png,a;b"
    _write(root / "9.png", _frame(9)[:20])
    (root / "labels.csv").write_text("\n".join([*lines, "99.png,a"]))
    result = audit(_config(tmp_path, LABELLED, root=root), out=tmp_path / "out")
    found = {(check, name) for check, name in _found(result) if "rare" not in check}
    assert found == {
        ("unknown label", "5.png"), ("broken record", "labels.csv"), ("image size", "9.png"),
        ("label without image", f"labels.csv, line 42: {root}/99.png".rpartition("/")[2]),
        ("image without label", "7.png"),
    }  # fmt: skip


def test_data_without_any_file_is_refused(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="no images"):
        audit(_config(tmp_path, FRAMES, root=tmp_path / "data"), out=tmp_path / "out")


@pytest.mark.slow
def test_neon_trees(shared, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(Path(visionsft.__file__).parents[1])
    overrides = [f"data.root={shared / 'data/neon_trees'}"]
    result = audit("configs/satellite/neon_trees.yaml", overrides, out=tmp_path)
    counts = {group.check: group.count for group in result.kinds}
    assert (counts["misspelt name"], counts["unnamed object"], counts["box outside"]) == (12, 11, 1)
