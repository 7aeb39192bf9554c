"""Readers of object labels: what the tests' own writers wrote is read back, and every format's own marks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.layouts import bdd100k_objects, coco, dota, kitti_objects, table, voc, yolo
from datamodules.objects import Objects
from datamodules.objects_reading import resolve

NAMES = ("car", "tree", "boat")
CLASSES = tuple(ClassSpec(name, (name,)) for name in NAMES)
WIDTH, HEIGHT = 90, 70
SIZE = (HEIGHT, WIDTH)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    return path


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(listing, *, form="boxes", classes=CLASSES):
    sizes = {item.id: SIZE for item in listing.items}
    return resolve(listing, classes=classes, sizes=sizes, form=form).objects


# ---------------------------------------------------------------- writers: (root, [(box, label)]) -> nothing


def write_coco(root, pairs):
    picture(root / "train/a.png")
    objects = [
        {
            "id": i + 1,
            "image_id": 7,
            "category_id": 10 * label + 3,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": 0,
        }
        for i, ((x1, y1, x2, y2), label) in enumerate(pairs)
    ]
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 10 * i + 3, "name": name} for i, name in enumerate(NAMES)],
        "annotations": objects,
    }
    return coco_file(root, content)


def coco_file(root, content):
    return text(root / "annotations/instances_train.json", content)


def write_yolo(root, pairs):
    picture(root / "images/train/a.png")
    text(root / "data.yaml", "names: [car, tree, boat]\n")
    lines = [
        f"{label} {(x1 + x2) / 2 / WIDTH!r} {(y1 + y2) / 2 / HEIGHT!r} {(x2 - x1) / WIDTH!r} {(y2 - y1) / HEIGHT!r}"
        for (x1, y1, x2, y2), label in pairs
    ]
    text(root / "labels/train/a.txt", "\n".join(lines))


def voc_object(box, name, more=""):
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{edge}>{value!r}</{edge}>" for edge, value in edges)
    return f"<object><name>{name}</name>{more}<bndbox>{inner}</bndbox></object>"


def write_voc(root, pairs):
    picture(root / "JPEGImages/a.png")
    objects = "".join(voc_object(box, NAMES[label]) for box, label in pairs)
    text(root / "Annotations/a.xml", f"<annotation>{objects}</annotation>")


def write_kitti(root, pairs):
    picture(root / "training/image_2/a.png")
    lines = [f"{NAMES[label]} 0.5 2 -1 {' '.join(map(repr, box))} 1 1 1 1 1 1 0" for box, label in pairs]
    text(root / "training/label_2/a.txt", "\n".join(lines))


def write_bdd(root, pairs):
    picture(root / "images/100k/train/a.jpg")
    labels = [
        {"category": NAMES[label], "box2d": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))}
        for box, label in pairs
    ]
    text(root / "labels/bdd100k_labels_images_train.json", [{"name": "a.jpg", "labels": labels}])


def write_bdd_frames(root, pairs):
    picture(root / "images/100k/train/a.jpg")
    labels = [
        {"category": NAMES[label], "box2d": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))}
        for box, label in pairs
    ]
    text(root / "labels/100k/train/a.json", {"name": "a", "frames": [{"objects": labels}]})


def write_table(root, pairs):
    picture(root / "a.png")
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "image", "x1", "y1", "x2", "y2"])
        writer.writerows([NAMES[label], "a.png", *map(repr, box)] for box, label in pairs)
        if not pairs:
            writer.writerow(["", "a.png", "", "", "", ""])


def write_dota(root, pairs):
    picture(root / "images/a.png")
    lines = [
        f"{x1!r} {y1!r} {x2!r} {y1!r} {x2!r} {y2!r} {x1!r} {y2!r} {NAMES[label]} 0"
        for (x1, y1, x2, y2), label in pairs
    ]
    text(root / "labelTxt/a.txt", "\n".join(["imagesource:GoogleEarth", "gsd:0.1", *lines]))


FORMATS = {
    "coco": (write_coco, coco.scan),
    "yolo": (write_yolo, yolo.scan),
    "voc": (write_voc, voc.scan),
    "kitti": (write_kitti, kitti_objects.scan),
    "bdd": (write_bdd, bdd100k_objects.scan),
    "bdd frames": (write_bdd_frames, bdd100k_objects.scan),
    "table": (write_table, lambda root: table.scan(root, annotations="train.csv")),
    "dota": (write_dota, dota.scan),
}


@st.composite
def pairs_of(draw):
    x1, y1 = draw(st.floats(0, WIDTH - 2)), draw(st.floats(0, HEIGHT - 2))
    x2, y2 = draw(st.floats(x1 + 1, WIDTH)), draw(st.floats(y1 + 1, HEIGHT))
    return (x1, y1, x2, y2), draw(st.integers(0, 2))


@pytest.mark.parametrize("name", FORMATS)
@given(pairs=st.lists(pairs_of(), max_size=5))
def test_what_was_written_is_read(tmp_path_factory, name, pairs):
    write, scan = FORMATS[name]
    root = tmp_path_factory.mktemp("root")
    write(root, pairs)
    listing = scan(root)
    (objects,) = read(listing).values()
    assert listing.unmatched == []
    assert isinstance(objects, Objects)
    np.testing.assert_allclose(objects.boxes, np.array([box for box, _ in pairs]).reshape(-1, 4), atol=1e-4)
    assert objects.labels.tolist() == [label for _, label in pairs]
    assert not objects.ignored.any()
    assert (objects.boxes.dtype, objects.labels.dtype) == (np.float32, np.int64)


@given(
    cx=st.floats(20, 60), cy=st.floats(20, 50), w=st.floats(8, 15), share=st.floats(0.2, 0.9),
    angle=st.floats(-1.5, 1.5), start=st.integers(0, 3),
)  # fmt: skip
def test_turned_boxes_are_read(tmp_path_factory, cx, cy, w, share, angle, start):
    root = tmp_path_factory.mktemp("root")
    picture(root / "images/a.png")
    h = w * share
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    corners = [np.array([cx, cy]) + i * w / 2 * along + j * h / 2 * across for i, j in signs]
    corners = np.roll(corners, start, axis=0)
    text(root / "labelTxt/a.txt", " ".join(map(repr, corners.ravel().tolist())) + " boat 0")
    (objects,) = read(dota.scan(root), form="turned").values()
    (found,) = objects.turned.tolist()
    np.testing.assert_allclose(found[:4], (cx, cy, w, h), atol=1e-3)
    assert abs(np.sin(found[4] - angle)) < 2e-3  # the same but for half a turn
    assert -np.pi / 2 <= found[4] < np.pi / 2
    np.testing.assert_allclose(objects.boxes[0], (*corners.min(axis=0), *corners.max(axis=0)), atol=1e-3)


def test_difficult_and_dont_care_are_ignored(tmp_path):
    box = (1, 2, 30, 40)
    picture(tmp_path / "voc/images/a.png")
    text(
        tmp_path / "voc/annotations/a.xml",
        f"<annotation>{voc_object(box, 'car', '<difficult>1</difficult><truncated>1</truncated>')}"
        f"{voc_object(box, 'car')}</annotation>",
    )
    listing = voc.scan(tmp_path / "voc")
    assert read(listing)["images/a.png"].ignored.tolist() == [True, False]
    np.testing.assert_array_equal(listing.annotations["images/a.png"].extras["truncated"], [1, np.nan])

    picture(tmp_path / "kitti/training/image_2/a.png")
    text(
        tmp_path / "kitti/training/label_2/a.txt",
        "DontCare -1 -1 -10 1 2 30 40 -1 -1 -1 -1000 -1000 -1000 -10\ncar 0.3 2 0 1 2 30 40 1 1 1 1 1 1 1\n",
    )
    listing = kitti_objects.scan(tmp_path / "kitti")
    assert read(listing)["training/image_2/a.png"].ignored.tolist() == [True, False]
    assert listing.annotations["training/image_2/a.png"].extras["occluded"].tolist() == [-1, 2]

    picture(tmp_path / "dota/images/a.png")
    text(tmp_path / "dota/labelTxt/a.txt", "1 1 9 1 9 9 1 9 car 1\n1 1 9 1 9 9 1 9 car 0\n")
    hard = read(dota.scan(tmp_path / "dota"))["images/a.png"]
    assert hard.ignored.tolist() == [True, False]
    assert hard.difficult.tolist() == [hard.labels[1], -1]
    assert hard.take(np.array([1])).difficult.tolist() == [-1]


def test_voc_pixels_from_one(tmp_path):
    write_voc(tmp_path, [((1, 1, WIDTH, HEIGHT), 0)])
    (objects,) = read(voc.scan(tmp_path, first_pixel=1)).values()
    assert objects.boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]


def test_yolo_outlines_and_numbers_without_names(tmp_path):
    picture(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", "5 0.1 0.1 0.5 0.1 0.5 0.5\n")
    listing = yolo.scan(tmp_path)
    assert listing.annotations["images/a.png"].names == (5,)
    (objects,) = read(listing, form="outlines", classes=(ClassSpec("boat", (5,)),)).values()
    np.testing.assert_allclose(objects.shapes[0][0], [[9, 7], [45, 7], [45, 35]], rtol=1e-6)
    np.testing.assert_allclose(objects.boxes, [[9, 7, 45, 35]], rtol=1e-6)


def test_yolo_pictures_without_text_file(tmp_path):
    picture(tmp_path / "images/b.png")
    write_yolo(tmp_path, [((1, 1, 9, 9), 1)])
    picture(tmp_path / "images/train/b.png")
    listing = yolo.scan(tmp_path, folder="train")
    assert listing.images_without_label == [str(tmp_path / "images/train/b.png")]
    listing = yolo.scan(tmp_path, folder="train", empty_without_label=True)
    assert [len(each) for each in read(listing).values()] == [1, 0]
    assert [item.label for item in listing.items] == [str(tmp_path / "labels/train/a.txt"), None]
    assert listing.unmatched == []


def test_yolo_names_among_the_labels(tmp_path):
    picture(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", "1 0.5 0.5 0.1 0.1\n")
    text(tmp_path / "labels/classes.txt", "boat\ntree\n")
    listing = yolo.scan(tmp_path)
    assert listing.unmatched == []
    assert listing.annotations["images/a.png"].names == ("tree",)
    text(tmp_path / "labels/classes.txt", "boat\nboat\n")
    with pytest.raises(DataError, match=r"classes\.txt: names a class twice: boat, boat"):
        yolo.scan(tmp_path)


def test_class_numbers_of_a_legend(tmp_path):
    """A class's values may be COCO's category ids."""
    write_coco(tmp_path, [((1, 1, 9, 9), 2)])
    (objects,) = read(
        coco.scan(tmp_path), classes=(ClassSpec("x", (3, 13)), ClassSpec("ship", (23,)))
    ).values()
    assert objects.labels.tolist() == [1]


def test_splits_of_coco_are_merged(tmp_path):
    write_coco(tmp_path, [((1, 1, 9, 9), 0)])
    content = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    picture(tmp_path / "val/a.png")
    picture(tmp_path / "val/more.png")
    text(tmp_path / "annotations/instances_val.json", {**content, "annotations": []})
    listing = coco.scan(tmp_path)
    assert [item.id for item in listing.items] == ["train/a.png", "val/a.png"]
    assert [len(each) for each in read(listing).values()] == [1, 0]
    assert listing.images_without_label == [str(tmp_path / "val/more.png")]
    assert [item.id for item in coco.scan(tmp_path, folder="val").items] == ["val/a.png"]


def test_bdd_outlines_and_open_lines(tmp_path):
    picture(tmp_path / "images/100k/train/a.jpg")
    circle = 4 / 3 * np.tan(np.pi / 8) * 20  # control points of a quarter circle of radius 20 around (40, 40)
    c = float(circle)
    curve = [
        [60, 40], [60, 40 + c], [40 + c, 60], [40, 60], [40 - c, 60], [20, 40 + c],
        [20, 40], [20, 40 - c], [40 - c, 20], [40, 20], [40 + c, 20], [60, 40 - c],
    ]  # fmt: skip
    area = {"category": "tree", "poly2d": [{"vertices": curve, "types": "LCC" * 4, "closed": True}]}
    lane = {"category": "lane", "poly2d": [{"vertices": curve[:2], "types": "LL", "closed": False}]}
    text(tmp_path / "labels/det_20/det_train.json", [{"name": "a.jpg", "labels": [area, lane]}])
    listing = bdd100k_objects.scan(tmp_path)
    (objects,) = read(listing, form="outlines").values()
    (ring,) = objects.shapes[0]
    radii = np.hypot(*(ring - 40).T)
    np.testing.assert_allclose(radii, 20, atol=0.02)
    assert len(ring) == 32
    assert listing.repairs.counts == {bdd100k_objects.OPEN_LINE: 1}


def test_bdd_outlines_of_2018(tmp_path):
    picture(tmp_path / "images/100k/val/a.jpg")
    ring = [[1.0, 2.0, "L"], [30.0, 2.0, "L"], [30.0, 40.0, "L"]]
    objects = [{"category": "tree", "poly2d": ring}, {"category": "lane/road curb", "poly2d": ring}]
    text(tmp_path / "labels/100k/val/a.json", {"name": "a", "frames": [{"objects": objects}]})
    listing = bdd100k_objects.scan(tmp_path, folder="val")
    (found,) = read(listing, form="outlines").values()
    assert [ring.tolist() for ring in found.shapes[0]] == [[[1, 2], [30, 2], [30, 40]]]
    assert found.boxes.tolist() == [[1, 2, 30, 40]]
    assert listing.repairs.counts == {bdd100k_objects.OPEN_LINE: 1}


def test_table_of_an_empty_picture_and_of_others(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    text(
        tmp_path / "train.csv",
        "image,x1,y1,x2,y2,label\na.png,1,1,9,9,car\nb.png,,,,,\ngone.png,1,1,2,2,car\n",
    )
    listing = table.scan(tmp_path, folder="train")
    assert [len(each) for each in read(listing).values()] == [1, 0]
    assert listing.images_without_label == [str(tmp_path / "c.png")]
    assert listing.labels_without_image == [f"{tmp_path}/train.csv: {tmp_path}/gone.png"]


def test_a_folder_without_a_place_is_refused(tmp_path):
    write_voc(tmp_path, [])
    with pytest.raises(DataError, match=r"'train'.*has no '\{split\}'"):
        voc.scan(tmp_path, folder="train")


# ---------------------------------------------------------------- real data


DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "neon_trees").is_dir(), reason="needs ../shared")
def test_neon_trees_flaws():
    listing = voc.scan(DATA / "neon_trees")
    sizes = {item.id: cv2.imread(item.image).shape[:2] for item in listing.items}
    tree = (ClassSpec("Tree", ("Tree",)),)
    with pytest.raises(DataError) as error:
        resolve(listing, classes=tree, sizes=sizes)
    for part in (
        "12 boxes are named 'Tree\\', nearest: Tree;",
        "11 boxes have no name",
        "1 boxes lie wholly",
    ):
        assert part in str(error.value)
    objects = resolve(listing, classes=tree, sizes=sizes, on_error="skip").objects.values()
    assert sum(len(each) for each in objects) == 1099
    assert sum(int((~each.ignored).sum()) for each in objects) == 1076


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "kitti").is_dir(), reason="needs ../shared")
def test_kitti_counts():
    listing = kitti_objects.scan(DATA / "kitti")
    sizes = {item.id: cv2.imread(item.image).shape[:2] for item in listing.items}
    found = resolve(listing, classes=listing.legend.classes, sizes=sizes).objects.values()
    labels = np.concatenate([each.labels[~each.ignored] for each in found])
    assert np.bincount(labels).tolist() == [303, 34, 14, 47, 5, 18, 12, 6]
    assert sum(int(each.ignored.sum()) for each in found) == 237
