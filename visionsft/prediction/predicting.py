"""Predictions: class maps of chips and frames that fit in memory, in the form of their input.

A GeoTIFF gives a GeoTIFF on the same ground (uint8, 255 = nodata, with colour table and class names); a frame
gives an indexed PNG with the classes' colours as palette. Both have the size of their input, whatever size or
resolution the model works at.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from affine import Affine
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rasterio.io import MemoryFile
from torch import Tensor
from torch.utils.data import Dataset

from datamodules import (
    CameraFrameDataModule,
    Classes,
    DataError,
    GeoTiffDataModule,
    SegmentationDataModule,
)
from datamodules.batch import IGNORE, Sample
from datamodules.frames import read_image
from datamodules.raster import Header, read_header
from visionsft.errors import WriteError
from visionsft.evaluation.evaluating import infer, progress
from visionsft.evaluation.metrics import predict_classes
from visionsft.evaluation.pictures import display
from visionsft.evaluation.pictures import overlay as draw_overlay
from visionsft.files import atomic_path
from visionsft.runs import Run

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

LARGEST = 4096 * 4096
"""Pixels of an input at most: it is predicted in one piece."""
SHOWN = 8
"""Files at most that one message names."""


def predict(
    run: Run | str | Path,
    inputs: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    overlay: bool = False,
) -> list[Path]:
    """Write the class map of every input into the folder `out`; returns the files written, in input order.

    inputs: files, folders (the images directly in them) or globs. overlay: also draw the classes over the
    picture, as ``<name>_overlay.jpg``. An input that can't be used doesn't keep the others from being
    predicted; a DataError names all such inputs at the end.
    """
    from visionsft.training.loading import load_run  # imported late, as in visionsft.evaluation

    run = run if isinstance(run, Run) else Run.open(run)
    loaded = load_run(run, "best")
    kind = _kind(loaded.data)
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    paths = find_inputs(given, suffixes=kind.suffixes)
    targets = _plan(paths, Path(out), suffix=kind.suffix, overlay=overlay, overwrite=overwrite)
    sources, failed = _open(paths, kind, loaded.data)
    dataset = _one_dataset(loaded.data, sources)
    written: list[Path] = []
    for index, source in enumerate(progress(sources, "predicting")):
        try:
            sample = dataset[index] if dataset else loaded.data.prediction_dataset([source.path])[0]
        except DataError as error:
            failed[source.path] = str(error)
        else:
            written += _write(loaded, source, sample, targets[source.path], overlay=overlay)
    if failed:
        done = f"the other {len(paths) - len(failed)} are in {out}" if written else "nothing was written"
        reasons = _listed({path: failed[path] for path in paths if path in failed})
        raise DataError(f"{len(failed)} of {len(paths)} inputs can't be predicted ({done}):{reasons}")
    return written


# -------------------------------------------------------------------------------------- inputs and outputs


def find_inputs(given: Sequence[str | Path], *, suffixes: Sequence[str]) -> list[Path]:
    """Files, the images directly in folders, and what globs match; each once, in the order given."""
    found = [path for each in given for path in _expand(Path(each), suffixes)]
    if not found:
        raise DataError("no input was given")
    return list(dict.fromkeys(found))


def _expand(given: Path, suffixes: Sequence[str]) -> list[Path]:
    if given.is_dir():
        inside = sorted(
            path for path in given.iterdir() if path.suffix.lower() in suffixes and path.is_file()
        )
        if not inside:
            raise DataError(
                f"{given}: no image in this folder ({', '.join(suffixes)}); folders in it aren't searched"
            )
        return inside
    if given.exists():
        return [given]
    if glob.has_magic(str(given)):
        matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataError(f"{given}: no file matches")
        return files
    names = [path.name for path in given.parent.iterdir()] if given.parent.is_dir() else []
    nearest = get_close_matches(given.name, names, n=1)
    raise DataError(
        f"{given}: no such file" + (f"; nearest: {given.with_name(nearest[0])}" if nearest else "")
    )


def _plan(
    paths: Sequence[Path], out: Path, *, suffix: str, overlay: bool, overwrite: bool
) -> dict[Path, Path]:
    """The class map's path of each input; nothing is predicted if one of them is in the way."""
    targets = {path: out / f"{path.stem}{suffix}" for path in paths}
    owners: dict[Path, Path] = {}
    for path, target in targets.items():
        if target in owners:
            raise DataError(
                f"{owners[target]} and {path} would both become {target}; predict them into two folders"
            )
        owners[target] = path
    files = [*targets.values(), *(map(_overlay_path, targets.values()) if overlay else ())]
    own = {path.resolve() for path in paths}
    if swallowed := [file for file in files if file.resolve() in own]:
        raise WriteError(f"{swallowed[0]}: is an input; choose another folder for the predictions")
    there = [file for file in files if file.exists()]
    if there and not overwrite:
        raise WriteError(
            f"{there[0]}: exists ({len(there)} of {len(files)} files do); --overwrite replaces them"
        )
    return targets


