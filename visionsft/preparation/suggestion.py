"""Suggestion: which unlabelled images, or windows of scenes, to label next, and why.

A pool is seen once by a trained run: `visionsft.preparation.viewing` says how unsure the model is of each image, and
where it lies among the features of the others and of the run's training samples. `visionsft.preparation.coverage`
chooses from both: next comes what has the largest product of uncertainty and of the distance to all that was trained
on or suggested before. Of near duplicates, such as neighbouring frames of a video, one is suggested at most.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray

from datamodules import ClassificationDataModule, DataError, DetectionDataModule
from datamodules.batch import IGNORE, Window
from datamodules.paths import is_remote
from datamodules.raster import Grid
from datamodules.scenes import SceneModule
from datamodules.tiling import tile
from visionsft.config import ClassificationConfig
from visionsft.errors import ConfigError, WriteError, first_line
from visionsft.evaluation.answers import RegionSource, infer
from visionsft.evaluation.classifying import classify
from visionsft.evaluation.evaluating import progress, save_figure
from visionsft.evaluation.label_thresholds import read_thresholds
from visionsft.evaluation.metrics import predict_classes
from visionsft.evaluation.pictures import Rgb, display, overlay, picture_sheet
from visionsft.files import atomic_path
from visionsft.models.rotated import rotated_iou
from visionsft.prediction.detections import detection_predictor, draw_objects
from visionsft.prediction.inputs import find_inputs
from visionsft.prediction.mapping import ScenePredictor
from visionsft.prediction.slicing import detect_images
from visionsft.prediction.stills import IMAGE_SUFFIXES, frame_size
from visionsft.preparation.coverage import Cover, choose
from visionsft.preparation.embedding import (
    Image,
    Losses,
    has_cells,
    images_of_split,
    open_scene,
    whole_image,
)
from visionsft.preparation.embeddingfiles import Place
from visionsft.preparation.preannotations import (
    Annotations,
    Ranked,
    annotate_map,
    annotate_objects,
    write_coco,
    write_labels,
    write_layers,
)
from visionsft.preparation.viewing import Viewer, Views
from visionsft.runs import Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

COUNT = 50
KNOWN = 2000
"""Training samples at most that suggestions should differ from, evenly spaced."""
CLOSEST = 0.35
"""Distance (see `coverage.Distances`) up to which two images are near duplicates."""
LEAST_VALID = 0.25
"""Share of an image or window that must be valid."""
SHOWN = 8
"""Files named at most."""
PICTURES = 40
"""Of the overview, at most, and..."""
SIDE = 360
"""...their longer side in pixels."""
FILES = (
    "suggestions.csv",
    "pool.csv",
    "overview.png",
    "annotations.coco.json",
    "annotations.csv",
    *(f"{name}{ending}" for name in ("windows", "annotations") for ending in (".geojson", "-pixels.gpkg")),
)
"""All that can be written, in the folder of the suggestions."""
_WINDOW = ("row", "col", "height", "width")


@dataclass(frozen=True)
class Suggestion:
    """One image to label."""

    rank: int
    """From 1."""
    place: Place
    uncertainty: float
    distance: float | None
    """To the nearest training sample or better suggestion; None where there was none."""
    nearest: str
    """That one's id."""
    classes: tuple[str, ...]
    """Of which the model is most uncertain, with their shares of the uncertainty."""
    reason: str
    """A sentence or two."""


