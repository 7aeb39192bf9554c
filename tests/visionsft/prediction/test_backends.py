"""Backends: the same results as PyTorch's, and how one is chosen."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from backbones import accelerate_depthwise, create_backbone
from visionsft.errors import ConfigError, RunError
from visionsft.models import create_model
from visionsft.prediction import conversion
from visionsft.prediction.backends import BACKENDS, choose_backend, create_backend
from visionsft.prediction.parity import compare
from visionsft.training.loading import LoadedRun

PACKAGES = {"onnxruntime": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}


def needs(name: str) -> None:
    missing = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def load(
    backbone: str,
    head: str = "fpn",
    *,
    bands: int = 3,
    img_size: tuple[int, int] | None = None,
    precision: torch.dtype | None = None,
) -> Any:
    """A model as `load_run` would give it, with weights under which all layers matter."""
    torch.manual_seed(0)
    made = create_backbone(backbone, weights="none", in_chans=bands, img_size=img_size)
    model = create_model(made, 5, head=head)
    accelerate_depthwise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LoadedRun(model=model, config=None, run=None, precision=precision, channels_last=True)  # type: ignore[arg-type]


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_odd_sizes_batches_and_sizes_in_turn(name: str) -> None:
    needs(name)
    loaded = load("test_efficientnet", "unet", bands=4)
    backend = create_backend(loaded, name)
    for shape in ((1, 4, 37, 50), (3, 4, 37, 50), (1, 4, 64, 32), (2, 4, 37, 50)):
        image = images(*shape)
        torch.testing.assert_close(backend(image), loaded.model(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_vit(name: str) -> None:
    """At the size of its position embedding: OpenVINO resamples one with a slightly different kernel."""
    needs(name)
    loaded, image = load("test_vit", "upernet", img_size=(64, 64)), images(2, 3, 64, 64)
    torch.testing.assert_close(create_backend(loaded, name)(image), loaded.model(image), rtol=0, atol=1e-4)


def test_openvino_computes_in_bfloat16_what_was_trained_in_it() -> None:
    """Its rounding errors tell: 8 bits of mantissa make some 0.5 %, where the CPU has the type."""
    needs("openvino")
    import openvino

    has_it = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    loaded, image = load("test_resnet", precision=torch.bfloat16), images(1, 3, 64, 64)
    error = compare(create_backend(loaded, "openvino")(image), loaded.model(image)).logits
    assert 1e-3 < error < 3e-2 if has_it else error < 1e-4


# ------------------------------------------------------------------------------------------------- choosing


class Stub:
    """Computes with PyTorch, `delay` seconds later, and then changes the logits."""

    def __init__(self, loaded: Any, change: Callable[[Tensor], Tensor], delay: float) -> None:
        self.loaded, self.change, self.delay = loaded, change, delay

    def __call__(self, image: Tensor) -> Tensor:
        time.sleep(self.delay)
        return self.change(self.loaded.model(image))


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Puts stubs in the place of backends; returns what 'auto' then chooses, and what it says."""

    def choose(changes: Mapping[str, Callable[[Tensor], Tensor]], delays: Mapping[str, float]) -> Any:
        for name in BACKENDS:
            stub = partial(Stub, change=changes.get(name, lambda logits: logits), delay=delays[name])
            monkeypatch.setitem(BACKENDS, name, stub)
        backend, text = choose_backend(load("test_resnet"), "auto", images(2, 3, 64, 64))
        return next(name for name, delay in delays.items() if backend.delay == delay), text

    return choose


DELAYS = {"openvino": 0.0, "onnxruntime": 0.02, "torch": 0.04}


@pytest.mark.parametrize("fastest", DELAYS)
def test_the_fastest_is_chosen(stubs: Callable[..., Any], fastest: str) -> None:
    chosen, text = stubs({}, {**DELAYS, **{"openvino": 0.06, fastest: 0.0}})
    assert chosen == fastest
    assert text.startswith(f"backend: {fastest}, the fastest of 3 ")
    assert text.count("Mpx/s") == 3


@pytest.mark.parametrize(
    "change",
    [
        torch.zeros_like,
        lambda logits: logits.flip(1),  # other classes
        lambda logits: logits.roll(1, 3),  # one pixel to the right
        lambda logits: logits.flip(0),  # images in another order
        lambda logits: logits * torch.nan,
        lambda logits: logits * 1.2,  # the same classes with other probabilities
    ],
)
def test_a_broken_backend_is_refused_loudly(
    stubs: Callable[..., Any], change: Callable[[Tensor], Tensor]
) -> None:
    chosen, text = stubs({"openvino": change}, DELAYS)
    assert chosen == "onnxruntime"
    first, refused, *others = text.splitlines()
    assert first.startswith("!! backend: onnxruntime, the fastest of 2 ")
    assert "NOT openvino" in first
    assert refused.startswith("  openvino: gives other results than PyTorch: ")
    assert len(others) == 2


