"""Probes: a run's model scored on the same images as they are and in changed ways, whatever its task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from datamodules.batch import Item
from visionsft.config import ClassificationConfig, DetectionConfig
from visionsft.evaluation.answers import infer
from visionsft.evaluation.classifying import classify
from visionsft.evaluation.detection_counts import DetectionCounts
from visionsft.evaluation.detection_scores import (
    DETECTION_DEFINITIONS,
    DetectionScores,
    score_detections,
)
from visionsft.evaluation.evaluating import progress
from visionsft.evaluation.label_thresholds import read_thresholds
from visionsft.evaluation.metrics import (
    DEFINITIONS,
    LABEL_DEFINITIONS,
    ClassificationScores,
    SegmentationScores,
    confusion_matrix,
    predict_classes,
    summarise,
    summarise_labels,
)
from visionsft.evaluation.temperature import read_temperature
from visionsft.models.rotated import rotated_iou
from visionsft.runs import Checkpoint

if TYPE_CHECKING:
    from visionsft.training.loading import LoadedRun

Change = Callable[[NDArray[np.float32], NDArray[np.bool_], str], NDArray[np.float32]]
"""An image (C, H, W) float32, normalised, its valid pixels (H, W) and its id -> the changed image."""

Scores = SegmentationScores | DetectionScores | ClassificationScores


class Probe(ABC):
    """One task's way to score a split under changes: one pass over the files for all of them."""

    metric: ClassVar[str]
    """Over all classes, by which changes are told apart."""
    title: ClassVar[str]
    class_metric: ClassVar[str]
    definitions: ClassVar[Mapping[str, str]]

    def __init__(self, loaded: LoadedRun, split: str, checkpoint: Checkpoint, *, limit: int | None) -> None:
        """limit: at most so many samples, evenly spaced over the split."""
        self.loaded, self.split, self.checkpoint = loaded, split, checkpoint
        self.of = self._count()
        samples = self.of if limit is None else min(limit, self.of)
        self.indices = np.linspace(0, self.of - 1, samples).round().astype(int).tolist()
        self.names = loaded.data.classes.names

    @abstractmethod
    def _count(self) -> int:
        """Samples of the split."""

    @abstractmethod
    def score(self, changes: Sequence[Change]) -> list[Scores]:
        """The scores of the images as they are, then under each change."""

    def value(self, scores: Scores) -> float:
        found: float = getattr(scores, self.metric)
        return found

    def class_values(self, scores: Scores) -> dict[str, float]:
        """By class."""
        return {row.name: getattr(row, self.class_metric) for row in scores.per_class}


class _BatchProbe(Probe):
    """Samples come in batches of images."""

    def _count(self) -> int:
        return len(self.loaded.data.evaluation_loader(self.split).dataset)

    def _batches(self) -> Iterator[Any]:
        loader = self.loaded.data.evaluation_loader(self.split)
        if len(self.indices) < self.of:
            loader = DataLoader(
                Subset(loader.dataset, self.indices),
                batch_size=loader.batch_size,
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
                worker_init_fn=loader.worker_init_fn,
            )
        yield from progress(loader, f"changing {self.split}")

    @staticmethod
    def _views(batch: Mapping[str, Any], changes: Sequence[Change]) -> Iterator[Tensor]:
        """The batch's images (B, C, H, W) as they are, then changed in each way."""
        yield batch["image"]
        samples = list(zip(batch["image"].numpy(), batch["valid"].numpy(), batch["item"], strict=True))
        for change in changes:
            images = [change(image, valid, item.id) for image, valid, item in samples]
            yield torch.from_numpy(np.stack(images))


class MapProbe(_BatchProbe):
    """Classes of pixels."""

    metric, title, class_metric = "mean_iou", "mean IoU", "iou"
    definitions = DEFINITIONS

    def score(self, changes: Sequence[Change]) -> list[Scores]:
        count = len(self.names)
        confusions = torch.zeros(1 + len(changes), count, count, dtype=torch.int64)
        for batch in self._batches():
            for confusion, image in zip(confusions, self._views(batch, changes), strict=True):
                classes = predict_classes(infer(self.loaded, image)).cpu()
                confusion += confusion_matrix(classes, batch["mask"], count)
        return [summarise(confusion, self.names) for confusion in confusions]


class LabelProbe(_BatchProbe):
    """Classes of images."""

    metric, title, class_metric = "accuracy", "accuracy", "f1"
    definitions = LABEL_DEFINITIONS

    def score(self, changes: Sequence[Change]) -> list[Scores]:
        config = self.loaded.config
        assert isinstance(config, ClassificationConfig)
        several = config.task.multi_label
        run, found = self.loaded.run, read_temperature(self.loaded.run, self.checkpoint)
        value = found.value if found else 1.0
        thresholds = read_thresholds(run, self.checkpoint, self.names, temperature=value) if several else None
        answers: list[list[NDArray[np.float32]]] = [[] for _ in range(1 + len(changes))]
        labels = []
        for batch in self._batches():
            labels.append(batch["label"])
            for own, image in zip(answers, self._views(batch, changes), strict=True):
                own.append(classify(self.loaded, image, temperature=value))
        truth = torch.cat(labels).numpy()
        return [summarise_labels(np.concatenate(own), truth, self.names, thresholds=thresholds) for own in answers]


class BoxProbe(Probe):
    """Objects; images are read whole, and sliced where they are large."""

    metric, title, class_metric = "ap50", "AP50", "ap50"
    definitions = DETECTION_DEFINITIONS

    def _count(self) -> int:
        return len(self.loaded.data.items[self.split])

    def score(self, changes: Sequence[Change]) -> list[Scores]:
        from visionsft.prediction.detections import DetectionOptions, detection_predictor
        from visionsft.prediction.slicing import detect_images

        config, data = self.loaded.config, self.loaded.data
        assert isinstance(config, DetectionConfig)
        predictor = detection_predictor(self.loaded, DetectionOptions(score=0.0), turned_iou=rotated_iou)
        slices = predictor.usual_slices()
        counts = [DetectionCounts(self.names) for _ in range(1 + len(changes))]
        truth = data.objects(self.split)
        for index in progress(self.indices, f"changing {self.split}"):
            item, objects = truth[index]
            images, valid = self._views(item, changes)
            pairs = ((torch.from_numpy(image), valid) for image in images)
            found = detect_images(predictor.detector, pairs, slices=slices)
            for own, each in zip(counts, found, strict=True):
                own.add_objects(each, objects, item=item, size=(valid.shape[0], valid.shape[1]))
        return [
            score_detections(
                own,
                size_limits=config.task.size_limits,
                iou=config.task.match_iou,
                score=config.task.match_score,
            )
            for own in counts
        ]

    def _views(
        self, item: Item, changes: Sequence[Change]
    ) -> tuple[Iterator[NDArray[np.float32]], Tensor]:
        """The image (C, H, W) as it is, then changed in each way, and its valid pixels (H, W)."""
        raw = self.loaded.data.read(item)
        image = self.loaded.data.normalisation(raw.values, raw.valid)

        def views() -> Iterator[NDArray[np.float32]]:
            yield image
            for change in changes:
                yield change(image, raw.valid, item.id)

        return views(), torch.from_numpy(np.ascontiguousarray(raw.valid))


PROBES: dict[str, type[Probe]] = {
    "segmentation": MapProbe,
    "detection": BoxProbe,
    "instance_segmentation": BoxProbe,
    "classification": LabelProbe,
}
"""By task."""
