"""Loading: a trained run as a model that is ready to predict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from backbones import merge_lora
from datamodules import CameraFrameDataModule, ClassificationDataModule, DataModule, Normalisation
from visionsft import build
from visionsft.config import Config, LoraStrategy
from visionsft.errors import RunError
from visionsft.models.folding import fold_model
from visionsft.models.inference import check_weights, compute_logits
from visionsft.runs import Checkpoint, Run
from visionsft.training.precision import DTYPES


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with what it needs to be used as it was trained."""

    model: Any
    """A SegmentationModel, a ClassificationModel or a DetectionModel; in eval mode, with the moving average of the
    weights where one was kept; LoRA adapters merged."""
    config: Config
    run: Run
    precision: torch.dtype | None
    """Number type for autocast; None: float32 throughout."""
    channels_last: bool

    @cached_property
    def folded(self) -> Any:
        """The model as it computes answers: on a CPU the same in less time, see `visionsft.models.folding`. Made once:
        of what is changed in `model` later it sees only part.

        RunError if a weight is nan, which folding might hide.
        """
        check_weights(self.model)
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        return fold_model(self.model) if on_cpu else self.model

    def logits(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W) float32, normalised -> logits (B, K, H, W) or (B, K) float32, in the precision of
        training; for a model that isn't a detector. RunError if one is nan."""
        return compute_logits(self.folded, image, precision=self.precision, channels_last=self.channels_last)

    @property
    def views(self) -> dict[str, Any]:
        """Test-time augmentation, for `visionsft.models.views`."""
        return build.views(self.config)

    @property
    def tiles(self) -> dict[str, int | None]:
        """Side and overlap of the tiles of scenes, where the configuration says them."""
        return build.tiles(self.config)

    def on(self, data: DataModule) -> LoadedRun:
        """The same model with another data module, which has the same bands, in place of its own."""
        other = replace(self)
        data.normalisation = self.data.normalisation
        vars(other)["data"] = data
        return other

    @property
    def merge(self) -> Literal["nms", "wbf"]:
        """How a detector's tiles and views are put together."""
        return build.merge(self.config)

    @cached_property
    def data(self) -> Any:
        """The run's data module, of its task and kind, with the bands and the normalisation of the training.

        Not scanned: predicting new files needs none of the training's.
        """
        return load_data(self.run)


def load_model(run: Run | str | Path, checkpoint: Checkpoint = "best") -> nn.Module:
    """The trained model of a run (or of the run folder of that path), in eval mode on the CPU, plain PyTorch."""
    return load_run(run if isinstance(run, Run) else Run.open(run), checkpoint, device="cpu").model


def load_data(run: Run) -> Any:
    """The run's data module as the training had it, not scanned; needs no checkpoint."""
    card = run.read_json("data.json")
    data = build.build_data(run.config)
    if isinstance(data, ClassificationDataModule):
        data.set_class_names(card["classes"])
    if isinstance(data, CameraFrameDataModule):
        colours = card.get("class_colours")
        data.set_class_names(card["classes"], colours and [tuple(colour) for colour in colours])
    data.bands, data.dtype = tuple(card["bands"]), np.dtype(card["dtype"])
    data.normalisation = Normalisation(*(tuple(card["normalisation"][name]) for name in ("mean", "std")))
    return data


def load_run(
    run: Run, checkpoint: Checkpoint = "best", *, device: torch.device | str | None = None
) -> LoadedRun:
    """The trained model of a run with its data and settings; needs neither training data nor pretrained weights.

    device: where the model computes; None: where a training of that configuration would on this machine.
    """
    config = run.config
    path = run.checkpoint(checkpoint)
    card = run.read_json("data.json")
    backbone = build.build_backbone(config, tuple(card["bands"]), pretrained=False)
    model = build.build_model(config, backbone, len(card["classes"]), fitted=card.get("fitted", {}))
    _restore(model, path)
    if isinstance(config.strategy, LoraStrategy):
        merge_lora(backbone)
    if config.trainer.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return LoadedRun(
        model=model.to(device or build.choose_device(config)).eval().requires_grad_(False),
        config=config,
        run=run,
        precision=DTYPES[build.build_precision(config)],
        channels_last=config.trainer.channels_last,
    )


def _restore(model: nn.Module, path: Path) -> None:
    """Load the checkpoint's weights, those of the moving average where there is one."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError) as error:
        raise RunError(f"{path}: can't be read: {error}") from error
    weights = {
        key.removeprefix("model."): value
        for key, value in state["state_dict"].items()
        if key.startswith("model.")
    }
    weights.update(state["callbacks"].get("MovingAverage", {}).get("average", {}))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"{path}: doesn't fit the run's config.yaml: {str(error).splitlines()[1].strip()}"
        ) from error
