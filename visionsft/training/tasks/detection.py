"""The detection task: a detector, its losses and its optimizer as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from datamodules.objects import DetectionBatch, detection_to_device
from visionsft.evaluation.metrics.detection import AveragePrecision
from visionsft.models.detections import Detections
from visionsft.models.detector import DetectionModel
from visionsft.training.tasks.task import Optimization, Task


class DetectionModule(Task):
    """Works with any lightning.Trainer and any loader of `datamodules.objects.DetectionBatch`.

    Logs "train/loss" (the sum of the head's losses, mean of the epoch) and each of them as "train/NAME";
    "val/map" (COCO's mAP at IoU 0.50:0.95) and "val/ap50" over the split.
    """

    monitor: ClassVar[str] = "val/map"
    shown: ClassVar[Mapping[str, str]] = {"val/map": "val mAP", "val/ap50": "val AP50"}
    model: DetectionModel

    def __init__(
        self,
        model: DetectionModel,
        *,
        class_names: Sequence[str],
        optimization: Optimization | None = None,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model, class_names=class_names, optimization=optimization, channels_last=channels_last, seed=seed
        )
        self.averages = AveragePrecision(len(self.class_names))

    def forward(self, image: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[Detections]:
        """image: (B, C, H, W) float32, normalised -> what is found in each; sizes: without the padding."""
        found: list[Detections] = self.model(self.arrange(image), sizes)
        return found

    def transfer_batch_to_device(
        self, batch: DetectionBatch, device: torch.device, dataloader_idx: int
    ) -> DetectionBatch:
        """For loaders that come without a data module."""
        return detection_to_device(batch, device)

    def training_step(self, batch: DetectionBatch, index: int) -> Tensor:
        """The loss of one batch."""
        parts = self.model.losses(self.arrange(batch["image"]), batch["sizes"], batch["target"])
        count = len(batch["item"])
        for name, value in parts.items():
            self.log(f"train/{name}", value.detach(), on_step=False, on_epoch=True, batch_size=count)
        return self.log_loss(torch.stack(list(parts.values())).sum(), batch["item"], index)

    def on_validation_epoch_start(self) -> None:
        self.averages.reset()

    def validation_step(self, batch: DetectionBatch, index: int) -> None:
        """Keep what is found in one batch."""
        self.averages.update(self(batch["image"], batch["sizes"]), batch["target"])

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.averages.compute().items()})