def _listed(failed: Mapping[Path, str]) -> str:
    """A line each for the first few; reasons name their file or don't."""
    lines = [f"\n  {path}: {reason.removeprefix(f'{path}: ')}" for path, reason in failed.items()]
    more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "".join(lines[:SHOWN]) + more


def _overlay_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}_overlay.jpg")


# --------------------------------------------------------------------------------------------------- kinds


class Source(Protocol):
    """An input: its size, and how its class map is written."""

    suffix: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """Of images in a folder."""
    path: Path

    @classmethod
    def open(cls, path: Path, data: SegmentationDataModule) -> Source:
        """Reads no more than the header."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the file."""

    def covered(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Height and width, in the file's pixels, of a sample of this shape."""

    def picture(self, sample: Sample, data: SegmentationDataModule) -> NDArray[np.uint8]:
        """(H, W, 3), for the overlay."""

    def write(self, target: Path, classes: NDArray[np.uint8], names: Classes) -> None:
        """classes: (H, W), 255 where the input isn't valid."""


@dataclass(frozen=True)
class Scene:
    """A GeoTIFF chip."""

    suffix: ClassVar[str] = ".tif"
    suffixes: ClassVar[tuple[str, ...]] = (".tif", ".tiff")
    path: Path
    header: Header
    step: tuple[float, float]
    """Height and width of one of the model's pixels, in the file's pixels."""

    @classmethod
    def open(cls, path: Path, data: SegmentationDataModule) -> Scene:
        assert isinstance(data, GeoTiffDataModule)
        header = read_header(path)
        if data.resolution is None:
            return cls(path, header, (1.0, 1.0))
        step = ~header.grid.transform * header.grid.at_resolution(data.resolution).transform
        return cls(path, header, (step.e, step.a))

    @property
    def size(self) -> tuple[int, int]:
        return self.header.grid.height, self.header.grid.width

    def covered(self, shape: tuple[int, int]) -> tuple[float, float]:
        return shape[0] * self.step[0], shape[1] * self.step[1]

    def picture(self, sample: Sample, data: SegmentationDataModule) -> NDArray[np.uint8]:
        shown = display(
            sample["image"],
            mean=data.normalisation.mean,
            std=data.normalisation.std,
            bands=data.bands,
            eight_bit=self.header.dtype == np.uint8,
            valid=sample["valid"],
        )
        return np.asarray(Image.fromarray(shown).resize(self.size[::-1]))

    def write(self, target: Path, classes: NDArray[np.uint8], names: Classes) -> None:
        grid = self.header.grid
        size = {"height": grid.height, "width": grid.width}
        place = {} if grid.transform == Affine.identity() else {"transform": grid.transform}
        # in memory first: GDAL doesn't raise when a disk fills in the middle of a file, Python does
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff", **size, count=1, dtype="uint8", crs=grid.crs, **place, nodata=IGNORE,
                compress="deflate", tiled=True, blockxsize=256, blockysize=256,
            ) as file:  # fmt: skip
                file.write(classes, 1)
                file.write_colormap(1, _colour_table(names))
                file.set_band_description(1, "class")
                file.update_tags(1, **{f"class_{index}": name for index, name in enumerate(names.names)})
            target.write_bytes(memory.read())


