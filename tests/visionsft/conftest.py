"""An evaluated run folder, made without a model: every file that the report reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from datamodules import Normalisation
from datamodules.batch import Item
from visionsft.config import ClassificationConfig, DetectionConfig, SegmentationConfig
from visionsft.evaluation.box_gallery import write_box_gallery
from visionsft.evaluation.counts import Counts, save_counts
from visionsft.evaluation.detection_counts import DetectionCounts, save_detection_counts
from visionsft.evaluation.detection_intervals import bootstrap_detections
from visionsft.evaluation.detection_scores import DETECTION_DEFINITIONS, score_detections
from visionsft.evaluation.gallery import write_gallery
from visionsft.evaluation.metrics import DEFINITIONS, summarise
from visionsft.evaluation.pictures import Example
from visionsft.models.detections import Detections
from visionsft.runs import Run

NAMES = ("road", "<script>document.title='pwned'</script>", "a|b & $c$")
COLOURS = np.array([[128, 64, 128], [220, 20, 60], [0, 130, 180]], np.uint8)
TRAINABLE = """\
part                      parameters   trainable   learning rate
stem                             928           0          frozen
blocks.0                      13,968      13,968          0.0005
head                         213,131     213,131           0.002
all                          228,027     227,099
"""
INTERVALS = {
    "level": 0.95, "resamples": 2000, "seed": 0, "method": "percentile bootstrap", "unit": "drive", "groups": 2,
    "note": None,
    "metrics": {"mean_iou": [0.1234, 0.8768], "pixel_accuracy": None},
    "per_class": {NAMES[0]: {"iou": [0.2, 0.9], "recall": None, "precision": None, "f1": None, "groups": 1,
                             "note": "only one drive has it"}},
}  # fmt: skip
SLICES = [
    {"by": "drive", "value": "b", "samples": 4, "groups": 1, "pixels": 9, "mean_iou": 0.7, "interval": [0.6, 0.8],
     "pixel_accuracy": 0.9, "mean_recall": 0.8, "recall": {}, "iou": {}, "note": None},
    {"by": "<i>rain</i>", "value": "yes", "samples": 4, "groups": 1, "pixels": 9, "mean_iou": 0.4, "interval": None,
     "pixel_accuracy": 0.6, "mean_recall": 0.5, "recall": {}, "iou": {}, "note": "one group"},
    *({"by": "site", "value": value, "samples": 1, "groups": 1, "pixels": 0, "mean_iou": None, "interval": None,
       "pixel_accuracy": None, "mean_recall": None, "recall": {}, "iou": {}, "note": None} for value in "xy"),
]  # fmt: skip
BINS = [
    {"from": 0.0, "to": 0.5, "pixels": 10, "confidence": 0.4, "accuracy": 0.3},
    {"from": 0.5, "to": 0.8, "pixels": 0, "confidence": None, "accuracy": None},
    {"from": 0.8, "to": 1.0, "pixels": 90, "confidence": 0.9, "accuracy": 0.7},
]
CALIBRATION = {
    "ece": 0.19, "ece_per_class": {NAMES[0]: 0.21, NAMES[1]: None}, "pixels": 100, "bins": BINS,
    "bins_per_class": dict.fromkeys(NAMES, BINS), "definition": {"ece": "two bins of equal width."},
    "temperature": {"value": 1.234, "fitted_on": {"split": "val", "pixels": 9, "of": 9, "seed": 0},
                    "ece_before": 0.2, "ece_after": 0.19},
}  # fmt: skip
EDGES = {"precision": None, "recall": 0.5, "f1": 0.45}
BOUNDARIES = {
    "mean_boundary_iou": 0.35, "boundary_iou": {NAMES[0]: 0.35}, "boundary_f1": {NAMES[0]: EDGES},
    "objects": {NAMES[0]: [{"from": 1, "to": 63, "objects": 4, "found": 3, "recall": 0.75},
                           {"from": 64, "to": None, "objects": 0, "found": 0, "recall": None}]},
    "definition": {"boundary_iou": "2 pixels wide."},
    "trimap": [{"distance": 1, "mean_iou": 0.3, "pixel_accuracy": 0.4, "pixels": 5},
               {"distance": 4, "mean_iou": 0.5, "pixel_accuracy": 0.6, "pixels": 9}],
}  # fmt: skip
AREA = {
    "unit": "hectares", "mapped": {NAMES[0]: 12.5}, "labelled": {NAMES[0]: 10.0}, "mapped_share": {NAMES[0]: 0.5},
    "labelled_share": {NAMES[0]: 0.4}, "bias": {NAMES[0]: 0.25}, "definition": {"note": "a census of chosen scenes"},
}  # fmt: skip
EFFICIENCY = {
    "parameters": 228_027, "gmacs_per_mpx": 12.3, "peak_memory_mb": None, "machine": "a laptop",
    "throughput": {"mpx_s": 1.75, "shape": [8, 3, 24, 32], "repeats": 5},
}  # fmt: skip
GATES = {
    "passed": False,
    "gates": [{"expression": "mean_iou >= 0.7", "value": 0.5, "limit": 0.7, "margin": -0.2, "passed": False,
               "note": ""},
              {"expression": "ece <= 0.3", "value": 0.19, "limit": 0.3, "margin": 0.11, "passed": True, "note": ""}],
}  # fmt: skip
OUTLINES = [
    {"id": "a.tif", "split": "train", "outline": "POLYGON ((6.1 50.4, 6.2 50.4, 6.2 50.5, 6.1 50.5, 6.1 50.4))"},
    {"id": "b.tif", "split": "test", "outline": "POLYGON ((-6.4 50.7, -6.3 50.7, -6.3 50.8, -6.4 50.8, -6.4 50.7))"},
]

MakeRun = Callable[..., Run]


@pytest.fixture(scope="session")
def evidence() -> dict[str, Any]:
    """What further commands add to a run: options of `make_run`."""
    extra = {"intervals": INTERVALS, "slices": SLICES, "slices_note": "Two slices.", "calibration": CALIBRATION,
             "boundaries": BOUNDARIES, "area": AREA, "efficiency": EFFICIENCY,
             "later_key": {"a": {"x": 98.76}, "b": {"x": None}}}  # fmt: skip
    return {"extra": extra, "gates": GATES, "outlines": OUTLINES, "conditions": True}


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """make_run("name", seed=0, names=NAMES, extra={"slices": ...}, gates=None, outlines=()) -> a run folder."""

    def make(
        name: str,
        *,
        seed: int = 0,
        names: tuple[str, ...] = NAMES,
        extra: dict[str, Any] | None = None,
        gates: dict[str, Any] | None = None,
        outlines: list[dict[str, str]] | None = None,
        conditions: bool = False,
        epochs: int = 3,
        fingerprint: str = "0123456789abcdef",
    ) -> Run:
        run = Run.create(_config(tmp_path_factory.mktemp("runs"), name, names, epochs))
        run.write_text("trainable.txt", TRAINABLE)
        run.write_json("environment.json", _environment())
        run.write_json("data.json", _data(names, outlines or []))
        run.write_json("finished.json", {"epochs": epochs, "steps": 9, "seconds": 12.3, "best_val_mean_iou": 0.5,
                                         "best_epoch": 1})  # fmt: skip
        _write_metrics(run.path / "metrics.csv", epochs)
        truths, predictions = _draw(seed, len(names))
        _write_evaluation(run, names, truths, predictions, {"fingerprint": fingerprint}, extra or {})
        if gates:
            (run.evaluation("test") / "gates.json").write_text(json.dumps(gates))
        if conditions:
            _write_conditions(run)
        return run

    return make


def _config(runs: Path, name: str, names: tuple[str, ...], epochs: int) -> SegmentationConfig:
    data = {
        "kind": "camera",
        "root": runs,
        "images": "images/{split}/*.png",
        "labels": "masks/{split}/{name}.png",
        "classes": [{"name": each, "values": index} for index, each in enumerate(names)],
    }
    backbone = {"name": "test_efficientnet", "weights": "none"}
    return SegmentationConfig.model_validate(
        {"name": name, "runs": runs, "data": data, "backbone": backbone, "trainer": {"epochs": epochs}}
    )


def _write_conditions(run: Run) -> None:
    """robustness.json and thresholds.json."""
    scores = json.loads((run.evaluation("test") / "scores.json").read_text())["scores"]
    condition = {"corruption": "haze", "description": "a white veil", "severity": 2, "strength": 0.4, "drop": 0.111,
                 "scores": scores}  # fmt: skip
    robustness = {"samples": 8, "samples_in_split": 8, "clean": scores, "conditions": [condition]}
    (run.evaluation("test") / "robustness.json").write_text(json.dumps(robustness))
    row = {"class": NAMES[1], "threshold": 0.2345, "wanted": f"recall[{NAMES[1]}] >= 0.9",
           "val": {"recall": 0.91, "precision": 0.42}}  # fmt: skip
    thresholds = {"rule": "the first class", "temperature": 1.0, "thresholds": [row],
                  "test": {"argmax": scores, "rule": scores}}  # fmt: skip
    run.write_json("thresholds.json", thresholds)


def _environment() -> dict[str, Any]:
    return {
        "python": "3.11.0", "versions": {"torch": "2.9.0", "peft": None}, "platform": "Linux", "cpu": "a <b>CPU</b>",
        "cores": 2, "commit": None, "weights": {"source": "none", "sha256": None}, "data_fingerprint": "fedcba",
    }  # fmt: skip


def _data(names: tuple[str, ...], outlines: list[dict[str, str]]) -> dict[str, Any]:
    band = {"mean": 100.0, "std": 30.0, "minimum": 0.0, "maximum": 255.0}
    return {
        "root": "/data/<b>streets</b>", "samples": {"train": 9, "val": 2, "test": 8},
        "groups": {"train": 3, "val": 1, "test": 2},
        "group_samples": {"train": {"x": 9}, "val": {"y": 2}, "test": {"drive a": 4, "drive b": 4}},
        "outlines": outlines, "bands": {"red": band, "green": band, "blue": band}, "bands_from": "100 valid pixels",
        "dtype": "uint8", "class_pixels": dict.fromkeys(names, 10),
        "class_shares": dict.fromkeys(names, 1 / len(names)), "fingerprint": "fedcba", "skipped": [],
        "unmatched": [], "warnings": ["group 'x' <u>leaks</u>"],
        "normalisation": {"mean": [100.0] * 3, "std": [30.0] * 3},
    }  # fmt: skip


def _write_metrics(path: Path, epochs: int) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", "lr", "train/loss", "val/loss", "val/mean_iou", "val/mean_recall"])
        for epoch in range(epochs):
            validated = [0.9 / (epoch + 1), 0.2 * epoch, 0.25 * epoch] if epoch else ["", "", ""]
            writer.writerow([epoch, epoch * 3, 0.01, 1.0 / (epoch + 1), *validated])


def _draw(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight samples of 24 x 32 pixels: truth with unlabelled pixels, and predictions that are ever more right."""
    rng = np.random.default_rng(seed)
    truths = rng.integers(0, classes, (8, 24, 32)).astype(np.uint8)
    predictions = rng.integers(0, classes, truths.shape).astype(np.uint8)
    for index in range(8):
        predictions[index, : 3 * index] = truths[index, : 3 * index]
    truths[:, :, 0] = 255
    truths[0][truths[0] == 2] = 0  # class 2 is not in the first sample
    return truths, predictions


