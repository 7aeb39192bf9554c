"""The task: what every LightningModule here does alike, from freezing and random numbers to the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn

from backbones import Cut
from datamodules.batch import Item
from visionsft.errors import TrainingError
from visionsft.training.strategies import FullStrategy, Rates, Schedule, Strategy, parameter_groups


@dataclass(frozen=True)
class Optimization:
    """What trains, how fast and by which rule."""

    strategy: Strategy = field(default_factory=FullStrategy)
    """Already applied to the model by its `prepare`."""
    rates: Rates = field(default_factory=Rates)
    schedule: Schedule = field(default_factory=Schedule)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    """SGD only."""


class Task(LightningModule):
    """A model with a `backbone`, trained by any lightning.Trainer; a subclass says what a step is.

    Randomness inside the model (dropout, drop-path) is seeded by (seed, epoch, batch): an epoch can be repeated.
    """

    monitor: ClassVar[str]
    """The logged figure by which the best epoch is chosen: the higher, the better."""
    shown: ClassVar[Mapping[str, str]]
    """Logged figures of validation that the line of an epoch shows, and their names there; `monitor` among them."""

    def __init__(
        self,
        model: nn.Module,
        *,
        class_names: Sequence[str],
        optimization: Optimization | None = None,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model: Any = model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]
        self.class_names = tuple(class_names)
        self.optimization = optimization or Optimization()
        self.channels_last = channels_last
        self.seed = seed
        self.cut: Cut | None = None
        """Where batches with "features" enter the backbone; see visionsft.training.features."""
        self.optimization.strategy.freeze(model.backbone, epoch=0)  # type: ignore[arg-type]

    def maps(self, batch: Any) -> list[Tensor]:
        """What the head sees of a batch of images, or of one of the feature cache."""
        if self.cut is None or "features" not in batch:
            found = self.model.backbone(self.arrange(batch["image"]))
        else:
            height, width = batch["image"].shape[-2:]
            found = self.cut.suffix(batch["features"], (height, width))
        return self.model.neck(found)  # type: ignore[no-any-return]

    def arrange(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W), laid out in memory as the model is."""
        return image.contiguous(memory_format=torch.channels_last) if self.channels_last else image

    # ---------------------------------------------------------------- training

    def on_train_epoch_start(self) -> None:
        """Unfreeze what this epoch trains."""
        if self.optimization.strategy.freeze(self.model.backbone, self.current_epoch):
            self._adopt_parameters()

    def on_train_start(self) -> None:
        self._steps = int(self.trainer.estimated_stepping_batches)

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Start the random numbers of this step, whatever others (a loader, say) have drawn before it."""
        cpu, gpu = np.random.SeedSequence((self.seed, self.current_epoch, index)).generate_state(2).tolist()
        torch.default_generator.manual_seed(cpu)
        # torch.manual_seed does both, and formats a stack trace where there is no GPU
        if torch.cuda.is_available():
            torch.cuda.manual_seed(gpu)

    def log_loss(self, loss: Tensor, items: Sequence[Item], index: int) -> Tensor:
        """Log "train/loss" and hand it on; one that isn't finite stops the training."""
        if not torch.isfinite(loss):
            places = ", ".join(item.id for item in items)
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}, batch {index} ({places}): "
                "a lower strategy.lr, trainer.clip: 1.0 or trainer.precision: '32' usually helps"
            )
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(items))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set each group's learning rate for this step."""
        factor = self.optimization.schedule.factor(self.trainer.global_step, self._steps)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Only what trains is in the optimizer."""
        wanted = self.optimization
        groups = parameter_groups(self.model, wanted.rates)
        if wanted.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=wanted.rates.lr, momentum=wanted.momentum, fused=self._fused)
        return torch.optim.AdamW(groups, lr=wanted.rates.lr, fused=self._fused)

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
        self.optimization.strategy.freeze(self.model.backbone, checkpoint["epoch"])

    def _adopt_parameters(self) -> None:
        """Give newly unfrozen parameters to the optimizer."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for group in parameter_groups(self.model, self.optimization.rates, known=known):
            optimizer.add_param_group(group)
