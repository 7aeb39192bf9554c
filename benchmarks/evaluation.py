"""Evaluation: what the evidence costs beside the predictions that it is about.

    python benchmarks/evaluation.py [--quick]

`bootstrap_s`: seconds for every metric's interval (the calibration error's, too) from 2,000 resamples over 5,000
samples x 20 classes, each a group of its own (the most there can be); bound: 5 s. `evaluate_vs_predict`: one pass over
camera frames that counts each sample's statistics, over a pass that only predicts their classes; both in memory (a
prediction that is written to a file costs more); bound: 1.1. Counted are confusion matrices, brightness, reliability
and the worst maps; boundaries are not among them, since `evaluate` scores them on request alone. The two
passes take turns, and the median of what evaluating took longer is added to the median of predicting: the machine's
noise is larger than what is measured. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from scene_prediction import as_loaded

from backbones import accelerate_depthwise, create_backbone
from datamodules import Batch, Item, Normalisation
from visionsft.evaluation import segmentation_intervals
from visionsft.evaluation.answers import infer
from visionsft.evaluation.calibration import BINS, error_interval
from visionsft.evaluation.details import Details
from visionsft.evaluation.evaluating import GALLERY, Worst, count
from visionsft.evaluation.metrics import predict_classes
from visionsft.models import create_model
from visionsft.training.precision import resolve

NAME, CLASSES, SIZE, BATCH = "tf_efficientnet_lite0", 11, (360, 480), 4
SAMPLES, SAMPLE_CLASSES, RESAMPLES = 5000, 20, 2000
BOUNDS = {"bootstrap_s": 5.0, "evaluate_vs_predict": 1.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; under 50 s")
    quick = parser.parse_args().quick
    bootstrap = statistics.median(timed(bootstrap_pass()) for _ in range(3))
    print(f"intervals: {bootstrap:.2f} s for {RESAMPLES:,} resamples of {SAMPLES:,} samples", flush=True)
    counting, predicting = measure_passes(batches=2 if quick else 8, rounds=3 if quick else 9)
    print(f"a pass: {counting:.3f} s evaluating, {predicting:.3f} s predicting", flush=True)
    figures = {"bootstrap_s": round(bootstrap, 3), "evaluate_vs_predict": round(counting / predicting, 3)}
    print(
        json.dumps(
            {
                **figures,
                "of_bound": {name: round(value / BOUNDS[name], 3) for name, value in figures.items()},
                "evaluate_s": round(counting, 3),
                "predict_s": round(predicting, 3),
                "samples": SAMPLES,
                "classes": SAMPLE_CLASSES,
                "resamples": RESAMPLES,
                "model": NAME,
                "head": "fpn",
                "frame": SIZE,
                "batch": BATCH,
                "precision": resolve("auto"),
                "threads": torch.get_num_threads(),
                "versions": {"python": platform.python_version(), "numpy": np.__version__,
                             "torch": torch.__version__, "timm": timm.__version__},
            }
        )
    )  # fmt: skip


def bootstrap_pass() -> Callable[[], object]:
    """All intervals of random confusion matrices and reliability histograms."""
    rng = np.random.default_rng(0)
    confusions = rng.integers(0, 1000, (SAMPLES, SAMPLE_CLASSES, SAMPLE_CLASSES))
    groups, names = [str(i) for i in range(SAMPLES)], [str(k) for k in range(SAMPLE_CLASSES)]
    histograms = rng.integers(0, 1000, (SAMPLES, BINS, 3)).astype(np.float64)

    def bootstrap() -> None:
        segmentation_intervals(confusions, groups, names, resamples=RESAMPLES)
        error_interval(histograms, groups, unit="group")

    return bootstrap


def measure_passes(*, batches: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a pass over the batches: (evaluating, predicting)."""
    loaded, data = build_loaded(), [make_batch(seed) for seed in range(batches)]

    def predict() -> None:
        for batch in data:
            predict_classes(infer(loaded, batch["image"])).cpu()

    def evaluate() -> None:
        answered = ((batch, infer(loaded, batch["image"])) for batch in data)
        count(loaded, answered, Details(CLASSES, temperature=None, with_boundaries=False), Worst(GALLERY))

    predict()
    pairs = [(timed(evaluate), timed(predict)) for _ in range(rounds)]
    predicting = statistics.median(second for _, second in pairs)
    return predicting + statistics.median(first - second for first, second in pairs), predicting


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def build_loaded() -> Any:
    """What `load_run` gives, with random weights."""
    backbone = create_backbone(NAME, weights="none")
    accelerate_depthwise(backbone)
    model = create_model(backbone, CLASSES, head="fpn").eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = SimpleNamespace(
        normalisation=Normalisation((127.5,) * 3, (127.5,) * 3),
        classes=SimpleNamespace(names=tuple(str(k) for k in range(CLASSES))),
    )
    return as_loaded(model, data)


def make_batch(seed: int) -> Batch:
    """Frames of noise whose labels lie in blocks, some of them unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, CLASSES, (BATCH, SIZE[0] // 20, SIZE[1] // 20), generator=generator)
    blocks[:, -1] = 255
    return Batch(
        image=torch.randn(BATCH, 3, *SIZE, generator=generator),
        mask=blocks.repeat_interleave(20, 1).repeat_interleave(20, 2),
        valid=torch.ones(BATCH, *SIZE, dtype=torch.bool),
        item=[Item(id=str(i), group=str(i), image=f"{i}.png") for i in range(BATCH)],
    )


if __name__ == "__main__":
    main()
