"""The classification task: a model, its loss and its optimizer as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.labelled import LabelledBatch, labelled_to_device
from visionsft.evaluation.metrics import LabelAnswers, summarise_labels
from visionsft.models import ClassificationModel
from visionsft.training.tasks.task import Optimization, Task


class ClassificationModule(Task):
    """Works with any lightning.Trainer and any loader of `datamodules.LabelledBatch`; an image has one class.

    Logs "train/loss" (mean of the epoch), and "val/loss", "val/accuracy" and "val/macro_f1" over the split.
    """

    monitor: ClassVar[str] = "val/macro_f1"
    shown: ClassVar[Mapping[str, str]] = {
        "val/loss": "val loss",
        "val/accuracy": "val accuracy",
        "val/macro_f1": "val macro F1",
    }
    model: ClassificationModel

    def __init__(
        self,
        model: ClassificationModel,
        loss: nn.Module,
        *,
        class_names: Sequence[str],
        mixup: float = 0.0,
        optimization: Optimization | None = None,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        """mixup: parameter of the Beta distribution of the shares in which images are mixed; 0: they aren't."""
        super().__init__(
            model, class_names=class_names, optimization=optimization, channels_last=channels_last, seed=seed
        )
        self.loss = loss
        self.mixup = mixup
        self.answers = LabelAnswers()

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W) float32, normalised -> logits (B, K) float32."""
        logits: Tensor = self.model(self.arrange(image))
        return logits

    def _logits(self, batch: LabelledBatch) -> Tensor:
        logits: Tensor = self.model.head(self.maps(batch))
        return logits.float()

    def transfer_batch_to_device(
        self, batch: LabelledBatch, device: torch.device, dataloader_idx: int
    ) -> LabelledBatch:
        """For loaders that come without a data module."""
        return labelled_to_device(batch, device)

    def training_step(self, batch: LabelledBatch, index: int) -> Tensor:
        """The loss of one batch; with mixup (Zhang et al. 2018) of each image mixed with another one of it."""
        image, label = batch["image"], batch["label"]
        if not self.mixup:
            return self.log_loss(self.loss(self._logits(batch), label), batch["item"], index)
        share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        logits = self(image.lerp(image.flip(0), 1 - share))
        loss = share * self.loss(logits, label) + (1 - share) * self.loss(logits, label.flip(0))
        return self.log_loss(loss, batch["item"], index)

    def on_validation_epoch_start(self) -> None:
        self.answers.reset()

    def validation_step(self, batch: LabelledBatch, index: int) -> None:
        """Keep the answers to one batch."""
        logits = self._logits(batch)
        self.answers.update(logits, batch["label"])
        loss = self.loss(logits, batch["label"])
        self.log("val/loss", loss, on_epoch=True, batch_size=len(batch["item"]), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        logits, labels = (each.cpu() for each in self.answers.compute())
        self.log_dict(self.judge(logits, labels.numpy()))

    def judge(self, logits: Tensor, labels: np.ndarray) -> dict[str, float]:
        """What is logged of all logits (N, K) and labels of the split."""
        scores = summarise_labels(logits.softmax(1).numpy(), labels, self.class_names)
        recalls = {f"val/recall/{row.name}": row.recall for row in scores.per_class}
        return {"val/accuracy": scores.accuracy, "val/macro_f1": scores.macro_f1, **recalls}


class MultiLabelModule(ClassificationModule):
    """The same for images with any number of classes.

    Logs "val/mean_average_precision", by which the best epoch is chosen, and the others at thresholds of 0.5.
    """

    monitor: ClassVar[str] = "val/mean_average_precision"
    shown: ClassVar[Mapping[str, str]] = {
        "val/loss": "val loss",
        "val/mean_average_precision": "val mAP",
        "val/macro_f1": "val macro F1",
    }

    def judge(self, logits: Tensor, labels: np.ndarray) -> dict[str, float]:
        """See `ClassificationModule.judge`."""
        thresholds = np.full(len(self.class_names), 0.5)
        scores = summarise_labels(logits.sigmoid().numpy(), labels, self.class_names, thresholds=thresholds)
        precisions = {f"val/average_precision/{row.name}": row.average_precision for row in scores.per_class}
        means = {f"val/{name}": value for name, value in scores.totals().items()}
        return {**means, **precisions}
