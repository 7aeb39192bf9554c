"""Embedding: what a backbone makes of chips, frames or the cells of scenes, as rows of a file or as a map.

The backbone is a run's, as fine-tuned, or a configuration's, as pretrained; images are read, resized and normalised as
that run or configuration has them. A row is a whole image or cell (the mean of one layer's map over what is valid), or
one position of the map (`dense`). Rows are written as they come: memory doesn't grow with their number. An image that
can't be used leaves the others alone; it is counted and named in the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backbones import Backbone, at_layer
from datamodules import ClassificationDataModule, DataError, DataModule, Item
from datamodules.batch import IGNORE, Window
from datamodules.raster import Grid, read_header
from datamodules.scenes import SceneModule, SceneReader
from visionsft import build
from visionsft.config import Config
from visionsft.errors import ConfigError, WriteError, nearest
from visionsft.evaluation.answers import RegionSource
from visionsft.evaluation.evaluating import check_split, progress
from visionsft.loading import load_config
from visionsft.models.inference import compute_maps
from visionsft.prediction.inputs import find_inputs
from visionsft.prediction.mapping import ScenePredictor
from visionsft.prediction.scenes import ahead
from visionsft.prediction.stills import IMAGE_SUFFIXES
from visionsft.preparation.embeddingfiles import FILES, Place, Rows, common_crs, open_writer
from visionsft.runs import Run

NumberType = Literal["float32", "bf16"]
SHOWN = 8
"""Images that can't be used, named at most."""


# -------------------------------------------------------------------------------------------------- encoder


