"""Classification from its configuration to a trained run, with every strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from backbones import create_backbone
from visionsft.config import ClassificationConfig
from visionsft.evaluation import evaluate
from visionsft.models.classifier import create_classifier
from visionsft.models.losses import ImageLoss
from visionsft.runs import Run
from visionsft.training.fitting import fit
from visionsft.training.loading import load_model, load_run
from visionsft.training.tasks import ClassificationModule

STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {},
    "feature_based": {},
    "layerwise": {"last": 2},
    "gradual": {"every": 1, "start": 1},
    "lora": {"rank": 4},
}


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_strategy_learns_two_colours(kind: str, label_values: dict[str, Any], tmp_path: Path) -> None:
    strategy = {"kind": kind, "lr": 0.01, "backbone_lr_factor": 0.3, **STRATEGIES[kind]}
    trainer = {**label_values["trainer"], "epochs": 15}
    values = {**label_values, "runs": tmp_path, "strategy": strategy, "trainer": trainer}
    run = fit(ClassificationConfig.model_validate(values))
    evaluation = evaluate(run)
    assert evaluation.scores.accuracy == 1.0
    assert evaluation.scores.images == 12


def test_run_folder_explains_itself(label_run: Run) -> None:
    assert label_run.task == "classification"
    card = label_run.read_json("data.json")
    assert card["classes"] == ["bright", "dark"]
    assert card["class_images"] == {"bright": 8, "dark": 8}
    finished = json.loads((label_run.path / "finished.json").read_text())
    assert finished["best_val_macro_f1"] == 1.0
    header = (label_run.path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/loss", "val/accuracy", "val/macro_f1", "val/recall/dark", "train/loss"} <= set(header)


def test_the_loaded_model_is_plain_pytorch(label_run: Run) -> None:
    model = load_model(label_run)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 2)
    assert load_run(label_run).data.classes.names == ("bright", "dark")


def test_mixup_is_the_loss_on_mixed_images_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = create_classifier(create_backbone("test_resnet", weights="none"), 3).eval()
    module = ClassificationModule(net, ImageLoss(torch.ones(3)), class_names=["a", "b", "c"], mixup=0.4)
    monkeypatch.setattr(module, "log_loss", lambda loss, items, index: loss)
    image, label = torch.randn(4, 3, 64, 64), torch.tensor([0, 2, 1, 1])
    batch: Any = {"image": image, "label": label, "item": []}
    torch.manual_seed(1)
    loss = module.training_step(batch, 0)
    torch.manual_seed(1)
    share = float(torch.distributions.Beta(0.4, 0.4).sample())
    targets = torch.eye(3)[label]
    mixed = share * image + (1 - share) * image[[3, 2, 1, 0]]
    expected = F.cross_entropy(net(mixed), share * targets + (1 - share) * targets[[3, 2, 1, 0]])
    torch.testing.assert_close(loss, expected)


def test_resumed_is_bit_identical(label_values: dict[str, Any], tmp_path: Path) -> None:
    def config(runs: str, epochs: int) -> ClassificationConfig:
        trainer = {**label_values["trainer"], "epochs": epochs}
        data = {**label_values["data"], "balance": 0.5}
        strategy = {"kind": "full", "lr": 0.01, "schedule": "constant", "warmup": 0.0}
        task = {"kind": "classification", "mixup": 0.2}
        changed = {"runs": tmp_path / runs, "trainer": trainer, "data": data, "strategy": strategy, "task": task}
        return ClassificationConfig.model_validate({**label_values, **changed})

    straight = fit(config("straight", 4))
    fit(config("halting", 2))
    resumed = fit(config("halting", 4), resume=True)
    one, other = (torch.load(run.checkpoint("last"), weights_only=True) for run in (straight, resumed))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])


def test_several_labels_are_chosen_by_average_precision(labels_run: Run) -> None:
    finished = json.loads((labels_run.path / "finished.json").read_text())
    assert finished["best_val_mean_average_precision"] == 1.0
    assert labels_run.read_json("data.json")["classes"] == ["bright", "dark", "picture"]
