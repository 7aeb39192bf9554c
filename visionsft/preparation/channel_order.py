"""Channel order: three-band images whose channels seem exchanged, as red and blue are by a wrong decoder.

A camera or scene has colours of its own (a bluish sky, reddish brick), even where they are faint and a mean says
nothing. The colours of all cells of all images of a group make a smoothed histogram of log(red/green) over
log(blue/green); an image that is more likely by it with exchanged channels than as it is, is suspect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from visionsft.preparation.findings import Findings
from visionsft.preparation.looks import Look

FEWEST = 20
"""Images that a group needs for its own colours."""
LIMIT = 0.15
"""Mean log-likelihood ratio per cell (1.16 times as likely) from which on another order is told."""
_BINS, _WIDTH = 61, 0.02
"""Of the histogram, a side; width in natural logarithms."""
_DARK = 0.03
"""Added to all values, as a share of the brightest, since ratios of dark values are noise."""
_ORDERS = tuple(order for order in permutations(range(3)) if order != (0, 1, 2))


def check_order(looks: Sequence[Look], bands: Sequence[str], findings: Findings) -> None:
    """looks: of images that show something; nothing is said of small groups and of other than three bands."""
    usable = [look for look in looks if look.small is not None and len(look.small) == 3 and not look.is_grey]
    groups: dict[str, list[Look]] = defaultdict(list)
    for look in usable:
        groups[look.item.group].append(look)
    # images of many cameras or places have no colours in common: a green field among streets is none of a decoder's
    for own in (own for own in groups.values() if len(own) >= FEWEST):
        ratios = order_ratios(np.stack([look.small for look in own if look.small is not None]))
        for look, row in zip(own, ratios, strict=True):
            best = int(row.argmin())
            if row[best] < -LIMIT:
                order = ", ".join(bands[i] for i in _ORDERS[best])
                found = f"its colours are {np.exp(-row[best]):.2f} times as likely in the order {order}"
                findings.add(
                    "channel order", look.item.image, found, allowed=f"below {np.exp(LIMIT):.2f} times",
                    place=look.split, item=look.item.id,
                )  # fmt: skip


def order_ratios(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """images (N, 3, S, S), nan where not valid -> (N, 5) mean log-likelihood of each image's cells less that with
    each other order of its channels; negative: the other order is more likely."""
    dark = _DARK * float(np.nanmax(images))
    counts = sum((_histogram(image, dark) for image in images), np.zeros((_BINS, _BINS)))
    smooth = gaussian_filter(counts, 1.0) + 1e-3 * counts.sum() / counts.size
    likelihood = np.log(smooth / smooth.sum()).ravel()
    return np.array(
        [
            [_mean(likelihood, image, dark) - _mean(likelihood, image[list(order)], dark) for order in _ORDERS]
            for image in images
        ]
    )


def _bins(image: NDArray[np.float32], dark: float) -> NDArray[np.int64]:
    """Number of the bin of every valid cell."""
    logs = np.log(np.maximum(image.reshape(3, -1), 0) + dark)
    logs = logs[:, np.isfinite(logs).all(axis=0)]
    ratios = np.stack([logs[0] - logs[1], logs[2] - logs[1]])
    places = np.clip(np.round(ratios / _WIDTH) + _BINS // 2, 0, _BINS - 1).astype(np.int64)
    return np.asarray(places[0] * _BINS + places[1])


def _histogram(image: NDArray[np.float32], dark: float) -> NDArray[np.float64]:
    return np.bincount(_bins(image, dark), minlength=_BINS**2).reshape(_BINS, _BINS).astype(np.float64)


def _mean(likelihood: NDArray[np.float64], image: NDArray[np.float32], dark: float) -> float:
    bins = _bins(image, dark)
    return float(likelihood[bins].mean()) if len(bins) else 0.0
