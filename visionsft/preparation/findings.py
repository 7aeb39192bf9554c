"""Findings: what an audit says about data, with the place of each, grouped by kind.

Each kind of finding is a `Check` with a severity: an error must be fixed first, since training stops at it or learns
something wrong; a warning is likely to spoil the result or its evidence; a note is worth knowing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The gravest first."""

KEPT = 200
"""Findings of one kind at most whose places are kept; all are counted."""


@dataclass(frozen=True)
class Check:
    """A kind of finding."""

    severity: Severity
    title: str
    advice: str
    """What to do about it, or what it does to a training."""


CHECKS: dict[str, Check] = {
    # files
    "listing": Check("error", "The data can't be listed", "nothing else could be checked; mend this first"),
    "unusable": Check(
        "error", "Files that can't be used", "mend them, or leave them out (data.on_error: skip)"
    ),
    "unreadable image": Check(
        "error", "Images that can't be read", "get them again; on_error: skip leaves them out"
    ),
    "unreadable label": Check(
        "error", "Labels that can't be read", "get them again; on_error: skip leaves them out"
    ),
    "broken record": Check(
        "error", "Records in label files that can't be read", "mend the line or object that is named"
    ),
    "image without label": Check(
        "error", "Images without a label", "add the label, or an empty one, or remove the image"
    ),
    "label without image": Check("error", "Labels without an image", "find the image, or remove the label"),
    "label form": Check(
        "error", "Labels of another form", "masks hold pixel values or colours, as data.classes says"
    ),
    "label size": Check(
        "error", "Labels of another size than their image", "a mask has a value for each pixel of its image"
    ),
    "image size": Check("error", "Images of another size", "data.size resizes all images to one"),
    "image type": Check(
        "error", "Images of another number type", "convert them: 16-bit values aren't 8-bit ones"
    ),
    "band count": Check("error", "Images with other bands", "name the bands, or choose those that all have"),
    "crs": Check("note", "Several coordinate systems", "fine if that is meant; distances are in their units"),
    "nodata": Check("warning", "Several nodata values", "data.nodata overrides them all"),
    "resolution": Check("warning", "Several pixel sizes", "data.resolution resamples all scenes to one"),
    "label grid": Check(
        "note", "Labels on another grid than their scene", "they are warped, nearest neighbour"
    ),
    "shapes": Check("warning", "Flawed shapes in vector labels", "they are mended or left out as said"),
    # label values and balance
    "unknown value": Check(
        "error", "Label values in no class", "add them to a class's values, or to data.ignore"
    ),
    "unknown label": Check(
        "error", "Image labels in no class", "add them to a class's values, or to data.ignore"
    ),
    "nothing labelled": Check(
        "warning", "Labels without a labelled pixel", "nothing is learned from them and nothing measured"
    ),
    "label layout": Check(
        "warning",
        "Labels laid out unlike all others",
        "classes stand where they never do elsewhere: upside down, shifted, or of another image?",
    ),
    "absent class": Check("error", "Classes that never occur in training", "they can't be learned"),
    "too rare to learn": Check(
        "warning", "Classes too rare to learn", "collect more, merge, or leave them out"
    ),
    "too rare to measure": Check(
        "warning", "Classes too rare to measure", "their scores say little: put more of them into the split"
    ),
    "rare pixels": Check(
        "note",
        "Classes with few pixels",
        "a plain loss neglects them: rare_class_crops, lovasz, class_weights",
    ),
    "few groups": Check(
        "warning", "Few independent groups", "scores have no honest interval: hold out more drives or scenes"
    ),
    "empty split": Check(
        "warning", "Splits without samples", "hold samples out: nothing can be judged without"
    ),
    # values
    "value range": Check(
        "error", "Values far from what the weights expect", "set data.scale, or normalise: data"
    ),
    "scale": Check("error", "The scale of the values is not given", "set data.scale, or normalise: data"),
    "offset": Check(
        "warning",
        "An offset in the values",
        "Sentinel-2 adds 1000 to reflectance since baseline 04.00 (January 2022): subtract it, in all scenes alike",
    ),
    "constant band": Check("error", "Bands with one value throughout", "leave them out with data.use_bands"),
    "empty band": Check("warning", "Images with an empty band", "one value in every valid pixel"),
    "constant image": Check("warning", "Images that show nothing", "one value throughout, as a covered lens"),
    "nothing valid": Check("warning", "Images without a valid pixel", "all nodata or transparent"),
    "saturated image": Check("warning", "Saturated images", "what is at the end of the scale is lost"),
    "grey image": Check("warning", "Grey images among colour ones", "another camera, or a lost channel"),
    "unlike its group": Check(
        "warning", "Images unlike the others", "another sensor, exposure, focus or order of channels?"
    ),
    "channel order": Check(
        "warning", "Images whose channels seem exchanged", "a decoder that gives blue, green, red?"
    ),
    # leaks
    "identical across splits": Check(
        "error", "The same file in two splits", "scores are flattered: remove one of each pair"
    ),
    "lookalike across splits": Check(
        "warning", "Near-duplicates in two splits", "scores are flattered: keep each pair in one split"
    ),
    "shared drive": Check(
        "warning", "Drives in two splits", "scores are flattered: data.split.by: drive keeps them whole"
    ),
    "shared ground": Check(
        "warning", "The same ground in two splits", "scores are flattered: data.split.by: place"
    ),
    "contradiction": Check("warning", "Labels that contradict each other", "the same ground, other classes"),
    "identical": Check("note", "The same file twice in a split", "it counts twice"),
    "repeats": Check("note", "Near-duplicates in a split", "they add little: a slow or standing camera"),
    # objects
    "unknown name": Check(
        "error",
        "Objects named as no class is",
        "mend the name, or add it to a class's values or to data.ignore",
    ),
    "misspelt name": Check(
        "warning", "Misspelt class names", "the configuration takes them for the class; mend the label files"
    ),
    "unnamed object": Check("error", "Objects without a name", "name them in the label files, or ignore ''"),
    "degenerate box": Check(
        "error", "Degenerate boxes", "empty, negative or not a number; they are left out"
    ),
    "box outside": Check(
        "error",
        "Boxes outside of their picture: degenerate, nothing of them is left",
        "wrong picture, unit or order of coordinates?",
    ),
    "box beyond edge": Check("warning", "Boxes that reach beyond their picture", "they are clipped"),
    "rounded box": Check("note", "Boxes a pixel beyond the edge", "rounding of the annotation tool; clipped"),
    "other size": Check(
        "warning", "Label files that state another picture size", "were the pictures resized after labelling?"
    ),
    "no outline": Check(
        "error", "Objects without an outline", "this task needs one; they are ignored regions"
    ),
    "duplicated box": Check("warning", "Objects labelled twice", "one of the two will be a false alarm"),
    "conflicting boxes": Check("warning", "One box with two classes", "only one of them can be right"),
    "tiny box": Check(
        "warning", "Objects tiny in training", "they can hardly be seen: larger chip, crop or size"
    ),
    "no objects": Check("note", "Images without objects", "fine if they were looked at"),
    # model
    "suspect label": Check(
        "warning", "Labels that a held-out model contradicts", "look at them: is the label of another image?"
    ),
    "suspect region": Check(
        "note", "Regions where a held-out model confidently disagrees", "look at the largest; models err, too"
    ),
    "mislabelled image": Check("warning", "Images likely mislabelled", "look at them; models err, too"),
    "missing box": Check("note", "Objects likely not labelled", "a confident detection without a label"),
    "false box": Check("note", "Labels without an object, likely", "the model sees nothing there"),
    "misclassified box": Check(
        "note", "Objects likely of another class", "a confident detection of another one"
    ),
    # representativeness
    "unlike train": Check(
        "warning", "Splits or pools unlike the training data", "scores there say little about the other"
    ),
    "split unlike pool": Check(
        "warning", "Splits unlike the pool", "scores on them say little about the pool"
    ),
}