@dataclass(frozen=True)
class Encoder:
    """A backbone's layer, with the data module that reads and normalises images for it."""

    backbone: Backbone
    """Of one map."""
    data: Any
    channels_last: bool
    dtype: NumberType
    identity: dict[str, str]
    """What embeddings depend on; those of two files can be compared if it is the same."""

    @property
    def channels(self) -> int:
        """Numbers of an embedding."""
        return self.backbone.channels[0]

    @property
    def stride(self) -> int:
        """Pixels between positions of the map."""
        return self.backbone.strides[0]

    def map(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W) float32, normalised -> (B, D, h, w) float32; with 'bf16' rounded to what bf16 holds."""
        precision = torch.bfloat16 if self.dtype == "bf16" else None
        found = compute_maps(self.backbone, image, precision=precision, channels_last=self.channels_last)[0].cpu()
        return found.bfloat16().float() if self.dtype == "bf16" else found


def open_encoder(
    source: Run | Config | str | Path, *, layer: str | None = None, dtype: NumberType = "float32"
) -> Encoder:
    """The encoder of a run (or its folder), or of a configuration (or its YAML file) with its pretrained weights.

    layer: as `visionsft layers` names them; None: the last one that heads read.
    """
    if dtype not in ("float32", "bf16"):
        raise ConfigError(f"dtype is {dtype!r}; allowed: float32, bf16")
    if isinstance(source, str | Path):
        source = Run.open(source) if Path(source).is_dir() else load_config(source)
    backbone, data, weights, config = _of_run(source) if isinstance(source, Run) else _of_config(source)
    one = at_layer(backbone.to(build.choose_device(config)).eval().requires_grad_(False), layer)
    identity = {
        "backbone": backbone.name, "weights": weights, "layer": layer or "last", "dtype": dtype,
        "normalisation": repr((data.normalisation.mean, data.normalisation.std)),
    }  # fmt: skip
    return Encoder(one, data, config.trainer.channels_last, dtype, identity)


def _of_run(run: Run) -> tuple[Backbone, DataModule, str, Config]:
    from visionsft.training.loading import load_run  # imported late, as in visionsft.evaluation

    loaded = load_run(run)
    return loaded.model.backbone, loaded.data, f"run, sha256 {run.identify('best')['sha256'][:16]}", run.config


def _of_config(config: Config) -> tuple[Backbone, DataModule, str, Config]:
    data = build.build_data(config)
    data.scan()
    torch.manual_seed(config.seed)  # random weights, too, are the same in another call
    backbone = build.build_backbone(config, data.bands)
    data.set_normalisation(backbone.mean, backbone.std)
    report = backbone.weights_report
    which = f"seed {config.seed}" if report.sha256 is None else f"sha256 {report.sha256[:16]}"
    return backbone, data, f"{Path(report.source).name}, {which}", config


# --------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class Image:
    """What is embedded at a time."""

    pixels: Tensor
    """(C, H, W) float32, normalised."""
    valid: NDArray[np.bool_]
    """(H, W)."""
    place: Place
    grid: Grid | None
    """Where the pixels that its place is counted in lie on the ground."""


@dataclass
class Losses:
    """What became no row."""

    failed: dict[str, str] = field(default_factory=dict)
    """Why, by path."""
    empty: int = 0
    """Images or cells without a valid pixel."""


def images_of_split(data: Any, split: str, losses: Losses, *, most: int | None = None) -> Iterator[Image]:
    """The samples of a split, whole and in order, with their labels; of more than `most` evenly spaced ones."""
    dataset: Any = data.evaluation_loader(split).dataset
    images = getattr(dataset, "images", dataset)
    count = len(images.items)
    chosen = range(count) if most is None or most >= count else np.linspace(0, count - 1, most).astype(int).tolist()
    for index in progress(chosen, "embedding"):
        item = images.items[index]
        try:
            sample = dataset[index]
        except DataError as error:
            losses.failed[item.id] = str(error)
            continue
        yield _image(item, sample, _grid_of(images.reader, item), label=_label_of(data, sample))


def _images_of_files(data: Any, paths: Sequence[str], losses: Losses, cell: int | None) -> Iterator[Image]:
    """Frames and patches whole, scenes cell by cell."""
    for path in progress(paths, "embedding"):
        try:
            if has_cells(data):
                yield from _cells(data, path, cell)
            else:
                yield whole_image(data, path)
        except DataError as error:
            losses.failed[path] = str(error)


def has_cells(data: DataModule) -> bool:
    """Whether its files are scenes, which are looked at part by part."""
    return isinstance(data, SceneModule) and not isinstance(data, ClassificationDataModule)


def open_scene(data: Any, path: str) -> tuple[RegionSource, Grid]:
    """A scene as the model sees it, and its ground in the same pixels."""
    scene = data.prediction_scene(path)
    source = RegionSource(SceneReader({path: scene}), Item(path, path, path), data.normalisation)
    return source, scene.grid


def whole_image(data: Any, path: str) -> Image:
    """A file in one piece."""
    if not has_cells(data):
        dataset: Any = data.prediction_dataset([path])
        item = Item(id=path, group=str(Path(path).parent), image=path)
        return _image(item, dataset[0], _grid_of(dataset.reader, item))
    return next(_cells(data, path, max(open_scene(data, path)[0].shape)))


def _cells(data: Any, path: str, cell: int | None) -> Iterator[Image]:
    """Squares of `cell` pixels from the upper left corner on, those at the right and below as small as what is left."""
    source, grid = open_scene(data, path)
    height, width = source.shape
    side = cell or min(data.chip)
    for row in range(0, height, side):
        for col in range(0, width, side):
            window = Window(row, col, min(side, height - row), min(side, width - col))
            pixels, valid = source.read(window)
            place = Place(f"{path}@{row},{col}", path, path, "", row, col, window.height, window.width)
            yield Image(torch.from_numpy(np.ascontiguousarray(pixels)), valid, place, grid)


def _image(item: Item, sample: Any, grid: Grid | None, *, label: str = "") -> Image:
    """A sample without its padding."""
    pixels, valid = sample["image"], sample["valid"].numpy()
    window = item.window or (grid.window if grid else Window(0, 0, *valid.shape))
    if item.window is not None:
        pixels, valid = pixels[:, : window.height, : window.width], valid[: window.height, : window.width]
    place = Place(item.id, item.image, item.group, label, window.row, window.col, window.height, window.width)
    return Image(pixels, valid, place, grid)


def _grid_of(reader: Any, item: Item) -> Grid | None:
    """The grid of all of an item's scene, in the model's pixels; None for frames."""
    reader = getattr(reader, "reader", reader)
    return reader.grid(replace(item, window=None)) if isinstance(reader, SceneReader) else None


def _grids(data: Any, split: str | None, paths: Sequence[str]) -> list[Grid | None]:
    """Of all that will be embedded; files that can't be opened are named later."""
    if not isinstance(data, SceneModule):
        return []
    if split is not None:
        dataset: Any = data.evaluation_loader(split).dataset
        images = getattr(dataset, "images", dataset)
        return [_grid_of(images.reader, item) for item in images.items]
    grids: list[Grid | None] = []
    for path in paths:
        with suppress(DataError):
            grids.append(read_header(path).grid)
    return grids


