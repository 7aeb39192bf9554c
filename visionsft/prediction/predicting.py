"""Predicting: every input a user names, one after another, finished or untouched.

A GeoTIFF gives Cloud-Optimised GeoTIFFs on the same ground (uint8, 255 = nodata, with colour table and class names);
a frame gives an indexed PNG with the classes' colours as palette. Both have the size of their input, whatever size
or resolution the model works at.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules import DataError, GeoTiffDataModule
from visionsft.errors import ConfigError
from visionsft.evaluation.evaluating import progress
from visionsft.prediction.inputs import check_targets, find_inputs, stem
from visionsft.prediction.mapping import LayerName, SceneOptions, ScenePredictor
from visionsft.prediction.stills import StillPredictor
from visionsft.runs import Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

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
        return "\n".join(lines)

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
) -> list[Path]:
    """Write the class map of every input into the folder `out`; returns the files, in input order.

    inputs: files, folders (the images directly in them), globs, .txt lists of them, and paths that GDAL fetches.
    resume: keep finished results that exist. The other options are those of `SceneOptions`. An input that can't be
    used doesn't keep the others from being predicted; a DataError names all such inputs at the end.
    """
    options = SceneOptions(tuple(layers), overlay=overlay, tile=tile, overlap=overlap)
    predictions = predict_all(run, inputs, out, overwrite=overwrite, resume=resume, options=options)
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
) -> Predictions:
    """As `predict`, but inputs that fail raise nothing: they are among the outcomes."""
    from visionsft.training.loading import load_run  # imported late, as in visionsft.evaluation

    run = run if isinstance(run, Run) else Run.open(run)
    predictor = _predictor(load_run(run, "best"), options)
    paths = find_inputs([inputs] if isinstance(inputs, str | Path) else inputs, suffixes=predictor.suffixes)
    targets = {path: predictor.targets(stem(path), Path(out)) for path in paths}
    check_targets(targets, overwrite=overwrite, resume=resume)
    outcomes = [
        _predict_one(predictor, path, targets[path], resume=resume) for path in progress(paths, "predicting")
    ]
    return Predictions(tuple(outcomes), Path(out))


def _predictor(loaded: LoadedRun, options: SceneOptions) -> ScenePredictor | StillPredictor:
    if isinstance(loaded.data, GeoTiffDataModule):
        return ScenePredictor(loaded, options)
    if options.layers != ("classes",):
        others = ", ".join(name for name in options.layers if name != "classes")
        raise ConfigError(
            f"maps of {others} are made of GeoTIFF scenes; this run was trained on camera frames"
        )
    return StillPredictor(loaded, overlay=options.overlay)


def _predict_one(
    predictor: ScenePredictor | StillPredictor, path: str, targets: dict[str, Path], *, resume: bool
) -> Outcome:
    start = time.perf_counter()
    files = tuple(targets.values())
    if resume and all(file.exists() for file in files):
        return Outcome(path, files, 0.0)
    try:
        predictor.predict(path, targets)
    except DataError as error:
        return Outcome(path, (), 0.0, str(error))
    return Outcome(path, files, time.perf_counter() - start)


def _listed(failed: Mapping[str, str]) -> str:
    """A line each for the first few; reasons name their file or don't."""
    lines = [f"\n  {path}: {reason.removeprefix(f'{path}: ')}" for path, reason in failed.items()]
    more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "".join(lines[:SHOWN]) + more
