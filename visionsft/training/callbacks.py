"""Callbacks: the moving average of weights, checkpoints, the table of metrics and a line an epoch."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from visionsft import files


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are complete or absent: Lightning's own may be cut off by a kill or a full disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write beside the target, then rename."""
        with files.atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


class MovingAverage(Callback):
    """Exponential moving average of everything that changes in training, used for validation and kept in checkpoints.

    The decay rises as (1 + n) / (10 + n) over the first n updates (as in TensorFlow's), so that the first weights
    don't weigh for long. Frozen parts aren't averaged: they stay bit for bit.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """That of a checkpoint comes in main memory."""
        self.average = {name: tensor.to(module.device) for name, tensor in self.average.items()}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.updates:  # gradients are still being accumulated
            return
        self.updates = trainer.global_step
        live = self._live(module)
        for name in live.keys() - self.average.keys():
            self.average[name] = live[name].detach().clone()
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        names = [name for name in self.average if live[name].is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in names], [live[n].detach() for n in names], 1 - decay)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.average and not trainer.sanity_checking:
            live = self._live(module)
            self._own = {name: live[name].detach().clone() for name in self.average}
            _copy(self.average, live)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.restore(module)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.restore(module)

    def restore(self, module: LightningModule) -> None:
        """Put the trained weights back in the place of the average."""
        if self._own is not None:
            _copy(self._own, self._live(module))
            self._own = None

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.average = state["updates"], dict(state["average"])

    def _live(self, module: LightningModule) -> dict[str, Tensor]:
        """Trained parameters, and the float buffers of modules that aren't frozen (BatchNorm's statistics)."""
        model: nn.Module = module.model  # type: ignore[assignment]
        live: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for prefix, part in model.named_modules():
            trains = any(p.requires_grad for p in part.parameters(recurse=False))
            for name, buffer in part.named_buffers(recurse=False):
                if trains and buffer.is_floating_point():
                    live[f"{prefix}.{name}" if prefix else name] = buffer
        return live


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)


class Checkpoints(Callback):
    """last.ckpt after every epoch, and best.ckpt whenever the validation score is the best so far."""

    def __init__(self, folder: Path, *, monitor: str) -> None:
        self.folder = folder
        self.monitor = monitor
        self.best: float | None = None
        self.best_epoch: int | None = None

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        score = trainer.callback_metrics.get(self.monitor)
        better = (
            validated(trainer)
            and score is not None
            and not math.isnan(score)
            and (self.best is None or score > self.best)
        )
        if better:
            self.best, self.best_epoch = float(score), trainer.current_epoch  # type: ignore[arg-type]
        if better or self.best is None:
            trainer.save_checkpoint(self.folder / "best.ckpt")
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]


def validated(trainer: Trainer) -> bool:
    """Whether this epoch has a validation."""
    assert trainer.check_val_every_n_epoch is not None
    return (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0


class MetricsTable(Callback):
    """metrics.csv: a row an epoch; a resumed run continues the table where its checkpoint ends."""

    def __init__(self, path: Path, *, shown: Mapping[str, str]) -> None:
        """shown: columns that the line of an epoch names, and their names there."""
        self.path = path
        self.shown = shown
        self.rows: list[dict[str, Any]] = []
        self._started = self._trained = 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        new = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        if not validated(trainer):  # Lightning keeps the last validation's
            new = {name: value for name, value in new.items() if not name.startswith("val/")}
        optimizer = trainer.optimizers[0]
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(time.perf_counter() - self._started, 2),
            "train_seconds": round(self._trained - self._started, 2),
            "lr": optimizer.param_groups[0]["lr"],
            **new,
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()
            print(_line(row, trainer.max_epochs, self.shown), flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self.path, text.getvalue())


def _line(row: Mapping[str, Any], epochs: int | None, shown: Mapping[str, str]) -> str:
    parts = [
        f"epoch {row['epoch'] + 1}/{epochs}",
        f"{row['seconds']:.0f} s",
        f"train loss {row['train/loss']:.4f}",
    ]
    parts += [f"{name} {row[column]:.4f}" for column, name in shown.items() if column in row]
    return "  ".join(parts)
