"""Calibrating: a run's temperature, fitted on its validation split and measured on validation and test.

Detectors have none: a temperature changes no ranking, so neither average precision nor which objects a threshold can
find, and what their scores are worth is said by `evaluate` (detection calibration error) and by thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules import DataError
from visionsft.errors import RunError
from visionsft.evaluation.answers import infer
from visionsft.evaluation.calibration import (
    BINS,
    SAMPLE,
    TEMPERATURES,
    PixelSample,
    fit_temperature,
    measure,
)
from visionsft.evaluation.classifying import answer, is_multi_label
from visionsft.evaluation.evaluating import check_split, progress
from visionsft.evaluation.label_calibration import fitting_pairs, measure_labels
from visionsft.evaluation.temperature import FILE, Temperature, store_temperature
from visionsft.runs import Checkpoint, Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

SEED = 0
"""Of the sample of pixels."""


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`."""

    run: str
    checkpoint: str
    temperature: Temperature
    file: Path

    def table(self) -> str:
        """What the command line prints."""
        value, fitted = self.temperature.value, self.temperature.fitted_on
        counted, noun = ("pixels", "labelled pixels") if "pixels" in fitted else ("answers", "answers")
        lines = [
            f"{self.run} · checkpoint {self.checkpoint}: temperature {value:.4f}, fitted on {fitted[counted]:,} "
            f"of {fitted['of']:,} {noun} of split {fitted['split']}",
            *_limit_lines(value),
            "",
            f"{'split':6}{'':8}{'NLL':>8}{'ECE':>9}{'ECE, equal mass':>17}   ({BINS} bins)",
        ]
        for split, rows in self.temperature.measured.items():
            if rows is None:
                lines.append(f"{split:6}has no labelled samples")
                continue
            for name in ("before", "after"):
                nll, ece, mass = (rows[name][key] for key in ("nll", "ece", "ece_equal_mass"))
                lines.append(f"{split:6}{name:8}{nll:8.4f}{ece:9.4f}{mass:17.4f}")
        return "\n".join([*lines, "", f"written: {self.file}; evaluate and predict use it"])


def _limit_lines(value: float) -> list[str]:
    low, high = TEMPERATURES
    if low * 1.01 < value < high / 1.01:
        return []
    return [
        f"!! this is the end of the range that is searched ({low:g} to {high:g}): look at the split's labels"
    ]


def calibrate(run: Run | str | Path, *, checkpoint: Checkpoint = "best") -> Calibration:
    """Fit a run's temperature on its validation split and keep it as ``<run>/calibration.json``.

    The test split, if there is one, is only measured.
    """
    from visionsft.training.loading import load_run  # imported late, as in visionsft.evaluation

    run = run if isinstance(run, Run) else Run.open(run)
    if run.task not in ("segmentation", "classification"):
        raise RunError(
            f"{run.path}: a detector has no temperature, which would change no ranking of its detections; `visionsft "
            f"evaluate` measures how far its scores are from precision, `visionsft thresholds` chooses scores by class"
        )
    loaded = load_run(run, checkpoint)
    loaded.data.setup("test")
    check_split(loaded.data, "val")
    fit = _fit_pixels if run.task == "segmentation" else _fit_labels
    temperature = fit(loaded)
    if temperature is None:
        raise DataError(f"{run.path}: no pixel of the val split is labelled; a temperature is fitted on it")
    store_temperature(run, checkpoint, temperature)
    return Calibration(run.name, checkpoint, temperature, run.path / FILE)


def _fit_pixels(loaded: LoadedRun) -> Temperature | None:
    """None without a labelled pixel."""
    pixels, seen = sample_pixels(loaded, "val")
    if seen == 0:
        return None
    value = fit_temperature(*pixels)
    fitted_on = {"split": "val", "pixels": len(pixels[1]), "of": seen, "seed": SEED}
    measured: dict[str, Any] = {"val": _compare(pixels, value), "test": None}
    if loaded.data.items["test"]:
        others, labelled = sample_pixels(loaded, "test")
        measured["test"] = _compare(others, value) if labelled else None
    return Temperature(value, fitted_on, measured)


def _fit_labels(loaded: LoadedRun) -> Temperature:
    several, measured = is_multi_label(loaded), dict[str, Any]()
    answers = answer(loaded, "val")
    logits, truth = fitting_pairs(answers.probabilities, answers.truth, several=several)
    chosen = torch.randperm(len(truth), generator=torch.Generator().manual_seed(SEED))[:SAMPLE]
    value = fit_temperature(logits[chosen], truth[chosen])
    for split in ("val", "test"):
        measured[split] = None
        if loaded.data.items[split]:
            seen = answers if split == "val" else answer(loaded, split)
            found = partial(measure_labels, seen.probabilities, seen.truth, several=several)
            measured[split] = {"images": len(seen.items), "before": found(), "after": found(temperature=value)}
    fitted_on = {"split": "val", "answers": len(chosen), "of": len(truth), "images": len(answers.items), "seed": SEED}
    return Temperature(value, fitted_on, measured)


def sample_pixels(loaded: LoadedRun, split: str) -> tuple[tuple[Tensor, Tensor], int]:
    """Logits (P, K) float32 and truth (P,) of random labelled pixels of a split, and how many it has."""
    sample = PixelSample(SAMPLE, seed=SEED)
    for batch in progress(loaded.data.evaluation_loader(split), f"calibrating on {split}"):
        sample.add(infer(loaded, batch["image"]), batch["mask"])
    return sample.pixels(), sample.seen


def _compare(pixels: tuple[Tensor, Tensor], temperature: float) -> dict[str, Any]:
    return {
        "pixels": len(pixels[1]),
        "before": measure(*pixels),
        "after": measure(*pixels, temperature=temperature),
    }