def _write_evaluation(
    run: Run,
    names: tuple[str, ...],
    truths: np.ndarray,
    predictions: np.ndarray,
    data: dict[str, Any],
    extra: dict[str, Any],
) -> None:
    folder, count = run.evaluation("test"), len(names)
    codes = [t[t < 255].astype(int) * count + p[t < 255] for t, p in zip(truths, predictions, strict=True)]
    confusions = np.stack([np.bincount(each, minlength=count**2).reshape(count, count) for each in codes])
    items = [Item(f"images/<b>{i}</b>.png", f"drive {'ab'[i // 4]}", "") for i in range(8)]
    save_counts(Counts(tuple(items), names, confusions, np.zeros(8)), folder)
    grey = np.full((*truths.shape[1:], 3), 90, np.uint8)
    examples = [Example(item.id, grey, *pair) for item, *pair in zip(items, truths, predictions, strict=True)]
    colours = COLOURS[:count]
    write_gallery(folder / "gallery", examples, items=items, confusions=confusions, names=names, colours=colours)
    scores = {
        "run": run.name, "split": "test", "warning": None, "samples": 8, "groups": 2, "classes": list(names),
        "checkpoint": {"name": "best", "file": "best.ckpt", "sha256": "0" * 64},
        "scores": summarise(confusions.sum(axis=0), names).as_dict(), "definitions": DEFINITIONS,
        "confusion": confusions.sum(axis=0).tolist(), "data": data, "environment": {}, **extra,
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(scores))


