"""The run: a folder that holds everything about one training, and that later commands take as their input.

::

    runs/<name>/
        config.yaml        the resolved configuration
        environment.json   versions, hardware, fingerprints of weights and data
        trainable.txt      what trained, stage by stage
        metrics.csv        every logged number
        checkpoints/       best.ckpt, last.ckpt
        calibration.json   temperature fitted on validation, by `calibrate`
        thresholds.json    operating point chosen on validation, by `thresholds`
        evaluation/<split>/
        report/            index.html, model_card.md, report.json
        finished.json      summary; only a finished run has it
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from visionsft import files
from visionsft.config import Config, SegmentationConfig
from visionsft.errors import ConfigError, RunError, nearest
from visionsft.loading import dump_config, load_config

Checkpoint = Literal["best", "last"]

_HEADER = "# Written by visionsft: the resolved configuration of this run.\n"
FREE_TO_CHANGE = (
    "runs",
    "trainer.epochs",
    "trainer.loggers",
    "data.workers",
    "gates",
    "inference.scales",
    "inference.symmetry",
    "inference.tile",
    "inference.overlap",
)
"""Keys that may differ when a run is resumed; ``runs`` because a folder may have moved."""
_PACKAGES = (
    "visionsft",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "albumentations",
    "numpy",
    "rasterio",
    "safetensors",
    "peft",
)


class Run:
    """A run folder: `Run.create` makes one, `Run.resume` continues one, `Run.open` reads one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    # ------------------------------------------------------------------------- making and opening

    @classmethod
    def of(cls, config: Config) -> Run:
        """The run that `config` names, whether it exists or not."""
        return cls(_folder(config))

    @classmethod
    def create(cls, config: Config, *, overwrite: bool = False) -> Run:
        """Make the folder of a new run; what is there already is kept, unless it is a run and `overwrite`."""
        run = cls.check_free(config, overwrite=overwrite)
        run._delete()
        run._store(config)
        return run

    @classmethod
    def resume(cls, config: Config) -> Run:
        """Open the run of `config` to continue it; few settings may differ from when it started."""
        run = cls.check_resumable(config)
        run._finished_file.unlink(missing_ok=True)
        run._store(config)
        return run

    @classmethod
    def check_free(cls, config: Config, *, overwrite: bool = False) -> Run:
        """Refuse what `create` would refuse, and change nothing: to be known before the slow steps."""
        run = cls(_folder(config))
        if overwrite:
            run._refuse_if_foreign()
        else:
            run._refuse_if_taken()
        return run

    @classmethod
    def check_resumable(cls, config: Config) -> Run:
        """Refuse what `resume` would refuse, and change nothing."""
        run = cls.open(_folder(config))
        _check_same(run, config)
        epochs = run.config.trainer.epochs
        if run.is_finished and config.trainer.epochs <= epochs:
            raise RunError(
                f"{run.path}: finished after {epochs} epochs; a larger trainer.epochs continues it"
            )
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run folder; one that is missing or incomplete raises RunError."""
        run = cls(path)
        if not run.path.is_dir():
            raise RunError(_say_missing(run.path))
        run._read_config()
        return run

    def _is_free(self) -> bool:
        """Nothing is there, or a folder with nothing in it but what a killed process had begun to write."""
        if not self.path.exists():
            return True
        return self.path.is_dir() and all(entry.name.startswith(".") for entry in self.path.iterdir())

    def _refuse_if_taken(self) -> None:
        if self._is_free():
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path}: is a file; choose another name, or remove it")
        Run.open(self.path)
        state = "is finished; a larger trainer.epochs with" if self.is_finished else "was interrupted;"
        raise RunError(f"{self.path}: this run {state} --resume continues it, --overwrite trains it anew")

    def _refuse_if_foreign(self) -> None:
        """Only a folder that this class has written may be deleted."""
        if self._is_free():
            return
        if self.path.is_symlink() or not self._config_file.is_file():
            raise RunError(f"{self.path}: is not a run folder (no config.yaml of its own); not overwritten")
        if not self._config_file.read_bytes().startswith(_HEADER.encode()):
            raise RunError(f"{self._config_file}: not written by visionsft; {self.path} is not overwritten")

    def _delete(self) -> None:
        if self._is_free():
            return
        aside = self.path.with_name(f".{self.name}.{os.getpid()}.partial")
        self.path.rename(aside)  # at once, so that no half of it stays under its name
        shutil.rmtree(aside)

    def _store(self, config: Config) -> None:
        self.write_text("config.yaml", _HEADER + dump_config(config))
        self.__dict__.pop("config", None)

    def _read_config(self) -> Config:
        if not self._config_file.is_file():
            raise RunError(
                f"{self.path}: is not a run folder, or half of one: it has no config.yaml{self._here()}"
            )
        try:
            return load_config(self._config_file)
        except ConfigError as error:
            raise RunError(f"{self.path}: its config.yaml can't be read\n{error}") from error

    # ------------------------------------------------------------------------------------ contents

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def _config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def _finished_file(self) -> Path:
        return self.path / "finished.json"

    @cached_property
    def config(self) -> Config:
        """The resolved configuration."""
        return self._read_config()

    def require_segmentation(self, what: str) -> SegmentationConfig:
        """The configuration of a segmentation run; for a run of another task, `what` is refused."""
        if isinstance(self.config, SegmentationConfig):
            return self.config
        raise RunError(f"{self.path}: {what} is for segmentation; this run's task is {self.task}")

    @property
    def task(self) -> str:
        """The kind of its task."""
        return str(self.config.task.kind)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints; it may not exist yet."""
        return self.path / "checkpoints"

    def has_checkpoint(self, kind: Checkpoint) -> bool:
        return (self.checkpoints / f"{kind}.ckpt").is_file()

    def checkpoint(self, kind: Checkpoint) -> Path:
        """Path of a complete checkpoint."""
        path = self.checkpoints / f"{kind}.ckpt"
        if not self.has_checkpoint(kind):
            there = sorted(file.name for file in self.checkpoints.glob("*.ckpt"))
            reason = (
                f"there: {', '.join(there)}" if there else "training stopped before the first; see --resume"
            )
            raise RunError(f"{self.path}: has no checkpoints/{kind}.ckpt ({reason})")
        if not zipfile.is_zipfile(path):  # what torch.save writes; a zip's index is at its end
            raise RunError(f"{path}: is not a complete checkpoint ({path.stat().st_size:,} bytes)")
        return path

    def identify(self, kind: Checkpoint) -> dict[str, str]:
        """A checkpoint's name, file and content, to be kept with what was made of it."""
        path = self.checkpoint(kind)
        return {"name": kind, "file": path.name, "sha256": files.sha256(path)}

    def evaluation(self, split: str) -> Path:
        """Folder of the results on `split`; made if missing."""
        folder = self.path / "evaluation" / split
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def scores(self, split: str) -> dict[str, Any]:
        """scores.json of a split that has been evaluated."""
        path = self.path / "evaluation" / split / "scores.json"
        try:
            scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            command = f"visionsft evaluate {self.path} --split {split}"
            raise RunError(f"{self.path}: has no scores of split '{split}'; `{command}` makes them") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: can't be read: {error}") from error
        return scores

    @property
    def is_finished(self) -> bool:
        return self._finished_file.is_file()

    def mark_finished(self, summary: Mapping[str, Any]) -> None:
        """Note that training came to its end; `summary` holds its main numbers."""
        self.write_json("finished.json", summary)

    # ------------------------------------------------------------------------------------- writing

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the run, all or nothing; returns its path."""
        files.write_text(self.path / name, text)
        return self.path / name

    def write_json(self, name: str, values: Mapping[str, Any]) -> Path:
        return self.write_text(name, json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """What training wrote with `write_json`."""
        try:
            values: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name}: can't be read ({error}); the run is half-written") from error
        return values

    def write_environment(self, extra: Mapping[str, Any]) -> None:
        """Write environment.json: versions, hardware, the working directory's commit, and `extra`."""
        self.write_json("environment.json", {**describe_environment(), **extra})

    def _here(self) -> str:
        names = sorted(entry.name for entry in self.path.iterdir())
        return f"; in it: {', '.join(names[:8])}" if names else "; it is empty"


