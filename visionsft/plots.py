"""Plots: a run's numbers as matplotlib figures, for notebooks; the report draws the same.

>>> from visionsft import plots, read_facts
>>> facts = read_facts("runs/camvid", split="test")
>>> plots.class_scores(facts.scores)

Each takes plain values as they stand in the run folder's files, and returns a new figure without pyplot's
global state. Blue, vermilion and green are Okabe and Ito's (2008), told apart by colour-blind readers, too, and
never the only difference between two things.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import cos, radians
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from visionsft.evaluation.metrics.detection_curves import DetectionCurve
from visionsft.evaluation.pictures import confusion_figure as confusion

__all__ = [
    "bounds",
    "class_differences",
    "class_reliability",
    "class_scores",
    "confusion",
    "error_split",
    "false_alarm_curves",
    "footprints",
    "label_curves",
    "losses",
    "precision_recall",
    "precision_recall_curves",
    "precision_recall_points",
    "reliability",
    "sample_scores",
    "slices",
    "trimap",
    "validation_scores",
]

INK, MUTED, RULE, PAPER = "#1d2125", "#5b6168", "#dcd9d2", "#fbfaf7"
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"

_SPLITS = {"train": (BLUE, "o"), "val": (VERMILION, "s"), "test": (GREEN, "^")}
_WIDTH = 4.9
"""Inches: two figures stand side by side in the report."""
_SHOWN = 24
"""Rows at most of a figure with a row a slice."""

_FLATTEST, _TALLEST = 0.45, 1.0
"""Height of a map over its width."""

_OUTLINED = 1000
"""Scenes at most whose outlines are drawn."""

TITLES = {
    "iou": "IoU", "mean_iou": "mean IoU", "f1": "F1", "macro_f1": "macro F1", "map": "mAP", "ap": "AP",
    "ap50": "AP50", "ap75": "AP75", "ar": "average recall", "recall": "recall", "precision": "precision",
    "accuracy": "accuracy", "mean_recall": "mean recall", "mean_average_precision": "mean average precision",
    "average_precision": "average precision", "log_average_miss_rate": "log-average miss rate",
}  # fmt: skip
"""What metrics are called on a figure."""

VALIDATED = (
    "val/mean_iou", "val/mean_recall", "val/map", "val/ap50", "val/accuracy", "val/mean_average_precision",
    "val/macro_f1",
)  # fmt: skip
"""Columns of metrics.csv that are scores on the validation split; of each task the first two are drawn."""

Row = Mapping[str, Any]


# ------------------------------------------------------------------------------------------------ training


def losses(rows: Sequence[Row]) -> Figure:
    """Training and validation loss by epoch; rows: those of metrics.csv, as numbers."""
    lines = {"train/loss": ("training", BLUE, "o"), "val/loss": ("validation", VERMILION, "s")}
    return _curves(rows, lines, ylabel="loss")


def validation_scores(rows: Sequence[Row]) -> Figure:
    """The task's two main scores on the validation split by epoch."""
    there = [key for key in VALIDATED if any(row.get(key) is not None for row in rows)]
    styles = zip(there, ((BLUE, "o"), (VERMILION, "s")), strict=False)
    lines = {key: (TITLES[key.removeprefix("val/")], *style) for key, style in styles}
    return _curves(rows, lines, ylabel="validation score")


def _curves(rows: Sequence[Row], lines: Mapping[str, tuple[str, str, str]], *, ylabel: str) -> Figure:
    figure, axes = _figure(2.9)
    for key, (label, colour, marker) in lines.items():
        points = [(row["epoch"] + 1, row[key]) for row in rows if row.get(key) is not None]
        if points:
            size = 5 if len(points) < 25 else 0
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=size, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


# ----------------------------------------------------------------------------------------------------- data


