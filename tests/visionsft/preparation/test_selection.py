"""Selection from a configuration to its files, for every task, and the rule of its recommendation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from datamodules.datamodule import DataModule
from visionsft.config import ClassificationConfig, Config, DetectionConfig, SegmentationConfig
from visionsft.errors import ConfigError, WriteError
from visionsft.preparation import pricing, selection
from visionsft.preparation.candidates import Candidate, Provenance
from visionsft.preparation.pricing import Price
from visionsft.preparation.probing import Judgement, Probing, Samples
from visionsft.preparation.selection import Assessment, Limits, Selection, select

MODELS = ["test_efficientnet=none", "test_resnet=none", "test_vit=none"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timed pass is enough to see that there is one, and few pixels to learn dark and bright."""
    monkeypatch.setattr("visionsft.evaluation.efficiency.REPEATS", 1)
    monkeypatch.setattr("visionsft.preparation.probing.PIXELS", 300)


@pytest.fixture
def config(label_values: dict[str, Any], tmp_path: Path) -> ClassificationConfig:
    return ClassificationConfig.model_validate({**label_values, "runs": tmp_path / "runs"})


def test_images_are_ranked_and_written(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    load = DataModule.evaluation_loader
    monkeypatch.setattr(
        DataModule, "evaluation_loader", lambda self, split: (asked.append(split), load(self, split))[1]
    )
    torch.manual_seed(0)
    weights = tmp_path / "mine.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    given = [*MODELS, f"test_efficientnet={weights}", f"test_resnet={tmp_path / 'bad.safetensors'}",
             f"test_resnet={weights}", "test_reznet=none"]  # fmt: skip
    found = select(config, given)
    assert [each.candidate.label for each in found.assessments] != []
    assert {each.candidate.label for each in found.assessments} == {*MODELS, f"test_efficientnet={weights}"}
    assert [each.score for each in found.assessments] == sorted((e.score for e in found.assessments), reverse=True)
    assert found.assessments[0].score == 1.0  # dark and bright pictures
    reasons = list(found.failed.values())
    assert "did you mean test_resnet" in reasons[0]
    assert "truncated or no weights file" in reasons[1]
    assert "another architecture" in reasons[2]
    assert set(asked) == {"train", "val"}
    _check_files(found)


def _check_files(found: Selection) -> None:
    with open(found.folder / "selection.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    values = json.loads((found.folder / "selection.json").read_text())
    assert [row["candidate"] for row in rows] == [each.candidate.label for each in found.assessments]
    assert [row["candidate"] for row in values["candidates"]] == [row["candidate"] for row in rows]
    assert found.recommended is not None
    assert values["recommended"] == found.recommended.candidate.label
    assert values["failed"] == found.failed
    assert set(pricing.DEFINITIONS) < set(values["definitions"])
    assert {row["missing_tensors"] for row in rows} == {"0"}
    for row in rows:
        assert float(row["inference_ms"]) > 0
        assert float(row["step_ms"]) > 0
        assert int(row["parameters"]) > 10_000
    assert cv2.imread(str(found.folder / "selection.png")).shape[1] > 500
    table = found.table()
    for each in found.assessments:
        assert each.candidate.short in table
    assert all(reason in table for reason in found.failed.values())


def test_several_labels(label_values: dict[str, Any], tmp_path: Path) -> None:
    task = {"kind": "classification", "multi_label": True}
    data = {**label_values["data"], "layout": "csv"}
    values = {**label_values, "runs": tmp_path, "task": task, "data": data}
    found = select(ClassificationConfig.model_validate(values), MODELS[:1])
    assert found.metric == "mean_average_precision"
    assert found.assessments[0].score == 1.0
    assert found.advice().endswith("the only candidate")


def test_the_same_seed_gives_the_same_scores(config: Config, tmp_path: Path) -> None:
    first, second = (
        select(config, MODELS[:2], samples=6, out=tmp_path / name).rows() for name in ("one", "two")
    )
    for one, other in zip(first, second, strict=True):
        same = ("candidate", "accuracy", "low", "high", "neighbours", "logme", "penalty", "parameters")
        assert {key: one[key] for key in same} == {key: other[key] for key in same}


def test_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 6)):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.full((48, 64), 255, np.uint8)
            mask[8:, :] = 0
            row, col = rng.integers(8, 24, 2)
            mask[row : row + 20, col : col + 24] = 1
            image = np.where(mask[..., None] == 1, 190, 60) + rng.normal(0, 10, (48, 64, 3))
            name = f"{split}{index}.png"
            cv2.imwrite(str(tmp_path / "images" / split / name), image.clip(0, 255).astype(np.uint8))
            cv2.imwrite(str(tmp_path / "masks" / split / name), mask)
    values = {
        "name": "pixels", "runs": tmp_path / "runs", "backbone": {"name": "resnet18"},
        "data": {
            "kind": "camera", "root": tmp_path, "images": "images/{split}/*.png", "labels": "masks/{split}/{name}.png",
            "classes": [{"name": "dark", "values": 0}, {"name": "bright", "values": 1}], "ignore": [255],
            "crop": [32, 32], "batch_size": 2, "workers": 0, "normalise": "data",
        },
        "head": {"name": "fpn", "width": 16}, "trainer": {"accelerator": "cpu"},
    }  # fmt: skip
    found = select(SegmentationConfig.model_validate(values), MODELS[:1])
    assert found.metric == "mean_iou"
    assert found.assessments[0].score > 0.75  # coarse maps: edges are wrong
    assert found.assessments[0].probing.neighbours is None
    assert "mean iou of a linear probe" in found.table()


