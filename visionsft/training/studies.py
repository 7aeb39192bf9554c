"""The study: trials in a storage that several processes and machines share, counted so that no one exceeds the total.

Optuna keeps the trials and proposes them (tree-structured Parzen estimators, Bergstra et al. 2011). What it doesn't do
for every storage is here: a study belongs to one space and one data set; a trial is claimed first and given back if
others were quicker; one whose process is gone, is seen by its process number on the same machine, by its last sign of
life on others.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from visionsft.config import Study as Wishes
from visionsft.config import Trainer
from visionsft.dimension import Choices, Dimension, write
from visionsft.errors import RunError, WriteError
from visionsft.training.search_space import Space

try:
    import optuna
    from optuna.exceptions import ExperimentalWarning, StorageInternalError
    from optuna.storages import BaseStorage, JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError as missing:
    raise RunError(f"visionsft tune needs pip install 'visionsft[tune]' ({missing})") from missing

BEAT = 30.0
"""Seconds between two signs of life of a running trial."""
SILENCE = 600.0
"""Seconds without one after which a trial of another machine counts as gone."""

_ANOTHER_MAKES_IT = re.compile("already exists|unique|duplicate|locked", re.IGNORECASE)
"""What databases say to the second of two processes that make the same tables."""

_STARTUP = 10  # trials at random before the estimators propose any, as Optuna's default
_LOCK_WAIT = 60  # seconds that SQLite waits for another process's write


# -------------------------------------------------------------------------------------- storage


def open_storage(where: str) -> BaseStorage:
    """The storage at a database URL (``sqlite:///study.db``, ``postgresql://...``) or in a journal file."""
    if "://" not in where:
        return _open_journal(Path(where))
    options = {"connect_args": {"timeout": _LOCK_WAIT}} if where.startswith("sqlite") else {}
    for patience in (0.1, 0.3, 1.0, None):
        try:
            return RDBStorage(where, engine_kwargs=options)
        except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            if patience is None or not _ANOTHER_MAKES_IT.search(reason):
                text = f"--storage {hide_password(where)}: can't be opened: {hide_password(reason)}"
                raise RunError(text) from None
            time.sleep(patience)
    raise AssertionError


def hide_password(text: str) -> str:
    """The text with the passwords of its URLs left out."""
    return re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1:***@", text)


def _open_journal(path: Path) -> BaseStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileSymlinkLock(str(path))
        _mend(path, lock)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise WriteError(f"--storage {path}: can't be opened: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise RunError(f"--storage {path}: is not a journal of a study ({error or type(error).__name__})") from error


def _mend(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Take away half a line that a full disk has left at the end: the next one would be written behind it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as file:
        if not file.readline().startswith(b'{"op_code"'):
            raise ValueError("its first line is something else")
        lock.acquire()
        try:
            file.seek(0)
            text = file.read()
            if not text.endswith(b"\n"):
                file.truncate(text.rfind(b"\n") + 1)
        finally:
            lock.release()


# ---------------------------------------------------------------------------------------- study


def open_study(storage: BaseStorage, name: str, *, space: Space, wishes: Wishes, start: Mapping[str, Any]) -> Study:
    """The study of that name, made if missing; start: what trial 0 takes for its keys."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",  # as every task's monitor
        sampler=_Sampler(wishes.seed, {key: encode(space.dimensions[key], value) for key, value in start.items()}),
        pruner=_pruner(wishes, space),
        load_if_exists=True,
    )


def identify(study: Study, identity: Mapping[str, Any], *, where: Path) -> None:
    """Mark a new study with what it depends on; one that depends on something else is refused with what changed."""
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", dict(identity))
        return
    changed = [f"  {line}" for part in identity for line in _changes(part, known.get(part), identity[part])]
    if changed:
        first = f"{where}: the study '{study.study_name}' was made with other settings or data"
        last = "--overwrite begins it anew, --set name=... makes another one"
        raise RunError("\n".join([first, *changed, last]))


def delete_study(storage: BaseStorage, name: str) -> None:
    """Delete a study of that name, if there is one and none of its trials is running."""
    if name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        if running := [trial.number for trial in study.get_trials(deepcopy=False) if is_alive(trial)]:
            raise RunError(f"the study '{name}' has running trials ({', '.join(map(str, running))}); not overwritten")
        optuna.delete_study(study_name=name, storage=storage)


def _changes(part: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                yield f"{part}: {key}: {before.get(key, 'not set')} in the study, {now.get(key, 'not set')} now"
    elif before != now:
        yield f"{part}: {before} in the study, {now} now"


# --------------------------------------------------------------------------------------- search


class _Sampler(optuna.samplers.BaseSampler):
    """TPE whose random numbers depend on the trial's number alone: processes differ, and a resumed search goes on as it
    would have. Trial 0 is the configuration as it stands, as far as the space holds it.
    """

    def __init__(self, seed: int, start: Mapping[str, Any]) -> None:
        self._seed = seed
        self._start = start
        self._tpe: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        seed = int(np.random.SeedSequence((self._seed, trial.number)).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._tpe = optuna.samplers.TPESampler(
                n_startup_trials=_STARTUP, seed=seed, multivariate=True, group=True, constant_liar=True
            )

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        return {} if trial.number == 0 else self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return {} if trial.number == 0 else self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        if trial.number == 0 and param_name in self._start:
            return self._start[param_name]
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)


def _pruner(wishes: Wishes, space: Space) -> optuna.pruners.BasePruner:
    first = wishes.first_rung
    if wishes.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
    if wishes.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=max(first, most_epochs(space)))
    if wishes.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=first)
    return optuna.pruners.NopPruner()


def most_epochs(space: Space) -> int:
    """Of the longest trial in the space."""
    values = (space.values(chosen) for context in space.contexts() for chosen, _ in space.probes(context))
    return max(each.get("trainer", {}).get("epochs", Trainer.model_fields["epochs"].default) for each in values)


def choose(space: Space, trial: Trial) -> dict[str, Any]:
    """The trial's value for each key that its earlier choices leave active."""
    chosen: dict[str, Any] = {}
    for key, dimension in space.dimensions.items():
        if space.is_active(key, chosen):
            chosen[key] = decode(_suggest(trial, key, dimension))
    return chosen


def _suggest(trial: Trial, key: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Choices):
        return trial.suggest_categorical(key, [encode(dimension, value) for value in dimension.values])
    if dimension.scale == "int":
        return trial.suggest_int(key, int(dimension.low), int(dimension.high))
    return trial.suggest_float(key, dimension.low, dimension.high, log=dimension.scale == "log")


def encode(dimension: Dimension, value: Any) -> Any:
    """A value as the storage has it: choices as JSON texts, as they may be mappings."""
    return write(value) if isinstance(dimension, Choices) else value


def decode(stored: Any) -> Any:
    """The inverse of `encode`: ranges give numbers, so that every text is a choice."""
    return json.loads(stored) if isinstance(stored, str) else stored


def chosen_of(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial chose, by key."""
    return {key: decode(value) for key, value in trial.params.items()}


# --------------------------------------------------------------------------------------- trials


def counted(study: Study) -> list[FrozenTrial]:
    """The trials that count, by number: all but those that were given back, interrupted or left behind."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if "void" not in trial.user_attrs and trial.state != TrialState.WAITING]


def claim(study: Study, storage: BaseStorage, total: int) -> Trial | None:
    """A new trial, or None where `total` have been run or are running.

    It is claimed before it is counted: of processes that do so at once, those with the higher numbers give theirs back.
    """
    bury(study, storage)
    if len(counted(study)) >= total:
        return None
    trial = study.ask()
    trial.set_user_attr("process", this_process())
    trial.set_user_attr("beat", time.time())
    earlier = [each for each in counted(study) if each.number < trial.number]
    if len(earlier) >= total:
        give_back(study, storage, trial, "others were quicker to begin the last trial")
        return None
    return trial


def give_back(study: Study, storage: BaseStorage, trial: Trial | FrozenTrial, reason: str) -> None:
    """End a trial without result, so that another may be run in its place."""
    storage.set_trial_user_attr(trial._trial_id, "void", reason)
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def fail(study: Study, storage: BaseStorage, trial: Trial | FrozenTrial, reason: str) -> None:
    """End a trial as failed; it counts."""
    storage.set_trial_user_attr(trial._trial_id, "reason", reason)
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def bury(study: Study, storage: BaseStorage) -> None:
    """Give back the trials whose process is gone."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not is_alive(trial):
            give_back(study, storage, trial, "its process was killed")


def is_alive(trial: FrozenTrial) -> bool:
    """Whether a running trial's process may still be there."""
    if trial.state != TrialState.RUNNING:
        return False
    process = trial.user_attrs.get("process")
    started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    if process is None or process["machine"] != this_process()["machine"]:
        return time.time() - max(trial.user_attrs.get("beat", 0.0), started) < SILENCE
    return bool(_start_of(process["pid"]) == process["started"])


def this_process(pid: int | None = None) -> dict[str, Any]:
    """What tells a process (default: this one) from all others, later ones with its number included."""
    pid = os.getpid() if pid is None else pid
    try:
        names = os.readlink("/proc/self/ns/pid")  # containers of one name have their own numbers
    except OSError:
        names = ""
    return {"machine": f"{socket.gethostname()} {names}".strip(), "pid": pid, "started": _start_of(pid)}


def _start_of(pid: int) -> str | None:
    """When a process began, in the system's own words; None if there is none of that number."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    try:  # systems without /proc
        os.kill(pid, 0)
    except PermissionError:
        return "running"
    except OSError:
        return None
    return "running"


@contextmanager
def beating(storage: BaseStorage, trial: Trial) -> Iterator[None]:
    """Give signs of life of a trial while the block runs."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            storage.set_trial_user_attr(trial._trial_id, "beat", time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The finished trial with the highest score, the earliest of several."""
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(finished, key=lambda trial: (trial.value, -trial.number), default=None)
