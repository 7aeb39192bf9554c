"""Build: from a configuration to objects. The only file that reads configuration fields."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import Logger
from torch import nn

import datamodules
from backbones import (
    Backbone,
    BackboneError,
    accelerate_attention,
    accelerate_depthwise,
    create_backbone,
    cut_backbone,
)
from datamodules import (
    Augment,
    CameraClassificationDataModule,
    CameraDetectionDataModule,
    CameraFrameDataModule,
    ClassificationDataModule,
    ClassSpec,
    DataModule,
    DetectionDataModule,
    GeoTiffClassificationDataModule,
    GeoTiffDataModule,
    GeoTiffDetectionDataModule,
    SegmentationDataModule,
)
from datamodules.classes import parse_colour
from datamodules.splits import Split
from visionsft import config as settings
from visionsft.config import (
    ClassificationConfig,
    Config,
    DetectionConfig,
    InstanceSegmentationConfig,
    SegmentationConfig,
)
from visionsft.errors import ConfigError, WriteError, nearest
from visionsft.files import free_bytes
from visionsft.models import ClassificationModel, SegmentationModel, create_classifier, create_model
from visionsft.models.anchors import fit_anchors
from visionsft.models.detector import DetectionModel, create_detector
from visionsft.models.heads import IMAGE_HEADS
from visionsft.models.losses import ImageLoss, LabelsLoss, build_loss, class_weights
from visionsft.training.callbacks import AtomicCheckpointIO, Checkpoints, MetricsTable, MovingAverage
from visionsft.training.features import CachedData, CacheError, cache_features
from visionsft.training.precision import DTYPES, Precision, resolve
from visionsft.training.strategies import STRATEGIES, Rates, Schedule, Strategy
from visionsft.training.tasks import (
    ClassificationModule,
    DetectionModule,
    MultiLabelModule,
    Optimization,
    SegmentationModule,
    Task,
)

_MODULES: dict[type[settings.Section], Callable[..., DataModule]] = {
    settings.GeoTiffData: GeoTiffDataModule,
    settings.CameraData: CameraFrameDataModule,
    settings.GeoTiffObjects: GeoTiffDetectionDataModule,
    settings.CameraObjects: CameraDetectionDataModule,
    settings.GeoTiffLabels: GeoTiffClassificationDataModule,
    settings.CameraLabels: CameraClassificationDataModule,
}
_SPLITS: dict[str, Callable[..., Split]] = {
    "folder": datamodules.FolderSplit,
    "list": datamodules.ListSplit,
    "scene": datamodules.SceneSplit,
    "place": datamodules.PlaceSplit,
    "drive": datamodules.DriveSplit,
    "file": datamodules.FileSplit,
}
_RATES = ("lr", "backbone_lr_factor", "layer_decay", "weight_decay")
_OPTIMIZATION = (*_RATES, "optimizer", "momentum", "schedule", "warmup")
_CACHE = ("cache", "views", "cache_limit")


def build_data(config: Config) -> DataModule:
    """The data module, not yet scanned."""
    data = config.data
    options = _fields(data, leave_out=("kind", "classes", "split", "augment"))
    if options.get("vector") is not None:
        options["vector"] = datamodules.VectorOptions(**_fields(options["vector"]))
    if options.get("cache_limit") is not None:
        options["cache_limit"] = int(options["cache_limit"] * 1e9)
    if isinstance(data.augment, settings.PixelAugment):
        options["rare_class_crops"] = data.augment.rare_class_crops
    if isinstance(config, DetectionConfig):
        options["masks"] = isinstance(config, InstanceSegmentationConfig)
        options["turned"] = isinstance(config.head, settings.RotatedFcosHead)
    if isinstance(config, ClassificationConfig):
        options["multi_label"] = config.task.multi_label
    return _MODULES[type(data)](
        **options,
        classes=None if data.classes is None else [_class(spec) for spec in data.classes],
        split=_SPLITS[data.split.by](**_fields(data.split, leave_out=("by",))),
        augment=Augment(**_fields(data.augment, leave_out=("rare_class_crops",))),
        seed=config.seed,
    )


def build_backbone(config: Config, bands: Sequence[str], *, pretrained: bool = True) -> Backbone:
    """The backbone for these bands, with its pretrained weights unless a checkpoint will replace them."""
    wanted = config.backbone
    indices: Sequence[int] | None = wanted.indices
    classifies = isinstance(config, ClassificationConfig)
    if indices is None and classifies and config.head.name in IMAGE_HEADS:
        indices = (-1,)  # all that they read: a feature cache has a third of the size
    return create_backbone(
        wanted.name,
        weights=wanted.weights if pretrained else "none",
        in_chans=len(bands),
        bands=bands,
        indices=indices,
        img_size=wanted.img_size,
        drop_path_rate=wanted.drop_path_rate,
        final=classifies and wanted.indices is None,
    )


def fit_head(config: Config, data: DataModule, backbone: Backbone) -> dict[str, Any]:
    """Options of the head that follow from the training data, as JSON has them: its anchors, which are shown."""
    if not isinstance(config, DetectionConfig) or getattr(config.head, "anchors", None) != "fit":
        return {}
    assert isinstance(data, DetectionDataModule)
    usual = create_detector(backbone, len(data.classes), head=config.head.name, options=_head_options(config))
    boxes, strides = data.training_boxes().astype(float), cast(Any, usual.head).pyramid.strides
    if config.head.name == "retinanet":
        fit = fit_anchors(boxes, strides=strides)
    else:
        fit = fit_anchors(boxes, strides=strides, sizes_per_level=1, smallest=8.0)
    print(
        f"anchors: sizes {fit.anchor_sizes}, height / width {fit.aspect_ratios}, from {fit.boxes:,} boxes; "
        f"best IoU {fit.mean_iou:.2f} on average, at least 0.5 for {fit.good:.0%}"
    )
    return {"anchor_sizes": fit.anchor_sizes, "aspect_ratios": fit.aspect_ratios}


def _head_options(config: Config) -> dict[str, Any]:
    head = config.head
    if isinstance(head, settings.CustomHead):
        return dict(head.options)
    return _fields(head, leave_out=("name", "anchors"))


def build_model(
    config: Config, backbone: Backbone, num_classes: int, *, fitted: dict[str, Any] | None = None
) -> nn.Module:
    """The backbone with a new head, its layers as the strategy needs them; fitted: see `fit_head`."""
    make: Callable[..., nn.Module] = create_detector if isinstance(config, DetectionConfig) else create_model
    if isinstance(config, ClassificationConfig):
        make = create_classifier
    options = _head_options(config) | (fitted or {})
    model = make(backbone, num_classes, head=config.head.name, options=options)
    build_strategy(config).prepare(backbone)
    accelerate_depthwise(model)
    accelerate_attention(model)
    return model


def build_strategy(config: Config) -> Strategy:
    """What trains when."""
    options = _fields(config.strategy, leave_out=("kind", *_OPTIMIZATION, *_CACHE))
    return STRATEGIES[config.strategy.kind](**options)


def build_optimization(config: Config) -> Optimization:
    """What trains, how fast and by which rule."""
    wanted = config.strategy
    return Optimization(
        build_strategy(config),
        Rates(**{name: getattr(wanted, name) for name in _RATES}),
        Schedule(wanted.schedule, wanted.warmup),
        wanted.optimizer,
        wanted.momentum,
    )


def build_task(config: Config, model: nn.Module, data: DataModule) -> Task:
    """The LightningModule of a model that `build_model` made."""
    common: dict[str, Any] = {
        "class_names": data.classes.names,
        "optimization": build_optimization(config),
        "channels_last": config.trainer.channels_last,
        "seed": config.seed,
    }
    if isinstance(model, DetectionModel):
        return DetectionModule(model, **common)
    if isinstance(model, ClassificationModel):
        return _build_classification(config, model, data, common)
    assert isinstance(config, SegmentationConfig)
    assert isinstance(model, SegmentationModel)
    loss = build_loss(config.task.loss, class_counts=torch.from_numpy(data.statistics.class_counts))
    return SegmentationModule(model, loss, **common)


def _build_classification(
    config: Config, model: ClassificationModel, data: DataModule, common: dict[str, Any]
) -> ClassificationModule:
    assert isinstance(config, ClassificationConfig)
    wanted = config.task
    weights = class_weights(torch.from_numpy(data.statistics.class_counts), wanted.class_weights)
    loss = (LabelsLoss if wanted.multi_label else ImageLoss)(weights, label_smoothing=wanted.label_smoothing)
    module = MultiLabelModule if wanted.multi_label else ClassificationModule
    return module(model, loss, mixup=wanted.mixup, **common)


def build_cache(
    config: Config, task: Task, data: DataModule, *, folder: Path | None = None
) -> CachedData | DataModule:
    """The data from which to train: features of the frozen part where the strategy caches them, else `data`.

    folder: of all feature caches; default: below `runs`. Why features aren't cached is printed as a note; they
    can't be in trainings of several processes.
    """
    wanted = config.strategy
    if not isinstance(wanted, settings.FeatureBasedStrategy | settings.LayerwiseStrategy):
        return data
    if wanted.cache == "off" or (wanted.cache == "auto" and wanted.views is None):
        return data
    folder = folder or config.runs / ".features"
    limit = wanted.cache_limit * 1e9
    if wanted.cache == "auto":
        limit = min(limit, free_bytes(folder) / 2)
    try:
        if not (
            isinstance(task, SegmentationModule | ClassificationModule)
            and isinstance(data, SegmentationDataModule | ClassificationDataModule)
        ):
            raise CacheError("the feature cache is for segmentation and classification")
        if config.trainer.devices != 1:
            raise CacheError("the feature cache is for one device (trainer.devices: 1)")
        return cache_features(
            task,
            data,
            cut_backbone(task.model.backbone, size=data.chip),  # type: ignore[arg-type]
            views=wanted.views or 4,
            storage="ram" if wanted.cache == "ram" else "disk",
            folder=folder,
            limit=limit,
            most=wanted.cache_limit * 1e9,
            autocast=DTYPES[build_precision(config)],
            device=choose_device(config),
        )
    except (CacheError, BackboneError, WriteError) as error:
        print(f"note: training without feature cache: {error}")
        return data


def choose_device(config: Config) -> torch.device:
    """Where the trainer of `config` computes."""
    on_gpu = config.trainer.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def views(config: Config) -> dict[str, Any]:
    """Test-time augmentation, for `visionsft.models.views`."""
    assert isinstance(config, SegmentationConfig | DetectionConfig | ClassificationConfig)
    return {"scales": config.inference.scales, "symmetry": config.inference.symmetry}


def tiles(config: Config) -> dict[str, int | None]:
    """Side and overlap of the tiles of scenes, for `visionsft.prediction.tiling.plan_tiles`."""
    assert isinstance(config, SegmentationConfig | DetectionConfig)
    return {"tile": config.inference.tile, "overlap": config.inference.overlap}


def merge(config: Config) -> Literal["nms", "wbf"]:
    """How what several tiles or views show of one object becomes one, for `visionsft.prediction.merging.Merging`."""
    assert isinstance(config, DetectionConfig)
    return config.inference.merge


def build_precision(config: Config) -> Precision:
    """Lightning's name of the number type."""
    return resolve(config.trainer.precision, config.trainer.accelerator)


