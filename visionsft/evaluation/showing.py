"""Showing: a gallery's samples as a page holds them, with their pictures inside and what its filters look at."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PICTURE_BUDGET = 7_500_000
"""Bytes of the gallery's pictures inside the page; with the rest it stays below 10 MB."""


@dataclass(frozen=True)
class Gallery:
    """What a page shows of single samples."""

    samples: tuple[dict[str, Any], ...]
    """The worst first; each has "pictures", data URIs by layer, and "traits", places among the options by filter."""
    filters: Mapping[str, tuple[str, Sequence[str]]]
    """Title and options by key."""
    layers: tuple[str, ...]
    """That pictures have, in the order of their keys; without any there is nothing to choose."""
    left_out: int
    """Samples that would make the page too large."""


def arrange(
    samples: Sequence[Mapping[str, Any]],
    *,
    filters: Mapping[str, tuple[str, Sequence[str]]],
    traits: Iterable[Mapping[str, Sequence[str]]],
    layers: tuple[str, ...],
    of: int,
) -> Gallery:
    """traits: values of each sample by filter; of: how many samples there were before some were left out."""
    rows = []
    for sample, own in zip(samples, traits, strict=True):
        places = {key: " ".join(str(filters[key][1].index(each)) for each in own[key]) for key in filters}
        rows.append({**sample, "traits": places})
    return Gallery(tuple(rows), filters, layers, of - len(rows))


def embed(
    entries: Iterable[Mapping[str, Any]], folder: Path, *, budget: int = PICTURE_BUDGET
) -> list[dict[str, Any]]:
    """Entries of a gallery's index with their pictures as data URIs, as many as fit in `budget` bytes."""
    samples: list[dict[str, Any]] = []
    for entry in entries:
        pictures = {layer: _data_uri(folder / name) for layer, name in entry["files"].items()}
        budget -= sum(map(len, pictures.values()))
        if budget < 0:
            break
        samples.append({**entry, "pictures": pictures})
    return samples


def _data_uri(path: Path) -> str:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