def is_first_process() -> bool:
    """False in the processes that Lightning starts for further devices: the run folder belongs to the first."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


# ----------------------------------------------------------------------------------- environment


def describe_environment() -> dict[str, Any]:
    """What a result may depend on besides the configuration: software, hardware and code."""
    return {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the repository around the working directory, '-dirty' if it has changes; None without one."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


# --------------------------------------------------------------------------------------- checks


def _folder(config: Config) -> Path:
    if config.name is None:
        raise ConfigError("name: missing; a configuration that doesn't come from a file has to name its run")
    return config.runs / config.name


def _say_missing(path: Path) -> str:
    if path.exists():
        return f"{path}: is a file; the run folder itself is needed, for example runs/demo"
    if path.parent == Path() and Path("runs", path).is_dir():
        return f"{path}: no such run folder; nearest: {Path('runs', path)}"
    if not path.parent.is_dir():
        return f"{path}: no such run folder, and no folder {path.parent}"
    names = sorted(entry.name for entry in path.parent.iterdir() if (entry / "config.yaml").is_file())
    if match := nearest(path.name, names):
        return f"{path}: no such run folder; nearest: {path.with_name(match)}"
    return f"{path}: no such run folder" + (f"; there: {', '.join(names[:8])}" if names else "")


def _check_same(run: Run, config: Config) -> None:
    before, now = flatten(run.config), flatten(config)
    changed = [
        f"  {key}: {before.get(key, 'not set')} in the run, {now.get(key, 'not set')} now"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key not in FREE_TO_CHANGE
    ]
    if changed:
        free = ", ".join(FREE_TO_CHANGE)
        first = f"{run.path}: was started with other settings; --resume may change only {free}"
        raise RunError("\n".join([first, *changed]))


def flatten(config: Config) -> dict[str, str]:
    """Dotted keys of `config` with their values as JSON."""
    return flatten_values(config.model_dump(mode="json"))


def flatten_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys of nested mappings with their values as JSON, in which NaN equals NaN."""
    flat: dict[str, str] = {}

    def walk(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = json.dumps(value)

    walk(values, "")
    return flat
