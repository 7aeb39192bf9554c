"""Predicting: every input a user names, one after another, finished or untouched.

A GeoTIFF gives Cloud-Optimised GeoTIFFs on the same ground (uint8, 255 = nodata, with colour table and class names);
a frame gives an indexed PNG with the classes' colours as palette. Both have the size of their input, whatever size
or resolution the model works at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datamodules import DataError, GeoTiffDataModule
from visionsft.errors import ConfigError
from visionsft.evaluation.evaluating import progress
from visionsft.prediction.backends import Choice
from visionsft.prediction.inputs import check_targets, find_inputs, stem
from visionsft.prediction.mapping import LayerName, SceneOptions, ScenePredictor
from visionsft.prediction.stills import StillPredictor
from visionsft.runs import Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

Engine = Literal["local", "ray"]
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


@dataclass(frozen=True)
class Predictions:
    """What became of all inputs, in their order."""

    outcomes: tuple[Outcome, ...]
    out: Path
    note: str = ""
    """Which backend was chosen, and why, where there was a choice."""

    @property
    def files(self) -> list[Path]:
        return [file for outcome in self.outcomes for file in outcome.files]

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
    layers: Sequence[LayerName] = ("classes",),
    tile: int | None = None,
    overlap: int | None = None,
    backend: Choice = "auto",
    engine: Engine = "local",
) -> list[Path]:
    """Write the class map of every input into the folder `out`; returns the files, in input order.

    inputs: files, folders (the images directly in them), globs, .txt lists of them, and paths that GDAL fetches.
    resume: keep finished results that exist. The other options are those of `SceneOptions`. An input that can't be
    used doesn't keep the others from being predicted; a DataError names all such inputs at the end.
    """
    options = SceneOptions(tuple(layers), overlay=overlay, tile=tile, overlap=overlap, backend=backend)
    predictions = predict_all(
        run, inputs, out, overwrite=overwrite, resume=resume, options=options, engine=engine
    )
    predictions.check()
    return predictions.files


def predict_all(
    run: Run | str | Path,
    inputs: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    options: SceneOptions = SceneOptions(),  # noqa: B008 (frozen)
    engine: Engine = "local",
) -> Predictions:
    """As `predict`, but inputs that fail raise nothing: they are among the outcomes.

    engine: 'ray' spreads scenes and row bands of large ones over a Ray cluster.
    """
    from visionsft.training.loading import load_run  # imported late, as in visionsft.evaluation

    run = run if isinstance(run, Run) else Run.open(run)
    predictor = _predictor(load_run(run, "best"), options)
    paths = find_inputs([inputs] if isinstance(inputs, str | Path) else inputs, suffixes=predictor.suffixes)
    targets = {path: predictor.targets(stem(path), Path(out)) for path in paths}
    check_targets(targets, overwrite=overwrite, resume=resume)
    kept = {path for path in paths if resume and all(file.exists() for file in targets[path].values())}
    jobs = {path: targets[path] for path in paths if path not in kept}
    found = {
        each.path: each
        for each in progress(_outcomes(predictor, jobs, engine), "predicting", total=len(jobs))
    }
    outcomes = [found.get(path) or Outcome(path, tuple(targets[path].values()), 0.0) for path in paths]
    return Predictions(tuple(outcomes), Path(out), predictor.note)


def _predictor(loaded: LoadedRun, options: SceneOptions) -> ScenePredictor | StillPredictor:
    if isinstance(loaded.data, GeoTiffDataModule):
        return ScenePredictor(loaded, options)
    if options.layers != ("classes",):
        others = ", ".join(name for name in options.layers if name != "classes")
        raise ConfigError(
            f"maps of {others} are made of GeoTIFF scenes; this run was trained on camera frames"
        )
    return StillPredictor(loaded, overlay=options.overlay)


def _outcomes(
    predictor: ScenePredictor | StillPredictor, jobs: Mapping[str, dict[str, Path]], engine: Engine
) -> Iterator[Outcome]:
    """What becomes of each input, in their order."""
    if engine == "ray":
        if isinstance(predictor, StillPredictor):
            raise ConfigError("engine 'ray' is for GeoTIFF scenes; this run was trained on camera frames")
        from visionsft.prediction.spreading import predict_on_ray

        return predict_on_ray(predictor, jobs)
    return (_predict_one(predictor, path, targets) for path, targets in jobs.items())


def _predict_one(predictor: ScenePredictor | StillPredictor, path: str, targets: dict[str, Path]) -> Outcome:
    start = time.perf_counter()
    try:
        predictor.predict(path, targets)
    except DataError as error:
        return Outcome(path, (), time.perf_counter() - start, str(error))
    return Outcome(path, tuple(targets.values()), time.perf_counter() - start)


def _listed(failed: Mapping[str, str]) -> str:
    """A line each for the first few; reasons name their file or don't."""
    lines = [f"\n  {path}: {reason.removeprefix(f'{path}: ')}" for path, reason in failed.items()]
    more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "".join(lines[:SHOWN]) + more
