"""Views of objects: where windows, zooms, turns and flips take them, what is cut and what is drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from rasterio.features import rasterize

from datamodules.augment import PIPELINES, Augment, Placement
from datamodules.objects import Objects
from datamodules.views import clip, draw_shape, move, set_aside, shift, to_target, turned_corners, zoom


def objects(*boxes, shapes=None, turned=None, ignored=None):
    count = len(boxes)
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.arange(count, dtype=np.int64),
        np.zeros(count, bool) if ignored is None else np.array(ignored),
        shapes,
        turned,
    )


def ring(*points):
    return (np.array(points, np.float32),)


def polygon(points):
    return shapely.Polygon(np.asarray(points, np.float64))


TRIANGLE = ring((2, 2), (12, 2), (2, 12))


@pytest.mark.parametrize("element", PIPELINES["nadir"])
def test_a_rectangle_of_pixels_and_its_box_go_the_same_way(element):
    placement = Placement((slice(2, 10), slice(1, 13)), (slice(0, 16), slice(4, 28)), (20, 30), element)
    mask = np.zeros((12, 14), np.uint8)
    mask[4:7, 3:9] = 1
    _, drawn, _ = placement.pixels(mask[..., None], mask, np.ones(mask.shape, bool))
    rows, cols = np.nonzero(drawn == 1)
    found = move(objects((3, 4, 9, 7)), placement.points).boxes
    assert found.tolist() == [[cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]]


@pytest.mark.parametrize("element", PIPELINES["nadir"])
@given(angle=st.floats(-np.pi / 2, np.pi / 2 - 1e-3), width=st.floats(1, 40), height=st.floats(1, 40))
def test_turned_boxes_stay_exact_under_turns_and_flips(element, angle, width, height):
    turned = np.array([[30, 20, width, height, angle]], np.float32)
    placement = Placement((slice(0, 50), slice(0, 60)), (slice(0, 50), slice(0, 60)), (50, 60), element)
    found = move(objects((0, 0, 1, 1), turned=turned), placement.points).turned
    assert found is not None
    assert found[0, 2:4].tolist() == pytest.approx([width, height], rel=1e-4)
    assert -np.pi / 2 <= found[0, 4] < np.pi / 2
    expected = placement.points(turned_corners(turned)[0])
    # by corners: the symmetric difference of nearly equal polygons may come out as both of them
    apart = np.linalg.norm(expected[:, None] - turned_corners(found)[0], axis=-1)
    assert apart.min(axis=0).max() < 1e-3
    assert apart.min(axis=1).max() < 1e-3


def test_turned_corners_are_those_of_opencv():
    turned = np.array([[30, 20, 14, 6, 0.3], [5, 9, 4, 8, -1.2]], np.float32)
    for row, corners in zip(turned.tolist(), turned_corners(turned), strict=True):
        theirs = cv2.boxPoints(((row[0], row[1]), (row[2], row[3]), float(np.degrees(row[4]))))
        assert polygon(theirs).symmetric_difference(polygon(corners)).area < 1e-3


def test_four_quarter_turns_and_two_flips_change_nothing():
    turned = np.array([[7, 5, 6, 2, 0.4]], np.float32)
    start = objects((2, 3, 9, 8), shapes=(TRIANGLE,), turned=turned)
    for element, times in (("r90", 4), ("r270", 4), ("h", 2), ("v", 2), ("t", 2), ("hvt", 2), ("r180", 2)):
        found = start
        for _ in range(times):
            square = Placement((slice(0, 16),) * 2, (slice(0, 16),) * 2, (16, 16), element)
            found = move(found, square.points)
        assert found.boxes.tolist() == start.boxes.tolist()
        assert np.allclose(found.shapes[0][0], TRIANGLE[0])
        assert np.allclose(found.turned, turned, atol=1e-5)


def test_shift_and_zoom():
    found = zoom(shift(objects((10, 20, 30, 60), shapes=(TRIANGLE,)), 10, 10), 0.5, 2)
    assert found.boxes.tolist() == [[0, 20, 10, 100]]
    assert found.shapes[0][0].tolist() == [[-4, -16], [1, -16], [-4, 4]]


def test_a_wholly_seen_object_is_untouched_and_a_hidden_one_is_gone():
    found = clip(objects((0, 0, 20, 10), (20, 0, 25, 5), (-9, 2, 0, 4)), (0, 0, 20, 10), min_visible=1.0)
    assert found.boxes.tolist() == [[0, 0, 20, 10]]
    assert found.labels.tolist() == [0]
    assert not found.ignored.any()


def test_min_visible_decides_between_object_and_ignored_region():
    boxes = objects((-4, 0, 6, 10), (-6, 0, 4, 10), (15, 0, 25, 10))
    found = clip(boxes, (0, 0, 20, 10), min_visible=0.5)
    assert found.boxes.tolist() == [[0, 0, 6, 10], [0, 0, 4, 10], [15, 0, 20, 10]]
    assert found.ignored.tolist() == [False, True, False]
    assert found.labels.tolist() == [0, 0, 2]


def test_ignored_regions_are_cut_and_stay_ignored():
    found = clip(objects((-9, 0, 1, 10), ignored=[True]), (0, 0, 20, 10), min_visible=0.0)
    assert found.boxes.tolist() == [[0, 0, 1, 10]]
    assert found.ignored.all()


def test_the_box_of_a_cut_outline_is_around_what_is_left():
    found = clip(objects((2, 2, 12, 12), shapes=(TRIANGLE,)), (0, 6, 20, 20), min_visible=0.3)
    seen = polygon(TRIANGLE[0]).intersection(shapely.box(0, 6, 20, 20))
    assert found.boxes[0].tolist() == pytest.approx(seen.bounds)
    assert polygon(found.shapes[0][0]).symmetric_difference(seen).area < 1e-6
    assert not found.ignored.any()  # 36 % of the triangle, 60 % of its box
    assert clip(objects((2, 2, 12, 12), shapes=(TRIANGLE,)), (0, 6, 20, 20), min_visible=0.4).ignored.all()


def test_turned_boxes_are_judged_by_their_own_area_and_stay_whole():
    turned = np.array([[0, 0, 20, 2, np.pi / 4]], np.float32)
    corners = turned_corners(turned)[0]
    box = (*corners.min(axis=0), *corners.max(axis=0))
    frame = (1, -9, 9, 9)
    share = polygon(corners).intersection(shapely.box(*frame)).area / 40
    for limit, ignored in ((share - 0.01, False), (share + 0.01, True)):
        found = clip(objects(box, turned=turned), frame, min_visible=limit)
        assert found.ignored.tolist() == [ignored]
        assert found.turned.tolist() == turned.tolist()


def test_what_lies_on_invalid_pixels_is_not_seen():
    valid = np.ones((10, 20), bool)
    valid[:, 10:] = False
    found = clip(objects((8, 0, 12, 4), (9, 0, 19, 4), (12, 0, 14, 4)), (0, 0, 20, 10), min_visible=0.5, valid=valid)
    assert found.ignored.tolist() == [False, True]


@given(st.data())
def test_clipping_polygons_agrees_with_shapely(data):
    number = st.floats(-20, 40, width=16)
    points = data.draw(st.lists(st.tuples(number, number), min_size=3, max_size=8))
    hull = shapely.MultiPoint(points).convex_hull
    if hull.area < 1:
        return
    outline = np.array(hull.exterior.coords[:-1], np.float32)
    found = clip(objects(hull.bounds, shapes=((outline,),)), (0, 0, 20, 15), min_visible=0.0)
    seen = hull.intersection(shapely.box(0, 0, 20, 15))
    if len(found) == 0:
        assert seen.area < 0.05
    else:
        assert polygon(found.shapes[0][0]).area == pytest.approx(seen.area, abs=1e-2)


@given(st.integers(0, 2**32))
def test_drawn_shapes_are_those_of_gdal(seed):
    """Pixels whose centre lies inside, by GDAL's rule; corners off the centres' lattice, where rules differ."""
    rng = np.random.default_rng(seed)
    outer = shapely.Polygon(rng.uniform(-5, 30, (rng.integers(3, 9), 2)))
    hull = outer.convex_hull
    hole = hull.buffer(-3)
    shape = hull.difference(hole)
    rings = [each for part in shapely.get_parts(shape) for each in (part.exterior, *part.interiors)]
    expected = rasterize([(shape, 1)], out_shape=(20, 24), dtype="uint8") == 1
    if not expected.any():
        return
    box = np.array([0, 0, 1, 1], np.float32)
    found = draw_shape(tuple(np.array(each.coords[:-1], np.float32) for each in rings), (20, 24), box)
    assert np.count_nonzero(found != expected) <= 1  # float32 against float64 at a centre


def test_an_object_without_a_pixel_centre_is_its_middle_pixel():
    drawn = draw_shape(ring((4.6, 2.6), (4.9, 2.6), (4.9, 2.9)), (6, 8), np.array([4.6, 2.6, 4.9, 2.9], np.float32))
    assert np.argwhere(drawn).tolist() == [[2, 4]]


def test_targets_hold_objects_and_regions_apart():
    shapes = (ring((0, 0), (4, 0), (4, 2), (0, 2)),) * 2
    turned = np.zeros((2, 5), np.float32)
    mixed = objects((0, 0, 4, 2), (1, 1, 3, 3), shapes=shapes, turned=turned, ignored=[True, False])
    target = to_target(mixed, (5, 6), masks=True)
    assert target["boxes"].tolist() == [[1, 1, 3, 3]]
    assert target["labels"].tolist() == [1]
    assert target["ignored"].tolist() == [[0, 0, 4, 2]]
    assert target["masks"].shape == (1, 5, 6)
    assert target["masks"].sum() == 8
    assert target["turned"].shape == (1, 5)
    assert "masks" not in to_target(mixed, (5, 6), masks=False)


def test_no_objects_are_empty_tensors():
    target = to_target(Objects.none(shapes=True, turned=True), (5, 6), masks=True)
    assert {name: tuple(tensor.shape) for name, tensor in target.items()} == {
        "boxes": (0, 4), "labels": (0,), "ignored": (0, 4), "masks": (0, 5, 6), "turned": (0, 5),
    }  # fmt: skip


def test_set_aside_leaves_no_class():
    found = set_aside(objects((0, 0, 1, 1), (0, 0, 2, 2)), np.array([False, True]))
    assert found.ignored.tolist() == [False, True]
    assert found.labels.tolist() == [0, 0]


@pytest.mark.parametrize("pipeline", ["nadir", "driving"])
def test_drawn_views_keep_boxes_on_their_pixels(pipeline):
    """A bright block is found where its box says, whatever was drawn: to a pixel, where zoom blurs the edge."""
    image = np.zeros((60, 80, 1), np.uint8)
    image[20:41, 30:52] = 200
    augment = Augment(pipeline, crop=(64, 64), scale=(0.5, 2.0))
    seen = 0
    for seed in range(60):
        view = augment.draw((60, 80), rng=np.random.default_rng(seed))
        pixels, _, valid = view.pixels(image, np.zeros((60, 80), np.uint8), np.ones((60, 80), bool))
        found = clip(move(objects((30, 20, 52, 41)), view.points), view.frame, min_visible=0.0, valid=valid)
        rows, cols = np.nonzero(pixels[..., 0] > 100)
        if len(rows) == 0:
            continue
        seen += 1
        bright = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        assert np.abs(found.boxes[0] - bright).max() <= 1
    assert seen > 40
