"""Export: a trained model as one ONNX file that says what it takes and gives, checked against PyTorch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visionsft.errors import ConfigError, ConversionError, WriteError
from visionsft.files import atomic_path
from visionsft.models.inference import compute_logits
from visionsft.prediction.conversion import OPSET, open_session, require, to_onnx
from visionsft.prediction.parity import EXACT, Parity, compare
from visionsft.runs import Checkpoint, Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun


@dataclass(frozen=True)
class Export:
    """A file that `export_onnx` has written."""

    path: Path
    shape: tuple[int, int, int]
    """(C, H, W) of an image; the number of images is free."""
    num_classes: int
    parity: Parity
    """ONNX Runtime's logits against PyTorch's, both in float32, on random images."""

    def __str__(self) -> str:
        bands, height, width = self.shape
        return (
            f"{self.path}: ONNX opset {OPSET}, {self.path.stat().st_size / 1e6:.1f} MB\n"
            f"image (N, {bands}, {height}, {width}) float32, normalised as its metadata say -> "
            f"logits (N, {self.num_classes}, {height}, {width}) float32; N is free, the size is fixed\n"
            f"against PyTorch, on random images: {self.parity}"
        )


def export_onnx(
    run: Run | str | Path,
    out: str | Path,
    *,
    size: tuple[int, int] | None = None,
    checkpoint: Checkpoint = "best",
    overwrite: bool = False,
) -> Export:
    """Write a run's model to the ONNX file `out`, if ONNX Runtime gives PyTorch's results with it.

    size: (H, W) of its input; default: that of the training's crops. Test-time views aren't part of the file.
    """
    from visionsft.training.loading import load_run  # imported late, as in visionsft.evaluation

    out = Path(out)
    if out.exists() and not overwrite:
        raise WriteError(f"{out}: exists; --overwrite replaces it")
    require("onnxruntime", extra="onnx")  # now, and not after the slow steps
    run = run if isinstance(run, Run) else Run.open(run)
    run.require_segmentation("the export")
    loaded = load_run(run, checkpoint, device="cpu")
    height, width = size or _training_size(loaded)
    if min(height, width) < 1:
        raise ConfigError(f"size {height} x {width}: height and width, in pixels, are above 0")
    images = torch.randn(2, len(loaded.data.bands), height, width, generator=torch.Generator().manual_seed(0))
    proto = to_onnx(loaded.model, images)
    for key, value in _metadata(loaded, (height, width), checkpoint).items():
        proto.metadata_props.add(key=key, value=value)
    with atomic_path(out) as path:
        path.write_bytes(proto.SerializeToString())
        parity = _check(path, loaded, images)
    return Export(out, (images.shape[1], height, width), len(loaded.data.classes.names), parity)


def _training_size(loaded: LoadedRun) -> tuple[int, int]:
    size: tuple[int, int] | None = getattr(loaded.data, "chip", None)
    if size is None:
        raise ConfigError(
            f"{loaded.run.path}: was trained on whole frames; say --size HEIGHT WIDTH of the exported input"
        )
    return size


def _metadata(loaded: LoadedRun, size: tuple[int, int], checkpoint: str) -> dict[str, str]:
    """The file's metadata properties; lists are JSON."""
    data = loaded.data
    facts: dict[str, Any] = {
        "classes": data.classes.names,
        "bands": data.bands,
        "mean": data.normalisation.mean,
        "std": data.normalisation.std,
        "input_size": size,
    }
    return {
        **{key: json.dumps(list(value), ensure_ascii=False) for key, value in facts.items()},
        "input": "image (N, bands, height, width) float32: (raw - mean) / std, band by band, in the units of "
        f"the training's files ({data.dtype}); 0 where a pixel is not valid",
        "output": "logits (N, classes, height, width) float32 at the input's pixels; argmax over the classes "
        "is the class, softmax the probabilities",
        "run": loaded.run.name,
        "checkpoint": checkpoint,
    }


def _check(path: Path, loaded: LoadedRun, images: Tensor) -> Parity:
    """Parity of the written file on one image and on two; ConversionError if it isn't the model."""
    session = open_session(path.read_bytes())
    reference = compute_logits(loaded.model, images, precision=None, channels_last=loaded.channels_last)
    for count in (1, len(images)):
        found = session.run(None, {"image": images[:count].numpy()})[0]
        parity = compare(torch.from_numpy(found), reference[:count])
        if not EXACT.admits(parity):
            raise ConversionError(f"the ONNX file gives other results than PyTorch: {parity}; {EXACT}")
    return parity
