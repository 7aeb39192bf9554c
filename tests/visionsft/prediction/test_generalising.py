"""Generalising: fewer points and the same topology, wherever bands end."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datamodules.batch import IGNORE
from tests.visionsft.prediction.test_outlines import banded_maps, trace
from visionsft.prediction.generalising import Generaliser


def blobs(side: int, *, classes: int, seed: int = 0) -> NDArray[np.uint8]:
    """A class map like land cover: the largest of smooth random fields."""
    rng = np.random.default_rng(seed)
    fields = np.zeros((classes, side, side))
    for size in (4, 16, 64):
        coarse = rng.normal(size=(classes, side // size + 2, side // size + 2))
        at = np.arange(side) / size
        low, share = at.astype(int), at % 1
        rows = coarse[:, low] * (1 - share)[:, None] + coarse[:, low + 1] * share[:, None]
        fields += np.sqrt(size) * (rows[..., low] * (1 - share) + rows[..., low + 1] * share)
    return fields.argmax(axis=0).astype(np.uint8)


def polygons(classes: NDArray[np.uint8], tolerance: float | None = None) -> NDArray[np.object_]:
    simplifier = Generaliser(tolerance) if tolerance else None
    return np.array([polygon for _, polygon in trace(classes, [len(classes)], simplifier)])


@given(banded_maps(), st.sampled_from([0.5, 0.75, 1, 1.5, 2, 4, 20]))
@settings(max_examples=200, deadline=None)
def test_topology_stays(drawn: tuple[NDArray[np.uint8], list[int]], tolerance: float) -> None:
    classes, heights = drawn
    found = trace(classes, heights, Generaliser(tolerance))
    shapes = np.array([polygon for _, polygon in found])
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)
    exact = trace(classes, [len(classes)])
    assert sorted((index, len(polygon.interiors)) for index, polygon in found) == sorted(
        (index, len(polygon.interiors)) for index, polygon in exact
    )
    whole = trace(classes, [len(classes)], Generaliser(tolerance))
    assert sorted((index, shapely.normalize(polygon).wkt) for index, polygon in found) == sorted(
        (index, shapely.normalize(polygon).wkt) for index, polygon in whole
    )


@given(banded_maps(), st.sampled_from([1, 2, 20]))
@settings(max_examples=50, deadline=None)
def test_no_gaps_open(drawn: tuple[NDArray[np.uint8], list[int]], tolerance: float) -> None:
    classes = np.where(drawn[0] == IGNORE, 3, drawn[0])
    union = shapely.union_all([polygon for _, polygon in trace(classes, drawn[1], Generaliser(tolerance))])
    assert union.geom_type == "Polygon"
    assert not union.interiors


@pytest.mark.parametrize("tolerance", [0.75, 1, 2, 4])
def test_as_many_points_as_the_reference(tolerance: float) -> None:
    classes = blobs(192, classes=4)
    ours = shapely.get_num_coordinates(polygons(classes, tolerance)).sum()
    reference = shapely.get_num_coordinates(shapely.coverage_simplify(polygons(classes), tolerance)).sum()
    assert ours == pytest.approx(reference, rel=0.08)


def test_a_staircase_becomes_a_line() -> None:
    classes = (np.arange(30)[:, None] > np.arange(30)).astype(np.uint8)
    lower, upper = polygons(classes, 1)
    assert shapely.equals(lower.intersection(upper), shapely.LineString([(0, 1), (1, 1), (29, 29), (29, 30)]))


def test_two_arcs_between_the_same_junctions_keep_a_polygon_between_them() -> None:
    classes = np.repeat(np.arange(2, dtype=np.uint8), 4)[:, None].repeat(9, axis=1)
    classes[3:5, 3:6] = 2
    areas = {index: polygon.area for index, polygon in trace(classes, [8], Generaliser(50))}
    assert areas.keys() == {0, 1, 2}
    assert min(areas.values()) > 0


def test_an_island_in_a_bay_stays_outside() -> None:
    """The bay is small enough to be closed, but then the island would lie in the land."""
    classes = np.zeros((12, 20), np.uint8)
    classes[6:] = 1
    classes[6:9, 8:13] = 0
    classes[7, 10] = 2
    found = dict(trace(classes, [12], Generaliser(20)))
    assert not found[1].intersects(found[2])
    classes[7, 10] = 0
    without_island = dict(trace(classes, [12], Generaliser(20)))[1]
    assert shapely.get_num_coordinates(without_island) == 5
