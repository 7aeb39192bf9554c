"""Outlines: exact, valid, and the same wherever bands end."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from rasterio import features
from shapely.geometry import shape

from datamodules.batch import IGNORE
from visionsft.prediction.outlines import Polygons, Simplifier, Tracer, order_chains

Shapes = list[tuple[int, shapely.Polygon]]


@st.composite
def maps(draw: st.DrawFn, *, side: int = 12) -> NDArray[np.uint8]:
    """Class maps of up to side x side pixels, with few classes, so that corners touch in all ways."""
    size = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    values = draw(st.sampled_from([[0, 1], [0, IGNORE], [0, 1, 2], [0, 1, 2, 253, IGNORE]]))
    return draw(hnp.arrays(np.uint8, size, elements=st.sampled_from(values)))


@st.composite
def banded_maps(draw: st.DrawFn) -> tuple[NDArray[np.uint8], list[int]]:
    """A class map, and the heights of the bands in which it comes."""
    classes = draw(maps())
    heights = []
    while (left := len(classes) - sum(heights)) > 0:
        heights.append(draw(st.integers(1, left)))
    return classes, heights


def trace(classes: NDArray[np.uint8], heights: list[int], simplifier: Simplifier | None = None) -> Shapes:
    """Class and polygon, in pixels, of everything in a class map."""
    tracer = Tracer(classes.shape[1], simplifier=simplifier)
    found: Shapes = []
    for band in np.split(classes, np.cumsum(heights)[:-1]):
        found += to_shapes(tracer.add(band))
    return found + to_shapes(tracer.finish())


def to_shapes(polygons: Polygons) -> Shapes:
    offsets = polygons.rings, polygons.polygons
    shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, polygons.points.astype(float), offsets)
    return list(zip(polygons.classes.tolist(), shapes, strict=True))


def normalised(shapes: Shapes) -> list[tuple[int, str]]:
    """Rings start at their lowest corner, in order; points on straight borders are left out."""
    corners = [(index, shapely.simplify(shapely.normalize(polygon), 0)) for index, polygon in shapes]
    return sorted((index, shapely.normalize(polygon).wkt) for index, polygon in corners)


@given(banded_maps())
@settings(max_examples=150, deadline=None)
def test_polygons_are_those_of_the_whole_map(drawn: tuple[NDArray[np.uint8], list[int]]) -> None:
    classes, heights = drawn
    reference = [
        (int(index), shape(polygon))
        for polygon, index in features.shapes(classes, mask=classes != IGNORE, connectivity=4)
    ]
    assert normalised(trace(classes, heights)) == normalised(reference)


@given(banded_maps())
@settings(max_examples=100, deadline=None)
def test_rasterising_gives_the_map_back(drawn: tuple[NDArray[np.uint8], list[int]]) -> None:
    classes, heights = drawn
    burnt = np.full(classes.shape, IGNORE, np.uint8)
    for index, polygon in trace(classes, heights):
        features.rasterize([(polygon, index)], out=burnt)
    np.testing.assert_array_equal(burnt, classes)


@given(maps())
@settings(max_examples=100, deadline=None)
def test_polygons_are_a_valid_coverage(classes: NDArray[np.uint8]) -> None:
    polygons = np.array([polygon for _, polygon in trace(classes, [len(classes)])])
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    assert shapely.area(polygons).sum() == (classes != IGNORE).sum()


def test_areas_are_those_of_the_rings() -> None:
    classes = np.zeros((6, 7), np.uint8)
    classes[1:5, 1:4], classes[2, 2] = 1, 2
    tracer = Tracer(7)
    first, rest = tracer.add(classes), tracer.finish()
    assert sorted(first.classes.tolist()) == [1, 2]
    assert sorted(first.areas.tolist()) == [-1, 1, 12]
    assert rest.areas.tolist() == [42, -12]


def test_a_hole_that_touches_the_outside_at_a_corner_stays_a_hole() -> None:
    """Going once round would make an outer ring that touches itself, which is not valid."""
    classes = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8)
    ring = next(polygon for index, polygon in trace(classes, [1, 1, 1]) if index == 1)
    assert ring.is_valid
    assert [shapely.Polygon(hole).area for hole in ring.interiors] == [1]
    assert shapely.Polygon(ring.exterior).area == 8


def test_pixels_that_touch_at_a_corner_are_two_polygons() -> None:
    classes = np.array([[1, 0], [0, 1]], np.uint8)
    assert sorted(index for index, _ in trace(classes, [1, 1])) == [0, 0, 1, 1]


def test_a_straight_border_has_no_point_where_bands_meet() -> None:
    classes = np.repeat(np.array([[0, 0, 1]], np.uint8), 40, axis=0)
    assert [len(polygon.exterior.coords) for _, polygon in trace(classes, [1] * 40)] == [5, 5]


def test_a_finished_polygon_is_given_at_once() -> None:
    classes = np.zeros((3, 5), np.uint8)
    classes[1, 2] = 1
    tracer = Tracer(5)
    assert tracer.add(classes[:2]).classes.tolist() == []
    assert tracer.add(classes[2:]).classes.tolist() == [1]
    assert tracer.finish().classes.tolist() == [0]


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
@settings(max_examples=100, deadline=None)
def test_chains_are_in_order(successor: list[int], ends: set[int]) -> None:
    following = np.array(successor)
    following[list(ends)] = -1
    order, offsets = order_chains(following)
    assert sorted(order.tolist()) == list(range(12))
    for chain in np.split(order, offsets[1:-1]):
        assert following[chain[:-1]].tolist() == chain[1:].tolist()
        assert following[chain[-1]] in (-1, chain[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_the_smallest_maps(size: tuple[int, int]) -> None:
    (index, polygon), = trace(np.full(size, 3, np.uint8), [size[0]])  # fmt: skip
    assert (index, polygon.bounds) == (3, (0, 0, size[1], size[0]))
    assert trace(np.full(size, IGNORE, np.uint8), [size[0]]) == []
