"""Viewing: a pool of images seen once by a trained model, which tells how unsure it is, and their features.

Both come from one pass: the features are the mean of the backbone's last map over what is valid. Of each image only
these are kept (features in half precision), so that memory grows by some hundred bytes and numbers an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules import ClassificationDataModule, DetectionDataModule
from datamodules.raster import Grid
from visionsft.config import ClassificationConfig
from visionsft.errors import ConfigError
from visionsft.prediction.detections import RunDetector
from visionsft.prediction.scenes import ahead
from visionsft.prediction.tiling import size_limit
from visionsft.preparation.embedding import Image, in_batches, valid_share
from visionsft.preparation.embeddingfiles import Place
from visionsft.preparation.uncertainty import Doubt, doubt_labels, doubt_objects, doubt_pixels
from visionsft.training.loading import LoadedRun

WORST = 3
"""Classes that are named as the most uncertain ones."""
HALF = 65504.0
"""The largest number of half precision."""


@dataclass
class Views:
    """What is kept of the images seen."""

    places: list[Place] = field(default_factory=list)
    grids: list[Grid | None] = field(default_factory=list)
    amounts: list[float] = field(default_factory=list)
    worst: list[list[tuple[int, float]]] = field(default_factory=list)
    """See `Doubt.worst`."""
    _features: list[NDArray[np.float16]] = field(default_factory=list)

    def add(self, images: Sequence[Image], doubts: Sequence[Doubt], features: Tensor) -> None:
        """Some more; features: (B, D)."""
        for image, doubt in zip(images, doubts, strict=True):
            self.places.append(image.place)
            self.grids.append(image.grid)
            self.amounts.append(doubt.amount)
            self.worst.append(doubt.worst(WORST))
        self._features.append(features.clamp(-HALF, HALF).half().cpu().numpy())

    @property
    def features(self) -> NDArray[np.float16]:
        """(N, D)."""
        if len(self._features) > 1:
            self._features = [np.concatenate(self._features)]
        return self._features[0] if self._features else np.empty((0, 0), np.float16)


class Viewer:
    """A run's model that is asked for its answers, and overheard for its features."""

    def __init__(self, loaded: LoadedRun) -> None:
        self.loaded = loaded
        self._maps: list[Tensor] = []
        self._limit = size_limit(loaded.model)
        self._detector = RunDetector(loaded) if isinstance(loaded.data, DetectionDataModule) else None

    def view(self, images: Iterable[Image]) -> Views:
        """All images, a few at a time, in their order; each has a valid pixel."""
        views = Views()
        hook = self.loaded.folded.backbone.register_forward_hook(lambda _, __, maps: self._maps.extend(maps[-1:]))
        try:
            for some in ahead(in_batches(images, self.loaded.data.eval_batch_size)):
                doubts = self._ask(some)
                views.add(some, doubts, self._pool(some))
        finally:
            hook.remove()
        return views

    def _ask(self, images: Sequence[Image]) -> list[Doubt]:
        loaded, pixels = self.loaded, torch.stack([image.pixels for image in images])
        size = (pixels.shape[2], pixels.shape[3])
        if self._limit is not None and max(size) > self._limit:
            raise ConfigError(
                f"{images[0].place.id}: {size[0]} x {size[1]} pixels; this model takes inputs up to "
                f"{self._limit} x {self._limit}"
            )
        self._maps.clear()
        if self._detector is not None:
            classes = len(loaded.data.classes.names)
            found = self._detector.detect(pixels, [size] * len(images))
            rows = [(each.scores.float().cpu().numpy(), each.labels.cpu().numpy()) for each in found]
            return [doubt_objects(*row, classes=classes) for row in rows]
        logits = loaded.logits(pixels).float()
        if isinstance(loaded.data, ClassificationDataModule):
            assert isinstance(loaded.config, ClassificationConfig)
            several = loaded.config.task.multi_label
            shares = logits.sigmoid() if several else logits.softmax(dim=1)
            return doubt_labels(shares.cpu().numpy(), several=several)
        return doubt_pixels(logits, torch.stack([torch.from_numpy(image.valid) for image in images]))

    def _pool(self, images: Sequence[Image]) -> Tensor:
        """(B, D)."""
        (maps,) = self._maps
        stride = self.loaded.model.backbone.strides[-1]
        shares = torch.stack([valid_share(image.valid, maps.shape[2:], stride) for image in images]).to(maps.device)
        return (maps.float() * shares[:, None]).sum((2, 3)) / shares.sum((1, 2))[:, None]
