"""Classifying: how good a classification run's model is on one split, as numbers, files and pictures.

Every image is seen once; its probabilities and its true classes are kept (``per_sample.npz``), from which all
numbers can be remade without the model.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules import ClassificationDataModule
from datamodules.batch import Item
from datamodules.labelled import LabelledSample
from visionsft.config import ClassificationConfig
from visionsft.errors import RunError
from visionsft.evaluation.counts import FILE, mean_brightness
from visionsft.evaluation.efficiency import Efficiency, measure
from visionsft.evaluation.evaluating import (
    GALLERY,
    WARNINGS,
    WORST,
    check_split,
    describe_slices,
    describe_source,
    marked,
    progress,
    remove_scores,
    save_figure,
    write_slices,
)
from visionsft.evaluation.intervals import Unit
from visionsft.evaluation.label_calibration import LabelCalibration, temper
from visionsft.evaluation.label_gallery import SAID, write_label_gallery
from visionsft.evaluation.label_intervals import LabelIntervals, label_intervals
from visionsft.evaluation.label_slices import slice_answers
from visionsft.evaluation.label_thresholds import (
    DEFAULT,
    LabelThresholds,
    read_thresholds,
    store_thresholds,
)
from visionsft.evaluation.metrics import (
    LABEL_DEFINITIONS,
    ClassificationScores,
    best_thresholds,
    decide,
    label_counts,
    one_hot,
    summarise_labels,
)
from visionsft.evaluation.metrics.classification import certainty
from visionsft.evaluation.operating import PointPrice, find_point
from visionsft.evaluation.pictures import confusion_figure, display, picture_sheet, reliability_figure
from visionsft.evaluation.slices import Metadata, Slices, choose_kinds
from visionsft.evaluation.temperature import read_temperature
from visionsft.files import atomic_path, write_text
from visionsft.models.views import average_labels
from visionsft.runs import Checkpoint, Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

RULE = "lowest probability of the true class (of several labels: of the most mistaken one)"
"""By which the worst images are chosen."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model said of each image of a split, in the loader's order."""

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    """(N, K)."""
    labels: NDArray[Any]
    """(N,) int64 class index, or (N, K) float32 of 0 and 1."""
    brightness: NDArray[np.float64]
    """(N,), see `mean_brightness`."""

    def take(self, index: NDArray[np.intp]) -> Answers:
        """The images of these indices."""
        items = tuple(self.items[i] for i in index.tolist())
        columns = (self.probabilities[index], self.labels[index], self.brightness[index])
        return Answers(items, self.classes, *columns)

    def decided(self, thresholds: NDArray[np.float64] | None) -> NDArray[np.bool_]:
        """(N, K): the classes given to each image."""
        return decide(self.probabilities, thresholds)

    @property
    def truth(self) -> NDArray[np.bool_]:
        """(N, K)."""
        return one_hot(self.labels, len(self.classes))

    @property
    def certainty(self) -> NDArray[np.float32]:
        """(N,) probability of what is true: of the class, or the lowest one among all answers of an image."""
        return certainty(self.probabilities, self.labels)


