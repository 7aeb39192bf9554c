"""Classes: every label value becomes its class, and what is in no class is named."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.classes import Classes, ClassSpec, Legend, legend_of_texts, parse_colour
from datamodules.errors import DataError

ROAD, CAR = ClassSpec("road", (7,)), ClassSpec("vehicle", (26, 27))
LEGEND = Legend(
    (ROAD, ClassSpec("car", (26,))), ignore=(0, 27), names={"void": 0, "road": 7, "car": 26, "truck": 27}
)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.int64, np.uint32, np.float32])
def test_lookup_merges_and_ignores(dtype):
    values = np.array([[7, 26], [27, 0]], dtype=dtype)
    mask = Classes([ROAD, CAR], ignore=[0]).lookup(values, source="a.png")
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 1], [1, 255]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_unknown_values_are_counted_and_named(dtype):
    values = np.array([[7, 3, 3], [250, 0, 26]], dtype=dtype)
    with pytest.raises(DataError) as caught:
        Classes([ROAD, CAR], ignore=[0]).lookup(values, source="masks/a.png")
    text = str(caught.value)
    assert text.startswith("masks/a.png: ")
    assert "(2 pixels)" in text
    assert "250" in text
    assert "road 7, vehicle 26/27" in text
    assert "ignored: 0" in text


def test_nodata_pixels_may_hold_anything():
    values = np.array([[7, 99]], dtype=np.uint8)
    mask = Classes([ROAD, CAR]).lookup(values, source="a", valid=np.array([[True, False]]))
    assert mask.tolist() == [[0, 255]]


def test_negative_wide_and_nan_values():
    classes = Classes([ClassSpec("a", (-1,)), ClassSpec("b", (70000,))], ignore=[-9999])
    values = np.array([[-1, 70000, -9999]])
    assert classes.lookup(values.astype(np.int32), source="a").tolist() == [[0, 1, 255]]
    assert classes.lookup(values.astype(np.float64), source="a").tolist() == [[0, 1, 255]]
    with pytest.raises(DataError, match=r"200 \(1 pixels\)"):
        classes.lookup(np.array([[200]], np.uint8), source="a")
    with pytest.raises(DataError, match=r"nan \(1 pixels\)"):
        classes.lookup(np.array([[np.nan, -1]]), source="a")
    with pytest.raises(DataError, match=r"0\.5 \(1 pixels"):
        classes.lookup(np.array([[0.5]]), source="a")


def test_every_8_bit_value_round_trips():
    values = np.random.default_rng(0).permutation(256)[:200]
    classes = Classes([ClassSpec(f"c{i}", (int(v),)) for i, v in enumerate(values)])
    mask = classes.lookup(values.astype(np.uint8).reshape(10, 20), source="a")
    np.testing.assert_array_equal(mask.ravel(), np.arange(200))


def test_colours():
    classes = Classes(
        [ClassSpec("road", ("#804080",)), ClassSpec("sky", ("#4682B4", "#0000ff"))], ignore=["#000000"]
    )
    image = np.array([[[128, 64, 128], [70, 130, 180]], [[0, 0, 255], [0, 0, 0]]], dtype=np.uint8)
    assert classes.lookup(image, source="a").tolist() == [[0, 1], [1, 255]]
    assert classes.are_colours
    assert classes.colours.tolist() == [[128, 64, 128], [70, 130, 180]]
    image[0, 0] = (255, 255, 254)
    with pytest.raises(DataError, match=r"#fffffe \(1 pixels\)"):
        classes.lookup(image, source="a")
    with pytest.raises(DataError, match="one channel"):
        classes.lookup(image[..., 0], source="a")
    with pytest.raises(DataError, match="3 channels"):
        Classes([ROAD, CAR]).lookup(image, source="a")


def test_a_legend_resolves_names_and_keeps_its_ignored_values():
    classes = Classes([ClassSpec("way", ("road",)), ClassSpec("traffic", ("car", "truck"))], legend=LEGEND)
    assert [spec.values for spec in classes.specs] == [(7,), (26, 27)]
    assert classes.ignore == (0,)
    own = Classes(LEGEND.classes, legend=LEGEND)
    assert own.names == ("road", "car")
    assert own.lookup(np.array([[0, 7, 26, 27]], np.uint8), source="a").tolist() == [[255, 0, 1, 255]]
    assert Classes(LEGEND.classes, ignore=["void", 27], legend=LEGEND).ignore == (0, 27)


def test_an_unlisted_value_of_the_layout_is_named():
    classes = Classes([ClassSpec("way", ("road",)), ClassSpec("void", ("void",))], legend=LEGEND)
    with pytest.raises(DataError, match=r"26 'car' \(1 pixels\)"):
        classes.lookup(np.array([[26]], np.uint8), source="a")


@pytest.mark.parametrize(
    ("specs", "ignore", "message"),
    [
        ([ROAD, ClassSpec("road", (8,))], [], "class name 'road' is given twice"),
        ([ROAD, ClassSpec("car", (7,))], [], "7 is given twice: in class 'road' and in class 'car'"),
        ([ROAD, CAR], [26], "26 is given twice: in class 'vehicle' and in ignore"),
        ([ROAD, ClassSpec("car", ("#000000",))], [], "mix"),
        ([ROAD, CAR], ["#000000"], "mix"),
        ([ROAD, ClassSpec("car", ())], [], "no values"),
        ([ROAD], [], "1 classes"),
        ([ROAD, ClassSpec("car", ("#12345",))], [], "#rrggbb"),
        ([ROAD, ClassSpec("car", ("truk",))], [], "did you mean 'truck'"),
        ([ROAD, ClassSpec("car", ("zzz",))], [], "void, road, car, truck"),
        ([ROAD, CAR], ["viod"], "did you mean 'void'"),
    ],
)
def test_wrong_classes(specs, ignore, message):
    with pytest.raises(DataError, match=message):
        Classes(specs, ignore=ignore, legend=LEGEND)


def test_a_name_without_a_layout():
    with pytest.raises(DataError, match="no names of its own"):
        Classes([ROAD, ClassSpec("car", ("truck",))])


def test_chosen_colours_differ_and_repeat():
    specs = [ClassSpec(f"c{i}", (i,), (66, 99, 216) if i == 5 else None) for i in range(100)]
    colours = Classes(specs).colours
    assert len({tuple(colour) for colour in colours.tolist()}) == 100
    assert colours[5].tolist() == [66, 99, 216]
    np.testing.assert_array_equal(colours, Classes(specs).colours)


def test_parse_colour():
    assert parse_colour("#80FF00") == (128, 255, 0)
    with pytest.raises(DataError, match="'red'"):
        parse_colour("red")


def test_texts_are_numbered():
    specs = (ClassSpec("ground", ("bare", "sand")), ClassSpec("water", ("#water",)))
    classes = Classes(specs, ignore=("cloud",), legend=legend_of_texts(specs, ("cloud",)))
    assert not classes.are_colours
    assert [spec.values for spec in classes.specs] == [(0, 1), (2,)]
    assert classes.ignore == (3,)
    assert len(np.unique(classes.colours, axis=0)) == 2
    assert legend_of_texts((ClassSpec("a", (1,)),), (2,)).names == {}
    with pytest.raises(DataError, match=r"classes mix text \('bare'\) and numbers"):
        legend_of_texts(specs, (255,))
