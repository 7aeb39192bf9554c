r"""CamVid tables: heads, losses, or strategies, compared on the same data, budget and seed.

    python benchmarks/camvid_tables.py heads --root ../shared/data/camvid
    python benchmarks/camvid_tables.py losses --root ../shared/data/camvid
    python benchmarks/camvid_tables.py strategies --root ../shared/data/camvid \
        --vit ../shared/weights/vit_small_patch14_dinov2.fp16.safetensors

Each row is a `visionsft fit` of configs/driving/camvid.yaml with a small budget and small crops; the score is the
mIoU on the validation split (one confusion matrix, macro mean over the classes present). Without --root, and with
--quick, generated driving frames take CamVid's place: that shows the script works, the scores mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

import visionsft
from visionsft.loading import load_config
from visionsft.preparation.sampledata import generate
from visionsft.preparation.streets import THINGS
from visionsft.runs import Run

CONFIG = Path(__file__).parents[1] / "configs" / "driving" / "camvid.yaml"
BUDGET = ["data.crop=[192, 256]", "data.augment.scale=[0.6, 1.2]", "trainer.ema=0.98", "strategy.warmup=0.1"]
LAYERWISE = ["strategy={kind: layerwise, last: 5, lr: 2.0e-3, backbone_lr_factor: 0.25}"]

HEADS = {
    name: [*LAYERWISE, f"head={{name: {name}}}"] for name in ("linear", "segformer", "fpn", "unet", "upernet")
}
CE, LOVASZ = "{name: cross_entropy}", "{name: lovasz, weight: 0.5}"
INVERSE = "{name: cross_entropy, class_weights: inverse}"
LOSSES = {
    "cross-entropy": [f"task.loss=[{CE}]", "data.augment.rare_class_crops=0"],
    "+ inverse class weights": [f"task.loss=[{INVERSE}]", "data.augment.rare_class_crops=0"],
    "+ Lovász": [f"task.loss=[{CE}, {LOVASZ}]", "data.augment.rare_class_crops=0"],
    "+ rare-class crops": [f"task.loss=[{CE}]", "data.augment.rare_class_crops=0.3"],
    "+ Lovász + rare-class crops": [f"task.loss=[{CE}, {LOVASZ}]", "data.augment.rare_class_crops=0.3"],
    "all three": [f"task.loss=[{INVERSE}, {LOVASZ}]", "data.augment.rare_class_crops=0.3"],
}
LOSSES = {name: [*LAYERWISE, *changes] for name, changes in LOSSES.items()}
RARE = ("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist")
VIT = ["backbone.name=vit_small_patch14_dinov2"]
STRATEGIES = {
    "full": ["strategy={kind: full, lr: 2.0e-3, backbone_lr_factor: 0.25}"],
    "layerwise, last 2 stages": ["strategy={kind: layerwise, last: 2, lr: 2.0e-3, backbone_lr_factor: 0.25}"],
    "feature_based": ["strategy={kind: feature_based, lr: 2.0e-3}"],
    "full, random weights": [
        "strategy={kind: full, lr: 2.0e-3, backbone_lr_factor: 1.0}",
        "backbone.weights=none",
    ],
    "lora, ViT-S/14": ["strategy={kind: lora, rank: 8, lr: 1.0e-3}"],
}
SMALL = ["data.crop=[112, 160]"]  # so that the ViT's steps take seconds
STRATEGIES = {name: [*SMALL, *changes] for name, changes in STRATEGIES.items()}
TABLES = {"heads": HEADS, "losses": LOSSES, "strategies": STRATEGIES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=list(TABLES), nargs="?", default="heads")
    parser.add_argument("--root", type=Path, help="CamVid; default: generated frames")
    parser.add_argument(
        "--vit", type=Path, help="weights of vit_small_patch14_dinov2; without them no ViT rows"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows")
    parser.add_argument("--quick", action="store_true", help="generated frames, one epoch, two rows")
    given = parser.parse_args()
    rows = {name: row for name, row in TABLES[given.table].items() if given.vit or "ViT" not in name}
    if unknown := set(given.rows or ()) - set(rows):
        parser.error(f"--rows: there is no {unknown.pop()!r}; there are {', '.join(map(repr, rows))}")
    rows = {name: row for name, row in rows.items() if given.rows is None or name in given.rows}
    if given.quick:
        rows, given.epochs = dict(list(rows.items())[:2]), 1
    with tempfile.TemporaryDirectory() as folder:
        data = [f"data.root={given.root}"] if given.root and not given.quick else generated(Path(folder))
        found = {}
        for index, (name, changes) in enumerate(rows.items()):
            vit = [*VIT, f"backbone.weights={given.vit}"] if "ViT" in name else []
            common = [*data, f"trainer.epochs={given.epochs}", f"trainer.validate_every={given.epochs}"]
            place = [f"runs={folder}", f"name=row{index}"]
            found[name] = measure([*BUDGET, *changes, *vit, *common, *place])
            print(line(name, found[name]), flush=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps({"table": given.table, "epochs": given.epochs, "rows": found, "versions": versions}))


def measure(overrides: list[str]) -> dict[str, Any]:
    """One training: its score, what trained and what a step took (the fastest epoch's mean)."""
    with contextlib.redirect_stdout(io.StringIO()):
        run = visionsft.fit(load_config(CONFIG, overrides))
    rows = list(csv.DictReader((run.path / "metrics.csv").open()))
    steps = int(rows[0]["step"])
    ious = {key.removeprefix("val/iou/"): float(value) for key, value in rows[-1].items() if "/iou/" in key}
    rare = [iou for name, iou in ious.items() if name in RARE]
    return {
        "val_rare_iou": round(sum(rare) / max(len(rare), 1), 4),
        "val_other_iou": round((sum(ious.values()) - sum(rare)) / (len(ious) - len(rare)), 4),
        "val_mean_iou": round(float(rows[-1]["val/mean_iou"]), 4),
        "val_mean_recall": round(float(rows[-1]["val/mean_recall"]), 4),
        "trainable": trainable(run),
        "seconds_per_step": round(min(float(row["train_seconds"]) for row in rows) / steps, 3),
        "steps": steps * len(rows),
    }


def trainable(run: Run) -> int:
    """The last column but one of trainable.txt's last line."""
    return int((run.path / "trainable.txt").read_text().split()[-1].replace(",", ""))


def generated(folder: Path) -> list[str]:
    """Overrides that put generated frames in CamVid's place."""
    root = generate(folder / "frames", kind="driving", scenes=20, size=216)
    classes = json.dumps([{"name": thing.name, "values": thing.value} for thing in THINGS])
    pairs = {"images": "images/{split}/*", "labels": "labels/{split}/{name}.png"}
    return [f"data.root={root}", "data.layout=pairs", f"data.classes={classes}", "data.ignore=[255]",
            *(f"data.{key}='{value}'" for key, value in pairs.items())]  # fmt: skip


def line(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name:<26} val mIoU {row['val_mean_iou']:.3f}  mean recall {row['val_mean_recall']:.3f}  "
        f"rare IoU {row['val_rare_iou']:.3f}  other IoU {row['val_other_iou']:.3f}  "
        f"{row['seconds_per_step']:.2f} s/step  {row['trainable']:>10,} trainable  {row['steps']} steps"
    )


if __name__ == "__main__":
    main()
