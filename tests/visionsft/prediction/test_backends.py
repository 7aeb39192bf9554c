"""Backends: the same results as PyTorch's, and how one is chosen."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from backbones import accelerate_depthwise, create_backbone
from visionsft.errors import ConfigError, RunError
from visionsft.models import create_model
from visionsft.prediction import backends, conversion
from visionsft.prediction.backends import choose_backend, create_backend

PACKAGES = {"onnxruntime": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}


def needs(name: str) -> None:
    missing = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def load(backbone: str, head: str = "fpn", *, bands: int = 3, precision: torch.dtype | None = None) -> Any:
    """A model as `load_run` would give it, with weights under which all layers matter."""
    torch.manual_seed(0)
    model = create_model(create_backbone(backbone, weights="none", in_chans=bands), 5, head=head)
    accelerate_depthwise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return SimpleNamespace(model=model, precision=precision, channels_last=True)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("test_efficientnet", "unet"),
        ("test_vit", "segformer"),
        ("test_resnet", "upernet"),
        ("test_convnext", "linear"),
    ],
)
def test_a_backend_gives_the_logits_of_pytorch(name: str, backbone: str, head: str) -> None:
    needs(name)
    loaded, image = load(backbone, head), images(2, 3, 64, 64)
    logits = create_backend(loaded, name)(image)
    torch.testing.assert_close(logits, loaded.model(image), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_sizes_off_the_grid_batches_and_sizes_in_turn(name: str) -> None:
    needs(name)
    loaded = load("test_resnet", bands=4)
    backend = create_backend(loaded, name)
    for shape in ((1, 4, 37, 50), (3, 4, 37, 50), (1, 4, 64, 32), (2, 4, 37, 50)):
        image = images(*shape)
        torch.testing.assert_close(backend(image), loaded.model(image), rtol=0, atol=1e-4)