# ------------------------------------------------------------------------------------------------ detection

ERRORS = {
    "iou": 0.5, "background_iou": 0.1, "ap": 0.4, "classes": list(NAMES), "images": 6, "objects": 12,
    "kinds": [{"name": "missed", "count": 1234, "gain": 0.3, "per_class": [4, 0, 0]},
              {"name": "duplicate", "count": 0, "gain": None, "per_class": [0, 0, 0]},
              {"name": "background", "count": 5, "gain": 0.05, "per_class": [5, 0, 0]}],
    "definitions": {"missed": "not found.", "duplicate": "twice.", "background": "nothing there."},
}  # fmt: skip


@pytest.fixture(scope="session")
def box_evidence() -> dict[str, Any]:
    """What a detector's scores.json may have besides."""
    row = {"by": "site", "value": "<i>north</i>", "samples": 3, "groups": 1, "objects": 6, "map": 0.2, "ap50": 0.5,
           "recall": 0.4, "precision": None, "per_class": {}, "interval": [0.31, 0.62], "note": None}  # fmt: skip
    return {"errors": ERRORS, "efficiency": EFFICIENCY, "slices": [row], "slices_note": "One slice."}


@pytest.fixture(scope="session")
def make_box_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """make_box_run("name", seed=0, extra={}) -> a detection run's folder: six images of two drives, three classes."""

    def make(name: str, *, seed: int = 0, extra: dict[str, Any] | None = None) -> Run:
        runs = tmp_path_factory.mktemp("runs")
        run = Run.create(_box_config(runs, name))
        run.write_text("trainable.txt", TRAINABLE)
        run.write_json("environment.json", _environment())
        card = {"objects": {"train": 30, "val": 5, "test": 12}, "class_objects": dict.fromkeys(NAMES, 10)}
        run.write_json("data.json", _data(NAMES, []) | card)
        finished = {"epochs": 3, "steps": 9, "seconds": 99.0, "best_val_map": 0.25, "best_epoch": 2}
        run.write_json("finished.json", finished)
        run.write_text("metrics.csv", "epoch,train/loss,val/map,val/ap50\n0,2.0,,\n1,1.0,0.2,0.5\n")
        folder, counts = run.evaluation("test"), _draw_boxes(seed)
        save_detection_counts(counts, folder)
        write_box_gallery(folder / "gallery", counts, _grey_data(), score=0.5)
        scores = {
            "run": name, "split": "test", "warning": None, "samples": 6, "groups": 2, "classes": list(NAMES),
            "checkpoint": {"name": "best", "file": "best.ckpt", "sha256": "0" * 64},
            "scores": score_detections(counts).as_dict(), "definitions": DETECTION_DEFINITIONS,
            "intervals": bootstrap_detections(counts, resamples=50).as_dict(),
            "data": {"fingerprint": "0123456789abcdef"}, "environment": {}, **(extra or {}),
        }  # fmt: skip
        (folder / "scores.json").write_text(json.dumps(scores))
        return run

    return make


