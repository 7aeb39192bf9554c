"""A fit from its configuration to the finished run folder, interrupted and continued."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visionsft import build
from visionsft.config import Config
from visionsft.errors import ConfigError, RunError, TrainingError
from visionsft.evaluation.answers import infer
from visionsft.loading import dump_config
from visionsft.runs import Run
from visionsft.splitting import split
from visionsft.training.callbacks import MovingAverage
from visionsft.training.fitting import fit
from visionsft.training.loading import load_model, load_run

Make = Callable[..., Config]


def state_of(run: Run, kind: str = "last") -> dict[str, Any]:
    return torch.load(run.checkpoint(kind), weights_only=True)  # type: ignore[arg-type]


def assert_same(first: Any, second: Any) -> None:
    """Bit for bit the same, through nested containers."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def assert_same_training(first: Run, second: Run) -> None:
    one, other = state_of(first), state_of(second)
    for key in ("state_dict", "optimizer_states", "epoch", "global_step"):
        assert_same(one[key], other[key])
    assert_same(one["callbacks"]["MovingAverage"], other["callbacks"]["MovingAverage"])
    assert_same(state_of(first, "best")["state_dict"], state_of(second, "best")["state_dict"])


def scores(run: Run) -> list[dict[str, str]]:
    """metrics.csv without what a clock wrote."""
    rows = list(csv.DictReader((run.path / "metrics.csv").open()))
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def test_run_keeps_its_split_and_what_leaks(make: Make, values: dict[str, Any], tmp_path: Path) -> None:
    run = fit(make(values))
    rows = list(csv.DictReader((run.path / "split.csv").open()))
    assert {row["split"] for row in rows} >= {"train", "val"}
    assert isinstance(run.read_json("leaks.json")["leaks"], list)
    written, _ = split(make(values), out=tmp_path / "again.csv", check=True)
    assert written[0].read_text() == (run.path / "split.csv").read_text()


def test_run_folder_explains_itself(make: Make, values: dict[str, Any]) -> None:
    run = fit(make(values))
    assert run.is_finished
    assert {"config.yaml", "environment.json", "data.json", "trainable.txt", "metrics.csv"} <= {
        path.name for path in run.path.iterdir()
    }
    assert json.loads((run.path / "environment.json").read_text())["data_fingerprint"]
    assert [row["epoch"] for row in scores(run)] == ["0", "1"]
    assert not list(run.path.rglob("*.partial*"))
    with pytest.raises(RunError, match="finished"):
        fit(make(values))


