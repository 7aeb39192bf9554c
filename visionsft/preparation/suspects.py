"""Suspects: labels that a trained run contradicts with confidence, on samples that it hasn't been trained on.

Images and pixels by confident learning (`visionsft.preparation.confident`), pixels put together to regions; objects
as in ObjectLab (Tkachenko, Thyagarajan and Mueller 2023): overlooked, without an object, of another class.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from datamodules import (
    ClassificationDataModule,
    DataModule,
    DetectionDataModule,
    Item,
    SegmentationDataModule,
)
from datamodules.batch import IGNORE
from visionsft.errors import RunError
from visionsft.evaluation.detecting import detections_of
from visionsft.preparation.confident import (
    NONE,
    Thresholds,
    confident_joint,
    estimate_joint,
    margins,
    suggest,
)
from visionsft.preparation.findings import Findings
from visionsft.preparation.looks import GRID, Look, layout_of
from visionsft.preparation.object_faults import TINY, overlaps
from visionsft.preparation.value_faults import robust_deviations
from visionsft.runs import Run
from visionsft.training.loading import LoadedRun, load_run

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]

LONGEST = 256
"""Pixels of the longer side at which maps are judged."""
SPOOL = 2 << 30
"""Bytes of the temporary file that holds the maps, at most; of more samples evenly spaced ones are judged."""
REGION = 0.002
"""Share of the image that a suspect region has at least..."""
SURE = 0.8
"""...and the mean probability that the model gives it."""
CONTRADICTED = 0.2
"""Share of its labelled pixels from which on a whole label can be suspect..."""
DEVIATIONS = 6.0
"""...if it is so many robust standard deviations above the usual, too."""
_FLOOR = 0.02
FOUND, APART, WELL = 0.5, 0.1, 0.7
"""IoU from which on a detection has found an object, below which it has nothing to do with it, and from which on it
is of the same object."""
_SEEN = 0.1
"""Score from which on a model isn't sure that nothing is there."""


@dataclass(frozen=True)
class Suspicion:
    """What was judged."""

    run: str
    samples: int
    """Held-out samples that were judged..."""
    of: int
    """...of so many held-out ones..."""
    trained: int
    """...beside so many that the run was trained on."""
    thresholds: dict[str, float | None]
    """Of each class: the mean confidence at its labels."""
    noise: dict[str, float]
    """Estimated share of each class's labels that are wrong (images, pixels); {} for objects."""


def find_suspects(
    run: Run, data: DataModule, looks: Sequence[Look], findings: Findings, *, progress: Progress
) -> Suspicion:
    """data: settled; of its items those that the run wasn't trained on are judged."""
    loaded = load_run(run)
    trained = _trained_ids(loaded)
    _check_classes(run, loaded, data)
    held = {split: [item for item in items if item.id not in trained] for split, items in data.items.items()}
    count = sum(len(items) for items in held.values())
    if not count:
        raise RunError(f"{run.path}: was trained on every sample of {data.root}; held-out ones are needed")
    total = sum(len(items) for items in data.items.values())
    data.normalisation, everything = loaded.data.normalisation, data.items
    data.items = held
    try:
        if isinstance(data, DetectionDataModule):
            return _judge_objects(loaded.on(data), data, findings, progress, total - count)
        if isinstance(data, ClassificationDataModule):
            return _judge_images(loaded, data, findings, progress, total - count)
        assert isinstance(data, SegmentationDataModule)
        return _judge_pixels(loaded, data, looks, findings, progress, total - count)
    finally:
        data.items = everything


def _trained_ids(loaded: LoadedRun) -> set[str]:
    """What the run has learned from, by its own configuration."""
    return {item.id for item in loaded.data.survey().splits["train"]}


def _check_classes(run: Run, loaded: LoadedRun, data: DataModule) -> None:
    own = tuple(run.read_json("data.json")["classes"])
    if own != data.classes.names:
        raise RunError(f"{run.path}: has the classes {', '.join(own)}, the data {', '.join(data.classes.names)}")
    if tuple(loaded.data.bands) != tuple(data.bands):
        raise RunError(f"{run.path}: sees {', '.join(loaded.data.bands)}, the data has {', '.join(data.bands)}")