def test_boxes_by_a_stated_proxy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 5)):
        (tmp_path / split).mkdir()
        rows = ["image,x1,y1,x2,y2,label"]
        for index in range(count):
            picture = rng.integers(110, 140, (64, 64, 3), np.uint8)
            row, col = rng.integers(0, 30, 2).tolist()
            picture[row : row + 30, col : col + 30] = 240
            cv2.imwrite(str(tmp_path / split / f"{index}.png"), picture)
            rows.append(f"{index}.png,{col},{row},{col + 30},{row + 30},bright")
        (tmp_path / f"{split}.csv").write_text("\n".join(rows) + "\n")
    values = {
        "name": "boxes", "runs": tmp_path / "runs", "task": {"kind": "detection"}, "backbone": {"name": "resnet18"},
        "data": {
            "kind": "camera", "layout": "csv", "root": tmp_path, "images": "{split}", "batch_size": 2, "workers": 0,
            "normalise": "data", "classes": [{"name": "bright", "values": "bright"}],
        },
        "head": {"name": "fcos", "width": 64, "convs": 1}, "trainer": {"accelerator": "cpu", "precision": "32"},
    }  # fmt: skip
    found = select(DetectionConfig.model_validate(values), MODELS[:1])
    assert found.metric == "cell_mean_iou"
    assert found.assessments[0].score > 0.7
    assert "proxy" in found.as_dict()["definitions"]["cell_mean_iou"]


# ---------------------------------------------------------------------------------------------- what is refused


def test_nothing_is_overwritten_unasked(config: Config, tmp_path: Path) -> None:
    (tmp_path / "selection.csv").write_text("mine")
    with pytest.raises(WriteError, match=r"selection\.csv: exists; --overwrite"):
        select(config, MODELS, out=tmp_path)
    select(config, MODELS[:1], out=tmp_path, overwrite=True, samples=4)
    assert (tmp_path / "selection.csv").read_text() != "mine"


def test_no_candidate_that_works(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"none of 1 candidates can be judged:\n  test_resnet=gone\.pth: no weights"):
        select(config, ["test_resnet=gone.pth"])
    with pytest.raises(ConfigError, match="no candidate to compare"):
        select(config, ["test_rez*"])
    with pytest.raises(ConfigError, match="samples is 0"):
        select(config, MODELS, samples=0)
    with pytest.raises(ConfigError, match="max_ms is -1"):
        Limits(ms=-1)


def test_a_candidate_that_runs_out_of_memory_fails_alone(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    real = selection.probe

    def probe(backbone: Any, *rest: Any, **options: Any) -> Any:
        if backbone.name == "test_resnet":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(backbone, *rest, **options)

    monkeypatch.setattr(selection, "probe", probe)
    found = select(config, MODELS[:2], samples=4)
    assert found.failed == {"test_resnet=none": "DefaultCPUAllocator: can't allocate memory"}


# ----------------------------------------------------------------------------------------------- recommendation


def assessment(name: str, score: float, *, ms: float, params: int = 100, noise: float = 0.01) -> Assessment:
    rng = np.random.default_rng(sum(map(ord, name)))
    judgement = Judgement("accuracy", score, score + rng.normal(0, noise, 500), "image", 100, 100.0)
    price = Price(params, ms, 1.0, 1.0, None, "a machine")
    probing = Probing(judgement, 0.5, -1.0, 0.1, 8)
    return Assessment(Candidate(name, "none"), Provenance("unknown", "unknown", ""), probing, price, 0)


def choose(*found: Assessment, limits: Limits = Limits()) -> Selection:  # noqa: B008
    ranked = tuple(sorted(found, key=lambda each: -each.score))
    return Selection(ranked, {}, limits, "classification", Samples(None, (1,), (2,), "val", (1, 1)), 0, Path("."))  # type: ignore[arg-type]


def name(found: Selection) -> str | None:
    return found.recommended and found.recommended.candidate.name


def test_a_tie_goes_to_the_faster() -> None:
    found = choose(assessment("slow", 0.80, ms=50), assessment("fast", 0.79, ms=5), assessment("bad", 0.5, ms=1))
    assert name(found) == "fast"
    assert [each.candidate.name for each in found.tied] == ["slow", "fast"]
    assert "slow=none scores 0.0100 more, which may be chance" in found.advice()
    assert "10.0 times as long" in found.advice()


def test_what_is_clearly_better_wins() -> None:
    found = choose(assessment("slow", 0.9, ms=50), assessment("fast", 0.6, ms=5))
    assert name(found) == "slow"
    assert "no other candidate may be as good" in found.advice()


def test_limits_keep_out_what_is_too_dear() -> None:
    both = assessment("slow", 0.9, ms=50, params=900), assessment("fast", 0.6, ms=5)
    assert name(choose(*both, limits=Limits(ms=10))) == "fast"
    assert name(choose(*both, limits=Limits(params=500))) == "fast"
    assert name(choose(*both, limits=Limits(memory_mb=1))) == "slow"  # it isn't known here
    none = choose(*both, limits=Limits(ms=1))
    assert name(none) is None
    assert none.advice() == "recommended: none; no candidate is within 1 ms an image"
    assert "50 ms an image > 10" in "".join(Limits(ms=10).exceeded(both[0].price))


def test_without_an_interval_nothing_ties() -> None:
    rows = [assessment("slow", 0.80, ms=50), assessment("fast", 0.79, ms=5)]
    for row in rows:
        object.__setattr__(row.probing.judgement, "groups", 2)
    assert name(choose(*rows)) == "slow"
