"""The audit's page: its findings as one HTML file with pictures, which asks for nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules import DataModule, Item
from datamodules.batch import Window
from datamodules.scenes import SceneModule
from datamodules.surveying import Inspection
from visionsft.evaluation.pictures import Rgb, colourise, display
from visionsft.evaluation.reporting import render_page
from visionsft.preparation.findings import Finding, Group
from visionsft.preparation.value_faults import DARK, LIMIT, SATURATED

if TYPE_CHECKING:
    from visionsft.preparation.auditing import Audit

PICTURES = 6
"""Findings of a kind that are shown as pictures..."""
EXAMPLES = 12
"""...and that are listed."""
BUDGET = 6_000_000
"""Bytes of all pictures, at most."""
_WIDE = 300
"""Pixels of a picture's longer side."""
_LARGEST = 1024
"""Pixels a side of a scene's part that is shown, at most."""
_MARK = (230, 60, 0)
_WITH_LABEL = {
    "unknown value",
    "label layout",
    "nothing labelled",
    "suspect label",
    "suspect region",
    "contradiction",
}
"""Checks of masks, which are shown beside their image."""
_RULES = {
    "unlike its group": "Brightness, contrast, sharpness and colours are compared, as logarithms, with the median of "
    "the image's drive or scene, or of all images where that has few; told from "
    f"{LIMIT:g} robust standard deviations on.",
    "constant image": f"The middle 99 % of the values, and their mean, lie within {DARK:.0%} of the scale.",
    "saturated image": f"More than {SATURATED:.0%} of the pixels are at the largest value of the number type in every "
    "band.",
    "label layout": "Each label's coarse map is compared with how frequent each class is at that place in all others.",
    "lookalike across splits": "Perceptual hashes at most 7 of 64 bits apart, and small pictures that correlate with "
    "0.97 or more.",
    "suspect region": "Confident learning (Northcutt et al. 2021): the model is at least as sure of another class as "
    "it usually is of that class where it is labelled; connected pixels, edges left out.",
    "suspect label": "The share of pixels so contradicted is far above the usual.",
    "mislabelled image": "Confident learning (Northcutt et al. 2021).",
    "channel order": "The image's colours are more likely, among those of its drive or scene, with exchanged channels.",
    "tiny box": "In pixels of the size that training sees.",
}
"""How what is told is found, where the words don't say it."""


def render(audit: Audit, data: DataModule, items: Mapping[str, Item]) -> str:
    """The page. data: settled, for pictures of `items` (by id)."""
    artist = _Artist(data, items)
    return render_page(
        "audit.html",
        audit=audit,
        examples=EXAMPLES,
        kinds=[
            {"group": group, "pictures": artist.draw(group), "rule": _RULES.get(group.check)} for group in audit.kinds
        ],
        colours={
            name: "#{:02x}{:02x}{:02x}".format(*colour)
            for name, colour in zip(data.classes.names, data.classes.colours.tolist(), strict=True)
        }
        if audit.classes
        else {},
    )


class _Artist:
    """Draws findings, until the budget is spent."""

    def __init__(self, data: DataModule, items: Mapping[str, Item]) -> None:
        self.data = data
        self.items = items
        self.by_image = {item.image: item for item in items.values()}
        self.by_label = {item.label: item for item in items.values()}
        self.left = BUDGET
        self.inspector = data.inspector() if items else None

    def draw(self, group: Group) -> list[dict[str, Any]]:
        """Pictures of the first findings of a group: {"finding", "pictures": [(name, data URI)]}."""
        drawn: list[dict[str, Any]] = []
        for finding in group.findings:
            if len(drawn) >= PICTURES or self.left <= 0:
                break
            pictures = self._pictures(finding)
            if pictures:
                named = [(name, _encode(picture)) for name, picture in pictures]
                self.left -= sum(len(text) for _, text in named)
                drawn.append({"finding": finding, "pictures": named})
        return drawn

    def _pictures(self, finding: Finding) -> list[tuple[str, Rgb]]:
        item = self.items.get(finding.item or "")
        if item is None or self.inspector is None:
            return []
        found, window = self._look(item, finding.box)
        if found.values is None or found.valid is None:
            return []
        pictures = [("image", self._show(found))]
        if finding.check in _WITH_LABEL and found.mask is not None and found.mask.shape == found.valid.shape:
            pictures.append(("label", colourise(found.mask, self.data.classes.colours)))
        if finding.box is not None:
            pictures = [(name, _mark(picture, finding.box, window)) for name, picture in pictures]
        other = self.by_image.get(finding.other or "") or self.by_label.get(finding.other)
        if finding.other is not None and other is not None and other is not item:
            second, _ = self._look(other, None)
            if finding.check == "suspect label" and second.mask is not None:
                pictures.append(("label that fits better", colourise(second.mask, self.data.classes.colours)))
            elif second.values is not None:
                pictures.append(("the other", self._show(second)))
        return pictures

    def _look(self, item: Item, box: tuple[int, int, int, int] | None) -> tuple[Inspection, Window | None]:
        assert self.inspector is not None
        window = None
        if isinstance(self.data, SceneModule):
            whole = self.data.scene_of(item).grid.window
            window = _part(item.window or whole, box)
            item = replace(item, window=window, labelled=None)
        return self.inspector.inspect(item), window

    def _show(self, found: Inspection) -> Rgb:
        assert found.values is not None
        bands = len(found.values)
        return display(
            found.values.astype(np.float32), mean=np.zeros(bands), std=np.ones(bands),
            bands=self.data.bands if len(self.data.bands) == bands else [f"B{i}" for i in range(bands)],
            eight_bit=found.values.dtype == np.uint8, valid=found.valid,
        )  # fmt: skip


def _part(whole: Window, box: tuple[int, int, int, int] | None) -> Window:
    """What is shown of a scene: around a place, or its middle."""
    if box is None:
        row, col = whole.row + whole.height // 2, whole.col + whole.width // 2
        side = _LARGEST
    else:
        row, col = box[0] + box[2] // 2, box[1] + box[3] // 2
        side = min(_LARGEST, max(256, 2 * max(box[2], box[3])))
    height, width = min(side, whole.height), min(side, whole.width)
    top = min(max(row - height // 2, whole.row), whole.row + whole.height - height)
    left = min(max(col - width // 2, whole.col), whole.col + whole.width - width)
    return Window(top, left, height, width)


def _mark(picture: Rgb, box: tuple[int, int, int, int], window: Window | None) -> Rgb:
    """The picture with a frame around the place."""
    row, col, height, width = box
    if window is not None:
        row, col = row - window.row, col - window.col
    thick = max(1, max(picture.shape[:2]) // 160)
    marked = np.ascontiguousarray(picture)
    corners = [int(np.clip(value, -10_000, 100_000)) for value in (col, row, col + width, row + height)]
    cv2.rectangle(marked, corners[:2], corners[2:], _MARK, thick)
    return marked


def _encode(picture: NDArray[np.uint8]) -> str:
    """A data URI, reduced."""
    share = _WIDE / max(picture.shape[:2])
    if share < 1:
        size = (max(1, round(picture.shape[1] * share)), max(1, round(picture.shape[0] * share)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
