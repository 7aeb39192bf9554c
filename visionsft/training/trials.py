"""The trials: a process that trains one trial of a study after the other, until enough are done.

``python -m visionsft.training.trials`` reads its `Job` from standard input; `visionsft.training.tuning` starts it, and
starts it again where the system has killed it, which costs one trial and not the study. Each trial is an ordinary run
below ``trials/``; what it prints is in the text file beside its folder.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from lightning import Callback, LightningModule, Trainer

from visionsft.errors import RunError, TrainingError, WriteError
from visionsft.files import disk_trouble
from visionsft.loading import load_config
from visionsft.training import studies
from visionsft.training.callbacks import validated
from visionsft.training.fitting import fit
from visionsft.training.search_space import Space, describe

CONFIG = "study.yaml"
"""The configuration with its search space, in the study's folder."""


@dataclass(frozen=True)
class Job:
    """What a process needs to know to run trials."""

    folder: str
    """Of the study."""
    storage: str
    total: int
    """Trials of the study, those of other processes included."""
    features: str
    """Folder of the feature caches."""
    deadline: float | None = None
    """Seconds since the epoch after which no trial begins."""
    parent: int | None = None
    """Process without which this one ends."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def is_late(self) -> bool:
        """Whether no further trial may begin."""
        return self.deadline is not None and time.time() > self.deadline

    @property
    def is_orphaned(self) -> bool:
        """Whether the process that started this one is gone."""
        return self.parent is not None and os.getppid() != self.parent


def run_trials(job: Job) -> None:
    """Run trials until the study has its total, the time is over, or memory ran out (a new process goes on then)."""
    config = load_config(Path(job.folder) / CONFIG)
    assert config.tune is not None
    space = Space.of(config)
    storage = studies.open_storage(job.storage)
    name = str(config.name)
    study = studies.open_study(storage, name, space=space, wishes=config.tune.study, start=space.start(config))
    while not (job.is_late or job.is_orphaned):
        trial = studies.claim(study, storage, job.total)
        if trial is None or not _run_trial(trial, study, storage, space, job):
            break
        gc.collect()  # of the last model, before the next one


def folder_of(study: Path, number: int) -> Path:
    """Run folder of a trial."""
    return study / "trials" / f"{number:04d}"


# ------------------------------------------------------------------------------------- one trial


def _run_trial(trial: optuna.Trial, study: optuna.Study, storage: Any, space: Space, job: Job) -> bool:
    """Run a trial and note how it ended; False if this process shouldn't run another one."""
    folder = folder_of(Path(job.folder), trial.number)
    log = folder.with_name(f"{folder.name}.txt")
    try:
        with disk_trouble(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            output = open(log, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed below)
        with output, studies.beating(storage, trial):
            score = _train(trial, space, folder, output, features=Path(job.features))
        study.tell(trial.number, score)
    except optuna.TrialPruned:
        study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
    except WriteError as error:  # no further trial could write, either
        studies.give_back(study, storage, trial, str(error))
        raise
    except Exception as error:  # noqa: BLE001 (whatever a training does wrong: the study has others)
        studies.fail(study, storage, trial, _reason(error))
        return not _is_about_memory(error)
    except BaseException:  # interrupted
        studies.give_back(study, storage, trial, "interrupted")
        raise
    finally:
        say(study, trial.number, job)
    return True


def _train(trial: optuna.Trial, space: Space, folder: Path, output: Any, *, features: Path) -> float:
    """The score of the best epoch of a trial's training."""
    with redirect_stdout(output), redirect_stderr(output):
        try:
            chosen = studies.choose(space, trial)
            config = space.config(chosen, name=folder.name, runs=folder.parent)
            report = _Report(trial)
            fit(config, overwrite=True, callbacks=[report], features=features)
        except optuna.TrialPruned:
            raise
        except Exception:
            traceback.print_exc()  # the study keeps one line of it
            raise
    if report.best is None:
        raise TrainingError("there was no validation: trainer.validate_every is larger than trainer.epochs")
    return report.best


class _Report(Callback):
    """Tells the study the best validation score so far, and stops a trial that is behind the others."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.best: float | None = None

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.trial.set_user_attr("monitor", module.monitor)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        score = trainer.callback_metrics.get(str(module.monitor))
        if not validated(trainer) or score is None:
            return
        if not math.isfinite(score):
            raise TrainingError(f"{module.monitor} became {float(score)} in epoch {trainer.current_epoch + 1}")
        if self.best is None or float(score) > self.best:
            self.best = float(score)
            self.trial.set_user_attr("best_epoch", trainer.current_epoch + 1)
        self.trial.report(self.best, step=trainer.current_epoch + 1)
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if not last and self.trial.should_prune():
            raise optuna.TrialPruned


def _reason(error: Exception) -> str:
    """The first line of what went wrong."""
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    named = isinstance(error, ValueError | ArithmeticError) and hasattr(error, "exit_code") and first
    return first[:300] if named else f"{type(error).__name__}: {first}"[:300].removesuffix(": ")


def _is_about_memory(error: Exception) -> bool:
    """Whether memory ran out; CUDA and the CPU's allocator report it as RuntimeError."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


# ---------------------------------------------------------------------------------------- output


def say(study: optuna.Study, number: int, job: Job) -> None:
    """Print how a trial ended, and what it had chosen."""
    trial = study.get_trials(deepcopy=False)[number]
    done = sum(each.state.is_finished() for each in studies.counted(study))
    values = "  ".join(f"{key} {describe(value)}" for key, value in studies.chosen_of(trial).items())
    print(f"trial {number:04d} ({done}/{job.total})  {outcome(trial)}  {values}", flush=True)


def outcome(trial: optuna.trial.FrozenTrial) -> str:
    """How a trial ended, in words."""
    state, attrs = trial.state, trial.user_attrs
    if state == optuna.trial.TrialState.COMPLETE:
        return f"{trial.value:.4f}"
    if state == optuna.trial.TrialState.PRUNED:
        epochs = max(trial.intermediate_values, default=0)
        return f"pruned after {epochs} epochs at {trial.intermediate_values.get(epochs, math.nan):.4f}"
    if state == optuna.trial.TrialState.RUNNING:
        return "running"
    return f"not counted: {attrs['void']}" if "void" in attrs else f"failed: {attrs.get('reason', 'unknown')}"


def _main(text: str) -> int:
    values: Mapping[str, Any] = json.loads(text)
    try:
        run_trials(Job(**values))
    except (RunError, WriteError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.stdin.read()))
