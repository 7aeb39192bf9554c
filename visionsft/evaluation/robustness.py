"""Robustness: the same test set under stated corruptions, and what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from datamodules.batch import Batch
from visionsft.evaluation.answers import infer
from visionsft.evaluation.corruptions import CORRUPTIONS, Bands, Corruption
from visionsft.evaluation.evaluating import check_split, progress
from visionsft.evaluation.metrics import (
    DEFINITIONS,
    SegmentationScores,
    confusion_matrix,
    predict_classes,
    summarise,
)
from visionsft.files import write_text
from visionsft.runs import Checkpoint, Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

Case = tuple[Corruption, float]

_HIT = 3
"""Classes named beside a corruption."""


@dataclass(frozen=True)
class Condition:
    """The scores under one corruption in one strength."""

    corruption: Corruption
    severity: float
    scores: SegmentationScores

    @property
    def strength(self) -> str:
        """The severity with its unit."""
        return self.corruption.describe(self.severity)


@dataclass(frozen=True)
class Robustness:
    """The result of `measure_robustness`."""

    run: str
    split: str
    checkpoint: str
    samples: int
    """That were scored..."""
    of: int
    """...of so many in the split."""
    clean: SegmentationScores
    conditions: tuple[Condition, ...]
    left_out: dict[str, str]
    """Corruptions that can't be applied to these bands, with the reason."""

    def table(self) -> str:
        """What the command line prints: a line a condition."""
        part = "" if self.samples == self.of else f" of {self.of:,}, evenly spaced: a quick look"
        lines = [
            f"{self.run} · split {self.split} · checkpoint {self.checkpoint} · {self.samples:,} samples{part}",
            "",
            f"{'corruption':10}  {'strength':30}  mean IoU     drop  classes hit most (drop of their IoU)",
            f"{'none':10}  {'':30}  {self.clean.mean_iou:8.4f}",
        ]
        for each in self.conditions:
            drop = self.clean.mean_iou - each.scores.mean_iou
            hit = ", ".join(f"{name} {loss:.3f}" for name, loss in self._hit(each))
            name = each.corruption.name
            lines.append(f"{name:10}  {each.strength:30}  {each.scores.mean_iou:8.4f}  {drop:+7.4f}  {hit}")
        lines += ["", f"mean IoU: {DEFINITIONS['mean_iou']}", "mean, std: of the normalisation"]
        shown = {each.corruption.name: each.corruption.description for each in self.conditions}
        lines += [f"{name}: {text}" for name, text in shown.items()]
        return "\n".join(lines + [f"{name}: left out, {reason}" for name, reason in self.left_out.items()])

    def as_dict(self) -> dict[str, Any]:
        """The content of robustness.json."""
        return {
            "run": self.run,
            "split": self.split,
            "checkpoint": self.checkpoint,
            "samples": self.samples,
            "samples_in_split": self.of,
            "clean": self.clean.as_dict(),
            "conditions": [
                {
                    "corruption": each.corruption.name,
                    "description": each.corruption.description,
                    "severity": each.severity,
                    "strength": each.strength,
                    "drop": self.clean.mean_iou - each.scores.mean_iou,
                    "scores": each.scores.as_dict(),
                }
                for each in self.conditions
            ],
            "left_out": self.left_out,
            "definitions": DEFINITIONS,
        }

    def _hit(self, condition: Condition) -> list[tuple[str, float]]:
        """The classes that lose most."""
        pairs = zip(self.clean.per_class, condition.scores.per_class, strict=True)
        losses = [(before.name, before.iou - after.iou) for before, after in pairs]
        known = [(name, loss) for name, loss in losses if not math.isnan(loss) and loss > 0]
        return sorted(known, key=lambda pair: -pair[1])[:_HIT]


def measure_robustness(
    run: Run | str | Path, *, split: str = "test", checkpoint: Checkpoint = "best", limit: int | None = None
) -> Robustness:
    """Score a run under every corruption that suits its bands; writes robustness.json and .txt of the split.

    limit: at most so many samples, evenly spaced over the split, for a quick look.
    """
    from visionsft.training.loading import load_run  # its modules use this package's metrics

    run = run if isinstance(run, Run) else Run.open(run)
    run.require_segmentation("robustness")
    loaded = load_run(run, checkpoint)
    loaded.data.setup("test")
    check_split(loaded.data, split)
    bands = Bands(loaded.data.bands, loaded.data.normalisation, loaded.data.dtype)
    cases = [(each, severity) for each in CORRUPTIONS for severity in each.severities]
    reasons = {case: case[0].refuse(bands, case[1]) for case in cases}
    loader, samples, of = _limited(loaded.data.evaluation_loader(split), limit)
    cases = [case for case in cases if reasons[case] is None]
    clean, conditions = _score(loaded, progress(loader, f"corrupting {split}"), cases, bands)
    result = Robustness(
        run=run.name,
        split=split,
        checkpoint=checkpoint,
        samples=samples,
        of=of,
        clean=clean,
        conditions=conditions,
        left_out={
            f"{case[0].name} {case[0].describe(case[1])}": text for case, text in reasons.items() if text
        },
    )
    folder = run.evaluation(split)
    write_text(folder / "robustness.txt", result.table() + "\n")
    write_text(folder / "robustness.json", json.dumps(result.as_dict(), indent=2, ensure_ascii=False) + "\n")
    return result


def _limited(loader: DataLoader[Batch], limit: int | None) -> tuple[DataLoader[Batch], int, int]:
    """A loader of at most `limit` samples, how many those are, and of how many."""
    of = len(loader.dataset)  # type: ignore[arg-type]
    if limit is None or limit >= of:
        return loader, of, of
    indices = np.linspace(0, of - 1, limit).round().astype(int).tolist()
    few: DataLoader[Batch] = DataLoader(
        Subset(loader.dataset, indices),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
    )
    return few, limit, of


def _score(
    loaded: LoadedRun, batches: Iterable[Batch], cases: Sequence[Case], bands: Bands
) -> tuple[SegmentationScores, tuple[Condition, ...]]:
    """One pass over the files: each batch is scored as it is, and under every corruption."""
    names = loaded.data.classes.names
    confusions = torch.zeros(1 + len(cases), len(names), len(names), dtype=torch.int64)
    for batch in batches:
        for confusion, image in zip(confusions, _views(batch, cases, bands), strict=True):
            classes = predict_classes(infer(loaded, image)).cpu()
            confusion += confusion_matrix(classes, batch["mask"], len(names))
    clean, *corrupted = (summarise(confusion, names) for confusion in confusions)
    return clean, tuple(Condition(*case, scores) for case, scores in zip(cases, corrupted, strict=True))


def _views(batch: Batch, cases: Iterable[Case], bands: Bands) -> Iterator[Tensor]:
    """The batch's images (B, C, H, W) as they are, then corrupted in each way."""
    yield batch["image"]
    samples = list(zip(batch["image"].numpy(), batch["valid"].numpy(), batch["item"], strict=True))
    for corruption, severity in cases:
        images = [corruption(image, valid, bands, severity, id=item.id) for image, valid, item in samples]
        yield torch.from_numpy(np.stack(images))
