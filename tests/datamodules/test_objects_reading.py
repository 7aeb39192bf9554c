"""Objects of a model's classes: names become indices, and every flaw is counted and named or mended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.layouts.objects import SHOWN, Repairs, Row, annotate, legend_of, list_pictures
from datamodules.objects_reading import (
    CLIPPED,
    EMPTY,
    NO_OUTLINE,
    NOT_FINITE,
    OTHER_SIZE,
    OUTSIDE,
    ROUNDED,
    UNNAMED,
    class_indices,
    resolve,
)

ROOT = Path("/data")
WIDTH, HEIGHT = 100, 80
CLASSES = (ClassSpec("tree", ("Tree", "Bush")), ClassSpec("car", (7,)))
RING = np.array([[0.0, 0], [9, 0], [9, 9]])


def listing(rows, **options):
    return list_pictures(ROOT, [(ROOT / "a.png", annotate("a.txt", "line", rows, **options))])


def row(box=(1, 1, 9, 9), name="Tree", place=1, **options):
    return Row(place, name, tuple(map(float, box)), **options)


def read(rows, *, size=None, **options):
    given = {"classes": CLASSES, "sizes": {"a.png": (HEIGHT, WIDTH)}, "on_error": "skip", **options}
    reading = resolve(listing(rows, size=size), **given)
    return reading.objects["a.png"], reading.repairs


@pytest.mark.parametrize(
    ("box", "kind", "left"),
    [
        ((np.nan, 0, 1, 1), NOT_FINITE, None),
        ((0, 0, np.inf, 1), NOT_FINITE, None),
        ((5, 5, 5, 9), EMPTY, None),
        ((5, 9, 7, 5), EMPTY, None),
        ((100, 0, 120, 9), OUTSIDE, None),
        ((-9, 3, 0, 9), OUTSIDE, None),
        ((-9, 3, 10, 9), CLIPPED, (0, 3, 10, 9)),
        ((1, 2, 130, 95), CLIPPED, (1, 2, 100, 80)),
        ((-0.5, 2, 101, 9), ROUNDED, (0, 2, 100, 9)),
    ],
)
def test_flawed_boxes(box, kind, left):
    objects, repairs = read([row(), row(box, place=4)])
    assert repairs.counts == {kind: 1}
    assert repairs.places[kind][0].startswith("a.txt, line 4: (")
    assert objects.boxes.tolist() == [[1, 1, 9, 9], *([] if left is None else [list(left)])]
    if kind == ROUNDED:
        assert read([row(box)], on_error="stop")[1].counts == {ROUNDED: 1}
    else:
        with pytest.raises(DataError, match=r"a\.txt, line 4"):
            read([row(box, place=4)], on_error="stop")


coordinates = st.floats(-300, 300, width=32) | st.sampled_from(
    [np.nan, np.inf, -np.inf, 0.0, 100.0, 80.0, 1e300]
)


@given(st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), max_size=8))
def test_every_box_is_kept_or_counted(boxes):
    objects, repairs = read([row(box) for box in boxes])
    dropped = sum(repairs.counts[kind] for kind in (NOT_FINITE, EMPTY, OUTSIDE))
    assert len(objects) + dropped == len(boxes)
    x1, y1, x2, y2 = objects.boxes.T
    assert ((x1 >= 0) & (y1 >= 0) & (x2 > x1) & (y2 > y1) & (x2 <= WIDTH) & (y2 <= HEIGHT)).all()


def test_all_flaws_in_one_message():
    rows = [
        row(name="Tre", place=1),
        row(name="Tre", place=2),
        row(name="", place=3),
        row((5, 5, 5, 5), place=4),
    ]
    with pytest.raises(DataError) as error:
        read(rows, on_error="stop")
    lines = str(error.value).splitlines()
    assert lines[1].startswith(
        "2 boxes are named 'Tre', nearest: Tree; add it to the class's values or to data.ignore"
    )
    assert "a.txt, line 1; a.txt, line 2" in lines[1]
    assert f"1 {UNNAMED}: a.txt, line 3" in lines
    assert f"1 {EMPTY}: a.txt, line 4: (5, 5, 5, 5)" in lines


def test_what_has_no_known_class_becomes_an_ignored_region():
    objects, repairs = read([row(name="Tre"), row(name="")])
    assert objects.ignored.tolist() == [True, True]
    assert objects.labels.tolist() == [0, 0]
    assert repairs.counts.total() == 2


def test_names_and_numbers():
    objects, repairs = read(
        [row(name=name) for name in ("Bush", "tree", 7, "7", "car", "fog")], ignore=("fog",), on_error="stop"
    )
    assert objects.labels.tolist() == [0, 0, 1, 1, 1, 0]
    assert objects.ignored.tolist() == [False] * 5 + [True]
    assert repairs.counts == {}


def test_a_name_does_not_take_another_class_s_value():
    classes = (ClassSpec("a", ("b",)), ClassSpec("b", ("a",)))
    assert class_indices(classes, legend=legend_of({})) == {"b": 0, "a": 1}
    with pytest.raises(DataError, match="'b' is given twice"):
        class_indices(classes, ignore=("b",), legend=legend_of({}))


def test_legend_numbers_and_names_mean_the_same():
    legend = legend_of({"pine": 4, "lorry": 9})
    found = class_indices((ClassSpec("tree", (4,)), ClassSpec("car", ("lorry",))), legend=legend)
    assert found == {4: 0, "lorry": 1, "tree": 0, "car": 1, "pine": 0, 9: 1}


def test_outlines():
    rows = [row(outline=(RING,)), row(place=2), row(ignored=True)]
    objects, repairs = read(rows, form="outlines")
    assert repairs.counts == {NO_OUTLINE: 1}
    assert objects.ignored.tolist() == [False, True, True]
    np.testing.assert_array_equal(objects.shapes[0][0], RING)
    assert objects.shapes[1][0].tolist() == [[1, 1], [9, 1], [9, 9], [1, 9]]
    assert objects.shapes[0][0].dtype == np.float32
    assert read(rows)[0].shapes is None


def test_no_outlines_at_all():
    with pytest.raises(DataError, match=r"no label file has outlines, e\.g\. a\.txt"):
        read([row()], form="outlines")
    empty, _ = read([], form="outlines")
    assert empty.shapes == ()
    assert read([], form="turned")[0].turned.shape == (0, 5)


def test_turned_boxes_keep_step_with_dropped_ones():
    rows = [row((5, 5, 5, 5), turned=(1, 1, 1, 1, 0)), row(turned=(2, 2, 2, 1, 0.5))]
    objects, _ = read(rows, form="turned")
    assert objects.turned.tolist() == [[2, 2, 2, 1, 0.5]]


def test_another_size_than_the_file_states():
    _, repairs = read([row()], size=(40, 40))
    assert repairs.counts == {OTHER_SIZE: 1}
    assert repairs.places[OTHER_SIZE] == ["a.txt: 40 x 40 pixels, but 100 x 80 pixels"]


def test_unreadable_label_files_stop():
    pictures = list_pictures(ROOT, [], unreadable=[("/data/b.png", "b.txt, line 3: bad")])
    with pytest.raises(DataError, match=r"1 label files can't be read: b\.txt, line 3: bad"):
        resolve(pictures, classes=CLASSES, sizes={})
    assert resolve(pictures, classes=CLASSES, sizes={}, on_error="skip").objects == {}


def test_repairs_keep_few_places():
    repairs = Repairs()
    for index in range(9):
        repairs.add("holes", f"place {index}")
    repairs.extend(repairs)
    assert repairs.counts == {"holes": 18}
    assert len(repairs.places["holes"]) == SHOWN
    assert repairs.describe() == "18 holes: place 0; place 1; place 2; place 3; place 4 ..."
