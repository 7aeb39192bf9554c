"""The audit: what would spoil a training or its evidence, found before a GPU-hour is spent.

One pass reads every image and label once, in threads, and keeps a few kilobytes of figures of each
(`visionsft.preparation.looks`); all checks work on these, and on what headers and label files say. With a trained
run, its held-out samples are seen once more by its model.

::

    audits/<name>/
        audit.json     every finding, grouped, with its places; audit.schema.json describes it
        index.html     the same for people, with pictures
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules import ClassificationDataModule, DataError, DataModule, DetectionDataModule, Item
from datamodules.objects import Objects
from datamodules.sizes import FrameCheck
from datamodules.statistics import Statistics
from datamodules.surveying import Survey
from visionsft import build
from visionsft.config import Config
from visionsft.errors import RunError
from visionsft.evaluation.evaluating import progress
from visionsft.files import write_text
from visionsft.loading import load_config
from visionsft.prediction.inputs import find_inputs
from visionsft.preparation.balance import Counts, check_balance, check_labels, count_classes
from visionsft.preparation.file_faults import check_files, check_listing
from visionsft.preparation.findings import SEVERITIES, Findings, Group
from visionsft.preparation.leakage import check_leaks
from visionsft.preparation.likeness import Comparison, check_likeness, image_features
from visionsft.preparation.looks import Look, take_looks
from visionsft.preparation.object_faults import check_sizes, part_of, resolve_objects
from visionsft.preparation.suspects import Suspicion, find_suspects
from visionsft.preparation.value_faults import check_values
from visionsft.runs import Run

VERSION = 1
"""Of the form of audit.json."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_SHOWN = 3
"""Places of a kind that the table names."""


@dataclass(frozen=True)
class Audit:
    """What was found."""

    name: str
    root: str
    task: str
    findings: Findings
    samples: dict[str, int]
    """By split."""
    groups: dict[str, int]
    """Scenes, drives or single images, by split."""
    bands: dict[str, dict[str, float]]
    """Mean, std, minimum and maximum of each band in the files' units, over all valid training pixels."""
    counted: str
    """What of each class is counted: 'pixels', 'objects' or 'images'."""
    classes: Counts
    likeness: list[Comparison]
    suspicion: Suspicion | None
    """Where a run was given."""
    seconds: dict[str, float]
    """What took how long."""

    @property
    def kinds(self) -> list[Group]:
        """Findings by kind, the gravest first."""
        return self.findings.groups()

    def exit_code(self, *, strict: bool = False) -> int:
        """1 where something must be fixed first: an error, or with `strict` a warning."""
        return int(bool(self.findings.count("error") or (strict and self.findings.count("warning"))))

    def table(self) -> str:
        """What the command line prints."""
        sizes = ", ".join(f"{split} {count:,}" for split, count in self.samples.items())
        numbers = {severity: self.findings.count(severity) for severity in SEVERITIES}
        lines = [f"{self.name} · {self.task} · {self.root}", f"samples: {sizes}", ""]
        for group in self.kinds:
            lines.append(f"{group.severity.upper():8}{group.title}: {group.count:,}")
            lines += [f"          {_describe(finding)}" for finding in group.findings[:_SHOWN]]
            if group.count > _SHOWN:
                lines.append(f"          and {group.count - _SHOWN:,} more")
            lines.append(f"          -> {group.advice}")
        said = ", ".join(f"{count:,} {severity}{'' if count == 1 else 's'}" for severity, count in numbers.items())
        lines += [] if self.kinds else ["nothing found"]
        lines += [f"{each.first} and {each.second}: {each.meaning}, AUC {each.auc:.2f} (0.5 alike, 1 two worlds; "
                  f"{each.features})" for each in self.likeness]  # fmt: skip
        return "\n".join([*lines, "", f"{said}; {self.seconds['all']:.1f} s"])

    def to_json(self) -> dict[str, Any]:
        """As audit.json has it."""
        return {
            "version": VERSION,
            "name": self.name,
            "root": self.root,
            "task": self.task,
            "passed": not self.findings.count("error"),
            "counts": {severity: self.findings.count(severity) for severity in SEVERITIES},
            "samples": self.samples,
            "groups": self.groups,
            "bands": self.bands,
            "counted": self.counted,
            "classes": {
                split: {
                    name: {"pixels": c.pixels, "images": c.images, "objects": c.objects, "groups": len(c.groups)}
                    for name, c in own.items()
                }
                for split, own in self.classes.items()
            },
            "likeness": [each.to_json() for each in self.likeness],
            "suspicion": None if self.suspicion is None else asdict(self.suspicion),
            "findings": [group.to_json() for group in self.kinds],
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def _describe(finding: Any) -> str:
    where = ", ".join(part for part in (finding.file, finding.place) if part)
    allowed = f" (allowed: {finding.allowed})" if finding.allowed else ""
    return f"{where}: {finding.found}{allowed}" if where else f"{finding.found}{allowed}"


def audit(
    config: Config | str | Path,
    overrides: Sequence[str] = (),
    *,
    run: Run | str | Path | None = None,
    pool: Sequence[str | Path] = (),
    out: str | Path | None = None,
    workers: int | None = None,
) -> Audit:
    """Look through the data of a configuration for what would spoil a training; writes audit.json and index.html.

    run: a trained run of the same classes, whose model judges the labels of samples that it wasn't trained on.
    pool: unlabelled images (files, folders, globs, lists) that the data should be representative of.
    out: folder of the result; default: ``audits/<name>``. workers: threads that read; default: the cores.
    A DataError is raised only where no file could be listed at all.
    """
    loaded = config if isinstance(config, Config) else load_config(config, overrides)
    opened = None if run is None else run if isinstance(run, Run) else Run.open(run)
    if opened is not None and opened.task != loaded.task.kind:
        raise RunError(f"{opened.path}: its task is {opened.task}, the configuration's {loaded.task.kind}")
    auditor = _Auditor(loaded, workers)
    result = auditor.look(opened, find_inputs(pool, suffixes=_SUFFIXES) if pool else [])
    from visionsft.preparation.audit_page import render  # it draws, which takes long to import

    folder = Path(out) if out is not None else Path("audits") / str(loaded.name)
    text = json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / "audit.json", text + "\n")
    write_text(folder / "index.html", render(result, auditor.data, auditor.items))
    return result


