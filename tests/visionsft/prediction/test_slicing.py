"""Slicing: with a detector that makes no mistakes, tiles give what the whole image gives."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules import DataError, Normalisation
from visionsft.errors import ConfigError
from visionsft.models.detections import Detections
from visionsft.prediction.merging import Merging, corners_of
from visionsft.prediction.scenes import ArraySource
from visionsft.prediction.slicing import Slices, detect_image, detect_scene, detect_tiles, join_bands

PLAIN = Normalisation((0.0,), (1.0,))


class Blobs:
    """Finds every connected patch of one brightness: the brightness, less one, is its class."""

    def __init__(self, *, masks: bool = False) -> None:
        self.masks = masks
        self.batches: list[int] = []

    def detect(self, image: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
        self.batches.append(len(image))
        pairs = zip(image, sizes, strict=True)
        return [self._look(each[0, :height, :width].numpy()) for each, (height, width) in pairs]

    def _look(self, image: np.ndarray) -> Detections:
        boxes, labels, masks = [], [], []
        for value in np.unique(image[image > 0]):
            count, numbers, stats, _ = cv2.connectedComponentsWithStats((image == value).astype(np.uint8))
            for index, (x, y, w, h, _) in enumerate(stats[1:count], start=1):
                boxes.append([x, y, x + w, y + h])
                labels.append(int(value) - 1)
                masks.append(numbers == index)
        if not boxes:
            return Detections.none()
        area = torch.tensor([(b[2] - b[0]) * (b[3] - b[1]) for b in boxes]).float()
        found = Detections(
            torch.tensor(boxes).float(), area / (area + 10), torch.tensor(labels),
            torch.from_numpy(np.array(masks)).float() if self.masks else None,
        )  # fmt: skip
        return found.take(found.scores.argsort(descending=True))


def draw(
    height: int, width: int, *, seed: int, largest: int, round_: bool = False, classes: int = 2
) -> Tensor:
    """(1, H, W): patches whose boxes are three pixels or more apart."""
    rng = np.random.default_rng(seed)
    image, taken = np.zeros((height, width), np.float32), np.zeros((height, width), bool)
    for _ in range(40):
        h, w = (int(rng.integers(1, min(largest, side) + 1)) for side in (height, width))
        y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        around = np.s_[max(0, y - 3) : y + h + 3, max(0, x - 3) : x + w + 3]
        if taken[around].any():
            continue
        taken[y : y + h, x : x + w] = True
        value = int(rng.integers(1, classes + 1))
        rows, cols = np.mgrid[:h, :w]
        inside = ((rows + 0.5) / h - 0.5) ** 2 + ((cols + 0.5) / w - 0.5) ** 2 <= 0.25 if round_ else True
        image[y : y + h, x : x + w][np.broadcast_to(inside, (h, w))] = value
    return torch.from_numpy(image)[None]


def sorted_boxes(found: Detections) -> np.ndarray:
    """(N, 5): class and box."""
    rows = np.column_stack([found.labels.numpy(), found.boxes.numpy()])
    return rows[np.lexsort(rows.T[::-1])]


def assert_same(found: Detections, wanted: Detections, *, atol: float = 1.0) -> None:
    assert len(found) == len(wanted)
    rows, others = sorted_boxes(found), sorted_boxes(wanted)
    np.testing.assert_allclose(rows, others, atol=atol)


SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@given(
    SIZES,
    st.integers(1, 40),
    st.integers(0, 20),
    st.integers(0, 1000),
    st.integers(1, 60),
    st.sampled_from(["nms", "wbf"]),
)
@settings(max_examples=100, deadline=None)
def test_sliced_is_unsliced(
    shape: tuple[int, int], tile: int, overlap: int, seed: int, largest: int, kind: str
) -> None:
    image = draw(*shape, seed=seed, largest=largest)
    slices = Slices(tile=tile, overlap=min(overlap, tile // 2), merging=Merging(kind))  # type: ignore[arg-type]
    whole = Blobs().detect(image[None], [shape])[0]
    assert_same(detect_image(Blobs(), image, slices=slices), whole)


@given(SIZES, st.integers(8, 60), st.integers(0, 30), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_round_ones_too(shape: tuple[int, int], tile: int, overlap: int, seed: int) -> None:
    image = draw(*shape, seed=seed, largest=60, round_=True)
    slices = Slices(tile=tile, overlap=min(overlap, tile // 2))
    assert_same(detect_image(Blobs(), image, slices=slices), Blobs().detect(image[None], [shape])[0])


@pytest.mark.parametrize("kind", ["nms", "wbf"])
def test_an_object_over_many_tiles_is_one(kind: str) -> None:
    image = torch.zeros(1, 120, 200)
    image[:, 5:115, 10:190] = 1
    found = detect_image(Blobs(), image, slices=Slices(tile=32, overlap=4, merging=Merging(kind)))  # type: ignore[arg-type]
    assert found.boxes.tolist() == [[10, 5, 190, 115]]
    assert found.labels.tolist() == [0]


@pytest.mark.parametrize("overlap", [0, 8])
def test_neighbours_cut_by_one_border_stay_apart(overlap: int) -> None:
    image = torch.zeros(1, 64, 64)
    for top in range(2, 60, 6):
        image[:, top : top + 3, 20:45] = 1
    found = detect_image(Blobs(), image, slices=Slices(tile=32, overlap=overlap))
    assert_same(found, Blobs().detect(image[None], [(64, 64)])[0], atol=0)


def test_the_batch_changes_nothing() -> None:
    image = draw(150, 130, seed=3, largest=40)
    first, *others = (
        detect_image(Blobs(), image, slices=Slices(tile=32, overlap=8, batch=batch))
        for batch in (1, 2, 7, 100)
    )
    assert len(first) > 5
    for other in others:
        assert torch.equal(first.boxes, other.boxes)
        assert torch.equal(first.scores, other.scores)


def test_bands_come_from_top_to_bottom_and_little_is_held() -> None:
    image = torch.zeros(1, 400, 40)
    for top in range(1, 390, 12):
        image[:, top : top + 6, 8:20] = 1
    source = ArraySource(image.numpy(), np.ones((400, 40), bool))
    slices = Slices(tile=32, overlap=8)
    bands = list(detect_tiles(Blobs(), source, slices.plan(source.shape), slices))
    assert sum(map(len, bands)) == 33
    assert max(map(len, bands)) <= 4
    tops = [band.boxes[:, 1].mean().item() for band in bands if len(band)]
    assert tops == sorted(tops)


def test_tiles_without_a_valid_pixel_are_not_computed() -> None:
    image = draw(64, 64, seed=0, largest=20)
    valid = torch.ones(64, 64, dtype=torch.bool)
    valid[:, 32:] = False
    detector = Blobs()
    detect_image(detector, image, valid=valid, slices=Slices(tile=32, overlap=0, batch=4))
    assert sum(detector.batches) == 2
    blind = Blobs()
    found = detect_image(blind, image, valid=torch.zeros_like(valid), slices=Slices(tile=32))
    assert blind.batches == []
    assert len(found) == 0


def test_scores_below_the_limit_are_left_out_before_merging() -> None:
    image = draw(60, 60, seed=1, largest=25)
    whole = Blobs().detect(image[None], [(60, 60)])[0]
    limit = float(whole.scores.median())
    found = detect_image(Blobs(), image, slices=Slices(tile=60, score=limit))
    assert_same(found, whole.take(whole.scores >= limit))
    assert (found.scores.diff() <= 0).all()


def test_outlines_are_joined() -> None:
    image = draw(90, 80, seed=5, largest=60, round_=True)
    pieces = detect_image(Blobs(masks=True), image, slices=Slices(tile=32, overlap=8))
    whole = detect_image(Blobs(masks=True), image, slices=Slices(tile=96))
    assert pieces.outlines is not None
    assert whole.outlines is not None
    assert len(pieces) == len(whole) > 1
    painted = [np.zeros((90, 80), np.uint8) for _ in range(2)]
    for picture, found in zip(painted, (pieces, whole), strict=True):
        rasterio.features.rasterize(
            zip(found.outlines, (found.labels + 1).tolist(), strict=True), out=picture  # type: ignore[arg-type]
        )  # fmt: skip
        np.testing.assert_array_equal(picture, image[0].numpy())
    np.testing.assert_allclose(shapely.bounds(pieces.outlines), pieces.boxes.numpy())


class Bars:
    """Finds bright patches as boxes turned by a known angle."""

    angle = 0.35

    def detect(self, image: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
        return [
            self._look(each[0, : size[0], : size[1]].numpy()) for each, size in zip(image, sizes, strict=True)
        ]

    def _look(self, image: np.ndarray) -> Detections:
        count, numbers = cv2.connectedComponents((image > 0).astype(np.uint8))
        if count == 1:
            return Detections.none()
        x_axis, y_axis = np.array(
            [[np.cos(self.angle), np.sin(self.angle)], [-np.sin(self.angle), np.cos(self.angle)]]
        )
        boxes, turned = [], []
        for index in range(1, count):
            points = np.argwhere(numbers == index)[:, ::-1] + 0.5
            u, v = points @ x_axis, points @ y_axis
            middle = (u.max() + u.min()) / 2 * x_axis + (v.max() + v.min()) / 2 * y_axis
            turned.append([*middle, np.ptp(u) + 1, np.ptp(v) + 1, self.angle])
            boxes.append([*(points.min(0) - 0.5), *(points.max(0) + 0.5)])
        return Detections(
            torch.tensor(boxes).float(), torch.ones(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64),
            turned=torch.tensor(turned).float(),
        )  # fmt: skip


def test_turned_boxes_are_joined() -> None:
    picture = np.zeros((100, 160), np.uint8)
    corners = cv2.boxPoints(((80, 50), (120, 24), np.rad2deg(Bars.angle)))
    cv2.fillPoly(picture, [corners.round().astype(np.int32)], 1)
    image = torch.from_numpy(picture).float()[None]
    found = detect_image(Bars(), image, slices=Slices(tile=64, overlap=16))
    assert found.turned is not None
    assert len(found) == 1
    own, wanted = (shapely.Polygon(each) for each in (corners_of(found.turned[0].double().numpy()), corners))
    assert own.intersection(wanted).area / own.union(wanted).area > 0.9
    with pytest.raises(ConfigError, match="wbf"):
        detect_image(Bars(), image, slices=Slices(tile=64, merging=Merging("wbf")))


def test_turned_iou_is_asked() -> None:
    picture = np.zeros((64, 96), np.uint8)
    picture[20:30, 40:50] = 1
    asked = []

    def iou(first: Tensor, second: Tensor) -> Tensor:
        asked.append((first.shape, second.shape))
        return torch.zeros(len(first), len(second))

    slices = Slices(tile=64, overlap=32, merging=Merging(turned_iou=iou))
    found = detect_image(Bars(), torch.from_numpy(picture).float()[None], slices=slices)
    assert asked[0][0][1] == 5
    assert len(found) == 2  # both tiles see it, and nothing is a duplicate by this measure


# ------------------------------------------------------------------------------------------------- GeoTIFFs


def write_scene(path: Path, image: Tensor) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", height=image.shape[1], width=image.shape[2], count=1, dtype="uint8",
        crs="EPSG:32633", transform=Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as file:  # fmt: skip
        file.write(image.numpy().astype(np.uint8))
        file.set_band_description(1, "brightness")
    return path


@pytest.mark.parametrize("shape", [(1, 1), (1, 130), (130, 1), (70, 130)])
def test_a_scene_is_its_image(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = draw(*shape, seed=2, largest=40)
    path = write_scene(tmp_path / "scene.tif", image)
    found = join_bands(
        detect_scene(
            Blobs(), path, normalisation=PLAIN, bands=["brightness"], slices=Slices(tile=32, overlap=8)
        )
    )
    assert_same(found, Blobs().detect(image[None], [shape])[0])


def test_a_missing_band_is_named(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", draw(20, 20, seed=0, largest=9))
    with pytest.raises(DataError, match=r"scene\.tif: no band 'nir'"):
        next(detect_scene(Blobs(), path, normalisation=PLAIN, bands=["nir"]))


def test_leaving_early_leaves_no_thread(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", draw(130, 130, seed=2, largest=40))
    before = threading.active_count()
    bands = detect_scene(Blobs(), path, normalisation=PLAIN, slices=Slices(tile=32, overlap=8))
    next(bands)
    bands.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tile": 32, "overlap": 17}, "at most half"),
        ({"tile": 0}, "allowed: 1 or more"),
        ({"overlap": -1}, "0 or more"),
        ({"score": 1.5}, "score is 1.5"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_slices_that_make_no_sense(options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        detect_image(Blobs(), torch.zeros(1, 50, 50), slices=Slices(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "iou", "said"), [("soft", 0.5, "nms, wbf"), ("nms", 0, "iou is 0")])
def test_merging_that_makes_no_sense(kind: str, iou: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Merging(kind, iou)  # type: ignore[arg-type]