@dataclass(frozen=True)
class ClassificationEvaluation:
    """The result of `evaluate` for a classification run."""

    run: str
    split: str
    checkpoint: str
    scores: ClassificationScores
    intervals: LabelIntervals
    answers: Answers
    calibration: LabelCalibration
    thresholds: NDArray[np.float64] | None
    """(K,) where an image can have several classes."""
    folder: Path
    """Where scores.json, table.txt, per_sample.npz, confusion.csv, confusion.png, reliability.png,
    worst.png and gallery/ are."""
    skipped: int
    """Files of the data set that were left out (on_error: skip)."""
    slices: Slices | None = None
    efficiency: Efficiency | None = None
    """If it was asked for."""
    price: PointPrice | None = None
    """Of the run's thresholds, if it has any."""

    @property
    def decided(self) -> NDArray[np.bool_]:
        """(N, K): the classes given to each image."""
        return self.answers.decided(self.thresholds)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(K, K) images, rows = truth; of several labels (K, 2, 2), of each class: not it and it."""
        truth, decided = self.answers.truth.astype(np.int64), self.decided.astype(np.int64)
        if self.thresholds is None:
            return truth.T @ decided
        right, true, given = label_counts(self.decided, self.answers.truth).sum(axis=0)
        others = len(truth) - true - given + right
        return np.stack([np.stack([others, given - right], -1), np.stack([true - right, right], -1)], -2)

    @property
    def warning(self) -> str | None:
        """What speaks against taking the numbers for evidence."""
        return WARNINGS.get(self.split)

    @property
    def title(self) -> str:
        """Which run, split and checkpoint, and how many images."""
        images = f"{self.scores.images:,} images"
        return f"{self.run} · split {self.split} · checkpoint {self.checkpoint} · {images}"

    def table(self) -> str:
        """What the command line prints and ``table.txt`` holds."""
        tables = [self.scores.table(), self.intervals.table(self.scores)]
        tables += ["\n".join(self.calibration.lines())]
        tables += ["\n".join(self.price.lines())] if self.price else []
        tables += [self.slices.table()] if self.slices else []
        tables += [self.efficiency.table()] if self.efficiency else []
        lines = [self.title, "", *"\n\n".join(tables).splitlines(), "", f"the worst images ({RULE}):"]
        lines += [f"  {self.answers.certainty[i]:.4f}  {self.answers.items[i].id}" for i in self.worst(5)]
        if self.skipped:
            lines += [
                "",
                f"{self.skipped} unusable files of the data set were skipped; scores.json names them.",
            ]
        if self.warning:
            lines = [f"!! {self.warning}", "", *lines, "", f"!! {self.warning}"]
        return "\n".join(lines)

    def worst(self, count: int = WORST) -> list[int]:
        """Indices of the images of lowest certainty, the worst first."""
        return np.argsort(self.answers.certainty, kind="stable")[:count].tolist()

    def facts(self, index: int) -> dict[str, Any]:
        """An image and its answer, for JSON."""
        answers, decided = self.answers, self.decided[index]
        order = np.argsort(-answers.probabilities[index], kind="stable")[:SAID].tolist()
        return {
            "id": answers.items[index].id,
            "group": answers.items[index].group,
            "certainty": float(answers.certainty[index]),
            "right": bool((decided == answers.truth[index]).all()),
            "true": [answers.classes[k] for k in np.flatnonzero(answers.truth[index]).tolist()],
            "predicted": [answers.classes[k] for k in np.flatnonzero(decided).tolist()],
            "said": {answers.classes[k]: float(answers.probabilities[index, k]) for k in order},
        }

    def describe(self, index: int) -> str:
        """Three lines about an image: its id, its classes, and those that it was given."""
        answers = self.answers
        true = [name for name, on in zip(answers.classes, answers.truth[index], strict=True) if on]
        given = [
            f"{answers.classes[k]} {answers.probabilities[index, k]:.2f}"
            for k in np.flatnonzero(self.decided[index]).tolist()
        ]
        lines = (
            answers.items[index].id,
            f"is {', '.join(true) or 'none'}",
            f"said {', '.join(given) or 'none'}",
        )
        return "\n".join(lines)


def evaluate_classes(
    run: Run,
    *,
    split: str = "test",
    checkpoint: Checkpoint = "best",
    group_by: Unit = "group",
    slice_by: Sequence[str] = (),
    metadata: str | Path | None = None,
    efficiency: bool = False,
) -> ClassificationEvaluation:
    """Score a classification run on a split; writes ``<run>/evaluation/<split>/``. See `evaluate_segmentation`."""
    loaded = _load(run, checkpoint, split)
    known = None if metadata is None else Metadata.read(metadata)
    kinds = choose_kinds(slice_by, loaded.data.items[split], known)
    temperature, several = read_temperature(run, checkpoint), is_multi_label(loaded)
    value = temperature.value if temperature else 1.0
    answers = answer(loaded, split, temperature=value)
    thresholds = read_thresholds(run, checkpoint, answers.classes, temperature=value) if several else None
    groups = [item.group if group_by == "group" else item.id for item in answers.items]
    scored = answers.probabilities, answers.labels
    evaluation = ClassificationEvaluation(
        run=run.name,
        split=split,
        checkpoint=checkpoint,
        scores=summarise_labels(*scored, answers.classes, thresholds=thresholds),
        intervals=label_intervals(*scored, groups, answers.classes, unit=group_by, thresholds=thresholds),
        answers=answers,
        calibration=LabelCalibration.of(
            answers.probabilities, answers.truth, groups, several=several, unit=group_by, temperature=temperature
        ),
        thresholds=thresholds,
        folder=run.evaluation(split),
        skipped=len(loaded.data.skipped),
        slices=slice_answers(answers, kinds, thresholds=thresholds, metadata=known, unit=group_by),
        efficiency=_measure(loaded, split) if efficiency else None,
        price=_price(run, checkpoint, answers, thresholds) if thresholds is not None else None,
    )
    _write(evaluation, loaded, run.checkpoint(checkpoint))
    return evaluation


def _price(
    run: Run, checkpoint: Checkpoint, answers: Answers, thresholds: NDArray[np.float64]
) -> PointPrice | None:
    """What the run's thresholds change, in place of 0.5 for all."""
    point = find_point(run, answers.classes, checkpoint)
    if point is None:
        return None
    plain, ruled = (
        summarise_labels(answers.probabilities, answers.labels, answers.classes, thresholds=each).per_class
        for each in (np.full(len(thresholds), DEFAULT), thresholds)
    )
    return PointPrice.of(point, plain, ruled, without=f"probability >= {DEFAULT:g}")


