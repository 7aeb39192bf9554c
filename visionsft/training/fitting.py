"""Fitting: one training, from a configuration to a finished run folder."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import lightning

from backbones import Backbone
from datamodules import SegmentationDataModule
from visionsft import build
from visionsft.config import Config
from visionsft.errors import ConfigError
from visionsft.loading import load_config
from visionsft.runs import Run
from visionsft.training.callbacks import Checkpoints
from visionsft.training.strategies import trainable_table


def fit(config: Config | str | Path, *, resume: bool = False, overwrite: bool = False) -> Run:
    """Train as `config` (or the YAML file of that name) says; returns the finished run.

    resume: continue an interrupted run from its last finished epoch; on one CPU process the weights become bit
    for bit those of an uninterrupted run. overwrite: replace a run of the same name.
    """
    if not isinstance(config, Config):
        config = load_config(config)
    if resume and overwrite:
        raise ConfigError("resume and overwrite exclude each other: continue the run, or start it anew")
    _quieten()
    run = Run.resume(config) if resume else None
    checkpoint = run.checkpoint("last") if run is not None and run.has_checkpoint("last") else None
    lightning.seed_everything(config.seed, verbose=False)
    data = build.build_data(config)
    data.scan()
    backbone = build.build_backbone(config, data.bands, pretrained=checkpoint is None)
    data.set_normalisation(backbone.mean, backbone.std)
    data.setup("fit")  # the guard speaks up before a run folder is made
    task = build.build_task(config, build.build_model(config, backbone, len(data.classes)), data)
    run = run or Run.create(config, overwrite=overwrite)
    _record(run, config, data, backbone, resumed=checkpoint is not None)
    run.write_text("trainable.txt", trainable_table(task.model, task.rates))
    print((run.path / "trainable.txt").read_text())
    trainer = build.build_trainer(config, run.path)
    started = time.perf_counter()
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    _finish(run, trainer, seconds=time.perf_counter() - started)
    return run


def _record(
    run: Run, config: Config, data: SegmentationDataModule, backbone: Backbone, *, resumed: bool
) -> None:
    """Write what the run stands on: data.json for later commands, environment.json for readers."""
    card = data.data_card()
    for warning in card["warnings"]:
        print(f"note: {warning}")
    if resumed:
        return
    normalisation = {"mean": data.normalisation.mean, "std": data.normalisation.std}
    run.write_json("data.json", {**card, "normalisation": normalisation, "classes": data.classes.names})
    print(backbone.weights_report)
    run.write_environment({"weights": vars(backbone.weights_report), "data_fingerprint": card["fingerprint"]})


def _finish(run: Run, trainer: lightning.Trainer, *, seconds: float) -> None:
    if trainer.interrupted:
        raise KeyboardInterrupt
    kept: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoints):
            kept = {"best_val_mean_iou": callback.best, "best_epoch": callback.best_epoch}
    run.mark_finished(
        {"epochs": trainer.current_epoch, "steps": trainer.global_step, "seconds": round(seconds, 1), **kept}
    )
    print(
        f"{run.path}: finished; best validation mIoU {kept['best_val_mean_iou']} in epoch {kept['best_epoch']}"
    )


def _quieten() -> None:
    """Hide Lightning's advice that doesn't apply here; ours is in the configuration."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings(
        "ignore", ".*in eval mode at the start of training.*"
    )  # frozen stages are meant to be
    warnings.filterwarnings("ignore", ".*You have overridden `transfer_batch_to_device` in both.*")
