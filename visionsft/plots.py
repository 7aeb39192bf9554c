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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import cos, log, radians
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from visionsft.evaluation.metrics.detection_curves import DetectionCurve
from visionsft.evaluation.pictures import confusion_figure as confusion

__all__ = [
    "bounds",
    "candidates",
    "class_differences",
    "class_reliability",
    "class_scores",
    "confusion",
    "embeddings",
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
    "study_history",
    "study_importance",
    "study_parallel",
    "trimap",
    "validation_scores",
]

INK, MUTED, RULE, PAPER = "#1d2125", "#5b6168", "#dcd9d2", "#fbfaf7"
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"

_PALETTE = (
    (BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"),
    ("#000000", "X"), ("#b8a800", "*"),
)  # fmt: skip
"""Colours (after Okabe and Ito) and marks of classes."""

_SPLITS = {"train": (BLUE, "o"), "val": (VERMILION, "s"), "test": (GREEN, "^")}
_WIDTH = 4.9
"""Inches: two figures stand side by side in the report."""
_SHOWN = 24
"""Rows at most of a figure with a row a slice."""

_FLATTEST, _TALLEST = 0.45, 1.0
"""Height of a map over its width."""

_NAME = 44
"""Letters of a candidate's name at most."""

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
    axes.hist(
        values, bins=np.linspace(0, 1, 21).tolist(), color=BLUE, alpha=0.75, edgecolor=PAPER, linewidth=0.6
    )
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
    counts = [_counted(row) for row in bins]
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


def _counted(row: Row) -> int:
    """Pixels, or other answers, in a bin."""
    return int(row["count"] if "count" in row else row["pixels"])


def class_reliability(bins_per_class: Mapping[str, Sequence[Row]]) -> Figure:
    """How often pixels or images are of a class, by the probability given to it: small axes, one a class."""
    figure, grid = _small_axes(bins_per_class)
    for axes, bins in zip(grid, bins_per_class.values(), strict=False):
        filled = [row for row in bins if _counted(row)]
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
    axes.set_xlim(right=max(0.05, *(1.12 * (kind["gain"] or 0.0) for kind in kinds)))
    if all((kind["gain"] or 0.0) >= 0 for kind in kinds):
        axes.set_xlim(left=0)
    axes.set_xlabel(f"average precision (IoU {errors['iou']:g}) without these errors, minus what it is")
    axes.grid(axis="y", visible=False)
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


# --------------------------------------------------------------------------------------------------- search


def study_history(trials: Sequence[Row]) -> Figure:
    """Scores by number, and the best so far; trials: those of a `StudyResult` that have a score."""
    figure, axes = _figure(2.9)
    for state, label, marker in (("complete", "complete", "o"), ("pruned", "pruned", "x")):
        points = [(trial["number"], trial["score"]) for trial in trials if trial["state"] == state]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=BLUE, markersize=5, label=label)
    finished = [trial for trial in trials if trial["state"] == "complete"]
    best = np.maximum.accumulate(np.array([trial["score"] for trial in finished], np.float64))
    axes.step(
        [t["number"] for t in finished],
        best,
        where="post",
        color=VERMILION,
        linewidth=1.2,
        label="best so far",
    )
    axes.set_xlabel("trial")
    axes.set_ylabel("validation score")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def study_importance(importance: Mapping[str, float]) -> Figure:
    """Share of each key, the largest at the top."""
    rows = sorted(importance.items(), key=lambda row: row[1])
    figure, axes = _figure(0.27 * len(rows) + 0.9)
    axes.barh(range(len(rows)), [share for _, share in rows], color=BLUE, height=0.6)
    axes.set_yticks(range(len(rows)), [_plain(key) for key, _ in rows])
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance")
    return figure


