"""Evaluation: how good a run's model is on one split, as numbers, files and pictures in the run folder.

Every sample is seen once and counted into a confusion matrix of its own, and into the further counts of
`visionsft.evaluation.details`; all numbers come from their sums. The counts are kept (``per_sample.npz``), so
that numbers can be remade, sliced and resampled without the model.
"""

from __future__ import annotations

import csv
import heapq
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from datamodules import DataError, DataModule, SegmentationDataModule
from datamodules.batch import IGNORE, Batch, Item, Sample
from datamodules.datasets import EvaluationDataset
from datamodules.scenes import SceneReader
from datamodules.statistics import fingerprint
from visionsft.errors import nearest
from visionsft.evaluation.answers import answers, infer
from visionsft.evaluation.area import compare_areas
from visionsft.evaluation.counts import Counts, mean_brightness, save_counts
from visionsft.evaluation.details import Details
from visionsft.evaluation.efficiency import Efficiency, measure
from visionsft.evaluation.gallery import RULE, write_gallery
from visionsft.evaluation.intervals import FEW_GROUPS, SegmentationIntervals, Unit, segmentation_intervals
from visionsft.evaluation.map_slices import PARTS, slice_counts
from visionsft.evaluation.metrics import (
    DEFINITIONS,
    SegmentationScores,
    confusion_matrix,
    mean_iou,
    predict_classes,
    summarise,
)
from visionsft.evaluation.operating import find_point
from visionsft.evaluation.pictures import (
    Example,
    confusion_figure,
    contact_sheet,
    display,
    reliability_figure,
)
from visionsft.evaluation.slices import Metadata, Slices, choose_kinds
from visionsft.evaluation.temperature import read_temperature
from visionsft.files import atomic_path, sha256, write_text
from visionsft.runs import Checkpoint, Run, describe_environment

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

T = TypeVar("T")

WORST = 8
"""Samples on the contact sheet..."""
GALLERY = 24
"""...and in the gallery."""