def build_trainer(
    config: Config, folder: Path, task: Task, *, callbacks: Sequence[Callback] = ()
) -> lightning.Trainer:
    """The trainer of `task` that writes into the run folder `folder`; callbacks: after its own."""
    wanted = config.trainer
    _check_options(wanted.options)
    interactive = wanted.options.get("enable_progress_bar", _is_terminal())
    options: dict[str, Any] = {"num_sanity_val_steps": 0, "enable_model_summary": False, **wanted.options}
    options["enable_progress_bar"] = interactive
    return lightning.Trainer(
        default_root_dir=folder,
        max_epochs=wanted.epochs,
        accelerator=wanted.accelerator,
        devices=wanted.devices,
        precision=build_precision(config),
        accumulate_grad_batches=wanted.accumulate,
        gradient_clip_val=wanted.clip,
        check_val_every_n_epoch=wanted.validate_every,
        enable_checkpointing=False,  # our own callback writes the run folder's two checkpoints
        use_distributed_sampler=False,  # the data module's sampler knows its rank
        logger=_loggers(config, folder),
        callbacks=[
            *_callbacks(config, folder, task, interactive=interactive),
            *options.pop("callbacks", []),
            *callbacks,
        ],
        plugins=[AtomicCheckpointIO(), *options.pop("plugins", [])],
        **options,
    )


