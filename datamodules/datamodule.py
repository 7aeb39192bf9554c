"""The data module: what GeoTIFF scenes and camera frames share for every task, from scanned files to loaders.

A subclass finds the files (`scan`), reads them (`_reader`) and makes datasets of them; splits, statistics,
normalisation, its guard and the loaders are the same for all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import cv2
import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.augment import Augment
from datamodules.batch import IGNORE, Batch, Item, Sample, to_device
from datamodules.classes import Classes
from datamodules.datasets import EvaluationDataset, Reader, TrainingDataset, collate
from datamodules.errors import DataError, gather
from datamodules.layouts import Listing
from datamodules.sampling import (
    ClassPositions,
    EpochSampler,
    Region,
    WindowPlan,
    find_classes,
    near_labels,
    samples_to_cover,
)
from datamodules.splits import Splits, group_samples
from datamodules.statistics import (
    Moments,
    Normalisation,
    Statistics,
    cache_folder,
    cached,
    cached_statistics,
    check_range,
    collect,
    fingerprint,
    load_arrays,
    suggest_scale,
)
from datamodules.supertiles import SuperTilePlan
from datamodules.surveying import Survey

if TYPE_CHECKING:
    from datamodules.layouts.objects import ObjectListing
    from datamodules.readers import Inspector
    from datamodules.sizes import FrameCheck

GUARDED = 32
"""Files at most whose values are looked at before a prediction."""
JUDGED = 256
"""Pixels from which on their range says something."""


class DataModule(LightningDataModule):
    """Base of all data modules; works with a lightning.Trainer and with a plain loop after `setup()`."""

    counted: str
    """What `statistics.class_counts` counts: "pixels", "objects" or "images"."""
    classes: Classes
    bands: tuple[str, ...]
    """Names of the bands that the model sees, in their order."""
    dtype: np.dtype[Any]
    """Number type of the files."""
    items: Splits
    """'train', 'val' and 'test' after `scan()`."""
    found: list[Item]
    """All files with labels, whole, before they are split; some may be in no split."""
    skipped: list[tuple[str, str]]
    """(path, reason) of files left out with on_error="skip"."""
    unmatched: list[str]
    """Images without label and labels without image."""
    notes: list[str]
    """What the user should know about the data, in sentences."""

    def __init__(
        self,
        root: str | Path,
        *,
        normalise: Literal["weights", "data"],
        scale: float | None,
        batch_size: int,
        eval_batch_size: int | None,
        workers: int,
        on_error: Literal["stop", "skip"],
        seed: int,
        cache_dir: str | Path | None,
    ) -> None:
        super().__init__()
        check_choice("normalise", normalise, ("weights", "data"))
        check_choice("on_error", on_error, ("stop", "skip"))
        self.root = Path(root)
        self.normalise = normalise
        self.scale = scale
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.workers = workers
        self.on_error = on_error
        self.seed = seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.items, self.found, self.skipped, self.unmatched, self.notes = {}, [], [], [], []
        self._accepted: list[Listing] = []
        self._weights_range: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self._normalisation: Normalisation | None = None
        self._statistics: Statistics | None = None

    # ---------------------------------------------------------------- what a subclass says

    @abstractmethod
    def scan(self) -> None:
        """Finds and checks the files; fills classes, bands, dtype, items, skipped, unmatched and notes."""

    @abstractmethod
    def _survey(self) -> Splits:
        """The listed items of each split; see `survey`."""

    @abstractmethod
    def settle(self, splits: Splits, checks: Mapping[str, FrameCheck]) -> None:
        """Takes the items of a survey, without those that have a problem, as `scan` would have; checks: what was
        found in every image, by path."""

    @abstractmethod
    def inspector(self) -> Inspector:
        """Reads the items of a survey, and says what is wrong with them."""

    @abstractmethod
    def foreign(
        self, paths: Sequence[str]
    ) -> tuple[list[Item], Callable[[], Inspector], list[tuple[str, str]]]:
        """Images without labels that aren't of this data: items, what reads them, and (path, reason) of those that
        headers already rule out."""

    @abstractmethod
    def training_dataset(self) -> Dataset[Any]:
        """Indexed by `SampleKey`; an epoch has len() of them."""

    @abstractmethod
    def prediction_dataset(self, paths: Sequence[str | Path]) -> Dataset[Any]:
        """Whole files without labels, in the order given, as samples of their own size."""

    @abstractmethod
    def _evaluation_dataset(self, split: str) -> Dataset[Any]:
        """The items of a split, whole and in order."""

    @abstractmethod
    def _collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples."""

    @abstractmethod
    def _to_device(self, batch: Any, device: torch.device) -> Any:
        """The batch with its tensors on `device`."""

    @abstractmethod
    def _reader(self) -> Reader:
        """Reads the items of all splits."""

    @abstractmethod
    def _collect(self, key: str) -> Statistics:
        """Of the training split; `key`: its fingerprint."""

    @abstractmethod
    def _class_amounts(self, items: Sequence[Item]) -> np.ndarray:
        """(N, K) how much of each class items hold, counted as `counted` says, before they are split."""

    @abstractmethod
    def _facts(self) -> dict[str, object]:
        """Everything beside files, classes and bands that changes what is read from them."""

    def _sampler(self, dataset: Dataset[Any]) -> EpochSampler:
        """The order of an epoch."""
        rank, world = rank_of_process()
        return EpochSampler(cast(Sized, dataset), seed=self.seed, rank=rank, world=world)

    def _outlines(self) -> list[dict[str, Any]]:
        """Where the items lie on the ground: {"id", "split", "outline": WKT in degrees}; none unless known."""
        return []

    def survey(self) -> Survey:
        """All that is listed, flawed or not; reads headers and label files, but no pixels.

        From then on `on_error` is 'skip'. A DataError is raised only where nothing could be listed at all.
        """
        self.on_error, self._accepted = "skip", []
        self.notes, self.unmatched, self.skipped = [], [], []
        splits: Splits = {"train": [], "val": [], "test": []}
        problem = None
        with gather() as broken:
            try:
                splits |= self._survey()
            except DataError as error:
                if not (self._accepted or self.skipped):
                    raise
                problem = str(error)
        return Survey(
            splits=splits,
            images_without_label=_each_once(each.images_without_label for each in self._accepted),
            labels_without_image=_each_once(each.labels_without_image for each in self._accepted),
            unusable=list(self.skipped),
            broken=broken,
            notes=list(self.notes),
            listing=self._object_listing(),
            problem=problem,
        )

    def _object_listing(self) -> ObjectListing | None:
        """See `Survey.listing`."""
        return None

    # ---------------------------------------------------------------- Lightning

    def setup(self, stage: str | None = None) -> None:
        """Scans the files; before training also checks that normalised values suit the weights."""
        self._scan_once()
        if stage in (None, "fit"):
            check_range(self.statistics, self.normalisation, self.bands)

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented samples; their order and content follow from (seed, epoch) alone.

        Outside Lightning, call `loader.sampler.set_epoch(epoch)` before each epoch.
        """
        dataset = self.training_dataset()
        sampler = self._sampler(dataset)
        # a last batch of few samples would upset batch norm
        return self._loader(dataset, self.batch_size, sampler, drop_last=len(sampler) > self.batch_size)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The val split once, whole and in order, not augmented; without one Lightning doesn't validate."""
        self._scan_once()
        return self.evaluation_loader("val") if self.items["val"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """The test split once, whole and in order, not augmented."""
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str) -> DataLoader[Any]:
        """A split once, whole and in order, not augmented."""
        self._scan_once()
        if not self.items[split]:
            counts = ", ".join(f"{name} {len(items)}" for name, items in self.items.items())
            raise DataError(f"{self.root}: the {split} split is empty (samples: {counts})")
        return self._loader(self._evaluation_dataset(split), self.eval_batch_size)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """For Lightning."""
        return self._to_device(batch, device)

    # ---------------------------------------------------------------- figures of the training split

    @property
    def in_chans(self) -> int:
        """Number of bands that the model sees."""
        return len(self.bands)

    @property
    def statistics(self) -> Statistics:
        """Of the training split; collected once, then kept in the cache folder."""
        if self._statistics is None:
            self._scan_once()
            key = self._fingerprint()
            self._statistics = cached_statistics(
                self._cache_path(f"statistics-{key[:16]}.json"), lambda: self._collect(key)
            )
        return self._statistics

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """The weights' mean and std, band by band on a 0..1 scale; used with normalise="weights"."""
        self._weights_range = tuple(mean), tuple(std)
        self._normalisation = None

    @property
    def normalisation(self) -> Normalisation:
        """Of the pixels, band by band; may be set to a trained model's own."""
        if self._normalisation is None:
            self._scan_once()
            self._normalisation = self._make_normalisation()
        return self._normalisation

    @normalisation.setter
    def normalisation(self, value: Normalisation) -> None:
        self._normalisation = value

    def data_card(self) -> dict[str, Any]:
        """What the data is: plain values for JSON."""
        figures = self.statistics
        labelled = max(int(figures.class_counts.sum()), 1)
        counts = dict(zip(self.classes.names, figures.class_counts.tolist(), strict=True))
        absent = [name for name, count in counts.items() if count == 0]
        notes = [f"class '{name}' never occurs in the training labels" for name in absent]
        return {
            "root": str(self.root),
            "samples": {split: len(items) for split, items in self.items.items()},
            "groups": {split: len({item.group for item in items}) for split, items in self.items.items()},
            "group_samples": group_samples(self.items),
            "outlines": self._outlines(),
            "bands": {
                band: {
                    "mean": float(figures.mean[i]),
                    "std": float(figures.std[i]),
                    "minimum": float(figures.minimum[i]),
                    "maximum": float(figures.maximum[i]),
                }
                for i, band in enumerate(self.bands)
            },
            "bands_from": f"{figures.valid_pixels} valid pixels in {figures.samples} of "
            f"{figures.windows} training windows",
            "dtype": str(self.dtype),
            f"class_{self.counted}": counts,
            "class_shares": {name: count / labelled for name, count in counts.items()},
            "fingerprint": figures.fingerprint,
            "skipped": [list(pair) for pair in self.skipped],
            "unmatched": list(self.unmatched),
            "warnings": [*self.notes, *notes],
        }

    # ---------------------------------------------------------------- inside

    def _scan_once(self) -> None:
        if not self.items:
            self.scan()

    def _make_normalisation(self) -> Normalisation:
        if self.normalise == "data":
            return Normalisation.from_data(self.statistics, self.bands)
        if self._weights_range is None:
            raise DataError(
                "normalise is 'weights': call set_normalisation(backbone.mean, backbone.std) first, "
                "or choose normalise='data'"
            )
        if len(self._weights_range[0]) != len(self.bands):
            raise DataError(
                f"the weights' mean has {len(self._weights_range[0])} bands, the data {len(self.bands)}: "
                + ", ".join(self.bands)
            )
        return Normalisation.from_weights(*self._weights_range, scale=self._known_scale())

    def _known_scale(self) -> float:
        if self.scale is not None:
            return self.scale
        if self.dtype == np.uint8:
            return 255.0
        raise DataError(
            f"the files are {self.dtype}, so scale (the value that the weights saw as 1.0) must be given; "
            f"from their values likely {suggest_scale(self.statistics):g}. Or choose normalise: data"
        )

    def _fingerprint(self) -> str:
        facts = {
            "classes": [(spec.name, spec.values) for spec in self.classes.specs],
            "ignore": self.classes.ignore,
            "bands": self.bands,
            **self._facts(),
        }
        return fingerprint(self.items["train"], root=self.root, facts=facts)

    def _cache_path(self, name: str) -> Path:
        return cache_folder(self.root, self.cache_dir) / name

    def _loader(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        sampler: EpochSampler | None = None,
        *,
        drop_last: bool = False,
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=self._collate,
            worker_init_fn=_one_thread,
        )

    def _check_inputs(self, items: Sequence[Item], reader: Reader) -> None:
        """The guard for files to predict: wider limits, since one scene may well be all water or snow."""
        moments = Moments(len(self.bands))
        step = max(1, len(items) // GUARDED)
        for item in items[::step][:GUARDED]:
            raw = reader.read(item)
            moments.add(raw.values, raw.valid)
        if moments.count >= JUDGED:
            figures = moments.summary(samples=len(items))
            check_range(figures, self.normalisation, self.bands, largest_mean=10.0, std_range=(0.005, 25.0))


class SegmentationDataModule(DataModule):
    """Windows with a class index for every pixel.

    A subclass also says from where training windows are drawn (`_training_regions`).
    """

    counted = "pixels"
    sparse: bool = False
    """Whether most of the ground is unlabelled, so that training windows are drawn near labels."""

    def __init__(
        self,
        root: str | Path,
        *,
        chip: tuple[int, int] | None,
        augment: Augment | None,
        rare_class_crops: float,
        samples_per_epoch: int | None,
        min_valid: float,
        normalise: Literal["weights", "data"],
        scale: float | None,
        batch_size: int,
        eval_batch_size: int | None,
        workers: int,
        on_error: Literal["stop", "skip"],
        seed: int,
        cache_dir: str | Path | None,
    ) -> None:
        """chip, augment: (H, W) and augmentation of training samples; None where `scan` sets them."""
        super().__init__(
            root,
            normalise=normalise,
            scale=scale,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            workers=workers,
            on_error=on_error,
            seed=seed,
            cache_dir=cache_dir,
        )
        if chip is not None:
            self.chip = chip
        if augment is not None:
            self.augment = augment
        self.rare_class_crops = rare_class_crops
        self.samples_per_epoch = samples_per_epoch
        self.min_valid = min_valid

    @abstractmethod
    def prediction_dataset(self, paths: Sequence[str | Path]) -> Dataset[Sample]:
        """Whole files without labels, in the order given, as samples of their own size (mask all 255)."""

    @abstractmethod
    def _training_regions(self) -> list[Region]:
        """From where training windows are drawn."""

    def _windows(self, region: Region) -> list[Item]:
        """A training region in pieces that fit in memory, for the statistics."""
        return [region.item]

    def _pieces(self, item: Item) -> list[Item]:
        """An item in parts whose labels fit in memory."""
        return [item]

    def _class_amounts(self, items: Sequence[Item]) -> np.ndarray:
        """See the base; kept in the cache folder. Labels that can't be read count as none: others complain."""
        ordered = sorted(set(items), key=lambda item: (item.image, str(item.window)))
        facts = {"classes": self.classes.specs, "ignore": self.classes.ignore, **self._facts()}
        key = fingerprint(ordered, root=self.root, facts=facts)
        (amounts,) = cached(
            self._cache_path(f"amounts-{key[:16]}.npz"),
            lambda: [np.array([self._count_pixels(item) for item in ordered], np.int64)],
            load=load_arrays,
            save=lambda arrays, file: np.savez_compressed(file, *arrays),
        )
        rows = dict(zip(ordered, amounts.reshape(len(ordered), len(self.classes)), strict=True))
        return np.array([rows[item] for item in items], np.int64).reshape(len(items), len(self.classes))

    def _count_pixels(self, item: Item) -> np.ndarray:
        reader, counts = self._reader(), np.zeros(IGNORE + 1, np.int64)
        try:
            for piece in self._pieces(item):
                counts += np.bincount(reader.read_mask(piece).ravel(), minlength=IGNORE + 1)
        except DataError:
            counts[:] = 0
        return counts[: len(self.classes)]

    def _evaluation_dataset(self, split: str) -> Dataset[Sample]:
        """The items of a split, whole and in order."""
        return EvaluationDataset(self.items[split], reader=self._reader(), normalisation=self.normalisation)

    def _collate(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples)

    def _to_device(self, batch: Batch, device: torch.device) -> Batch:
        return to_device(batch, device)

    def training_dataset(self) -> TrainingDataset:
        """Indexed by `SampleKey`; an epoch has len() of them."""
        self._scan_once()
        regions = self._training_regions()
        positions = self._positions(regions) if self.rare_class_crops or self.sparse else None
        if self.sparse and positions is not None:
            regions = near_labels(regions, positions)
            if not any(region.area for region in regions):
                raise DataError(f"{self.root}: no valid pixel of the training split is labelled")
        return TrainingDataset(
            plan=self._plan(regions, positions),
            reader=self._training_reader(),
            augment=self.augment,
            normalisation=self.normalisation,
        )

    def _sampler(self, dataset: Dataset[Any]) -> EpochSampler:
        """Windows of one read come near each other."""
        assert isinstance(dataset, TrainingDataset)
        if not isinstance(dataset.plan, SuperTilePlan):
            return super()._sampler(dataset)
        rank, world = rank_of_process()
        return EpochSampler(
            dataset,
            seed=self.seed,
            rank=rank,
            world=world,
            batch_size=self.batch_size,
            order=dataset.plan.order,
        )

    def _training_reader(self) -> Reader:
        """Reads the items of the train split for training."""
        return self._reader()

    def _plan(self, regions: list[Region], positions: ClassPositions | None) -> WindowPlan:
        """Which windows an epoch shows."""
        return WindowPlan(
            regions,
            size=self.augment.reach,
            length=self.samples_per_epoch or samples_to_cover(regions, self.chip),
            min_valid=self.min_valid,
            positions=positions,
            rare_share=self.rare_class_crops,
        )

    def _collect(self, key: str) -> Statistics:
        windows = [item for region in self._training_regions() for item in self._windows(region)]
        return collect(
            windows, self._reader(), bands=len(self.bands), num_classes=len(self.classes), fingerprint=key
        )

    def _positions(self, regions: Sequence[Region]) -> ClassPositions:
        """Where classes occur, kept in the cache folder."""
        windows = [self._windows(region) for region in regions]
        return cached(
            self._cache_path(f"positions-{self._fingerprint()[:16]}.npz"),
            lambda: find_classes(windows, self._reader(), num_classes=len(self.classes)),
            load=ClassPositions.load,
            save=ClassPositions.save,
        )


def check_choice(name: str, given: str, allowed: Sequence[str]) -> None:
    if given not in allowed:
        raise DataError(f"{name} is {given!r}; allowed: {', '.join(allowed)}")


def _each_once(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(path for paths in lists for path in paths))


def rank_of_process() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _one_thread(worker: int) -> None:
    """Loader processes are the parallelism; threads inside each would fight over the cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