@pytest.mark.parametrize("kind", ["full", "gradual"])
def test_resume_is_bit_identical(make: Make, values: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """Stopped after two of four epochs and continued in the same process or not: the same bits."""
    strategy = {"kind": kind, "layer_decay": 0.8, **({"every": 1, "start": 1} if kind == "gradual" else {})}
    options = {"epochs": 4, "clip": 1.0, "accumulate": 2}
    whole = fit(make({**values, "name": "whole"}, strategy=strategy, trainer=options))
    config = make({**values, "name": "parts"}, strategy=strategy, trainer=options)
    stopped = subprocess.run(
        [sys.executable, "-c", STOP_AFTER, write(config, tmp_path), "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    part = Run.open(config.runs / "parts")
    assert not part.is_finished
    with pytest.raises(RunError, match="--resume"):
        fit(config)
    assert_same_training(fit(config, resume=True), whole)
    assert scores(part) == scores(whole)


STOP_AFTER = """
import os, signal, sys
from lightning import Callback
from visionsft import build
from visionsft.training.fitting import fit
class Kill(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.current_epoch == int(sys.argv[2]):  # in the middle of that epoch
            os.kill(os.getpid(), signal.SIGKILL)
callbacks = build._callbacks
build._callbacks = lambda *a, **k: [*callbacks(*a, **k), Kill()]
fit(sys.argv[1])
"""


def write(config: Any, folder: Path) -> str:
    path = folder / f"{config.name}.yaml"
    path.write_text(dump_config(config))
    return str(path)


def test_kill_at_any_moment_leaves_no_half_checkpoint(
    make: Make, values: dict[str, Any], tmp_path: Path
) -> None:
    config = make({**values, "name": "killed"}, trainer={"epochs": 50})
    script = f"from visionsft.training.fitting import fit; fit({write(config, tmp_path)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    last = config.runs / "killed" / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = Run.open(config.runs / "killed")
    done = state_of(run)["epoch"]
    longer = fit(
        make({**values, "name": "killed"}, trainer={"epochs": 50 if done > 40 else done + 2}), resume=True
    )
    assert [int(row["epoch"]) for row in scores(longer)] == list(range(len(scores(longer))))


def test_a_longer_training_continues_a_finished_run(make: Make, values: dict[str, Any]) -> None:
    fit(make(values, trainer={"epochs": 1}))
    run = fit(make(values, trainer={"epochs": 2}), resume=True)
    assert len(scores(run)) == 2
    with pytest.raises(RunError, match="other settings"):
        fit(make(values, strategy={"lr": 0.5}), resume=True)


def test_resume_and_overwrite_exclude_each_other(make: Make, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        fit(make(values), resume=True, overwrite=True)


def test_a_run_is_loaded_to_where_it_was_trained(
    make: Make, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit(make(values, trainer={"epochs": 1}))
    monkeypatch.setattr(build, "choose_device", lambda config: torch.device("meta"))  # stands for a GPU
    assert {p.device.type for p in load_run(run).model.parameters()} == {"meta"}
    assert {p.device.type for p in load_model(run).parameters()} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_trains_resumes_and_answers_as_the_cpu(make: Make, values: dict[str, Any]) -> None:
    fit(make(values, trainer={"epochs": 1, "accelerator": "auto"}))
    run = fit(make(values, trainer={"epochs": 2, "accelerator": "auto"}), resume=True)
    image = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    here, there = (infer(load_run(run, device=device), image).cpu() for device in (torch.device("cpu"), None))
    assert next(load_run(run).model.parameters()).is_cuda
    torch.testing.assert_close(there, here, atol=1e-2, rtol=1e-2)  # cuDNN computes in TF32


def test_the_average_is_what_is_loaded(make: Make, values: dict[str, Any]) -> None:
    run = fit(make(values, trainer={"epochs": 1}))
    state = state_of(run, "best")
    average = state["callbacks"]["MovingAverage"]["average"]
    model = dict(load_model(run).named_parameters())
    moved = 0
    for name, tensor in average.items():
        if name in model:
            assert torch.equal(model[name], tensor)
            moved += not torch.equal(tensor, state["state_dict"][f"model.{name}"])
    assert moved > 10


def test_a_loaded_average_follows_the_model() -> None:
    average = MovingAverage(0.9)
    average.load_state_dict({"updates": 3, "average": {"weight": torch.ones(2)}})
    average.on_train_start(None, SimpleNamespace(device=torch.device("meta")))  # type: ignore[arg-type]
    assert average.average["weight"].device.type == "meta"


def test_validation_score_is_that_of_the_loaded_model(make: Make, values: dict[str, Any]) -> None:
    """What chose the checkpoint is what a user gets."""
    from visionsft.evaluation import evaluate

    run = fit(make(values))
    best = max(float(row["val/mean_iou"]) for row in scores(run))
    assert evaluate(run.path, split="val").scores.mean_iou == pytest.approx(best, abs=1e-6)


def test_diverging_loss_stops_with_advice(make: Make, values: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"strategy\.lr"):
        fit(make(values, strategy={"lr": 1e18, "warmup": 0.0, "optimizer": "sgd"}))


def test_unknown_trainer_option_is_named(make: Make, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="limit_train_batches"):
        fit(make(values, trainer={"options": {"limit_train_batch": 1}}))


def test_lora_is_merged_when_loaded(make: Make, values: dict[str, Any]) -> None:
    backbone = {"name": "test_vit", "weights": "none", "drop_path_rate": 0.0}
    run = fit(make(values, backbone=backbone, strategy={"kind": "lora", "rank": 2}, trainer={"epochs": 1}))
    loaded = load_run(run)
    assert not any("lora" in name for name in loaded.model.state_dict())
    assert loaded.model(torch.zeros(1, 3, 48, 48)).shape == (1, 2, 48, 48)


def test_early_stopping(make: Make, values: dict[str, Any]) -> None:
    options = {"epochs": 6, "early_stopping": {"patience": 1, "min_delta": 2.0}}  # no score rises by 2
    assert len(scores(fit(make(values, trainer=options)))) == 2


def test_tensorboard_is_written_beside_the_csv(make: Make, values: dict[str, Any]) -> None:
    run = fit(make(values, trainer={"epochs": 1, "loggers": ("tensorboard",)}))
    assert list(run.path.rglob("events.out.tfevents*"))


def test_missing_logger_package_is_named(
    make: Make, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch import loggers

    def missing(*args: Any, **kwargs: Any) -> None:
        raise ModuleNotFoundError("No module named 'mlflow'")

    monkeypatch.setattr(loggers, "MLFlowLogger", missing)
    with pytest.raises(ConfigError, match=r"visionsft\[mlflow\]"):
        fit(make(values, trainer={"loggers": ("mlflow",)}))


def test_two_processes_share_one_run(make: Make, values: dict[str, Any], tmp_path: Path) -> None:
    """Data-parallel on two CPU processes: Lightning starts the second, which leaves the run folder alone."""
    config = make({**values, "name": "two"}, trainer={"epochs": 1, "devices": 2})
    command = [sys.executable, "-m", "visionsft", "fit", write(config, tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    run = Run.open(config.runs / "two")
    assert run.is_finished
    assert [row["epoch"] for row in scores(run)] == ["0"]
    load_model(run)
