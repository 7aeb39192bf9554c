"""Pictures: samples, masks, confusion matrices and reliability curves as RGB arrays and matplotlib figures.

Arrays are ``(H, W, 3) uint8``; masks are ``(H, W)`` class indices with 255 for "no label". Figures are built
without pyplot, so that drawing leaves no global state behind: ``figure.savefig(path)``, or show it in a
notebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, ClassVar

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from datamodules.batch import IGNORE
from visionsft.evaluation.metrics.detection_curves import DetectionCurve

Rgb = NDArray[np.uint8]

RIGHT, WRONG = (225, 225, 225), (200, 50, 0)
"""Colours of the error map; the red is told from the grey by its darkness, too."""
_IGNORED, _IGNORED_STRIPE = (150, 150, 150), (190, 190, 190)
_STRETCH = (2.0, 98.0)
_BAND_NAMES = (("red", "r"), ("green", "g"), ("blue", "b"))


# -------------------------------------------------------------------------------------------------- arrays


def display(
    image: ArrayLike,
    *,
    mean: ArrayLike,
    std: ArrayLike,
    bands: Sequence[str],
    eight_bit: bool,
    valid: ArrayLike | None = None,
) -> Rgb:
    """A normalised image ``(C, H, W) float32`` back as a picture; black where not `valid` ``(H, W) bool``.

    mean, std: the normalisation of each band in raw units. bands: their names; red, green and blue are found
    by name, else the first three are taken. eight_bit: raw values are shown as they are; all others are
    stretched from their 2nd to their 98th percentile, each band by itself.
    """
    chosen = display_bands(bands)
    means, stds = (np.asarray(values, np.float32)[chosen, None, None] for values in (mean, std))
    raw = np.asarray(image, np.float32)[chosen] * stds + means
    seen = np.ones(raw.shape[1:], bool) if valid is None else np.asarray(valid, bool)
    if not eight_bit:
        raw = np.stack([_stretch(band, seen) for band in raw])
    picture = np.rint(raw).clip(0, 255).astype(np.uint8)
    return np.where(seen[..., None], picture.transpose(1, 2, 0), np.uint8(0))


def display_bands(bands: Sequence[str]) -> list[int]:
    """Indices of the bands to show as red, green, blue: by name, else the first three, else the first."""
    lower = [band.lower() for band in bands]
    found = [lower.index(name) for names in _BAND_NAMES for name in names if name in lower]
    if len(found) == 3:
        return found
    return [0, 1, 2] if len(bands) >= 3 else [0, 0, 0]


def _stretch(band: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Percentiles of the seen pixels to 0..255."""
    if not seen.any():
        return band
    low, high = np.percentile(band[seen], _STRETCH)
    return (band - low) * (255 / max(high - low, 1e-6))


def colourise(mask: ArrayLike, colours: NDArray[np.uint8]) -> Rgb:
    """Class indices ``(H, W)`` in their colours ``(K, 3) uint8``; 255 as grey stripes."""
    mask = np.asarray(mask)
    return _stripe(_paint(mask, colours), mask == IGNORE)


def _paint(mask: NDArray[Any], colours: NDArray[np.uint8]) -> Rgb:
    """Black where there is no class."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    # several times as fast as table[mask]
    return np.asarray(cv2.applyColorMap(mask.astype(np.uint8), table[:, None]), np.uint8)


def error_map(prediction: ArrayLike, truth: ArrayLike) -> Rgb:
    """Light grey where the prediction is right, red where it is wrong, striped where there is no label."""
    truth = np.asarray(truth)
    wrong = (np.asarray(prediction) != truth).astype(np.uint8)
    return _stripe(np.array([RIGHT, WRONG], np.uint8)[wrong], truth == IGNORE)


def overlay(picture: Rgb, mask: ArrayLike, colours: NDArray[np.uint8], *, alpha: float = 0.5) -> Rgb:
    """The mask's colours over the picture; the bare picture where the mask is 255."""
    mask = np.asarray(mask)
    mixed = np.asarray(cv2.addWeighted(picture, 1 - alpha, _paint(mask, colours), alpha, 0), np.uint8)
    return np.asarray(cv2.copyTo(picture, (mask == IGNORE).astype(np.uint8), mixed), np.uint8)


