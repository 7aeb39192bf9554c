"""Tuning: whole studies on a tiny data set, with trials that fail in every way."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

import visionsft
from visionsft import build, files
from visionsft.config import Config
from visionsft.errors import ConfigError, RunError, WriteError
from visionsft.loading import load_config
from visionsft.runs import Run
from visionsft.training import studies, trials, tuning
from visionsft.training.fitting import fit
from visionsft.training.search_space import Space
from visionsft.training.trials import CONFIG, Job, run_trials

Make = Callable[..., Config]

HEAD = """\
import os, signal
from torch import Tensor, nn


class Head(nn.Module):
    '''Fails as it is told to.'''

    def __init__(self, channels, strides, num_classes, *, fail: str = "no") -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels[0], num_classes, 1)
        self.fail = fail

    def forward(self, features: list[Tensor]) -> Tensor:
        if self.fail == "error" and self.training:
            raise RuntimeError("this head is\\nnot well")
        if self.fail == "memory" and self.training:
            raise MemoryError
        if self.fail == "kill" and self.training:
            os.kill(os.getpid(), signal.SIGKILL)
        logits = self.layer(features[0])
        return logits * float("nan") if self.fail == "nan" else logits
"""

FAILING = {"name": "failing_parts:Head", "options": {"fail": "no"}}


@pytest.fixture(autouse=True)
def failing_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's own; processes of a study have this one's path."""
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "failing_parts.py").write_text(HEAD)
    monkeypatch.syspath_prepend(str(folder))


def study_of(make: Make, values: dict[str, Any], tune: dict[str, Any], **sections: Any) -> Config:
    frozen = {"kind": "feature_based", "lr": 0.01, "cache": "disk", "views": 2}
    study = {"pruner": "none", **tune.pop("study", {})}
    return make({**values, "strategy": frozen, "tune": {"study": study, **tune}, **sections})


def job_of(config: Config, total: int) -> Job:
    """A study that is begun, and no trial of it."""
    folder = Run.of(config).path
    files.write_text(folder / CONFIG, tuning._HEADER + tuning.dump_config(config, defaults=False))
    return Job(str(folder), str(folder / "study.log"), total, str(config.runs / ".features"))


def opened(job: Job) -> tuple[Any, Any]:
    config = load_config(Path(job.folder) / CONFIG)
    storage = studies.open_storage(job.storage)
    assert config.tune is not None
    study = studies.open_study(storage, "run", space=Space.of(config), wishes=config.tune.study, start={})
    return study, storage


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "trials.csv").open()))


# ------------------------------------------------------------------------------------- whole studies