def _box_config(runs: Path, name: str) -> DetectionConfig:
    data = {"kind": "camera", "root": str(runs), "layout": "csv", "images": "{split}",
            "classes": [{"name": each, "values": str(index)} for index, each in enumerate(NAMES)]}  # fmt: skip
    backbone = {"name": "test_efficientnet", "weights": "none"}
    values = {"name": name, "runs": str(runs), "task": {"kind": "detection"}, "data": data, "backbone": backbone}
    return DetectionConfig.model_validate(values)


def _draw_boxes(seed: int) -> DetectionCounts:
    """Two objects an image: one found, one missed; a false alarm, a bad fit and a wrong label in each."""
    rng, counts = np.random.default_rng(seed), DetectionCounts(NAMES)
    for index in range(6):
        truth = torch.tensor([[20.0, 20, 60, 50], [100, 80, 130, 140]])
        found = torch.cat([truth[:1], truth[:1] + torch.tensor([20.0, 0, 20, 0]), truth[1:],
                           torch.tensor([[150.0, 10, 180, 30]])])  # fmt: skip
        scores = torch.from_numpy(rng.uniform(0.4 if seed else 0.5, 0.9, 4).astype(np.float32))
        labels = torch.tensor([0, 0, 2, 0])
        target = {"boxes": truth, "labels": torch.tensor([0, 1]), "ignored": torch.empty(0, 4)}
        item = Item(f"images/<b>{index}</b>.png", f"drive {'ab'[index // 3]}", "")
        counts.add(Detections(found, scores, labels), target, item=item, size=(160, 200))
    return counts


