"""GeoTIFF patches with labels: a data module for classification of rasters of any band count and number type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from datamodules.augment import Augment
from datamodules.batch import Item, Sample
from datamodules.classes import ClassSpec, Value
from datamodules.classification import ClassificationDataModule, LabelLayoutName, ResizedReader
from datamodules.datasets import EvaluationDataset
from datamodules.errors import DataError
from datamodules.layouts import Listing
from datamodules.scenes import SceneModule, kept, listed, without
from datamodules.sizes import FrameCheck
from datamodules.splits import FolderSplit, Split, Splits


class GeoTiffClassificationDataModule(SceneModule, ClassificationDataModule):
    """Patches and their labels below `root`: whole for evaluation, augmented (crops) for training."""

    def __init__(
        self,
        root: str | Path,
        *,
        layout: LabelLayoutName = "folders",
        images: str | None = None,
        annotations: str | None = None,
        classes: Sequence[ClassSpec] | None = None,
        ignore: Sequence[Value] = (),
        multi_label: bool = False,
        split: Split = FolderSplit(),  # noqa: B008 (frozen)
        bands: Sequence[str] | None = None,
        use_bands: Sequence[str] | None = None,
        nodata: float | None = None,
        resolution: float | None = None,
        size: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        augment: Augment = Augment("nadir", photometric=0.3),  # noqa: B008 (frozen)
        balance: float = 0.0,
        normalise: Literal["weights", "data"] = "weights",
        scale: float | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        workers: int = 1,
        on_error: Literal["stop", "skip"] = "stop",
        seed: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        """bands, use_bands, nodata, resolution: see `GeoTiffDataModule`.
        The other options are those of `ClassificationDataModule`."""
        super().__init__(
            root,
            layout=layout,
            images=images,
            annotations=annotations,
            classes=classes,
            ignore=ignore,
            multi_label=multi_label,
            split=split,
            size=size,
            crop=crop,
            augment=augment,
            balance=balance,
            normalise=normalise,
            scale=scale,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            workers=workers,
            on_error=on_error,
            seed=seed,
            cache_dir=cache_dir,
        )
        self.band_names = bands
        self.use_bands = use_bands
        if use_bands is not None:
            self.bands = tuple(use_bands)
        self.nodata = nodata
        self.resolution = resolution
        self._scenes = {}
        self._regions = None

    def scan(self) -> None:
        """Finds, checks and splits the patches and reads their labels; pixels only if on_error is 'skip'."""
        self.skipped, self.unmatched, self.notes = [], [], []
        folders = self._find()
        bad = self._unreadable([item for group in folders.values() for item in group]) if self._skips else {}
        self._adopt(self._split(without(folders, bad)))
        self.skipped += bad.values()

    def _survey(self) -> Splits:
        return self._split(self._find())

    def settle(self, splits: Splits, checks: Mapping[str, FrameCheck]) -> None:
        """See the base."""
        self._adopt(self._usable(splits, checks))

    def _find(self) -> dict[str, list[Item]]:
        """The items whose headers and labels are in order, by split for a split by folder, else all together."""
        self._listings = []
        folders = self._list()
        problems = self._read_labels(folders)
        self._refuse(problems)
        items = [item for group in folders.values() for item in group if item.image in self._labels]
        headers = self._read_headers(items)
        items = [item for item in items if item.id in headers]
        scenes = self._each(items, lambda item: self._scene(headers[item.id]))
        self._scenes = {headers[id].path: scene for id, scene in scenes.items()}
        items = [item for item in items if item.id in scenes]
        sizes = {path: (scene.grid.height, scene.grid.width) for path, scene in self._scenes.items()}
        odd = self._settle_size(
            {path: FrameCheck(*size, str(self.dtype), None) for path, size in sizes.items()}
        )
        self._refuse(odd)
        return kept(folders, [item for item in items if item.image not in odd])

    def _adopt(self, splits: Splits) -> None:
        self.items = splits
        if not self.items["train"]:
            raise DataError(f"{self.root}: no usable training image is left{listed(self.skipped)}")
        self._check_crop()

    def prediction_dataset(self, paths: Sequence[str | Path]) -> Dataset[Sample]:
        """Whole files, in the order given, bands found by name, at `size` if there is one."""
        items, reader = self._prediction_reader(paths)
        resized = ResizedReader(reader, self.size)
        return EvaluationDataset(items, reader=resized, normalisation=self.normalisation)

    # ---------------------------------------------------------------- for the base

    def _listing(self, folder: str | None) -> Listing:
        return self._list_labels(folder)

    def _facts(self) -> dict[str, object]:
        return SceneModule._facts(self) | ClassificationDataModule._facts(self)

    def _refuse(self, problems: Mapping[str, str]) -> None:
        """Images with problems (by path) stop, or are left out and named."""
        if problems and self.on_error == "stop":
            found = listed(list(problems.items()))
            raise DataError(f"{self.root}: {len(problems)} images can't be used:{found}")
        self.skipped += problems.items()