def test_a_study_and_its_best(values: dict[str, Any], make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, one trial of which is killed; the best configuration fits to the same score."""
    space = {"strategy.lr": {"log": [1e-3, 1e-1]}, "head.options.fail": ["no", "kill"]}
    config = study_of(make, values, space, head=FAILING)
    study, _ = opened(job_of(config, 4))
    for fail in ("no", "kill", "no"):
        study.enqueue_trial({"head.options.fail": json.dumps(fail)})
    result = visionsft.tune(config, trials=3)
    output = capfd.readouterr().out
    assert "trial 0001 (2/3)  failed: its process was killed (SIGKILL: " in output
    assert [trial["state"] for trial in result.trials] == ["complete", "failed", "complete"]
    assert result.best is not None
    assert result.best["score"] == max(trial["score"] or 0 for trial in result.trials)
    table = result.table()
    assert "3 of 3 trials (2 complete, 1 failed)" in table
    assert f"visionsft fit {result.path / 'best.yaml'}" in table

    again = fit(result.path / "best.yaml")
    assert again.path == config.runs / "run_best"
    assert again.read_json("finished.json")["best_val_mean_iou"] == result.best["score"]
    for number in (0, 2):
        run = Run.open(result.path / "trials" / f"{number:04d}")
        assert run.is_finished
        assert run.config.tune is None
    evaluated = visionsft.evaluate(run.path, split="val").scores.mean_iou
    assert evaluated == pytest.approx(result.trials[2]["score"], abs=1e-6)

    assert [row["state"] for row in rows(result.path)] == ["complete", "failed", "complete"]
    facts = json.loads((result.path / "study.json").read_text())
    assert facts["best"]["number"] == result.best["number"]
    assert facts["data"].keys() == {"train", "val"}
    page = (result.path / "report" / "index.html").read_text()
    assert "killed (SIGKILL" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_interrupted_and_continued(values: dict[str, Any], make: Make) -> None:
    config = study_of(make, values, {"strategy.lr": {"log": [1e-3, 1e-1]}}, trainer={**values["trainer"], "epochs": 30})
    folder = Run.of(config).path

    def interrupt() -> None:
        while not (folder / "trials" / "0000" / "metrics.csv").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    # a shell's background jobs, as tests may be, ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            visionsft.tune(config, trials=1)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert [row["ended"] for row in rows(folder)] == ["not counted: interrupted"]
    assert "No trial has ended with a score" in (folder / "report" / "index.html").read_text()
    job = Job(str(folder), str(folder / "study.log"), 1, str(config.runs / ".features"))
    run_trials(job)
    study, _ = opened(job)
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, TrialState.COMPLETE]
    result = visionsft.tune(config, trials=1)  # has its total: only the report is written
    assert result.best is not None
    assert result.best["number"] == 1
    assert result.counts == {"not counted": 1, "complete": 1}


# ------------------------------------------------------------------------------------ single trials


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        ("error", "failed: RuntimeError: this head is"),
        ("memory", "failed: MemoryError"),
        ("nan", "failed: the loss became nan in epoch 0, batch 0"),
    ],
)
def test_a_failing_trial_is_recorded(values: dict[str, Any], make: Make, fail: str, reason: str) -> None:
    config = study_of(make, values, {"head.options.fail": ["no", fail]}, head=FAILING)
    job = job_of(config, 2)
    study, _ = opened(job)
    for each in (fail, "no"):
        study.enqueue_trial({"head.options.fail": json.dumps(each)})
    run_trials(job)
    first = study.get_trials()[0]
    assert trials.outcome(first).startswith(reason)
    log = (Path(job.folder) / "trials" / "0000.txt").read_text()
    assert "Traceback" in log
    if fail == "memory":  # a new process goes on
        assert study.get_trials()[1].state == TrialState.WAITING
        run_trials(job)
    assert study.get_trials()[1].state == TrialState.COMPLETE


def test_the_feature_cache_is_shared(
    values: dict[str, Any], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that the backbone sees: in the first trial all, in the others the one that tells the shapes."""
    seen: list[int] = []
    build_backbone = build.build_backbone

    def watched(*arguments: Any, **options: Any) -> Any:
        backbone = build_backbone(*arguments, **options)
        stem: Any = backbone.model.conv_stem
        stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[0]))
        return backbone

    monkeypatch.setattr(build, "build_backbone", watched)
    space = {"strategy.lr": {"log": [1e-3, 1e-1]}, "head": [{"name": "linear"}, {"name": "fpn"}]}
    config = study_of(make, values, space)
    job = job_of(config, 1)
    counts = []
    for total in (1, 2, 3):
        seen.clear()
        run_trials(Job(job.folder, job.storage, total, job.features))
        counts.append(sum(seen))
    shapes = counts[1]
    assert counts[0] == shapes + 6 * 2 + 3  # training samples x views, validation samples
    assert counts[1] == counts[2]
    assert shapes <= 4
    assert not list(Path(job.folder).rglob("*.bin"))
    fit(studies_best(config, job))
    assert sum(seen) == counts[2] + shapes


