"""Outlines: drawn by the even-odd rule they give the mask again, as pycocotools decodes it."""

from __future__ import annotations

import contextlib
import io
import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO

from datamodules.classes import ClassSpec
from datamodules.layouts import coco
from datamodules.layouts.outlining import outline_mask
from datamodules.objects_reading import resolve

HEIGHT, WIDTH = 60, 80
CLASSES = (ClassSpec("thing", ("thing",)),)


def draw(rings, height, width):
    """(H, W) bool: a ray from the pixel's middle to the right crosses the rings an odd number of times."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for ring in rings:
        for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y1 != y2:
                inside ^= ((y1 > y) != (y2 > y)) & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
    return inside


@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_a_mask_is_its_outline(mask):
    np.testing.assert_array_equal(draw(outline_mask(mask), *mask.shape), mask)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "train/a.png")
    return tmp_path


def write(root, segmentations):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, WIDTH, HEIGHT],
                "segmentation": segmentation,
                "iscrowd": int(isinstance(segmentation, dict)),
                "area": 1,
            }
            for i, segmentation in enumerate(segmentations)
        ],
    }
    path = root / "annotations/instances_train.json"
    path.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def compare(root, segmentations):
    """Ours and pycocotools' masks of every object."""
    peer = write(root, segmentations)
    reading = resolve(
        coco.scan(root), classes=CLASSES, sizes={"train/a.png": (HEIGHT, WIDTH)}, form="outlines"
    )
    objects = reading.objects["train/a.png"]
    assert objects.ignored.tolist() == [isinstance(each, dict) for each in segmentations]
    theirs = [peer.annToMask(each).astype(bool) for each in peer.loadAnns(peer.getAnnIds())]
    return [draw(rings, HEIGHT, WIDTH) for rings in objects.shapes], theirs


def star(rng, points):
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = rng.uniform(8, 25, points)
    return np.stack([40 + radii * np.cos(angles), 30 + radii * np.sin(angles)], axis=1)


def test_polygons_as_pycocotools_draws_them(root):
    rng = np.random.default_rng(0)
    single = [[star(rng, 9).ravel().tolist()] for _ in range(10)]
    apart = [[5, 5, 20, 5, 20, 20, 5, 20], [50, 30, 70, 30, 60, 50]]
    overlapping = [[5, 5, 40, 5, 40, 40, 5, 40], [20, 20, 60, 20, 60, 50, 20, 50]]
    for ours, theirs in zip(*compare(root, [*single, apart, overlapping]), strict=True):
        near = cv2.dilate(theirs.astype(np.uint8), np.ones((3, 3))) != cv2.erode(
            theirs.astype(np.uint8), np.ones((3, 3))
        )
        assert theirs.any()
        assert not (ours != theirs)[~near].any()
        assert (ours != theirs).mean() < 0.02


def test_run_lengths_as_pycocotools_decodes_them(root):
    rng = np.random.default_rng(1)
    masks = [cv2.GaussianBlur(rng.random((HEIGHT, WIDTH)), (0, 0), sigma) > 0.5 for sigma in (1, 2, 6)]
    codes = []
    for mask in masks:
        code = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
        codes.append({"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()})
        flat = mask.T.ravel()
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *edges, flat.size]).tolist()
        codes.append({"size": [HEIGHT, WIDTH], "counts": [0, *runs] if flat[0] else runs})
    for ours, theirs in zip(*compare(root, codes), strict=True):
        np.testing.assert_array_equal(ours, theirs)
