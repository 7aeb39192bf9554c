"""Detecting: how good a run's detector is on one split, as numbers, files and pictures in the run folder.

Every image is sliced, if it is large, and its parts merged exactly as `visionsft predict` does it. What was there
and what was found is kept box by box (``per_image_boxes.npz``), so that every number can be remade and resampled
without the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from datamodules import Item, Normalisation
from datamodules.batch import Window
from datamodules.detection import DetectionDataModule
from datamodules.scenes import SceneReader
from visionsft.config import DetectionConfig
from visionsft.evaluation.answers import RegionSource
from visionsft.evaluation.box_gallery import write_box_gallery
from visionsft.evaluation.counts import mean_value
from visionsft.evaluation.detection_calibration import DetectionCalibration
from visionsft.evaluation.detection_counts import DetectionCounts, save_detection_counts
from visionsft.evaluation.detection_errors import DetectionErrors, break_down_errors
from visionsft.evaluation.detection_intervals import DetectionIntervals, bootstrap_detections
from visionsft.evaluation.detection_scores import (
    DETECTION_DEFINITIONS,
    DetectionScores,
    precision_recall_curves,
    price_scores,
    score_detections,
)
from visionsft.evaluation.detection_slices import PARTS, slice_detections
from visionsft.evaluation.efficiency import Efficiency, measure
from visionsft.evaluation.evaluating import (
    WARNINGS,
    check_split,
    describe_slices,
    describe_source,
    progress,
    remove_scores,
    save_figure,
    write_slices,
)
from visionsft.evaluation.intervals import Unit
from visionsft.evaluation.metrics.boxes import ImageBoxes
from visionsft.evaluation.mistaken import FOUND_IOU, FOUND_SCORE, Mistaken, find_mistakes, upright
from visionsft.evaluation.operating import PointPrice, find_point
from visionsft.evaluation.pictures import Rgb, detection_curves_figure, display
from visionsft.evaluation.slices import Metadata, Slices, choose_kinds
from visionsft.files import write_text
from visionsft.models.detections import Detections
from visionsft.models.rotated import rotated_iou
from visionsft.runs import Checkpoint, Run

if TYPE_CHECKING:
    from visionsft.prediction.slicing import SceneDetections
    from visionsft.training.loading import LoadedRun

CROP = 160
"""Side in pixels of a mistake's picture, at least; three times the object."""
SHOWN = 12
"""Pictures of each kind of mistake."""


@dataclass(frozen=True)
class DetectionEvaluation:
    """The result of evaluating a detector."""

    run: str
    split: str
    checkpoint: str
    scores: DetectionScores
    intervals: DetectionIntervals
    counts: DetectionCounts
    errors: DetectionErrors
    """By kind, at the IoU of the scores."""
    calibration: DetectionCalibration
    mask_scores: DetectionScores | None
    """Of the outlines, where objects have them."""
    mask_intervals: DetectionIntervals | None
    folder: Path
    """Where scores.json, table.txt, per_image_boxes.npz, curves.png, false_alarms.png, misses.png and
    gallery/ are."""
    skipped: int
    """Files of the data set that were left out (on_error: skip)."""
    slices: Slices | None = None
    efficiency: Efficiency | None = None
    """If it was asked for."""
    price: PointPrice | None = None
    """Of the run's thresholds, if it has any."""

    @property
    def warning(self) -> str | None:
        """What speaks against taking the numbers for evidence."""
        return WARNINGS.get(self.split)

    @property
    def title(self) -> str:
        """Which run, split and checkpoint, and how many images."""
        images = f"{len(self.counts):,} images"
        return f"{self.run} · split {self.split} · checkpoint {self.checkpoint} · {images}"

    def table(self) -> str:
        """What the command line prints and ``table.txt`` holds."""
        lines = [self.title, "", self.scores.table(), "", self.intervals.table(self.scores)]
        if self.mask_scores and self.mask_intervals:
            lines += ["", "outlines, by the overlap of masks", self.mask_scores.table()]
            lines += ["", self.mask_intervals.table(self.mask_scores)]
        lines += ["", self.errors.table(), "", *self.calibration.lines()]
        lines += ["", *self.price.lines()] if self.price else []
        lines += ["", self.slices.table()] if self.slices else []
        lines += ["", self.efficiency.table()] if self.efficiency else []
        if self.skipped:
            lines += ["", f"{self.skipped} unusable files of the data set were skipped; scores.json names them."]
        if self.warning:
            lines = [f"!! {self.warning}", "", *lines, "", f"!! {self.warning}"]
        return "\n".join(lines)


