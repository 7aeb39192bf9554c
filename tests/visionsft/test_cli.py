"""The command line: what it prints, how it ends, and what it doesn't load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from visionsft.cli import app
from visionsft.errors import RunError
from visionsft.loading import load_config
from visionsft.prediction import DetectionOptions, FrameOptions, LabelOptions, SceneOptions, VectorOptions
from visionsft.runs import Run

CONFIG = """\
data: {kind: geotiff, root: scenes}
backbone: {name: resnet18}
"""
MISTAKEN = """\
data:
  kind: geotif
  root: scenes
  batchsize: 4
backbone:
  name: resnet18
  weights: hubb
strategy: {kind: full, lr: fast}
trainer: {epochs: 0, precison: auto}
head: {name: unett}
"""
FIT = "visionsft.training.fitting"
TUNE = "visionsft.training.tuning"


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def shell(*arguments: object, cwd: Path, python: tuple[str, ...] = ("-m", "visionsft")) -> Any:
    command = [sys.executable, *python, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands make and find `runs/` in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def run(config_file: Path) -> Path:
    """A run folder, as `fit` makes it before it trains."""
    return Run.create(load_config(config_file, [f"runs={config_file.parent / 'runs'}"])).path


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Put a function into the place of the one that a command calls; returns the calls it gets."""

    def replace(module: str, name: str, answer: Any = None) -> list[Any]:
        calls: list[Any] = []

        def stand_in(*arguments: Any, **options: Any) -> Any:
            calls.append((arguments, options))
            if isinstance(answer, BaseException):
                raise answer
            return answer

        fake = ModuleType(module)
        setattr(fake, name, stand_in)
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return replace


# ------------------------------------------------------------------------------- in a shell, no torch


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["--version"], ["config", "schema"]])
def test_answers_on_standard_output(tmp_path: Path, arguments: list[str]) -> None:
    answer = shell(*arguments, cwd=tmp_path)
    assert answer.returncode == 0
    assert answer.stdout
    assert answer.stderr == ""


def test_a_mistaken_configuration(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(MISTAKEN)
    answer = shell("fit", "demo.yaml", "--set", "data.workers=-1", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.splitlines() == [
        "demo.yaml:2: data.kind: 'geotif' is not allowed; allowed: geotiff, camera; nearest: geotiff",
        "demo.yaml:4: data.batchsize: unknown key; nearest: batch_size",
        "demo.yaml:7: backbone.weights: 'hubb' is not allowed; allowed: hub, pypi, none, "
        "or the path of a file (.safetensors, .pth, .pt, .bin)",
        "demo.yaml:8: strategy.lr: given 'fast'; must be a valid number",
        "demo.yaml:9: trainer.epochs: given 0; must be greater than 0",
        "demo.yaml:9: trainer.precison: unknown key; nearest: precision",
        "demo.yaml:10: head.name: 'unett' is not allowed; allowed: linear, segformer, fpn, unet, upernet, "
        "or a class of your own as 'my_package.heads:MyHead'; nearest: unet",
        "--set data.workers=-1: data.workers: given -1; must be greater than or equal to 0",
    ]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["fit", "demo.yaml"], ["tune", "demo.yaml"], ["evaluate", "runs/nothing"]]
)
def test_quick_answers_load_no_torch(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "demo.yaml").write_text(MISTAKEN)
    code = (
        "import sys\n"
        "from visionsft.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'timm', 'lightning', 'albumentations', 'rasterio', 'numpy', 'rich'}\n"
        "sys.exit(f'loaded: {loaded}' if (loaded := sorted(heavy & set(sys.modules))) else code)"
    )
    answer = shell(*arguments, cwd=tmp_path, python=("-c", code))
    assert answer.returncode == (0 if arguments == ["--help"] else 2), answer.stderr
    assert "loaded:" not in answer.stderr


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shell("fit", "nothing.yaml", cwd=tmp_path)
    assert plain.returncode == 2
    assert plain.stderr == "nothing.yaml: no such file\n"
    debug = shell("--debug", "fit", "nothing.yaml", cwd=tmp_path)
    assert debug.returncode == 2
    assert debug.stderr.startswith("Traceback")
    assert debug.stderr.endswith("nothing.yaml: no such file\n")
    monkeypatch.setenv("VISIONSFT_DEBUG", "1")
    assert shell("fit", "nothing.yaml", cwd=tmp_path).stderr.startswith("Traceback")