@dataclass(frozen=True)
class Finding:
    """One place where a check has found something."""

    check: str
    severity: Severity
    file: str | None
    """Path; None where it is about a split or the whole data."""
    found: str
    allowed: str = ""
    """What there should be."""
    place: str = ""
    """Where in the file, or which split or class."""
    count: int = 1
    """Pixels, boxes... that it stands for."""
    item: str | None = None
    """Id of the sample, if it is one."""
    box: tuple[int, int, int, int] | None = None
    """Row, column, height and width of the place in the image."""
    other: str | None = None
    """Path of a second file that it is about."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, without what isn't known."""
        plain = asdict(self)
        del plain["check"], plain["severity"]
        return {key: value for key, value in plain.items() if value not in (None, "")}


@dataclass
class Group:
    """All findings of one check and severity."""

    check: str
    severity: Severity
    count: int = 0
    """How many there are."""
    findings: list[Finding] = field(default_factory=list)
    """The first of them."""

    @property
    def title(self) -> str:
        return CHECKS[self.check].title

    @property
    def advice(self) -> str:
        return CHECKS[self.check].advice

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "check": self.check,
            "severity": self.severity,
            "title": self.title,
            "advice": self.advice,
            "count": self.count,
            "examples": [finding.to_json() for finding in self.findings],
        }


class Findings:
    """Collects findings; of thousands of a kind the first are kept, and all are counted."""

    def __init__(self, *, kept: int = KEPT) -> None:
        self.kept = kept
        self._groups: dict[tuple[Severity, str], Group] = {}

    def add(
        self,
        check: str,
        file: str | None,
        found: str,
        *,
        allowed: str = "",
        place: str = "",
        count: int = 1,
        item: str | None = None,
        box: tuple[int, int, int, int] | None = None,
        other: str | None = None,
        severity: Severity | None = None,
    ) -> None:
        """check: a key of CHECKS; severity: if it isn't the check's own. The others: see `Finding`."""
        grade = severity or CHECKS[check].severity
        group = self._groups.setdefault((grade, check), Group(check, grade))
        group.count += 1
        if len(group.findings) < self.kept:
            group.findings.append(Finding(check, grade, file, found, allowed, place, count, item, box, other))

    def groups(self) -> list[Group]:
        """The gravest first, in the order of CHECKS."""
        order = list(CHECKS)
        return sorted(
            self._groups.values(),
            key=lambda group: (SEVERITIES.index(group.severity), order.index(group.check)),
        )

    def count(self, severity: Severity) -> int:
        """How many there are of it."""
        return sum(group.count for group in self._groups.values() if group.severity == severity)


def shorten(texts: Iterable[str], *, most: int = 8) -> str:
    """The first few, and how many there are."""
    every = list(texts)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return f"{', '.join(every[:most])}{more}"
