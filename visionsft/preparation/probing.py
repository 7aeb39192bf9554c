"""Probing: what a frozen backbone's features are worth on a user's own labels, task by task.

Training samples are learned from as validation sees them, not augmented, and validation judges; where there is none, a
fifth of the training groups is held out. The test split is never read. All candidates see the same samples.

- Classification: a linear probe and neighbours on the mean of the backbone's last map, which is what heads read.
- Segmentation: a linear probe on single pixels, whose features are the backbone's maps, interpolated and joined
  (hypercolumns, Hariharan et al. 2015). It learns a few pixels of each class of each image, corrects its bias for the
  classes' true shares (King & Zeng 2001), and predicts every pixel of validation.
- Detection: the same, of maps that are drawn from the boxes. A proxy: it tells objects' middles from the background
  and from each other, and says nothing of how well boxes are placed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from backbones import Backbone, BackboneError
from datamodules import ClassificationDataModule, DataError, DataModule, DetectionDataModule
from datamodules.batch import IGNORE, Item
from datamodules.objects import DetectionBatch
from visionsft.evaluation.intervals import (
    FEW_GROUPS,
    RESAMPLES,
    SEED,
    Ends,
    Unit,
    draw_weights,
    effective_groups,
    group_sums,
    interval,
    pair,
    resample,
    too_few,
)
from visionsft.evaluation.metrics import (
    class_average_precisions,
    confusion_matrix,
    marginal_counts,
    predict_classes,
    total_scores,
)
from visionsft.evaluation.metrics.classification import mean_of_defined
from visionsft.preparation.transferability import (
    LinearProbe,
    fit_probe,
    fold_of_groups,
    log_evidence,
    vote_of_neighbours,
)

PIXELS = 8000
"""Of all training images, that the probe learns."""
HELD_OUT = 5
"""One of so many parts of the training groups judges where there is no validation split."""
CENTRE = 0.5
"""Share of a box's sides, about its middle, that is the object; the rest of the box is left out."""
_DRAWN = 4_000_000
"""Weights of images that are held at once."""

DEFINITIONS = {
    "accuracy": "share of the judged images whose class the linear probe predicts right",
    "mean_average_precision": "mean over the classes of the average precision of the linear probe",
    "mean_iou": "of the linear probe on every labelled pixel: one confusion matrix, unweighted mean over the classes "
    "in truth or prediction",
    "cell_mean_iou": "as mean_iou, of maps drawn from the boxes (background, and a class where the middle half of a "
    "box is; the rest of boxes is left out): a proxy for detection, which says nothing of how boxes are placed",
}
"""Of the scores by which candidates are ranked."""

Compute = Callable[[Tensor], list[Tensor]]
"""image (B, C, H, W) float32, normalised -> maps (B, C', h, w) float32, finest first."""


@dataclass(frozen=True)
class Samples:
    """Which samples a probe learns from, and which judge it."""

    data: DataModule
    learned: tuple[int, ...]
    """Indices in the evaluation loader of 'train'."""
    judged: tuple[int, ...]
    """Indices in that of `judge`."""
    judge: str
    """'val', or 'train' where there is no validation split."""
    available: tuple[int, int]
    """Samples of which the two were drawn."""

    @property
    def judged_items(self) -> list[Item]:
        items = _items(self.data, self.judge)
        return [items[index] for index in self.judged]

    def learning(self) -> DataLoader[Any]:
        """Batches to learn from, with the normalisation that the data has now."""
        return _loader(self.data, "train", self.learned)

    def judging(self) -> DataLoader[Any]:
        """Batches that judge."""
        return _loader(self.data, self.judge, self.judged)

    def describe(self) -> str:
        """How many samples there are, of how many."""
        counts = [
            f"{len(used):,} of {there:,}" if len(used) < there else f"all {there:,}"
            for used, there in zip((self.learned, self.judged), self.available, strict=True)
        ]
        judge = "validation samples" if self.judge == "val" else "held-out training samples (there is no val split)"
        return f"learned from {counts[0]} training samples, judged on {counts[1]} {judge}"


def choose_samples(data: DataModule, *, count: int | None, seed: int) -> Samples:
    """At most `count` samples to learn from and as many that judge, drawn at random; None: all."""
    rng = np.random.default_rng(seed)
    items = _items(data, "train")
    if data.items["val"]:
        learned, judged, judge = np.arange(len(items)), np.arange(len(_items(data, "val"))), "val"
    else:
        fold = fold_of_groups([item.group for item in items], HELD_OUT, seed=seed)
        learned, judged, judge = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0), "train"
        if not len(learned):
            raise DataError(
                f"{data.root}: there is no val split, and the {len(items)} training samples are of one group "
                f"({items[0].group}), of which nothing can be held out: give data.split a val part"
            )
    drawn = [tuple(sorted(rng.permutation(each)[:count].tolist())) for each in (learned, judged)]
    return Samples(data, drawn[0], drawn[1], judge, (len(learned), len(judged)))


