"""Detection from a configuration to scores and files: upright boxes, outlines and turned boxes, on drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import visionsft
from visionsft.acceptance import gates_of
from visionsft.errors import ConfigError, RunError
from visionsft.evaluation import (
    DetectionEvaluation,
    calibrate,
    choose_scores,
    judge,
    load_detection_counts,
    score_detections,
)
from visionsft.evaluation.robustness import measure_robustness
from visionsft.gate import parse
from visionsft.loading import load_config

SIDE, CLASSES = 96, ["dark", "bright"]


def draw(root: Path, split: str, count: int, seed: int) -> list[tuple[str, list[tuple[int, np.ndarray]]]]:
    """Pictures of turned rectangles; each with the class and the (4, 2) corners of its objects."""
    rng = np.random.default_rng(seed)
    (root / split).mkdir(parents=True)
    drawn = []
    for index in range(count):
        picture = rng.integers(110, 140, (SIDE, SIDE, 3), np.uint8)
        objects = []
        for x in (26, 70):
            label = int(rng.integers(2))
            rectangle = ((x, float(rng.integers(28, 68))), (28, 14), float(rng.integers(-40, 40)))
            corners = cv2.boxPoints(rectangle)
            cv2.fillPoly(picture, [corners.round().astype(np.int32)], (240,) * 3 if label else (20,) * 3)
            objects.append((label, corners))
        cv2.imwrite(str(root / split / f"{split}{index}.png"), picture)
        drawn.append((f"{split}{index}.png", objects))
    return drawn


def write_labels(root: Path, layout: str) -> None:
    for split, count, seed in (("train", 12, 0), ("val", 2, 1), ("test", 4, 2)):
        pictures = draw(root / "images" if layout == "dota" else root, split, count, seed)
        if layout == "csv":
            rows = ["image,x1,y1,x2,y2,label"]
            for name, objects in pictures:
                for label, corners in objects:
                    box = ",".join(f"{v:.1f}" for v in (*corners.min(0), *corners.max(0)))
                    rows.append(f"{name},{box},{CLASSES[label]}")
            (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
        elif layout == "dota":
            (root / "labelTxt" / split).mkdir(parents=True)
            for name, objects in pictures:
                rows = [
                    " ".join(f"{v:.1f}" for v in corners.ravel()) + f" {CLASSES[label]} 0"
                    for label, corners in objects
                ]
                (root / "labelTxt" / split / f"{Path(name).stem}.txt").write_text("\n".join(rows) + "\n")
        else:
            images = [
                {"id": i, "file_name": name, "height": SIDE, "width": SIDE}
                for i, (name, _) in enumerate(pictures)
            ]
            annotations: list[dict[str, Any]] = []
            for i, (_, objects) in enumerate(pictures):
                for label, corners in objects:
                    low, size = corners.min(0), corners.max(0) - corners.min(0)
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": i,
                            "category_id": label + 1,
                            "bbox": [*low.tolist(), *size.tolist()],
                            "segmentation": [corners.ravel().tolist()],
                            "area": float(size.prod()),
                            "iscrowd": 0,
                        }
                    )
            categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
            (root / "annotations").mkdir(exist_ok=True)
            (root / "annotations" / f"instances_{split}.json").write_text(
                json.dumps({"images": images, "annotations": annotations, "categories": categories})
            )


def configure(folder: Path, layout: str, kind: str, head: dict[str, Any], data: dict[str, Any]) -> Path:
    values = {
        "name": "boxes",
        "runs": str(folder / "runs"),
        "task": {"kind": kind},
        "data": {
            "kind": "camera",
            "layout": layout,
            "root": str(folder / "data"),
            "batch_size": 4,
            "workers": 0,
            "normalise": "data",
            "classes": [{"name": name, "values": name} for name in CLASSES],
            **data,
        },
        "backbone": {"name": "test_efficientnet", "weights": "none"},
        "head": {"width": 64, "detections_per_image": 20, **head},
        "strategy": {"kind": "full", "lr": 0.005, "backbone_lr_factor": 1.0},
        "trainer": {"epochs": 2, "accelerator": "cpu", "precision": "32"},
    }
    path = folder / "boxes.yaml"
    path.write_text(json.dumps(values))
    return path


def told_again(run: visionsft.Run, evaluation: DetectionEvaluation) -> None:
    """What begins with the scores of the evaluation, and what is told of it."""
    found = measure_robustness(run, limit=2)
    assert (found.samples, found.of, found.metric) == (2, 4, "ap50")
    whole = measure_robustness(run)
    assert whole.clean.as_dict() == evaluation.scores.as_dict()
    page = visionsft.report(run).read_text()
    assert "Under worse conditions" in page
    index = json.loads((evaluation.folder / "gallery" / "index.json").read_text())
    for sample in index["samples"]:
        assert (evaluation.folder / "gallery" / sample["files"]["image"]).is_file()
        assert all(len(mark["points"]) == 4 for marks in sample["marks"].values() for mark in marks)
        assert len(sample["marks"]["error"]) == 1


def operated(run: visionsft.Run, pictures: Path, folder: Path) -> None:
    """Scores by class, chosen on validation, shown by evaluate and used by predict."""
    with pytest.raises(RunError, match="has no operating point"):
        visionsft.predict(run, pictures, folder / "operated", operating_point=True)
    point = choose_scores(run, [f"recall[{CLASSES[0]}] >= 0.3"])
    assert point.thresholds[0].recall >= 0.3
    assert "on test:" in point.table()
    evaluation = visionsft.evaluate(run)
    assert isinstance(evaluation, DetectionEvaluation)
    assert evaluation.price is not None
    assert point.price is not None
    assert evaluation.price.as_dict() == point.price.as_dict()
    assert "operating point" in evaluation.table()
    assert "Operating point" in visionsft.report(run).read_text()
    files = visionsft.predict(run, pictures, folder / "operated", operating_point=True)
    least = point.thresholds[0].value
    for file in files:
        rows = [row for row in json.loads(file.read_text())["annotations"] if row["category_id"] == 0]
        assert all(row["score"] >= least - 1e-5 for row in rows)  # they are rounded
    kept = json.loads((folder / "operated" / f"{files[0].stem}_operating_point.json").read_text())
    assert kept["thresholds"] == {CLASSES[0]: least}


@pytest.mark.parametrize(
    ("layout", "kind", "head", "data"),
    [
        ("csv", "detection", {"name": "fcos", "convs": 1}, {"images": "{split}"}),
        ("csv", "detection", {"name": "retinanet", "convs": 1}, {"images": "{split}"}),
        (
            "dota",
            "detection",
            {"name": "rotated_fcos", "convs": 1},
            {"images": "images/{split}/*.png", "labels": "labelTxt/{split}/{name}.txt"},
        ),
        ("coco", "instance_segmentation", {"name": "mask_rcnn", "hidden": 64}, {}),
    ],
)
def test_from_configuration_to_files(
    tmp_path: Path, layout: str, kind: str, head: dict[str, Any], data: dict[str, Any]
) -> None:
    write_labels(tmp_path / "data", layout)
    run = visionsft.fit(configure(tmp_path, layout, kind, head, data))
    assert run.task == kind
    assert (run.path / "metrics.csv").read_text().startswith("epoch,")
    evaluation = visionsft.evaluate(run, slice_by=("object_size", "brightness"))
    assert isinstance(evaluation, DetectionEvaluation)
    assert evaluation.scores.objects == 8
    # the stored boxes remake the numbers without the model
    kept = load_detection_counts(evaluation.folder)
    assert score_detections(kept).map == pytest.approx(evaluation.scores.map, nan_ok=True)
    assert (kept.boxes[0].truth.shape[1] == 5) == (head["name"] == "rotated_fcos")
    scores = json.loads((evaluation.folder / "scores.json").read_text())
    assert [each["name"] for each in scores["errors"]["kinds"]][:2] == ["localisation", "classification"]
    assert "dAP50" in evaluation.table()
    assert (scores["mask_scores"] is not None) == (kind == "instance_segmentation")
    if kept.masks:
        again = score_detections(kept, masks=True).as_dict()
        assert again["ap50"] == scores["mask_scores"]["ap50"]
        assert "by the overlap of masks" in evaluation.table()
    for name in ("scores.json", "table.txt", "curves.png", "misses.png", "false_alarms.png"):
        assert (evaluation.folder / name).is_file()
    assert evaluation.slices is not None
    by = [row["by"] for row in scores["slices"]]
    assert (by.count("object_size"), by.count("brightness")) == (3, 4)
    assert sum(row["objects"] for row in scores["slices"] if row["by"] == "brightness") == 8
    texts = ["ap50 >= 0", f"recall[{CLASSES[0]}] >= 0", "slice(object_size).recall.max >= 0", "map drop_vs BASE <= 0"]
    gates = [parse(text.replace("BASE", str(run.path)), kind) for text in texts]
    values = [verdict.value for verdict in judge(run, gates).verdicts]
    assert values[:2] == [scores["scores"]["ap50"], scores["scores"]["per_class"][0]["recall"]]
    assert values[3] == 0
    assert all(value is not None for value in values)
    drops = ["recall.upper"] + (["mask_ap50.lower"] if kept.masks else [])
    for drop in drops:
        (found,) = judge(run, [parse(f"{drop} drop_vs {run.path} <= 0", kind)]).verdicts
        assert found.note.startswith("no interval of the drop: too few groups with objects of it")
    (tmp_path / "gates.txt").write_text(f"ece <= 0.1\nrecall[{CLASSES[0]}s] >= 0.5\n")
    with pytest.raises(ConfigError, match="nearest: dark"):
        gates_of(run, file=tmp_path / "gates.txt")
    assert scores["calibration"]["iou"] == 0.5
    (found,) = judge(run, [parse("ece.upper <= 0.1", kind)]).verdicts
    assert found.value is None
    assert found.note.startswith("no interval: only")
    with pytest.raises(RunError, match="a detector has no temperature, which would change no ranking"):
        calibrate(run)
    told_again(run, evaluation)
    pictures = tmp_path / "data" / ("images/test" if layout == "dota" else "test")
    files = visionsft.predict(run, pictures, tmp_path / "found")
    assert len(files) == 4
    if head["name"] == "fcos":
        operated(run, pictures, tmp_path)
    assert {"images", "annotations", "categories"} <= json.loads(files[0].read_text()).keys()


def test_options_of_other_tasks_are_refused(tmp_path: Path) -> None:
    write_labels(tmp_path / "data", "csv")
    path = configure(tmp_path, "csv", "detection", {"name": "fcos"}, {"rare_class_crops": 0.5})
    with pytest.raises(ConfigError, match="rare_class_crops: unknown key"):
        load_config(path)
    run = visionsft.fit(configure(tmp_path, "csv", "detection", {"name": "fcos", "convs": 1}, {"images": "{split}"}))
    with pytest.raises(ConfigError, match="boundaries: for segmentation"):
        visionsft.evaluate(run, boundaries=True)
