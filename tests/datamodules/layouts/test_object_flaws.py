"""Malformed files of object labels: one clear DataError with file and place, never another exception."""

from __future__ import annotations

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datamodules.errors import DataError
from datamodules.layouts import bdd100k_objects, coco, dota, kitti_objects, table, voc, yolo


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(path)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def problem(listing):
    """The one reason why a picture's label file can't be read."""
    assert listing.items == []
    ((_, reason),) = listing.unreadable
    return reason


def refusal(scan, root, content):
    """Its message, or None where the content is accepted; any other exception is a fault."""
    try:
        scan(root, content)
    except DataError as error:
        return str(error)
    return None


# ---------------------------------------------------------------- a file a picture


def scan_yolo(root, content, names=None):
    picture(root / "images/a.png")
    text(root / "labels/a.txt", content)
    if names is not None:
        text(root / "data.yaml", names)
    return yolo.scan(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", r"a\.txt, line 2: 4 numbers \(0 0\.5 0\.5 0\.1\)"),
        ("0 0.1 0.1 0.1 0.1 0.1", r"line 2: 6 numbers"),
        ("2 0.5 0.5 0.1 0.1", r"line 2: the class is 2; allowed: 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", r"line 2: the class is -1"),
        ("0.5 0.5 0.5 0.1 0.1", r"line 2: the class is 0\.5"),
        ("nan 0.5 0.5 0.1 0.1", r"line 2: the class is nan"),
        ("car 0.5 0.5 0.1 0.1", r"line 2: the class is car, not a number"),
        ("0 0.5 x 0.1 0.1", r"line 2: a coordinate is x, not a number"),
        ("0 300 200 40 20", r"line 2: .* looks like pixels"),
    ],
)
def test_yolo(tmp_path, line, message):
    assert re.search(message, problem(scan_yolo(tmp_path, f"0 0.5 0.5 0.1 0.1\n{line}\n", "names: [a, b]")))


@pytest.mark.parametrize(
    "names", ["names: 3", "[1", "names: {0: a, 2: b}", "names: [a, a]", "a: !!python/object:x {}"]
)
def test_yolo_names(tmp_path, names):
    with pytest.raises(DataError, match=r"data\.yaml"):
        scan_yolo(tmp_path, "", names)


def scan_voc(root, content):
    picture(root / "images/a.png")
    text(root / "annotations/a.xml", content)
    return voc.scan(root)


BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.xml: not XML, or a truncated file"),
        ("<annotation><object>", "a.xml: not XML, or a truncated file"),
        ("<annotations/>", "its root is <annotations>"),
        ("<annotation><object><name>x</name></object></annotation>", "a.xml, object 1: has no <bndbox>"),
        (
            "<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>",
            "a.xml, object 1: <ymin> is None, not a number",
        ),
        ("<annotation><size><width>nan</width><height>a</height></size></annotation>", "<size> is a"),
        (BOMB, "a.xml: line 2: a DOCTYPE is not allowed"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>', "a DOCTYPE is not allowed"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not XML"),
        (b"\xff\xfe\x00", "not XML"),
    ],
)
def test_voc(tmp_path, content, message):
    assert message in problem(scan_voc(tmp_path, content))


def test_kitti(tmp_path):
    picture(tmp_path / "training/image_2/a.png")
    text(tmp_path / "training/label_2/a.txt", "Car 0 0 0 1 2 3\n")
    assert "a.txt, line 1: 7 fields" in problem(kitti_objects.scan(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3 4 5 6 7 car 0", "a corner is car, not a number"),
        ("1 2 3 4 5 6 7", "7 fields"),
        ("1 1 9 1 9 9 1 9 car yes", "difficult is yes"),
    ],
)
def test_dota(tmp_path, line, message):
    picture(tmp_path / "images/a.png")
    text(tmp_path / "labelTxt/a.txt", f"gsd:null\n{line}\n")
    assert message in problem(dota.scan(tmp_path))
    assert "a.txt, line 2" in problem(dota.scan(tmp_path))


def test_a_huge_label_file(tmp_path):
    path = text(tmp_path / "labels/a.txt", "")
    picture(tmp_path / "images/a.png")
    os.truncate(path, 1 << 30)  # a hole: takes no space
    assert "1024 MB are too many for a label file" in problem(yolo.scan(tmp_path))