def _batches(
    loaded: LoadedRun, data: DataModule, progress: Progress
) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Batches of all held-out samples with their probabilities (several labels: each of its own)."""
    several = isinstance(data, ClassificationDataModule) and data.multi_label
    for split, items in data.items.items():
        if not items:
            continue
        loader = data.evaluation_loader(split)
        for batch in progress(loader, f"judging {split}", len(loader)):
            logits = loaded.logits(batch["image"]).float()
            probabilities = torch.sigmoid(logits) if several else torch.softmax(logits, dim=1)
            yield batch, probabilities.cpu().numpy()


# ------------------------------------------------------------------------------------------------------ images


def _judge_images(
    loaded: LoadedRun, data: ClassificationDataModule, findings: Findings, progress: Progress, trained: int
) -> Suspicion:
    items: list[Item] = []
    rows, given = [], []
    for batch, probabilities in _batches(loaded, data, progress):
        items += batch["item"]
        rows.append(probabilities)
        given.append(batch["label"].numpy())
    every, labels = np.concatenate(rows), np.concatenate(given)
    names = data.classes.names
    if data.multi_label:  # each class is a question of its own
        thresholds, noise = {}, {}
        for k, name in enumerate(names):
            pair = np.stack([1 - every[:, k], every[:, k]], axis=1)
            answers = (f"without {name}", f"with {name}")
            own, share = _judge_labels(items, pair, labels[:, k].astype(np.int64), answers, findings)
            thresholds[name], noise[name] = own[1], float(share.max())
    else:
        own, share = _judge_labels(items, every, labels, names, findings)
        thresholds = dict(zip(names, own, strict=True))
        noise = {name: float(value) for name, value in zip(names, share, strict=True)}
    return Suspicion(loaded.run.name, len(items), len(items), trained, thresholds, noise)


def _judge_labels(
    items: Sequence[Item],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    names: Sequence[str],
    findings: Findings,
) -> tuple[list[float | None], NDArray[np.float64]]:
    """Thresholds, and the estimated share of wrong labels of each class."""
    thresholds = Thresholds(len(names))
    thresholds.add(probabilities, labels)
    suggested = suggest(probabilities, thresholds.values)
    worst = margins(probabilities, labels)
    suspect = np.flatnonzero((suggested != NONE) & (suggested != labels))
    for index in suspect[np.argsort(worst[suspect], kind="stable")].tolist():
        given, other = names[labels[index]], names[suggested[index]]
        sure, unsure = probabilities[index, suggested[index]], probabilities[index, labels[index]]
        found = f"labelled {given}, the model says {other} ({sure:.2f}; {given} {unsure:.2f})"
        findings.add("mislabelled image", items[index].image, found, item=items[index].id)
    joint = confident_joint(labels, suggested, len(names))
    return _plain(thresholds), _noise(joint, thresholds.counts)


def _plain(thresholds: Thresholds) -> list[float | None]:
    return [None if np.isinf(value) else round(float(value), 4) for value in thresholds.values]


def _noise(joint: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    estimate = estimate_joint(joint, counts)
    rows = estimate.sum(axis=1)
    return np.where(rows > 0, 1 - np.diag(estimate) / np.where(rows > 0, rows, 1), 0.0)


# ------------------------------------------------------------------------------------------------------ pixels


@dataclass(frozen=True)
class _Map:
    """One sample's maps at the size at which they are judged."""

    item: Item
    step: int
    """Every so many rows and columns of the sample are judged."""
    labels: NDArray[np.uint8]
    """(h, w)"""
    probabilities: NDArray[np.float32]
    """(K, h, w)"""


