"""Run folders: made, refused, continued, read, and never half written."""

from __future__ import annotations

import json
import os
import platform
import zipfile
from pathlib import Path
from typing import Any

import pytest

from visionsft.config import SegmentationConfig
from visionsft.errors import ConfigError, RunError, WriteError
from visionsft.loading import load_config
from visionsft.runs import Run, describe_environment


def config(folder: Path, **changes: Any) -> SegmentationConfig:
    values: dict[str, Any] = {
        "name": "demo",
        "runs": folder / "runs",
        "data": {"kind": "geotiff", "root": "scenes"},
        "backbone": {"name": "resnet18"},
    }
    return SegmentationConfig.model_validate(values | changes)


def write_checkpoint(run: Run, kind: str) -> Path:
    run.checkpoints.mkdir(exist_ok=True)
    path = run.checkpoints / f"{kind}.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", b"x" * 1000)
    return path


def test_create_and_open(tmp_path: Path) -> None:
    made = config(tmp_path)
    run = Run.create(made)
    assert run.path == tmp_path / "runs" / "demo"
    assert run.name == "demo"
    assert os.listdir(run.path) == ["config.yaml"]
    assert Run.open(run.path).config == made
    assert load_config(run.path / "config.yaml") == made
    assert not run.is_finished


def test_a_configuration_without_a_name_has_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name: missing"):
        Run.create(config(tmp_path, name=None))


# ------------------------------------------------------------------------------- what is in the way