def studies_best(config: Config, job: Job) -> Config:
    study, _ = opened(job)
    result = tuning.summarise(study, config, Space.of(config), Path(job.folder), storage="", total=3)
    assert result.best_config is not None
    return result.best_config


def test_hopeless_trials_are_pruned(values: dict[str, Any], make: Make) -> None:
    space = {"study": {"pruner": "asha", "first_rung": 1}, "strategy.lr": [0.05, 1e-7]}
    config = study_of(make, values, space, trainer={**values["trainer"], "epochs": 3, "ema": None})
    job = job_of(config, 2)
    study, _ = opened(job)
    for lr in (0.05, 1e-7):
        study.enqueue_trial({"strategy.lr": json.dumps(lr)})
    run_trials(job)
    one, other = study.get_trials()
    assert one.state == TrialState.COMPLETE
    assert other.state == TrialState.PRUNED
    assert trials.outcome(other).startswith("pruned after 1 epochs at 0.")
    assert Run.open(Path(job.folder) / "trials" / "0001").has_checkpoint("best")  # evaluate takes it


def test_a_full_disk_ends_the_study(
    values: dict[str, Any], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise WriteError("can't write runs/x: the disk is full")

    job = job_of(study_of(make, values, {"strategy.lr": [0.1]}), 3)
    monkeypatch.setattr(trials, "fit", full)
    with pytest.raises(WriteError):
        run_trials(job)
    (only,) = opened(job)[0].get_trials()
    assert only.user_attrs["void"] == "can't write runs/x: the disk is full"


def test_no_trial_begins_after_the_deadline(values: dict[str, Any], make: Make) -> None:
    job = job_of(study_of(make, values, {"strategy.lr": [0.1]}), 3)
    run_trials(Job(job.folder, job.storage, 3, job.features, deadline=time.time() - 1))
    run_trials(Job(job.folder, job.storage, 3, job.features, parent=1 if os.getppid() != 1 else 2))
    assert opened(job)[0].get_trials() == []


# --------------------------------------------------------------------------------- what is refused


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process for trials may be started."""
    monkeypatch.setattr(tuning, "_run_process", lambda *arguments: pytest.fail("a trial was begun"))


@pytest.mark.usefixtures("never")
def test_importance_in_table_and_page(values: dict[str, Any], make: Make) -> None:
    """Of a key on which the score hangs, beside one on which it doesn't."""
    config = study_of(make, values, {"strategy.lr": {"log": [1e-3, 1e-1]}, "head.dropout": {"uniform": [0, 0.5]}})
    visionsft.tune(config, timeout=-1)
    study, storage = opened(job_of(config, 12))
    while (trial := studies.claim(study, storage, 12)) is not None:
        trial.suggest_float("head.dropout", 0, 0.5)
        study.tell(trial.number, trial.suggest_float("strategy.lr", 1e-3, 1e-1, log=True))
    result = visionsft.tune(config, trials=12)
    assert list(result.importance) == ["strategy.lr", "head.dropout"]
    assert sum(result.importance.values()) == pytest.approx(1)
    assert "importance (PED-ANOVA): strategy.lr" in result.table()
    assert 'id="importance-' in (result.path / "report" / "index.html").read_text()


@pytest.mark.usefixtures("never")
def test_what_is_refused_before_the_first_trial(values: dict[str, Any], make: Make) -> None:
    space = {"backbone.name": ["test_efficientnet", "resnet_18"], "backbone.weights": ["none", "no/file.pth"]}
    with pytest.raises(ConfigError) as caught:
        visionsft.tune(study_of(make, values, space))
    first, second = sorted(str(caught.value).splitlines())
    assert "has no model 'resnet_18'; did you mean resnet18" in first
    assert second == "backbone.weights: no/file.pth: no such file"
    with pytest.raises(ConfigError, match=r"tune\.'strategy.lr'\.0: given -1"):
        visionsft.tune(study_of(make, values, {"strategy.lr": [-1]}))
    with pytest.raises(ConfigError, match="missing section"):
        visionsft.tune(make(values))
    with pytest.raises(ConfigError, match="must be 1: a trial trains on one device"):
        visionsft.tune(study_of(make, values, {"strategy.lr": [1]}, trainer={**values["trainer"], "devices": 2}))
    without = {**values, "data": {**values["data"], "split": {"by": "folder", "val": None}}}
    with pytest.raises(ConfigError, match="no validation samples"):
        visionsft.tune(study_of(make, without, {"strategy.lr": [1]}))
    assert not values["runs"].exists()


@pytest.mark.usefixtures("never")
def test_a_study_of_other_settings_or_data(values: dict[str, Any], make: Make, frames: Path) -> None:
    config = study_of(make, values, {"strategy.lr": {"log": [1e-3, 1e-1]}})
    assert visionsft.tune(config, timeout=-1).trials == ()
    with pytest.raises(RunError, match=r"space: tune\.strategy\.lr\.log: \[0.001, 0.1\] in the study, \[0.001, 0.2\]"):
        visionsft.tune(study_of(make, values, {"strategy.lr": {"log": [1e-3, 2e-1]}}), timeout=-1)
    with pytest.raises(RunError, match=r"configuration: seed: 0 in the study, 1 now"):
        visionsft.tune(study_of(make, {**values, "seed": 1}, {"strategy.lr": {"log": [1e-3, 1e-1]}}), timeout=-1)
    mask = next((frames / "masks" / "val").iterdir())
    os.utime(mask, (1, 1))
    with pytest.raises(RunError, match=r"data: val: .* in the study, .* now"):
        visionsft.tune(config, timeout=-1)
    assert visionsft.tune(config, timeout=-1, overwrite=True).trials == ()
    more = study_of(make, values, {"study": {"trials": 99}, "strategy.lr": {"log": [1e-3, 1e-1]}})
    assert visionsft.tune(more, timeout=-1).total == 99


@pytest.mark.usefixtures("never")
def test_folders_that_hold_something_else(values: dict[str, Any], make: Make, tmp_path: Path) -> None:
    config = study_of(make, values, {"strategy.lr": [0.1]})
    run = Run.create(config)
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"is a run; choose another folder for the study by --out"):
            visionsft.tune(config, overwrite=overwrite)
    with pytest.raises(RunError, match="has other files in it"):
        visionsft.tune(config, out=values["data"]["root"], overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        visionsft.tune(config, out=run.path / "config.yaml")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / CONFIG).write_text("mine")
    with pytest.raises(RunError, match="not written by visionsft"):
        visionsft.tune(config, out=foreign, overwrite=True)
    assert (foreign / CONFIG).read_text() == "mine"
    mine = tmp_path / "mine"
    visionsft.tune(config, out=mine, timeout=-1)
    (mine / "trials" / "0000").mkdir(parents=True)
    with pytest.raises(RunError, match="has trials of a study that isn't in this storage"):
        visionsft.tune(config, out=mine, storage=tmp_path / "other.log", timeout=-1)


def test_a_study_without_any_score(values: dict[str, Any], make: Make) -> None:
    config = study_of(make, values, {"head.options.fail": ["error"]}, head=FAILING)
    visionsft.tune(config, timeout=-1)
    run_trials(job_of(config, 2))
    with pytest.raises(RunError) as caught:
        visionsft.tune(config, trials=2)
    first, second = str(caught.value).splitlines()
    assert first.endswith(f"no trial has ended with a score; what they printed is in {Run.of(config).path / 'trials'}")
    assert second == "  2 x failed: RuntimeError: this head is"


def test_fit_says_that_it_searches_nothing(
    values: dict[str, Any], make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(study_of(make, values, {"strategy.lr": [0.1]}, trainer={**values["trainer"], "epochs": 1}))
    assert "note: `tune`, the search space, is not used by fit" in capsys.readouterr().out
