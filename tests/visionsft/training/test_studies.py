"""Studies: storages that processes share, totals that hold, processes that die, and what a study belongs to."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from visionsft.config import Study as Wishes
from visionsft.dimension import Choices, Range
from visionsft.errors import RunError, WriteError
from visionsft.training import studies
from visionsft.training.search_space import Space

SPACE = Space(
    {"strategy": {"kind": "feature_based"}, "trainer": {"epochs": 9}},
    {
        "strategy.lr": Range("log", 1e-4, 1e-1),
        "backbone.drop_path_rate": Range("uniform", 0.0, 0.5),
        "trainer.epochs": Range("int", 3, 12),
        "task.loss": Choices(({"name": "dice"}, {"name": "focal"})),
    },
)


def open_study(storage: Any, **wishes: Any) -> optuna.Study:
    start = {"strategy.lr": 1e-3, "task.loss": {"name": "focal"}}
    return studies.open_study(storage, "demo", space=SPACE, wishes=Wishes(**wishes), start=start)


def score(params: dict[str, Any]) -> float:
    return float(-abs(params["strategy.lr"] - 0.01) - params["backbone.drop_path_rate"])


def propose(trial: optuna.Trial) -> dict[str, Any]:
    """As `choose`, without a configuration behind the space."""
    return {k: studies.decode(studies._suggest(trial, k, d)) for k, d in SPACE.dimensions.items()}


def search(where: str, total: int) -> list[dict[str, Any]]:
    """Run trials without a training; what each chose."""
    storage = studies.open_storage(where)
    study = open_study(storage)
    while (trial := studies.claim(study, storage, total)) is not None:
        study.tell(trial.number, score(propose(trial)))
    return [studies.chosen_of(trial) for trial in study.get_trials()]


@pytest.fixture(params=["journal", "sqlite"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "study.log") if request.param == "journal" else f"sqlite:///{tmp_path / 'study.db'}"


def test_trial_0_is_the_configuration_as_it_stands(where: str) -> None:
    first = search(where, 1)[0]
    assert first["strategy.lr"] == 1e-3
    assert first["task.loss"] == {"name": "focal"}


def test_a_resumed_search_goes_on_as_it_would_have(tmp_path: Path) -> None:
    """Beyond the trials at random, too; two studies of one seed are the same."""
    whole = search(str(tmp_path / "whole.log"), 14)
    for total in (3, 11, 14):
        parts = search(str(tmp_path / "parts.log"), total)
    assert parts == whole
    assert len({str(chosen) for chosen in whole}) == 14


def test_the_estimators_find_the_better_region(tmp_path: Path) -> None:
    found = search(str(tmp_path / "study.log"), 40)
    half = [sum(score(chosen) for chosen in part) / len(part) for part in (found[:10], found[-10:])]
    assert half[1] > half[0] + 0.05


def work(where: str, total: int) -> None:
    storage = studies.open_storage(where)
    study = open_study(storage)
    while (trial := studies.claim(study, storage, total)) is not None:
        propose(trial)
        time.sleep(0.02)  # the others want their turn
        study.tell(trial.number, 1.0)


def test_processes_that_start_at_once_share_the_total(where: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(where, 9)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    study = open_study(studies.open_storage(where))
    assert len(studies.counted(study)) == 9
    assert all(trial.state == TrialState.COMPLETE for trial in studies.counted(study))
    assert len({trial.user_attrs["process"]["pid"] for trial in study.get_trials()}) > 1


def test_who_comes_too_late_gives_its_trial_back(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = studies.open_storage(where)
    study = open_study(storage)
    assert studies.claim(study, storage, 1) is not None
    honest = studies.counted
    answers: list[Any] = [honest, lambda study: []]  # it counts before the other's trial is there
    monkeypatch.setattr(studies, "counted", lambda study: (answers.pop() if answers else honest)(study))
    assert studies.claim(study, storage, 1) is None
    last = study.get_trials()[-1]
    assert last.user_attrs["void"] == "others were quicker to begin the last trial"
    assert last.state == TrialState.FAIL
    assert len(honest(study)) == 1


def test_a_killed_process_leaves_no_trial_behind(where: str) -> None:
    code = (
        "import sys, time\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "import importlib.util as u\n"
        "spec = u.spec_from_file_location('t', sys.argv[1]); t = u.module_from_spec(spec)\n"
        "sys.modules['t'] = t; spec.loader.exec_module(t)\n"
        "storage = t.studies.open_storage(sys.stdin.readline().strip())\n"
        "t.studies.claim(t.open_study(storage), storage, 1); print('claimed', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, __file__, *filter(None, sys.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{where}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "claimed\n"
    storage = studies.open_storage(where)
    study = open_study(storage)
    assert studies.claim(study, storage, 1) is None  # it runs
    process.kill()
    process.wait()
    assert studies.claim(study, storage, 1) is not None
    assert study.get_trials()[0].user_attrs["void"] == "its process was killed"


def test_signs_of_life_from_other_machines(where: str) -> None:
    storage = studies.open_storage(where)
    study = open_study(storage)
    trial = studies.claim(study, storage, 2)
    assert trial is not None
    trial.set_user_attr("process", {"machine": "far away", "pid": os.getpid(), "started": "1"})
    trial.set_user_attr("beat", time.time() - studies.SILENCE + 60)
    assert studies.is_alive(study.get_trials()[0])
    frozen = study.get_trials()[0]
    frozen.user_attrs["beat"] -= 120
    frozen.datetime_start = frozen.datetime_start.fromtimestamp(time.time() - 2 * studies.SILENCE)  # type: ignore[union-attr]
    assert not studies.is_alive(frozen)


def test_a_number_that_another_process_has_now() -> None:
    here = studies.this_process()
    assert studies._start_of(os.getpid()) == here["started"]
    assert studies._start_of(2**22 + 1) is None


def test_a_running_trial_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "BEAT", 0.01)
    storage = studies.open_storage(str(tmp_path / "study.log"))
    study = open_study(storage)
    trial = studies.claim(study, storage, 1)
    assert trial is not None
    first = study.get_trials()[0].user_attrs["beat"]
    with studies.beating(storage, trial):
        while study.get_trials()[0].user_attrs["beat"] == first:
            time.sleep(0.01)


# ------------------------------------------------------------------------------- what it belongs to


def test_other_settings_or_data_are_refused(where: str) -> None:
    study = open_study(studies.open_storage(where))
    before = {"space": {"tune.strategy.lr.log": "[1, 2]"}, "data": {"train": "abc", "val": "def"}}
    studies.identify(study, before, where=Path("runs/demo"))
    studies.identify(study, before, where=Path("runs/demo"))
    now = {"space": {"tune.strategy.lr.log": "[1, 3]"}, "data": {"train": "abc", "val": "xyz"}}
    with pytest.raises(RunError) as caught:
        studies.identify(study, now, where=Path("runs/demo"))
    assert str(caught.value).splitlines() == [
        "runs/demo: the study 'demo' was made with other settings or data",
        "  space: tune.strategy.lr.log: [1, 2] in the study, [1, 3] now",
        "  data: val: def in the study, xyz now",
        "--overwrite begins it anew, --set name=... makes another one",
    ]


def test_a_study_with_running_trials_is_not_deleted(where: str) -> None:
    storage = studies.open_storage(where)
    studies.delete_study(storage, "demo")  # there is none
    study = open_study(storage)
    trial = studies.claim(study, storage, 3)
    assert trial is not None
    with pytest.raises(RunError, match=r"running trials \(0\)"):
        studies.delete_study(storage, "demo")
    study.tell(trial.number, 1.0)
    studies.delete_study(storage, "demo")
    assert optuna.get_all_study_names(storage) == []


# --------------------------------------------------------------------------------------- storages


def test_half_a_line_at_the_end_of_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    whole = search(str(path), 3)
    with open(path, "ab") as file:
        file.write(b'{"op_code":4,"work')  # the disk was full
    assert search(str(path), 3) == whole
    assert len(search(str(path), 4)) == 4


@pytest.mark.parametrize("content", [b"what is this?\n", b"[1, 2]\n", b'{"a": 1}\n', b"\x00\xff\x00\n"])
def test_what_is_no_journal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(content)
    with pytest.raises(RunError, match="is not a journal of a study"):
        studies.open_storage(str(path))
    assert path.read_bytes() == content


def test_storages_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, but long enough for a header of one" * 100)
    for url in (f"sqlite:///{tmp_path / 'text.db'}", "nosuchdb://host/study", "postgresql://me:secret@localhost:1/x"):
        with pytest.raises(RunError, match="can't be opened") as caught:
            studies.open_storage(url)
        assert "secret" not in str(caught.value)
    with pytest.raises(WriteError, match="can't be opened"):
        studies.open_storage(str(tmp_path / "text.db" / "study.log"))


def test_passwords_are_hidden() -> None:
    assert studies.hide_password("postgresql://me:se:c@ret@host/x") == "postgresql://me:***@host/x"
    assert studies.hide_password("sqlite:///runs/a.db") == "sqlite:///runs/a.db"


# ------------------------------------------------------------------------------------------ pruning


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median", "none"])
def test_hopeless_trials_are_stopped(tmp_path: Path, pruner: str) -> None:
    storage = studies.open_storage(str(tmp_path / "study.log"))
    study = open_study(storage, pruner=pruner, first_rung=2)
    stopped = []
    for number in range(24):
        trial = study.ask()
        for epoch in range(1, 13):
            trial.report(float(number % 8), step=epoch)
            if trial.should_prune():
                assert epoch >= 2
                stopped.append(number % 8)
                study.tell(trial.number, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial.number, float(number % 8))
    assert (len(stopped) > 3) == (pruner != "none")
    assert 7 not in stopped  # the best never


def test_the_longest_trial() -> None:
    assert studies.most_epochs(SPACE) == 12
    assert studies.most_epochs(Space({"trainer": {"epochs": 9}}, {"seed": Choices((1,))})) == 9
    assert studies.most_epochs(Space({}, {"seed": Choices((1,))})) == 20