class _Spool:
    """Maps in a temporary file, so that memory doesn't grow with their number."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.rows: list[tuple[Item, int]] = []

    def add(self, each: _Map) -> None:
        np.savez(
            self.folder / f"{len(self.rows)}.npz",
            labels=each.labels,
            probabilities=np.rint(each.probabilities * 255).astype(np.uint8),
        )
        self.rows.append((each.item, each.step))

    def __iter__(self) -> Iterator[_Map]:
        for number, (item, step) in enumerate(self.rows):
            with np.load(self.folder / f"{number}.npz") as kept:
                yield _Map(item, step, kept["labels"], kept["probabilities"].astype(np.float32) / 255)


def _judge_pixels(
    loaded: LoadedRun,
    data: SegmentationDataModule,
    looks: Sequence[Look],
    findings: Findings,
    progress: Progress,
    trained: int,
) -> Suspicion:
    names = data.classes.names
    of = sum(len(items) for items in data.items.values())
    largest = max(1, SPOOL // ((len(names) + 1) * LONGEST**2))
    if of > largest:
        step = -(-of // largest)
        data.items = {split: items[::step] for split, items in data.items.items()}
    thresholds, joint = Thresholds(len(names)), np.zeros((len(names), len(names)), np.int64)
    with tempfile.TemporaryDirectory(prefix="visionsft-audit-") as folder:
        spool = _Spool(folder)
        for batch, probabilities in _batches(loaded, data, progress):
            for item, mask, each in zip(batch["item"], batch["mask"].numpy(), probabilities, strict=True):
                small = _reduce(item, mask, each)
                labelled = small.labels != IGNORE
                thresholds.add(small.probabilities[:, labelled].T, small.labels[labelled])
                spool.add(small)
        regions: list[tuple[float, Item, dict[str, Any]]] = []
        contradicted: list[tuple[Item, float, NDArray[np.uint8]]] = []
        for small in progress(spool, "comparing labels", len(spool.rows)):
            suggested = _suggest_map(small, thresholds.values)
            labelled = small.labels != IGNORE
            joint += confident_joint(small.labels[labelled], suggested[labelled], len(names))
            wrong = labelled & (suggested != NONE) & (suggested != small.labels)
            regions += [(score, small.item, found) for score, found in _regions(small, suggested, wrong, names)]
            share = float(wrong.sum() / max(labelled.sum(), 1))
            contradicted.append((small.item, share, layout_of(small.probabilities.argmax(axis=0), len(names))))
    suspects = _tell_labels(contradicted, looks, findings)
    for _, item, found in sorted(regions, key=lambda row: -row[0]):
        if item.id not in suspects:  # all of such a label is suspect
            findings.add("suspect region", item.label, item=item.id, **found)
    noise = dict(zip(names, _noise(joint, thresholds.counts).tolist(), strict=True))
    plain = dict(zip(names, _plain(thresholds), strict=True))
    return Suspicion(loaded.run.name, len(contradicted), of, trained, plain, noise)


def _reduce(item: Item, mask: NDArray[np.int64], probabilities: NDArray[np.float32]) -> _Map:
    step = -(-max(mask.shape) // LONGEST)
    return _Map(item, step, mask[::step, ::step].astype(np.uint8), probabilities[:, ::step, ::step])


def _suggest_map(small: _Map, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """(h, w)"""
    classes = len(small.probabilities)
    # maps are kept in 8 bits
    flat = suggest(small.probabilities.reshape(classes, -1).T, thresholds - 0.5 / 255)
    return flat.reshape(small.labels.shape)


def _regions(
    small: _Map, suggested: NDArray[np.int64], wrong: NDArray[np.bool_], names: Sequence[str]
) -> Iterator[tuple[float, dict[str, Any]]]:
    """(score, what is found) of regions with one label and one suggestion; edges, where labels are never exact, are
    opened away."""
    least = max(30, round(REGION * wrong.size))
    codes = np.where(wrong, small.labels.astype(np.int64) * len(names) + suggested, -1)
    found, counts = np.unique(codes[wrong], return_counts=True)
    for code in found[counts >= least].tolist():
        given, other = divmod(code, len(names))
        opened = cv2.morphologyEx((codes == code).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        number, parts, figures, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
        for part in range(1, number):
            area = int(figures[part, cv2.CC_STAT_AREA])
            inside = parts == part
            sure = float(small.probabilities[other][inside].mean())
            if area < least or sure < SURE:
                continue
            margin = sure - float(small.probabilities[given][inside].mean())
            x, y, width, height = (int(value) * small.step for value in figures[part, :4])
            window = small.item.window
            row, col = (0, 0) if window is None else (window.row, window.col)
            pixels = area * small.step**2
            text = f"labelled {names[given]}, the model says {names[other]} ({sure:.2f}) in {pixels:,} pixels"
            place = f"rows {row + y} to {row + y + height}, columns {col + x} to {col + x + width}"
            box = (row + y, col + x, height, width)
            yield area * margin, {"found": text, "place": place, "count": pixels, "box": box}


def _tell_labels(
    contradicted: Sequence[tuple[Item, float, NDArray[np.uint8]]], looks: Sequence[Look], findings: Findings
) -> set[str]:
    """Whole labels that are contradicted far more than usual; returns their items' ids."""
    if not contradicted:
        return set()
    shares = np.array([share for _, share, _ in contradicted])
    _, far = robust_deviations(shares[:, None], np.array([_FLOOR]))
    suspects = set()
    for index in np.argsort(-shares, kind="stable").tolist():
        item, share, layout = contradicted[index]
        if share < CONTRADICTED or far[index, 0] < DEVIATIONS:
            continue
        suspects.add(item.id)
        found = f"{share:.0%} of its labelled pixels are confidently contradicted (usual: {np.median(shares):.1%})"
        guess, other = _guess(item, layout, looks)
        findings.add("suspect label", item.label, f"{found}{guess}", item=item.id, other=other)
    return suspects