def _label_of(data: Any, sample: Any) -> str:
    """The class of an image, its classes, or the most frequent one of its pixels; '' where there is none."""
    names = data.classes.names
    if "label" in sample:
        label = sample["label"]
        return names[int(label)] if label.ndim == 0 else ";".join(names[k] for k in np.flatnonzero(label.numpy()))
    if "mask" in sample:
        counts = torch.bincount(sample["mask"][sample["mask"] != IGNORE], minlength=len(names))
        return names[int(counts.argmax())] if counts.any() else ""
    return ""


# ----------------------------------------------------------------------------------------------------- rows


def in_batches(images: Iterable[Image], size: int) -> Iterator[list[Image]]:
    """Neighbours of one shape together, at most `size` of them."""
    batch: list[Image] = []
    for image in images:
        if batch and (len(batch) == size or image.pixels.shape != batch[0].pixels.shape):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def embed_images(
    encoder: Encoder, images: Iterable[Image], *, dense: bool, losses: Losses
) -> Iterator[Rows]:
    """The rows of each batch of images."""
    for some in ahead(in_batches(images, encoder.data.eval_batch_size)):
        maps = encoder.map(torch.stack([image.pixels for image in some]))
        shares = torch.stack([valid_share(image.valid, maps.shape[2:], encoder.stride) for image in some])
        made = [_positions(*each) if dense else _mean(*each) for each in zip(some, maps, shares, strict=True)]
        losses.empty += sum(not rows.places for rows in made)
        yield Rows(
            [place for rows in made for place in rows.places],
            np.concatenate([rows.vectors for rows in made]),
            [grid for rows in made for grid in rows.grids],
        )


def valid_share(valid: NDArray[np.bool_], size: Sequence[int], stride: int) -> Tensor:
    """(H, W) -> (h, w) float32: the valid share of the pixels under each position; beyond the image there are none."""
    height, width = valid.shape
    padded = F.pad(torch.from_numpy(valid).float(), (0, size[1] * stride - width, 0, size[0] * stride - height))
    return F.avg_pool2d(padded[None], stride)[0]


def _mean(image: Image, found: Tensor, share: Tensor) -> Rows:
    """One row: the mean of the map (D, h, w), positions weighted by their valid share (h, w)."""
    total = float(share.sum())
    if total == 0:
        return Rows([], np.empty((0, len(found)), np.float32), [])
    vector = (found * (share / total)).sum((1, 2))
    place = replace(image.place, valid=float(image.valid.mean()))
    return Rows([place], vector[None].numpy(), [image.grid])


def _positions(image: Image, found: Tensor, share: Tensor) -> Rows:
    """A row for each position of the map under which something is valid."""
    rows, cols = np.nonzero(share.numpy() > 0)
    sides = zip((image.place.height, image.place.width), image.valid.shape, found.shape[1:], strict=True)
    down, across = (_edges(*each) for each in sides)
    places = []
    for row, col in zip(rows.tolist(), cols.tolist(), strict=True):
        places.append(
            replace(
                image.place, id=f"{image.place.id}#{row},{col}", valid=float(share[row, col]),
                row=image.place.row + down[row], height=down[row + 1] - down[row],
                col=image.place.col + across[col], width=across[col + 1] - across[col],
            )
        )
    return Rows(places, found[:, rows, cols].T.numpy().copy(), [image.grid] * len(places))


