"""Object views: what turned, mirrored and scaled views show lies where the image has it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visionsft.errors import ConfigError
from visionsft.models.detections import Detections
from visionsft.models.rotated import rotated_iou
from visionsft.models.views import View, list_views
from visionsft.prediction.merging import Merging
from visionsft.prediction.objectviews import ViewsDetector, show_back


class Patches:
    """Finds bright patches: above 150 class 1, else 0; the score is the brightness."""

    def __init__(self, *, turned: bool = False) -> None:
        self.turned = turned
        self.sizes: list[tuple[int, int]] = []

    def detect(self, image: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
        self.sizes += sizes
        return [self._look(each[0, :h, :w].numpy()) for each, (h, w) in zip(image, sizes, strict=True)]

    def _look(self, image: np.ndarray) -> Detections:
        count, numbers, stats, _ = cv2.connectedComponentsWithStats((image > 50).astype(np.uint8))
        if count == 1:
            return Detections.none()
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in stats[1:].tolist()]).float()
        light = torch.tensor([float(image[numbers == index].max()) for index in range(1, count)])
        turned = [around(numbers == index) for index in range(1, count)] if self.turned else None
        found = Detections(
            boxes, light / 255, (light > 150).long(), turned=turned and torch.tensor(turned).float()
        )
        return found.take(found.scores.argsort(descending=True, stable=True))


def around(mask: np.ndarray) -> list[float]:
    (x, y), (w, h), angle = cv2.minAreaRect(np.argwhere(mask)[:, ::-1].astype(np.float32))
    return [x + 0.5, y + 0.5, w + 1, h + 1, np.deg2rad(angle)]


def draw(height: int, width: int, seed: int) -> Tensor:
    """(1, H, W): patches five pixels or more apart, of different brightness."""
    rng = np.random.default_rng(seed)
    image, taken = np.zeros((height, width), np.float32), np.zeros((height, width), bool)
    for brightness in rng.permutation(np.arange(80, 240, 10)):
        h, w = (int(rng.integers(4, 20)) for _ in range(2))
        if h >= height or w >= width:
            continue
        y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
        around = np.s_[max(0, y - 5) : y + h + 5, max(0, x - 5) : x + w + 5]
        if not taken[around].any():
            taken[y : y + h, x : x + w] = True
            image[y : y + h, x : x + w] = brightness
    return torch.from_numpy(image)[None]


def rows(found: Detections) -> np.ndarray:
    """(N, 6) in the order of the scores, which differ."""
    return torch.cat([found.boxes, found.scores[:, None], found.labels[:, None].float()], 1).numpy()


SIDES = st.tuples(st.integers(8, 60), st.integers(8, 60))


@given(
    st.lists(SIDES, min_size=1, max_size=3),
    st.sampled_from(["none", "left_right", "d4"]),
    st.sampled_from([(1.0,), (1.0, 2.0), (3.0,)]),
    st.sampled_from(["nms", "wbf"]),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_a_detector_that_does_not_care_gives_the_same(
    sizes: list[tuple[int, int]], symmetry: str, scales: tuple[float, ...], kind: str, seed: int
) -> None:
    tall, wide = (max(sides) for sides in zip(*sizes, strict=True))
    batch = torch.full((len(sizes), 1, tall, wide), 255.0)  # what is in the padding must not matter
    for index, (height, width) in enumerate(sizes):
        batch[index, :, :height, :width] = draw(height, width, seed + index)
    views = list_views(scales, symmetry)
    detector = ViewsDetector(Patches(), views, Merging(kind))  # type: ignore[arg-type]
    for found, wanted in zip(detector.detect(batch, sizes), Patches().detect(batch, sizes), strict=True):
        exact = scales == (1.0,)
        assert len(found) == len(wanted)
        np.testing.assert_allclose(rows(found)[:, :4], rows(wanted)[:, :4], atol=1e-4 if exact else 0.75)
        np.testing.assert_allclose(rows(found)[:, 4:], rows(wanted)[:, 4:], atol=1e-5 if exact else 0.02)


@pytest.mark.parametrize("symmetry", ["left_right", "d4"])
@pytest.mark.parametrize("angle", [10, 50, 100, 160])
def test_turned_boxes_are_turned_back(symmetry: str, angle: int) -> None:
    picture = np.zeros((90, 120), np.float32)
    corners = cv2.boxPoints(((70.0, 40.0), (50.0, 10.0), float(angle)))
    cv2.fillPoly(picture, [corners.round().astype(np.int32)], 200.0)
    image = torch.from_numpy(picture)[None, None]
    wanted = Patches(turned=True).detect(image, [(90, 120)])[0]
    merging = Merging(turned_iou=rotated_iou)
    found = ViewsDetector(Patches(turned=True), list_views((1.0,), symmetry), merging).detect(
        image, [(90, 120)]
    )[0]
    assert len(found) == 1
    assert found.turned is not None
    assert wanted.turned is not None
    assert rotated_iou(found.turned, wanted.turned).item() > 0.95
    with pytest.raises(ConfigError, match="wbf"):
        ViewsDetector(Patches(turned=True), list_views((1.0,), symmetry), Merging("wbf")).detect(
            image, [(90, 120)]
        )


@given(SIDES, st.sampled_from(list_views((1.0,), "d4")), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_every_pixel_goes_back_to_its_place(size: tuple[int, int], view: View, seed: int) -> None:
    """Pixels that say where they are, shown: boxes around them, and from one to another, go back to there."""
    y, x = np.mgrid[: size[0], : size[1]]
    shown = view.show(torch.from_numpy(np.stack([x, y]))[None].float() + 0.5)[0]
    rng = np.random.default_rng(seed)
    rows, cols = (torch.from_numpy(rng.integers(0, side, 2)) for side in shown.shape[1:])
    points = torch.stack([cols, rows], 1) + 0.5
    way = points[1] - points[0]
    turned = torch.tensor([*points.mean(0), way.norm().item(), 1.0, float(torch.atan2(way[1], way[0]))])
    found = Detections(
        torch.cat([points - 0.25, points + 0.25], 1), torch.ones(2), torch.zeros(2, dtype=torch.int64),
        turned=turned.repeat(2, 1),
    )  # fmt: skip
    back = show_back(found, view, (shown.shape[1], shown.shape[2]), size)
    own = shown[:, rows, cols].T
    np.testing.assert_allclose(back.boxes, torch.cat([own - 0.25, own + 0.25], 1), atol=1e-4)
    assert back.turned is not None
    np.testing.assert_allclose(back.turned[0, :2], own.mean(0), atol=1e-4)
    if way.norm() > 1:  # or it has no longer side
        direction = torch.stack([back.turned[0, 4].cos(), back.turned[0, 4].sin()])
        along = own[1] - own[0]
        assert abs(float(direction @ along)) == pytest.approx(float(along.norm()), abs=1e-3)


class LeftOnly(Patches):
    """Sees the left half of an image alone."""

    def _look(self, image: np.ndarray) -> Detections:
        return super()._look(np.where(np.arange(image.shape[1]) < image.shape[1] // 2, image, 0))


@pytest.mark.parametrize(("kind", "share"), [("nms", 1.0), ("wbf", 0.5)])
def test_what_one_view_misses(kind: str, share: float) -> None:
    """Fused, it is half as certain."""
    image = torch.zeros(1, 1, 20, 40)
    image[..., 5:10, 2:9] = 100
    image[..., 5:10, 30:37] = 200
    views = list_views((1.0,), "left_right")
    found = ViewsDetector(LeftOnly(), views, Merging(kind)).detect(image, [(20, 40)])[0]  # type: ignore[arg-type]
    np.testing.assert_allclose(found.boxes, [[30, 5, 37, 10], [2, 5, 9, 10]])
    np.testing.assert_allclose(found.scores, np.array([200, 100]) / 255 * share, rtol=1e-6)


def test_nothing_found() -> None:
    found = ViewsDetector(Patches(), list_views((1.0,), "d4"), Merging("wbf")).detect(
        torch.zeros(2, 1, 9, 12), [(9, 12), (7, 5)]
    )
    assert [len(each) for each in found] == [0, 0]


def test_masks_are_refused() -> None:
    found = Detections(torch.zeros(1, 4), torch.ones(1), torch.zeros(1), masks=torch.zeros(1, 5, 5))
    with pytest.raises(ConfigError, match=r"inference\.symmetry.*outlines"):
        show_back(found, View(), (5, 5), (5, 5))
