"""Evaluation: how good a run's model is on one split, as numbers, files and pictures in the run folder.

Every sample is seen once and counted into a confusion matrix of its own; all numbers come from their sum. The
matrices are kept (``per_sample.npz``), so that numbers can be remade, sliced and resampled without the model.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from datamodules import DataError, SegmentationDataModule
from datamodules.batch import IGNORE, Batch, Item, Sample
from datamodules.statistics import fingerprint
from visionsft.errors import RunError, nearest
from visionsft.evaluation.gallery import RULE, write_gallery
from visionsft.evaluation.metrics import (
    DEFINITIONS,
    SegmentationScores,
    confusion_matrix,
    mean_iou,
    predict_classes,
    summarise,
)
from visionsft.evaluation.pictures import Example, confusion_figure, contact_sheet, display
from visionsft.files import atomic_path, write_text
from visionsft.models.views import average_views
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
class Counts:
    """What was counted, sample by sample, in the loader's order."""

    items: tuple[Item, ...]
    confusions: NDArray[np.int64]
    """(N, K, K), rows = truth."""


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`."""

    run: str
    split: str
    checkpoint: str
    scores: SegmentationScores
    counts: Counts
    folder: Path
    """Where scores.json, table.txt, confusion.csv, confusion.png, per_sample.npz, worst.png and gallery/ are."""
    skipped: int
    """Files of the data set that were left out (on_error: skip)."""

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
        lines = [self.title, "", self.scores.table(), "", *self._worst_lines()]
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


def evaluate(run: Run | str | Path, *, split: str = "test", checkpoint: Checkpoint = "best") -> Evaluation:
    """Score a run's model on a split ('train', 'val', 'test'); writes ``<run>/evaluation/<split>/``."""
    from visionsft.training.loading import load_run  # its modules use this package's metrics

    run = run if isinstance(run, Run) else Run.open(run)
    loaded = load_run(run, checkpoint)
    loaded.data.setup("test")
    _check_split(loaded.data, split)
    loader = loaded.data.evaluation_loader(split)
    names = loaded.data.classes.names
    counts = count(loaded, progress(loader, f"evaluating {split}"), num_classes=len(names))
    scores = summarise(counts.confusions.sum(axis=0), names)
    if scores.pixels == 0:
        samples = f"{len(counts.items)} samples"
        raise DataError(f"{loaded.data.root}: no pixel of the {split} split is labelled ({samples})")
    evaluation = Evaluation(
        run=run.name,
        split=split,
        checkpoint=checkpoint,
        scores=scores,
        counts=counts,
        folder=run.evaluation(split),
        skipped=len(loaded.data.skipped),
    )
    _write(evaluation, loaded, cast(Dataset[Sample], loader.dataset), run.checkpoint(checkpoint))
    return evaluation


# ------------------------------------------------------------------------------------------------ counting


def count(loaded: LoadedRun, batches: Iterable[Batch], *, num_classes: int) -> Counts:
    """One pass over `batches`: a confusion matrix a sample."""
    items: list[Item] = []
    confusions: list[Tensor] = []
    for batch in batches:
        classes = predict_classes(infer(loaded, batch["image"])).cpu()
        items += batch["item"]
        confusions += [
            confusion_matrix(*pair, num_classes) for pair in zip(classes, batch["mask"], strict=True)
        ]
    return Counts(tuple(items), torch.stack(confusions).numpy())


@torch.inference_mode()
def infer(loaded: LoadedRun, image: Tensor) -> Tensor:
    """image: (B, C, H, W) float32, normalised -> logits (B, K, H, W), in the precision of training.

    With the run's `inference` views, if it has any: a split is scored as new files are predicted.
    """
    device = next(loaded.model.parameters()).device
    layout = torch.channels_last if loaded.channels_last else torch.contiguous_format
    enabled = loaded.precision is not None
    with torch.autocast(device.type, dtype=loaded.precision, enabled=enabled):
        logits = average_views(
            lambda view: loaded.model(view.contiguous(memory_format=layout)), image.to(device), **loaded.views
        )
    if bool(logits.sum().isnan()):  # a nan anywhere makes the sum nan, in a fraction of isnan's time
        raise RunError(
            "the model's output is not a number: its training has diverged, or the checkpoint is damaged"
        )
    return logits


def progress(sequence: Iterable[T], description: str) -> Iterable[T]:
    """The sequence, with a bar on the terminal while it is gone through."""
    console = Console(stderr=True)
    return track(sequence, description, console=console, transient=True, disable=not console.is_terminal)


def _check_split(data: SegmentationDataModule, split: str) -> None:
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


def _write(evaluation: Evaluation, loaded: LoadedRun, dataset: Dataset[Sample], checkpoint: Path) -> None:
    """All files, each whole or not at all; scores.json comes last and so stands for a complete set."""
    folder, classes = evaluation.folder, loaded.data.classes
    (folder / "scores.json").unlink(missing_ok=True)
    write_text(folder / "table.txt", evaluation.table() + "\n")
    with atomic_path(folder / "confusion.csv") as path:
        _write_csv(path, evaluation.confusion, classes.names)
    with atomic_path(folder / "per_sample.npz") as path:
        _write_samples(path, evaluation.counts, classes.names)
    heading = (
        f"{evaluation.title}\nmean IoU {evaluation.scores.mean_iou:.4f}, {evaluation.scores.pixels:,} pixels"
    )
    figure = confusion_figure(evaluation.confusion, classes.names, title=_marked(heading, evaluation))
    _save(figure, folder / "confusion.png")
    _write_worst(evaluation, loaded, dataset)
    report = _report(evaluation, loaded.data, checkpoint)
    write_text(
        folder / "scores.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def _save(figure: Figure, target: Path) -> None:
    with atomic_path(target) as path:
        figure.savefig(path)


def _write_csv(path: Path, confusion: NDArray[np.int64], names: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["truth (pixels) / prediction", *names])
        writer.writerows([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))


def _write_samples(path: Path, counts: Counts, names: Sequence[str]) -> None:
    np.savez_compressed(
        path,
        ids=np.array([item.id for item in counts.items]),
        groups=np.array([item.group for item in counts.items]),
        classes=np.array(names),
        confusions=counts.confusions,
    )


def _report(evaluation: Evaluation, data: SegmentationDataModule, checkpoint: Path) -> dict[str, Any]:
    """The content of scores.json."""
    items = data.items[evaluation.split]
    facts = {"classes": [(spec.name, spec.values) for spec in data.classes.specs], "bands": data.bands}
    with open(checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "run": evaluation.run,
        "split": evaluation.split,
        "warning": evaluation.warning,
        "checkpoint": {"name": evaluation.checkpoint, "file": checkpoint.name, "sha256": digest},
        "samples": len(evaluation.counts.items),
        "groups": len({item.group for item in evaluation.counts.items}),
        "classes": list(data.classes.names),
        "scores": evaluation.scores.as_dict(),
        "definitions": DEFINITIONS,
        "confusion": evaluation.confusion.tolist(),
        "data": {
            "root": str(data.root),
            "fingerprint": fingerprint(items, root=data.root, facts=facts),
            "bands": list(data.bands),
            "skipped": [list(pair) for pair in data.skipped],
        },
        "environment": describe_environment(),
    }


# ------------------------------------------------------------------------------------------- worst samples


def _write_worst(evaluation: Evaluation, loaded: LoadedRun, dataset: Dataset[Sample]) -> None:
    """worst.png and the gallery. Seen a second time, so that the first pass needs to keep no pictures."""
    worst, counts, classes = evaluation.worst(GALLERY), evaluation.counts, loaded.data.classes
    scores = mean_iou(counts.confusions)
    pixels = counts.confusions.sum(axis=(1, 2))
    examples = (
        _example(
            loaded,
            dataset[i],
            f"{counts.items[i].id} · mean IoU {scores[i]:.4f} · {pixels[i]:,} labelled pixels",
        )
        for i in worst
    )
    first = list(islice(examples, WORST))
    title = _marked(f"{evaluation.title}: the worst {len(first)}\nrule: {RULE}", evaluation)
    sheet = contact_sheet(first, names=classes.names, colours=classes.colours, title=title)
    _save(sheet, evaluation.folder / "worst.png")
    write_gallery(
        evaluation.folder / "gallery",
        chain(first, examples),
        items=[counts.items[i] for i in worst],
        confusions=counts.confusions[worst],
        names=classes.names,
        colours=classes.colours,
    )


def _example(loaded: LoadedRun, sample: Sample, label: str) -> Example:
    data, valid = loaded.data, sample["valid"].numpy()
    prediction = predict_classes(infer(loaded, sample["image"][None]))[0].cpu().numpy()
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


def _marked(title: str, evaluation: Evaluation) -> str:
    """The title, under a warning where the split is no evidence."""
    return f"!! {evaluation.warning.split(':')[0]}\n{title}" if evaluation.warning else title
