"""Predicting: every input a user names, one after another, finished or untouched.

A GeoTIFF gives Cloud-Optimised GeoTIFFs on the same ground (uint8, 255 = nodata, with colour table and class names);
a frame gives an indexed PNG with the classes' colours as palette. Both have the size of their input, whatever size
or resolution the model works at. A detection run gives a vector layer, and COCO's JSON. Drives become videos, too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datamodules import ClassificationDataModule, DataError, DetectionDataModule, GeoTiffDataModule
from visionsft.config import ClassificationConfig
from visionsft.errors import ConfigError, WriteError
from visionsft.evaluation.evaluating import progress
from visionsft.evaluation.operating import AppliedPoint, read_point
from visionsft.files import write_text
from visionsft.models.rotated import rotated_iou
from visionsft.prediction.detections import (
    DetectionOptions,
    FrameDetectionPredictor,
    SceneDetectionPredictor,
    detection_predictor,
)
from visionsft.prediction.inputs import check_targets, find_inputs, stem
from visionsft.prediction.labelling import LabelOptions, label_files
from visionsft.prediction.mapping import SceneOptions, ScenePredictor
from visionsft.prediction.stills import FrameOptions, StillPredictor
from visionsft.runs import Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

Engine = Literal["local", "ray"]
Predictor = ScenePredictor | StillPredictor | SceneDetectionPredictor | FrameDetectionPredictor
POINT = "_operating_point.json"
"""End of the name of the thresholds by which a result was decided."""
SHOWN = 8
"""Files at most that one message names."""


@dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    path: str
    files: tuple[Path, ...]
    """Written, or kept from before; none if it failed."""
    seconds: float
    problem: str | None = None
    remark: str = ""


@dataclass(frozen=True)
class Predictions:
    """What became of all inputs, in their order."""

    outcomes: tuple[Outcome, ...]
    out: Path
    note: str = ""
    """Which backend was chosen, and why, where there was a choice."""

    @property
    def files(self) -> list[Path]:
        return list(dict.fromkeys(file for outcome in self.outcomes for file in outcome.files))

    @property
    def failed(self) -> dict[str, str]:
        """The reason of each input that failed, by its path."""
        return {each.path: each.problem for each in self.outcomes if each.problem is not None}

    def table(self) -> str:
        """A line an input."""
        width = max(len(each.path) for each in self.outcomes)
        lines = []
        for each in self.outcomes:
            state = f"{each.seconds:8.1f} s  {len(each.files)} files" if each.problem is None else "  FAILED"
            state += f"  ({each.remark})" if each.remark else ""
            lines.append(f"{each.path:{width}}  {state}")
        return "\n".join([*lines, *([self.note] if self.note else [])])

    def check(self) -> None:
        """Raise a DataError that names the inputs that failed, if any did."""
        if not self.failed:
            return
        done = len(self.outcomes) - len(self.failed)
        said = f"the other {done} are in {self.out}" if done else "nothing was written"
        raise DataError(
            f"{len(self.failed)} of {len(self.outcomes)} inputs can't be predicted ({said}):{_listed(self.failed)}"
        )


def predict(
    run: Run | str | Path,
    inputs: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    overlay: bool = False,
    operating_point: bool = False,
    scenes: SceneOptions = SceneOptions(),  # noqa: B008 (frozen)
    frames: FrameOptions = FrameOptions(),  # noqa: B008 (frozen)
    objects: DetectionOptions = DetectionOptions(),  # noqa: B008 (frozen)
    labels: LabelOptions = LabelOptions(),  # noqa: B008 (frozen)
    engine: Engine = "local",
) -> list[Path]:
    """Write the class map of every input into the folder `out`; returns the files, in input order.

    inputs: files, folders (what lies directly in them), globs, .txt lists of them, and paths that GDAL fetches.
    Of a classification run the one file is a table of all inputs, see `visionsft.prediction.labelling`.
    resume: keep finished results that exist. operating_point: decide by the thresholds that the run keeps (see
    `visionsft thresholds`), and say so in ``<result>_operating_point.json``. scenes: what a segmentation run makes of
    GeoTIFFs; frames: how videos and folders of frames are read; objects: what a detection run makes of scenes and
    frames; labels: what a classification run says. engine: 'ray' spreads scenes and row bands of
    large ones over a Ray cluster.
    An input that can't be used doesn't keep the others from being predicted; a DataError names all such inputs at
    the end.
    """
    predictions = predict_all(
        run, inputs, out, overwrite=overwrite, resume=resume, overlay=overlay, operating_point=operating_point,
        scenes=scenes, frames=frames, objects=objects, labels=labels, engine=engine,
    )  # fmt: skip
    predictions.check()
    return predictions.files


def predict_all(
    run: Run | str | Path,
    inputs: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    overlay: bool = False,
    operating_point: bool = False,
    scenes: SceneOptions = SceneOptions(),  # noqa: B008 (frozen)
    frames: FrameOptions = FrameOptions(),  # noqa: B008 (frozen)
    objects: DetectionOptions = DetectionOptions(),  # noqa: B008 (frozen)
    labels: LabelOptions = LabelOptions(),  # noqa: B008 (frozen)
    engine: Engine = "local",
) -> Predictions:
    """As `predict`, but inputs that fail raise nothing: they are among the outcomes."""
    from visionsft.training.loading import load_run  # imported late, as in visionsft.evaluation

    run = run if isinstance(run, Run) else Run.open(run)
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    loaded = load_run(run, "best")
    point = _read_point(loaded) if operating_point else None
    if isinstance(loaded.data, ClassificationDataModule):
        wanted = {"resume": resume, "overlay": overlay, "engine": engine != "local"}
        _refuse_maps(wanted, scenes, frames, objects)
        labelled = _label(loaded, given, Path(out), labels, overwrite=overwrite)
        if labelled.files:
            _record(point, labelled.files[0].stem, labelled.out)
        return labelled
    if given_labels := _changed(labels):
        raise ConfigError(f"{given_labels}: for classification; this run's task is {run.task}")
    predictor = _predictor(loaded, overlay, scenes, frames, objects, engine, point)
    paths = find_inputs(given, suffixes=predictor.suffixes, whole_folders=frames.drives)
    targets = {path: predictor.targets(path, Path(out)) for path in paths}
    check_targets(targets, overwrite=overwrite, resume=resume)
    kept = {path for path in paths if resume and all(file.exists() for file in targets[path].values())}
    for path in paths:
        if path in kept:
            _refuse_other_point(point, stem(path), Path(out))
    jobs = {path: targets[path] for path in paths if path not in kept}
    outcomes = _outcomes(predictor, jobs, engine, overwrite=overwrite)
    found = {}
    for each in progress(outcomes, "predicting", total=len(jobs)):
        found[each.path] = each
        if each.problem is None:
            _record(point, stem(each.path), Path(out))
    return Predictions(
        tuple(found.get(path) or Outcome(path, tuple(targets[path].values()), 0.0) for path in paths),
        Path(out),
        predictor.note,
    )


def _read_point(loaded: LoadedRun) -> AppliedPoint:
    """The run's operating point; images of one class have none."""
    config = loaded.run.config
    if isinstance(config, ClassificationConfig) and not config.task.multi_label:
        raise ConfigError(
            "operating_point: an image has one class here, the most probable one, so there are no thresholds"
        )
    return read_point(loaded.run, loaded.data.classes.names)


