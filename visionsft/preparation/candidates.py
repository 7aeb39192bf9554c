"""Candidates: the backbones that a user wants compared, by name or pattern, and what their weights stand on."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm

from backbones.factory import check_name
from backbones.weights import PACKAGES
from visionsft.errors import ConfigError, nearest

UNKNOWN = "unknown"
DATA_SETS = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "inw21k": "ImageNet-W21-P",
    "jft": "JFT-300M",
    "ns": "JFT-300M",
    "ig1b": "IG-1B",
    "yfcc100m": "YFCC-100M",
    "yfcc15m": "YFCC-15M",
    "cc12m": "CC-12M",
    "webli": "WebLI",
    "laion400m": "LAION-400M",
    "laion2b": "LAION-2B",
    "laiona": "LAION-Aesthetic",
    "openai": "OpenAI WIT-400M",
    "datacomp1b": "DataComp-1B",
    "datacompxl": "DataComp-XL",
    "dfn2b": "DFN-2B",
    "dfn5b": "DFN-5B",
    "dfndr2b": "DFNDR-2B",
    "metaclip": "MetaCLIP",
    "merged2b": "Merged-2B",
    "m30m": "Merged-30M",
    "m38m": "Merged-38M",
    "lvd142m": "LVD-142M",
    "lvd1689m": "LVD-1689M",
    "sat493m": "SAT-493M",
    "sa1b": "SA-1B",
}
"""By the part of timm's tag that stands for it. What isn't here is unknown, and the tag says the rest."""


@dataclass(frozen=True)
class Candidate:
    """One backbone with the source of its weights."""

    name: str
    """timm's, with or without a tag."""
    weights: str
    """As `backbones.create_backbone` takes them."""

    @property
    def label(self) -> str:
        """As a user writes it; the hub's weights need no source."""
        return self.name if self.weights == "hub" else f"{self.name}={self.weights}"

    @property
    def short(self) -> str:
        """The same with the mere name of a file."""
        return self.label if self.weights == "hub" else f"{self.name}={Path(self.weights).name}"


@dataclass(frozen=True)
class Provenance:
    """What pretrained weights were made from, as far as it is known."""

    data: str
    licence: str
    tag: str
    """timm's name of the weights; '' where they have none."""


def find_candidates(given: Sequence[str]) -> tuple[list[Candidate], dict[str, str]]:
    """Candidates of texts like 'convnext_*', 'resnet18=none' or 'vit_tiny*=weights.safetensors', each once.

    A pattern without weights means all weights of that name on the hub, tag by tag; one with weights means
    architectures. Returns the reason of each text that means nothing, too; if all do, a ConfigError has them.
    """
    found: list[Candidate] = []
    refused: dict[str, str] = {}
    for text in given:
        name, _, weights = text.partition("=")
        try:
            found += _expand(name.strip(), weights.strip() if "=" in text else "hub")
        except ValueError as error:
            refused[text] = str(error)
    if not found:
        reasons = "".join(f"\n  {text}: {reason}" for text, reason in refused.items())
        hint = "for example 'convnext_*', 'resnet18=none', 'tf_efficientnet_lite0=weights.safetensors'"
        raise ConfigError(f"no candidate to compare ({hint}){reasons}")
    return list(dict.fromkeys(found)), refused


def _expand(name: str, weights: str) -> list[Candidate]:
    if not weights:
        raise ConfigError("nothing after '='; allowed: hub, pypi, none, or the path of a file")
    if not glob.has_magic(name):
        check_name(name)
        return [Candidate(name, weights)]
    tagged = weights == "hub" or "." in name
    names = timm.list_pretrained() if tagged else timm.list_models()
    matches = fnmatch.filter(names, name)
    if not matches:
        near = nearest(re.sub(r"[*?\[\]]", "", name.partition(".")[0]), timm.list_models())
        kind = "pretrained model" if tagged else "model"
        raise ConfigError(f"no {kind} of timm matches {name!r}" + (f"; nearest: {near}" if near else ""))
    return [Candidate(match, weights) for match in matches]


def find_provenance(candidate: Candidate) -> Provenance:
    """From timm's metadata for the hub's weights, from this project's for PyPI's; a file tells nothing."""
    if candidate.weights == "none":
        return Provenance("none (random)", "-", "")
    package = PACKAGES.get(candidate.name.partition(".")[0])
    if candidate.weights == "pypi" and package is not None:
        return Provenance(package.data, package.licence, package.package)
    if candidate.weights != "hub":
        return Provenance(UNKNOWN, UNKNOWN, "")
    settings = timm.get_pretrained_cfg(candidate.name)
    tag = (settings and settings.tag) or ""
    return Provenance(read_tag(tag), (settings and settings.license) or UNKNOWN, tag)


def read_tag(tag: str) -> str:
    """Data sets in a timm tag: 'fb_in22k_ft_in1k' -> 'ImageNet-22k, ImageNet-1k'."""
    parts = [DATA_SETS[part] for part in tag.split("_") if part in DATA_SETS]
    return ", ".join(dict.fromkeys(parts)) or UNKNOWN