def footprints(outlines: Sequence[Row]) -> Figure:
    """Where the scenes lie: {"id", "split", "outline": WKT polygon in degrees} as in data.json.

    A dot a scene, and its outline unless there are too many.
    """
    west, south, east, north = bounds(outlines)
    aspect = 1 / max(cos(radians((south + north) / 2)), 0.1)  # a degree north in degrees east
    width, height = max(east - west, 1e-3), max((north - south) * aspect, 1e-3)
    half = 0.53 * max(width, height / _TALLEST), 0.53 * max(height, width * _FLATTEST)
    figure, axes = _figure(0.5 + _WIDTH * min(max(height / width, _FLATTEST), _TALLEST))
    for split, (colour, marker) in _SPLITS.items():
        rings = [_ring(each["outline"]) for each in outlines if each["split"] == split]
        for ring in rings if len(outlines) <= _OUTLINED else ():
            axes.add_patch(Polygon(ring, facecolor=(colour, 0.22), edgecolor=colour, linewidth=1))
        if rings:
            middles = np.array([ring[:-1].mean(axis=0) for ring in rings])  # a ring ends where it begins
            label = f"{split}: {len(rings):,}"
            axes.plot(*middles.T, marker, color=colour, markersize=4, linestyle="none", label=label)
    axes.set_xlim((west + east) / 2 - half[0], (west + east) / 2 + half[0])
    axes.set_ylim((south + north) / 2 - half[1] / aspect, (south + north) / 2 + half[1] / aspect)
    axes.set_aspect(aspect)
    axes.set_xlabel("longitude (°)")
    axes.set_ylabel("latitude (°)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.ticklabel_format(useOffset=False)
    _legend(axes)
    return figure


def bounds(outlines: Sequence[Row]) -> tuple[float, float, float, float]:
    """West, south, east and north of the outlines, in degrees."""
    corners = np.concatenate([_ring(each["outline"]) for each in outlines])
    return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


def _ring(polygon: str) -> NDArray[np.float64]:
    """(N, 2) longitude, latitude of 'POLYGON ((lon lat, ...))'."""
    return np.array(re.findall(r"-?[\d.]+", polygon), np.float64).reshape(-1, 2)


# --------------------------------------------------------------------------------------------------- scores


def class_scores(scores: Row, *, metrics: tuple[str, str] = ("iou", "recall")) -> Figure:
    """Two metrics of each class, the first with its interval if there is one, best first; scores: scores.json."""
    first, second = metrics
    rows = [row for row in scores["scores"]["per_class"] if row[first] is not None]
    rows.sort(key=lambda row: row[first])
    intervals = (scores.get("intervals") or {}).get("per_class") or {}
    figure, axes = _figure(0.27 * len(rows) + 0.9)
    places = range(len(rows))
    for place, row in zip(places, rows, strict=True):
        if interval := intervals.get(row["name"], {}).get(first):
            axes.plot(interval, (place, place), color=BLUE, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
    axes.plot([row[first] for row in rows], places, "o", color=BLUE, clip_on=False, label=TITLES[first])
    others = [np.nan if row[second] is None else row[second] for row in rows]
    style: dict[str, Any] = {"color": VERMILION, "markersize": 5, "fillstyle": "none", "clip_on": False}
    axes.plot(others, places, "D", label=TITLES[second], **style)
    axes.set_yticks(places, [_plain(row["name"]) for row in rows])
    _score_axis(axes)
    return figure


def class_differences(first: Row, second: Row, *, names: tuple[str, str], metric: str = "iou") -> Figure:
    """A metric of each class in two runs; first, second: their scores.json. Classes in neither are left out."""
    pairs = zip(first["scores"]["per_class"], second["scores"]["per_class"], strict=True)
    values = [(one["name"], one[metric], two[metric]) for one, two in pairs]
    rows = [row for row in values if None not in row]
    rows.sort(key=lambda row: row[2] - row[1])
    figure, axes = _figure(0.27 * len(rows) + 0.9)
    places = range(len(rows))
    for place, (_, one, two) in zip(places, rows, strict=True):
        axes.plot((one, two), (place, place), color=MUTED, linewidth=1)
    marks = (("o", BLUE, "none"), ("s", VERMILION, "full"))
    for column, (name, (marker, colour, fill)) in enumerate(zip(names, marks, strict=True), start=1):
        (line,) = axes.plot([row[column] for row in rows], places, marker, color=colour, label=_plain(name))
        line.set(fillstyle=fill, markersize=5, clip_on=False)
    axes.set_yticks(places, [_plain(row[0]) for row in rows])
    _score_axis(axes)
    axes.set_xlabel(TITLES[metric])
    return figure


def sample_scores(scores: ArrayLike, *, what: str = "mean IoU") -> Figure:
    """Histogram of a score of single samples ``(N,)``, with its median; nan (no labels) is left out."""
    values = np.asarray(scores, np.float64)
    values = values[~np.isnan(values)]
    median = float(np.median(values))
    figure, axes = _figure(2.5)
    axes.hist(values, bins=np.linspace(0, 1, 21).tolist(), color=BLUE, alpha=0.75, edgecolor=PAPER, linewidth=0.6)
    axes.axvline(median, color=VERMILION, linewidth=1.4, label=f"median {median:.3f}")
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"{what} of the single sample")
    axes.set_ylabel("samples")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    _legend(axes)
    return figure


def slices(rows: Sequence[Row], *, metric: str = "mean_iou") -> Figure:
    """A metric of each slice with its interval, the worst first: {"by", "value", "mean_iou", "interval"...}."""
    known = sorted((row for row in rows if row[metric] is not None), key=lambda row: row[metric])
    shown = known[:_SHOWN][::-1]
    figure, axes = _figure(0.27 * len(shown) + 0.9)
    for place, row in enumerate(shown):
        if row.get("interval"):
            axes.plot(row["interval"], (place, place), color=BLUE, linewidth=2.2, alpha=0.55)
    axes.plot([row[metric] for row in shown], range(len(shown)), "o", color=BLUE, label=TITLES[metric])
    axes.set_yticks(range(len(shown)), [_plain(f"{row['by']}: {row['value']}") for row in shown])
    _score_axis(axes)
    return figure


def reliability(
    bins: Sequence[Row],
    *,
    what: str = "confidence of the predicted class",
    right: str = "predicted right",
) -> Figure:
    """How often answers of a confidence are right: {"confidence", "accuracy", "pixels" or "count"}; dots by these."""
    counts = [row["count"] if "count" in row else row["pixels"] for row in bins]
    filled = [(row, count) for row, count in zip(bins, counts, strict=True) if count]
    share = np.array([count for _, count in filled], np.float64)
    share /= max(share.sum(), 1)
    confidence, accuracy = ([row[key] for row, _ in filled] for key in ("confidence", "accuracy"))
    figure, axes = _figure(3.4)
    axes.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle="--", label="perfectly calibrated")
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1.2, label="this model")
    axes.scatter(confidence, accuracy, s=12 + 260 * share, color=BLUE, zorder=3)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(what)
    axes.set_ylabel(f"share {right}" if right.startswith("predicted") else f"share that {right}")
    _legend(axes)
    return figure


