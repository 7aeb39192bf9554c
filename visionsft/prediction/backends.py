"""Backends: what computes a trained model's logits: PyTorch itself, ONNX Runtime or OpenVINO.

All are called alike and used one image size at a time: the two runtimes convert the model anew for each size
(seconds), and keep the last few.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from visionsft.errors import ConfigError, ConversionError, RunError, nearest
from visionsft.memory import keeping_freed_memory
from visionsft.models.inference import check_numbers, check_weights, compute_logits
from visionsft.prediction.conversion import open_session, require, to_onnx, to_openvino
from visionsft.prediction.parity import REDUCED, compare

if TYPE_CHECKING:
    import openvino

    from visionsft.training.loading import LoadedRun

Choice = Literal["auto", "torch", "onnxruntime", "openvino"]

SIZES = 2
"""Image sizes that a runtime keeps the converted model of."""
PARITY_PIXELS = 1024 * 1024
"""Of the probe, that backends are compared on: float32 PyTorch, the reference, is slow."""


class Backend(Protocol):
    """Computes logits; whole batches of one shape are fastest."""

    name: str

    def __call__(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W) float32, normalised -> logits (B, K, H, W) float32; RunError if one is nan.

        They are on the CPU or the model's device.
        """


class TorchBackend:
    """The model eager, in the run's precision and memory format, on its device; folded where that is a CPU."""

    name = "torch"

    def __init__(self, loaded: LoadedRun) -> None:
        self._loaded = loaded
        _ = loaded.folded  # now, not while the first tile waits

    def __call__(self, image: Tensor) -> Tensor:
        return self._loaded.logits(image)


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU, in float32."""

    name = "onnxruntime"

    def __init__(self, loaded: LoadedRun) -> None:
        require("onnxruntime", extra="onnxruntime")
        self._num_classes = loaded.model.num_classes
        self._session = lru_cache(SIZES)(
            lambda shape: open_session(to_onnx(loaded.model, torch.zeros(1, *shape)).SerializeToString())
        )

    def __call__(self, image: Tensor) -> Tensor:
        image = image.cpu().contiguous()
        session = self._session(tuple(image.shape[1:]))
        logits = _room_for_logits(image, self._num_classes)
        binding = session.io_binding()  # what `run` returns is a copy
        binding.bind_cpu_input("image", image.numpy())
        binding.bind_output("logits", "cpu", 0, np.float32, tuple(logits.shape), logits.data_ptr())
        session.run_with_iobinding(binding)
        return check_numbers(logits)


class OpenVinoBackend:
    """OpenVINO on the CPU, in bfloat16 where training was in reduced precision and the CPU computes in it.

    A batch is computed image by image, several at once, which uses the cores better than all of them on one
    (measured: tf_efficientnet_lite0 with fpn, eight 256x256 images on two cores, 1.3 times as fast).
    """

    name = "openvino"

    def __init__(self, loaded: LoadedRun) -> None:
        require("openvino", extra="openvino")
        self._core = _openvino_core()
        reduced = loaded.precision is not None and "BF16" in self._core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        )
        self._precision = "bf16" if reduced else "f32"
        self._num_classes = loaded.model.num_classes
        self._converted = lru_cache(SIZES)(lambda shape: to_openvino(loaded.model, torch.zeros(1, *shape)))
        self._requests = lru_cache(SIZES)(self._create_requests)

    def __call__(self, image: Tensor) -> Tensor:
        from openvino import Tensor as SharedTensor

        image = image.cpu().contiguous()
        logits = _room_for_logits(image, self._num_classes)
        requests = self._requests(tuple(image.shape))
        for request, source, target in zip(requests, image.split(1), logits.split(1), strict=True):
            request.set_input_tensor(SharedTensor(source.numpy(), shared_memory=True))
            request.set_output_tensor(SharedTensor(target.numpy(), shared_memory=True))
            request.start_async()
        for request in requests:
            request.wait()
        return check_numbers(logits)

    def _create_requests(self, shape: tuple[int, int, int, int]) -> list[openvino.InferRequest]:
        """One for each image of a batch."""
        count = shape[0]
        options = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY" if count == 1 else "THROUGHPUT",
            "PERFORMANCE_HINT_NUM_REQUESTS": count,
            "ENABLE_CPU_PINNING": False,  # pinned to cores that others use, too, it waits for them
        }
        compiled = self._core.compile_model(self._converted(shape[1:]), "CPU", options)
        return [compiled.create_infer_request() for _ in range(count)]


def _room_for_logits(image: Tensor, num_classes: int) -> Tensor:
    """Uninitialised; in memory that the process has already, as new pages take some time."""
    with keeping_freed_memory():
        return torch.empty(len(image), num_classes, *image.shape[2:])


@lru_cache(1)
def _openvino_core() -> openvino.Core:
    """One for the whole process, never freed.

    Each core's CPU plugin gives the thread a larger stack for signals, and puts the one before it back when it goes:
    of two that go in the order they came, the second puts back what the first has freed, and the next signal (Ctrl-C,
    a loader process that ends) is a segmentation fault. Seen with OpenVINO 2026.4.
    """
    import openvino

    return openvino.Core()


BACKENDS: dict[str, type[TorchBackend] | type[OnnxRuntimeBackend] | type[OpenVinoBackend]] = {
    "openvino": OpenVinoBackend,
    "onnxruntime": OnnxRuntimeBackend,
    "torch": TorchBackend,
}
"""By name."""


def create_backend(loaded: LoadedRun, name: str) -> Backend:
    """The backend of that name; ConfigError if there is none, or it can't be used here."""
    if name not in BACKENDS:
        close = nearest(name, BACKENDS)
        hint = f"; did you mean '{close}'?" if close else ""
        raise ConfigError(f"backend '{name}': no such backend{hint}; there are auto, {', '.join(BACKENDS)}")
    if name != "torch":
        loaded.model.cpu()  # the runtimes here compute on the CPU, and logits come back from where the model is
        check_weights(loaded.model)
    return BACKENDS[name](loaded)