def _edges(length: int, pixels: int, positions: int) -> list[int]:
    """Where positions begin, and the last one ends, in a window of `length` of which the model saw `pixels`."""
    stride = -(-pixels // positions)
    return [round(min(index * stride, pixels) * length / pixels) for index in range(positions + 1)]


# ---------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Embedded:
    """What `embed` has written."""

    path: Path
    count: int
    """Rows, or positions of a map."""
    channels: int
    failed: dict[str, str]
    """Why an image has no row, by its path."""
    empty: int
    """Images or cells without a valid pixel."""

    def table(self) -> str:
        """A few lines of text."""
        lines = [f"{self.path}: {self.count:,} embeddings of {self.channels} numbers"]
        if self.empty:
            lines.append(f"{self.empty} without a valid pixel were left out")
        if self.failed:
            lines.append(f"{len(self.failed)} images can't be used:")
            lines += [f"  {path}: {why.removeprefix(f'{path}: ')}" for path, why in list(self.failed.items())[:SHOWN]]
            lines += [f"  and {len(self.failed) - SHOWN} more"] if len(self.failed) > SHOWN else []
        return "\n".join(lines)


def embed(
    source: Run | Config | str | Path | Encoder,
    inputs: Sequence[str | Path] | str | Path = (),
    *,
    out: str | Path,
    split: str | None = None,
    cell: int | None = None,
    dense: bool = False,
    layer: str | None = None,
    dtype: NumberType = "float32",
    overwrite: bool = False,
) -> Embedded:
    """Write the embeddings of `inputs`, or of a split of the source's data, to the file `out`.

    source: a run or its folder, a configuration or its YAML file, or an `open_encoder` of one (with its own layer and
    dtype). out: .parquet (GeoParquet where images lie on the ground), .npz, or with `dense` and one scene .tif, a map
    with a band for each number. cell: side of the cells of scenes, in the model's pixels; default: the training's chip.
    dense: a row for each position of the map. dtype: 'bf16' computes and rounds in bfloat16; files hold float32 either
    way, of whose bytes half are zeros then, on which Parquet spends no room.
    """
    out = Path(out)
    _check_target(out, dense=dense, overwrite=overwrite)
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if bool(given) == (split is not None):
        raise ConfigError("give either inputs or a split of the data to embed")
    if cell is not None and (cell < 1 or split is not None):
        raise ConfigError(f"cell is {cell}; allowed: 1 or more, with inputs (a split has its own windows)")
    encoder = source if isinstance(source, Encoder) else open_encoder(source, layer=layer, dtype=dtype)
    if out.suffix.lower() == ".tif":
        from visionsft.preparation.embeddingmaps import write_map

        if split is not None or cell is not None:
            raise ConfigError(f"{out}: a map is of one scene; neither a split nor cells can be in it")
        return write_map(encoder, find_inputs(given, suffixes=ScenePredictor.suffixes), out)
    if split is not None:
        encoder.data.setup("test")
        check_split(encoder.data, split)
        paths: list[str] = []
    else:
        scenes = isinstance(encoder.data, SceneModule)
        paths = find_inputs(given, suffixes=ScenePredictor.suffixes if scenes else IMAGE_SUFFIXES)
        if cell is not None and not has_cells(encoder.data):
            raise ConfigError("cell: for scenes; here every image is one row")
    losses = Losses()
    images = (
        _images_of_files(encoder.data, paths, losses, cell)
        if split is None
        else images_of_split(encoder.data, split, losses)
    )
    count, identity = 0, encoder.identity | {"dense": str(dense)}
    crs = common_crs(_grids(encoder.data, split, paths))
    with open_writer(out, channels=encoder.channels, crs=crs, identity=identity) as file:
        for rows in embed_images(encoder, images, dense=dense, losses=losses):
            file.add(rows)
            count += len(rows.places)
        found = Embedded(out, count, encoder.channels, losses.failed, losses.empty)
        if not count:
            raise DataError(f"nothing to embed: {found.table()}")
    return found


def embed_image(encoder: Encoder, path: str | Path) -> NDArray[np.float32]:
    """(D,) of one image, or of a whole scene in one piece."""
    rows = next(embed_images(encoder, [whole_image(encoder.data, str(path))], dense=False, losses=Losses()))
    if not rows.places:
        raise DataError(f"{path}: has no valid pixel")
    return np.asarray(rows.vectors[0])


def _check_target(out: Path, *, dense: bool, overwrite: bool) -> None:
    suffixes = (*FILES, ".tif")
    if out.suffix.lower() not in suffixes:
        near = nearest(out.suffix.lower(), suffixes)
        hint = f" (did you mean '{near}'?)" if near else ""
        raise ConfigError(f"{out}: '{out.suffix}' is no suffix of embeddings{hint}; allowed: {', '.join(suffixes)}")
    if out.suffix.lower() == ".tif" and not dense:
        raise ConfigError(f"{out}: a map has an embedding for each position: give dense, too")
    if out.exists() and not overwrite:
        raise WriteError(f"{out}: exists; --overwrite replaces it")
