"""Cityscapes: frames find their annotations, polygons give the official label image bit by bit."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest

from datamodules.classes import Classes, ClassSpec
from datamodules.errors import DataError
from datamodules.layouts import cityscapes

FRAMES = (
    "train/aachen/aachen_000000_000019",
    "train/bremen/bremen_000001_000019",
    "val/ulm/ulm_000002_000019",
)
FORMS = {"index": "labelIds.png", "polygons": "polygons.json", "colour": "color.png"}


@pytest.fixture
def root(tmp_path):
    for frame in FRAMES:
        files = [
            f"leftImg8bit/{frame}_leftImg8bit.png",
            *(f"gtFine/{frame}_gtFine_{end}" for end in FORMS.values()),
        ]
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("form", list(FORMS))
def test_scan(root, form):
    items = cityscapes.scan(root, folder="train", label_form=form).items
    assert [item.id for item in items] == [f"leftImg8bit/{frame}_leftImg8bit.png" for frame in FRAMES[:2]]
    assert items[0].label == str(root / f"gtFine/{FRAMES[0]}_gtFine_{FORMS[form]}")
    assert len(cityscapes.scan(root, label_form=form).items) == 3
    assert cityscapes.scan(root, label_form=form).unmatched == []


def test_the_drive_is_the_city(root):
    stems = [item.image.rpartition("/")[2] for item in cityscapes.scan(root).items]
    assert [re.search(cityscapes.DRIVE_PATTERN, stem)[1] for stem in stems] == ["aachen", "bremen", "ulm"]


def test_unmatched(root):
    (root / f"gtFine/{FRAMES[0]}_gtFine_labelIds.png").unlink()
    (root / f"leftImg8bit/{FRAMES[1]}_leftImg8bit.png").unlink()
    listing = cityscapes.scan(root, folder="train")
    assert listing.items == []
    assert [path.rpartition("/")[2] for path in listing.unmatched] == [
        "aachen_000000_000019_leftImg8bit.png",
        "bremen_000001_000019_gtFine_labelIds.png",
    ]


def test_labels_of_real_annotations_are_reproduced(shared):
    files = sorted((shared / "data/layouts/cityscapes/gtFine").glob("*/*/*_polygons.json"))
    assert len(files) == 3
    for path in (files[0], files[2]):
        wanted = cv2.imread(str(path).replace("polygons.json", "labelIds.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(cityscapes.rasterise(path), wanted)


def write(tmp_path, objects):
    path = tmp_path / "a_gtFine_polygons.json"
    path.write_text(json.dumps({"imgHeight": 20, "imgWidth": 30, "objects": objects}))
    return path


def box(label, left, top, right, bottom, **more):
    return {"label": label, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]], **more}


def test_later_polygons_cover_earlier_ones_and_deleted_ones_are_left_out(tmp_path):
    path = write(
        tmp_path,
        [
            box("road", 0, 10, 29, 19),
            box("cargroup", 5, 5, 14, 14),
            box("license plate", 6, 6, 8, 8),
            box("sky", 0, 0, 29, 19, deleted=1),
        ],
    )
    mask = cityscapes.rasterise(path)
    assert mask.shape == (20, 30)
    assert (mask[5:15, 5:15] == 26).all()
    assert (mask[15:] == 7).all()
    assert (mask[:5] == 0).all()


def test_official_ids_map_to_the_19_training_classes():
    classes = Classes(cityscapes.LEGENDS["index"].classes, legend=cityscapes.LEGENDS["index"])
    mask = classes.lookup(np.arange(34, dtype=np.uint8)[None], source="a")[0]
    trained = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert mask[trained].tolist() == list(range(19))
    assert (np.delete(mask, trained) == 255).all()
    assert classes.names[0] == "road"
    assert classes.colours[0].tolist() == [128, 64, 128]


def test_index_and_colour_masks_agree():
    legend = cityscapes.LEGENDS
    by_index = Classes(legend["index"].classes, legend=legend["index"])
    by_colour = Classes(legend["colour"].classes, legend=legend["colour"])
    told_apart = [label for label in cityscapes.LABELS if label.name not in ("polegroup", "license plate")]
    ids = np.array([[label.id for label in told_apart]], np.int16)
    colours = np.array([[label.colour for label in told_apart]], np.uint8)
    np.testing.assert_array_equal(by_index.lookup(ids, source="a"), by_colour.lookup(colours, source="a"))


def test_merging_by_name():
    legend = cityscapes.LEGENDS["index"]
    specs = [
        ClassSpec("ground", ("road", "sidewalk", "terrain")),
        ClassSpec("vehicle", ("car", "truck", "caravan")),
    ]
    mask = Classes(specs, legend=legend).lookup(np.array([[7, 22, 29, 0]], np.uint8), source="a")
    assert mask.tolist() == [[0, 0, 1, 255]]
    with pytest.raises(DataError, match="did you mean 'vegetation'"):
        Classes([*specs, ClassSpec("plant", ("vegetatoin",))], legend=legend)


ONE = '{"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "LABEL", "polygon": [[0, 1]]}]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not a Cityscapes polygons file"),
        (b"[]", "not a Cityscapes polygons file"),
        (b"\xff\xfe", "not a Cityscapes polygons file"),
        (b'{"imgHeight": 2, "imgWidth": 2}', "'objects'"),
        (ONE.replace("LABEL", "road").encode(), "coordinate"),
        (ONE.replace("LABEL", "rode").encode(), "did you mean road"),
    ],
)
def test_broken_polygons(tmp_path, text, message):
    path = tmp_path / "x_gtFine_polygons.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message) as caught:
        cityscapes.rasterise(path)
    assert "x_gtFine_polygons.json" in str(caught.value)