def evaluate_detector(
    run: Run,
    *,
    split: str = "test",
    checkpoint: Checkpoint = "best",
    group_by: Unit = "group",
    slice_by: Sequence[str] = (),
    metadata: str | Path | None = None,
    efficiency: bool = False,
) -> DetectionEvaluation:
    """Score a detection run on a split; writes ``<run>/evaluation/<split>/``.

    Boxes are compared in the pixels that the model sees. group_by: what is resampled for the intervals.
    slice_by, metadata: as in `evaluate_segmentation`; by "object_size" with the limits of the configuration.
    efficiency: also measure what the model costs on this machine, in a few passes over a batch.
    """
    from visionsft.training.loading import load_run  # its modules use this package's metrics

    config = run.config
    assert isinstance(config, DetectionConfig)
    loaded = load_run(run, checkpoint)
    data: DetectionDataModule = loaded.data
    data.setup("test")
    check_split(data, split)
    known = None if metadata is None else Metadata.read(metadata)
    kinds = choose_kinds(slice_by, data.items[split], known, parts=PARTS)
    counts = count_detections(loaded, split)
    point = find_point(run, data.classes.names, checkpoint)
    judged: dict[str, Any] = {"iou": config.task.match_iou, "score": config.task.match_score}
    limits = config.task.size_limits
    evaluation = DetectionEvaluation(
        run=run.name,
        split=split,
        checkpoint=checkpoint,
        scores=score_detections(counts, size_limits=limits, **judged),
        intervals=bootstrap_detections(counts, unit=group_by, **judged),
        counts=counts,
        errors=break_down_errors(counts, iou=config.task.match_iou),
        calibration=DetectionCalibration.of(counts, iou=config.task.match_iou, unit=group_by),
        mask_scores=score_detections(counts, size_limits=limits, masks=True, **judged) if data.masks else None,
        mask_intervals=bootstrap_detections(counts, unit=group_by, masks=True, **judged)
        if data.masks
        else None,
        folder=run.evaluation(split),
        skipped=len(data.skipped),
        slices=slice_detections(
            counts, kinds, size_limits=limits, metadata=known, unit=group_by, **judged
        ),
        efficiency=_measure(loaded, split) if efficiency else None,
        price=price_scores(counts, point, **judged) if point else None,
    )
    _write(evaluation, data, run.checkpoint(checkpoint))
    return evaluation


# ------------------------------------------------------------------------------------------------ finding


def count_detections(loaded: LoadedRun, split: str) -> DetectionCounts:
    """One pass over a split."""
    data: DetectionDataModule = loaded.data
    counts, truth = DetectionCounts(data.classes.names), data.objects(split)
    answered = detections_of(loaded, [item for item, _ in truth])
    for (item, objects), (found, size, brightness) in progress(
        zip(truth, answered, strict=True), f"evaluating {split}", total=len(truth)
    ):
        outlines = _outlines_of(found) if data.masks else None
        counts.add_objects(
            found, objects, item=item, size=size, outlines=outlines, brightness=brightness
        )
    return counts


