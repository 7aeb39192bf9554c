"""Value faults: what the weights can't make sense of, and images that show nothing or are unlike the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules import DataError, DataModule, Normalisation
from datamodules.statistics import Statistics, check_range, suggest_scale
from visionsft.preparation.channel_order import check_order
from visionsft.preparation.findings import Findings
from visionsft.preparation.looks import Look, gather_statistics

SATURATED = 0.5
"""Share of an image's pixels at the end of the scale, in every band, from which on it is saturated: more than a white
sky usually has."""
DARK = 0.04
"""Mean and range, as shares of the scale, below which an image shows nothing."""
FEWEST = 20
"""Images that a group needs for its own usual values; smaller ones are compared with all images."""
LIMIT = 6.0
"""Robust standard deviations from which on an image is unlike its group."""
FLOORS = {"brightness": 0.15, "contrast": 0.15, "colour": 0.05, "sharpness": 0.15}
"""Smallest standard deviation that is assumed, as a natural logarithm: 0.15 is some 15 %."""
OFFSET = 1000.0
"""Added to Sentinel-2 reflectance since processing baseline 04.00..."""
REACH = 200.0
"""...where the darkest pixels lie this near to it."""
DARKEST = 500.0
"""Darkest pixels below this have no offset."""


def check_values(
    looks: Sequence[Look], module: DataModule, findings: Findings, *, weights: tuple[Any, Any] | None
) -> Statistics | None:
    """Values against what the weights expect, image by image and all together; returns the training's figures.

    weights: mean and std of the pretrained weights, band by band; None: with normalise 'data'.
    """
    read = [look for look in looks if look.is_read]
    statistics = gather_statistics([look for look in read if look.split == "train"], len(module.bands))
    if statistics is not None:
        _check_range(statistics, module, findings, weights)
        _check_offset(read, findings)
    scale = _scale_of(module, statistics)
    for look in looks:
        if not look.is_read and not look.problems and look.size != (0, 0):
            findings.add("nothing valid", look.item.image, "0 valid pixels", place=look.split, item=look.item.id)
    blank = {look.item.id for look in read if _check_image(look, module, scale, findings)}
    _check_grey([look for look in read if look.item.id not in blank], findings)
    # parts of one scene differ as the ground does
    whole = [look for look in read if look.item.id not in blank and look.item.window is None]
    _check_outliers(whole, module, findings)
    check_order(whole, module.bands, findings)
    return statistics


def _scale_of(module: DataModule, statistics: Statistics | None) -> float:
    """The value that is white."""
    if module.scale is not None:
        return module.scale
    if statistics is None or module.dtype == np.uint8:
        return 255.0
    return suggest_scale(statistics)


# ------------------------------------------------------------------------------------------------ all together


def _check_range(
    statistics: Statistics, module: DataModule, findings: Findings, weights: tuple[Any, Any] | None
) -> None:
    constant = [band for band, std in zip(module.bands, statistics.std, strict=True) if std == 0]
    for band in constant:
        findings.add("constant band", None, "one value in every training pixel", place=f"band {band}")
    if weights is None or constant:
        return
    if module.scale is None and module.dtype != np.uint8:
        largest = f"values up to {statistics.maximum.max():.6g} ({module.dtype})"
        findings.add("scale", None, largest, allowed=f"data.scale, likely {suggest_scale(statistics):g}")
        return
    try:
        normalisation = Normalisation.from_weights(*weights, scale=_scale_of(module, statistics))
        check_range(statistics, normalisation, module.bands)
    except DataError as error:
        _, *bands, advice = str(error).splitlines()
        for text in bands:
            band, _, found = text.strip().partition(": ")
            findings.add("value range", None, found, allowed=advice, place=f"band {band}")


def _check_offset(looks: Sequence[Look], findings: Findings) -> None:
    """Dark pixels near 1000 in scenes of reflectance, and near 0 in others."""
    found = [
        (look, float(look.low.min())) for look in looks if look.low is not None and look.dtype in ("uint16", "int16")
    ]
    shifted = [look for look, low in found if abs(low - OFFSET) < REACH]
    plain = [look for look, low in found if low < DARKEST]
    if not shifted or len(shifted) + len(plain) < 0.9 * len(found):
        return
    severity = "warning" if plain else "note"
    what = f"darkest pixels near {OFFSET:g} in {len(shifted)} of {len(found)} images"
    what += f", below {DARKEST:g} in {len(plain)}" if plain else ", in no other near 0"
    findings.add("offset", shifted[0].item.image, what, count=len(shifted), severity=severity)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- image by image


def _check_image(look: Look, module: DataModule, scale: float, findings: Findings) -> bool:
    """Whether an image shows nothing, or is saturated: then nothing more is said of it."""
    assert look.moments is not None
    assert look.low is not None
    assert look.high is not None
    assert look.top is not None
    moments, place = look.moments, {"place": look.split, "item": look.item.id}
    std = moments.std
    span = float((look.high - look.low).max())
    if (std == 0).all() or (span < DARK * scale and float(moments.mean.max()) < DARK * scale):
        values = ", ".join(f"{mean:.4g}" for mean in moments.mean)
        found = f"mean {values}, 99 % of the pixels within {span:.4g} (scale {scale:g})"
        findings.add("constant image", look.item.image, found, **place)  # type: ignore[arg-type]
        return True
    for band in np.flatnonzero(std == 0).tolist():
        found = f"band {module.bands[band]} is {moments.mean[band]:g} throughout"
        findings.add("empty band", look.item.image, found, **place)  # type: ignore[arg-type]
    share = float(look.top.min())
    if share > SATURATED:
        found = f"{share:.0%} of the pixels are at the end of the scale in every band"
        allowed = f"at most {SATURATED:.0%}"
        findings.add("saturated image", look.item.image, found, allowed=allowed, **place)  # type: ignore[arg-type]
        return True
    return False


def _check_grey(looks: Sequence[Look], findings: Findings) -> None:
    grey = [look for look in looks if look.is_grey]
    if len(grey) < len(looks) / 2:
        for look in grey:
            found = "all bands hold the same"
            findings.add("grey image", look.item.image, found, allowed="colour", place=look.split, item=look.item.id)


# ---------------------------------------------------------------------------------------------------- outliers


def describe_images(looks: Sequence[Look]) -> tuple[NDArray[np.float64], list[str]]:
    """(N, F) logarithms of brightness, contrast, colours and sharpness of images with the same bands; names of F."""
    rows = []
    for look in looks:
        assert look.moments is not None
        least = 1.0 if look.dtype[:1] in "ui" else 1e-4
        means = np.log(np.maximum(look.moments.mean, 0) + least)
        contrast = np.log(np.sqrt((look.moments.std**2).mean()) + least)
        rows.append([means.mean(), contrast, np.log(look.sharpness + 1e-3), *(means - means.mean())])
    bands = 0 if not rows else len(rows[0]) - 3
    names = ["brightness", "contrast", "sharpness", *(["colour"] * bands)]
    return np.array(rows).reshape(-1, len(names)), names


def robust_deviations(
    values: NDArray[np.float64], floors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """values (N, F) -> differences to the median (N, F), and these in robust standard deviations.

    The median absolute deviation times 1.4826 estimates a normal distribution's standard deviation (Hampel 1974).
    floors: (F,) smallest standard deviation that is assumed.
    """
    apart = values - np.median(values, axis=0)
    spread = 1.4826 * np.median(np.abs(apart), axis=0)
    return apart, apart / np.maximum(spread, floors)


def _check_outliers(looks: Sequence[Look], module: DataModule, findings: Findings) -> None:
    looks = [look for look in looks if look.moments is not None and len(look.moments.mean) == len(module.bands)]
    values, names = describe_images(looks)
    floors = np.array([FLOORS[name] for name in names])
    groups: dict[str, list[int]] = defaultdict(list)
    for index, look in enumerate(looks):
        groups[look.item.group].append(index)
    everywhere = robust_deviations(values, floors) if len(looks) >= FEWEST else None
    for group, members in groups.items():
        own = len(members) >= FEWEST
        if own:
            apart, far = robust_deviations(values[members], floors)
        elif everywhere is not None:
            apart, far = everywhere[0][members], everywhere[1][members]
        else:
            continue
        among = f"the {len(members)} images of {group}" if own else f"all {len(looks)} images"
        for row, index in enumerate(members):
            _tell_outlier(looks[index], apart[row], far[row], names, module, among, findings)


def _tell_outlier(
    look: Look,
    apart: NDArray[np.float64],
    far: NDArray[np.float64],
    names: Sequence[str],
    module: DataModule,
    among: str,
    findings: Findings,
) -> None:
    odd = [i for i in np.argsort(-np.abs(far)).tolist() if abs(far[i]) > LIMIT]
    if look.is_grey:
        odd = [i for i in odd if names[i] != "colour"]
    if not odd:
        return
    told = []
    for i in odd:
        name = f"{module.bands[i - 3]}, compared with the other bands," if names[i] == "colour" else names[i]
        told.append(f"{name} {np.exp(apart[i]):.2f} times the usual ({abs(far[i]):.1f} robust deviations)")
    allowed = f"within {LIMIT:g} robust deviations of {among}"
    findings.add(
        "unlike its group", look.item.image, "; ".join(told), allowed=allowed, place=look.split, item=look.item.id
    )