def choose_label_thresholds(run: Run | str | Path, *, checkpoint: Checkpoint = "best") -> LabelThresholds:
    """Choose the threshold of each class on validation, and keep them in the run's ``thresholds.json``."""
    run = run if isinstance(run, Run) else Run.open(run)
    config = run.config
    if not (isinstance(config, ClassificationConfig) and config.task.multi_label):
        raise RunError(
            f"{run.path}: an image has one class here, the most probable one, so it needs no thresholds"
        )
    found = read_temperature(run, checkpoint)
    temperature = found.value if found else 1.0
    answers = answer(_load(run, checkpoint, "val"), "val", temperature=temperature)
    values = best_thresholds(answers.probabilities, answers.truth)
    plain, tuned = (
        summarise_labels(answers.probabilities, answers.labels, answers.classes, thresholds=each)
        for each in (np.full(len(values), DEFAULT), values)
    )
    chosen = dict(zip(answers.classes, values.tolist(), strict=True))
    file = store_thresholds(run, checkpoint, chosen, temperature=temperature)
    return LabelThresholds(run.name, checkpoint, chosen, plain, tuned, file)


def classify(loaded: LoadedRun, image: Tensor, *, temperature: float = 1.0) -> NDArray[np.float32]:
    """image: (B, C, H, W) float32, normalised -> probabilities (B, K), with the run's `inference` views.

    temperature: divides the logits (of several views: the logits of their mean probabilities).
    """
    several = is_multi_label(loaded)
    found: NDArray[np.float32] = average_labels(loaded.logits, image, **loaded.views, multi_label=several).cpu().numpy()
    return found if temperature == 1 else temper(found, temperature, several=several)


def answer(loaded: LoadedRun, split: str, *, temperature: float = 1.0) -> Answers:
    """One pass over a split."""
    items: list[Item] = []
    probabilities: list[NDArray[np.float32]] = []
    labels: list[Tensor] = []
    brightness: list[NDArray[np.float64]] = []
    for batch in progress(loaded.data.evaluation_loader(split), f"evaluating {split}"):
        items += batch["item"]
        probabilities.append(classify(loaded, batch["image"], temperature=temperature))
        labels.append(batch["label"])
        brightness.append(mean_brightness(batch, loaded.data.normalisation))
    columns = np.concatenate(probabilities), torch.cat(labels).numpy(), np.concatenate(brightness)
    return Answers(tuple(items), loaded.data.classes.names, *columns)


def _load(run: Run, checkpoint: Checkpoint, split: str) -> LoadedRun:
    """The run's model with its data scanned; a split without images is refused."""
    from visionsft.training.loading import load_run  # its modules use this package's metrics

    loaded = load_run(run, checkpoint)
    loaded.data.setup("test")
    check_split(loaded.data, split)
    return loaded


def is_multi_label(loaded: LoadedRun) -> bool:
    """Whether an image can have several classes."""
    assert isinstance(loaded.config, ClassificationConfig)
    return loaded.config.task.multi_label


def _measure(loaded: LoadedRun, split: str) -> Efficiency:
    """Costs on the loader's first batch."""
    batch = next(iter(loaded.data.evaluation_loader(split)))
    return measure(loaded.model, lambda image: torch.from_numpy(classify(loaded, image)), batch["image"])


# ------------------------------------------------------------------------------------------------- writing


