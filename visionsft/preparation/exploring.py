"""Exploring: what lies near what among embeddings, as a list of neighbours and as a picture."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules import DataError
from datamodules.batch import Window
from datamodules.raster import Pool, read_header, read_window
from visionsft.errors import ConfigError, WriteError, nearest
from visionsft.evaluation.pictures import Rgb, display
from visionsft.files import atomic_path
from visionsft.prediction.mapping import ScenePredictor
from visionsft.prediction.stills import read_picture
from visionsft.preparation.embedding import Encoder, embed_image
from visionsft.preparation.embeddingfiles import EmbeddingFile, Place

POINTS = 3000
"""Of a picture, at most."""
THUMBNAILS = 40
"""At most, and..."""
SIDE = 48
"""...their longer side in pixels."""
Colour = Literal["label", "group"]


# ---------------------------------------------------------------------------------------------- neighbours


@dataclass(frozen=True)
class Neighbour:
    """A row near a query."""

    place: Place
    similarity: float
    """Cosine of the angle between the two vectors."""


def find_neighbours(
    file: EmbeddingFile | str | Path,
    query: str | Path | NDArray[np.float32],
    *,
    encoder: Encoder | None = None,
    top: int = 10,
) -> list[Neighbour]:
    """The `top` rows of a file of embeddings that are most similar to `query`, best first.

    query: the id of a row, which is then left out; else a vector (D,), or an image, for which the `encoder` that
    made the file is needed. The file is read in pieces.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; allowed: 1 or more")
    file = file if isinstance(file, EmbeddingFile) else EmbeddingFile(file)
    vector, own = (query, None) if isinstance(query, np.ndarray) else _look_up(file, str(query), encoder)
    if vector.shape != (file.channels,):
        raise DataError(f"the query has {len(vector)} numbers, the rows of {file.path} have {file.channels}")
    vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    best: list[tuple[float, int, Place]] = []
    order = count(0, -1)  # of equal ones the first stays
    for places, vectors in file.pieces():
        similar = vectors @ vector / np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
        for index in np.argsort(-similar, kind="stable")[: top + 1].tolist():
            if places[index].id != own:
                entry = (float(similar[index]), next(order), places[index])
                (heapq.heappushpop if len(best) == top else heapq.heappush)(best, entry)
    return [Neighbour(place, similarity) for similarity, _, place in sorted(best, reverse=True)]


def _look_up(
    file: EmbeddingFile, query: str, encoder: Encoder | None
) -> tuple[NDArray[np.float32], str | None]:
    """The vector of a row or image, and the row's id."""
    ids: list[str] = []
    for places, vectors in file.pieces():
        for place, vector in zip(places, vectors, strict=True):
            if place.id == query:
                return np.array(vector), query
        ids += [place.id for place in places][: max(0, POINTS - len(ids))]
    if not Path(query).is_file():
        near = nearest(query, ids)
        hint = f"; nearest id: {near}" if near else f"; ids look like {ids[0]}" if ids else ""
        raise DataError(f"{query}: neither an id in {file.path} nor an image{hint}")
    if encoder is None:
        raise ConfigError(f"{query}: is no id in {file.path}; to embed the image its encoder is needed")
    check_same(file, encoder)
    return embed_image(encoder, query), None


def check_same(file: EmbeddingFile, encoder: Encoder) -> None:
    """Refuse an encoder that didn't make the file."""
    others = [
        f"{key} is {value!r}, in the file {file.identity.get(key)!r}"
        for key, value in encoder.identity.items() if file.identity.get(key) != value
    ]  # fmt: skip
    if others:
        raise DataError(f"{file.path}: was made by another model, so it can't be compared: {'; '.join(others)}")


def neighbours_table(neighbours: list[Neighbour]) -> str:
    """A line a neighbour."""
    width = max((len(each.place.label) for each in neighbours), default=0)
    return "\n".join(f"{each.similarity:.4f}  {each.place.label:{width}}  {each.place.id}" for each in neighbours)


# -------------------------------------------------------------------------------------------------- picture


@dataclass(frozen=True)
class Projection:
    """Embeddings in two dimensions."""

    places: list[Place]
    points: NDArray[np.float64]
    """(N, 2)."""
    method: str
    """'UMAP' or 'PCA'."""
    axes: tuple[str, str]
    of: int
    """Rows of the file, of which the N were drawn."""


