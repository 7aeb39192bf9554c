"""Pricing: what training and using a model costs on this machine, measured before it is trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from backbones import Backbone
from datamodules import DataModule, SampleKey
from visionsft import build
from visionsft.config import Config, FullStrategy
from visionsft.evaluation.efficiency import Efficiency, measure
from visionsft.training.precision import DTYPES

DEFINITIONS = {
    "parameters": "of the backbone and the head of the configuration",
    "inference_ms": "median time of a forward pass of one image as validation sees it, warm, in the precision of the "
    "configuration",
    "gmacs": "10^9 multiply-accumulates of that pass: convolutions and matrix products",
    "step_ms": "median time of an optimiser step (forward, backward, update) with everything trained, on a batch as "
    "training has it, already loaded",
    "memory_mb": "most memory during such steps: on a GPU what PyTorch had allocated there, else the resident memory "
    "of the whole process, libraries and this comparison included",
}
"""Of the fields of `Price`."""


@dataclass(frozen=True)
class Price:
    """See `DEFINITIONS`."""

    parameters: int
    inference_ms: float
    gmacs: float
    step_ms: float
    memory_mb: float | None
    """None where the system doesn't tell."""
    machine: str


def measure_price(config: Config, backbone: Backbone, data: DataModule, *, batch: Any, image: Tensor) -> Price:
    """Time a model of `config` on `backbone`; batch: one of training, image: (1, C, H, W) of validation."""
    config = config.model_copy(update={"strategy": FullStrategy()})
    model = build.build_model(config, backbone, len(data.classes))
    device = build.choose_device(config)
    task = build.build_task(config, model, data).to(device)
    precision = DTYPES[build.build_precision(config)]
    batch, image = task.transfer_batch_to_device(batch, device, 0), image.to(device)
    optimizer = task.configure_optimizers()

    def step(_: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            loss = cast(Tensor, task.training_step(batch, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    @torch.no_grad()
    def infer(image: Tensor) -> Any:
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            return task(image)

    task.eval()
    used = measure(model, infer, image)
    task.train()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*trying to `self.log\\(\\)`.*")  # there is no trainer
        trained = measure(model, step, batch["image"])
    return Price(
        parameters=used.parameters,
        inference_ms=_milliseconds(used),
        gmacs=used.gmacs_per_mpx * _megapixels(used),
        step_ms=_milliseconds(trained),
        memory_mb=trained.peak_memory_mb,
        machine=used.machine,
    )


def draw_batch(data: DataModule) -> Any:
    """A batch as training has it."""
    loader = data.train_dataloader()
    dataset: Any = loader.dataset
    count = min(data.batch_size, len(dataset))
    keys = [SampleKey(data.seed, 0, index) for index in range(count)]
    alone = DataLoader(dataset, batch_size=count, sampler=keys, collate_fn=loader.collate_fn)
    return next(iter(alone))


def _megapixels(found: Efficiency) -> float:
    shape = found.throughput.shape
    return shape[0] * shape[2] * shape[3] / 1e6


def _milliseconds(found: Efficiency) -> float:
    return _megapixels(found) / found.throughput.mpx_s * 1e3