@given(content=st.binary(max_size=40) | st.text("0123456789. -naif\n<>/&abcxyz", max_size=60))
def test_any_text(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("root")
    scan_yolo(root / "yolo", content)
    scan_voc(root / "voc", content)
    picture(root / "dota/images/a.png")
    text(root / "dota/labelTxt/a.txt", content)
    dota.scan(root / "dota")


# ---------------------------------------------------------------- a file a split


def coco_content():
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 20}],
        "categories": [{"id": 1, "name": "car"}, {"id": 5, "name": "tree"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 1, 5, 5], "iscrowd": 0}],
    }


def scan_coco(root, content):
    picture(root / "train/a.png")
    text(
        root / "annotations/instances_train.json",
        content if isinstance(content, str) else json.dumps(content),
    )
    return coco.scan(root)


ANNOTATION = coco_content()["annotations"][0]
IMAGE = coco_content()["images"][0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images", None, r"instances_train\.json: 'images' is None; allowed: list"),
        ("images", [IMAGE, IMAGE], r"images\[1\]: the id 1 is given twice"),
        ("images", [IMAGE, {**IMAGE, "id": 2}], r"two images have the file name"),
        (
            "images",
            [{**IMAGE, "file_name": "../../x.png"}],
            r"images\[0\]: the file name '../../x.png' is not one",
        ),
        ("images", [{**IMAGE, "file_name": "/etc/x.png"}], r"is not one below"),
        ("images", [{**IMAGE, "file_name": "..\\x.png"}], r"is not one below"),
        ("images", [{**IMAGE, "file_name": "C:\\x.png"}], r"is not one below"),
        ("images", [{**IMAGE, "file_name": "a" * 5000}], r"is not one below"),
        ("images", [{**IMAGE, "file_name": "\ud800"}], r"is not one below"),
        ("images", [{**IMAGE, "file_name": ""}], r"is not one below"),
        ("images", [{**IMAGE, "height": "10"}], r"images\[0\]: 'height' is 10; allowed: int"),
        ("images", [{**IMAGE, "height": -10}], r"images\[0\]: 20 x -10 pixels"),
        ("images", [7], r"images\[0\]: 7 is no JSON object"),
        ("categories", [{"id": 1, "name": "a"}] * 2, r"categories\[1\]: the class 1 'a'"),
        ("categories", [{"id": True, "name": "a"}], r"'id' is True"),
        ("annotations", [ANNOTATION, ANNOTATION], r"annotations\[1\]: the id 1 is given twice"),
        ("annotations", [{**ANNOTATION, "id": 10**30}], r"annotations\[0\]: 'id' is 10{30}"),
        ("annotations", [{**ANNOTATION, "image_id": 9}], r"annotations\[0\]: image_id 9 is no image"),
        (
            "annotations",
            [{**ANNOTATION, "category_id": 2}],
            r"annotations\[0\]: category_id 2 is none of \[1, 5\]",
        ),
        ("annotations", [{**ANNOTATION, "bbox": [1, 1, 5]}], r"bbox is \[1, 1, 5\]; allowed: 4 numbers"),
        ("annotations", [{**ANNOTATION, "bbox": [1, 1, 5, "x"]}], r"bbox is x, not a number"),
        ("annotations", [{**ANNOTATION, "iscrowd": 2}], r"iscrowd is 2"),
        ("annotations", [{**ANNOTATION, "segmentation": [[1, 2, 3]]}], r"a polygon is \[1, 2, 3\]"),
        ("annotations", [{**ANNOTATION, "segmentation": "x"}], r"segmentation is x"),
        (
            "annotations",
            [{**ANNOTATION, "segmentation": {"size": [10, 20], "counts": [3, 4]}}],
            r"don't add up to 10 x 20",
        ),
        (
            "annotations",
            [{**ANNOTATION, "segmentation": {"size": [9, 20], "counts": [180]}}],
            r"its image's \[10, 20\]",
        ),
        (
            "annotations",
            [{**ANNOTATION, "segmentation": {"size": [10, 20], "counts": "o" * 30}}],
            r"no run-length",
        ),
        (
            "annotations",
            [{**ANNOTATION, "segmentation": {"size": [10, 20], "counts": "ooo"}}],
            r"truncated run-length",
        ),
    ],
)
def test_coco(tmp_path, key, value, message):
    with pytest.raises(DataError, match=message):
        scan_coco(tmp_path, {**coco_content(), key: value})


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[1, 2]", "\x00", '{"images": [' + "9" * 5000])
def test_coco_that_is_no_json_object(tmp_path, content):
    with pytest.raises(DataError, match=r"instances_train\.json"):
        scan_coco(tmp_path, content)