def _refuse_other_point(point: AppliedPoint | None, name: str, out: Path) -> None:
    """A result that is kept must have been decided as those that are made now."""
    path = out / f"{name}{POINT}"
    try:
        there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise WriteError(f"{path}: can't be read ({error}); --overwrite makes {name} anew") from error
    if there != (point and point.as_dict()):
        how = "by other thresholds" if there and point else "by thresholds" if there else "without thresholds"
        raise WriteError(f"{out / name}: was decided {how}, so it isn't kept; --overwrite makes it anew")


def _record(point: AppliedPoint | None, name: str, out: Path) -> None:
    """Beside a result: by what it was decided. One that was decided without thresholds has no such file."""
    path = out / f"{name}{POINT}"
    if point is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, json.dumps(point.as_dict(), indent=2, ensure_ascii=False) + "\n")


def _predictor(
    loaded: LoadedRun,
    overlay: bool,
    scenes: SceneOptions,
    frames: FrameOptions,
    objects: DetectionOptions,
    engine: Engine,
    point: AppliedPoint | None,
) -> Predictor:
    """The one that suits the run; options for the others are refused."""
    on_ground = hasattr(loaded.data, "prediction_scene")
    if on_ground and (given := _changed(frames)):
        raise ConfigError(f"{given}: for camera frames and videos; this run was trained on GeoTIFF scenes")
    if isinstance(loaded.data, DetectionDataModule):
        names = [_changed(scenes), "" if frames.masks else "masks", "engine" if engine != "local" else ""]
        if said := ", ".join(filter(None, names)):
            raise ConfigError(f"{said}: for class maps; this run was trained to detect objects")
        return detection_predictor(
            loaded, objects, overlay=overlay, turned_iou=rotated_iou, frames=frames, point=point
        )
    if given := _changed(objects):
        raise ConfigError(f"{given}: for detection; this run was trained to make class maps")
    if isinstance(loaded.data, GeoTiffDataModule):
        return ScenePredictor(loaded, scenes, overlay=overlay, point=point)
    if given := _changed(scenes) or ("engine" if engine != "local" else ""):
        raise ConfigError(f"{given}: for GeoTIFF scenes; this run was trained on camera frames")
    return StillPredictor(loaded, frames, overlay=overlay, point=point)