def study_parallel(trials: Sequence[Row]) -> Figure:
    """A line a trial through the values of its keys, numbers or texts, to its score; the best is vermilion.

    A key whose values are all numbers has an axis of numbers, in their logarithm where they span more than a decade.
    """
    ranked = sorted(trials, key=lambda trial: trial["score"])
    keys = list(dict.fromkeys(key for trial in trials for key in trial["values"]))
    columns = [_coordinates([trial["values"].get(key) for trial in ranked]) for key in keys]
    columns.append(_coordinates([trial["score"] for trial in ranked]))
    figure, axes = _figure(3.4)
    for row, trial in enumerate(ranked):
        best = trial is ranked[-1]
        line = [heights[row] for heights, _ in columns]
        strength = 0.15 + 0.5 * row / max(len(ranked) - 1, 1)
        axes.plot(
            line, color=VERMILION if best else BLUE, alpha=1 if best else strength, linewidth=2 if best else 1
        )
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color=RULE, linewidth=1)
        for height, label in ticks.items():
            text = _plain(shorten(label, 30, placeholder="…"))
            axes.text(place, height, text, fontsize=7, color=INK, ha="center", va="bottom")
    names = [_plain(shorten(key, 26, placeholder="…")) for key in [*keys, "score"]]
    axes.set_xticks(range(len(columns)), names, rotation=25, ha="right", fontsize=8)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _coordinates(values: Sequence[Any]) -> tuple[list[float], dict[float, str]]:
    """Heights from 0 to 1 of a key's values, and what to write at which height; None is below all."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) for value in known):
        low, high = min(known), max(known)
        in_log = low > 0 and high > 10 * low
        places = [log(v) if in_log else v for v in (low, high)]
        span = (places[1] - places[0]) or 1.0
        heights = {v: ((log(v) if in_log else v) - places[0]) / span for v in known}
        ticks = {heights[low]: f"{low:.3g}", heights[high]: f"{high:.3g}"}
        found = [-0.15 if value is None else heights[value] for value in values]
    else:
        texts = sorted(map(str, set(known)))
        places = [(n + 0.5) / len(texts) for n in range(len(texts))]
        ticks = dict(zip(places, texts, strict=True))
        found = [-0.15 if value is None else places[texts.index(str(value))] for value in values]
    return found, ticks | ({-0.15: "–"} if None in values else {})


# ----------------------------------------------------------------------------------------------- selection


def candidates(rows: Sequence[Row], *, metric: str, limit: float | None = None) -> Figure:
    """Score of each backbone against the time of an image; rows: "candidates" of selection.json.

    metric: the rows' key of the score. limit: on the time in ms, drawn as a line.
    """
    figure, axes = _figure(3.6)
    axes.set_xscale("log")
    for label, colour, marker, fill in (
        ("recommended", VERMILION, "s", "full"), ("other candidates", BLUE, "o", "full"),
        ("beyond a limit", BLUE, "o", "none"),
    ):  # fmt: skip
        own = [row for row in rows if _kind_of_candidate(row) == label]
        for row in own:
            if row["low"] is not None:
                axes.plot(
                    [row["inference_ms"]] * 2,
                    (row["low"], row["high"]),
                    color=colour,
                    linewidth=2.2,
                    alpha=0.4,
                )
        if own:
            places = zip(*((row["inference_ms"], row[metric]) for row in own), strict=True)
            (line,) = axes.plot(*places, marker, color=colour, label=label)
            line.set(fillstyle=fill, markersize=6)
    if limit is not None:
        axes.axvline(limit, color=MUTED, linewidth=1, linestyle="--", label=f"{limit:g} ms")
    times = [row["inference_ms"] for row in rows]
    axes.set_xlim(min(times) / 1.5, max(times) * 1.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ms an image (forward pass, on this machine)")
    axes.set_ylabel(f"{metric.replace('_', ' ').replace('iou', 'IoU')} of the linear probe")
    _legend(axes)
    _name_points(axes, [(row["inference_ms"], row[metric], row["label"]) for row in rows])
    return figure


def _kind_of_candidate(row: Row) -> str:
    if row["recommended"]:
        return "recommended"
    return "other candidates" if row["within_limits"] else "beyond a limit"


def _name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Names beside points, towards the middle of the axes, those of near points one below the other."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # lays the axes out, so that points have their places
    low, high = axes.get_window_extent().intervalx
    line = 11 * figure.dpi / 72
    taken: list[tuple[bool, float]] = []
    for x, y, name in sorted(points, key=lambda point: -point[1]):
        across, up = axes.transData.transform((x, y))
        left, height = bool(across > (low + high) / 2), float(up)
        while any(side == left and abs(height - other) < line for side, other in taken):
            height -= line
        taken.append((left, height))
        text = axes.annotate(
            _plain(name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"), (x, y),
            xytext=(-7 if left else 7, (height - up) * 72 / figure.dpi), textcoords="offset points",
            fontsize=7.5, color=INK, ha="right" if left else "left", va="center",
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])


def embeddings(
    points: ArrayLike,
    names: Sequence[str],
    *,
    axes: tuple[str, str],
    title: str,
    pictures: Sequence[tuple[float, float, NDArray[np.uint8]]] = (),
) -> Figure:
    """A 2-D map of embeddings: points (N, 2), coloured by their names; '' is grey, as are names beyond the 8 most
    frequent. axes: what the dimensions are. pictures: x, y and (H, W, 3) of thumbnails to lay over it."""
    places = np.asarray(points, np.float64)
    figure, canvas = _figure(4.6)
    frequent = [name for name, _ in Counter(name for name in names if name).most_common(len(_PALETTE))]
    own = np.array([frequent.index(name) if name in frequent else -1 for name in names])
    style: dict[str, Any] = {"s": float(np.clip(2500 / max(len(places), 1), 6, 30)), "linewidths": 0}
    if (own < 0).any():
        label = "others" if frequent else None
        canvas.scatter(places[own < 0, 0], places[own < 0, 1], color=MUTED, alpha=0.4, label=label, **style)
    for index, name in enumerate(frequent):
        x, y = places[own == index].T
        colour, marker = _PALETTE[index]
        label = _plain(shorten(name, 24, placeholder="…"))
        canvas.scatter(x, y, color=colour, marker=marker, alpha=0.75, label=label, **style)
    for x, y, picture in pictures:
        image = OffsetImage(picture, zoom=0.5)
        edge = {"edgecolor": RULE, "linewidth": 0.6}
        box = AnnotationBbox(
            image, (x, y), xybox=(0, 14), boxcoords="offset points", pad=0.06, bboxprops=edge
        )
        canvas.add_artist(box)  # above its dot, which stays to be seen
    canvas.set_xlabel(axes[0])
    canvas.set_ylabel(axes[1])
    lines = -(-len(canvas.get_legend_handles_labels()[1]) // 3)  # of the legend, above which the title stands
    canvas.set_title(title, fontsize=9, color=MUTED, loc="left", pad=8 + 14 * lines)
    _legend(canvas)
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
