"""Detections: scenes of any size and camera frames, from their files to finished lists of objects, by a trained run.

A GeoTIFF gives a vector layer on the same ground; a frame gives COCO's JSON, and a picture with its boxes if wanted; a
video, or a folder that is one drive, gives COCO's JSON of all its frames and a video with their boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import cv2
import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules import Classes, DataError
from datamodules.raster import LONLAT
from visionsft.errors import ConfigError
from visionsft.evaluation.operating import AppliedPoint
from visionsft.files import atomic_path
from visionsft.models.detections import Detections
from visionsft.models.inference import run_model
from visionsft.models.model import FeatureExtractor
from visionsft.models.views import View, list_views
from visionsft.prediction.inputs import stem
from visionsft.prediction.merging import Iou, Merging
from visionsft.prediction.objectfiles import corners, open_coco, open_objects, write_coco
from visionsft.prediction.objectviews import ViewsDetector
from visionsft.prediction.scenes import CACHE_BYTES, SceneSource, ahead
from visionsft.prediction.slicing import (
    SIDE,
    Detector,
    SceneDetections,
    Slices,
    detect_images,
    detect_tiles,
    scale_turned,
)
from visionsft.prediction.stills import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    FrameOptions,
    frame_size,
    is_drive,
    read_picture,
)
from visionsft.prediction.tiling import is_local, size_limit
from visionsft.prediction.vectorising import find_format

if TYPE_CHECKING:
    from visionsft.prediction import drives
    from visionsft.training.loading import LoadedRun

FRAMES = 4
"""Frames of one tile that the detector sees at once."""


@dataclass(frozen=True)
class DetectionOptions:
    """Which objects are written, and how tiles are put together."""

    tile: int | None = None
    overlap: int | None = None
    """Of the tiles, in the model's pixels; None: what the run's configuration says, else chosen. The overlap
    should be no less than an object usually has."""
    merge: Literal["nms", "wbf"] | None = None
    """See `visionsft.prediction.merging.Merging`; None: as the run's configuration says."""
    iou: float = 0.5
    """See there."""
    score: float = 0.3
    """Less certain objects aren't written."""
    format: str = ".gpkg"
    """Suffix of a scene's layer: .gpkg, .fgb, .parquet or .geojson."""

    def __post_init__(self) -> None:
        find_format(Path(f"objects{self.format}"), LONLAT)
        self.slices(merging=Merging(self.merge or "nms", self.iou))

    def slices(
        self, *, merging: Merging, multiple: int = 1, tile: int = SIDE, overlap: int | None = None
    ) -> Slices:
        """How an image is cut, where the options don't say it: in tiles of that side and overlap."""
        return Slices(
            tile=self.tile or tile,
            overlap=overlap if self.overlap is None else self.overlap,
            multiple=multiple,
            score=self.score,
            merging=merging,
        )


