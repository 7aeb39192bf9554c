"""Features: what the frozen part of a model gives, computed once and kept for all epochs and later runs.

A cache holds, for `views` augmented views of every training sample and one of every validation sample, the tensors
at the backbone's cut (`backbones.Cut`), the sample's mask or label, and its identity. View v of sample i is the
sample that uncached training sees in epoch v; epoch e is trained on the views e % views, in its own order. Tensors
lie in shards of some samples, channels last, as bfloat16 or float16.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backbones import Cut
from datamodules import ClassificationDataModule, Item, SegmentationDataModule
from datamodules.batch import Window
from datamodules.datasets import collate
from datamodules.labelled import collate_labelled
from datamodules.sampling import EpochSampler, SampleKey
from visionsft import files
from visionsft.errors import WriteError
from visionsft.training import eviction
from visionsft.training.tasks import ClassificationModule, SegmentationModule, Task

SHARD = 64
"""Samples in a shard."""
_MAGIC = b"visionsft features 1\n"
_ALIGNED = 64  # bytes: where arrays begin

Storage = Literal["ram", "disk"]
Data = SegmentationDataModule | ClassificationDataModule
FeatureBatch = dict[str, Any]
"""A batch of the data module whose image is an empty stand-in of the images' size and whose mask is uint8, with
"features": what `Cut.suffix` takes, each (B, ...), in the cache's number type."""


class CacheError(ValueError):
    """These features can't be cached; the text says why, and training goes on without."""


@dataclass(frozen=True)
class Target:
    """A tensor of a sample that is kept beside its features: mask, validity, label."""

    name: str
    shape: tuple[int, ...]
    given: torch.dtype
    """In a batch: as in the sample, but masks as they are kept."""
    kept: torch.dtype

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Target:
        """Masks hold class indices or 255, so that they, like validity, fit into a byte a pixel."""
        kept = torch.uint8 if tensor.ndim == 2 else tensor.dtype
        return cls(name, tuple(tensor.shape), kept if name == "mask" else tensor.dtype, kept)


@dataclass(frozen=True)
class Layout:
    """What a sample takes in the cache."""

    size: tuple[int, int]
    """(H, W) of the image."""
    shapes: tuple[tuple[int, ...], ...]
    """Of each tensor, without batch."""
    dtype: torch.dtype
    targets: tuple[Target, ...]

    @property
    def _sizes(self) -> list[int]:
        """Bytes of each tensor and target of a sample."""
        features = [prod(shape) * self.dtype.itemsize for shape in self.shapes]
        return [*features, *(prod(target.shape) * target.kept.itemsize for target in self.targets)]

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample."""
        return sum(self._sizes)

    def places(self, count: int) -> tuple[list[int], int]:
        """Where the arrays of `count` samples begin (tensors, then targets), and the bytes of all."""
        starts, end = [], 0
        for size in self._sizes:
            starts.append(end)
            end += -(-count * size // _ALIGNED) * _ALIGNED
        return starts, end


class Shard:
    """Some samples in one block of bytes, in memory or mapped from a file."""

    def __init__(self, block: np.ndarray, items: Sequence[Item], layout: Layout) -> None:
        """block: (bytes,) uint8."""
        self.items = list(items)
        self.block = block
        count = len(self.items)
        starts, _ = layout.places(count)
        self.arrays = [
            _array(block, start, (count, *_last(shape)), layout.dtype)
            for start, shape in zip(starts, layout.shapes, strict=False)
        ]
        """Each (samples, H, W, C) or as the layout has it, in the order of memory."""
        self.targets = {
            target.name: _array(block, start, (count, *target.shape), target.kept)
            for start, target in zip(starts[len(layout.shapes) :], layout.targets, strict=True)
        }

    def fill(self, row: int, stored: Sequence[Tensor], batch: Mapping[str, Any]) -> None:
        """Write a batch's samples from `row` on."""
        end = row + len(batch["item"])
        for array, source in zip(self.arrays, stored, strict=True):
            _channels_last(array)[row:end] = source
            # of NaN and infinity at least one is among these two, in a fiftieth of the time of torch.isfinite
            if not all(map(math.isfinite, torch.stack(array[row:end].aminmax()).tolist())):
                raise CacheError(f"features beyond the range of {array.dtype} can't be cached")
        for name, kept in self.targets.items():
            kept[row:end] = batch[name]