@dataclass(frozen=True)
class Suggestions:
    """What `suggest` has written."""

    out: Path
    suggestions: tuple[Suggestion, ...]
    wanted: int
    pool: int
    """Images or windows that were ranked."""
    files: tuple[Path, ...]
    failed: dict[str, str]
    """Why a file of the pool couldn't be used, by path."""
    left_out: int
    """Windows or images with too little that is valid..."""
    labelled: tuple[str, ...]
    """Files of the pool that are in the run's data already."""
    note: str
    """What the suggestions were compared with."""

    def table(self) -> str:
        """A few lines of text, with the first suggestions."""
        lines = [f"{len(self.suggestions)} of {self.pool:,} suggested; {self.note}"]
        if len(self.suggestions) < min(self.wanted, self.pool):
            lines.append(f"not {self.wanted}: all others are near duplicates of these or of what was trained on")
        elif self.wanted > self.pool:
            lines.append(f"not {self.wanted}: the pool has no more")
        if self.left_out:
            lines.append(f"{self.left_out} left out: less than {LEAST_VALID:.0%} of them is valid")
        if self.labelled:
            lines.append(f"{len(self.labelled)} files left out: the run's data has them ({_some(self.labelled)})")
        lines += [f"{each.rank:4}  {each.place.id}: {each.reason}" for each in self.suggestions[:SHOWN]]
        return "\n".join([*lines, *(f"written: {path}" for path in self.files)])

    def check(self) -> None:
        """Raise a DataError that names the files that couldn't be used, if there are any."""
        if self.failed:
            raise DataError(f"{len(self.failed)} files of the pool can't be used:{_listed(self.failed)}")


def suggest(
    run: Run | str | Path,
    pool: Sequence[str | Path] | str | Path,
    *,
    out: str | Path,
    count: int = COUNT,
    overwrite: bool = False,
) -> Suggestions:
    """Write to the folder `out` which `count` images of the pool to label next, best first, with what the run says.

    pool: files, folders (what lies directly in them), globs, .txt lists of them. Scenes are ranked window by window,
    none larger than the training's chips. What is part of the run's own data is left out. A file that can't be used
    doesn't keep the others from being ranked; it is among `failed` then.
    """
    from visionsft.training.loading import load_run  # imported late, as in visionsft.evaluation

    if count < 1:
        raise ConfigError(f"count is {count}; allowed: 1 or more")
    run, out = run if isinstance(run, Run) else Run.open(run), Path(out)
    _check_target(out, overwrite=overwrite)
    _check_packages()
    loaded = load_run(run)
    scenes = isinstance(loaded.data, SceneModule)
    given = [pool] if isinstance(pool, str | Path) else pool
    paths = find_inputs(given, suffixes=ScenePredictor.suffixes if scenes else IMAGE_SUFFIXES)
    viewer, own = Viewer(loaded), _own_data(loaded)
    labelled = tuple(path for path in paths if _resolved(path) in own.files)
    losses, left_out = Losses(), [0]
    new = [path for path in paths if _resolved(path) not in own.files]
    seen = viewer.view(_usable(_images(loaded.data, new, losses), left_out))
    if not seen.places:
        raise DataError(_say_nothing(losses.failed, left_out[0], labelled))
    known = viewer.view(_usable(own.images(loaded.data), [0]))
    features = seen.features
    learned = known.features if known.places else np.empty((0, features.shape[1]), np.float16)
    cover = choose(features, np.array(seen.amounts), known=learned, count=count, closest=CLOSEST)
    suggestions = _explain(loaded, seen, known.places, cover)
    files = _write(out, loaded, seen, suggestions, cover)
    return Suggestions(
        out, suggestions, count, len(seen.places), files, losses.failed, left_out[0], labelled, own.note(known)
    )


# ----------------------------------------------------------------------------------------------- what is read


@dataclass(frozen=True)
class _OwnData:
    """What the run has been trained on and measured with, as far as it is still there."""

    files: frozenset[str] = frozenset()
    """Of all splits, but not scenes that are labelled here and there only."""
    trains: bool = False
    """Whether there is anything in train."""
    scenes: bool = False
    problem: str | None = None
    losses: Losses = field(default_factory=Losses)

    def images(self, data: Any) -> Iterator[Image]:
        return images_of_split(data, "train", self.losses, most=KNOWN) if self.trains else iter(())

    def note(self, known: Views) -> str:
        """What suggestions were compared with."""
        if self.problem is not None:
            return f"the run's training data can't be read, so what it covers wasn't considered ({self.problem})"
        return f"compared with {len(known.places):,} {'windows of scenes' if self.scenes else 'images'} of train"