class RunDetector:
    """The detector of a run, in the precision and memory format of its training; see `slicing.Detector`."""

    def __init__(self, loaded: LoadedRun) -> None:
        self._loaded = loaded
        _ = loaded.folded  # now, not while the first image waits

    def detect(self, image: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
        """image: (B, C, H, W) float32, normalised; sizes: (height, width) of each without its padding.

        What is found comes back in main memory.
        """
        loaded = self._loaded
        model = loaded.folded
        found: list[Detections] = run_model(
            lambda image: model.detect(image, sizes),
            model, image, precision=loaded.precision, channels_last=loaded.channels_last,
        )  # fmt: skip
        return [each.cpu() for each in found]


class DetectionPredictor:
    """What predictors of scenes and of frames have in common."""

    note: ClassVar[str] = ""
    """Detections are computed by PyTorch: there is no choice to report."""

    def __init__(
        self,
        loaded: LoadedRun,
        options: DetectionOptions = DetectionOptions(),
        *,
        overlay: bool = False,
        turned_iou: Iou | None = None,
        point: AppliedPoint | None = None,
    ) -> None:
        """turned_iou: for detectors of turned boxes, see `Merging`.
        point: scores from which on classes are kept; those without one keep that of the options.
        """
        self.least: Tensor | None = None
        if point is not None:
            self.least = torch.tensor(point.by_class(options.score), dtype=torch.float64)
            options = replace(options, score=float(self.least.min()))
        self.loaded = loaded
        self.data = loaded.data
        self.options = options
        self.overlay = overlay
        self.merging = Merging(options.merge or loaded.merge, options.iou, turned_iou)
        self.views = list_views(**loaded.views)
        plain = RunDetector(loaded)
        self.detector: Detector = plain
        if self.views != [View()]:
            self.detector = ViewsDetector(plain, self.views, self.merging)

    def keep(self, found: SceneDetections) -> SceneDetections:
        """What reaches the score of its class."""
        if self.least is None:
            return found
        return found.take(found.scores.double() >= self.least[found.labels])

    def slices(self, usual: int) -> Slices:
        """How images are cut. usual: side of a tile where neither options nor run say it."""
        limit, given = size_limit(self.loaded.model), self.loaded.tiles
        multiple = math.lcm(*cast(FeatureExtractor, self.loaded.model.backbone).strides)
        zoom = max(1.0, *(view.scale for view in self.views))  # the model sees a tile as much larger
        if zoom > 1:
            usual = max(int(usual / zoom) // multiple, 1) * multiple
            limit = limit and max(int(limit / zoom) // multiple, 1) * multiple
        slices = self.options.slices(
            merging=self.merging,
            multiple=multiple,
            tile=given["tile"] or limit or usual,
            overlap=given["overlap"],
        )
        if limit is not None and slices.tile is not None and slices.tile > limit:
            raise ConfigError(f"tile is {slices.tile}; this model takes inputs up to {limit} x {limit}")
        return slices

    def usual_slices(self) -> Slices:
        """How images are cut."""
        return self.slices(SIDE)


class SceneDetectionPredictor(DetectionPredictor):
    """A trained detector of GeoTIFFs, ready for scenes of any size."""

    suffixes: ClassVar[tuple[str, ...]] = (".tif", ".tiff", ".vrt", ".jp2")
    """Of scenes in a folder."""

    def targets(self, path: str, out: Path) -> dict[str, Path]:
        """The file that a scene becomes."""
        if self.overlay:
            raise ConfigError(
                "overlay: pictures with boxes are drawn of frames; scenes give a layer for a GIS"
            )
        return {"objects": out / f"{stem(path)}{self.options.format}"}

    def open(self, path: str) -> SceneSource:
        """Reads the header and looks at some values; refuses what doesn't fit the run or the format."""
        scene = self.data.prediction_scene(path)  # type: ignore[attr-defined]
        find_format(Path(f"objects{self.options.format}"), scene.header.grid.crs)
        return SceneSource(scene, self.data.normalisation)

    def usual_slices(self) -> Slices:
        """How scenes are cut: a model that looks at the whole of its input gets tiles as in training."""
        return self.slices(SIDE if is_local(self.loaded.model) else min(self.data.chip))

    def bands(self, source: SceneSource) -> Iterator[SceneDetections]:
        """The objects of a scene in bands from top to bottom, in its pixels."""
        slices = self.usual_slices()
        grid = slices.plan(source.shape, step=source.step)
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
            yield from map(self.keep, detect_tiles(self.detector, source, grid, slices))

    def predict(self, path: str, targets: dict[str, Path], *, overwrite: bool) -> str:
        """Make a scene's file. Returns a remark."""
        del overwrite  # the file takes the place of an old one once it is complete
        source = self.open(path)
        ground = source.scene.header.grid
        first, bands = _until_found(self.bands(source))
        count, outlined = 0, bool(first) and first[-1].outlines is not None
        names = self.data.classes.names
        with open_objects(
            targets["objects"], transform=ground.transform, crs=ground.crs, names=names, outlined=outlined
        ) as writer:
            for band in chain(first, bands):
                writer.add(band)
                count += len(band)
        said = "" if ground.crs else "; has no CRS: its layer is in pixels"
        return f"{count} objects{said}"


class FrameDetectionPredictor(DetectionPredictor):
    """A trained detector of camera frames, ready for pictures of any size, videos and folders of frames."""

    suffixes: ClassVar[tuple[str, ...]] = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    """Of inputs in a folder."""

    def __init__(
        self,
        loaded: LoadedRun,
        options: DetectionOptions = DetectionOptions(),
        *,
        overlay: bool = False,
        turned_iou: Iou | None = None,
        frames: FrameOptions = FrameOptions(),  # noqa: B008 (frozen)
        point: AppliedPoint | None = None,
    ) -> None:
        """frames: how videos and folders are read; there are no class maps (`masks`)."""
        super().__init__(loaded, options, overlay=overlay, turned_iou=turned_iou, point=point)
        self.frames = frames

    def targets(self, path: str, out: Path) -> dict[str, Path]:
        """The files that an input becomes, by kind of result."""
        files = {"objects": out / f"{stem(path)}.json"}
        if is_drive(path):
            return files | {"overlay": out / f"{stem(path)}_overlay.mp4"}
        return files | ({"overlay": out / f"{stem(path)}_overlay.jpg"} if self.overlay else {})

    def predict(self, path: str, targets: dict[str, Path], *, overwrite: bool) -> str:
        """Make an input's files. Returns a remark."""
        if is_drive(path):
            return self._predict_drive(path, targets)
        outcome = next(self.predict_frames({path: targets}, overwrite=overwrite))[1]
        if isinstance(outcome, DataError):
            raise outcome
        return outcome

    def predict_frames(
        self, jobs: Mapping[str, dict[str, Path]], *, overwrite: bool
    ) -> Iterator[tuple[str, str | DataError]]:
        """Make the files of many frames, `FRAMES` at a time, the next ones read meanwhile.

        jobs: the `targets` of each path -> each path with a remark, or with what is wrong with it.
        """
        del overwrite  # files take the place of old ones once they are complete
        slices = self.usual_slices()
        opened: list[tuple[str, tuple[int, int], Tensor]] = []
        problems: dict[str, DataError] = {}

        def images() -> Iterator[tuple[Tensor, Tensor]]:
            for path, frame in ahead((path, self._open(path)) for path in jobs):
                if isinstance(frame, DataError):
                    problems[path] = frame
                    continue
                size, image, valid = frame
                opened.append((path, size, valid))
                yield image, valid

        for found in detect_images(self.detector, images(), slices=slices, batch=FRAMES):
            path, size, valid = opened.pop(0)
            kept = self.keep(found)
            yield path, self._write(path, _at_size(kept, valid, size), size, jobs[path])
        yield from problems.items()

    def _predict_drive(self, path: str, targets: dict[str, Path]) -> str:
        """Frames come in batches, of which `drives.play` holds a few."""
        from visionsft.prediction import drives

        if Path(path).is_dir():
            drive = drives.open_frames(Path(path), rate=self.frames.rate)
        else:
            drive = drives.open_video(path, every=self.frames.every)
        classes = self.data.classes
        with open_coco(targets["objects"], names=classes.names) as writer:

            def draw(shot: drives.Shot, found: SceneDetections) -> NDArray[np.uint8]:
                height, width = shot.picture.shape[:2]
                image = {"id": shot.index, "file_name": shot.name, "height": height, "width": width}
                writer.add(found, image | {"time": round(float(shot.time), 6)})
                return draw_objects(drives.eight_bit(shot.picture), found, classes)

            drives.play(drive, targets["overlay"], look=self._look, draw=draw, batch=2 * FRAMES)
        return f"{writer.count} objects in {writer.frames} frames"

    def _look(self, shots: Sequence[drives.Shot]) -> list[SceneDetections]:
        """What frames in memory show, in their own pixels."""
        seen: list[Tensor] = []

        def images() -> Iterator[tuple[Tensor, Tensor]]:
            for shot in shots:
                measured = np.ones(shot.picture.shape[:2], bool) if shot.valid is None else shot.valid
                image, valid = map(torch.from_numpy, self.data.prepare(shot.picture, measured))
                seen.append(valid)
                yield image, valid

        answers = detect_images(self.detector, images(), slices=self.usual_slices(), batch=FRAMES)
        found = list(map(self.keep, answers))
        rows = zip(found, seen, shots, strict=True)
        return [_at_size(each, valid, shot.picture.shape[:2]) for each, valid, shot in rows]

    def _open(self, path: str) -> tuple[tuple[int, int], Tensor, Tensor] | DataError:
        """Size of the frame's file, image (C, h, w) and valid (h, w) as the model sees it; or what is wrong."""
        try:
            size = frame_size(path)
            sample = self.data.prediction_dataset([path])[0]
        except DataError as error:
            return error
        return size, sample["image"], sample["valid"]

    def _write(
        self, path: str, found: SceneDetections, size: tuple[int, int], targets: dict[str, Path]
    ) -> str:
        classes = self.data.classes
        if "overlay" in targets:
            with atomic_path(targets["overlay"]) as temporary:
                drawn = draw_objects(read_picture(path), found, classes)
                Image.fromarray(drawn).save(temporary, quality=92)
        write_coco(targets["objects"], found, image=Path(path).name, size=size, names=classes.names)
        return f"{len(found)} objects"


def detection_predictor(
    loaded: LoadedRun,
    options: DetectionOptions = DetectionOptions(),
    *,
    overlay: bool = False,
    turned_iou: Iou | None = None,
    frames: FrameOptions = FrameOptions(),  # noqa: B008 (frozen)
    point: AppliedPoint | None = None,
) -> SceneDetectionPredictor | FrameDetectionPredictor:
    """The one that suits the run's data; frames: see `FrameDetectionPredictor`."""
    if hasattr(loaded.data, "prediction_scene"):
        return SceneDetectionPredictor(loaded, options, overlay=overlay, turned_iou=turned_iou, point=point)
    return FrameDetectionPredictor(
        loaded, options, overlay=overlay, turned_iou=turned_iou, frames=frames, point=point
    )


def draw_objects(picture: NDArray[np.uint8], found: SceneDetections, classes: Classes) -> NDArray[np.uint8]:
    """picture: (H, W, 3) uint8 -> the same with every box in its class's colour, its name and score above it.

    The most certain ones lie on top.
    """
    drawn = np.ascontiguousarray(picture).copy()
    width = max(1, round(min(picture.shape[:2]) / 400))
    rows = zip(corners(found), found.labels.tolist(), found.scores.tolist(), strict=True)
    for points, label, score in reversed(list(rows)):
        colour = tuple(int(each) for each in classes.colours[label])
        cv2.polylines(drawn, [points.round().astype(np.int32)], True, colour, width, cv2.LINE_AA)
        _write_label(drawn, f"{classes.names[label]} {score:.2f}", points.min(0), colour, width)
    return drawn


def _write_label(
    drawn: NDArray[np.uint8], text: str, corner: NDArray[np.float64], colour: tuple[int, ...], width: int
) -> None:
    """On a patch of the colour, inside the picture; black or white, whichever is seen better."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.35 + 0.1 * width
    (w, h), below = cv2.getTextSize(text, font, size, width)
    x = int(np.clip(corner[0], 0, max(0, drawn.shape[1] - w)))
    y = int(np.clip(corner[1] - below, h, drawn.shape[0]))
    cv2.rectangle(drawn, (x, y - h), (x + w, y + below), colour, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 127 else (255, 255, 255)
    cv2.putText(drawn, text, (x, y), font, size, ink, width, cv2.LINE_AA)


def _at_size(found: SceneDetections, valid: Tensor, size: tuple[int, int]) -> SceneDetections:
    """From the pixels (h, w) that the model saw to those (H, W) of the file."""
    if valid.shape == torch.Size(size):
        return found
    down, across = size[0] / valid.shape[0], size[1] / valid.shape[1]
    boxes = found.boxes * torch.tensor([across, down, across, down])
    turned = None if found.turned is None else scale_turned(found.turned, across, down)
    outlines = None if found.outlines is None else _scaled(found.outlines, across, down)
    return SceneDetections(boxes, found.scores, found.labels, turned=turned, outlines=outlines)


def _scaled(outlines: NDArray[np.object_], across: float, down: float) -> NDArray[np.object_]:
    import shapely

    return np.asarray(shapely.transform(outlines, lambda points: points * (across, down)), object)


def _until_found(
    bands: Iterable[SceneDetections],
) -> tuple[list[SceneDetections], Iterator[SceneDetections]]:
    """The first band with an object, if there is one, and those after it: it tells whether objects have outlines."""
    rest = iter(bands)
    first = next((band for band in rest if len(band)), None)
    return ([] if first is None else [first]), rest