def detections_of(
    loaded: LoadedRun, items: Iterable[Item]
) -> Iterator[tuple[SceneDetections, tuple[int, int], float]]:
    """What is found in each item, its (height, width) in the pixels that the model sees, and its mean brightness."""
    from visionsft.prediction.detections import DetectionOptions, detection_predictor
    from visionsft.prediction.slicing import detect_images, detect_tiles, join_bands

    data: DetectionDataModule = loaded.data
    options = DetectionOptions(score=0.0)
    predictor = detection_predictor(loaded, options, turned_iou=rotated_iou)
    slices, detector, reader = predictor.usual_slices(), predictor.detector, data.reader()
    if isinstance(reader, SceneReader):
        for item in items:
            source = _MeasuredSource(reader, item, data.normalisation)
            tiles = detect_tiles(detector, source, slices.plan(source.shape), slices)
            yield join_bands(tiles), source.shape, source.brightness
        return
    facts: list[tuple[tuple[int, int], float]] = []

    def images() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for item in items:
            raw = data.read(item)
            image = data.normalisation(raw.values, raw.valid)
            brightness = mean_value(image.sum(axis=(1, 2)), int(raw.valid.sum()), data.normalisation)
            facts.append(((raw.valid.shape[0], raw.valid.shape[1]), brightness))
            yield torch.from_numpy(image), torch.from_numpy(np.ascontiguousarray(raw.valid))

    for found in detect_images(detector, images(), slices=slices):
        yield found, *facts.pop(0)


class _MeasuredSource(RegionSource):
    """Sums up what it reads, too; where tiles overlap, twice."""

    def __init__(self, reader: SceneReader, region: Item, normalisation: Normalisation) -> None:
        super().__init__(reader, region, normalisation)
        self._sums = np.zeros(len(normalisation.mean))
        self._pixels = 0

    def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        image, valid = super().read(window)
        self._sums += image.sum(axis=(1, 2))
        self._pixels += int(valid.sum())
        return image, valid

    @property
    def brightness(self) -> float:
        """So far."""
        return mean_value(self._sums, self._pixels, self.normalisation)


def _measure(loaded: LoadedRun, split: str) -> Efficiency:
    """Costs on the first batch of the validation loader."""
    from visionsft.prediction.detections import RunDetector

    detector = RunDetector(loaded)
    batch = next(iter(loaded.data.evaluation_loader(split)))

    @torch.inference_mode()
    def forward(image: torch.Tensor) -> list[Detections]:
        return detector.detect(image, batch["sizes"])

    return measure(loaded.model, forward, batch["image"])


def _outlines_of(found: SceneDetections) -> NDArray[np.object_]:
    """(D,) shapely geometries; no detections have no outlines."""
    return np.empty(0, object) if found.outlines is None else found.outlines


# ------------------------------------------------------------------------------------------------ writing


