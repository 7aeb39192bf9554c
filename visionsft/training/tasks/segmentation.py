"""The segmentation task: a model, its loss and its optimizer as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn

from backbones import Cut
from datamodules.batch import Batch, to_device
from visionsft.errors import TrainingError
from visionsft.evaluation.metrics import SegmentationConfusion, summarise
from visionsft.models import SegmentationModel
from visionsft.training.strategies import FullStrategy, Rates, Schedule, Strategy, parameter_groups


class SegmentationModule(LightningModule):
    """Works with any lightning.Trainer and any loader of `datamodules.Batch`.

    Logs "train/loss" (mean of the epoch), "val/loss" and "val/mean_iou" (one confusion matrix over the split).
    Randomness inside the model (dropout, drop-path) is seeded by (seed, epoch, batch): an epoch can be repeated.
    """

    def __init__(
        self,
        model: SegmentationModel,
        loss: nn.Module,
        *,
        class_names: Sequence[str],
        strategy: Strategy | None = None,
        rates: Rates | None = None,
        schedule: Schedule | None = None,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        momentum: float = 0.9,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        """strategy: already applied to the model by its `prepare`; default: everything trains."""
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]
        self.loss = loss
        self.class_names = tuple(class_names)
        self.strategy = strategy or FullStrategy()
        self.rates = rates or Rates()
        self.schedule = schedule or Schedule()
        self.optimizer_name = optimizer
        self.momentum = momentum
        self.channels_last = channels_last
        self.seed = seed
        self.cut: Cut | None = None
        """Where batches with "features" enter the backbone; see visionsft.training.features."""
        self.confusion = SegmentationConfusion(len(self.class_names))
        self.strategy.freeze(model.backbone, epoch=0)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W) float32, normalised -> logits (B, K, H, W) float32."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.model(image)
        return logits

    def _logits(self, batch: Batch) -> Tensor:
        """Of a batch of images, or of one of the feature cache."""
        if self.cut is None or "features" not in batch:
            logits: Tensor = self(batch["image"])
            return logits
        height, width = batch["image"].shape[-2:]
        maps = self.cut.suffix(batch["features"], (height, width))  # type: ignore[typeddict-item]
        return self.model.upsample(self.model.head(self.model.neck(maps)), batch["image"])

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """For loaders that come without a data module."""
        return to_device(batch, device)

    # ---------------------------------------------------------------- training

    def on_train_epoch_start(self) -> None:
        """Unfreeze what this epoch trains."""
        if self.strategy.freeze(self.model.backbone, self.current_epoch):  # type: ignore[arg-type]
            self._adopt_parameters()

    def on_train_start(self) -> None:
        self._steps = int(self.trainer.estimated_stepping_batches)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Start the random numbers of this step, whatever others (a loader, say) have drawn before it."""
        cpu, gpu = np.random.SeedSequence((self.seed, self.current_epoch, index)).generate_state(2).tolist()
        torch.default_generator.manual_seed(cpu)
        # torch.manual_seed does both, and formats a stack trace where there is no GPU
        if torch.cuda.is_available():
            torch.cuda.manual_seed(gpu)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of one batch."""
        loss: Tensor = self.loss(self._logits(batch), batch["mask"])
        if not torch.isfinite(loss):
            places = ", ".join(item.id for item in batch["item"])
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}, batch {index} ({places}): "
                "a lower strategy.lr, trainer.clip: 1.0 or trainer.precision: '32' usually helps"
            )
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch["item"]))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set each group's learning rate for this step."""
        factor = self.schedule.factor(self.trainer.global_step, self._steps)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Only what trains is in the optimizer."""
        groups = parameter_groups(self.model, self.rates)
        if self.optimizer_name == "sgd":
            return torch.optim.SGD(groups, lr=self.rates.lr, momentum=self.momentum, fused=self._fused)
        return torch.optim.AdamW(groups, lr=self.rates.lr, fused=self._fused)

    @property
    def _fused(self) -> bool:
        """One kernel for all parameters; with float16's loss scaling Lightning couldn't clip its gradients."""
        return self._trainer is None or self._trainer.precision != "16-mixed"

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does, which refuses fused optimizers although only loss scaling is in their way."""
        if not self._fused:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            by_value = gradient_clip_algorithm == "value"
            clip = torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_
            clip([p for group in optimizer.param_groups for p in group["params"]], gradient_clip_val)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Freeze as in the checkpoint's epoch, so that the optimizer gets the groups it had."""
        self.strategy.freeze(self.model.backbone, checkpoint["epoch"])  # type: ignore[arg-type]

    def _adopt_parameters(self) -> None:
        """Give newly unfrozen parameters to the optimizer."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for group in parameter_groups(self.model, self.rates, known=known):
            optimizer.add_param_group(group)

    # ---------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        self.confusion.reset()

    def validation_step(self, batch: Batch, index: int) -> None:
        """Count one batch."""
        logits = self._logits(batch)
        self.confusion.update(logits, batch["mask"])
        loss = self.loss(logits, batch["mask"])
        self.log("val/loss", loss, on_epoch=True, batch_size=len(batch["item"]), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        scores = summarise(self.confusion.compute().cpu().numpy(), self.class_names)
        values: Mapping[str, float] = {
            "val/mean_iou": scores.mean_iou,
            "val/mean_recall": scores.mean_recall,
            **{f"val/iou/{score.name}": score.iou for score in scores.per_class},
        }
        self.log_dict(dict(values))
