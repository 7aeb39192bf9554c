"""Calibrating: a run's temperature, fitted on its validation split and measured on validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from datamodules import DataError
from visionsft.evaluation.answers import infer
from visionsft.evaluation.calibration import (
    BINS,
    SAMPLE,
    TEMPERATURES,
    PixelSample,
    fit_temperature,
    measure,
)
from visionsft.evaluation.evaluating import check_split, progress
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
        lines = [
            f"{self.run} · checkpoint {self.checkpoint}: temperature {value:.4f}, fitted on {fitted['pixels']:,} "
            f"of {fitted['of']:,} labelled pixels of split {fitted['split']}",
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
        return "\n".join([*lines, "", f"written: {self.file}; evaluate uses it"])


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
    run.require_segmentation("a temperature")
    loaded = load_run(run, checkpoint)
    loaded.data.setup("test")
    check_split(loaded.data, "val")
    pixels, seen = sample_pixels(loaded, "val")
    if seen == 0:
        raise DataError(f"{run.path}: no pixel of the val split is labelled; a temperature is fitted on it")
    value = fit_temperature(*pixels)
    fitted_on = {"split": "val", "pixels": len(pixels[1]), "of": seen, "seed": SEED}
    measured: dict[str, Any] = {"val": _compare(pixels, value), "test": None}
    if loaded.data.items["test"]:
        others, labelled = sample_pixels(loaded, "test")
        measured["test"] = _compare(others, value) if labelled else None
    temperature = Temperature(value, fitted_on, measured)
    store_temperature(run, checkpoint, temperature)
    return Calibration(run.name, checkpoint, temperature, run.path / FILE)


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