def _write(evaluation: ClassificationEvaluation, loaded: LoadedRun, checkpoint: Path) -> None:
    """All files, each whole or not at all; scores.json comes last and so stands for a complete set."""
    folder, answers = evaluation.folder, evaluation.answers
    remove_scores(folder)
    write_text(folder / "table.txt", evaluation.table() + "\n")
    with atomic_path(folder / FILE) as path:
        np.savez_compressed(
            path,
            ids=[item.id for item in answers.items],
            groups=[item.group for item in answers.items],
            classes=answers.classes,
            probabilities=answers.probabilities,
            labels=answers.labels,
            brightness=answers.brightness,
        )
    write_slices(evaluation.slices, folder)
    with atomic_path(folder / "confusion.csv") as path:
        _write_confusion(path, evaluation)
    heading = f"{evaluation.title}\naccuracy {evaluation.scores.accuracy:.4f}"
    _draw_reliability(evaluation, loaded.data)
    if evaluation.thresholds is None:
        figure = confusion_figure(
            evaluation.confusion, answers.classes, title=marked(heading, evaluation.warning), counted="images"
        )
        save_figure(figure, folder / "confusion.png")
    _write_worst(evaluation, loaded)
    report = _report(evaluation, loaded.data, checkpoint)
    write_text(
        folder / "scores.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def _draw_reliability(evaluation: ClassificationEvaluation, data: ClassificationDataModule) -> None:
    """reliability.png."""
    calibration, names = evaluation.calibration, evaluation.answers.classes
    heading = marked(
        f"{evaluation.title}\nexpected calibration error {calibration.ece:.4f}", evaluation.warning
    )
    several = evaluation.thresholds is not None
    figure = reliability_figure(
        calibration.histogram, names, data.classes.colours, title=heading, counted="images",
        what="all answers" if several else "the predicted class",
    )  # fmt: skip
    save_figure(figure, evaluation.folder / "reliability.png")


def _write_confusion(path: Path, evaluation: ClassificationEvaluation) -> None:
    """Images by true and predicted class; of several labels a line a class, of each against the rest."""
    names, confusion = evaluation.answers.classes, evaluation.confusion
    head: Sequence[str] = ["truth (images) / prediction", *names]
    if evaluation.thresholds is not None:
        head = ["class", "right without", "wrongly given", "missed", "right with"]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        rows = confusion.reshape(len(names), -1).tolist()
        writer.writerows([name, *row] for name, row in zip(names, rows, strict=True))


def _write_worst(evaluation: ClassificationEvaluation, loaded: LoadedRun) -> None:
    """worst.png and the gallery; the pictures are read a second time."""
    dataset = loaded.data.evaluation_loader(evaluation.split).dataset
    worst = evaluation.worst(GALLERY)
    pictures = [show_sample(loaded.data, dataset[i]) for i in worst]
    described = [(evaluation.describe(i), picture) for i, picture in zip(worst, pictures, strict=True)][:WORST]
    title = marked(f"{evaluation.title}: the worst {len(described)}\nrule: {RULE}", evaluation.warning)
    save_figure(picture_sheet(described, title=title), evaluation.folder / "worst.png")
    images = zip(map(evaluation.facts, worst), pictures, strict=True)
    write_label_gallery(evaluation.folder / "gallery", images, rule=RULE)


def show_sample(data: ClassificationDataModule, sample: LabelledSample) -> NDArray[np.uint8]:
    """An image as a picture (H, W, 3)."""
    return display(
        sample["image"],
        mean=data.normalisation.mean,
        std=data.normalisation.std,
        bands=data.bands,
        eight_bit=data.dtype == np.uint8,
        valid=sample["valid"],
    )


def _report(
    evaluation: ClassificationEvaluation, data: ClassificationDataModule, checkpoint: Path
) -> dict[str, Any]:
    """The content of scores.json."""
    answers = evaluation.answers
    facts = {
        "classes": data.classes.names,
        "bands": data.bands,
        "labels": data.labels_digest(evaluation.split),
    }
    thresholds = evaluation.thresholds
    return {
        "task": "classification",
        **describe_source(evaluation, data, checkpoint, facts=facts),
        "samples": len(answers.items),
        "groups": len({item.group for item in answers.items}),
        "scores": evaluation.scores.as_dict(),
        "intervals": evaluation.intervals.as_dict(),
        "calibration": evaluation.calibration.as_dict(answers.classes),
        "definitions": LABEL_DEFINITIONS,
        "confusion": evaluation.confusion.tolist(),
        "thresholds": None
        if thresholds is None
        else dict(zip(answers.classes, thresholds.tolist(), strict=True)),
        "operating_point": evaluation.price and evaluation.price.as_dict(),
        **describe_slices(evaluation.slices),
        "efficiency": evaluation.efficiency and evaluation.efficiency.as_dict(),
    }
