"""Tuning: many short trainings of one configuration, each with other values of the keys in its section ``tune``.

::

    runs/<name>/
        study.yaml         the configuration with its search space
        study.log          the trials, as Optuna's journal; elsewhere with --storage
        trials/0007/       the run of each trial, and 0007.txt, what it printed
        best.yaml          the configuration of the best trial
        trials.csv         a row a trial
        study.json         what the study came to
        report/index.html  the same as a page

A trial is judged by its task's monitored figure on the validation split; the test split isn't touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from backbones import BackboneError
from backbones.factory import check_name
from datamodules.statistics import fingerprint
from visionsft import build, files
from visionsft.config import WEIGHT_FILES, Config
from visionsft.errors import ConfigError, RunError
from visionsft.loading import dot, dump_config, load_config
from visionsft.runs import FREE_TO_CHANGE, Run, flatten
from visionsft.training import studies
from visionsft.training.search_space import Space, check
from visionsft.training.studyreport import StudyResult, summarise, write_report
from visionsft.training.trials import CONFIG, Job, say

_HEADER = "# Written by visionsft tune: the configuration of this study.\n"
_FREE_TO_CHANGE = {*FREE_TO_CHANGE, "data.root"} - {"trainer.epochs"}
"""Keys that may differ when a study goes on: the data is known by its fingerprint."""
_PATIENCE = 60.0  # seconds that an interrupted trial gets to end well
_STARTS = 3  # processes in a row that may die without having begun a trial


def tune(
    config: Config | str | Path,
    *,
    trials: int | None = None,
    storage: str | Path | None = None,
    out: str | Path | None = None,
    timeout: float | None = None,
    overwrite: bool = False,
) -> StudyResult:
    """Search the space in the section ``tune`` of `config`; called again, it goes on where it was.

    trials: of the whole study; default: tune.study.trials. storage: database URL or journal file that the processes of
    a study share; default: ``study.log`` in its folder. out: that folder; default: ``runs/<name>``. timeout: seconds
    after which no trial begins. overwrite: begin a study of that name anew. What trials train is as fit trains it; the
    process that does is started by this one.
    """
    if not isinstance(config, Config):
        config = load_config(config, check=check)
    elif mistakes := check(config):
        raise ConfigError("\n".join(f"{dot(mistake.place)}: {mistake.text}" for mistake in mistakes))
    folder = _check_folder(config, out, overwrite=overwrite)
    space = Space.of(config)
    _check_parts(config, space)
    identity = _identify(config)
    where = str(storage) if storage is not None else str(folder / "study.log")
    if overwrite:
        studies.delete_study(studies.open_storage(where), str(config.name))
        _delete(folder)
    store = studies.open_storage(where)
    study = _open(store, config, space, folder, identity)
    files.write_text(folder / CONFIG, _HEADER + dump_config(config, defaults=False))
    assert config.tune is not None
    total = trials if trials is not None else config.tune.study.trials
    job = Job(
        folder=str(folder), storage=where, total=total, features=str(config.runs / ".features"),
        deadline=None if timeout is None else time.time() + timeout, parent=os.getpid(),
    )  # fmt: skip
    try:
        _work(job, study, store)
    finally:
        result = summarise(study, config, space, folder, storage=studies.hide_password(where), total=total)
        write_report(result)
    result.require_score()
    return result


# --------------------------------------------------------------------------- before the first trial


def _check_folder(config: Config, out: str | Path | None, *, overwrite: bool) -> Path:
    """The study's folder; one that holds something else is refused."""
    folder = Path(out) if out is not None else Run.of(config).path
    study = folder / CONFIG
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    if not folder.is_dir():
        raise RunError(f"{folder}: is a file; choose another folder by --out")
    if not study.is_file():
        what = "is a run" if (folder / "config.yaml").is_file() else "has other files in it"
        raise RunError(f"{folder}: {what}; choose another folder for the study by --out, or another name")
    if overwrite and (folder.is_symlink() or not study.read_bytes().startswith(_HEADER.encode())):
        raise RunError(f"{study}: not written by visionsft; {folder} is not overwritten")
    return folder