def test_a_split_without_file(tmp_path):
    scan_coco(tmp_path, coco_content())
    with pytest.raises(DataError, match=r"instances_tain\.json: no such file; .*; did you mean 'train'\?"):
        coco.scan(tmp_path, folder="tain")
    with pytest.raises(DataError, match=r"'table': it has no \*\.csv"):
        table.scan(tmp_path, folder="train")


def test_coco_names_a_missing_image(tmp_path):
    content = coco_content()
    content["images"].append({"id": 2, "file_name": "gone.png", "height": 10, "width": 20})
    listing = scan_coco(tmp_path, content)
    assert listing.labels_without_image == [
        f"{tmp_path}/annotations/instances_train.json: {tmp_path}/train/gone.png"
    ]
    assert [item.id for item in listing.items] == ["train/a.png"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 12) | st.floats() | st.text("ab/.", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["size", "counts", "vertices", "types", "x1", "closed"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(
    where=st.sampled_from(["images", "categories", "annotations"]),
    key=st.sampled_from(["id", "file_name", "height", "name", "image_id", "category_id", "bbox", "segmentation",
                         "iscrowd"]),
    value=JSON,
)  # fmt: skip
def test_any_value_in_coco(tmp_path_factory, where, key, value):
    content = coco_content()
    content[where][0][key] = value
    message = refusal(scan_coco, tmp_path_factory.mktemp("root"), content)
    assert message is None or "instances_train.json" in message


def scan_bdd(root, content):
    picture(root / "images/100k/train/a.jpg")
    text(root / "labels/bdd100k_labels_images_train.json", json.dumps(content))
    return bdd100k_objects.scan(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds \{\}; allowed: a list of frames"),
        ([{"name": "../a.jpg"}], r"frame 0: the file name '../a.jpg' is not one below"),
        ([{"name": "a.jpg"}, {"name": "a.jpg"}], r"frame 1: 'a.jpg' is given twice"),
        ([{"name": "a.jpg", "labels": [{}]}], r"frame 0, label 0: has no 'category'"),
        ([{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}], r"label 0: has no 'y1'"),
        (
            [{"name": "a.jpg", "labels": [{"category": "car", "poly2d": [{"vertices": [], "types": ""}]}]}],
            "0 vertices",
        ),
    ],
)
def test_bdd(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        scan_bdd(tmp_path, content)


@given(key=st.sampled_from(["category", "box2d", "poly2d"]), value=JSON)
def test_any_value_in_bdd(tmp_path_factory, key, value):
    label = {
        "category": "car",
        "poly2d": [{"vertices": [[1, 1], [5, 1], [5, 5]], "types": "LLL"}],
        key: value,
    }
    message = refusal(scan_bdd, tmp_path_factory.mktemp("root"), [{"name": "a.jpg", "labels": [label]}])
    assert message is None or "label 0" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("image,x1,y1,x2,label\n", "no column y2"),
        ("image,x1,y1,x2,y2,label\na.png,1,1,2\n", "line 2: 4 fields, but 6 columns"),
        ("image,x1,y1,x2,y2,label\na.png,1,1,2,,car\n", "line 2: y2 is empty, not a number"),
        (
            "image,x1,y1,x2,y2,label\n../a.png,1,1,2,2,car\n",
            "line 2: the file name '../a.png' is not one below",
        ),
        ('image,x1,y1,x2,y2,label\n"a.png,1,1,2,2,car\n', "not CSV"),
    ],
)
def test_table(tmp_path, content, message):
    text(tmp_path / "boxes.csv", content)
    with pytest.raises(DataError, match=message):
        table.scan(tmp_path, annotations="boxes.csv")