def test_a_wrong_command_is_typers_matter(tmp_path: Path) -> None:
    answer = shell("fti", cwd=tmp_path)
    assert answer.returncode == 2
    assert "No such command 'fti'" in answer.stderr
    assert "Traceback" not in answer.stderr


# ------------------------------------------------------------------------------------------ commands


def test_fit(config_file: Path, replace: Callable[..., list[Any]]) -> None:
    calls = replace(FIT, "fit", SimpleNamespace(path="runs/demo"))
    result = invoke("fit", config_file, "--set", "data.batch_size=2", "--set", "seed=3", "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["run folder: runs/demo", "next: visionsft evaluate runs/demo"]
    ((arguments, options),) = calls
    assert arguments == (load_config(config_file, ["data.batch_size=2", "seed=3"]),)
    assert options == {"resume": False, "overwrite": True}


def test_fit_says_before_anything_slow_that_the_run_exists(
    config_file: Path, run: Path, replace: Callable[..., list[Any]]
) -> None:
    calls = replace(FIT, "fit", SimpleNamespace(path=run))
    runs = ["--set", f"runs={run.parent}"]
    assert "this run was interrupted; --resume" in invoke("fit", config_file, *runs).stderr
    assert (
        "  seed: 0 in the run, 1 now" in invoke("fit", config_file, *runs, "--set=seed=1", "--resume").stderr
    )
    assert not calls
    assert invoke("fit", config_file, *runs, "--resume").exit_code == 0
    assert invoke("fit", config_file, *runs, "--overwrite").exit_code == 0
    assert [options["resume"] for _, options in calls] == [True, False]
    assert run.is_dir()


def test_resume_excludes_overwrite(config_file: Path) -> None:
    result = invoke("fit", config_file, "--resume", "--overwrite")
    assert result.exit_code == 2
    assert "--resume and --overwrite exclude each other" in result.stderr


def test_tune(config_file: Path, replace: Callable[..., list[Any]]) -> None:
    config_file.write_text(f"{CONFIG}tune: {{strategy.lr: {{log: [1e-4, 1e-2]}}}}\n")
    calls = replace(TUNE, "tune", SimpleNamespace(table=lambda: "best: trial 0007"))
    options = ["--trials", 4, "--storage", "sqlite:///a.db", "--out", "study", "--timeout", 60, "--overwrite"]
    result = invoke("tune", config_file, "--set", "seed=3", *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "best: trial 0007\n"
    ((arguments, given),) = calls
    assert arguments == (load_config(config_file, ["seed=3"]),)
    common = {"storage": "sqlite:///a.db", "out": Path("study"), "timeout": 60.0, "overwrite": True}
    assert given == {"trials": 4, **common}


def test_tune_names_every_mistake_of_the_space(config_file: Path, replace: Callable[..., list[Any]]) -> None:
    calls = replace(TUNE, "tune")
    config_file.write_text(f"{CONFIG}tune: {{strategy.lrr: [1], seed: [a]}}\n")
    result = invoke("tune", config_file)
    assert result.exit_code == 2
    assert {line.partition(": ")[2] for line in result.stderr.splitlines()} == {
        "tune.'strategy.lrr'.0: unknown key; nearest: lr",
        "tune.seed.0: given 'a'; must be a valid integer",
    }
    assert not calls


def test_an_interrupted_study(config_file: Path, replace: Callable[..., list[Any]]) -> None:
    config_file.write_text(f"{CONFIG}tune: {{seed: [1, 2]}}\n")
    replace(TUNE, "tune", KeyboardInterrupt())
    result = invoke("tune", config_file)
    assert result.exit_code == 130
    assert result.stderr == "interrupted; the same command goes on with the study\n"


def test_evaluate(run: Path, replace: Callable[..., list[Any]]) -> None:
    calls = replace("visionsft.evaluation", "evaluate", SimpleNamespace(table=lambda: "class  IoU"))
    result = invoke("evaluate", run, "--split", "val", "--checkpoint", "last")
    assert result.stdout == "class  IoU\n"
    common = {"split": "val", "checkpoint": "last"}
    plain = {"group_by": "group", "slice_by": (), "metadata": None, "efficiency": False, "boundaries": False}
    assert calls == [((run,), {**common, **plain})]
    invoke("evaluate", run, "--group-by", "image", "--slice-by", "group", "--slice-by", "sun", "--metadata", "m.csv")
    options = {"group_by": "image", "slice_by": ("group", "sun"), "metadata": Path("m.csv")}
    options |= {"efficiency": False, "boundaries": False}
    assert calls[1] == ((run,), {"split": "test", "checkpoint": "best", **options})


def test_calibrate(run: Path, replace: Callable[..., list[Any]]) -> None:
    calls = replace("visionsft.evaluation", "calibrate", SimpleNamespace(table=lambda: "temperature 1.5"))
    assert invoke("calibrate", run).stdout == "temperature 1.5\n"
    assert calls == [((run,), {"checkpoint": "best"})]


def test_thresholds(run: Path, replace: Callable[..., list[Any]]) -> None:
    calls = replace("visionsft.evaluation", "choose_thresholds", SimpleNamespace(table=lambda: "on val"))
    result = invoke("thresholds", run, "recall[Car] >= 0.9", "precision[Sky] >= 0.8", "--checkpoint", "last")
    assert result.stdout == "on val\n"
    assert calls == [((run, ["recall[Car] >= 0.9", "precision[Sky] >= 0.8"]), {"checkpoint": "last"})]


def test_predict(run: Path, replace: Callable[..., list[Any]], tmp_path: Path) -> None:
    done = SimpleNamespace(table=lambda: "x.tif  1.0 s", check=lambda: None, files=[Path("a.tif"), Path("b.tif")])
    calls = replace("visionsft.prediction", "predict_all", done)
    for option in (DetectionOptions, FrameOptions, LabelOptions, SceneOptions, VectorOptions):
        setattr(sys.modules["visionsft.prediction"], option.__name__, option)
    result = invoke("predict", run, "x.tif", "y.tif", "--out", tmp_path / "maps", "--overlay", "--operating-point")
    assert result.stdout == f"x.tif  1.0 s\n2 results in {tmp_path / 'maps'}\n"
    arguments, options = calls[0]
    assert arguments == (run, ["x.tif", "y.tif"], tmp_path / "maps")
    assert options["operating_point"] is True
    assert (options["overwrite"], options["resume"], options["overlay"], options["engine"]) == (
        False, False, True, "local",
    )  # fmt: skip
    words = "--layer confidence --vectors gpkg --simplify 1.5 --only road --tile 512 --backend torch --drives"
    invoke("predict", run, "x.tif", "--out", tmp_path, *words.split())
    scenes, frames = calls[1][1]["scenes"], calls[1][1]["frames"]
    assert scenes.layers == ("classes", "confidence")
    assert (scenes.vectors, scenes.tile, scenes.backend) == (".gpkg", 512, "torch")
    assert (scenes.polygons.simplify, scenes.polygons.classes) == (1.5, ("road",))
    assert frames.drives
    assert invoke("predict", run, "x.tif", "--out", tmp_path, "--simplify", "1").exit_code == 2


@pytest.mark.parametrize("arguments", [["evaluate"], ["predict"]])
def test_a_run_that_is_none(tmp_path: Path, arguments: list[str]) -> None:
    extra = ["x.tif", "--out", "maps"] if arguments == ["predict"] else []
    result = invoke(*arguments, tmp_path, *extra)
    assert result.exit_code == 2
    assert "has no config.yaml" in result.stderr


def test_sample_data(
    tmp_path: Path, replace: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ModuleType("visionsft.preparation")
    monkeypatch.setitem(sys.modules, "visionsft.preparation", package)
    calls = replace("visionsft.preparation.sampledata", "generate", tmp_path)
    package.sampledata = sys.modules["visionsft.preparation.sampledata"]  # type: ignore[attr-defined]
    result = invoke("sample-data", tmp_path, "--kind", "driving", "--seed", "3", "--scenes", "2")
    assert result.stdout == f"written: {tmp_path}\n"
    assert calls == [((tmp_path,), {"kind": "driving", "seed": 3, "scenes": 2})]


def test_schema(tmp_path: Path) -> None:
    printed = json.loads(invoke("config", "schema").stdout)
    assert len(printed["anyOf"]) == 4
    assert invoke("config", "schema", "--out", tmp_path / "new" / "schema.json").exit_code == 0
    assert json.loads((tmp_path / "new" / "schema.json").read_text()) == printed


def test_show_prints_what_loads_again(config_file: Path, tmp_path: Path) -> None:
    result = invoke("config", "show", config_file, "--set", "strategy.lr=1e-5")
    again = tmp_path / "again.yaml"
    again.write_text(result.stdout)
    assert load_config(again) == load_config(config_file, ["strategy.lr=1e-5"])


def test_backbones() -> None:
    result = invoke("backbones", "test_resnet")
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["name", "parameters", "pretrained"]
    assert rows
    assert rows[0].startswith("test_resnet")


def test_no_such_backbones() -> None:
    result = invoke("backbones", "convnxt*")
    assert result.exit_code == 2
    assert "convnxt*" in result.stderr
    assert "Traceback" not in result.stderr


def test_layers() -> None:
    result = invoke("layers", "test_resnet", "--in-chans", 4, "--num-classes", 3, "--size", 64)
    assert result.exit_code == 0, result.stderr
    stages, costs = result.stdout.split("\nfor one image of 64 x 64 pixels, 3 classes:\n")
    assert stages.splitlines()[0].split() == ["stage", "parameters", "stride", "channels"]
    assert [line.split()[0] for line in costs.splitlines()] == [
        "part",
        "backbone",
        "linear",
        "segformer",
        "fpn",
        "unet",
        "upernet",
    ]


def test_layers_of_a_model_that_does_not_exist() -> None:
    result = invoke("layers", "test_resnt")
    assert result.exit_code == 2
    assert "test_resnet" in result.stderr
    assert "Traceback" not in result.stderr


# -------------------------------------------------------------------------------------------- endings


def test_errors_with_an_exit_code_are_printed(config_file: Path, replace: Callable[..., list[Any]]) -> None:
    replace(FIT, "fit", RunError("runs/demo: this run is finished"))
    result = invoke("fit", config_file)
    assert result.exit_code == 2
    assert result.stderr == "runs/demo: this run is finished\n"


def test_a_full_disk_is_no_bug(config_file: Path, replace: Callable[..., list[Any]]) -> None:
    replace(FIT, "fit", OSError(28, "No space left on device", "runs/demo/metrics.csv"))
    result = invoke("fit", config_file)
    assert result.exit_code == 2
    assert "No space left on device: 'runs/demo/metrics.csv'" in result.stderr


@pytest.mark.parametrize(
    "error", [ValueError("shapes differ"), RuntimeError("CUDA"), KeyError("x"), OSError("?")]
)
def test_bugs_keep_their_traceback(
    config_file: Path, replace: Callable[..., list[Any]], error: Exception
) -> None:
    replace(FIT, "fit", error)
    assert invoke("fit", config_file).exception is error


def test_an_interruption_says_how_to_go_on(config_file: Path, replace: Callable[..., list[Any]]) -> None:
    replace(FIT, "fit", KeyboardInterrupt())
    result = invoke("fit", config_file)
    assert result.exit_code == 130
    assert "--resume" in result.stderr


def test_lightnings_way_of_interrupting(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*arguments: Any, **options: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setitem(sys.modules, FIT, SimpleNamespace(fit=fit))
    assert invoke("fit", config_file).exit_code == 130