def _guess(item: Item, layout: NDArray[np.uint8], looks: Sequence[Look]) -> tuple[str, str | None]:
    """What the label may be: turned over, or another image's."""
    own = next((look.layout for look in looks if look.item.id == item.id), None)
    if own is None or item.window is not None:
        return "", None
    fit = _agreement(layout, own)
    flips = {"upside down": own[::-1], "mirrored": own[:, ::-1], "turned by 180 degrees": own[::-1, ::-1]}
    name, best = max(((name, _agreement(layout, flipped)) for name, flipped in flips.items()), key=lambda pair: pair[1])
    if best > fit + 0.15:
        return f"; {name}, it would fit ({best:.0%} of the cells, now {fit:.0%})", None
    others = [look for look in looks if look.layout is not None and look.item.id != item.id]
    if not others:
        return "", None
    fits = [_agreement(layout, look.layout) for look in others if look.layout is not None]
    nearest = int(np.argmax(fits))
    if fits[nearest] > fit + 0.1:
        label = others[nearest].item.label
        return f"; the label of {others[nearest].item.id} fits better ({fits[nearest]:.0%}, now {fit:.0%})", label
    return "", None


def _agreement(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    known = other != IGNORE
    return float((one == other)[known].mean()) if known.sum() > GRID else 0.0


# ----------------------------------------------------------------------------------------------------- objects


def _judge_objects(
    loaded: LoadedRun, data: DetectionDataModule, findings: Findings, progress: Progress, trained: int
) -> Suspicion:
    items = [item for group in data.items.values() for item in group]
    names = data.classes.names
    answered = []
    for item, (found, _) in progress(zip(items, detections_of(loaded, items), strict=True), "judging", len(items)):
        boxes, scores, labels = (each.numpy() for each in (found.boxes, found.scores, found.labels))
        answered.append((item, boxes, scores, labels.astype(np.int64), data.objects_of(item)))
    thresholds = Thresholds(len(names))
    for _, boxes, scores, labels, objects in answered:
        own = objects.take(~objects.ignored)
        same = overlaps(boxes, own.boxes) * (labels[:, None] == own.labels[None])
        for column in range(len(own)):
            if len(boxes) and same[:, column].max() >= FOUND:
                best = np.zeros((1, len(names)))
                best[0, own.labels[column]] = scores[same[:, column] >= FOUND].max()
                thresholds.add(best, own.labels[column : column + 1])
    rows = [row for each in answered for row in _suspect_objects(*each, thresholds.values, names)]
    for _, check, item, found, box in sorted(rows, key=lambda row: -row[0]):
        x1, y1, x2, y2 = box.tolist()
        place = f"box ({x1:.0f}, {y1:.0f}, {x2:.0f}, {y2:.0f}) as the model sees it"
        findings.add(
            check, item.label or item.image, found, place=place, item=item.id,
            box=(round(y1), round(x1), round(y2 - y1), round(x2 - x1)),
        )  # fmt: skip
    plain = dict(zip(names, _plain(thresholds), strict=True))
    return Suspicion(loaded.run.name, len(items), len(items), trained, plain, {})


def _suspect_objects(
    item: Item,
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    objects: Any,
    thresholds: NDArray[np.float64],
    names: Sequence[str],
) -> Iterator[tuple[float, str, Item, str, NDArray[np.float32]]]:
    """(score, check, item, what is found, box)"""
    shared = overlaps(boxes, objects.boxes)
    sure = scores >= np.maximum(thresholds[labels], FOUND) if len(boxes) else np.zeros(0, bool)
    for index in np.flatnonzero(sure).tolist():
        if not len(objects) or ((shared[index] < APART).all() and not _inside(boxes[index], objects)):
            found = f"{names[labels[index]]} ({scores[index]:.2f}) without a label"
            yield float(scores[index]), "missing box", item, found, boxes[index]
    for column in np.flatnonzero(~objects.ignored).tolist():
        box, label = objects.boxes[column], int(objects.labels[column])
        near = shared[:, column] if len(boxes) else np.zeros(0)
        if not (near[scores >= _SEEN] >= APART).any():
            side = float(np.sqrt((box[2] - box[0]) * (box[3] - box[1])))
            if side >= 2 * TINY:
                yield side / 1e4, "false box", item, f"{names[label]}, and the model sees nothing there", box
            continue
        own = (labels == label) & (near >= FOUND) & (scores >= _SEEN)
        other = (labels != label) & (near >= WELL) & sure
        if other.any() and not own.any():
            best = int(np.flatnonzero(other)[scores[other].argmax()])
            found = f"labelled {names[label]}, the model says {names[labels[best]]} ({scores[best]:.2f})"
            yield 1 + float(scores[best]), "misclassified box", item, found, box


def _inside(box: NDArray[np.float32], objects: Any) -> bool:
    """Whether half of a box lies in an ignored region, where nothing is said about objects."""
    ignored = objects.boxes[objects.ignored]
    left, right = np.maximum(ignored[:, :2], box[:2]), np.minimum(ignored[:, 2:], box[2:])
    shared = np.clip(right - left, 0, None).prod(axis=1)
    return bool((shared > 0.5 * (box[2] - box[0]) * (box[3] - box[1])).any())
