"""Rotated FCOS: a one-stage, anchor-free head for turned boxes.

Every position of a level predicts its classes, one turned box and its centre-ness, as FCOS (Tian et al. 2020) does
for upright boxes. FCOS's four distances to the sides jump where a turned box's angle comes round to its start, since
left becomes right; so what is predicted is the way to the middle along x and y, the sides, the longer one first, and
the cosine and sine of twice the angle, all of which change steadily as an oblong object turns.

Boxes are learnt as Gaussians (ProbIoU: Murrugarra-Llerena et al. 2024, arXiv:2106.06072). A square's Gaussian is round
and says nothing of its angle: the angle's own term, of period 180 degrees for long boxes and 90 for squares, does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, remove_small_boxes, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from datamodules.objects import Target
from visionsft.errors import ConfigError
from visionsft.models.detections import Detections
from visionsft.models.heads.detection import LevelPyramid, Size
from visionsft.models.rotated import canonicalise, enclose, rotated_nms

PRIOR = 0.01
"""Class probability of an untrained head (Lin et al. 2017)."""
TYPICAL_SIDE = 4.0
"""Strides; the sides of the boxes of an untrained head."""
LARGEST = 8.0
"""Strides; objects whose mean side is above this belong to a coarser level."""
NEAREST = 0.71
"""Strides; at most as far along each of its sides is the position nearest to a middle, however the box is turned."""
SMALLEST = 1e-2
"""Pixels of a side below which nothing of a box is left in the image; in losses, strides of an object's side."""


@dataclass(frozen=True)
class Grid:
    """The positions of all levels; L of them."""

    points: Tensor
    """(L, 2) float32 x, y in pixels."""
    strides: Tensor
    """(L,) float32 of each one's level, in pixels."""
    shapes: tuple[Size, ...]
    """Rows and columns of each level; its positions follow row by row."""

    @property
    def counts(self) -> list[int]:
        """Positions of each level."""
        return [rows * columns for rows, columns in self.shapes]

    def within(self, size: Size) -> Tensor:
        """(L,) bool: in the image, not in its padding."""
        return (self.points[:, 0] < size[1]) & (self.points[:, 1] < size[0])


@dataclass(frozen=True)
class Assigned:
    """What the positions of a batch should predict."""

    labels: Tensor
    """(B, L) int64: class, -1 for background, -2 for what isn't counted."""
    boxes: Tensor
    """(P, 5) the object of each position with a class."""
    centreness: Tensor
    """(P,) in 0..1."""


