"""Area: how much ground a class covers, corrected for the map's errors, with standard errors.

Counting a map's pixels gives biased areas, since errors of omission and of commission don't cancel. A sample of
places whose true class is known corrects them: `estimate_areas`, the stratified estimator of Olofsson et al.
2014 (Good practices for estimating area and assessing accuracy of land change, Remote Sensing of Environment
148, 42-57), with the map's classes as strata.

**The sample must be a probability sample of that map** (random places within each mapped class, or simply
random or systematic places). The labelled test scenes of an evaluation are none: all their pixels are counted,
in places that somebody chose. So an evaluation compares areas on its own scenes (`compare_areas`) and states no
standard error; for another map, draw places, have them labelled, count them and call `estimate_areas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodules import DataError
from datamodules.raster import Grid
from visionsft.evaluation.metrics.segmentation import ratio, without_nan

NORMAL_95 = 1.959963984540054
"""Half-width of a 95 % interval in standard errors."""

NOTE = (
    "areas on the labelled pixels of this split only. They are a census of chosen scenes, not a probability "
    "sample of a larger map: no standard error is stated, and they say nothing about ground outside. For the "
    "areas of a map, label a random sample of places and use visionsft.evaluation.estimate_areas"
)


@dataclass(frozen=True)
class Estimates:
    """Numbers with their standard errors: ``(K,)`` each, or 0-d; nan where not defined."""

    values: NDArray[np.float64]
    errors: NDArray[np.float64]

    @property
    def interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ends of the 95 % interval (normal approximation)."""
        half = NORMAL_95 * self.errors
        return self.values - half, self.values + half


@dataclass(frozen=True)
class AreaEstimates:
    """The result of `estimate_areas`, class by class."""

    areas: Estimates
    """In the unit of the mapped areas."""
    proportions: Estimates
    """Of the whole map."""
    user: Estimates
    """User's accuracy: precision."""
    producer: Estimates
    """Producer's accuracy: recall."""
    overall: Estimates


def estimate_areas(sample_confusion: ArrayLike, mapped_areas: ArrayLike) -> AreaEstimates:
    """Bias-corrected areas and accuracies of a map from an independent reference sample of it.

    sample_confusion: (K, K) counts of sampled places, **rows = truth (reference), columns = map**, as
    everywhere in visionsft: the transpose of Olofsson's tables. mapped_areas: (K,) area that the map gives
    each class, in any unit; a map on a metric grid has ``pixels * pixel_area(grid)`` square metres. Each mapped
    class needs two sampled places. Variances are equations 5, 6, 7 and 10 of the paper.
    """
    counts, areas = np.asarray(sample_confusion, np.float64).T, np.asarray(mapped_areas, np.float64)
    _check(counts, areas)
    strata = areas > 0
    total, sampled = areas.sum(), counts.sum(1)
    # shares of the reference classes (columns) in each mapped class (rows); a class that isn't mapped has none
    shares = np.divide(counts, sampled[:, None], out=np.zeros_like(counts), where=strata[:, None])
    spread = np.divide(1.0, sampled - 1, out=np.zeros_like(sampled), where=strata)[:, None]
    variances = shares * (1 - shares) * spread
    weights = areas / total
    proportions = Estimates(weights @ shares, np.sqrt(weights**2 @ variances))
    own, own_variance = np.diagonal(shares), np.diagonal(variances)
    return AreaEstimates(
        areas=Estimates(proportions.values * total, proportions.errors * total),
        proportions=proportions,
        user=Estimates(*(np.where(strata, each, np.nan) for each in (own, np.sqrt(own_variance)))),
        producer=_producer(areas, shares, variances),
        overall=Estimates(weights @ own, np.sqrt(weights**2 @ own_variance)),
    )


def _producer(
    areas: NDArray[np.float64], shares: NDArray[np.float64], variances: NDArray[np.float64]
) -> Estimates:
    """A ratio of two estimated areas: found / present. shares, variances: (mapped, reference)."""
    present = areas @ shares
    accuracy = ratio(areas * np.diagonal(shares), present)
    scaled = areas[:, None] ** 2 * variances
    own = np.diagonal(scaled)
    variance = (1 - accuracy) ** 2 * own + accuracy**2 * (scaled.sum(0) - own)
    return Estimates(accuracy, np.sqrt(ratio(variance, present**2)))


def _check(counts: NDArray[np.float64], areas: NDArray[np.float64]) -> None:
    if areas.ndim != 1 or counts.shape != (len(areas), len(areas)):
        raise DataError(f"a sample matrix of shape {counts.shape} for mapped areas of shape {areas.shape}")
    if (counts < 0).any() or (areas < 0).any() or areas.sum() <= 0:
        raise DataError("sample counts and mapped areas can't be negative, and some area must be mapped")
    for k, (area, sampled) in enumerate(zip(areas, counts.sum(1), strict=True)):
        if area > 0 and sampled < 2:
            raise DataError(
                f"mapped class {k} has {sampled:g} sampled places; its standard error needs at least 2"
            )
        if area == 0 and sampled > 0:
            raise DataError(f"class {k} has sampled places where it is mapped, but a mapped area of 0")


def pixel_area(grid: Grid) -> float | None:
    """Square metres of a pixel; None where the grid isn't metric (geographic, or without CRS)."""
    if grid.crs is None or not grid.crs.is_projected:
        return None
    metres = float(grid.crs.linear_units_factor[1])
    return abs(grid.transform.determinant) * metres**2


def compare_areas(
    confusions: NDArray[np.int64], grids: Sequence[Grid], names: Sequence[str]
) -> dict[str, Any]:
    """Mapped beside labelled areas, for scores.json: ``(N, K, K)`` confusions and the grid of each sample.

    In hectares where every grid is metric, else in pixels.
    """
    sizes = [pixel_area(grid) for grid in grids]
    metric = all(size is not None for size in sizes)
    unit = np.array(sizes, np.float64) / 10_000 if metric else np.ones(len(grids))
    mapped, labelled = unit @ confusions.sum(axis=1), unit @ confusions.sum(axis=2)
    columns = {
        "mapped": mapped,
        "labelled": labelled,
        "mapped_share": ratio(mapped, np.full_like(mapped, mapped.sum())),
        "labelled_share": ratio(labelled, np.full_like(labelled, labelled.sum())),
        "bias": ratio(mapped - labelled, labelled),
    }
    report = {key: dict(zip(names, column.tolist(), strict=True)) for key, column in columns.items()}
    definition = {"bias": "(mapped - labelled) / labelled", "note": NOTE}
    return without_nan({"unit": "hectares" if metric else "pixels", **report, "definition": definition})
