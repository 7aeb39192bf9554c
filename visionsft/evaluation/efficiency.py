"""Efficiency: what a model costs on this machine, in parameters, operations, time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionsft.models.costs import count_gmacs
from visionsft.runs import describe_environment

REPEATS = 5
_WARM_UP = 2
"""Passes before the clock runs: memory is laid out and kernels are chosen in them."""

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Throughput:
    """Speed of whole passes over one batch, from normalised image to logits."""

    mpx_s: float
    """10^6 pixels of the image a second, by the median pass."""
    shape: tuple[int, ...]
    """(B, C, H, W) of the batch."""
    repeats: int


@dataclass(frozen=True)
class Efficiency:
    """Costs of a model as it is evaluated: with its precision and its test-time views."""

    parameters: int
    gmacs_per_mpx: float
    """10^9 multiply-accumulates for 10^6 pixels: convolutions and matrix products, as they are computed; the zeros that
    folding puts into kernels count (one percent)."""
    throughput: Throughput
    peak_memory_mb: float | None
    """Most memory during the passes: on a GPU what PyTorch had allocated there, else the resident memory of the
    whole process, libraries included; None where the system (not Linux) doesn't tell."""
    machine: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """A few lines of text."""
        memory = "-" if self.peak_memory_mb is None else f"{self.peak_memory_mb:,.0f} MB"
        shape = " x ".join(map(str, self.throughput.shape))
        return "\n".join(
            [
                f"parameters              {self.parameters:,}",
                f"multiply-accumulates    {self.gmacs_per_mpx:.2f} G for 10^6 pixels",
                f"throughput              {self.throughput.mpx_s:.3f} Mpx/s",
                f"  = median of {self.throughput.repeats} warm passes over a batch of {shape}",
                f"peak memory             {memory}",
                f"machine                 {self.machine}",
            ]
        )


def measure(model: nn.Module, forward: Callable[[Tensor], object], image: Tensor) -> Efficiency:
    """Run `forward`, which uses `model`, a few times on a batch (B, C, H, W) as evaluation has them."""
    device = next(model.parameters()).device
    megapixels = image.shape[0] * image.shape[2] * image.shape[3] / 1e6
    for _ in range(_WARM_UP - 1):
        forward(image)
    _, gmacs = count_gmacs(lambda: forward(image))
    _forget_peak(device)
    seconds = [_time(forward, image, device) for _ in range(REPEATS)]
    return Efficiency(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gmacs_per_mpx=gmacs / megapixels,
        throughput=Throughput(megapixels / statistics.median(seconds), tuple(image.shape), REPEATS),
        peak_memory_mb=_peak_mb(device),
        machine=_machine(device),
    )


def _time(forward: Callable[[Tensor], object], image: Tensor, device: torch.device) -> float:
    """Seconds of a pass."""
    _wait(device)
    start = time.perf_counter()
    forward(image)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """A GPU works on after the call has returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        _RESET.write_text("5")  # Linux: the high-water mark of resident memory starts anew


def _peak_mb(device: torch.device) -> float | None:
    """10^6 bytes at the peak since `_forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if not _STATUS.exists():
        return None
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = describe_environment()
    return f"{facts['cpu']}, {torch.get_num_threads()} threads"