def test_a_model_that_cant_be_converted_falls_back_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("no such operation: 'aten::conjure'\nand much more")

    for name in PACKAGES:
        needs(name)
    monkeypatch.setattr("torch.jit.trace", refuse)
    monkeypatch.setattr(
        "torch.onnx.export", lambda *_, **__: raise_from(torch.onnx.errors.OnnxExporterError("failed"))
    )
    backend, text = choose_backend(load("test_resnet"), "auto", images(1, 3, 64, 64))
    assert backend.name == "torch"
    assert text.startswith("!! backend: torch, the fastest of 1 ")
    assert "NOT openvino and onnxruntime" in text
    reason = "can't be converted to OpenVINO: no such operation: 'aten::conjure'"
    assert text.splitlines()[1:3] == [
        f"  openvino: fails: the model {reason}",
        "  onnxruntime: fails: the model can't be converted to ONNX: of that",
    ]


def raise_from(error: Exception) -> None:
    raise error from ValueError("of that")


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "find_spec", lambda name: None)
    loaded = load("test_resnet")
    backend, text = choose_backend(loaded, "auto", images(1, 3, 64, 64))
    assert backend.name == "torch"
    assert text.startswith("backend: torch, the fastest of 1 ")  # nothing has failed
    assert "  openvino: openvino is not installed: pip install 'visionsft[openvino]'\n" in text
    answer = r"^onnxruntime is not installed: pip install 'visionsft\[onnxruntime\]'$"
    with pytest.raises(ConfigError, match=answer):
        choose_backend(loaded, "onnxruntime", images(1, 3, 64, 64))


def test_a_name_that_no_backend_has() -> None:
    with pytest.raises(ConfigError, match="'onnxruntim': no such backend; did you mean 'onnxruntime'"):
        create_backend(load("test_resnet"), "onnxruntim")


def test_a_model_off_the_cpu_is_left_to_pytorch() -> None:
    model = torch.nn.Linear(1, 1, device="meta")
    loaded = SimpleNamespace(model=model, folded=model)
    backend, text = choose_backend(loaded, "auto", images(1, 3, 8, 8))  # type: ignore[arg-type]
    assert (backend.name, text) == ("torch", "backend: torch, as the model is on meta")


def test_other_runtimes_take_the_model_to_the_cpu() -> None:
    class Elsewhere(torch.nn.Linear):
        num_classes = 1

        def cpu(self) -> Elsewhere:
            self.to_empty(device="cpu").reset_parameters()  # what is on "meta" has no numbers to bring along
            return self

    loaded = SimpleNamespace(model=Elsewhere(1, 1, device="meta"))
    create_backend(loaded, "onnxruntime")  # type: ignore[arg-type]
    assert {values.device.type for values in loaded.model.parameters()} == {"cpu"}


def test_output_that_is_not_a_number() -> None:
    with pytest.raises(RunError, match="output is not a number"):
        create_backend(load("test_resnet"), "torch")(images(1, 3, 32, 32) * torch.nan)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_weight_that_is_not_a_number(name: str) -> None:
    """Not seen in OpenVINO's output, where ReLU(nan) = 0."""
    if name in PACKAGES:
        needs(name)
    loaded = load("test_resnet")
    first, weight = next(loaded.model.named_parameters())
    weight[0] = torch.nan
    with pytest.raises(RunError, match=f"weight {re.escape(first)} is not a number"):
        create_backend(loaded, name)


def test_signals_are_safe_after_openvino() -> None:
    """Two backends that go in the order they came, and then a signal; in a process of its own, which it may cost."""
    needs("openvino")
    code = """
import gc, signal, subprocess
from types import SimpleNamespace
import torch
from visionsft.prediction.backends import create_backend
signal.signal(signal.SIGCHLD, lambda *given: None)  # as torch's loaders do
backends = []
for _ in range(2):
    model = torch.nn.Conv2d(3, 2, 3, padding=1).eval()
    model.num_classes = 2
    loaded = SimpleNamespace(model=model, precision=None, channels_last=False)
    backends.append(create_backend(loaded, "openvino"))
    backends[-1](torch.zeros(1, 3, 16, 16))
while backends:
    backends.pop(0)
    gc.collect()
subprocess.run(["true"], check=True)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