def _refuse_maps(wanted: Mapping[str, bool], *others: SceneOptions | FrameOptions | DetectionOptions) -> None:
    """A classification run makes one table and no maps."""
    names = [*(name for name, value in wanted.items() if value), *map(_changed, others)]
    if given := ", ".join(filter(None, names)):
        raise ConfigError(f"{given}: for maps; this run is of classification, and gives one table")


def _label(
    loaded: LoadedRun, inputs: Sequence[str | Path], out: Path, options: LabelOptions, *, overwrite: bool
) -> Predictions:
    """One table of all inputs; each one's outcome says its most probable class."""
    table, labelled = label_files(loaded, inputs, out, options=options, overwrite=overwrite)
    names = loaded.data.classes.names
    outcomes = []
    for each in labelled:
        if each.probabilities is None:
            outcomes.append(Outcome(each.path, (), each.seconds, each.problem))
        else:
            best = int(each.probabilities.argmax())
            remark = f"{names[best]} {each.probabilities[best]:.3f}"
            outcomes.append(Outcome(each.path, (table,), each.seconds, remark=remark))
    return Predictions(tuple(outcomes), out)


def _changed(options: SceneOptions | FrameOptions | DetectionOptions | LabelOptions) -> str:
    """Names of the options that aren't as by default."""
    plain = type(options)()
    return ", ".join(
        each.name for each in fields(options) if getattr(options, each.name) != getattr(plain, each.name)
    )


def _outcomes(
    predictor: Predictor,
    jobs: Mapping[str, dict[str, Path]],
    engine: Engine,
    *,
    overwrite: bool,
) -> Iterator[Outcome]:
    """What becomes of each input, in their order."""
    if engine == "ray":
        from visionsft.prediction.spreading import predict_on_ray

        assert isinstance(predictor, ScenePredictor)
        return predict_on_ray(predictor, jobs)
    return (_predict_one(predictor, path, targets, overwrite) for path, targets in jobs.items())


def _predict_one(predictor: Predictor, path: str, targets: dict[str, Path], overwrite: bool) -> Outcome:
    start = time.perf_counter()
    try:
        remark = predictor.predict(path, targets, overwrite=overwrite)
    except DataError as error:
        return Outcome(path, (), time.perf_counter() - start, str(error))
    return Outcome(path, tuple(targets.values()), time.perf_counter() - start, remark=remark)


def _listed(failed: Mapping[str, str]) -> str:
    """A line each for the first few; reasons name their file or don't."""
    lines = [f"\n  {path}: {reason.removeprefix(f'{path}: ')}" for path, reason in failed.items()]
    more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "".join(lines[:SHOWN]) + more
