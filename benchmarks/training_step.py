"""Training step: what visionsft adds to the same model's hand-written PyTorch loop, and what freezing saves.

    python benchmarks/training_step.py [--quick]

Each round trains `steps` batches with visionsft's task in lightning.Trainer and then the same batches with a
hand-written loop, so that both see the same noise of the machine; figures are medians over all steps.
Bounds of the frozen strategies: the same frozen prefix under no_grad plus the trained rest, written by hand.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from backbones import accelerate_depthwise, create_backbone
from datamodules import IGNORE, Batch, Item
from visionsft.models import SegmentationModel, create_model
from visionsft.models.losses import build_loss
from visionsft.training.precision import DTYPES, resolve
from visionsft.training.strategies import FeatureBasedStrategy, FullStrategy, LayerwiseStrategy, Strategy
from visionsft.training.tasks import Optimization, SegmentationModule

NAME, CLASSES, SIZE, BATCH = "tf_efficientnet_lite0", 11, (256, 256), 8
STRATEGIES: dict[str, Strategy] = {
    "full": FullStrategy(),
    "feature_based": FeatureBasedStrategy(),
    "layerwise_last_2": LayerwiseStrategy(last=2),
}
Step = Callable[[Tensor, Tensor], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps; under 50 s")
    quick = parser.parse_args().quick
    rounds, steps = (2, 3) if quick else (6, 6)
    warnings.filterwarnings("ignore")
    precision = resolve("auto")
    batch = make_batch()
    figures = {}
    for name, strategy in STRATEGIES.items():
        ours, theirs = measure(strategy, name, batch, rounds=rounds, steps=steps, precision=precision)
        figures[name] = {
            "step_s": round(ours, 4),
            "by_hand_s": round(theirs, 4),
            "ratio": round(ours / theirs, 3),
        }
        print(
            f"{name:<18} visionsft {ours:.3f} s   by hand {theirs:.3f} s   ratio {ours / theirs:.3f}",
            flush=True,
        )
    plain = by_hand("full", accelerated=False)
    accelerated = by_hand("full")
    times: dict[str, list[float]] = {"plain": [], "accelerated": []}
    for _ in range(rounds + 1):
        times["plain"] += timed(plain, batch, 1)
        times["accelerated"] += timed(accelerated, batch, 1)
    gain = statistics.median(times["plain"][1:]) / statistics.median(times["accelerated"][1:])
    print(f"accelerated depthwise convolutions: {gain:.2f}x the speed of torch's own, whole step")
    print(
        json.dumps(
            {
                "vs_loop": figures["full"]["ratio"],
                "frozen_vs_bound": {name: figures[name]["ratio"] for name in figures if name != "full"},
                "depthwise_gain": round(gain, 2),
                "figures": figures,
                "model": NAME,
                "head": "fpn",
                "batch": BATCH,
                "size": SIZE,
                "precision": precision,
                "threads": torch.get_num_threads(),
                "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__,
                             "lightning": lightning.__version__},
            }
        )
    )  # fmt: skip


def measure(
    strategy: Strategy, name: str, batch: Batch, *, rounds: int, steps: int, precision: Any
) -> tuple[float, float]:
    """Median seconds a step: (visionsft's, by hand)."""
    model = build_model(strategy)
    task = SegmentationModule(
        model, make_loss(), class_names=[str(k) for k in range(CLASSES)], optimization=Optimization(strategy)
    )
    interleave = Interleave(by_hand(name), batch, steps)
    trainer = lightning.Trainer(
        max_epochs=rounds, accelerator="cpu", precision=precision, logger=False, callbacks=[interleave],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, DataLoader([batch] * (steps + 1), batch_size=None))
    return statistics.median(interleave.ours), statistics.median(interleave.theirs)


class Interleave(lightning.Callback):
    """Times every step of the trainer, and after each epoch as many steps of the other loop."""

    def __init__(self, other: Step, batch: Batch, steps: int) -> None:
        self.other, self.batch, self.steps = other, batch, steps
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.ends: list[float] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.ends = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_train_epoch_end(self, *args: Any) -> None:
        # from the end of a step to the end of the next: everything in between belongs to the step
        self.ours += [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        self.theirs += timed(self.other, self.batch, self.steps + 1)[1:]


def timed(step: Step, batch: Batch, steps: int) -> list[float]:
    """Seconds of each step."""
    found = []
    for _ in range(steps):
        started = time.perf_counter()
        step(batch["image"], batch["mask"])
        found.append(time.perf_counter() - started)
    return found


def by_hand(kind: str, *, accelerated: bool = True) -> Step:
    """A step of the loop that a user would write for this strategy, around the same model."""
    model = build_model(FullStrategy(), accelerated=accelerated).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    timm_model, head = model.backbone.model, model.head
    prefix, rest = split_in_two(timm_model, {"full": 0, "feature_based": 7, "layerwise_last_2": 5}[kind])
    prefix.eval().requires_grad_(False)
    rest.train()
    head.train()
    optimizer = torch.optim.AdamW([*rest.parameters(), *head.parameters()], lr=1e-3)
    loss_of, dtype = make_loss(), DTYPES[resolve("auto")]

    def step(image: Tensor, mask: Tensor) -> None:
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            with torch.no_grad():
                maps, x = run_through(prefix, image)
            later, _ = run_through(rest, x)
            loss = loss_of(model.upsample(head([*maps, *later]), image), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def split_in_two(model: Any, at: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The stem and the blocks of an EfficientNet in order, cut after `at` parts (0: nothing is frozen)."""
    parts = [nn.Sequential(model.conv_stem, model.bn1), *model.blocks]
    wanted = wanted_maps(parts)
    for index, part in enumerate(parts):
        part.is_map = index in wanted
    at = min(at, len(parts))
    return nn.ModuleList(parts[:at]), nn.ModuleList(parts[at:])


def wanted_maps(parts: list[nn.Module]) -> set[int]:
    """The last part at each of the strides 4, 8, 16 and 32."""
    last = {}
    x = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        for index, part in enumerate(parts):
            x = part(x)
            last[64 // x.shape[-1]] = index
    return {index for stride, index in last.items() if stride >= 4}


def run_through(parts: nn.ModuleList, x: Tensor) -> tuple[list[Tensor], Tensor]:
    maps = []
    for part in parts:
        x = part(x)
        if part.is_map:
            maps.append(x)
    return maps, x


def build_model(strategy: Strategy, *, accelerated: bool = True) -> SegmentationModel:
    torch.manual_seed(0)
    backbone = create_backbone(NAME, weights="none")
    model = create_model(backbone, CLASSES, head="fpn")
    strategy.prepare(backbone)
    if accelerated:
        accelerate_depthwise(model)
    return model


def make_loss() -> nn.Module:
    return build_loss([{"name": "cross_entropy"}], class_counts=torch.ones(CLASSES))


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, CLASSES, (BATCH, *SIZE), generator=generator)
    mask[:, :8] = IGNORE
    items = [Item(id=str(i), group=str(i), image="") for i in range(BATCH)]
    return Batch(
        image=torch.randn(BATCH, 3, *SIZE, generator=generator),
        mask=mask,
        valid=torch.ones_like(mask, dtype=torch.bool),
        item=items,
    )


if __name__ == "__main__":
    main()