class FeatureCache:
    """Shards of one model's frozen part on one data set; see `fill`."""

    def __init__(self, layout: Layout, *, key: str, folder: Path | None) -> None:
        """folder: of the shards; None: they are kept in memory."""
        self.layout = layout
        self.key = key
        self.folder = folder
        self.built = 0
        """Shards that were computed and not found."""
        self._shards: dict[str, Shard] = {}
        self._scratch: np.ndarray | None = None

    def fill(self, name: str, dataset: Dataset[Any], keys: Sequence[Any], compute: _Compute) -> list[Shard]:
        """Shards of the samples dataset[key], found on disk or computed."""
        shards = []
        for start in range(0, len(keys), SHARD):
            label = f"{name}-{start // SHARD:05d}"
            some = keys[start : start + SHARD]
            shard = self._open(label, len(some))
            if shard is None:
                shard = self._compute(label, dataset, some, compute)
            shards.append(shard)
        return shards

    def _open(self, label: str, count: int, *, written: bool = False) -> Shard | None:
        """A shard on disk, mapped; None if it isn't there, is damaged or another's.

        One that was just `written` isn't summed up again.
        """
        if self.folder is None:
            return self._shards.get(label)
        path = self.folder / f"{label}.bin"
        try:
            with open(path, "rb") as file:
                if file.readline() != _MAGIC:
                    return None
                header = json.loads(file.readline())
                start = -(-file.tell() // _ALIGNED) * _ALIGNED
            # copy-on-write: torch wants memory that it may write to
            block = np.memmap(path, np.uint8, mode="c", offset=start)
            items = [_item(values) for values in header["items"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        right = header["key"] == f"{self.key}/{label}" and len(items) == count
        if not right or len(block) != self.layout.places(count)[1]:
            return None
        if written:
            block[:: mmap.PAGESIZE].max()  # pages are mapped now, as by summing up, and not in the first epoch's steps
        elif zlib.crc32(block.data) != header["crc32"]:
            return None
        return Shard(block, items, self.layout)

    def _compute(self, label: str, dataset: Dataset[Any], keys: Sequence[Any], compute: _Compute) -> Shard:
        items: list[Item] = []
        block = self._block(self.layout.places(len(keys))[1])
        shard = Shard(block, [Item("", "", "")] * len(keys), self.layout)
        for batch in compute.load(dataset, keys):
            if tuple(batch["image"].shape[-2:]) != self.layout.size:
                raise CacheError(f"samples of different sizes can't be cached ({batch['item'][0].id})")
            shard.fill(len(items), compute.prefix(batch["image"]), batch)
            items += batch["item"]
        shard.items = items
        self.built += 1
        if self.folder is None:
            self._shards[label] = shard
            return shard
        self._write(label, block, items)
        found = self._open(label, len(items), written=True)
        if found is None:  # another process has put something else there
            self._scratch = None
        return found or shard

    def _block(self, size: int) -> np.ndarray:
        """Zeros, (size,) uint8: on the way to disk in the memory of the last shard."""
        if self.folder is None:
            return np.zeros(size, np.uint8)
        if self._scratch is None or len(self._scratch) != size:
            self._scratch = np.zeros(size, np.uint8)
        return self._scratch

    def _write(self, label: str, block: np.ndarray, items: Sequence[Item]) -> None:
        """All or nothing; of two processes that write the same shard the later one wins, with the same bytes."""
        assert self.folder is not None
        facts = {
            "key": f"{self.key}/{label}",
            "crc32": zlib.crc32(block.data),
            "items": [asdict(item) for item in items],
        }
        header = _MAGIC + json.dumps(facts).encode() + b"\n"
        with files.atomic_path(self.folder / f"{label}.bin") as path, open(path, "wb") as file:
            file.write(header + bytes(-len(header) % _ALIGNED))
            file.write(block.data)


@dataclass(frozen=True)
class _Compute:
    """How samples are loaded and taken through the frozen part."""

    cut: Cut
    batch_size: int
    workers: int
    autocast: torch.dtype | None
    channels_last: bool
    device: torch.device
    collate: Callable[[Any], Any] = collate

    def load(self, dataset: Dataset[Any], keys: Sequence[Any]) -> Iterator[Any]:
        """Batches of dataset[key], in order."""
        return iter(
            DataLoader(
                dataset,
                batch_size=self.batch_size,
                sampler=keys,
                num_workers=self.workers,
                collate_fn=self.collate,
            )
        )

    def prefix(self, image: Tensor) -> list[Tensor]:
        """image: (B, C, H, W) float32, normalised -> the tensors at the cut."""
        image = image.to(self.device)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        kind = self.device.type
        with torch.autocast(kind, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            return self.cut.prefix(image)


class CachedLoader:
    """Batches of shards, gathered row by row; one view an epoch."""

    def __init__(
        self,
        views: Sequence[Sequence[Shard]],
        layout: Layout,
        *,
        batch_size: int,
        dtype: torch.dtype,
        in_chans: int,
        sampler: EpochSampler | None,
    ) -> None:
        """dtype: in which the features are handed out. sampler: order of an epoch; None: as they lie."""
        self.views = views
        self.layout = layout
        self.batch_size = batch_size
        self.dtype = dtype
        self.sampler = sampler  # Lightning calls its set_epoch
        self.batch_sampler = None  # Lightning asks for it
        self._stand_in = torch.zeros(()).expand(1, in_chans, *layout.size)
        self._count = sum(len(shard.items) for shard in views[0])

    def __len__(self) -> int:
        if self.sampler is not None and self._count > self.batch_size:
            return self._count // self.batch_size  # as uncached: no last batch of few samples
        return -(-self._count // self.batch_size)

    def __iter__(self) -> Iterator[FeatureBatch]:
        epoch = 0 if self.sampler is None else self.sampler.epoch
        order = range(self._count) if self.sampler is None else [key.index for key in self.sampler]
        shards = self.views[epoch % len(self.views)]
        for number in range(len(self)):
            rows = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self._batch([(shards[row // SHARD], row % SHARD) for row in rows])

    def _batch(self, places: Sequence[tuple[Shard, int]]) -> FeatureBatch:
        targets = {
            target.name: torch.stack([shard.targets[target.name][row] for shard, row in places]).to(target.given)
            for target in self.layout.targets
        }
        return targets | {
            "image": self._stand_in.expand(len(places), *self._stand_in.shape[1:]),
            "item": [shard.items[row] for shard, row in places],
            "features": [self._gather(index, places) for index in range(len(self.layout.shapes))],
        }

    def _gather(self, index: int, places: Sequence[tuple[Shard, int]]) -> Tensor:
        """One tensor of the batch, in the memory order in which it lies."""
        return _channels_last(torch.stack([shard.arrays[index][row] for shard, row in places])).to(self.dtype)


class CachedData(LightningDataModule):
    """The loaders of a cached training; validation is the data's own where it can't be cached."""

    def __init__(
        self,
        train: CachedLoader,
        val: CachedLoader | None,
        data: Data,
        *,
        held: BinaryIO | None = None,
    ) -> None:
        """held: what keeps the cache from being removed while it is trained from."""
        super().__init__()
        self.train, self.val, self.data = train, val, data
        self.held = held

    def train_dataloader(self) -> CachedLoader:
        return self.train

    def val_dataloader(self) -> Any:
        return self.val or self.data.val_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        moved: Any = self.data.transfer_batch_to_device(batch, device, dataloader_idx)
        if "features" in batch:
            moved["features"] = [t.to(device, non_blocking=True) for t in batch["features"]]
        return moved


def cache_features(
    task: SegmentationModule | ClassificationModule,
    data: Data,
    cut: Cut,
    *,
    views: int,
    storage: Storage,
    folder: Path,
    limit: float,
    most: float,
    autocast: torch.dtype | None,
    device: torch.device,
    say: Callable[[str], None] = print,
) -> CachedData:
    """Fill the cache for `task` on `data`, or find it filled, and set the task to train from it.

    folder: of all caches; this one's is below it, named by what it depends on. limit: bytes at most; more raises
    CacheError, as does what can't be cached. most: bytes of all caches in the folder; those of other runs that
    weren't used for longest are removed for it. A disk that is full or read-only raises WriteError. `say` gets
    the size before the first sample is computed.
    """
    stack = collate_labelled if isinstance(data, ClassificationDataModule) else collate
    compute = _Compute(cut, data.batch_size, data.workers, autocast, task.channels_last, device, stack)
    task.model.backbone.to(device)
    dataset = data.training_dataset()
    layout = _layout(dataset[SampleKey(data.seed, 0, 0)], compute)
    whole = len(dataset) * views * layout.sample_bytes
    evaluated = data.evaluation_loader("val").dataset if data.items["val"] else None
    evaluation = None if evaluated is None else _layout(evaluated[0], compute)  # type: ignore[arg-type]
    if evaluation is not None:
        whole += len(evaluated) * evaluation.sample_bytes  # type: ignore[arg-type]
    key = cache_key(task, data, cut, layout)
    own = folder / key if storage == "disk" else None
    held = None if own is None else eviction.hold(own)
    _announce(whole, len(dataset), views, own, limit=limit, most=most, say=say)
    started = time.perf_counter()
    cache = FeatureCache(layout, key=key, folder=own)
    shards = []
    for view in range(views):
        keys = [SampleKey(data.seed, view, index) for index in range(len(dataset))]
        shards.append(cache.fill(f"train-{view:03d}", dataset, keys, compute))
    dtype = autocast or torch.float32
    train = CachedLoader(
        shards, layout, batch_size=data.batch_size, dtype=dtype, in_chans=data.in_chans,
        sampler=EpochSampler(dataset, seed=data.seed),
    )  # fmt: skip
    built, val = cache.built, None
    if evaluation is not None:
        try:
            kept = FeatureCache(evaluation, key=key, folder=own)
            found = kept.fill("val", evaluated, range(len(evaluated)), compute)  # type: ignore[arg-type]
            val = CachedLoader(
                [found], evaluation, batch_size=data.eval_batch_size, dtype=dtype,
                in_chans=data.in_chans, sampler=None,
            )  # fmt: skip
            built += kept.built
        except CacheError as error:
            say(f"note: validation isn't cached: {error}")
    say(f"feature cache: {built} shards computed in {time.perf_counter() - started:.1f} s, the others found")
    task.cut = cut
    return CachedData(train, val, data, held=held)


def cache_key(task: Task, data: Data, cut: Cut, layout: Layout) -> str:
    """Digest of everything on which the cached numbers depend."""
    digest = hashlib.sha256()
    backbone = task.model.backbone
    frozen = [(name, value) for name, value in backbone.named_parameters() if not value.requires_grad]
    for name, module in backbone.named_modules():
        if not module.training:  # trained batch norms move their buffers
            frozen += [(f"{name}.{key}", value) for key, value in module.named_buffers(recurse=False)]
    for name, value in frozen:
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    facts = {
        "backbone": task.model.backbone.name,
        "stored": cut.stored,
        "indices": task.model.backbone.geometry.indices,  # type: ignore[union-attr]
        "layout": (layout.size, layout.shapes, str(layout.dtype), layout.targets),
        "data": data.statistics.fingerprint,
        "files": {split: [asdict(item) for item in data.items[split]] for split in ("train", "val")},
        "normalisation": (data.normalisation.mean, data.normalisation.std),
        "augment": asdict(data.augment),
        "sampling": _sampling(data),
        "versions": torch.__version__,
    }
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:24]


def _sampling(data: Data) -> tuple[object, ...]:
    """What decides which samples a view is made of, and with which labels."""
    if isinstance(data, ClassificationDataModule):
        return (data.balance, data.labels_digest("train"), data.labels_digest("val"), data.seed)
    return (data.rare_class_crops, data.samples_per_epoch, data.min_valid, data.seed)


def _layout(sample: Mapping[str, Any], compute: _Compute) -> Layout:
    """Of the samples like this one."""
    stored = compute.prefix(sample["image"][None])
    targets = [Target.of(name, sample[name]) for name in sample if name not in ("image", "item")]
    shapes = tuple(tuple(t.shape[1:]) for t in stored)
    return Layout(tuple(sample["image"].shape[1:]), shapes, compute.autocast or torch.float16, tuple(targets))


def _announce(
    whole: int, samples: int, views: int, own: Path | None, *, limit: float, most: float, say: Callable[[str], None]
) -> None:
    """Say the size, make room for it, and refuse what is too much."""
    place = "memory" if own is None else str(own)
    size = f"{whole / 1e9:.2f} GB for {samples} samples x {views} views"
    if whole > limit:
        raise CacheError(f"the feature cache would take {size}; strategy.cache_limit is {limit / 1e9:g} GB")
    if own is not None:
        others = eviction.make_room(own, size=whole, limit=most, say=say)
        if others + whole > most:
            raise CacheError(
                f"the feature cache would take {size} beside {others / 1e9:g} GB of others that are in use; "
                f"strategy.cache_limit is {most / 1e9:g} GB"
            )
        if whole - eviction.folder_bytes(own) > (free := files.free_bytes(own)):
            raise WriteError(f"can't write {own}: the feature cache takes {size}, {free / 1e9:.2f} GB are free")
    say(f"feature cache: {size} in {place}")


def _last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) -> (H, W, C); other shapes as they are."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def _channels_last(array: Tensor) -> Tensor:
    """(B, H, W, C) seen as (B, C, H, W); others as they are."""
    return array.permute(0, 3, 1, 2) if array.ndim == 4 else array


def _array(block: np.ndarray, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(block[start : start + prod(shape) * dtype.itemsize]).view(dtype).view(shape)


def _item(values: dict[str, Any]) -> Item:
    """The item of `asdict(item)`."""
    windows = {name: values[name] and Window(**values[name]) for name in ("window", "labelled")}
    return Item(**{**values, **windows})
