"""Frozen cache: an epoch from cached features beside the head alone and beside training that computes them anew.

    python benchmarks/frozen_cache.py [--quick] [--weights ../shared/weights] [--models ...] [--cases ...]

Ratios of seconds a step, medians of alternated portions: `vs_head_only` is the cached step over the same step on
one batch of features that already lies in memory (its bound is 1); `vs_uncached` is the uncached frozen step over the
cached one, both with samples already loaded (reading and augmenting, which the cache also saves, isn't counted);
`fill_vs_forward` is computing and storing over one forward pass (more on a virtual machine whose host takes free
pages back: 72 MB are written in 0.02 s to pages that the machine has, in 0.1 s to others). Without the weight files
models are random.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the `visionsft` command does; torch reads it at its first need

import timm
import torch
from torch import Tensor
from torch.utils.data import Dataset

from backbones import accelerate_attention, accelerate_depthwise, create_backbone, cut_backbone
from datamodules import Batch, Item, Sample
from datamodules.datasets import collate
from datamodules.sampling import EpochSampler
from visionsft.memory import keep_freed_memory
from visionsft.models import create_model
from visionsft.models.losses import build_loss
from visionsft.training.features import SHARD, CachedLoader, FeatureCache, _Compute, _layout
from visionsft.training.precision import DTYPES, resolve
from visionsft.training.strategies import FeatureBasedStrategy, LayerwiseStrategy, Strategy
from visionsft.training.tasks import Optimization, SegmentationModule

CLASSES, BATCH = 11, 8
MODELS = {
    "tf_efficientnet_lite0": ((256, 256), "tf_efficientnet_lite0.safetensors"),
    "vit_small_patch14_dinov2": ((252, 252), "vit_small_patch14_dinov2.fp16.safetensors"),
}
CASES = {
    "linear": "linear", "segformer": "segformer", "fpn": "fpn", "unet": "unet", "upernet": "upernet",
    "layerwise linear": "linear", "layerwise segformer": "segformer",
}  # fmt: skip
"""Heads by the names of the cases: on a frozen backbone, and with its last stage trained."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples and cases; under 50 s")
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights"))
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=tuple(CASES), help="heads, and layerwise training"
    )
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=12, help="portions of each kind of step")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    keep_freed_memory()  # as `fit` does
    samples, rounds, wanted = options.samples, options.rounds, options.cases
    if options.quick:
        samples, rounds, wanted = 8, 2, ("linear", "segformer", "layerwise linear")
    results: dict[str, dict[str, Any]] = {"vs_head_only": {}, "vs_uncached": {}, "fill_vs_forward": {}}
    for name in options.models:
        size, file = MODELS[name]
        weights = str(options.weights / file) if (options.weights / file).exists() else "none"
        data = Chips(samples, size)
        last = 2 if name.startswith("vit") else 1  # a ViT's last "stage" is its norm alone
        for label in wanted:
            trains = label.startswith("layerwise")
            strategy = LayerwiseStrategy(last=last) if trains else FeatureBasedStrategy()
            found = measure(name, weights, size, CASES[label], strategy, data, rounds=rounds)
            for key, value in found.items():
                results[key].setdefault(name, {})[label] = round(value, 3)
            print(f"{name:<26}{label:<21}{found}", flush=True)
    facts = {
        **results, "samples": samples, "batch": BATCH, "sizes": {name: MODELS[name][0] for name in options.models},
        "precision": resolve("auto"), "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
    }  # fmt: skip
    print(json.dumps(facts))


class Chips(Dataset[Sample]):
    """Random chips, few of them in memory under many indices."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(16, 3, *size, generator=generator)
        self.masks = torch.randint(0, CLASSES, (16, *size), generator=generator)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        image, mask = self.images[index % 16], self.masks[index % 16]
        return Sample(image=image, mask=mask, valid=mask >= 0, item=Item(str(index), "", ""))


def measure(
    name: str, weights: str, size: tuple[int, int], head: str, strategy: Strategy, data: Chips, *, rounds: int
) -> dict[str, float]:
    """The three ratios of one model, head and strategy."""
    torch.manual_seed(0)
    backbone = create_backbone(name, weights=weights, img_size=size if name.startswith("vit") else None)
    model = create_model(backbone, CLASSES, head=head)
    accelerate_depthwise(model)
    accelerate_attention(model)
    loss = build_loss([{"name": "cross_entropy"}], class_counts=torch.ones(CLASSES))
    names = [str(k) for k in range(CLASSES)]
    task = SegmentationModule(model, loss, class_names=names, optimization=Optimization(strategy))
    task.train()
    cut = cut_backbone(backbone, size=size)
    dtype = DTYPES[resolve("auto")]
    compute = _Compute(cut, BATCH, 0, dtype, True, torch.device("cpu"))
    layout = _layout(data[0], compute)
    image = collate([data[i] for i in range(BATCH)])
    with tempfile.TemporaryDirectory() as folder:
        fill = []
        portion = range(min(len(data), SHARD))  # as it is filled
        # as from the second shard on, whose block lies in the memory of the one before
        trial = FeatureCache(layout, key="trial", folder=Path(folder, "trial"))
        for number in range(min(rounds, 8)):
            forward = seconds(lambda: [compute.prefix(b["image"]) for b in compute.load(data, portion)])
            fill.append(seconds(lambda number=number: trial.fill(f"t{number}", data, portion, compute)) / forward)  # type: ignore[misc]
            for file in Path(folder, "trial").iterdir():
                file.unlink()
        cache = FeatureCache(layout, key="key", folder=Path(folder, "key"))
        shards = cache.fill("train", data, range(len(data)), compute)
        loader = CachedLoader(
            [shards], layout, batch_size=BATCH, dtype=dtype or torch.float32, in_chans=3,
            sampler=EpochSampler(data, seed=0),
        )  # fmt: skip
        task.cut = cut
        batches = endless(loader)
        ready = next(batches)
        step = stepper(task, dtype)
        times: dict[str, list[float]] = {"cached": [], "head": [], "uncached": []}
        for _ in range(rounds + 1):
            for key, source, steps in (
                ("cached", lambda: next(batches), 3), ("head", lambda: ready, 3), ("uncached", lambda: image, 1),
            ):  # fmt: skip
                step(source())  # in an epoch, too, a step follows one of its kind, and not one with other memory
                times[key] += [seconds(lambda source=source: step(source())) for _ in range(steps)]  # type: ignore[misc]
    middle = {key: statistics.median(values[len(values) // (rounds + 1) :]) for key, values in times.items()}
    return {
        "vs_head_only": middle["cached"] / middle["head"],
        "vs_uncached": middle["uncached"] / middle["cached"],
        "fill_vs_forward": statistics.median(fill),
    }


def endless(loader: CachedLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def stepper(task: SegmentationModule, dtype: torch.dtype | None) -> Callable[[Batch], Tensor]:
    """A training step, with what the task does in it."""
    optimizer = task.configure_optimizers()

    def step(batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss: Tensor = task.batch_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