def _items(data: DataModule, split: str) -> list[Item]:
    dataset = cast(Any, data.evaluation_loader(split).dataset)
    found: list[Item] = getattr(dataset, "images", dataset).items
    return found


def _loader(data: DataModule, split: str, indices: Sequence[int]) -> DataLoader[Any]:
    whole = data.evaluation_loader(split)
    return DataLoader(
        Subset(whole.dataset, indices), batch_size=whole.batch_size, num_workers=whole.num_workers,
        collate_fn=whole.collate_fn, worker_init_fn=whole.worker_init_fn,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ judgement


@dataclass(frozen=True)
class Judgement:
    """A score on the judging samples, with what it would be on others."""

    metric: str
    """A key of `DEFINITIONS`."""
    value: float
    drawn: NDArray[np.float64]
    """(R,) of bootstrap draws, the same draws for every candidate: their differences are paired."""
    unit: Unit
    groups: int
    effective: float
    """Groups, see `effective_groups`."""

    @property
    def note(self) -> str | None:
        """Why there is no interval, or what speaks against it."""
        counted = "images" if self.metric in ("accuracy", "mean_average_precision") else "pixels"
        return too_few(self.groups, self.effective, self.unit, counted=counted)

    @property
    def ends(self) -> Ends | None:
        """The score's interval."""
        return None if self.note else pair(*interval(self.drawn, self.value, groups=self.effective))

    def behind(self, other: Judgement) -> Ends | None:
        """The interval of the other's score minus this one's, on the same samples."""
        difference = other.value - self.value
        drawn = other.drawn - self.drawn
        return None if self.note else pair(*interval(drawn, difference, groups=self.effective, method="t"))


@dataclass(frozen=True)
class Probing:
    """What probing has found of one backbone."""

    judgement: Judgement
    neighbours: float | None
    """The same metric of the vote of the nearest neighbours; None for pixels."""
    evidence: float
    """LogME, see `visionsft.preparation.transferability`."""
    strength: float
    """Of the linear probe's penalty."""
    features: int
    """Numbers of an image or pixel."""


def probe(backbone: Backbone, samples: Samples, compute: Compute, *, seed: int) -> Probing:
    """Probe a backbone on its task; `compute` takes images through it."""
    data = samples.data
    checked = partial(_compute_finite, compute, backbone.name)
    if isinstance(data, ClassificationDataModule):
        return _probe_images(samples, checked, data, seed)
    if isinstance(data, DetectionDataModule):
        return _probe_pixels(
            samples, checked, backbone.strides, 1 + len(data.classes), draw_boxes, "cell_mean_iou", seed
        )
    return _probe_pixels(
        samples, checked, backbone.strides, len(data.classes), _mask_of, "mean_iou", seed
    )


def _compute_finite(compute: Compute, name: str, image: Tensor) -> list[Tensor]:
    try:
        maps = compute(image)
    except AssertionError as error:  # timm's models refuse sizes so
        height, width = image.shape[2:]
        raise BackboneError(f"{name}: refuses images of {height}x{width}: {error}") from error
    if not all(bool(torch.isfinite(each.sum())) for each in maps):
        raise BackboneError(f"{name}: its features are not finite numbers")
    return maps


def units(items: Sequence[Item]) -> tuple[Unit, list[str]]:
    """What is resampled: groups, or single samples where these are too few; and its name for each sample."""
    groups = [item.group for item in items]
    return ("group", groups) if len(set(groups)) >= FEW_GROUPS else ("image", [item.id for item in items])


# --------------------------------------------------------------------------------------------------- images


def _probe_images(
    samples: Samples, compute: Compute, data: ClassificationDataModule, seed: int
) -> Probing:
    several, classes = data.multi_label, len(data.classes)
    features, targets, items = _pool(samples.learning(), compute, classes, several)
    asked, truth, judged = _pool(samples.judging(), compute, classes, several)
    fitted = fit_probe(features, targets, [item.group for item in items], several=several, seed=seed)
    judge = partial(_judge_labels if several else _judge_classes, truth=truth, items=judged)
    return Probing(
        judge(fitted.probabilities(asked)),
        judge(vote_of_neighbours(features, targets, asked)).value,
        log_evidence(features, targets),
        fitted.strength,
        features.shape[1],
    )


def _pool(
    loader: Iterable[Any], compute: Compute, classes: int, several: bool
) -> tuple[NDArray[np.float32], NDArray[np.float64], list[Item]]:
    """Features (N, D), targets (N, K) and items of all samples."""
    features, targets, items = [], [], []
    for batch in loader:
        features.append(compute(batch["image"])[-1].mean((2, 3)).cpu().numpy())
        label = batch["label"]
        targets.append((label if several else F.one_hot(label, classes)).numpy().astype(np.float64))
        items += batch["item"]
    return np.concatenate(features), np.concatenate(targets), items


def _judge_classes(
    probabilities: NDArray[np.float64], truth: NDArray[np.float64], items: Sequence[Item]
) -> Judgement:
    """Accuracy of (N, K) probabilities; truth: (N, K) one-hot."""
    unit, names = units(items)
    hits = probabilities.argmax(axis=1) == truth.argmax(axis=1)
    _, sums = group_sums(np.stack([hits, np.ones_like(hits)], axis=1).astype(np.int64), names)
    right, images = resample(sums).T
    effective = float(effective_groups(sums[:, 1]))
    return Judgement("accuracy", float(hits.mean()), right / images, unit, len(sums), effective)


def _judge_labels(
    probabilities: NDArray[np.float64], truth: NDArray[np.float64], items: Sequence[Item]
) -> Judgement:
    """Mean average precision of (N, K) probabilities; truth: (N, K) of 0 and 1."""
    unit, names = units(items)
    owners = np.unique(np.asarray(names, np.str_), return_inverse=True)[1]
    sizes, found = np.bincount(owners), truth > 0
    draws = draw_weights(np.random.default_rng(SEED), RESAMPLES, len(sizes))
    step = max(1, _DRAWN // len(owners))
    drawn = [
        class_average_precisions(probabilities, found, draws[start : start + step, owners])
        for start in range(0, len(draws), step)
    ]
    value = mean_of_defined(class_average_precisions(probabilities, found))
    spread = np.asarray(mean_of_defined(np.concatenate(drawn)))
    effective = float(effective_groups(sizes))
    return Judgement("mean_average_precision", value, spread, unit, len(sizes), effective)


# --------------------------------------------------------------------------------------------------- pixels

Mask = Callable[[Any], Tensor]
"""A batch -> (B, H, W) int64 class indices, 255 where there is none."""


def _mask_of(batch: Any) -> Tensor:
    mask: Tensor = batch["mask"]
    return mask


def draw_boxes(batch: DetectionBatch) -> Tensor:
    """(B, H, W) int64: 0 background, 1 + class in the middle of boxes, 255 in the rest of them, in ignored regions
    and where nothing was measured; smaller boxes lie over larger ones."""
    mask = torch.where(batch["valid"], 0, IGNORE)
    for canvas, target in zip(mask, batch["target"], strict=True):
        boxes, labels = target["boxes"], target["labels"]
        for box in target["ignored"].tolist():
            _fill(canvas, box, 1.0, IGNORE)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        for index in areas.argsort(descending=True).tolist():
            _fill(canvas, boxes[index].tolist(), 1.0, IGNORE)
            _fill(canvas, boxes[index].tolist(), CENTRE, 1 + int(labels[index]))
    return mask.where(batch["valid"], torch.tensor(IGNORE))


def _fill(canvas: Tensor, box: Sequence[float], share: float, value: int) -> None:
    """Fill the middle `share` of a box; at least one pixel of it."""
    spans = []
    for low, high in ((box[1], box[3]), (box[0], box[2])):
        half, middle = (high - low) * share / 2, (low + high) / 2
        first = max(round(middle - half), 0)
        spans.append(slice(first, max(round(middle + half), first + 1)))
    canvas[spans[0], spans[1]] = value


def _probe_pixels(
    samples: Samples,
    compute: Compute,
    strides: Sequence[int],
    classes: int,
    mask_of: Mask,
    metric: str,
    seed: int,
) -> Probing:
    each = max(1, round(PIXELS / (len(samples.learned) * classes)))
    features, labels, owners, shares = [], [], [], np.zeros(classes)
    rng = np.random.default_rng(seed)
    for batch in samples.learning():
        mask = mask_of(batch).numpy()
        image, row, col = _draw_pixels(mask, each, rng)
        features.append(features_at(compute(batch["image"]), strides, image, row, col).cpu().numpy())
        labels.append(mask[image, row, col])
        owners += [batch["item"][index].id for index in image]
        shares += np.bincount(mask[mask != IGNORE], minlength=classes)
    known, values = np.concatenate(features), np.concatenate(labels)
    if not len(known):
        raise DataError(f"{samples.data.root}: no pixel of the training samples is labelled")
    kept = rng.permutation(len(known))[:PIXELS]
    known, targets = known[kept], np.eye(classes)[values[kept]]
    fitted = fit_probe(known, targets, [owners[index] for index in kept], seed=seed)
    fitted = correct_bias(fitted, drawn=targets.sum(axis=0), true=shares)
    confusions, items = _predict_pixels(fitted, samples.judging(), compute, strides, classes, mask_of)
    judgement = _judge_pixels(confusions, items, metric)
    evidence = log_evidence(known, targets)
    return Probing(judgement, None, evidence, fitted.strength, known.shape[1])


def _draw_pixels(
    mask: NDArray[np.int64], each: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Image, row and column of up to `each` pixels of every class of every image of a mask (B, H, W)."""
    places: list[NDArray[np.intp]] = [np.empty((0, 3), np.intp)]
    for index, labels in enumerate(mask):
        for value in np.unique(labels[labels != IGNORE]).tolist():
            own = rng.permutation(np.flatnonzero(labels == value))[:each]
            row, col = np.divmod(own, labels.shape[1])
            places.append(np.stack([np.full_like(row, index), row, col], axis=1))
    image, row, col = np.concatenate(places).T
    return image, row, col


def features_at(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    image: NDArray[np.intp],
    row: NDArray[np.intp],
    col: NDArray[np.intp],
) -> Tensor:
    """The maps (B, C_i, h_i, w_i) at N pixels, bilinear between the middles of their cells: (N, sum of C_i)."""
    columns = []
    for each, stride in zip(maps, strides, strict=True):
        height, width = each.shape[-2:]
        x, y = ((at + 0.5) / (size * stride) * 2 - 1 for at, size in ((col, width), (row, height)))
        grid = torch.from_numpy(np.stack([x, y], axis=1)).to(each)[:, None, None]
        found = torch.empty(len(image), each.shape[1], device=each.device)
        for index in np.unique(image).tolist():
            own = torch.from_numpy(np.flatnonzero(image == index))
            one, places = each[index : index + 1], grid[own].transpose(0, 1)
            sampled = F.grid_sample(one, places, padding_mode="border", align_corners=False)
            found[own] = sampled[0, :, :, 0].T
        columns.append(found)
    return torch.cat(columns, dim=1)


def correct_bias(probe: LinearProbe, *, drawn: NDArray[np.float64], true: NDArray[np.float64]) -> LinearProbe:
    """The probe for data whose classes have the shares of `true` (K,) and not those of the `drawn` ones (K,)."""
    known = (drawn > 0) & (true > 0)
    shift = np.zeros(len(drawn))
    shift[known] = np.log(true[known] / true.sum()) - np.log(drawn[known] / drawn.sum())
    return LinearProbe(probe.weight, probe.bias + shift, probe.several, probe.strength)


def _predict_pixels(
    probe: LinearProbe,
    loader: Iterable[Any],
    compute: Compute,
    strides: Sequence[int],
    classes: int,
    mask_of: Mask,
) -> tuple[NDArray[np.int64], list[Item]]:
    """Confusion matrices (N, K, K) of all samples, and their items."""
    confusions, items = [], []
    for batch in loader:
        mask = mask_of(batch)
        logits = dense_logits(probe, compute(batch["image"]), strides, (mask.shape[1], mask.shape[2]))
        found = predict_classes(logits).cpu()
        confusions += [confusion_matrix(*both, classes).numpy() for both in zip(found, mask, strict=True)]
        items += batch["item"]
    return np.stack(confusions), items


def dense_logits(
    probe: LinearProbe, maps: Sequence[Tensor], strides: Sequence[int], size: tuple[int, int]
) -> Tensor:
    """The probe on every pixel: (B, K, *size).

    A linear map of interpolated maps is the interpolation of each map's own part of it, which has K channels only.
    """
    height, width = size
    weight = torch.from_numpy(probe.weight.astype(np.float32)).to(maps[0].device)
    bias = torch.from_numpy(probe.bias.astype(np.float32)).to(maps[0].device)
    parts = weight.split([each.shape[1] for each in maps])
    total = bias[None, :, None, None].expand(len(maps[0]), -1, height, width).clone()
    for each, part, stride in zip(maps, parts, strides, strict=True):
        logits = torch.einsum("bchw,ck->bkhw", each, part)
        covered = (each.shape[2] * stride, each.shape[3] * stride)
        total += F.interpolate(logits, covered, mode="bilinear")[..., :height, :width]
    return total


def _judge_pixels(confusions: NDArray[np.int64], items: Sequence[Item], metric: str) -> Judgement:
    unit, names = units(items)
    _, sums = group_sums(marginal_counts(confusions), names)
    labelled = sums[:, 1].sum(axis=-1)
    if not labelled.any():
        raise DataError("no pixel of the samples that judge is labelled")
    value = float(total_scores(sums.sum(axis=0))["mean_iou"])
    drawn = np.asarray(total_scores(resample(sums))["mean_iou"])
    count = int((labelled > 0).sum())
    return Judgement(metric, value, drawn, unit, count, float(effective_groups(labelled)))