def _write(evaluation: DetectionEvaluation, data: DetectionDataModule, checkpoint: Path) -> None:
    """All files, each whole or not at all; scores.json comes last and so stands for a complete set."""
    folder, names = evaluation.folder, data.classes.names
    remove_scores(folder)
    write_text(folder / "table.txt", evaluation.table() + "\n")
    save_detection_counts(evaluation.counts, folder)
    write_slices(evaluation.slices, folder)
    curves = precision_recall_curves(evaluation.counts)
    colours = dict(zip(names, data.classes.colours.tolist(), strict=True))
    heading = f"{evaluation.title}\nmAP {evaluation.scores.map:.4f}, AP50 {evaluation.scores.ap50:.4f}"
    save_figure(detection_curves_figure(curves, colours, title=heading), folder / "curves.png")
    false_alarms, misses = find_mistakes(evaluation.counts, limit=SHOWN)
    for name, mistakes, title in (
        ("false_alarms", false_alarms, "the most certain false alarms"),
        ("misses", misses, f"the largest missed objects (score below {FOUND_SCORE} or IoU below {FOUND_IOU})"),
    ):
        save_figure(_sheet(evaluation, data, mistakes, title), folder / f"{name}.png")
    write_box_gallery(folder / "gallery", evaluation.counts, data, score=evaluation.scores.score)
    write_text(
        folder / "scores.json",
        json.dumps(_report(evaluation, data, checkpoint), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    )


def _report(evaluation: DetectionEvaluation, data: DetectionDataModule, checkpoint: Path) -> dict[str, Any]:
    """The content of scores.json."""
    facts = {"classes": [(spec.name, spec.values) for spec in data.classes.specs], "bands": data.bands}
    return {
        **describe_source(evaluation, data, checkpoint, facts=facts),
        "samples": len(evaluation.counts),
        "groups": len(set(evaluation.counts.groups)),
        "scores": evaluation.scores.as_dict(),
        "intervals": evaluation.intervals.as_dict(),
        "mask_scores": evaluation.mask_scores and evaluation.mask_scores.as_dict(),
        "mask_intervals": evaluation.mask_intervals and evaluation.mask_intervals.as_dict(),
        "errors": evaluation.errors.as_dict(),
        "calibration": evaluation.calibration.as_dict(),
        "operating_point": evaluation.price and evaluation.price.as_dict(),
        **describe_slices(evaluation.slices),
        "efficiency": evaluation.efficiency and evaluation.efficiency.as_dict(),
        "definitions": DETECTION_DEFINITIONS,
    }


# ------------------------------------------------------------------------------------------ mistakes


def _sheet(
    evaluation: DetectionEvaluation, data: DetectionDataModule, mistakes: list[Mistaken], title: str
) -> Figure:
    """Crops with the mistaken box in red, true objects in white and what was found in black."""
    figure = Figure(figsize=(13, 3.4 * max(1, -(-len(mistakes) // 4)) + 0.6), layout="constrained", dpi=90)
    figure.suptitle(
        f"{evaluation.title}: {title}\nred: the mistake, white: truth, black: found", x=0.01, ha="left", fontsize=10
    )
    grid = figure.subplots(max(1, -(-len(mistakes) // 4)), 4, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, mistake in zip(grid.flat, mistakes, strict=False):
        item, boxes = evaluation.counts.items[mistake.image], evaluation.counts.boxes[mistake.image]
        axes.imshow(_crop(data, item, boxes, mistake))
        said = f"{data.classes.names[mistake.label]}"
        said += "" if mistake.score is None else f" {mistake.score:.2f}"
        axes.set_title(f"{said} · {Path(item.id).name}", fontsize=8, loc="left")
    return figure


def _crop(data: DetectionDataModule, item: Item, boxes: ImageBoxes, mistake: Mistaken) -> Rgb:
    """The ground around a mistake, drawn twice as large as it is where it is small."""
    raw = data.read(item)
    x1, y1, x2, y2 = mistake.box.tolist()
    side = max(CROP, 3 * max(x2 - x1, y2 - y1))
    height, width = raw.valid.shape
    left, top = (int(max(0, centre - side / 2)) for centre in ((x1 + x2) / 2, (y1 + y2) / 2))
    right, bottom = min(width, int(left + side)), min(height, int(top + side))
    seen = np.s_[top:bottom, left:right]
    picture = display(
        data.normalisation(raw.values[:, *seen], raw.valid[seen]),
        mean=data.normalisation.mean,
        std=data.normalisation.std,
        bands=data.bands,
        eight_bit=data.dtype == np.uint8,
        valid=raw.valid[seen],
    )
    zoom = max(1, round(2 * CROP / max(picture.shape[:2])))
    size = (picture.shape[1] * zoom, picture.shape[0] * zoom)
    drawn = np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST))
    certain = upright(boxes.found[boxes.scores >= FOUND_SCORE])
    truth = upright(boxes.truth)
    layers = ((certain, (0, 0, 0)), (truth, (255, 255, 255)), (mistake.box[None], (220, 30, 0)))
    for group, colour in layers:
        for box in ((group - (left, top, left, top)) * zoom).round().astype(int):
            cv2.rectangle(drawn, box[:2].tolist(), box[2:].tolist(), colour, max(1, zoom // 2 + 1))
    return cast(NDArray[np.uint8], drawn)
