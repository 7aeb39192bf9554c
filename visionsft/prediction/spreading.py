"""Spreading: scenes, and row bands of large ones, over the processes of a Ray cluster.

Workers need to see the run folder and the scenes under the paths that are given here, and nothing else: what they
compute comes back as finished bands, and one process writes all files. A worker that dies costs the rows it was at.
The files are those of a single process with as many threads as a worker has (one), byte for byte; with other numbers
of threads sums are rounded in another order, so that pixels of a near tie may differ.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datamodules import DataError
from datamodules.paths import is_remote
from visionsft.errors import ConfigError
from visionsft.evaluation.operating import AppliedPoint
from visionsft.prediction.backends import Choice
from visionsft.prediction.mapping import SceneOptions, ScenePredictor, remark
from visionsft.prediction.predicting import Outcome
from visionsft.prediction.scenes import Band, SceneSource
from visionsft.runs import Run

if TYPE_CHECKING:
    from visionsft.prediction.blending import Grid
    from visionsft.prediction.maps import MapWriter

RETRIES = 3
"""Times that rows are computed again after their worker has died."""


@dataclass
class _Scene:
    """A scene on its way."""

    path: str
    targets: dict[str, Path]
    source: SceneSource
    grid: Grid
    writer: MapWriter
    closing: ExitStack
    """Of the writer."""
    started: float
    pending: int = 0
    """Row ranges that haven't come back."""
    problem: str | None = None


def predict_on_ray(predictor: ScenePredictor, jobs: Mapping[str, dict[str, Path]]) -> Iterator[Outcome]:
    """What becomes of each scene, in their order. jobs: the files of each scene, by its path.

    Connects to the cluster that RAY_ADDRESS names, else starts one on this machine.
    """
    ray = _ray()
    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0))  # Ray hides them from workers that don't ask for one
    compute = ray.remote(num_cpus=1, num_gpus=min(gpus, 1), max_retries=RETRIES)(_compute)
    run = str(predictor.loaded.run.path.resolve())
    workers = max(1, gpus or int(have.get("CPU", 1)))
    waiting: deque[tuple[_Scene, Any]] = deque()
    for path, targets in jobs.items():
        try:
            scene = _begin(predictor, path, targets)
        except DataError as error:
            yield from _drain(predictor, waiting, ray, leave=0)
            yield Outcome(path, (), 0.0, str(error))
            continue
        chosen = cast(Choice, predictor.backend(scene.source, scene.grid).name)
        options = replace(predictor.options, backend=chosen)
        ranges = row_ranges(scene.grid.rows.index(scene.writer.rows), scene.grid.rows.count, workers)
        scene.pending = len(ranges)
        if not ranges:  # only its end was missing
            yield from _drain(predictor, waiting, ray, leave=0)
            yield _end(predictor, scene)
        for first, last in ranges:
            waiting.append((scene, compute.remote(run, options, predictor.point, _absolute(path), first, last)))
            yield from _drain(predictor, waiting, ray, leave=2 * workers)
    yield from _drain(predictor, waiting, ray, leave=0)


def row_ranges(first: int, count: int, workers: int) -> list[tuple[int, int]]:
    """Ranges of the grid's rows from `first` on, two for each worker; each costs a row of tiles on top."""
    step = max(2, -(-(count - first) // (2 * workers)))
    return [(row, min(row + step, count)) for row in range(first, count, step)]


def _begin(predictor: ScenePredictor, path: str, targets: dict[str, Path]) -> _Scene:
    source = predictor.open(path)
    grid = predictor.plan(source)
    closing = ExitStack()
    writer = closing.enter_context(predictor.writer(path, source, grid, targets))
    return _Scene(path, targets, source, grid, writer, closing, time.perf_counter())


def _drain(
    predictor: ScenePredictor, waiting: deque[tuple[_Scene, Any]], ray: Any, *, leave: int
) -> Iterator[Outcome]:
    """Write what comes back, in order, until no more than `leave` row ranges are out."""
    while len(waiting) > leave:
        scene, answer = waiting.popleft()
        scene.pending -= 1
        if scene.problem is None:
            try:
                for band in ray.get(answer):
                    scene.writer.add(band)
            except DataError as error:
                scene.problem = str(error)
        if scene.pending == 0:
            yield _end(predictor, scene)


def _end(predictor: ScenePredictor, scene: _Scene) -> Outcome:
    with scene.closing:
        if scene.problem is None:
            predictor.finish(scene.source, scene.writer, scene.targets)
    files = () if scene.problem else tuple(scene.targets.values())
    seconds = time.perf_counter() - scene.started
    return Outcome(scene.path, files, seconds, scene.problem, remark(scene.source))


def _compute(
    run: str, options: SceneOptions, point: AppliedPoint | None, path: str, first: int, last: int
) -> list[Band]:
    """In a worker: finished rows of a scene."""
    predictor = _predictor(run, options, point)
    source = predictor.open(path)
    return list(predictor.bands(source, predictor.plan(source), first=first, last=last))


@lru_cache(1)
def _predictor(run: str, options: SceneOptions, point: AppliedPoint | None) -> ScenePredictor:
    """One a worker: loading the model takes longer than a tile."""
    from visionsft.training.loading import load_run

    return ScenePredictor(load_run(Run.open(run), "best"), options, point=point)


def _absolute(path: str) -> str:
    return path if is_remote(path) else str(Path(path).resolve())


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError("--engine ray needs pip install 'visionsft[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    return ray
