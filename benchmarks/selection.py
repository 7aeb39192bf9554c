"""Selection: how well the ranking before any training predicts the order after fine-tuning.

    python benchmarks/selection.py [--tasks rsscn7 camvid] [--data ../shared/data] [--weights FOLDER] [--quick]

Candidates of known different worth: tf_efficientnet_lite0 with its ImageNet weights, with those of its first stages
only (the later ones are random again; two cuts), and random; a DINOv2 ViT-S; resnet18 and mobilenetv3_small random.
`select` ranks them on train and val; then each is fine-tuned by one recipe (full, lr 1e-3, backbone x 0.3; RSSCN7 4
epochs at 128 px, CamVid 3 epochs of 160x224 crops at half size) and scored on the test split, which selection has not
seen. Reported are the rank correlations of the two orders (Spearman's rho, Kendall's tau-b; n candidates, so an
interval would be wide: with n = 7 only |rho| above 0.79 differs from 0 at 5 %), beside those of kNN, LogME and mere
size, and what is lost by taking the recommended one and not the best. One seed. --quick: RSSCN7 with three
candidates, a few samples and one epoch at 64 px: it shows that the script works, and nothing else. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import kendalltau, spearmanr

from visionsft import evaluate, fit, load_config, select
from visionsft.config import Config
from visionsft.preparation.selection import Selection

ROOT = Path(__file__).parents[1]
LITE = "tf_efficientnet_lite0"
CUTS = {"early": 2, "middle": 4}
"""By name, the blocks of lite0 whose weights are kept, from its input on."""
RECIPE = [
    "strategy={kind: full, lr: 1.0e-3, backbone_lr_factor: 0.3}", "data.workers=0", "trainer.ema=null",
    "data.augment.photometric=0.3",
]  # fmt: skip
TASKS = {
    "rsscn7": ("satellite", ["data.size=[128, 128]", "trainer.epochs=4"]),
    "camvid": (
        "driving",
        ["data.size=[180, 240]", "data.crop=[160, 224]", "data.batch_size=4", "trainer.epochs=3",
         "trainer.validate_every=1", "inference={}", "task.loss={name: cross_entropy}"],
    ),
}  # fmt: skip
QUICK = ["data.size=[64, 64]", "trainer.epochs=1", "data.split={by: scene, val: 0.1, test: 0.1}"]
"""Of rsscn7."""


def truncate(weights: Path, blocks: int, target: Path) -> Path:
    """lite0's weights with those behind the first `blocks` as a new model has them."""
    torch.manual_seed(0)
    fresh = timm.create_model(LITE, pretrained=False).state_dict()
    kept = ("conv_stem.", "bn1.", *(f"blocks.{index}." for index in range(blocks)))
    given = load_file(weights)
    save_file({key: given[key] if key.startswith(kept) else value for key, value in fresh.items()}, target)
    return target


def candidates(weights: Path, folder: Path, *, quick: bool) -> list[str]:
    lite = weights / f"{LITE}.safetensors"
    few = [f"{LITE}={lite}", f"{LITE}=none", "mobilenetv3_small_100=none"]
    if quick:
        return few
    cut = [f"{LITE}={truncate(lite, blocks, folder / f'{name}.safetensors')}" for name, blocks in CUTS.items()]
    vit = f"vit_small_patch14_dinov2={weights / 'vit_small_patch14_dinov2.fp16.safetensors'}"
    return [*few, *cut, vit, "resnet18=none"]


def configure(task: str, data: Path, runs: Path, *, quick: bool) -> Config:
    group, own = TASKS[task]
    overrides = [f"data.root={data / task}", f"runs={runs}", *RECIPE, *own, *(QUICK if quick else [])]
    return load_config(ROOT / "configs" / group / f"{task}.yaml", overrides)


def fine_tune(config: Config, candidate: str) -> float:
    """The test score of a candidate after training."""
    name, _, weights = candidate.partition("=")
    wanted = config.backbone.model_copy(update={"name": name, "weights": weights})
    run = fit(config.model_copy(update={"backbone": wanted, "name": f"{name}-{Path(weights).stem}"}))
    scores: Any = evaluate(run, split="test").scores
    return float(scores.accuracy if config.task.kind == "classification" else scores.mean_iou)


def correlate(guess: Sequence[float], truth: Sequence[float]) -> dict[str, Any]:
    rho, tau = spearmanr(guess, truth), kendalltau(guess, truth)
    return {
        "n": len(truth), "spearman": round(float(rho.statistic), 3), "spearman_p": round(float(rho.pvalue), 4),
        "kendall": round(float(tau.statistic), 3), "kendall_p": round(float(tau.pvalue), 4),
    }  # fmt: skip


def judge(selection: Selection, truth: dict[str, float]) -> dict[str, Any]:
    rows = selection.rows()
    found = [truth[row["candidate"]] for row in rows]
    assert selection.recommended is not None
    guesses = {"probe": selection.metric, "neighbours": "neighbours", "logme": "logme", "parameters": "parameters"}
    return {
        "correlation": {
            name: correlate([row[key] for row in rows], found)
            for name, key in guesses.items() if rows[0][key] is not None
        },
        "lost_by_recommended": round(max(found) - truth[selection.recommended.candidate.label], 4),
        "candidates": [
            {"candidate": row["label"], "probe": round(row[selection.metric], 4), "low": row["low"],
             "high": row["high"], "logme": round(row["logme"], 4), "fine_tuned_test": round(value, 4)}
            for row, value in zip(rows, found, strict=True)
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--weights", type=Path, default=ROOT.parent / "shared" / "weights")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    for task in ["rsscn7"] if given.quick else given.tasks:
        with tempfile.TemporaryDirectory() as folder:
            names = candidates(given.weights, Path(folder), quick=given.quick)
            config = configure(task, given.data, Path(folder), quick=given.quick)
            start = time.perf_counter()
            selection = select(config, names, samples=60 if given.quick else None)
            selected = round(time.perf_counter() - start)
            print(f"{task}\n{selection.table()}\n", flush=True)
            truth = {name: fine_tune(config, name) for name in names}
            results[task] = judge(selection, truth) | {
                "selection_seconds": selected,
                "fine_tuning_seconds": round(time.perf_counter() - start) - selected,
            }  # fmt: skip
            print(json.dumps(results[task], indent=1), flush=True)
    print(json.dumps({
        "benchmark": "selection", "quick": given.quick, "results": results, "torch": torch.__version__,
        "timm": timm.__version__, "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
