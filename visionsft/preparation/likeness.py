"""Likeness: how well one set of images represents another, by a classifier that tries to tell them apart.

The classifier two-sample test (Lopez-Paz and Oquab 2017): if a classifier can't tell where an image comes from, the
two sets are alike in all that its features describe. Its quality is the area under the ROC curve (AUC): the
probability that of one image of each set it gives the higher score to the right one. 0.5: alike; 1: two worlds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from visionsft.preparation.findings import Findings
from visionsft.preparation.looks import SIDE, Look
from visionsft.preparation.value_faults import describe_images

UNLIKE = 0.8
"""AUC from which on two sets are clearly unlike."""
FEWEST = 20
"""Images of each set that a comparison needs."""
FOLDS = 5
MOST = 2000
"""Images of each set at most that are compared, evenly spaced."""
_BLOCKS = 4
"""Blocks a side of the coarse picture among the features."""
_RIDGE = 0.1
"""Added to the correlation matrix, whose diagonal is 1."""


@dataclass(frozen=True)
class Comparison:
    """How unlike two sets of images are."""

    first: str
    second: str
    features: str
    auc: float
    """Cross-validated; 0.5 to 1."""
    images: tuple[int, int]
    meaning: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(
    first: str, second: str, features: tuple[NDArray[np.float64], NDArray[np.float64]], *, described: str
) -> Comparison | None:
    """features: (N, F) and (M, F) in the order of the files; None where either set is too small."""
    one, other = (each[_spaced(len(each))] for each in features)
    if min(len(one), len(other)) < FEWEST:
        return None
    auc = max(0.5, two_sample_auc(one, other))
    meaning = "alike" if auc < 0.65 else "somewhat unlike" if auc < UNLIKE else "clearly unlike"
    return Comparison(first, second, described, round(auc, 3), (len(one), len(other)), meaning)


def check_likeness(
    sets: dict[str, NDArray[np.float64]], findings: Findings, *, described: str
) -> list[Comparison]:
    """Train against every other set, and val and test against the pool; sets: features by name."""
    pairs = [("train", name) for name in ("val", "test", "pool")] + [(name, "pool") for name in ("val", "test")]
    found = []
    for first, second in pairs:
        if first not in sets or second not in sets:
            continue
        comparison = compare(first, second, (sets[first], sets[second]), described=described)
        if comparison is None:
            continue
        found.append(comparison)
        if comparison.auc >= UNLIKE:
            check = "unlike train" if first == "train" else "split unlike pool"
            text = f"a classifier tells them apart with AUC {comparison.auc:.2f} ({described})"
            findings.add(check, None, text, allowed=f"below {UNLIKE:g}; 0.5 is alike", place=f"{first} and {second}")
    return found


def image_features(looks: Sequence[Look], bands: int) -> NDArray[np.float64]:
    """(N, F): brightness, contrast, sharpness, colours and a coarse relative picture of the images that were read."""
    usable = [look for look in looks if look.moments is not None and look.is_read and len(look.moments.mean) == bands]
    if not usable:
        return np.empty((0, 0))
    values, _ = describe_images(usable)
    return np.hstack([values, np.stack([_coarse(look) for look in usable])])


def _coarse(look: Look) -> NDArray[np.float64]:
    """Brightness of blocks, each relative to the image's mean."""
    assert look.small is not None
    grey = look.small.mean(axis=0).astype(np.float64)
    grey = np.where(np.isfinite(grey), grey, np.nanmean(grey))
    side = SIDE // _BLOCKS
    blocks = grey.reshape(_BLOCKS, side, _BLOCKS, side).mean(axis=(1, 3)).ravel()
    return blocks / max(abs(float(blocks.mean())), 1e-6) - 1


def two_sample_auc(one: NDArray[np.float64], other: NDArray[np.float64], *, folds: int = FOLDS) -> float:
    """Cross-validated AUC of a linear discriminant (Fisher 1936, with a ridge) that tells two samples apart.

    The folds are runs of neighbouring rows, so that a frame isn't judged by a model that learned from the next one
    of the same drive.
    """
    scores, sides = [], []
    for held_one, held_other in zip(_runs(len(one), folds), _runs(len(other), folds), strict=True):
        left, right = np.delete(one, held_one, axis=0), np.delete(other, held_other, axis=0)
        direction, centre, scale = _discriminant(left, right)
        for side, held in ((0, one[held_one]), (1, other[held_other])):
            scores.append((held - centre) / scale @ direction)
            sides.append(np.full(len(held), side))
    return _auc(np.concatenate(scores), np.concatenate(sides))


def _runs(count: int, folds: int) -> list[NDArray[np.int64]]:
    return np.array_split(np.arange(count), folds)


def _discriminant(
    one: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Direction, and centre and scale of the features."""
    together = np.vstack([one, other])
    centre, scale = together.mean(axis=0), together.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    left, right = (one - centre) / scale, (other - centre) / scale
    within = np.vstack([left - left.mean(axis=0), right - right.mean(axis=0)])
    covariance = within.T @ within / max(len(within) - 2, 1) + _RIDGE * np.eye(within.shape[1])
    return np.linalg.solve(covariance, right.mean(axis=0) - left.mean(axis=0)), centre, scale


def _auc(scores: NDArray[np.float64], sides: NDArray[np.int64]) -> float:
    """Mann-Whitney's U over the number of pairs; ties count half."""
    ranks = rankdata(scores)
    positives = int(sides.sum())
    negatives = len(sides) - positives
    return float((ranks[sides == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _spaced(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, MOST)).astype(int)) if count else np.empty(0, int)
