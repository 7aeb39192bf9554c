"""Robustness: the same test set under stated corruptions, and what they cost."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionsft.evaluation.corruptions import CORRUPTIONS, Bands, Corruption
from visionsft.evaluation.evaluating import check_split
from visionsft.evaluation.metrics.segmentation import without_nan
from visionsft.evaluation.probes import PROBES, Probe, Scores
from visionsft.files import write_text
from visionsft.runs import Checkpoint, Run

_HIT = 3
"""Classes named beside a corruption."""


@dataclass(frozen=True)
class Condition:
    """The scores under one corruption in one strength."""

    corruption: Corruption
    severity: float
    scores: Scores
    value: float
    """Over all classes, see `Robustness.metric`."""
    drop: float
    """How much less it is than without."""
    hit: tuple[tuple[str, float], ...]
    """The classes that lose most, and how much."""

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
    metric: str
    """That is told: its key among the scores..."""
    title: str
    """...and its name."""
    definitions: dict[str, str]
    clean: Scores
    value: float
    """The metric without corruption."""
    conditions: tuple[Condition, ...]
    left_out: dict[str, str]
    """Corruptions that can't be applied to these bands, with the reason."""

    def table(self) -> str:
        """What the command line prints: a line a condition."""
        part = "" if self.samples == self.of else f" of {self.of:,}, evenly spaced: a quick look"
        lines = [
            f"{self.run} · split {self.split} · checkpoint {self.checkpoint} · {self.samples:,} samples{part}",
            "",
            f"{'corruption':10}  {'strength':30}  {self.title:8}     drop  classes hit most (and their drop)",
            f"{'none':10}  {'':30}  {self.value:8.4f}",
        ]
        for each in self.conditions:
            hit = ", ".join(f"{name} {loss:.3f}" for name, loss in each.hit)
            name = each.corruption.name
            lines.append(f"{name:10}  {each.strength:30}  {each.value:8.4f}  {each.drop:+7.4f}  {hit}")
        lines += ["", f"{self.title}: {self.definitions[self.metric]}", "mean, std: of the normalisation"]
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
            "metric": self.metric,
            "clean": self.clean.as_dict(),
            "conditions": [
                {
                    "corruption": each.corruption.name,
                    "description": each.corruption.description,
                    "severity": each.severity,
                    "strength": each.strength,
                    "drop": without_nan(each.drop),
                    "scores": each.scores.as_dict(),
                }
                for each in self.conditions
            ],
            "left_out": self.left_out,
            "definitions": self.definitions,
        }


def measure_robustness(
    run: Run | str | Path, *, split: str = "test", checkpoint: Checkpoint = "best", limit: int | None = None
) -> Robustness:
    """Score a run under every corruption that suits its bands; writes robustness.json and .txt of the split.

    limit: at most so many samples, evenly spaced over the split, for a quick look.
    """
    from visionsft.training.loading import load_run  # its modules use this package's metrics

    run = run if isinstance(run, Run) else Run.open(run)
    loaded = load_run(run, checkpoint)
    loaded.data.setup("test")
    check_split(loaded.data, split)
    bands = Bands(loaded.data.bands, loaded.data.normalisation, loaded.data.dtype)
    cases = [(each, severity) for each in CORRUPTIONS for severity in each.severities]
    reasons = {case: case[0].refuse(bands, case[1]) for case in cases}
    cases = [case for case in cases if reasons[case] is None]
    probe = PROBES[run.task](loaded, split, checkpoint, limit=limit)
    clean, *corrupted = probe.score([partial(_corrupt, *case, bands) for case in cases])
    result = Robustness(
        run=run.name,
        split=split,
        checkpoint=checkpoint,
        samples=len(probe.indices),
        of=probe.of,
        metric=probe.metric,
        title=probe.title,
        definitions=dict(probe.definitions),
        clean=clean,
        value=probe.value(clean),
        conditions=tuple(
            _judge(probe, clean, case, scores) for case, scores in zip(cases, corrupted, strict=True)
        ),
        left_out={
            f"{case[0].name} {case[0].describe(case[1])}": text for case, text in reasons.items() if text
        },
    )
    folder = run.evaluation(split)
    write_text(folder / "robustness.txt", result.table() + "\n")
    text = json.dumps(result.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / "robustness.json", text + "\n")
    return result


def _corrupt(
    corruption: Corruption,
    severity: float,
    bands: Bands,
    image: NDArray[np.float32],
    valid: NDArray[np.bool_],
    id: str,
) -> NDArray[np.float32]:
    return corruption(image, valid, bands, severity, id=id)


def _judge(probe: Probe, clean: Scores, case: tuple[Corruption, float], scores: Scores) -> Condition:
    before, after = probe.class_values(clean), probe.class_values(scores)
    losses = [(name, before[name] - value) for name, value in after.items()]
    known = [(name, loss) for name, loss in losses if not math.isnan(loss) and loss > 0]
    value = probe.value(scores)
    return Condition(
        *case,
        scores=scores,
        value=value,
        drop=probe.value(clean) - value,
        hit=tuple(sorted(known, key=lambda pair: -pair[1])[:_HIT]),
    )