def _own_data(loaded: LoadedRun) -> _OwnData:
    normalisation = loaded.data.normalisation
    try:
        loaded.data.setup("test")
    except (DataError, OSError) as error:
        # a scan that fails half-way leaves traces
        del vars(loaded)["data"]
        return _OwnData(problem=first_line(error))
    loaded.data.normalisation = normalisation
    items = loaded.data.items
    labelled = [] if getattr(loaded.data, "sparse", False) else [each for split in items.values() for each in split]
    files = frozenset(_resolved(item.image) for item in labelled)
    return _OwnData(files, bool(items["train"]), isinstance(loaded.data, SceneModule))


def _resolved(path: str) -> str:
    return path if is_remote(path) else os.path.realpath(path)


def _images(data: Any, paths: Sequence[str], losses: Losses) -> Iterator[Image]:
    """Frames and patches whole, scenes window by window."""
    for path in progress(paths, "viewing"):
        try:
            if has_cells(data):
                yield from _windows(data, path)
            else:
                yield whole_image(data, path)
        except DataError as error:
            losses.failed[path] = str(error)


def _windows(data: Any, path: str) -> Iterator[Image]:
    """All of a scene in the fewest windows of nearly one size that aren't larger than the training's chips."""
    source, grid = open_scene(data, path)
    height, width = (-(-length // -(-length // min(data.chip))) for length in source.shape)
    for each in tile(Window(0, 0, *source.shape), size=(height, width)):
        row, col = each.window.row, each.window.col
        yield _read(source, grid, Place(f"{path}@{row},{col}", path, path, "", row, col, height, width))


def _read(source: RegionSource, grid: Grid, place: Place) -> Image:
    pixels, valid = source.read(Window(place.row, place.col, place.height, place.width))
    place = replace(place, valid=float(valid.mean()))
    return Image(torch.from_numpy(np.ascontiguousarray(pixels)), valid, place, grid)


def _usable(images: Iterator[Image], left_out: list[int]) -> Iterator[Image]:
    """Those that show enough; left_out[0] counts the others."""
    for image in images:
        if image.valid.mean() < LEAST_VALID:
            left_out[0] += 1
        else:
            yield image


def _say_nothing(failed: dict[str, str], left_out: int, labelled: Sequence[str]) -> str:
    said = [
        f"{len(labelled)} files are in the run's data already ({_some(labelled)})" if labelled else "",
        f"less than {LEAST_VALID:.0%} of {left_out} images or windows is valid" if left_out else "",
        f"{len(failed)} files can't be used:{_listed(failed)}" if failed else "",
    ]
    return f"nothing in the pool can be suggested: {'; '.join(filter(None, said))}"


# -------------------------------------------------------------------------------------------------- reasons


def _explain(loaded: LoadedRun, seen: Views, known: Sequence[Place], cover: Cover) -> tuple[Suggestion, ...]:
    names = loaded.data.classes.names
    amounts, far = np.sort(seen.amounts), np.sort(cover.known)
    found = []
    for rank, index in enumerate(cover.chosen, 1):
        distance, nearest = cover.distances[rank - 1], cover.nearest[rank - 1]
        other = None if nearest is None else seen.places[nearest] if nearest >= 0 else known[-1 - nearest]
        classes = tuple(f"{names[k]} {share:.0%}" for k, share in seen.worst[index])
        amount = seen.amounts[index]
        reason = f"uncertainty {amount:.3g}, above {_below(amounts, amount):.0%} of the pool"
        reason += f" (mostly {', '.join(classes)})" if classes else ""
        if other is None:
            reason += "; the first, as there is nothing to compare it with"
        else:
            what = "training sample" if nearest is not None and nearest < 0 else "suggestion"
            reason += f"; {distance:.2f} from the nearest {what}, {Path(other.id).name}"
            if math.isfinite(cover.known[index]):
                reason += f", and farther from training than {_below(far, cover.known[index]):.0%} of the pool"
        found.append(
            Suggestion(
                rank, seen.places[index], amount, None if other is None else distance,
                "" if other is None else other.id, classes, reason,
            )
        )  # fmt: skip
    return tuple(found)


def _below(ordered: NDArray[Any], value: float) -> float:
    """Share of the values that are smaller."""
    return float(np.searchsorted(ordered, value)) / len(ordered)


# -------------------------------------------------------------------------------------------------- writing


def _check_target(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise WriteError(f"{out}: is a file; a folder is needed")
    if out.is_dir() and not overwrite and (there := sorted(out.iterdir())):
        raise WriteError(f"{out}: exists, with {there[0].name} in it; --overwrite replaces earlier suggestions")


def _check_packages() -> None:
    try:
        import pyarrow  # noqa: F401
        import pyogrio  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"suggestions need pip install 'visionsft[vectors]' ({error})") from error


def _write(
    out: Path, loaded: LoadedRun, seen: Views, suggestions: Sequence[Suggestion], cover: Cover
) -> tuple[Path, ...]:
    """All files; those of earlier suggestions are removed first."""
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    _write_suggestions(out / "suggestions.csv", suggestions)
    _write_pool(out / "pool.csv", seen, cover)
    pictures, more = _annotate(out, loaded, suggestions)
    title = f"{len(pictures)} of {len(suggestions)} suggestions, with what {loaded.run.name} sees in them"
    save_figure(picture_sheet(pictures, title=title), out / "overview.png")
    return (out / "suggestions.csv", out / "pool.csv", *more, out / "overview.png")


def _write_suggestions(path: Path, suggestions: Sequence[Suggestion]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["rank", "item", "file", *_WINDOW, "uncertainty", "distance", "nearest", "uncertain_classes", "reason"]
        )
        for each in suggestions:
            place, distance = each.place, "" if each.distance is None else f"{each.distance:.4f}"
            writer.writerow([
                each.rank, place.id, place.path, *(getattr(place, name) for name in _WINDOW),
                f"{each.uncertainty:.6g}", distance, each.nearest, ";".join(each.classes), each.reason,
            ])  # fmt: skip


def _write_pool(path: Path, seen: Views, cover: Cover) -> None:
    ranks = {index: rank for rank, index in enumerate(cover.chosen, 1)}
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        columns = ["uncertainty", "distance_to_training", "distance_to_all", "rank"]
        writer.writerow(["item", "file", *_WINDOW, "valid", *columns])
        for index, place in enumerate(seen.places):
            distances = (f"{value:.4f}" if math.isfinite(value) else "" for value in
                         (cover.known[index].item(), cover.left[index].item()))  # fmt: skip
            writer.writerow([
                place.id, place.path, *(getattr(place, name) for name in _WINDOW), f"{place.valid:.3f}",
                f"{seen.amounts[index]:.6g}", *distances, ranks.get(index, ""),
            ])  # fmt: skip


def _annotate(
    out: Path, loaded: LoadedRun, suggestions: Sequence[Suggestion]
) -> tuple[list[tuple[str, Rgb]], list[Path]]:
    """Pictures with captions for the overview, and the files written."""
    data, names = loaded.data, loaded.data.classes.names
    look, read = _looker(loaded), _reader(data)
    pictures: list[tuple[str, Rgb]] = []
    frames: list[tuple[str, tuple[int, int], Annotations]] = []
    windows: list[Ranked] = []
    labels: list[tuple[str, str, float | None]] = []
    for each in progress(suggestions, "annotating"):
        image = read(each.place)
        seen = look(image)
        if seen.label is not None:
            labels.append((each.place.path, *seen.label))
        if image.grid is not None:
            why: dict[str, Any] = {"uncertainty": each.uncertainty, "reason": each.reason}
            if seen.label is not None:
                why["class"] = seen.label[0]
            windows.append(Ranked(each.rank, each.place, image.grid, why, seen.annotations))
        elif seen.annotations is not None:
            size = frame_size(each.place.path)
            scale = Affine.scale(size[1] / image.valid.shape[1], size[0] / image.valid.shape[0])
            frames.append((each.place.path, size, seen.annotations.placed(scale)))
        if len(pictures) < PICTURES:
            caption = f"{each.rank}: {Path(each.place.id).name}\n{'; '.join(each.classes)}"
            pictures.append((caption, _shrunk(seen.picture)))
    files = write_layers(out, windows, names=names)
    if frames:
        write_coco(out / "annotations.coco.json", frames, names=names)
        files.append(out / "annotations.coco.json")
    if labels:
        write_labels(out / "annotations.csv", labels)
        files.append(out / "annotations.csv")
    return pictures, files


def _reader(data: Any) -> Any:
    """place -> its image, read again."""
    opened = cache(lambda path: open_scene(data, path))

    def read(place: Place) -> Image:
        return _read(*opened(place.path), place) if has_cells(data) else whole_image(data, place.path)

    return read


@dataclass(frozen=True)
class _Seen:
    """What the run says of an image, as it would predict it."""

    picture: Rgb
    annotations: Annotations | None = None
    label: tuple[str, float | None] | None = None


def _looker(loaded: LoadedRun) -> Any:
    """image -> what the run says of it."""
    data = loaded.data

    def show(image: Image) -> Rgb:
        return display(
            image.pixels, mean=data.normalisation.mean, std=data.normalisation.std, bands=data.bands,
            eight_bit=data.dtype == np.uint8, valid=image.valid,
        )  # fmt: skip

    if isinstance(data, DetectionDataModule):
        predictor = detection_predictor(loaded, turned_iou=rotated_iou)
        slices = predictor.usual_slices()

        def detect(image: Image) -> _Seen:
            pair = image.pixels, torch.from_numpy(image.valid)
            found = next(iter(detect_images(predictor.detector, [pair], slices=slices)))
            return _Seen(draw_objects(show(image), found, data.classes), annotate_objects(found))

        return detect
    if isinstance(data, ClassificationDataModule):
        name = _namer(loaded)
        return lambda image: _Seen(show(image), label=name(classify(loaded, image.pixels[None])[0]))

    def segment(image: Image) -> _Seen:
        classes = predict_classes(infer(loaded, image.pixels[None]))[0].cpu().numpy()
        classes[~image.valid] = IGNORE
        return _Seen(overlay(show(image), classes, data.classes.colours), annotate_map(classes))

    return segment


def _namer(loaded: LoadedRun) -> Any:
    """probabilities (K,) -> the class and its probability, or the classes that reach their thresholds."""
    assert isinstance(loaded.config, ClassificationConfig)
    names = loaded.data.classes.names
    if not loaded.config.task.multi_label:
        return lambda found: (names[int(found.argmax())], float(found.max()))
    thresholds = read_thresholds(loaded.run, "best", names)
    return lambda found: (";".join(names[k] for k in np.flatnonzero(found >= thresholds).tolist()), None)


def _shrunk(picture: Rgb) -> Rgb:
    share = min(1.0, SIDE / max(picture.shape[:2]))
    size = tuple(max(1, round(side * share)) for side in picture.shape[1::-1])
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _listed(failed: dict[str, str]) -> str:
    """A line each for the first few."""
    lines = [f"\n  {path}: {why.removeprefix(f'{path}: ')}" for path, why in failed.items()]
    return "".join(lines[:SHOWN]) + (f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
