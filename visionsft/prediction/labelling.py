"""Labelling: the classes of whole images as one table, a line an image."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datamodules import DataError, GeoTiffClassificationDataModule
from visionsft.config import ClassificationConfig
from visionsft.errors import ConfigError, WriteError
from visionsft.evaluation.classifying import classify
from visionsft.evaluation.evaluating import progress
from visionsft.evaluation.label_thresholds import read_thresholds
from visionsft.evaluation.temperature import read_temperature
from visionsft.files import atomic_path
from visionsft.prediction.inputs import find_inputs
from visionsft.prediction.mapping import ScenePredictor
from visionsft.prediction.stills import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

TABLE = "predictions.csv"
"""In the folder of the predictions."""


@dataclass(frozen=True)
class LabelOptions:
    """What is said of each image."""

    top: int = 3
    """Most probable classes in a line; where an image can have several classes, all have a column instead."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ConfigError(f"top is {self.top}; allowed: 1 or more")


@dataclass(frozen=True)
class Labelled:
    """What became of one image."""

    path: str
    seconds: float
    probabilities: NDArray[np.float32] | None
    """(K,); None if it can't be used."""
    problem: str | None = None


def label_files(
    loaded: LoadedRun, inputs: Sequence[str | Path], out: Path, *, options: LabelOptions, overwrite: bool
) -> tuple[Path, list[Labelled]]:
    """Write ``predictions.csv`` into `out`: files, their classes and probabilities; what can't be used has no line.

    Columns: file, class, probability, class_2, probability_2... by falling probability; where an image can have
    several classes: file, classes (those that reach their thresholds, separated by semicolons), and the probability
    of each class in a column of its name.
    """
    assert isinstance(loaded.config, ClassificationConfig)
    several = loaded.config.task.multi_label
    if several and options != LabelOptions():
        raise ConfigError("top: is for images of one class; here every class has its column")
    scenes = isinstance(loaded.data, GeoTiffClassificationDataModule)
    paths = find_inputs(inputs, suffixes=ScenePredictor.suffixes if scenes else IMAGE_SUFFIXES)
    target = out / TABLE
    if target.exists() and not overwrite:
        raise WriteError(f"{target}: exists; --overwrite replaces it")
    names = loaded.data.classes.names
    found = read_temperature(loaded.run)
    temperature = found.value if found else 1.0
    thresholds = read_thresholds(loaded.run, "best", names, temperature=temperature) if several else None
    labelled = [_label(loaded, path, temperature) for path in progress(paths, "predicting")]
    used = [(each.path, each.probabilities) for each in labelled if each.probabilities is not None]
    if used:
        with atomic_path(target) as temporary:
            _write(temporary, used, names, thresholds, top=min(options.top, len(names)))
    return target, labelled


def _label(loaded: LoadedRun, path: str, temperature: float) -> Labelled:
    start = time.perf_counter()
    try:
        sample = loaded.data.prediction_dataset([path])[0]
    except DataError as error:
        return Labelled(path, time.perf_counter() - start, None, str(error))
    probabilities = classify(loaded, sample["image"][None], temperature=temperature)[0]
    return Labelled(path, time.perf_counter() - start, probabilities)


def _write(
    path: Path,
    rows: Sequence[tuple[str, NDArray[np.float32]]],
    names: Sequence[str],
    thresholds: NDArray[np.float64] | None,
    *,
    top: int,
) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if thresholds is not None:
            writer.writerow(["file", "classes", *names])
            for name, found in rows:
                given = [names[k] for k in np.flatnonzero(found >= thresholds).tolist()]
                writer.writerow([name, ";".join(given), *(f"{value:.6g}" for value in found.tolist())])
            return
        ranks = ["" if rank == 1 else f"_{rank}" for rank in range(1, top + 1)]
        writer.writerow(
            ["file", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability"))]
        )
        for name, found in rows:
            best = np.argsort(-found, kind="stable")[:top].tolist()
            writer.writerow([name, *(text for k in best for text in (names[k], f"{found[k]:.6g}"))])
