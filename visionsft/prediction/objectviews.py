"""Object views: test-time augmentation of detectors, the objects of scaled, turned and mirrored views of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionsft.errors import ConfigError
from visionsft.models.detections import Detections
from visionsft.models.rotated import canonicalise
from visionsft.models.views import View
from visionsft.prediction.merging import Merging, Parts, merge_views
from visionsft.prediction.slicing import Detector, scale_turned

Size = tuple[int, int]
"""(height, width)"""


class ViewsDetector:
    """Finds what any of several views of an image shows; see `visionsft.prediction.slicing.Detector`."""

    def __init__(self, detector: Detector, views: Sequence[View], merging: Merging) -> None:
        """merging: of the views' duplicates, see `visionsft.prediction.merging.merge_views`."""
        self._detector = detector
        self._views = views
        self._merging = merging

    def detect(self, image: Tensor, sizes: list[Size]) -> list[Detections]:
        """image: (B, C, H, W) float32, normalised; sizes: (height, width) of each without its padding."""
        found: list[list[Parts]] = [[] for _ in sizes]
        for number, view in enumerate(self._views):
            for index, each in enumerate(self._look(view, image, sizes)):
                found[index].append(_to_parts(each, number))
        return [_to_detections(merge_views(parts, self._merging)) for parts in found]

    def _look(self, view: View, image: Tensor, sizes: list[Size]) -> list[Detections]:
        """What a view shows of each image, in the image's pixels. Padding isn't turned with it."""
        shown = [view.show(each[None, :, :h, :w])[0] for each, (h, w) in zip(image, sizes, strict=True)]
        seen = [(each.shape[1], each.shape[2]) for each in shown]
        tall, wide = (max(sides) for sides in zip(*seen, strict=True))
        padded = [F.pad(each, (0, wide - each.shape[2], 0, tall - each.shape[1])) for each in shown]
        found = self._detector.detect(torch.stack(padded), seen)
        return [
            show_back(each.cpu(), view, own, size) for each, own, size in zip(found, seen, sizes, strict=True)
        ]


def show_back(found: Detections, view: View, seen: Size, size: Size) -> Detections:
    """What a view of `seen` pixels shows, in pixels of the image of that size."""
    if found.masks is not None:
        raise ConfigError(
            "inference.symmetry, inference.scales: are for boxes: outlines of several views aren't merged"
        )
    boxes, turned, (height, width) = found.boxes, found.turned, seen
    if view.mirrored:
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack([width - x2, y1, width - x1, y2], 1)
        if turned is not None:
            turned = torch.cat([width - turned[:, :1], turned[:, 1:4], -turned[:, 4:]], 1)
    for _ in range(view.turns):
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack([height - y2, x1, height - y1, x2], 1)
        if turned is not None:
            x, y, w, h, angle = turned.unbind(1)
            turned = torch.stack([height - y, x, w, h, angle + torch.pi / 2], 1)
        height, width = width, height
    down, across = size[0] / height, size[1] / width
    if turned is not None:
        turned = canonicalise(scale_turned(turned, across, down))
    boxes = boxes * torch.tensor([across, down, across, down])
    return Detections(boxes, found.scores, found.labels, turned=turned)


def _to_parts(found: Detections, view: int) -> Parts:
    count = len(found)
    return Parts(
        boxes=found.boxes.double().numpy(),
        scores=found.scores.double().numpy(),
        labels=found.labels.numpy(),
        cut=np.zeros((count, 4), bool),
        tiles=np.tile(np.array([0, view], np.int64), (count, 1)),
        turned=None if found.turned is None else found.turned.double().numpy(),
    )


def _to_detections(parts: Parts) -> Detections:
    turned = None if parts.turned is None else torch.from_numpy(parts.turned).float()
    boxes, scores = (torch.from_numpy(each).float() for each in (parts.boxes, parts.scores))
    return Detections(boxes, scores, torch.from_numpy(parts.labels), turned=turned)