def test_a_finished_run_is_kept(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    run.mark_finished({"epochs": 20})
    with pytest.raises(RunError, match=r"finished; .*--resume continues it, --overwrite") as caught:
        Run.create(config(tmp_path))
    assert caught.value.exit_code == 2
    assert run.is_finished


def test_an_interrupted_run_is_kept(tmp_path: Path) -> None:
    Run.create(config(tmp_path))
    with pytest.raises(RunError, match="interrupted; --resume continues it, --overwrite"):
        Run.create(config(tmp_path))


def test_a_check_changes_nothing(tmp_path: Path) -> None:
    run = Run.check_free(config(tmp_path))
    assert not run.path.exists()
    Run.create(config(tmp_path)).mark_finished({})
    Run.check_free(config(tmp_path), overwrite=True)
    Run.check_resumable(config(tmp_path, trainer={"epochs": 30}))
    assert run.is_finished
    assert run.config.trainer.epochs == 20


def test_overwrite_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    write_checkpoint(run, "best")
    run.mark_finished({})
    new = Run.create(config(tmp_path, seed=7), overwrite=True)
    assert os.listdir(tmp_path / "runs") == ["demo"]
    assert os.listdir(new.path) == ["config.yaml"]
    assert new.config.seed == 7


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_folder_is_taken(tmp_path: Path, overwrite: bool) -> None:
    """A killed process may leave a folder with a temporary file in it."""
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / ".config.123.partial.yaml").write_text("half")
    Run.create(config(tmp_path), overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("text", [None, "hand: written", "# Written by me\n"])
def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path, overwrite: bool, text: str | None) -> None:
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    if text is not None:
        (folder / "config.yaml").write_text(text)
    with pytest.raises(RunError, match="demo"):
        Run.create(config(tmp_path), overwrite=overwrite)
    assert (folder / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_in_the_way(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").write_text("")
    with pytest.raises(RunError, match=r"is a file|not a run folder"):
        Run.create(config(tmp_path), overwrite=overwrite)


def test_a_link_is_not_deleted(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    (tmp_path / "runs" / "link").symlink_to(run.path)
    with pytest.raises(RunError, match="not a run folder"):
        Run.create(config(tmp_path, name="link"), overwrite=True)
    assert run.config.name == "demo"


# -------------------------------------------------------------------------------- opening and reading


def test_a_wrong_name_is_answered_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run.create(config(tmp_path))
    with pytest.raises(RunError, match=r"dmo: no such run folder; nearest: .*runs/demo"):
        Run.open(tmp_path / "runs" / "dmo")
    with pytest.raises(RunError, match="no such run folder; there: demo"):
        Run.open(tmp_path / "runs" / "zzzzz")
    with pytest.raises(RunError, match="no such run folder, and no folder"):
        Run.open(tmp_path / "nowhere" / "demo")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="demo: no such run folder; nearest: runs/demo"):
        Run.open("demo")


def test_a_file_is_no_run(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    with pytest.raises(RunError, match="is a file; the run folder itself is needed"):
        Run.open(run.path / "config.yaml")


def test_half_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "demo"
    (folder / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunError, match=r"or half of one: it has no config\.yaml; in it: checkpoints"):
        Run.open(folder)
    (folder / "config.yaml").write_text("data: {kind: geotiff\n")
    with pytest.raises(RunError, match=r"its config\.yaml can't be read\n.*config\.yaml:1: YAML syntax"):
        Run.open(folder)


def test_checkpoints(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    with pytest.raises(RunError, match=r"has no checkpoints/best\.ckpt \(training stopped before the first"):
        run.checkpoint("best")
    assert not run.has_checkpoint("last")
    last = write_checkpoint(run, "last")
    assert run.has_checkpoint("last")
    assert run.checkpoint("last") == last
    with pytest.raises(RunError, match=r"has no checkpoints/best\.ckpt \(there: last\.ckpt\)"):
        run.checkpoint("best")


@pytest.mark.parametrize("size", [0, 1, 500])
def test_a_truncated_checkpoint(tmp_path: Path, size: int) -> None:
    run = Run.create(config(tmp_path))
    path = write_checkpoint(run, "best")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RunError, match=rf"best\.ckpt: is not a complete checkpoint \({size} bytes\)"):
        run.checkpoint("best")


# ---------------------------------------------------------------------------------------- resuming


def test_resume_with_the_same_settings(tmp_path: Path) -> None:
    data = {"kind": "geotiff", "root": "scenes", "nodata": float("nan")}
    Run.create(config(tmp_path, data=data))
    assert Run.resume(config(tmp_path, data=data)).config.name == "demo"


def test_resume_takes_over_what_may_change(tmp_path: Path) -> None:
    Run.create(config(tmp_path))
    changed = config(
        tmp_path,
        trainer={"epochs": 30, "loggers": ["tensorboard"]},
        data={"kind": "geotiff", "root": "scenes", "workers": 0},
    )
    assert Run.resume(changed).config == changed


def test_resume_lists_what_may_not_change(tmp_path: Path) -> None:
    Run.create(config(tmp_path))
    with pytest.raises(RunError) as caught:
        Run.resume(config(tmp_path, seed=1, strategy={"kind": "lora"}, trainer={"epochs": 30}))
    lines = str(caught.value).splitlines()
    assert "was started with other settings" in lines[0]
    inference = ", ".join(f"inference.{key}" for key in ("scales", "symmetry", "tile", "overlap"))
    free = f"runs, trainer.epochs, trainer.loggers, data.workers, gates, {inference}"
    assert lines[0].endswith(f"may change only {free}")
    assert "  seed: 0 in the run, 1 now" in lines
    assert '  strategy.kind: "full" in the run, "lora" now' in lines
    assert "  strategy.rank: not set in the run, 8 now" in lines
    assert not any("epochs" in line for line in lines[1:])


def test_resume_of_a_finished_run_needs_more_epochs(tmp_path: Path) -> None:
    Run.create(config(tmp_path)).mark_finished({})
    with pytest.raises(RunError, match=r"finished after 20 epochs; a larger trainer\.epochs continues it"):
        Run.resume(config(tmp_path))
    assert not Run.resume(config(tmp_path, trainer={"epochs": 21})).is_finished


def test_resume_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        Run.resume(config(tmp_path))


# ----------------------------------------------------------------------------------------- writing


def test_evaluation_folders(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    assert run.evaluation("test") == run.path / "evaluation" / "test"
    assert run.evaluation("test").is_dir()


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(config(tmp_path))
    run.write_json("numbers.json", {"a": 1})

    def full(self: Path, *args: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WriteError, match=r"numbers\.json: No space left on device \(.*MB free"):
        run.write_json("numbers.json", {"a": 2})
    assert json.loads((run.path / "numbers.json").read_text()) == {"a": 1}
    assert sorted(os.listdir(run.path)) == ["config.yaml", "numbers.json"]


def test_environment(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    run.write_environment({"weights": {"sha256": "abc"}})
    found = json.loads((run.path / "environment.json").read_text())
    assert found["python"] == platform.python_version()
    assert found["weights"] == {"sha256": "abc"}
    assert found["versions"]["torch"]
    assert found["cores"] >= 1
    assert found["cpu"]


def test_environment_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_environment()["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert describe_environment()["commit"] is None
