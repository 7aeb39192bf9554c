"""Factory: a timm name -> a `Backbone` with its weights, for any number of bands and almost any size."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models import get_deprecated_models
from torch import Tensor
from torch.overrides import TorchFunctionMode

from backbones.backbone import Backbone
from backbones.bands import adapt_statistics, check_bands
from backbones.errors import BackboneError
from backbones.geometry import Geometry, TimmModel, ceil_to, features, measure, reductions
from backbones.weights import load_weights


def create_backbone(
    name: str,
    *,
    weights: str = "hub",
    in_chans: int = 3,
    bands: Sequence[str] | None = None,
    indices: Sequence[int] | None = None,
    img_size: tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    final: bool = False,
) -> Backbone:
    """Build a backbone from any timm model that has `forward_intermediates`.

    name: timm's, with or without a tag ("convnext_tiny.fb_in22k"). weights: "hub", "pypi", "none" or a file
    (.safetensors, .pth, .pt, .bin, .ckpt). bands: names of the `in_chans` input bands, see `backbones.bands`.
    indices: feature maps to take; default the last four resolutions, or four blocks of a plain ViT.
    img_size: (H, W) to build for: the largest input of models that take one size only; in others the size of
    the stored position embedding, if they have one. Other sizes are padded, see `Backbone.forward`.
    final: the last map is what timm's own classifier pools, for new classifiers: an EfficientNet's comes after its
    final convolution, a Swin's after its final norm. Heads that look at places don't need it.
    """
    check_name(name)
    check_bands(in_chans, bands)
    options = _options(name, in_chans, img_size, drop_path_rate)
    geometry = _geometry(name, options, indices, final)
    model = build_model(name, options)
    report = load_weights(model, weights, name=name, in_chans=in_chans, bands=bands)
    # drops what follows the last map and would train on nothing: later blocks, final convolution, norm, head
    model.prune_intermediate_layers(
        list(geometry.indices),
        prune_norm=not (geometry.norm or geometry.final),
        prune_head=not (geometry.final and _uses_all(build_meta_model(name, options), geometry, in_chans)),
    )
    return Backbone(
        name,
        model,
        geometry,
        mean=adapt_statistics(model.pretrained_cfg["mean"], in_chans, bands),
        std=adapt_statistics(model.pretrained_cfg["std"], in_chans, bands),
        weights_report=report,
    )


def check_name(name: str) -> None:
    """Refuse what is no timm model or tag, and name the nearest ones."""
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise BackboneError(f"timm {timm.__version__} has no model {arch!r}{hint}")
    if arch in (renamed := get_deprecated_models()):
        successor = f"renamed: use {renamed[arch]!r}" if renamed[arch] else "removed"
        raise BackboneError(f"timm's model {arch!r} has been {successor}")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{arch}.*", include_tags=True)]
    if tag and tag not in tags:
        near = difflib.get_close_matches(tag, tags, n=1)
        hint = f"; did you mean {arch}.{near[0]}?" if near else ""
        known = ", ".join(filter(None, tags)) or "none"
        raise BackboneError(f"timm's {arch} has no tag {tag!r}{hint} (tags: {known})")


def build_model(name: str, options: Mapping[str, Any]) -> TimmModel:
    """The whole timm model with random weights."""
    try:
        return timm.create_model(name, pretrained=False, **options)
    except (TypeError, AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise BackboneError(f"timm's {name} cannot be built with {given}: {error}") from error


def build_meta_model(name: str, options: Mapping[str, Any]) -> TimmModel:
    """The same without memory for its parameters: shapes only, in a fraction of the time."""
    with torch.device("meta"), _NoInitialisation():
        return build_model(name, options).eval()


class _NoInitialisation(TorchFunctionMode):
    """Skips in-place operations on meta tensors, which have no values to set: most of a model's build."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if in_place and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _options(
    name: str, in_chans: int, img_size: tuple[int, int] | None, drop_path_rate: float
) -> dict[str, Any]:
    """Arguments for timm.create_model, as far as this model's class takes them."""
    options: dict[str, Any] = {"num_classes": 0, "in_chans": in_chans}
    model = build_meta_model(name, options)
    if not hasattr(model, "forward_intermediates"):
        raise BackboneError(f"timm's {name} has no forward_intermediates, from which feature maps are taken")
    if _takes(model, "drop_path_rate"):
        options["drop_path_rate"] = drop_path_rate
    elif drop_path_rate:
        raise BackboneError(f"drop_path_rate={drop_path_rate}: {name} has no drop path")
    if _takes(model, "dynamic_img_size"):
        options["dynamic_img_size"] = True  # every forward resamples position embeddings, or masks windows
    if img_size is not None and _takes(model, "img_size"):
        coarsest = math.lcm(*reductions(model))
        options["img_size"] = tuple(ceil_to(length, coarsest) for length in img_size)
    return options


def _uses_all(model: TimmModel, geometry: Geometry, in_chans: int) -> bool:
    """Whether every parameter of a model without classifier has a part in its maps."""
    idle = {name for name, module in model.named_modules() if module._parameters}
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: idle.discard(name))
    size = geometry.size or (2 * geometry.multiple,) * 2
    with torch.no_grad():
        image = torch.empty(1, in_chans, *size, device="meta")
        features(model, image, geometry.indices, norm=geometry.norm, final=geometry.final)
    return not idle


def _takes(model: TimmModel, option: str) -> bool:
    # classes that pass **kwargs to their parents take what those take
    return any(option in inspect.signature(cls).parameters for cls in type(model).__mro__[:-1])


def _geometry(
    name: str, options: Mapping[str, Any], indices: Sequence[int] | None, final: bool
) -> Geometry:
    model = build_meta_model(name, options)
    height, width = options.get("img_size") or model.pretrained_cfg["input_size"][1:]
    return measure(model, in_chans=options["in_chans"], size=(height, width), indices=indices, final=final)