def _grey_data() -> Any:
    raw = SimpleNamespace(values=np.full((3, 160, 200), 90, np.uint8), valid=np.ones((160, 200), bool))
    return SimpleNamespace(
        read=lambda item: raw,
        normalisation=Normalisation((0.0,) * 3, (1.0,) * 3),
        bands=("red", "green", "blue"),
        dtype=np.dtype(np.uint8),
        classes=SimpleNamespace(names=NAMES, colours=COLOURS),
    )


# ------------------------------------------------------------------------------------------- classification


@pytest.fixture(scope="session")
def labelled_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """{train,val,test}/{dark,bright}/*.png of 32x32, separable by brightness, and tables of several labels."""
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4), ("test", 6)):
        rows = ["image,label"]
        for name, level in (("dark", 60), ("bright", 190)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                picture = level + rng.normal(0, 10, (32, 32, 3))
                path = root / split / name / f"{name}{index}.png"
                cv2.imwrite(str(path), picture.clip(0, 255).astype(np.uint8))
                rows.append(f"{path.relative_to(root)},{name};picture")
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def label_values(labelled_pictures: Path) -> dict[str, Any]:
    """A configuration, as plain values, that learns these pictures in a second; it still needs `runs`."""
    return {
        "name": "labels",
        "task": {"kind": "classification"},
        "data": {
            "kind": "camera",
            "root": str(labelled_pictures),
            "batch_size": 4,
            "workers": 0,
            "normalise": "data",
            "augment": {"pipeline": "nadir", "photometric": 0.1},
        },
        "backbone": {"name": "test_efficientnet", "weights": "none"},
        "strategy": {"kind": "full", "lr": 0.01, "backbone_lr_factor": 0.3},
        "trainer": {"epochs": 6, "accelerator": "cpu", "precision": "32"},
    }


@pytest.fixture(scope="session")
def label_run(label_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run of one class an image."""
    from visionsft.training.fitting import fit

    runs = tmp_path_factory.mktemp("label_runs")
    return fit(ClassificationConfig.model_validate({**label_values, "runs": runs}))


@pytest.fixture(scope="session")
def labels_run(label_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run of several classes an image: its brightness, and 'picture', which all are."""
    from visionsft.training.fitting import fit

    values = {
        **label_values,
        "runs": tmp_path_factory.mktemp("labels_runs"),
        "task": {"kind": "classification", "multi_label": True, "class_weights": "inverse"},
        "data": {**label_values["data"], "layout": "csv"},
    }
    return fit(ClassificationConfig.model_validate(values))
