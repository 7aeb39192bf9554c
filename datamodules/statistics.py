"""Statistics: what the training split holds, per band and per class, and the normalisation made from it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch

from datamodules.batch import Item
from datamodules.errors import DataError
from datamodules.paths import is_remote, state_of

if TYPE_CHECKING:
    from datamodules.datasets import Reader

IMAGE_LIMIT = 1000
"""Windows (or frames) at most whose pixels are read for the band statistics; labels are all read."""

SCALES = (1.0, 255.0, 1023.0, 2047.0, 4095.0, 10000.0, 16383.0, 65535.0)
"""Usual largest values of imagery: 0..1, 8, 10, 11 and 12 bits, reflectance x 10000, 14 and 16 bits."""

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Per band in the files' own units, over valid pixels; per class over all training labels."""

    mean: np.ndarray
    """(C,) float64, as the next three."""
    std: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    class_counts: np.ndarray
    """(K,) int64: labelled pixels."""
    valid_pixels: int
    """Pixels behind the band figures."""
    samples: int
    """Windows or frames whose pixels were read for the band figures..."""
    windows: int
    """...out of so many; all of their labels were counted."""
    fingerprint: str
    """Of files, classes and bands; see `fingerprint`."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Statistics:
        """The inverse of `to_json`."""
        return cls(
            mean=np.array(values["mean"], np.float64),
            std=np.array(values["std"], np.float64),
            minimum=np.array(values["minimum"], np.float64),
            maximum=np.array(values["maximum"], np.float64),
            class_counts=np.array(values["class_counts"], np.int64),
            valid_pixels=int(values["valid_pixels"]),
            samples=int(values["samples"]),
            windows=int(values["windows"]),
            fingerprint=str(values["fingerprint"]),
        )


@dataclass(frozen=True)
class Normalisation:
    """Normalised = (raw - mean) / std, band by band, in the files' own units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_weights(cls, mean: Sequence[float], std: Sequence[float], *, scale: float) -> Normalisation:
        """mean, std: the weights' own, on a 0..1 scale; scale: the raw value that they saw as 1."""
        return cls(tuple(value * scale for value in mean), tuple(value * scale for value in std))

    @classmethod
    def from_data(cls, statistics: Statistics, bands: Sequence[str]) -> Normalisation:
        """Mean 0 and std 1 over the training split."""
        for band, mean, std in zip(bands, statistics.mean, statistics.std, strict=True):
            if std == 0:
                raise DataError(
                    f"band '{band}' is {mean:g} in every training pixel, so it can't be normalised: "
                    "leave it out (use_bands)"
                )
        return cls(tuple(statistics.mean.tolist()), tuple(statistics.std.tolist()))

    def __call__(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """values (C, H, W) of any number type, valid (H, W) bool -> (C, H, W) float32, 0 where invalid."""
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.mean, self.std))
        image = np.empty(values.shape, np.float32)  # values may lie band by band or pixel by pixel
        # PyTorch takes all cores for a large scene's tile
        torch.from_numpy(image).copy_(torch.from_numpy(values)).sub_(mean).div_(std)
        if not valid.all():
            image[:, ~valid] = 0
        return image


def check_range(
    statistics: Statistics,
    normalisation: Normalisation,
    bands: Sequence[str],
    *,
    largest_mean: float = 4.0,
    std_range: tuple[float, float] = (0.05, 8.0),
) -> None:
    """Stops where normalised values are far from mean 0 and std 1: the weights would see noise or nothing.

    The classic case is reflectance 0..10000 fed as if it were 0..1, which trains without any error.
    """
    offset = (statistics.mean - np.array(normalisation.mean)) / np.array(normalisation.std)
    spread = statistics.std / np.array(normalisation.std)
    far = (np.abs(offset) > largest_mean) | (spread < std_range[0]) | (spread > std_range[1])
    if not far.any():
        return
    lines = [
        f"  {bands[i]}: raw mean {statistics.mean[i]:.4g}, std {statistics.std[i]:.4g}, range "
        f"{statistics.minimum[i]:.4g} to {statistics.maximum[i]:.4g}; "
        f"normalised mean {offset[i]:.3g}, std {spread[i]:.3g}"
        for i in np.flatnonzero(far).tolist()
    ]
    raise DataError(
        f"{len(lines)} of {len(bands)} bands are far from what the weights expect once normalised (allowed: "
        f"mean within +-{largest_mean:g}, std {std_range[0]:g} to {std_range[1]:g}):\n"
        + "\n".join(lines)
        + f"\nSet scale to the value that means 1.0 (likely {suggest_scale(statistics):g}) "
        "or normalise: data"
    )


def suggest_scale(statistics: Statistics) -> float:
    """The smallest usual scale that holds nearly all values of all bands."""
    largest = float(np.minimum(statistics.mean + 4 * statistics.std, statistics.maximum).max())
    return next((scale for scale in SCALES if largest <= scale), largest)