def _check_parts(config: Config, space: Space) -> None:
    """Refuse what no configuration can know: models that timm hasn't, weights that aren't there."""
    if config.trainer.devices != 1:
        raise ConfigError(
            "trainer.devices: must be 1: a trial trains on one device; to use several, start `visionsft tune` "
            "once for each (CUDA_VISIBLE_DEVICES chooses it): they share the study"
        )
    mistakes: dict[str, None] = {}
    for backbone in {repr(each): each for each in _backbones(space)}.values():
        try:
            check_name(backbone["name"])
        except BackboneError as error:
            mistakes[f"backbone.name: {error}"] = None
        weights = backbone.get("weights", "hub")
        if Path(weights).suffix in WEIGHT_FILES and not Path(weights).is_file():
            mistakes[f"backbone.weights: {weights}: no such file"] = None
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _backbones(space: Space) -> Iterator[Mapping[str, Any]]:
    for context in space.contexts():
        for chosen, _ in space.probes(context):
            yield space.values(chosen)["backbone"]


def _identify(config: Config) -> dict[str, Any]:
    """What the scores of a study depend on, beside its trials' own values."""
    data = build.build_data(config)
    data.scan()
    if not data.items["val"]:
        raise ConfigError("data.split: there are no validation samples, by which trials are judged")
    settings = {key: value for key, value in flatten(config).items() if key not in _FREE_TO_CHANGE}
    searched = {key: settings.pop(key) for key in list(settings) if key.startswith("tune.")}
    searched.pop("tune.study.trials", None)
    prints = {split: fingerprint(data.items[split], root=data.root, facts={}) for split in ("train", "val")}
    return {"space": searched, "configuration": settings, "data": prints}


def _delete(folder: Path) -> None:
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        folder.rename(aside)  # at once, so that no half of it stays under its name
        shutil.rmtree(aside)


def _open(store: BaseStorage, config: Config, space: Space, folder: Path, identity: Mapping[str, Any]) -> Study:
    """The study, which is either new or the same as before."""
    assert config.tune is not None
    name = str(config.name)
    study = studies.open_study(store, name, space=space, wishes=config.tune.study, start=space.start(config))
    if "identity" not in study.user_attrs and (folder / "trials").exists():
        raise RunError(
            f"{folder}: has trials of a study that isn't in this storage (another --storage, or another name); "
            "choose another folder by --out, or --overwrite"
        )
    studies.identify(study, identity, where=folder)
    return study


# ------------------------------------------------------------------------------------- the trials


def _work(job: Job, study: Study, store: BaseStorage) -> None:
    """Keep a process running trials until the study has its total or the time is over."""
    studies.bury(study, store)
    failures = 0
    while not job.is_late and len(studies.counted(study)) < job.total:
        code, lost = _run_process(job, study, store)
        if code == 130:
            raise KeyboardInterrupt
        if code == RunError.exit_code:
            raise RunError(f"{job.folder}: the study stopped; the reason is above")
        failures = 0 if code == 0 or lost else failures + 1
        if failures == _STARTS:
            raise RunError(f"{job.folder}: the process that runs trials {_say_end(code)}, {_STARTS} times in a row")


def _run_process(job: Job, study: Study, store: BaseStorage) -> tuple[int, int]:
    """Exit code of a process that runs trials, and how many it left behind; they count as failed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "visionsft.training.trials"],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which hands it on
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    mark = studies.this_process(process.pid)
    interrupted = False
    try:
        process.communicate(job.to_json())
    except KeyboardInterrupt:
        interrupted = True
        _stop(process)
        raise
    finally:
        left = [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if trial.user_attrs.get("process") == mark
        ]
        for trial in left:
            reason = "interrupted" if interrupted else f"its process {_say_end(process.returncode)}"
            (studies.give_back if interrupted else studies.fail)(study, store, trial, reason)
            say(study, trial.number, job)
    return process.returncode, len(left)


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_PATIENCE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C
        process.kill()
        process.wait()


def _say_end(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL: the system does that when memory runs out)"
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