@dataclass(frozen=True)
class Frame:
    """A camera frame."""

    suffix: ClassVar[str] = ".png"
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
    path: Path
    size: tuple[int, int]

    @classmethod
    def open(cls, path: Path, data: SegmentationDataModule) -> Frame:
        try:
            with Image.open(path) as picture:
                return cls(path, (picture.height, picture.width))
        except UnidentifiedImageError as error:
            raise DataError(f"{path}: is not a picture") from error
        except (OSError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: {error}") from error

    def covered(self, shape: tuple[int, int]) -> tuple[float, float]:
        return self.size  # a resized frame is the whole frame

    def picture(self, sample: Sample, data: SegmentationDataModule) -> NDArray[np.uint8]:
        values, _ = read_image(str(self.path))
        return values if values.dtype == np.uint8 else (values // 257).astype(np.uint8)

    def write(self, target: Path, classes: NDArray[np.uint8], names: Classes) -> None:
        picture = Image.fromarray(classes).convert("P")
        table = _colour_table(names)
        picture.putpalette(
            [channel for index in range(256) for channel in table.get(index, (0, 0, 0, 255))[:3]]
        )
        picture.save(target, format="PNG", optimize=True)


_KINDS: dict[type[SegmentationDataModule], type[Scene] | type[Frame]] = {
    GeoTiffDataModule: Scene,
    CameraFrameDataModule: Frame,
}


def _kind(data: SegmentationDataModule) -> type[Scene] | type[Frame]:
    return next(kind for module, kind in _KINDS.items() if isinstance(data, module))


def _colour_table(names: Classes) -> dict[int, tuple[int, int, int, int]]:
    """Red, green, blue, alpha of every class; the value for 'no class' is transparent."""
    table = {index: (int(r), int(g), int(b), 255) for index, (r, g, b) in enumerate(names.colours)}
    return {**table, IGNORE: (0, 0, 0, 0)}


# ---------------------------------------------------------------------------------------------- predicting


def _open(
    paths: Sequence[Path], kind: type[Scene] | type[Frame], data: SegmentationDataModule
) -> tuple[list[Scene | Frame], dict[Path, str]]:
    """Inputs that can be opened and fit in memory, and the reasons of those that can't or don't."""
    sources: list[Scene | Frame] = []
    failed: dict[Path, str] = {}
    for path in paths:
        try:
            source = kind.open(path, data)
            _refuse_whole_scenes(source)
        except DataError as error:
            failed[path] = str(error)
        else:
            sources.append(source)
    return sources, failed


def _refuse_whole_scenes(source: Scene | Frame) -> None:
    height, width = source.size
    if height * width > LARGEST:
        raise DataError(
            f"{source.path}: {height} x {width} pixels; at most {LARGEST:,} (4096 x 4096) are predicted in "
            "one piece, and whole scenes are not supported yet: cut it into chips"
        )


def _one_dataset(data: SegmentationDataModule, sources: Sequence[Scene | Frame]) -> Dataset[Sample] | None:
    """All inputs together, so that their range of values is judged together; None if one spoils it."""
    try:
        return data.prediction_dataset([source.path for source in sources]) if sources else None
    except DataError:
        return None  # one by one, then, to find out which


def _classify(loaded: LoadedRun, sample: Sample, source: Scene | Frame) -> NDArray[np.uint8]:
    """(H, W) at the file's own size; 255 where it isn't valid."""
    logits = infer(loaded, sample["image"][None])
    valid = sample["valid"][None, None].to(logits.device)
    shape = (logits.shape[2], logits.shape[3])
    covered = source.covered(shape)
    if shape != source.size or covered != source.size:
        logits = resample(logits.float(), source.size, covered=covered, mode="bilinear")
        valid = resample(valid.float(), source.size, covered=covered, mode="nearest") > 0.5
    classes = predict_classes(logits)
    return classes.masked_fill(~valid[:, 0], IGNORE)[0].cpu().numpy()


def resample(maps: Tensor, size: tuple[int, int], *, covered: tuple[float, float], mode: str) -> Tensor:
    """maps: (1, K, h, w) float, of which `covered` (height, width) is the extent in pixels of the result
    -> (1, K, *size). Both start at the same upper left corner; beyond the maps their edge is repeated."""
    rows, cols = (2 * own / extent for own, extent in zip(size, covered, strict=True))  # grid_sample's -1..1
    theta = torch.tensor([[[cols / 2, 0, cols / 2 - 1], [0, rows / 2, rows / 2 - 1]]], device=maps.device)
    grid = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    return F.grid_sample(maps, grid, mode=mode, padding_mode="border", align_corners=False)


def _write(
    loaded: LoadedRun, source: Scene | Frame, sample: Sample, target: Path, *, overlay: bool
) -> list[Path]:
    """The class map, and its overlay if that is wanted; returns what was written."""
    names = loaded.data.classes
    classes = _classify(loaded, sample, source)
    with atomic_path(target) as path:
        source.write(path, classes, names)
    if not overlay:
        return [target]
    picture = draw_overlay(source.picture(sample, loaded.data), classes, names.colours)
    with atomic_path(_overlay_path(target)) as path:
        Image.fromarray(picture).save(path, quality=92)
    return [target, _overlay_path(target)]
