"""Camera pictures with labels: a data module for classification of pictures in class folders or a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from datamodules.augment import Augment
from datamodules.batch import Item, Sample
from datamodules.classes import ClassSpec, Value
from datamodules.classification import ClassificationDataModule, LabelLayoutName
from datamodules.datasets import EvaluationDataset
from datamodules.drives import DriveModule
from datamodules.errors import DataError
from datamodules.frames import Fit, FrameInspector, PictureReader
from datamodules.layouts import Listing
from datamodules.sizes import FrameCheck
from datamodules.splits import FolderSplit, Split, Splits


class CameraClassificationDataModule(DriveModule, ClassificationDataModule):
    """Pictures and their labels below `root`: whole for evaluation, augmented (crops) for training."""

    label_word = "label"

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
        size: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        drive_pattern: str | None = None,
        augment: Augment = Augment("driving", photometric=0.3),  # noqa: B008 (frozen)
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
        """drive_pattern: regular expression on a picture's stem whose first group is the drive.
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
        self.bands = ("red", "green", "blue")
        self.own_pattern = None
        self._problems: dict[str, str] = {}
        self.drive_pattern = drive_pattern

    def scan(self) -> None:
        """Finds and splits the pictures, reads their labels, looks into each once (which is cached)."""
        self.notes, self.unmatched = [], []
        splits = self._survey()
        pictures = [item for items in splits.values() for item in items]
        self.settle(splits, self._check_frames(pictures, self._reader()))

    def _survey(self) -> Splits:
        self._listings = []
        splits = self._split()
        self._problems = self._read_labels(splits)
        self.skipped += self._problems.items()
        return {
            name: [item for item in items if item.image in self._labels or item.image in self._problems]
            for name, items in splits.items()
        }

    def inspector(self) -> FrameInspector:
        """See the base."""
        return FrameInspector(None)

    def settle(self, splits: Splits, checks: Mapping[str, FrameCheck]) -> None:
        """See the base."""
        problems = dict(self._problems)
        problems |= {path: check.problem for path, check in checks.items() if check.problem is not None}
        problems |= self._settle_size({path: check for path, check in checks.items() if path not in problems})
        self._take_usable(splits, problems)
        self._check_crop()

    def prediction_dataset(self, paths: Sequence[str | Path]) -> Dataset[Sample]:
        """Pictures without labels, in the order given, at `size` if there is one, else at their own size."""
        items = [Item(id=str(path), group=str(path), image=str(path)) for path in paths]
        for item in items:
            if not Path(item.image).is_file():
                raise DataError(f"{item.image}: no such file")
        reader = self._sized_reader()
        self._check_inputs(items, reader)
        return EvaluationDataset(items, reader=reader, normalisation=self.normalisation)

    # ---------------------------------------------------------------- for the base

    def _listing(self, folder: str | None) -> Listing:
        return self._list_labels(folder)

    def _reader(self) -> PictureReader:
        return PictureReader(Fit(None, None))