def class_reliability(bins_per_class: Mapping[str, Sequence[Row]]) -> Figure:
    """How often pixels are of a class, by the probability given to it: small axes, one a class."""
    figure, grid = _small_axes(bins_per_class)
    for axes, bins in zip(grid, bins_per_class.values(), strict=False):
        filled = [row for row in bins if row["pixels"]]
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8, linestyle="--")
        axes.plot([row["confidence"] for row in filled], [row["accuracy"] for row in filled], color=BLUE)
    return figure


def precision_recall(bins_per_class: Mapping[str, Sequence[Row]]) -> Figure:
    """Precision over recall of each class against the rest, at the bins' lower ends as thresholds."""
    figure, grid = _small_axes(bins_per_class)
    for axes, bins in zip(grid, bins_per_class.values(), strict=False):
        recall, precision = precision_recall_points(bins)
        axes.plot(recall, precision, color=BLUE, marker="o", markersize=2.5)
    return figure


def precision_recall_points(bins: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Recall and precision, the highest threshold first; none for a class without true pixels.

    A bin holds pixels, and the share of them ("accuracy") that are of the class: what lies above a threshold
    is summed from the top, so that the points are exact, and only as many as there are bins.
    """
    taken = np.cumsum([row["pixels"] for row in reversed(bins)], dtype=np.float64)
    right = np.cumsum([row["pixels"] * (row["accuracy"] or 0.0) for row in reversed(bins)])
    seen = taken > 0
    if not right[-1] > 0:
        return [], []
    return (right[seen] / right[-1]).tolist(), (right[seen] / taken[seen]).tolist()


def trimap(rows: Sequence[Row]) -> Figure:
    """Scores in a band around the true edges, by its width: {"distance", "mean_iou", "pixel_accuracy"}."""
    figure, axes = _figure(2.9)
    lines = {"mean_iou": ("mean IoU", BLUE, "o"), "pixel_accuracy": ("pixel accuracy", VERMILION, "s")}
    for key, (label, colour, marker) in lines.items():
        points = [(row["distance"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=label)
    axes.set_xlabel("pixels to the nearest true edge, at most")
    axes.set_ylabel("score within that band")
    _legend(axes)
    return figure


# ------------------------------------------------------------------------------------------------ detections


def precision_recall_curves(curves: Mapping[str, DetectionCurve]) -> Figure:
    """Precision over recall of each class's detections; curves: see `visionsft.evaluation.precision_recall_curves`."""
    figure, grid = _small_axes(curves)
    for axes, curve in zip(grid, curves.values(), strict=True):
        axes.plot(curve.recall, curve.precision, color=BLUE, linewidth=1.4)
    return figure


def false_alarm_curves(curves: Mapping[str, DetectionCurve]) -> Figure:
    """Recall over false positives per image of each class, from one in a hundred images to ten in each."""
    figure, grid = _small_axes(curves)
    for axes, curve in zip(grid, curves.values(), strict=True):
        axes.set(xscale="log", xlim=(0.01, 10), xticks=(0.01, 0.1, 1, 10), aspect="auto")
        axes.set_xticklabels(("0.01", "0.1", "1", "10"))
        axes.minorticks_off()
        axes.step(np.maximum(curve.fppi, 1e-3), curve.recall, where="post", color=BLUE, linewidth=1.4)
    return figure


def error_split(errors: Row) -> Figure:
    """Average precision that each kind of error costs, the dearest first; errors: those of scores.json."""
    kinds = sorted(errors["kinds"], key=lambda kind: kind["gain"] or 0.0)
    figure, axes = _figure(0.3 * len(kinds) + 0.8)
    places = range(len(kinds))
    axes.barh(places, [kind["gain"] or 0.0 for kind in kinds], height=0.6, color=BLUE)
    for place, kind in zip(places, kinds, strict=True):
        axes.annotate(
            f"{kind['count']:,}", (kind["gain"] or 0.0, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8, color=MUTED,
        )  # fmt: skip
    axes.set_yticks(places, [kind["name"] for kind in kinds])
    axes.set_xlabel(f"average precision (IoU {errors['iou']:g}) without these errors, minus what it is")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    return figure


# ---------------------------------------------------------------------------------------------------- labels


def label_curves(probabilities: ArrayLike, truth: ArrayLike, names: Sequence[str]) -> Figure:
    """Precision over recall of each class against the rest; both (N, K), probabilities and whether it is the class."""
    found, is_class = np.asarray(probabilities, np.float64), np.asarray(truth, np.bool_)
    figure, grid = _small_axes(names)
    for axes, column, own in zip(grid, found.T, is_class.T, strict=True):
        if own.any():
            order = np.argsort(-column, kind="stable")
            last = np.append(np.diff(column[order]) != 0, True)  # equal probabilities at once
            right, taken = np.cumsum(own[order])[last], np.arange(1, len(own) + 1)[last]
            axes.plot(right / own.sum(), right / taken, color=BLUE, linewidth=1.4)
    return figure


# ---------------------------------------------------------------------------------------------------- style


def _figure(height: float) -> tuple[Figure, Axes]:
    """An empty figure of the common style; height in inches."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9, length=0)
    axes.grid(color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=MUTED, size=9)
    return figure, axes


def _small_axes(names: Iterable[str]) -> tuple[Figure, list[Axes]]:
    """A figure of small axes from 0 to 1, up to four in a row, under their names."""
    titles = list(names)
    columns = min(max(len(titles), 2), 4)
    rows = max(1, -(-len(titles) // columns))
    figure = Figure(figsize=(_WIDTH, 5.4 / columns * rows), layout="constrained", facecolor=PAPER)
    grid = [figure.add_subplot(rows, columns, 1 + index, facecolor="none") for index in range(len(titles))]
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(_plain(shorten(title, 18, placeholder="…")), fontsize=8, color=INK, loc="left")
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xticks=(0, 1), yticks=(0, 1), aspect="equal")
        axes.tick_params(labelsize=7, length=0, labelcolor=MUTED)
        axes.spines[:].set_color(RULE)
    return figure, grid


def _legend(axes: Axes) -> None:
    """Above the axes, in a row; the figures have no titles, since their captions stand beside them."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9, labelcolor=INK,
            borderaxespad=0.1, handletextpad=0.5,
        )  # fmt: skip


def _score_axis(axes: Axes) -> None:
    """Scores from 0 to 1 across, a row a thing down."""
    axes.set_xlim(0, 1)
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.5 / max(len(axes.get_yticks()), 1))
    _legend(axes)


def _plain(text: str) -> str:
    """The text as it is: matplotlib takes what stands between two dollar signs for mathematics."""
    return text.replace("$", r"\$")
