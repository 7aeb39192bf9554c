"""File faults: what is unreadable, has no partner, or doesn't match the rest of the data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from datamodules import DataModule
from datamodules.labels import RasterLabels
from datamodules.scenes import SceneModule
from datamodules.sizes import SizedModule
from datamodules.surveying import Survey, without_path
from visionsft.preparation.findings import Findings, shorten
from visionsft.preparation.looks import Look

_PROBLEMS = {"image": "unreadable image", "label": "unreadable label", "form": "label form", "size": "label size"}
_ALLOWED = {"form": "the form that data.classes has", "size": "the size of the image"}
_RECORD = re.compile(
    r"(?P<file>.+?)(?:, (?P<place>(?:line|object|frame|label|annotations|images)\b[^:]*))?: (?P<text>.*)", re.DOTALL
)
"""How errors about records of label files begin."""


def check_listing(survey: Survey, findings: Findings) -> None:
    """What names, headers and label files tell."""
    if survey.problem is not None:
        findings.add("listing", None, survey.problem)
    for path in survey.images_without_label:
        findings.add("image without label", path, "no label of its name")
    for path in survey.labels_without_image:
        findings.add("label without image", path, "no image of its name")
    seen = set()
    listing = survey.listing
    for path, reason in [*survey.unusable, *(listing.unreadable if listing else ())]:
        if (path, reason) not in seen:
            seen.add((path, reason))
            findings.add(*_place_unusable(path, reason))
    for text in survey.broken:
        match = _RECORD.fullmatch(text)
        if match is None:
            findings.add("broken record", None, text)
        else:
            findings.add("broken record", match["file"], match["text"], place=match["place"] or "")


def _place_unusable(path: str, reason: str) -> tuple[str, str, str]:
    """Check, file and reason: the reason may begin with the path of a label file."""
    if "none of the classes" in reason:
        return "unknown label", path, reason
    if "no band" in reason or "are named" in reason:
        return "band count", path, without_path(path, reason)
    if reason.startswith(path):
        empty = Path(path).is_file() and not Path(path).stat().st_size
        text = "the file is empty (0 bytes)" if empty else without_path(path, reason)
        return ("unreadable image" if empty or "can't be read" in text or "cut off" in text else "unusable"), path, text
    return "unusable", path, reason


def check_files(looks: Sequence[Look], module: DataModule, findings: Findings) -> None:
    """What the pass met, and what doesn't match: sizes, number types, grids."""
    for look in looks:
        for problem in look.problems:
            check = _PROBLEMS[problem.check]
            allowed = _ALLOWED.get(problem.check, "")
            findings.add(check, problem.file, problem.text, allowed=allowed, place=look.split, item=look.item.id)
        for value in look.unknown:
            findings.add(
                "unknown value", look.item.label, f"{value.value} in {value.pixels:,} pixels",
                allowed=_describe_classes(module), place=look.split, count=value.pixels, item=look.item.id,
                box=value.box,
            )  # fmt: skip
    read = [look for look in looks if look.is_read]
    if isinstance(module, SizedModule) and module.size is None and not isinstance(module, SceneModule):
        _check_usual(read, findings, "image size", lambda look: f"{look.size[1]} x {look.size[0]} pixels")
    if isinstance(module, SceneModule):
        _check_scenes(read, module, findings)
    else:
        _check_usual(read, findings, "image type", lambda look: look.dtype)


def _describe_classes(module: DataModule) -> str:
    """Allowed values with their classes."""
    known = [f"{'/'.join(map(str, spec.values))} {spec.name}" for spec in module.classes.specs]
    ignored = [f"{value} ignored" for value in module.classes.ignore]
    return shorten([*known, *ignored], most=24)


def _check_usual(looks: Sequence[Look], findings: Findings, check: str, figure: Callable[[Look], str]) -> None:
    """What most images have is what all should have."""
    figures = [figure(look) for look in looks]
    if len(set(figures)) < 2:
        return
    usual = Counter(figures).most_common(1)[0][0]
    for look, own in zip(looks, figures, strict=True):
        if own != usual:
            findings.add(check, look.item.image, own, allowed=usual, place=look.split, item=look.item.id)


def _check_scenes(looks: Sequence[Look], module: SceneModule, findings: Findings) -> None:
    """Scenes may differ in much; what that does to a training is said once for each kind."""
    scenes = {look.item.image: module.scene_of(look.item) for look in looks}
    facts: dict[str, dict[str, str]] = {
        "crs": {path: str(scene.grid.crs) for path, scene in scenes.items()},
        "nodata": {path: str(scene.nodata) for path, scene in scenes.items()},
        "image type": {path: str(scene.header.dtype) for path, scene in scenes.items()},
        "resolution": {path: f"{abs(scene.grid.transform.a):.6g}" for path, scene in scenes.items()},
    }
    for check, own in facts.items():
        _tell_kinds(check, own, findings)
    warped = [
        (path, scene.labels.path)
        for path, scene in scenes.items()
        if isinstance(scene.labels, RasterLabels) and not scene.labels.aligned
    ]
    for path, faults in module.shape_faults.items():
        for kind, count in faults.items():
            findings.add("shapes", path, f"{count} shapes {kind}", count=count)
    for path, label in warped:
        findings.add("label grid", label, "another grid", allowed="that of its scene", other=path)


def _tell_kinds(check: str, facts: dict[str, str], findings: Findings) -> None:
    """One finding for each kind that isn't the usual one, with its first file."""
    counts = Counter(facts.values())
    if len(counts) < 2:
        return
    usual, number = counts.most_common(1)[0]
    for kind, count in counts.most_common()[1:]:
        first = next(path for path, own in facts.items() if own == kind)
        findings.add(
            check, first, f"{kind}, {count} scenes", allowed=f"{usual}, as {number} scenes have", count=count,
            severity="warning" if check == "image type" else None,
        )  # fmt: skip