class _Auditor:
    """One audit: its state while the checks go on."""

    def __init__(self, config: Config, workers: int | None) -> None:
        self.config = config
        self.workers = workers
        self.data: DataModule = build.build_data(config)
        self.findings = Findings()
        self.looks: list[Look] = []
        self.items: dict[str, Item] = {}
        """By id, for pictures."""
        self.seconds: dict[str, float] = {}

    def look(self, run: Run | None, pool: Sequence[str]) -> Audit:
        start = time.perf_counter()
        survey = self.data.survey()
        check_listing(survey, self.findings)
        self.seconds["listing"] = time.perf_counter() - start
        items = [(split, item) for split, own in survey.splits.items() for item in own]
        self.items = {item.id: item for _, item in items}
        before = time.perf_counter()
        self.looks = self._take(items, self.data.inspector, "looking at files") if items else []
        self.seconds["pass"] = time.perf_counter() - before
        before = time.perf_counter()
        statistics, counts, likeness = self._check(survey, pool)
        self.seconds["checks"] = time.perf_counter() - before
        suspicion = None
        if run is not None and self.data.items:
            before = time.perf_counter()
            suspicion = find_suspects(run, self.data, self.looks, self.findings, progress=_progress)
            self.seconds["run"] = time.perf_counter() - before
        self.seconds["all"] = time.perf_counter() - start
        return self._sum_up(statistics, counts, likeness, suspicion)

    def _take(self, items: Sequence[tuple[str, Item]], inspector: Any, what: str) -> list[Look]:
        classes = len(self.data.classes) if self._has_masks else 0
        looks = take_looks(items, inspector, classes=classes, workers=self.workers)
        return list(_progress(looks, what, len(items)))

    @property
    def _has_masks(self) -> bool:
        return self.data.counted == "pixels"

    def _check(self, survey: Survey, pool: Sequence[str]) -> tuple[Statistics | None, Counts, list[Comparison]]:
        """All checks of what was looked at."""
        if not self.looks:
            return None, {}, []
        self._settle(survey)
        check_files(self.looks, self.data, self.findings)
        statistics = None
        if any(look.is_read for look in self.looks):
            statistics = check_values(self.looks, self.data, self.findings, weights=self._weights())
        counts = self._count(survey)
        usable = [look for look in self.looks if look.is_read]
        check_balance(counts, usable, self.findings, counted=self.data.counted)
        if self._has_masks:
            check_labels(self.looks, len(self.data.classes), self.findings)
        check_leaks(self.looks, self.data, self.findings)
        return statistics, counts, self._compare(pool)

    def _settle(self, survey: Survey) -> None:
        """The data module takes what can be used."""
        checks: dict[str, FrameCheck] = {}
        for look in self.looks:
            own = look.check()
            if checks.get(look.item.image) is None or own.problem is not None:
                checks[look.item.image] = own
        try:
            self.data.settle(survey.splits, checks)
        except DataError as error:
            self.findings.add("listing", None, str(error))
            self.data.items = {}

    def _weights(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """Mean and std that the pretrained weights expect."""
        if self.data.normalise != "weights":
            return None
        backbone = build.build_backbone(self.config, self.data.bands, pretrained=False)
        return backbone.mean, backbone.std

    def _count(self, survey: Survey) -> Counts:
        names = self.data.classes.names
        if isinstance(self.data, DetectionDataModule):
            objects = self._objects(self.data, survey)
            check_sizes(self.looks, self.data, objects, self.findings)
            return count_classes(self.looks, names, objects=objects)
        if isinstance(self.data, ClassificationDataModule):
            labels = {item.id: _indices(self.data.label(item)) for own in self.data.items.values() for item in own}
            return count_classes(self.looks, names, labels=labels)
        return count_classes(self.looks, names)

    def _objects(self, data: DetectionDataModule, survey: Survey) -> Mapping[str, Objects]:
        """By item id; of shapes on the ground, those that the data module has found."""
        if survey.listing is not None:
            whole = resolve_objects(self.looks, data, survey.listing, self.findings)
            known = [look for look in self.looks if look.item.image in whole]
            return {look.item.id: part_of(whole[look.item.image], look) for look in known}
        return {item.id: data.objects_of(item) for own in data.items.values() for item in own}

    def _compare(self, pool: Sequence[str]) -> list[Comparison]:
        bands = len(self.data.bands)
        sets = {
            split: image_features([look for look in self.looks if look.split == split], bands)
            for split in ("train", "val", "test")
        }
        if pool:
            items, inspector, problems = self.data.foreign(pool)
            for path, reason in problems:
                self.findings.add("unusable", path, reason, place="pool")
            looks = self._take([("pool", item) for item in items], inspector, "looking at the pool")
            for look in looks:
                for problem in look.problems:
                    self.findings.add("unreadable image", problem.file, problem.text, place="pool")
            sets["pool"] = image_features(looks, bands)
        return check_likeness(
            sets, self.findings, described="brightness, contrast, sharpness, colours, coarse layout of the pictures"
        )

    def _sum_up(
        self, statistics: Statistics | None, counts: Counts, likeness: list[Comparison], suspicion: Suspicion | None
    ) -> Audit:
        splits = ("train", "val", "test")
        bands = {}
        if statistics is not None:
            for index, band in enumerate(self.data.bands):
                figures = {name: getattr(statistics, name)[index] for name in ("mean", "std", "minimum", "maximum")}
                bands[band] = {name: float(value) for name, value in figures.items()}
        return Audit(
            name=str(self.config.name),
            root=str(self.data.root),
            task=str(self.config.task.kind),
            findings=self.findings,
            samples={split: sum(look.split == split for look in self.looks) for split in splits},
            groups={split: len({look.item.group for look in self.looks if look.split == split}) for split in splits},
            bands=bands,
            counted=self.data.counted,
            classes=counts,
            likeness=likeness,
            suspicion=suspicion,
            seconds=self.seconds,
        )


def _indices(label: Any) -> list[int]:
    return [label] if isinstance(label, int) else np.flatnonzero(label).tolist()


def _progress(sequence: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    return progress(sequence, what, total=total)


