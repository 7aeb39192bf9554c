"""Details: what an evaluation counts of every sample beside its confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionsft.evaluation import boundaries, calibration
from visionsft.evaluation.boundaries import BoundaryCounts, count_boundaries
from visionsft.evaluation.boundary_intervals import (
    BoundaryIntervals,
    boundary_intervals,
    boundary_margins,
    boundary_scores,
)
from visionsft.evaluation.calibration import ErrorInterval
from visionsft.evaluation.intervals import Unit
from visionsft.evaluation.metrics.segmentation import (
    SegmentationScores,
    confusion_matrix,
    number,
    summarise,
    without_nan,
)
from visionsft.evaluation.operating import AppliedPoint, PointPrice
from visionsft.evaluation.temperature import Temperature

CHUNK = 2**21
"""Logits whose calibration is counted at once: of several small samples, or of one."""


class Details:
    """Calibration, and boundaries where they are wanted, sample by sample in the loader's order."""

    def __init__(
        self,
        num_classes: int,
        *,
        temperature: Temperature | None,
        with_boundaries: bool,
        point: AppliedPoint | None = None,
    ) -> None:
        """point: the run's thresholds, whose price is to be counted, too."""
        self.num_classes = num_classes
        self.temperature = temperature
        self.with_boundaries = with_boundaries
        self._reliability: list[NDArray[np.float64]] = []
        self._before = np.zeros((calibration.BINS, 3))
        """Of the highest probability over the whole split, without the temperature."""
        self._boundaries: list[BoundaryCounts] = []
        self.point = point
        self._ruled = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        """Confusion matrix of the thresholds' rule."""
        self.interval: ErrorInterval | None = None
        """Of the calibration error, once `bound` was called..."""
        self.boundary_intervals: BoundaryIntervals | None = None
        """...and of the boundaries."""

    def bound(self, groups: Sequence[str], names: Sequence[str], *, unit: Unit) -> None:
        """Resample what was counted by group: N names of groups, K of classes."""
        self.interval = calibration.error_interval(self.reliability[:, 0], groups, unit=unit)
        if (counts := self.boundaries) is not None:
            self.boundary_intervals = boundary_intervals(counts, groups, names, unit=unit)

    def add(self, logits: Tensor, classes: Tensor, masks: Tensor) -> None:
        """One batch: (B, K, H, W) float, and (B, H, W) uint8 and int64."""
        lattice = np.s_[..., :: calibration.STEP, :: calibration.STEP]
        planes, truth, found = (each[lattice].to(logits.device) for each in (logits, masks, classes))
        step = max(1, CHUNK // max(1, planes[0].numel()))
        for some in (slice(start, start + step) for start in range(0, len(planes), step)):
            self._add_reliability(planes[some].transpose(0, 1).contiguous(), truth[some], found[some])
        if self.point is not None:
            decided = self.point.decide(logits).cpu()
            self._ruled += confusion_matrix(decided, masks, self.num_classes)
        if self.with_boundaries:
            for prediction, truth in zip(classes.numpy(), masks.numpy().astype(np.uint8), strict=True):
                self._boundaries.append(count_boundaries(prediction, truth, self.num_classes))

    def _add_reliability(self, planes: Tensor, masks: Tensor, classes: Tensor) -> None:
        """planes: (K, B, h, w); masks, classes: (B, h, w)."""
        value = 1.0 if self.temperature is None else self.temperature.value
        self._reliability.append(calibration.reliability(planes, masks, temperature=value, classes=classes))
        if self.temperature is not None:
            self._before += calibration.best_reliability(planes, masks)

    @property
    def reliability(self) -> NDArray[np.float64]:
        """(N, K + 1, BINS, 3), with the temperature; see `visionsft.evaluation.calibration`."""
        return np.concatenate(self._reliability)

    @property
    def ece(self) -> float:
        """Expected calibration error of the split, with the temperature."""
        return float(calibration.calibration_error(self.reliability.sum(axis=0))[0])

    def price(self, plain: SegmentationScores) -> PointPrice | None:
        """What the thresholds change; plain: the scores without them."""
        if self.point is None:
            return None
        ruled = summarise(self._ruled, self.point.names)
        return PointPrice.of(self.point, plain.per_class, ruled.per_class, without="most probable class")

    @property
    def boundaries(self) -> BoundaryCounts | None:
        """Of each sample, where they were wanted."""
        return BoundaryCounts.stack(self._boundaries) if self.with_boundaries else None

    def arrays(self) -> dict[str, Any]:
        """Arrays for per_sample.npz: sums by sample, to be sliced and resampled."""
        kept: dict[str, Any] = {"reliability": self.reliability.astype(np.float32)}
        if self.with_boundaries:
            counts = BoundaryCounts.stack(self._boundaries)
            kept |= {f"boundary_{field.name}": getattr(counts, field.name) for field in fields(counts)}
        return kept

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """For scores.json."""
        report = {"calibration": calibration.describe(self.reliability.sum(axis=0), names)}
        report["calibration"] |= self.interval.as_dict() if self.interval else {}
        report["calibration"]["temperature"] = without_nan(self._describe_temperature())
        if self.with_boundaries:
            report["boundaries"] = boundaries.describe(BoundaryCounts.stack(self._boundaries).sum(), names)
            if self.boundary_intervals is not None:
                report["boundaries"]["intervals"] = self.boundary_intervals.as_dict()
        return report

    def _describe_temperature(self) -> dict[str, Any] | None:
        if self.temperature is None:
            return None
        before = float(calibration.calibration_error(self._before))
        known = {"value": self.temperature.value, "fitted_on": self.temperature.fitted_on}
        return {**known, "ece_before": before, "ece_after": self.ece}

    def lines(self) -> list[str]:
        """For the table."""
        known = self._describe_temperature()
        how = "without a temperature; `visionsft calibrate` fits one"
        if known is not None:
            how = f"with temperature {known['value']:.3f}; {number(known['ece_before'])} without"
        lines = [
            f"calibration error (ECE)  {number(self.ece)}  {self.interval.show() if self.interval else ''}  ({how})",
            f"  = {calibration.DEFINITIONS['ece']}",
        ]
        if self.with_boundaries:
            whole = BoundaryCounts.stack(self._boundaries).sum()
            if self.boundary_intervals is not None:
                lines += self.boundary_intervals.lines(boundary_scores(boundary_margins(whole))[0])
            lines += boundaries.summary(whole)
        return lines