class RotatedFcosHead(nn.Module):
    """A pyramid and two branches of convolutions, shared by its levels: classes, and boxes with centre-ness."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        width: int = 256,
        finest_stride: int = 8,
        convs: int = 4,
        centre_radius: float = 1.5,
        score_threshold: float = 0.05,
        nms: float = 0.2,
        detections_per_image: int = 300,
        candidates: int = 1000,
    ) -> None:
        """`channels` and `strides` describe the feature maps, finest first.

        width: channels of all levels, a multiple of 32. finest_stride: of the finest level, in pixels; 4 for
        objects below some 16 pixels. convs: before the predictions. centre_radius: in strides, how far from an
        object's middle along its sides positions are trained to find it. score_threshold: the square root of class
        probability times centre-ness. nms: IoU of turned boxes above which the less certain of two of one class
        is dropped. candidates: boxes a level before that.
        """
        super().__init__()
        if width % 32:
            raise ConfigError(
                f"head 'rotated_fcos': width {width} is no multiple of 32, the groups of its GroupNorm"
            )
        self.pyramid = LevelPyramid(
            channels, strides, width=width, finest_stride=finest_stride, extra=LastLevelP6P7(width, width)
        )
        self.class_tower, self.box_tower = _tower(width, convs), _tower(width, convs)
        self.classes = _last(width, num_classes, [math.log(PRIOR / (1 - PRIOR))] * num_classes)
        self.boxes = _last(width, 6, [0, 0, math.log(TYPICAL_SIDE), 0, 1, 0])
        self.centreness = _last(width, 1, [0])
        self.centre_radius = centre_radius
        self.score_threshold = score_threshold
        self.nms = nms
        self.detections_per_image = detections_per_image
        self.candidates = candidates

    def predict(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Grid]:
        """Maps (B, channels[i], h_i, w_i) -> class logits (B, L, K), boxes (B, L, 6), centre-ness logits (B, L).

        All float32. Boxes: the way to the middle, x and y, and the sides w >= h, in strides; cosine and sine of
        twice the angle, times any length.
        """
        levels = self.pyramid(maps)
        by_class = [self.class_tower(level) for level in levels]
        by_box = [self.box_tower(level) for level in levels]
        logits, raw, centreness = (
            torch.cat([layer(each).float().flatten(2).transpose(1, 2) for each in features], 1)
            for layer, features in ((self.classes, by_class), (self.boxes, by_box), (self.centreness, by_box))
        )
        return logits, _activate(raw), centreness[..., 0], build_grid(levels, self.pyramid.strides)

    def losses(
        self, maps: list[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Maps (B, channels[i], h_i, w_i), finest first -> scalars float32; the loss is their sum."""
        if any("turned" not in target for target in targets):
            raise ConfigError(
                "head 'rotated_fcos': the data gives upright boxes only; set turned of the data"
            )
        logits, boxes, centreness, grid = self.predict(maps)
        aim = assign(grid, sizes, targets, radius=self.centre_radius)
        counted, positive = aim.labels > -2, aim.labels >= 0
        with torch.autocast(logits.device.type, enabled=False):
            return {
                "classification": _class_loss(logits[counted], aim.labels[counted], int(positive.sum())),
                **_box_losses(boxes[positive], _relative(aim.boxes, grid, positive), aim.centreness),
                "centreness": F.binary_cross_entropy_with_logits(
                    centreness[positive], aim.centreness, reduction="sum"
                )
                / positive.sum().clamp_min(1),
            }

    def detect(self, maps: list[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Maps (B, channels[i], h_i, w_i), finest first -> the detections of each image; `turned` isn't cut at its
        edges, `boxes` is."""
        logits, boxes, centreness, grid = self.predict(maps)
        scores = (logits.sigmoid() * centreness.sigmoid()[..., None]).sqrt()
        return [
            self._detect(own * grid.within(size)[:, None], box, grid, size)
            for own, box, size in zip(scores, boxes, sizes, strict=True)
        ]

    def _detect(self, scores: Tensor, boxes: Tensor, grid: Grid, size: Size) -> Detections:
        """scores: (L, K), boxes: (L, 6) of one image."""
        positions, labels = self._candidates(scores, grid.counts)
        turned = _decode(boxes[positions], grid, positions)
        found = Detections(
            boxes=clip_boxes_to_image(enclose(turned), size),
            scores=scores[positions, labels],
            labels=labels,
            turned=turned,
        )
        found = found.take(remove_small_boxes(found.boxes, SMALLEST))
        assert found.turned is not None
        kept = rotated_nms(found.turned, found.scores, found.labels, self.nms)
        return found.take(kept[: self.detections_per_image])

    def _candidates(self, scores: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        """(L, K) -> positions and classes (C,), (C,) of each level's best scores that reach the threshold."""
        chosen, start, classes = [], 0, scores.shape[1]
        for level in scores.split(counts):
            best, index = level.flatten().topk(min(self.candidates, level.numel()))
            chosen.append(index[best > self.score_threshold] + start * classes)
            start += len(level)
        index = torch.cat(chosen)
        return index // classes, index % classes


def _tower(width: int, convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convs):
        conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=0.01)
        layers += [conv, nn.GroupNorm(32, width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _last(width: int, channels: int, start: Sequence[float]) -> nn.Conv2d:
    """A 3x3 convolution whose outputs are near `start` at first."""
    conv = nn.Conv2d(width, channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    conv.bias.data = torch.tensor(start, dtype=torch.float32)
    return conv


def _activate(raw: Tensor) -> Tensor:
    """(..., 6) outputs -> (..., 6), see `RotatedFcosHead.predict`; w >= h."""
    way, mean, ratio, turn = raw.split((2, 1, 1, 2), -1)
    mean, ratio = mean.clamp(-6, 6), F.softplus(ratio).clamp_max(6)  # logarithms
    return torch.cat([way, (mean + ratio / 2).exp(), (mean - ratio / 2).exp(), turn], -1)


def build_grid(levels: Sequence[Tensor], strides: Sequence[float]) -> Grid:
    """levels: (B, C, h_i, w_i) each."""
    points = []
    for level, stride in zip(levels, strides, strict=True):
        rows, columns = (
            (torch.arange(length, dtype=torch.float32, device=level.device) + 0.5) * stride
            for length in level.shape[-2:]
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        points.append(torch.stack([x, y], -1).view(-1, 2))
    each = torch.tensor(strides, dtype=torch.float32).repeat_interleave(torch.tensor([*map(len, points)]))
    shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
    return Grid(torch.cat(points), each.to(points[0].device), shapes)


def _decode(boxes: Tensor, grid: Grid, positions: Tensor) -> Tensor:
    """(C, 6) at positions (C,) -> (C, 5) turned boxes in pixels."""
    stride = grid.strides[positions, None]
    middle = grid.points[positions] + boxes[:, :2] * stride
    angle = torch.atan2(boxes[:, 5:], boxes[:, 4:5]) / 2
    return canonicalise(torch.cat([middle, boxes[:, 2:4] * stride, angle], 1))


def _relative(turned: Tensor, grid: Grid, positive: Tensor) -> Tensor:
    """(P, 5) turned boxes in pixels of the positions where (B, L) is True -> (P, 6) as predicted."""
    position = positive.nonzero()[:, 1]
    stride = grid.strides[position, None]
    way = (turned[:, :2] - grid.points[position]) / stride
    sides = (turned[:, 2:4] / stride).clamp_min(SMALLEST)
    twice = 2 * turned[:, 4:]
    return torch.cat([way, sides, twice.cos(), twice.sin()], 1)


# -------------------------------------------------------------------------------------------------- assignment


@torch.no_grad()
def assign(grid: Grid, sizes: Sequence[Size], targets: Sequence[Target], *, radius: float) -> Assigned:
    """What each position of each image should find.

    An object belongs to the finest level where its mean side is at most LARGEST strides. There it is found by
    the positions in it, within `radius` strides of its middle along both sides, and by the nearest one however
    small it is; by all in it if its middle lies beside the image. Of several objects a position finds the smallest.
    Positions in the padding, and those in ignored regions that find nothing, aren't counted.
    """
    labels, boxes, centreness = [], [], []
    for size, target in zip(sizes, targets, strict=True):
        turned = canonicalise(target["turned"])
        owner, quality = _owners(grid, size, turned, radius)
        found = owner >= 0
        own = torch.full_like(owner, -1)
        own[found] = target["labels"][owner[found]]
        own[~found & _inside_any(grid.points, target["ignored"])] = -2
        own[~grid.within(size)] = -2
        found &= own >= 0
        labels.append(own)
        boxes.append(turned[owner[found]])
        centreness.append(quality[found])
    return Assigned(torch.stack(labels), torch.cat(boxes), torch.cat(centreness))


def _owners(grid: Grid, size: Size, turned: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The object of each position, -1 for none, and its centre-ness there: (L,), (L,)."""
    starts = torch.tensor([0, *grid.counts[:-1]], device=turned.device).cumsum(0)
    steps = grid.strides[starts]
    level = ((turned[:, 2] * turned[:, 3]).sqrt()[:, None] > LARGEST * steps[:-1]).sum(1)
    stride = steps[level][:, None]
    half = torch.maximum(turned[:, 2:4] / 2, NEAREST * stride)
    x, y = turned[:, :1], turned[:, 1:2]
    seen = (x >= 0) & (y >= 0) & (x < size[1]) & (y < size[0])
    reach = torch.where(seen, torch.minimum(half, max(radius, NEAREST) * stride), half)
    around = enclose(torch.cat([turned[:, :2], 2 * reach, turned[:, 4:]], 1))
    shapes = torch.tensor(grid.shapes, device=turned.device)[level]
    cell, object = _cells(around / stride, shapes)
    position = starts[level][object] + cell
    way = _way(grid.points[position], turned[object])
    inside = (way < reach[object]).all(1)
    position, object, way = position[inside], object[inside], way[inside]
    chosen = _smallest(position, object, turned, len(grid.points))
    owner = torch.full((len(grid.points),), -1, device=turned.device)
    quality = torch.zeros(len(grid.points), device=turned.device)
    own = half[object[chosen]]
    owner[position[chosen]] = object[chosen]
    quality[position[chosen]] = ((own - way[chosen]) / (own + way[chosen])).prod(1).sqrt()
    return owner, quality


def _cells(around: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor]:
    """Which cells of a level have their middle in which boxes: the cell, row by row, and the box: (P,), (P,).

    around: (N, 4) in strides; shapes: (N, 2) rows and columns of each one's level.
    """
    low = (around[:, :2] - 0.5).ceil().long().clamp_min(0)
    high = torch.minimum((around[:, 2:] - 0.5).floor().long(), shapes.flip(1) - 1)
    columns, rows = (high - low + 1).clamp_min(0).unbind(1)
    count = columns * rows
    box = torch.arange(len(around), device=around.device).repeat_interleave(count)
    within = torch.arange(len(box), device=around.device) - (count.cumsum(0) - count)[box]
    row, column = low[box, 1] + within // columns[box], low[box, 0] + within % columns[box]
    return row * shapes[box, 1] + column, box


def _way(points: Tensor, turned: Tensor) -> Tensor:
    """(P, 2), (P, 5) -> (P, 2): how far along w and along h each point is from the middle of its box."""
    x, y = (points - turned[:, :2]).unbind(1)
    cos, sin = turned[:, 4].cos(), turned[:, 4].sin()
    return torch.stack([x * cos + y * sin, y * cos - x * sin], 1).abs()


def _smallest(position: Tensor, object: Tensor, turned: Tensor, positions: int) -> Tensor:
    """Of pairs (P,), (P,): the indices of those with the smallest object of their position."""
    rank = (turned[:, 2] * turned[:, 3]).argsort(stable=True).argsort()[object]
    least = torch.full((positions,), len(turned), device=turned.device)
    least = least.scatter_reduce(0, position, rank, "amin")
    return (least[position] == rank).nonzero()[:, 0]


def _inside_any(points: Tensor, regions: Tensor) -> Tensor:
    """(L, 2), (M, 4) -> (L,) bool"""
    return ((points[:, None] > regions[:, :2]) & (points[:, None] < regions[:, 2:])).all(-1).any(1)


# ------------------------------------------------------------------------------------------------------ losses


def _class_loss(logits: Tensor, labels: Tensor, positives: int) -> Tensor:
    """(C, K), (C,) int64, -1 for background -> scalar: focal loss by the number of positive positions."""
    truth = (labels[:, None] == torch.arange(logits.shape[1], device=logits.device)).float()
    loss: Tensor = sigmoid_focal_loss(logits, truth, reduction="sum")
    return loss / max(positives, 1)


def _box_losses(found: Tensor, truth: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """(P, 6), (P, 6), (P,) -> scalars: means weighted by centre-ness, as in FCOS; 0 without positions."""
    total = weights.sum().clamp_min(1e-6)
    return {
        "boxes": (gaussian_distance(found, truth) * weights).sum() / total,
        "angles": (angle_difference(found, truth) * weights).sum() / total,
    }


def gaussian_distance(found: Tensor, truth: Tensor) -> Tensor:
    """(P, 6), (P, 6) -> (P,) in 0..1: Hellinger distance of the boxes' Gaussians, 1 - ProbIoU.

    Rows are x, y, w, h, cosine and sine of twice the angle times any length. A Gaussian has the box's middle, and
    the variances of what is evenly spread in it: w ** 2 / 12 and h ** 2 / 12 along its sides.
    """
    (xx, yy, xy), (other_xx, other_yy, other_xy) = _covariance(found), _covariance(truth)
    xx, yy, xy = xx + other_xx, yy + other_yy, xy + other_xy
    x, y = (found - truth)[:, :2].unbind(1)
    both = xx * yy - xy**2
    areas = (found[:, 2] * found[:, 3] * truth[:, 2] * truth[:, 3]) / 144
    middle = (yy * x**2 - 2 * xy * x * y + xx * y**2) / both / 4
    shape = (both / (4 * areas)).log() / 2
    overlap = -(middle + shape).clamp_min(0)
    return (-overlap.expm1() + 1e-6).sqrt()


def _covariance(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(P, 6) -> xx, yy, xy, (P,) each."""
    w, h = boxes[:, 2] ** 2 / 12, boxes[:, 3] ** 2 / 12
    cos, sin = _direction(boxes)
    mean, spread = (w + h) / 2, (w - h) / 2
    return mean + spread * cos, mean - spread * cos, spread * sin


def _direction(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(P, 6) -> cosine and sine of twice the angle, (P,) each."""
    cos, sin = boxes[:, 4], boxes[:, 5]
    length = (cos**2 + sin**2 + 1e-6).sqrt()
    return cos / length, sin / length


def angle_difference(found: Tensor, truth: Tensor) -> Tensor:
    """(P, 6), (P, 6) -> (P,): of period 180 degrees for long boxes and 90 degrees for squares.

    For long boxes the squared distance from the true cosine and sine, whose gradient doesn't vanish at a
    difference of 90 degrees; for squares the squared sine of twice the difference; in between both are mixed
    by how round the truth's Gaussian is.
    """
    w, h = truth[:, 2] ** 2, truth[:, 3] ** 2
    oblong = (w - h).abs() / (w + h)
    half_turn = (found - truth)[:, 4:].square().sum(1)
    (cos, sin), (true_cos, true_sin) = _direction(found), _direction(truth)
    quarter_turn = (sin * true_cos - cos * true_sin) ** 2
    return oblong * half_turn + (1 - oblong) * quarter_turn