def _stripe(picture: Rgb, where: NDArray[np.bool_]) -> Rgb:
    """Diagonal grey stripes, which are no class's colour."""
    rows, cols = np.ogrid[: where.shape[0], : where.shape[1]]
    width = max(2, min(where.shape) // 40)
    stripes = np.array([_IGNORED, _IGNORED_STRIPE], np.uint8)[(rows + cols) // width % 2]
    return np.where(where[..., None], stripes, picture)


# ---------------------------------------------------------------------------------------- confusion matrix


def confusion_figure(
    confusion: NDArray[np.int64], names: Sequence[str], *, title: str, counted: str = "pixels"
) -> Figure:
    """Heat map of a ``(K, K)`` confusion matrix (rows = truth), each row in percent of what is counted."""
    count = len(names)
    pixels = confusion.sum(axis=1)
    rows = 100.0 * confusion / np.maximum(pixels, 1)[:, None]
    side = min(max(0.48 * count, 3.6), 16.0)
    name_room = 0.085 * max(len(name) for name in names)
    lines = title.count("\n") + 1
    size = (side + name_room + 2.6, side + (name_room if count > 4 else 0.2) + 0.5 + 0.2 * lines)
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    axes = figure.add_subplot()
    shown = axes.imshow(rows, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    share = pixels / max(pixels.sum(), 1)
    axes.set_xticks(range(count), names, rotation=90 if count > 4 else 0)
    axes.set_yticks(range(count), [f"{name}  ({part:.1%})" for name, part in zip(names, share, strict=True)])
    axes.set_xticks(np.arange(count - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted class  (· is less than 0.5 %)")
    axes.set_ylabel(f"true class  (share of labelled {counted})")
    axes.set_title(title, loc="left", fontsize=11)
    _write_cells(axes, rows, pixels, counted, size=10 if count <= 12 else max(5.0, 72 * side / count * 0.3))
    bar = figure.colorbar(shown, ax=axes, fraction=0.5 / size[0], pad=0.2 / size[0], shrink=0.8)
    bar.set_label(f"% of the true class's {counted} (diagonal = recall)")
    return figure


def _write_cells(
    axes: Axes, rows: NDArray[np.float64], pixels: NDArray[np.int64], counted: str, *, size: float
) -> None:
    """A number in each cell that isn't zero; the row of a class without truth says so."""
    for (row, col), value in np.ndenumerate(rows):
        if value > 0:
            text = f"{value:.0f}" if value >= 0.5 else "·"
            cell = axes.text(col, row, text, ha="center", va="center", size=size)
            cell.set_color("white" if value > 55 else "0.2")
            cell.set_in_layout(False)  # measuring 900 cells would take most of the time
    for row in np.flatnonzero(pixels == 0).tolist():
        centre = (len(pixels) - 1) / 2
        axes.text(centre, row, f"no {counted} in truth", ha="center", va="center", size=size, color="0.45")


# -------------------------------------------------------------------------------------------- reliability


def reliability_figure(
    histogram: NDArray[np.float64],
    names: Sequence[str],
    colours: NDArray[np.uint8],
    *,
    title: str,
    what: str = "the predicted class",
    counted: str = "pixels",
) -> Figure:
    """Share right over mean probability, of the highest probability (`what`) and of each class against the rest.

    histogram: ``(K + 1, bins, 3)``, see `visionsft.evaluation.calibration`. Dots grow with the bin's pixels.
    """
    figure = Figure(figsize=(11.5, 5.4 + 0.2 * title.count("\n")), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    _draw_reliability(left, histogram[0], colour="0.2", label="highest probability")
    for name, colour, row in zip(names, colours.tolist(), histogram[1:], strict=True):
        _draw_reliability(right, row, colour=_hex(colour), label=name)
    left.set_title(what, fontsize=10)
    right.set_title("each class against the rest", fontsize=10)
    left.set_ylabel("share of them that are right")
    for axes in (left, right):
        axes.plot((0, 1), (0, 1), color="0.6", linewidth=1, linestyle="--", zorder=0)
        axes.set(xlabel=f"mean probability of the bin's {counted}", aspect="equal", xlim=(0, 1), ylim=(0, 1))
        axes.grid(color="0.92")
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside right upper", fontsize=8, ncols=1 + len(names) // 24
    )
    figure.suptitle(title + "\n", x=0.01, ha="left", fontsize=11)
    return figure


def detection_curves_figure(
    curves: Mapping[str, DetectionCurve], colours: Mapping[str, Sequence[int]], *, title: str
) -> Figure:
    """Precision over recall, and recall over false positives per image, of each class at one IoU."""
    figure = Figure(figsize=(11.5, 5.2 + 0.2 * title.count("\n")), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        style: dict[str, Any] = {"color": _hex(colours[name]), "label": f"{name} ({curve.positives:,} objects)"}
        left.plot(curve.recall, curve.precision, **style)
        right.step(curve.fppi, curve.recall, where="post", **style)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlabel="false positives per image", ylabel="recall", xscale="symlog", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(color="0.92")
    if curves:
        figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(title + "\n", x=0.01, ha="left", fontsize=11)
    return figure


def _draw_reliability(axes: Axes, histogram: NDArray[np.float64], *, colour: str, label: str) -> None:
    pixels, confidence, right = histogram[histogram[:, 0] > 0].T
    share = pixels / max(pixels.sum(), 1)
    axes.plot(confidence / pixels, right / pixels, color=colour, linewidth=1.2, label=label)
    axes.scatter(
        confidence / pixels, right / pixels, s=8 + 120 * share, color=colour, edgecolor="0.3", linewidth=0.4
    )


# ------------------------------------------------------------------------------------------- contact sheet


@dataclass(frozen=True)
class Example:
    """One row of a contact sheet."""

    shows_error: ClassVar[bool] = True
    label: str
    """What it is: its id and score."""
    picture: Rgb
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]

    def panels(self, colours: NDArray[np.uint8]) -> list[tuple[str, Rgb]]:
        """Four pictures with their headings."""
        return [
            ("image", self.picture),
            ("truth", colourise(self.truth, colours)),
            *self._answers(colours),
        ]

    def _answers(self, colours: NDArray[np.uint8]) -> list[tuple[str, Rgb]]:
        return [
            ("prediction", colourise(self.prediction, colours)),
            ("error", error_map(self.prediction, self.truth)),
        ]


@dataclass(frozen=True)
class PairExample(Example):
    """One row of a contact sheet that shows two models, A and B."""

    shows_error: ClassVar[bool] = False
    other: NDArray[np.uint8]
    """B's prediction."""

    def _answers(self, colours: NDArray[np.uint8]) -> list[tuple[str, Rgb]]:
        return [("A", colourise(self.prediction, colours)), ("B", colourise(self.other, colours))]


def contact_sheet(
    examples: Sequence[Example], *, names: Sequence[str], colours: NDArray[np.uint8], title: str
) -> Figure:
    """The four panels of each example, a row each, with a legend of the classes."""
    width, gap, caption = 2.9, 0.06, 0.34  # inches
    heights = [width * example.picture.shape[0] / example.picture.shape[1] + caption for example in examples]
    legend_columns = min(len(names) + 3, 6)
    legend = 0.25 * -(-(len(names) + 3) // legend_columns) + 0.15
    heading = 0.4 + 0.17 * (title.count("\n") + 1)
    size = (4 * width + 5 * gap, sum(heights) + heading + legend)
    figure = Figure(figsize=size, dpi=110)
    figure.text(gap / size[0], 1 - 0.12 / size[1], title, ha="left", va="top", size=11)
    top = size[1] - heading
    for example, height in zip(examples, heights, strict=True):
        label = shorten(example.label, 150, placeholder="...")
        figure.text(gap / size[0], (top - caption + 0.07) / size[1], label, size=9)
        for column, (head, picture) in enumerate(example.panels(colours)):
            left = gap + column * (width + gap)
            box = (left / size[0], (top - height) / size[1], width / size[0], (height - caption) / size[1])
            axes = figure.add_axes(box)
            axes.imshow(picture, interpolation="nearest" if column else "antialiased", aspect="auto")
            axes.set_axis_off()
            if example is examples[0]:
                figure.text(left / size[0], top / size[1], head, size=10, weight="bold")
        top -= height
    figure.legend(
        handles=_legend_handles(names, colours, errors=any(example.shows_error for example in examples)),
        loc="lower left", ncols=legend_columns, fontsize=9, frameon=False, borderaxespad=0.2,
    )  # fmt: skip
    return figure


def picture_sheet(
    pictures: Sequence[tuple[str, Rgb]], *, title: str, columns: int = 4, side: float = 2.6
) -> Figure:
    """Pictures of any sizes in rows, `side` inches wide, each below its caption, whose lines are shortened to fit."""
    caption, heading = 0.5, 0.3 + 0.17 * (title.count("\n") + 1)  # inches
    rows = -(-len(pictures) // columns)
    tallest = side * max((min(1.0, each.shape[0] / each.shape[1]) for _, each in pictures), default=1.0)
    figure = Figure(figsize=(columns * side, rows * (tallest + caption) + heading), layout="constrained", dpi=110)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    for index, (text, picture) in enumerate(pictures):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(picture, interpolation="antialiased")
        lines = [shorten(line, int(15 * side), placeholder="...") for line in text.split("\n")]
        axes.set_title("\n".join(lines).replace("$", r"\$"), fontsize=7, loc="left")
        axes.set_axis_off()
    return figure


def _legend_handles(names: Sequence[str], colours: NDArray[np.uint8], *, errors: bool) -> list[Patch]:
    classes = zip(names, colours.tolist(), strict=True)
    kinds = (("right", RIGHT), ("wrong", WRONG)) if errors else ()
    return [
        *(Patch(facecolor=_hex(colour), edgecolor="0.4", label=name) for name, colour in classes),
        Patch(
            facecolor=_hex(_IGNORED),
            edgecolor=_hex(_IGNORED_STRIPE),
            hatch="////",
            label="no label (ignored)",
        ),
        *(Patch(facecolor=_hex(colour), edgecolor="0.4", label=f"error: {kind}") for kind, colour in kinds),
    ]


def _hex(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