def project(file: EmbeddingFile | str | Path, *, points: int = POINTS, seed: int = 0) -> Projection:
    """A 2-D map of at most `points` rows, drawn at random: by UMAP (McInnes et al. 2018) if it is installed, else by
    principal components."""
    file = file if isinstance(file, EmbeddingFile) else EmbeddingFile(file)
    if len(file) < 3:
        raise DataError(f"{file.path}: has {len(file)} rows; a map needs 3 or more")
    places, vectors = _draw(file, points, seed)
    try:
        from umap import UMAP
    except ImportError:
        found, shares = _components(vectors)
        named = tuple(f"component {k + 1} ({share:.0%} of the variance)" for k, share in enumerate(shares))
        return Projection(places, found, "PCA", (named[0], named[1]), len(file))
    reducer = UMAP(n_neighbors=min(15, len(places) - 1), metric="cosine", random_state=seed)
    return Projection(places, np.asarray(reducer.fit_transform(vectors)), "UMAP", ("UMAP 1", "UMAP 2"), len(file))


def _draw(file: EmbeddingFile, points: int, seed: int) -> tuple[list[Place], NDArray[np.float32]]:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(file))[:points])
    places, vectors, start = [], [], 0
    for some, block in file.pieces():
        own = chosen[(chosen >= start) & (chosen < start + len(some))] - start
        places += [some[index] for index in own.tolist()]
        vectors.append(block[own])
        start += len(some)
    return places, np.concatenate(vectors)


def _components(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], list[float]]:
    """The first two principal components (N, 2), each with its larger entries positive, and their shares."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(vectors), 2))
    width = min(2, left.shape[1])
    found[:, :width] = left[:, :width] * values[:width]
    found *= np.where((found**3).sum(axis=0) < 0, -1, 1)  # the sign is arbitrary, but the same every time
    shares = np.append(values**2, [0, 0])[:2] / max(float((values**2).sum()), 1e-30)
    return found, shares.tolist()


def draw_map(
    file: EmbeddingFile | str | Path,
    target: str | Path,
    *,
    colour: Colour = "label",
    thumbnails: bool = False,
    overwrite: bool = False,
    seed: int = 0,
) -> Projection:
    """Write the 2-D map of a file of embeddings as a picture; colour: what dots are coloured by.

    thumbnails: some of the images, spread over the map, read from their files again.
    """
    from visionsft import plots

    target = Path(target)
    if target.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"{target}: '{target.suffix}' is no suffix of a map picture; allowed: .png, .svg, .pdf")
    if target.exists() and not overwrite:
        raise WriteError(f"{target}: exists; --overwrite replaces it")
    found = project(file, seed=seed)
    names = [getattr(place, colour) for place in found.places]
    pictures = _thumbnails(found) if thumbnails else []
    what = f"{found.method} of {len(found.places):,} of {found.of:,} embeddings"
    figure = plots.embeddings(found.points, names, axes=found.axes, title=what, pictures=pictures)
    with atomic_path(target) as path:
        figure.savefig(path, dpi=150)
    return found


def _thumbnails(found: Projection) -> list[tuple[float, float, Rgb]]:
    """x, y and picture of points that lie apart; files that are gone, or can't be read, have none."""
    low, high = found.points.min(axis=0), found.points.max(axis=0)
    cells = int(np.sqrt(THUMBNAILS))
    where = ((found.points - low) / np.maximum(high - low, 1e-12) * (cells - 1e-6)).astype(int)
    whole = np.argsort([-place.valid for place in found.places], kind="stable")  # rather than half without data
    _, first = np.unique((where[:, 0] * cells + where[:, 1])[whole], return_index=True)
    pictures = []
    for index in whole[first].tolist():
        picture = _read_thumbnail(found.places[index])
        if picture is not None:
            pictures.append((*found.points[index].tolist(), picture))
    return pictures


def _read_thumbnail(place: Place) -> Rgb | None:
    try:
        scene = Path(place.path).suffix.lower() in ScenePredictor.suffixes
        picture = _read_window(place) if scene else read_picture(place.path)
    except DataError:
        return None
    share = min(1.0, SIDE / max(picture.shape[:2]))
    size = tuple(max(1, round(side * share)) for side in picture.shape[1::-1])
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _read_window(place: Place) -> Rgb:
    header = read_header(place.path)
    window = Window(place.row, place.col, place.height, place.width)
    raster = read_window(
        Pool().file(place.path), window, bands=header.indexes, nodata=header.nodata, masked=header.masked
    )
    plain: dict[str, Any] = {"mean": np.zeros(len(header.names)), "std": np.ones(len(header.names))}
    eight_bit = header.dtype == np.uint8
    return display(raster.values, **plain, bands=header.names, eight_bit=eight_bit, valid=raster.valid)