def _callbacks(config: Config, folder: Path, task: Task, *, interactive: bool) -> list[Callback]:
    wanted = config.trainer
    callbacks: list[Callback] = []
    if wanted.ema is not None:
        callbacks.append(MovingAverage(wanted.ema))  # first: validation must see the average
    if wanted.early_stopping is not None:
        limits = _fields(wanted.early_stopping)
        callbacks.append(EarlyStopping(task.monitor, mode="max", check_on_train_epoch_end=False, **limits))
    if interactive:
        callbacks.append(RichProgressBar())
    table = MetricsTable(folder / "metrics.csv", shown=task.shown)
    checkpoints = Checkpoints(folder / "checkpoints", monitor=task.monitor)
    return [*callbacks, table, checkpoints]  # last: they keep what the others did


def _loggers(config: Config, folder: Path) -> list[Logger]:
    from lightning.pytorch import loggers

    makers = {
        "tensorboard": lambda: loggers.TensorBoardLogger(folder, name="tensorboard", version=""),
        "mlflow": lambda: loggers.MLFlowLogger("visionsft", run_name=folder.name),
        "wandb": lambda: loggers.WandbLogger(folder.name, save_dir=folder, project="visionsft"),
    }
    made: list[Logger] = []
    for name in config.trainer.loggers:
        try:
            made.append(makers[name]())  # type: ignore[no-untyped-call]
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"trainer.loggers: '{name}' needs pip install 'visionsft[{name}]' ({error})"
            ) from error
    return made


def _check_options(options: dict[str, Any]) -> None:
    allowed = set(inspect.signature(lightning.Trainer).parameters)
    mistakes = [name for name in options if name not in allowed]
    if mistakes:
        lines = []
        for name in mistakes:
            close = nearest(name, allowed)
            lines.append(
                f"trainer.options.{name}: lightning.Trainer has no such argument"
                + (f"; nearest: {close}" if close else "")
            )
        raise ConfigError("\n".join(lines))


def _class(spec: settings.ClassSpec) -> ClassSpec:
    return ClassSpec(spec.name, spec.values, None if spec.colour is None else parse_colour(spec.colour))


def _fields(section: settings.Section, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """A section's values by their names."""
    return {name: getattr(section, name) for name in type(section).model_fields if name not in leave_out}


def _is_terminal() -> bool:
    return sys.stdout.isatty()
