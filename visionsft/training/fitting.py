"""Fitting: one training, from a configuration to a finished run folder."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Callback

from datamodules import DataModule, find_leaks
from visionsft import build
from visionsft.config import Config
from visionsft.errors import ConfigError
from visionsft.loading import load_config
from visionsft.memory import keep_freed_memory
from visionsft.runs import Run, is_first_process
from visionsft.splitting import split_texts, summarise
from visionsft.training.callbacks import Checkpoints
from visionsft.training.strategies import trainable_table
from visionsft.training.tasks import Task


def fit(
    config: Config | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    features: Path | None = None,
) -> Run:
    """Train as `config` (or the YAML file of that name) says; returns the finished run.

    resume: continue an interrupted run from its last finished epoch; on one CPU process the weights become bit
    for bit those of an uninterrupted run. overwrite: replace a run of the same name. callbacks: called after the
    run's own. features: folder of feature caches; default: ``.features`` beside the run.
    """
    if not isinstance(config, Config):
        config = load_config(config)
    if resume and overwrite:
        raise ConfigError("resume and overwrite exclude each other: continue the run, or start it anew")
    if config.tune is not None:
        print("note: `tune`, the search space, is not used by fit; `visionsft tune` searches it")
    _quieten()
    first = is_first_process()
    run = Run.resume(config) if resume and first else Run.of(config)
    checkpoint = run.checkpoint("last") if resume and run.has_checkpoint("last") else None
    task, data, fitted = _assemble(config, pretrained=checkpoint is None)
    if first and not resume:
        run = Run.create(config, overwrite=overwrite)
    if first:
        _record(run, task, data, fitted, resumed=checkpoint is not None)
    trainer = build.build_trainer(config, run.path, task, callbacks=callbacks)
    if build.choose_device(config).type == "cpu":
        keep_freed_memory()
    started = time.perf_counter()
    if checkpoint is not None:
        _adopt(task, checkpoint)
    source = build.build_cache(config, task, data, folder=features)
    trainer.fit(task, datamodule=source, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if first:
        _finish(run, trainer, task, seconds=time.perf_counter() - started)
    return run


def _assemble(config: Config, *, pretrained: bool) -> tuple[Task, DataModule, dict[str, Any]]:
    """Everything that training needs; a mistake in data or weights is found here, before a run folder is made."""
    lightning.seed_everything(config.seed, verbose=False)
    data = build.build_data(config)
    data.scan()
    backbone = build.build_backbone(config, data.bands, pretrained=pretrained)
    data.set_normalisation(backbone.mean, backbone.std)
    data.setup("fit")
    fitted = build.fit_head(config, data, backbone)
    model = build.build_model(config, backbone, len(data.classes), fitted=fitted)
    return build.build_task(config, model, data), data, fitted


def _record(
    run: Run, task: Task, data: DataModule, fitted: dict[str, Any], *, resumed: bool
) -> None:
    """Write and say what the run stands on: data, weights, and what trains."""
    table = trainable_table(task.model, task.optimization.rates)
    run.write_text("trainable.txt", table)
    card = data.data_card()
    if not resumed:
        weights = task.model.backbone.weights_report
        normalisation = {"mean": data.normalisation.mean, "std": data.normalisation.std}
        card |= {"normalisation": normalisation, "classes": data.classes.names, "fitted": fitted}
        card["class_colours"] = data.classes.colours.tolist()
        run.write_json("data.json", card)
        run.write_environment({"weights": vars(weights), "data_fingerprint": card["fingerprint"]})
        print(f"weights: {weights}")
    for warning in card["warnings"]:
        print(f"note: {warning}")
    _record_split(run, data)
    print(f"\n{table}", flush=True)


def _record_split(run: Run, data: DataModule) -> None:
    """Write who is in which split, and write and say what the splits have in common."""
    leaks = find_leaks(data)
    for name, text in split_texts(data).items():
        run.write_text(name, text)
    run.write_json("leaks.json", {"leaks": [leak.to_json() for leak in leaks]})
    print("\n".join(summarise(leaks)))


def _adopt(task: Task, checkpoint: Path) -> None:
    """Take over a checkpoint's weights: the feature cache must see the frozen ones before training goes on."""
    task.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])


def _finish(run: Run, trainer: lightning.Trainer, task: Task, *, seconds: float) -> None:
    """Mark the run as finished, with what it came to."""
    kept = next(each for each in trainer.callbacks if isinstance(each, Checkpoints))  # type: ignore[attr-defined]
    best = {f"best_{task.monitor.replace('/', '_')}": kept.best, "best_epoch": kept.best_epoch}
    run.mark_finished(
        {"epochs": trainer.current_epoch, "steps": trainer.global_step, "seconds": round(seconds, 1), **best}
    )
    said = "no validation"
    if kept.best_epoch is not None:
        said = f"best {task.shown[task.monitor]} {kept.best:.4f}, epoch {kept.best_epoch + 1}"
    print(f"{run.path}: finished; {said}")


def _quieten() -> None:
    """Hide Lightning's advice that doesn't apply here; ours is in the configuration."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*in eval mode at the start.*")  # frozen stages are meant to be
    warnings.filterwarnings("ignore", ".*You have overridden `transfer_batch_to_device` in both.*")