class Moments:
    """Running mean, variance and range of each band, in float64 (Chan et al. 1979)."""

    def __init__(self, bands: int) -> None:
        self.count = 0
        self.mean = np.zeros(bands)
        self.squares = np.zeros(bands)
        self.minimum = np.full(bands, np.inf)
        self.maximum = np.full(bands, -np.inf)

    def add(self, values: np.ndarray, valid: np.ndarray) -> None:
        """values (C, H, W), valid (H, W) bool."""
        pixels = values.reshape(len(values), -1) if valid.all() else values[:, valid]
        count = pixels.shape[1]
        if count == 0:
            return
        mean = pixels.mean(axis=1, dtype=np.float64)
        centred = pixels - mean[:, None]
        squares = np.einsum("ij,ij->i", centred, centred)
        self.merge(count, mean, squares, pixels.min(axis=1), pixels.max(axis=1))

    def merge(
        self, count: int, mean: np.ndarray, squares: np.ndarray, minimum: np.ndarray, maximum: np.ndarray
    ) -> None:
        """Those of other pixels, at least one; squares: (C,) sums of squared differences to their mean."""
        shift = mean - self.mean
        total = self.count + count
        self.squares += squares + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.minimum = np.minimum(self.minimum, minimum)
        self.maximum = np.maximum(self.maximum, maximum)
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """(C,) population standard deviation."""
        return np.sqrt(self.squares / max(self.count, 1))

    def summary(self, *, samples: int) -> Statistics:
        """As statistics without classes."""
        return Statistics(
            mean=self.mean,
            std=self.std,
            minimum=self.minimum,
            maximum=self.maximum,
            class_counts=np.zeros(0, np.int64),
            valid_pixels=self.count,
            samples=samples,
            windows=samples,
            fingerprint="",
        )


def collect(
    windows: Sequence[Item],
    reader: Reader,
    *,
    bands: int,
    num_classes: int,
    fingerprint: str,
    limit: int = IMAGE_LIMIT,
) -> Statistics:
    """Reads the labels of all windows, and the pixels of `limit` of them drawn at random."""
    drawn = np.random.default_rng(0).permutation(len(windows))[:limit].tolist()
    with_pixels = frozenset(drawn)
    counts = np.zeros(num_classes, np.int64)
    moments = Moments(bands)
    for index, item in enumerate(windows):
        if index in with_pixels:
            raw = reader.read(item)
            moments.add(raw.values, raw.valid)
            mask = raw.mask
        else:
            mask = reader.read_mask(item)
        counts += np.bincount(mask.ravel(), minlength=256)[:num_classes]
    if moments.count == 0:
        raise DataError(f"none of the {len(with_pixels)} training windows read has a valid pixel")
    return replace(
        moments.summary(samples=len(with_pixels)),
        class_counts=counts,
        windows=len(windows),
        fingerprint=fingerprint,
    )


def fingerprint(items: Sequence[Item], *, root: Path, facts: Mapping[str, object]) -> str:
    """Changes with any file's path below the root, size or time, any window, and the facts (JSON values)."""
    lines = [json.dumps(facts, sort_keys=True, default=str)]
    states: dict[str, str] = {}
    for item in items:
        for path in filter(None, (item.image, item.label)):
            if path not in states:
                states[path] = " ".join(
                    f"{file if is_remote(file) else os.path.relpath(file, root)} {size} {time}"
                    for file, size, time in state_of(path)
                )
            lines.append(f"{states[path]}{path.partition('#')[2]}")
        lines.append(str(item.window))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def cache_folder(root: Path, given: Path | None) -> Path:
    """`given`, else `.visionsft` beside the root if it can be written, else the user's cache folder."""
    if given is not None:
        return given
    beside = root.resolve().parent
    # the mode too: a superuser may write where nobody is meant to
    if os.access(beside, os.W_OK) and beside.stat().st_mode & 0o222:
        return beside / ".visionsft"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visionsft"


def cached(
    path: Path,
    build: Callable[[], Value],
    *,
    load: Callable[[IO[bytes]], Value],
    save: Callable[[Value, IO[bytes]], object],
) -> Value:
    """What `path` holds, else what `build` returns, which is then kept there. A corrupt file is rebuilt."""
    try:
        with open(path, "rb") as file:
            return load(file)
    except OSError:
        pass  # not there yet, or not ours to read
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        warnings.warn(f"{path} is corrupt ({error}); it is made again", stacklevel=2)
    value = build()
    keep(path, value, save=save)
    return value


def keep(path: Path, value: Value, *, save: Callable[[Value, IO[bytes]], object]) -> None:
    """Writes a cached value; where that can't be done, a warning says so and what was there stays."""
    try:
        _write(path, lambda file: save(value, file))
    except OSError as error:
        warnings.warn(f"{path} could not be kept ({error}); it will be made again next time", stacklevel=3)


def load_arrays(file: IO[bytes]) -> list[np.ndarray]:
    """What `numpy.savez(file, *arrays)` wrote."""
    with np.load(file) as arrays:
        return [arrays[f"arr_{index}"] for index in range(len(arrays.files))]


def _write(path: Path, save: Callable[[IO[bytes]], object]) -> None:
    """Writes beside the target and renames, so that nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            save(file)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def cached_statistics(path: Path, build: Callable[[], Statistics]) -> Statistics:
    """Statistics kept as JSON."""
    return cached(
        path,
        build,
        load=lambda file: Statistics.from_json(json.load(file)),
        save=lambda value, file: file.write(json.dumps(value.to_json(), indent=1).encode()),
    )