WARNINGS = {
    "train": "TRAINING SPLIT, NO EVIDENCE: the model has learned these very samples. The numbers say how "
    "well it fits them, and nothing about any others.",
    "val": "Validation split, optimistic: the checkpoint was chosen by these numbers.",
}
"""Said wherever the numbers of that split are."""


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate_segmentation`."""

    run: str
    split: str
    checkpoint: str
    scores: SegmentationScores
    intervals: SegmentationIntervals
    by_image: SegmentationIntervals | None
    """Where there are too few groups for intervals: over single images, which are too narrow."""
    slices: Slices | None
    counts: Counts
    details: Details
    """Calibration, and boundaries where they were wanted."""
    folder: Path
    """Where scores.json, table.txt, per_sample.npz, confusion.csv, slices.csv, the pictures confusion.png,
    reliability.png and worst.png, and gallery/ are."""
    skipped: int
    """Files of the data set that were left out (on_error: skip)."""
    efficiency: Efficiency | None = None
    """If it was asked for."""

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(K, K) over the whole split, rows = truth."""
        return self.counts.confusions.sum(axis=0)

    @property
    def warning(self) -> str | None:
        """What speaks against taking the numbers for evidence."""
        return WARNINGS.get(self.split)

    @property
    def title(self) -> str:
        """Which run, split and checkpoint, and how many samples."""
        samples = f"{len(self.counts.items):,} samples"
        return f"{self.run} · split {self.split} · checkpoint {self.checkpoint} · {samples}"

    def table(self) -> str:
        """What the command line prints and ``table.txt`` holds."""
        tables = [self.scores.table(), self.intervals.table(self.scores)]
        tables += [self.by_image.table(self.scores)] if self.by_image else []
        tables += ["\n".join(self.details.lines())]
        price = self.details.price(self.scores)
        tables += ["\n".join(price.lines())] if price else []
        tables += [self.slices.table()] if self.slices else []
        tables += [self.efficiency.table()] if self.efficiency else []
        lines = [self.title, "", *"\n\n".join(tables).splitlines(), "", *self._worst_lines()]
        if self.skipped:
            lines += [
                "",
                f"{self.skipped} unusable files of the data set were skipped; scores.json names them.",
            ]
        if self.warning:
            lines = [f"!! {self.warning}", "", *lines, "", f"!! {self.warning}"]
        return "\n".join(lines)

    def worst(self, count: int = WORST) -> list[int]:
        """Indices of the samples of lowest mean IoU, the worst first; those without labels have none."""
        scores = mean_iou(self.counts.confusions)
        order = np.argsort(scores, kind="stable")  # nan comes last
        return [int(index) for index in order[:count] if not math.isnan(scores[index])]

    def _worst_lines(self) -> list[str]:
        scores = mean_iou(self.counts.confusions)
        lines = [f"mean IoU of single samples: median {np.nanmedian(scores):.4f}; the lowest:"]
        return lines + [f"  {scores[i]:.4f}  {self.counts.items[i].id}" for i in self.worst(5)]


def evaluate_segmentation(
    run: Run | str | Path,
    *,
    split: str = "test",
    checkpoint: Checkpoint = "best",
    group_by: Unit = "group",
    slice_by: Sequence[str] = (),
    metadata: str | Path | None = None,
    boundaries: bool = False,
    efficiency: bool = False,
) -> Evaluation:
    """Score a segmentation run's model on a split ('train', 'val', 'test'); writes ``<run>/evaluation/<split>/``.

    group_by: what is resampled for the intervals. slice_by: "group", "brightness", "object_size", "edge_distance",
    "name:REGEX" or columns of the CSV file `metadata` (all, unless some are given); with neither, the groups where
    these are 2 to 50.
    boundaries: also count how well edges and objects are met; it takes more time than all other counting.
    efficiency: also measure what the model costs on this machine, in a few passes over a batch.
    """
    from visionsft.training.loading import load_run  # its modules use this package's metrics

    run = run if isinstance(run, Run) else Run.open(run)
    loaded = load_run(run, checkpoint)
    loaded.data.setup("test")
    check_split(loaded.data, split)
    table = None if metadata is None else Metadata.read(metadata)
    kinds = choose_kinds(slice_by, loaded.data.items[split], table, parts=PARTS)
    boundaries = boundaries or not set(PARTS).isdisjoint(kinds)
    loader = loaded.data.evaluation_loader(split)
    names = loaded.data.classes.names
    details = Details(
        len(names),
        temperature=read_temperature(run, checkpoint),
        with_boundaries=boundaries,
        point=find_point(run, names, checkpoint),
    )
    worst = Worst(GALLERY)
    answered = answers(loaded, split, loader, progress(loader, f"evaluating {split}"))
    counts = count(loaded, answered, details, worst)
    scores = summarise(counts.confusions.sum(axis=0), names)
    if scores.pixels == 0:
        samples = f"{len(counts.items)} samples"
        raise DataError(f"{loaded.data.root}: no pixel of the {split} split is labelled ({samples})")
    intervals = _intervals(counts, group_by)
    details.bound(counts.names(group_by), names, unit=group_by)
    evaluation = Evaluation(
        run=run.name,
        split=split,
        checkpoint=checkpoint,
        scores=scores,
        intervals=intervals,
        by_image=_intervals(counts, "image")
        if 1 < intervals.groups < FEW_GROUPS <= len(counts.items)
        else None,
        slices=slice_counts(
            counts, kinds, boundaries=details.boundaries, metadata=table, unit=group_by
        ),
        counts=counts,
        details=details,
        folder=run.evaluation(split),
        skipped=len(loaded.data.skipped),
        efficiency=_measure(loaded, loader) if efficiency else None,
    )
    dataset = cast(Dataset[Sample], loader.dataset)
    _write(evaluation, loaded, dataset, run.checkpoint(checkpoint), worst.maps())
    return evaluation


# ------------------------------------------------------------------------------------------------ counting


def count(
    loaded: LoadedRun, answered: Iterable[tuple[Batch, Tensor]], details: Details, worst: Worst
) -> Counts:
    """One pass over batches and their logits: a confusion matrix a sample, its `details`, and the `worst` maps."""
    items: list[Item] = []
    confusions: list[NDArray[np.int64]] = []
    brightness: list[NDArray[np.float64]] = []
    for batch, logits in answered:
        classes = predict_classes(logits).cpu()
        pairs = zip(classes, batch["mask"], strict=True)
        found = torch.stack([confusion_matrix(*pair, details.num_classes) for pair in pairs]).numpy()
        for index, (score, prediction) in enumerate(zip(mean_iou(found).tolist(), classes.numpy(), strict=True)):
            worst.add(len(items) + index, score, prediction)
        confusions.append(found)
        items += batch["item"]
        brightness.append(mean_brightness(batch, loaded.data.normalisation))
        details.add(logits, classes, batch["mask"])
        del logits  # before the next ones are computed: they may take its memory
    return Counts(
        tuple(items),
        loaded.data.classes.names,
        np.concatenate(confusions),
        np.concatenate(brightness),
    )


class Worst:
    """The class maps of the samples of lowest mean IoU so far, so that they needn't be computed again."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[float, int, NDArray[np.uint8]]] = []
        """(-score, -index, map): the best of them first."""

    def add(self, index: int, score: float, prediction: NDArray[np.uint8]) -> None:
        """score: mean IoU; prediction: (H, W), copied if it is kept."""
        if math.isnan(score):
            return
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, (-score, -index, prediction.copy()))
        elif (-score, -index) > self._heap[0][:2]:
            heapq.heapreplace(self._heap, (-score, -index, prediction.copy()))

    def maps(self) -> list[tuple[int, NDArray[np.uint8]]]:
        """(index, class map), the worst first; among equals in their order."""
        return [
            (-index, prediction)
            for _, index, prediction in sorted(self._heap, key=lambda each: each[:2], reverse=True)
        ]


def _intervals(counts: Counts, unit: Unit) -> SegmentationIntervals:
    """By `unit`; over images, with a note where several are from one group."""
    found = segmentation_intervals(counts.confusions, counts.names(unit), counts.classes, unit=unit)
    groups = len(set(counts.groups))
    if unit == "group" or found.note or groups == found.groups:
        return found
    alike = f"too narrow: the {found.groups:,} images are from {groups:,} groups, and those of one group are alike"
    return replace(found, note=alike)


def _measure(loaded: LoadedRun, loader: Iterable[Batch]) -> Efficiency:
    """Costs on the loader's first batch."""
    return measure(loaded.model, lambda image: infer(loaded, image), next(iter(loader))["image"])


def progress(sequence: Iterable[T], description: str, *, total: int | None = None) -> Iterable[T]:
    """The sequence, with a bar on the terminal while it is gone through; `total`: its length where it has none."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(sequence, description, total=total, console=console, transient=True, disable=hidden)


def check_split(data: DataModule, split: str) -> None:
    """Refuse a split that doesn't exist or is empty."""
    sizes = {name: len(items) for name, items in data.items.items()}
    if sizes.get(split):
        return
    hint = nearest(split, sizes)
    problem = (
        "has no samples" if split in sizes else "does not exist" + (f" (nearest: {hint})" if hint else "")
    )
    there = ", ".join(f"{name} ({size:,} samples)" for name, size in sizes.items() if size)
    raise DataError(f"split '{split}' {problem}; with samples: {there or 'none'}")


# ------------------------------------------------------------------------------------------------- writing


def _write(
    evaluation: Evaluation,
    loaded: LoadedRun,
    dataset: Dataset[Sample],
    checkpoint: Path,
    worst: Sequence[tuple[int, NDArray[np.uint8]]],
) -> None:
    """All files, each whole or not at all; scores.json comes last and so stands for a complete set."""
    folder, classes = evaluation.folder, loaded.data.classes
    remove_scores(folder)
    write_text(folder / "table.txt", evaluation.table() + "\n")
    with atomic_path(folder / "confusion.csv") as path:
        _write_csv(path, evaluation.confusion, classes.names)
    save_counts(evaluation.counts, folder, details=evaluation.details.arrays())
    write_slices(evaluation.slices, folder)
    heading = (
        f"{evaluation.title}\nmean IoU {evaluation.scores.mean_iou:.4f}, {evaluation.scores.pixels:,} pixels"
    )
    figure = confusion_figure(evaluation.confusion, classes.names, title=marked(heading, evaluation.warning))
    save_figure(figure, folder / "confusion.png")
    histogram = evaluation.details.reliability.sum(axis=0)
    heading = f"{evaluation.title}\nexpected calibration error {evaluation.details.ece:.4f}"
    figure = reliability_figure(histogram, classes.names, classes.colours, title=marked(heading, evaluation.warning))
    save_figure(figure, folder / "reliability.png")
    _write_worst(evaluation, loaded, dataset, worst)
    report = _report(evaluation, loaded.data, checkpoint) | _areas(evaluation, dataset, classes.names)
    write_text(
        folder / "scores.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def write_slices(slices: Slices | None, folder: Path) -> None:
    """slices.csv, in place of that of an evaluation by other slices."""
    (folder / "slices.csv").unlink(missing_ok=True)
    if slices:
        with atomic_path(folder / "slices.csv") as path:
            slices.write_csv(path)


def describe_slices(slices: Slices | None) -> dict[str, Any]:
    """For scores.json."""
    return {
        "slices": [row.as_dict() for row in slices.rows] if slices else [],
        "slices_note": slices.note if slices else None,
    }


def remove_scores(folder: Path) -> None:
    """Those of an earlier evaluation, and the gates that were judged by them: new ones stand for complete files."""
    for name in ("scores.json", "gates.json", "gates.xml"):
        (folder / name).unlink(missing_ok=True)


def save_figure(figure: Figure, target: Path) -> None:
    with atomic_path(target) as path:
        figure.savefig(path)


def _write_csv(path: Path, confusion: NDArray[np.int64], names: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["truth (pixels) / prediction", *names])
        writer.writerows([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))


def _report(evaluation: Evaluation, data: SegmentationDataModule, checkpoint: Path) -> dict[str, Any]:
    """The content of scores.json."""
    facts = {"classes": [(spec.name, spec.values) for spec in data.classes.specs], "bands": data.bands}
    price = evaluation.details.price(evaluation.scores)
    return {
        **describe_source(evaluation, data, checkpoint, facts=facts),
        "samples": len(evaluation.counts.items),
        "groups": len({item.group for item in evaluation.counts.items}),
        "scores": evaluation.scores.as_dict(),
        "intervals": {
            **evaluation.intervals.as_dict(),
            "by_image": evaluation.by_image.as_dict() if evaluation.by_image else None,
        },
        **describe_slices(evaluation.slices),
        "definitions": DEFINITIONS,
        "confusion": evaluation.confusion.tolist(),
        **evaluation.details.describe(data.classes.names),
        "operating_point": price and price.as_dict(),
        "efficiency": evaluation.efficiency and evaluation.efficiency.as_dict(),
    }


class Judged(Protocol):
    """What the evaluations of all tasks say of themselves."""

    @property
    def run(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def checkpoint(self) -> str: ...
    @property
    def warning(self) -> str | None: ...


def describe_source(
    evaluation: Judged, data: DataModule, checkpoint: Path, *, facts: Mapping[str, object]
) -> dict[str, Any]:
    """What scores.json says of any task's run, weights, data and machine; facts: see `fingerprint`."""
    items = data.items[evaluation.split]
    return {
        "run": evaluation.run,
        "split": evaluation.split,
        "warning": evaluation.warning,
        "checkpoint": {
            "name": evaluation.checkpoint,
            "file": checkpoint.name,
            "sha256": sha256(checkpoint),
        },
        "classes": list(data.classes.names),
        "data": {
            "root": str(data.root),
            "fingerprint": fingerprint(items, root=data.root, facts=facts),
            "bands": list(data.bands),
            "skipped": [list(pair) for pair in data.skipped],
        },
        "environment": describe_environment(),
    }


def _areas(evaluation: Evaluation, dataset: Dataset[Sample], names: Sequence[str]) -> dict[str, Any]:
    """Mapped areas beside labelled ones, where samples lie on the ground."""
    if not isinstance(dataset, EvaluationDataset) or not isinstance(dataset.reader, SceneReader):
        return {}
    grids = [dataset.reader.grid(item) for item in evaluation.counts.items]
    return {"area": compare_areas(evaluation.counts.confusions, grids, names)}


# ------------------------------------------------------------------------------------------- worst samples


def _write_worst(
    evaluation: Evaluation,
    loaded: LoadedRun,
    dataset: Dataset[Sample],
    worst: Sequence[tuple[int, NDArray[np.uint8]]],
) -> None:
    """worst.png and the gallery. worst: (index, class map (H, W)); pictures are read a second time."""
    counts, classes = evaluation.counts, loaded.data.classes
    scores = mean_iou(counts.confusions)
    pixels = counts.confusions.sum(axis=(1, 2))
    examples = (
        make_example(
            loaded.data,
            dataset[i],
            prediction,
            f"{counts.items[i].id} · mean IoU {scores[i]:.4f} · {pixels[i]:,} labelled pixels",
        )
        for i, prediction in worst
    )
    first = list(islice(examples, WORST))
    title = marked(f"{evaluation.title}: the worst {len(first)}\nrule: {RULE}", evaluation.warning)
    sheet = contact_sheet(first, names=classes.names, colours=classes.colours, title=title)
    save_figure(sheet, evaluation.folder / "worst.png")
    indices = [i for i, _ in worst]
    write_gallery(
        evaluation.folder / "gallery",
        chain(first, examples),
        items=[counts.items[i] for i in indices],
        confusions=counts.confusions[indices],
        names=classes.names,
        colours=classes.colours,
    )


def make_example(
    data: SegmentationDataModule, sample: Sample, prediction: NDArray[np.uint8], label: str
) -> Example:
    """A row of a contact sheet: the sample as a picture, its truth and its predicted classes (H, W)."""
    valid = sample["valid"].numpy()
    # samples smaller than their window were padded right and below
    height, width = (int(np.flatnonzero(valid.any(axis=axis)).max()) + 1 for axis in (1, 0))
    picture = display(
        sample["image"],
        mean=data.normalisation.mean,
        std=data.normalisation.std,
        bands=data.bands,
        eight_bit=data.dtype == np.uint8,
        valid=valid,
    )
    truth = sample["mask"].numpy().astype(np.uint8)
    pictures = (picture, truth, np.where(valid, prediction, np.uint8(IGNORE)))
    return Example(label, *(each[:height, :width] for each in pictures))


def marked(title: str, warning: str | None) -> str:
    """The title, under a warning where the split is no evidence."""
    return f"!! {warning.split(':')[0]}\n{title}" if warning else title
