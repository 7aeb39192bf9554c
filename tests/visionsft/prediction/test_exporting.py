"""Export: a file that any ONNX runtime computes as PyTorch does, knowing nothing but the file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from backbones import create_backbone
from datamodules import Normalisation
from visionsft.cli import app
from visionsft.config import Backbone, CameraData, SegmentationConfig
from visionsft.errors import ConfigError, ConversionError, WriteError
from visionsft.models import create_model
from visionsft.prediction import export_onnx, exporting
from visionsft.runs import Run

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

BANDS = ("blue", "green", "red", "nir")
CLASSES = ("Wald", "Straße", "water")
NORMALISATION = Normalisation(mean=(300.0, 500.0, 600.0, 2500.0), std=(100.0, 200.0, 300.0, 900.0))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = create_model(create_backbone("test_resnet", weights="none", in_chans=4), 3, head="linear")
    return model.eval().requires_grad_(False)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module) -> Run:
    """A run folder that loads as the model."""
    config = SegmentationConfig(
        name="tiny",
        runs=tmp_path / "runs",
        data=CameraData(kind="camera", root=tmp_path),
        backbone=Backbone(name="test_resnet", weights="none"),
    )
    run = Run.create(config)
    data = SimpleNamespace(
        bands=BANDS,
        chip=(48, 64),
        classes=SimpleNamespace(names=CLASSES),
        normalisation=NORMALISATION,
        dtype=np.dtype("uint16"),
    )
    loaded = SimpleNamespace(model=model, data=data, run=run, channels_last=False)
    loading = SimpleNamespace(load_run=lambda run, checkpoint, device: loaded)
    monkeypatch.setitem(sys.modules, "visionsft.training.loading", loading)
    return run


def test_the_file_alone_tells_how_to_use_it(run: Run, model: torch.nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    result = CliRunner().invoke(app, ["export", str(run.path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "classes agree on 100.00%" in result.output or "no pixel has a clear class" in result.output
    onnx.checker.check_model(onnx.load(out), full_check=True)

    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert json.loads(facts["bands"]) == list(BANDS)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert taken.shape[1:] == [len(BANDS), *json.loads(facts["input_size"])] == [4, 48, 64]
    assert given.shape[1:] == [len(CLASSES), 48, 64]

    raw = np.random.default_rng(0).integers(0, 5000, (3, 4, 48, 64)).astype(np.uint16)
    mean, std = (np.array(json.loads(facts[key]), np.float32)[:, None, None] for key in ("mean", "std"))
    logits = session.run([given.name], {taken.name: (raw - mean) / std})[0]
    everywhere = np.ones(raw.shape[2:], bool)
    wanted = model(torch.from_numpy(np.stack([NORMALISATION(image, everywhere) for image in raw])))
    np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-5)


def test_a_file_that_exists_is_kept(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    with pytest.raises(WriteError, match=r"model\.onnx: exists; --overwrite replaces it"):
        export_onnx(run, out)
    assert out.read_text() == "mine"


def test_a_file_that_is_not_the_model_is_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = torch.nn.Conv2d(4, 3, 1)
    convert = exporting.to_onnx
    monkeypatch.setattr(exporting, "to_onnx", lambda model, image: convert(other, image))
    with pytest.raises(ConversionError, match=r"gives other results than PyTorch: .*logits by"):
        export_onnx(run, tmp_path / "new" / "model.onnx", size=(32, 32))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_size_that_no_image_has(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size 0 x 64"):
        export_onnx(run, tmp_path / "model.onnx", size=(0, 64))
