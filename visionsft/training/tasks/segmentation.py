"""The segmentation task: a model, its loss and its optimizer as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from datamodules.batch import Batch, to_device
from visionsft.evaluation.metrics import SegmentationConfusion, summarise
from visionsft.models import SegmentationModel
from visionsft.models.losses import SegmentationLoss
from visionsft.training.tasks.task import Optimization, Task


class SegmentationModule(Task):
    """Works with any lightning.Trainer and any loader of `datamodules.Batch`.

    Logs "train/loss" (mean of the epoch), "val/loss" and "val/mean_iou" (one confusion matrix over the split).
    """

    monitor: ClassVar[str] = "val/mean_iou"
    shown: ClassVar[Mapping[str, str]] = {
        "val/loss": "val loss",
        "val/mean_iou": "val mIoU",
        "val/mean_recall": "val mean recall",
    }
    model: SegmentationModel

    def __init__(
        self,
        model: SegmentationModel,
        loss: nn.Module,
        *,
        class_names: Sequence[str],
        optimization: Optimization | None = None,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model, class_names=class_names, optimization=optimization, channels_last=channels_last, seed=seed
        )
        self.loss = loss
        self.confusion = SegmentationConfusion(len(self.class_names))

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W) float32, normalised -> logits (B, K, H, W) float32."""
        logits: Tensor = self.model(self.arrange(image))
        return logits

    def _coarse(self, batch: Batch) -> Tensor:
        """The head's logits (B, K, h, w)."""
        logits: Tensor = self.model.head(self.maps(batch))
        return logits

    def batch_loss(self, batch: Batch) -> Tensor:
        """The loss of one batch, in training."""
        logits = self._coarse(batch)
        upsampling = self.model.upsampling(logits, batch["image"])
        if isinstance(self.loss, SegmentationLoss):
            return self.loss.of_coarse(logits, upsampling, batch["mask"])
        loss: Tensor = self.loss(upsampling(logits), batch["mask"].long())
        return loss

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """For loaders that come without a data module."""
        return to_device(batch, device)

    # ---------------------------------------------------------------- steps

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of one batch."""
        return self.log_loss(self.batch_loss(batch), batch["item"], index)

    def on_validation_epoch_start(self) -> None:
        self.confusion.reset()

    def validation_step(self, batch: Batch, index: int) -> None:
        """Count one batch."""
        logits = self.model.upsample(self._coarse(batch), batch["image"])
        mask = batch["mask"].long()  # from the feature cache bytes
        self.confusion.update(logits, mask)
        loss = self.loss(logits, mask)
        self.log("val/loss", loss, on_epoch=True, batch_size=len(batch["item"]), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        scores = summarise(self.confusion.compute().cpu().numpy(), self.class_names)
        values: Mapping[str, float] = {
            "val/mean_iou": scores.mean_iou,
            "val/mean_recall": scores.mean_recall,
            **{f"val/iou/{score.name}": score.iou for score in scores.per_class},
        }
        self.log_dict(dict(values))