# ------------------------------------------------------------------------------------------------- choosing


@dataclass(frozen=True)
class Trial:
    """One backend on the probe."""

    name: str
    outcome: str
    """Speed and parity, or why it can't be used."""
    seconds: float = math.inf
    """Of one call; inf: can't be used."""
    backend: Backend | None = None
    failed: bool = False
    """Installed, and yet it can't be used."""


def choose_backend(loaded: LoadedRun, name: Choice, probe: Tensor) -> tuple[Backend, str]:
    """The backend of that name; for 'auto' the fastest that is installed and agrees with float32 PyTorch.

    probe: (B, C, H, W) float32, normalised: real images, in the shape that will be computed. Returns also what
    was chosen and why, to be printed. On a GPU 'auto' is PyTorch.
    """
    if name != "auto":
        return create_backend(loaded, name), f"backend: {name}, as asked for"
    device = next(loaded.model.parameters()).device.type
    if device != "cpu":
        return TorchBackend(loaded), f"backend: torch, as the model is on {device}"
    start = time.perf_counter()
    part = probe[: max(1, PARITY_PIXELS // probe[0, 0].numel())]
    reference = compute_logits(loaded.model, part, precision=None, channels_last=loaded.channels_last)
    trials = [_try(loaded, candidate, probe, reference) for candidate in BACKENDS]
    best = min(trials, key=lambda trial: trial.seconds)
    assert best.backend is not None, "PyTorch can always be used"
    return best.backend, _report(best, trials, seconds=time.perf_counter() - start)


def _try(loaded: LoadedRun, name: str, probe: Tensor, reference: Tensor) -> Trial:
    """reference: logits of the probe's first images. PyTorch is never refused: it computes as in training."""
    try:
        backend = create_backend(loaded, name)
        parity = compare(backend(probe)[: len(reference)], reference)
    except ConfigError as error:
        return Trial(name, str(error))
    except (ConversionError, RunError, RuntimeError) as error:  # the last: what a runtime itself raises
        return Trial(name, f"fails: {error}", failed=True)
    if name != "torch" and not REDUCED.admits(parity):
        return Trial(name, f"gives other results than PyTorch: {parity}; {REDUCED}", failed=True)
    seconds = _time(backend, probe)
    return Trial(name, f"{probe[:, 0].numel() / seconds / 1e6:.2f} Mpx/s; {parity}", seconds, backend)


def _time(backend: Backend, probe: Tensor) -> float:
    """Seconds of the fastest of a few calls; it has been warmed up."""
    seconds: list[float] = []
    while len(seconds) < 5 and sum(seconds) < 1:
        start = time.perf_counter()
        backend(probe)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _report(best: Trial, trials: list[Trial], *, seconds: float) -> str:
    """A line on the choice, and one a trial; what is installed and failed comes first, and is marked."""
    usable = [trial for trial in trials if trial.backend is not None]
    failed = [trial.name for trial in trials if trial.failed]
    chosen = f"backend: {best.name}, the fastest of {len(usable)} (auto, chosen in {seconds:.1f} s)"
    if failed:
        chosen = f"!! {chosen}; NOT {' and '.join(failed)}, which can't be used:"
    return "\n".join([chosen, *(f"  {trial.name}: {trial.outcome}" for trial in trials)])
