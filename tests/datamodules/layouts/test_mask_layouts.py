"""Mapillary Vistas, COCO (JSON, panoptic, stuff) and Pascal VOC: masks, legends, and what bad files get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_api

from datamodules.camera import CameraFrameDataModule
from datamodules.classes import Classes, ClassSpec
from datamodules.errors import DataError
from datamodules.layouts import coco_masks, coco_panoptic, coco_stuff, mapillary, voc_masks
from datamodules.splits import FolderSplit

SIZE = (24, 32)


def save(path: Path, array: np.ndarray, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    if palette:
        picture = picture.convert("P")
        picture.putpalette([channel for k in range(256) for channel in voc_masks.palette_colour(k)])
    picture.save(path)


def save_picture(path: Path) -> None:
    save(
        path,
        np.add.outer(np.arange(SIZE[0]), np.arange(SIZE[1])).astype(np.uint8)[..., None]
        * np.uint8([3, 2, 1]),
    )


def codes() -> np.ndarray:
    """(24, 32): 0 on the left, 1 on the right, a row of 2 and one of 3."""
    mask = np.zeros(SIZE, np.uint8)
    mask[:, 16:] = 1
    mask[10], mask[20] = 2, 3
    return mask


def dump(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def first_mask(root: Path, **options: Any) -> tuple[np.ndarray, CameraFrameDataModule]:
    data = CameraFrameDataModule(root, workers=0, **options)
    data.set_normalisation((0.5,) * 3, (0.25,) * 3)
    return next(iter(data.val_dataloader()))["mask"][0].numpy(), data


# ------------------------------------------------------------------------------------ Mapillary

LABELS = [
    {"name": "nature--sky", "readable": "Sky", "color": [70, 130, 180], "evaluate": True},
    {"name": "flat--road", "readable": "Road", "color": [128, 64, 128], "evaluate": True},
    {"name": "object--pole", "readable": "Pole", "color": [153, 153, 153], "evaluate": True},
    {"name": "void--unlabeled", "readable": "Unlabeled", "color": [0, 0, 0], "evaluate": False},
]


@pytest.fixture
def vistas(tmp_path: Path) -> Path:
    root = tmp_path / "vistas"
    dump(root / "config_v2.0.json", {"labels": LABELS, "version": 2.0})
    dump(root / "config_v1.2.json", {"labels": LABELS[1:], "version": 1.2})
    for split in ("training", "validation"):
        save_picture(root / split / "images/a_1.jpg")
        save(root / split / "v2.0/labels/a_1.png", codes(), palette=True)
        save(root / split / "v2.0/instances/a_1.png", codes().astype(np.uint16) * 256 + 7)
        save(root / split / "v1.2/labels/a_1.png", np.minimum(codes(), 2), palette=True)
    save_picture(root / "testing/images/t.jpg")
    return root


@pytest.mark.parametrize("form", [None, "instances"])
def test_vistas(vistas, form):
    mask, data = first_mask(vistas, layout="mapillary", label_form=form)
    assert data.classes.names == ("Sky", "Road", "Pole")
    assert data.classes.colours.tolist() == [label["color"] for label in LABELS[:3]]
    np.testing.assert_array_equal(mask, np.where(codes() == 3, 255, codes()))
    assert [item.id for item in data.items["train"]] == ["training/images/a_1.jpg"]
    assert data.items["test"] == []


def test_vistas_of_2017_and_classes_by_either_name(vistas, tmp_path):
    mask, data = first_mask(vistas, layout="mapillary_v1.2")
    assert data.classes.names == ("Road", "Pole")
    old = tmp_path / "old"
    dump(old / "config.json", {"labels": LABELS})
    for split in ("training", "validation"):
        save_picture(old / split / "images/a.jpg")
        save(old / split / "labels/a.png", codes())
    specs = (ClassSpec("ground", ("Road",)), ClassSpec("rest", ("nature--sky", "Pole")))
    mask, _ = first_mask(old, layout="mapillary_v1.2", classes=specs)
    np.testing.assert_array_equal(mask, np.array([1, 0, 1, 255])[codes()])


def test_names_that_are_not_unique_are_written_in_full(tmp_path):
    labels = [LABELS[0], {**LABELS[1], "readable": "Sky"}]
    legend = mapillary.read_legend(dump(tmp_path / "config.json", {"labels": labels}))
    assert [spec.name for spec in legend.classes] == ["nature--sky", "flat--road"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": {}}, "'labels' is {}; allowed: list"),
        ({"labels": [{"name": "a"}]}, r"labels\[0\]: has no 'color'"),
        ({"labels": [{"name": "a", "color": [1, 2, 300]}]}, "allowed: red, green, blue from 0 to 255"),
        ({"labels": [{"name": "a", "color": [1, 2, 3], "evaluate": "yes"}]}, "evaluate is yes"),
        ({"labels": [LABELS[0], LABELS[0]]}, "names a label twice"),
        ([], "no JSON object with 'labels'"),
    ],
)
def test_a_wrong_table_of_labels(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        mapillary.read_legend(dump(tmp_path / "config.json", content))


def test_flaws_of_vistas(vistas):
    save(vistas / "training/v2.0/labels/a_1.png", np.full(SIZE, 9, np.uint8))
    with pytest.raises(DataError, match=r"a_1.png: label 9 \(768 pixels\) in no class"):
        first_mask(vistas, layout="mapillary")
    save(vistas / "training/v2.0/instances/a_1.png", codes())
    with pytest.raises(DataError, match="one channel of 16 bits, not 1 of uint8"):
        first_mask(vistas, layout="mapillary", label_form="instances")
    (vistas / "config_v2.0.json").unlink()
    with pytest.raises(DataError, match=r"no table of labels; looked for: config_v2.0.json"):
        first_mask(vistas, layout="mapillary")
    with pytest.raises(DataError, match=r"not in the layout 'mapillary v2\.0'"):
        mapillary.scan(vistas / "testing")


# ------------------------------------------------------------------------------------ VOC


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    base = tmp_path / "VOCdevkit/VOC2012"
    for name in ("2007_1", "2007_2", "2007_3"):
        save_picture(base / f"JPEGImages/{name}.jpg")
    for name in ("2007_1", "2007_2"):
        save(
            base / f"SegmentationClass/{name}.png",
            np.where(codes() == 3, 255, codes() * 7).astype(np.uint8),
            palette=True,
        )
    lists = base / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_2  1\n\n")
    (lists / "trainval.txt").write_text("2007_1\n2007_2\n")
    return tmp_path


def test_voc(voc):
    mask, data = first_mask(voc, layout="voc")
    np.testing.assert_array_equal(mask, np.where(codes() == 3, 255, codes() * 7))
    assert data.classes.names[7] == "car"
    assert data.classes.colours[[0, 1, 7, 15, 20]].tolist() == [
        [0, 0, 0], [128, 0, 0], [128, 128, 128], [192, 128, 128], [0, 64, 128],
    ]  # fmt: skip
    assert {split: len(items) for split, items in data.items.items()} == {"train": 1, "val": 1, "test": 0}
    assert len(voc_masks.scan(voc).items) == 2
    assert voc_masks.scan(voc).unmatched == []  # a picture in no list has no mask, and needs none


def test_flaws_of_voc(voc, tmp_path):
    base = voc / "VOCdevkit/VOC2012"
    names = base / "ImageSets/Segmentation/train.txt"
    names.write_text("2007_1\n2007_3\n2007_9\n")
    listing = voc_masks.scan(voc, folder="train")
    assert listing.images_without_label == [str(base / "JPEGImages/2007_3.jpg")]
    assert listing.labels_without_image == [f"{names}, line 3: 2007_9"]
    names.write_text("../../2007_1\n")
    with pytest.raises(DataError, match=r"train.txt, line 1: the file name .* is not one below"):
        voc_masks.scan(voc, folder="train")
    (voc / "VOC2007/SegmentationClass").mkdir(parents=True)
    with pytest.raises(DataError, match="holds several releases"):
        voc_masks.scan(voc)
    with pytest.raises(DataError, match=r"has no list of pictures ImageSets/Segmentation"):
        voc_masks.scan(voc / "VOC2007")
    with pytest.raises(DataError, match="not in the layout 'voc': it has no folder SegmentationClass"):
        voc_masks.scan(tmp_path / "elsewhere")


@pytest.mark.slow
def test_the_fixture_of_voc_has_no_masks(shared):
    with pytest.raises(DataError, match="not in the layout 'voc'"):
        voc_masks.scan(shared / "data/layouts/PASCALVOC_2007")


# ------------------------------------------------------------------------------------ COCO, JSON

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]


def record(image: int, category: int, segmentation: Any) -> dict[str, Any]:
    own = {"id": 100 * image + category, "image_id": image, "category_id": category}
    return own | {"segmentation": segmentation}


def runs(mask: np.ndarray, *, text: bool) -> dict[str, Any]:
    if text:
        code = coco_api.encode(np.asfortranarray(mask, dtype=np.uint8))
        return {"size": list(mask.shape), "counts": code["counts"].decode()}
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])) != 0)
    counts = np.diff(np.concatenate([[0], edges]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def coco_file(root: Path, annotations: list[Any], split: str = "val", **more: Any) -> Path:
    images = [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}]
    save_picture(root / split / "a.jpg")
    content = {"images": images, "categories": CATEGORIES, "annotations": annotations, **more}
    return dump(root / f"annotations/instances_{split}.json", content)


def drawn(root: Path) -> np.ndarray:
    listing = coco_masks.scan(root, folder="val")
    (item,) = listing.items
    return listing.sources[item.image].codes(str(item.label))


def test_coco(tmp_path):
    box = [[2, 3, 12, 3, 12, 9, 2, 9]]
    far = np.zeros(SIZE, bool)
    far[15:20, 20:30] = True
    for split in ("train", "val"):
        coco_file(tmp_path, [record(1, 3, box), record(1, 18, runs(far, text=True))], split)
    mask, data = first_mask(tmp_path, layout="coco")
    expected = np.zeros(SIZE, int)
    expected[3:9, 2:12] = 1
    expected[far] = 2
    np.testing.assert_array_equal(mask, expected)
    assert data.classes.names == ("background", "car", "dog")
    # the background can be no class at all
    mask, data = first_mask(tmp_path, layout="coco", ignore=("background",))
    np.testing.assert_array_equal(mask, np.array([255, 0, 1])[expected])
    assert data.classes.names == ("car", "dog")


@given(seed=st.integers(0, 10_000), text=st.booleans())
@settings(max_examples=25)
def test_run_lengths_are_pycocotools(tmp_path_factory, seed, text):
    root = tmp_path_factory.mktemp("coco")
    area = np.random.default_rng(seed).random(SIZE) < 0.4
    coco_file(root, [record(1, 3, runs(area, text=text))])
    np.testing.assert_array_equal(drawn(root) == 3, area)


def test_polygons_are_nearly_pycocotools(tmp_path):
    """It counts pixels that an edge cuts, too; inside and outside agree."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = np.stack([16 + 9 * np.cos(angles), 12 + 8 * np.sin(angles)], axis=1)
    coco_file(tmp_path, [record(1, 3, [ring.ravel().tolist()])])
    ours = drawn(tmp_path) == 3
    theirs = coco_api.decode(coco_api.frPyObjects([ring.ravel().tolist()], *SIZE))[..., 0].astype(bool)
    assert 0 < (ours != theirs).sum() < 0.12 * theirs.sum()
    edge = np.zeros(SIZE, bool)
    edge[1:-1, 1:-1] = (theirs[2:, 1:-1] != theirs[:-2, 1:-1]) | (theirs[1:-1, 2:] != theirs[1:-1, :-2])
    assert not ((ours != theirs) & ~edge).any()


def test_what_two_classes_claim_is_ignored(tmp_path):
    left, right = [[0, 0, 20, 0, 20, 24, 0, 24]], [[10, 0, 32, 0, 32, 24, 10, 24]]
    path = coco_file(tmp_path, [record(1, 3, left), record(1, 18, right), {**record(1, 3, left), "id": 7}])
    legend = coco_masks.scan(tmp_path, folder="val").declared
    mask = Classes(legend.classes, legend=legend).lookup(drawn(tmp_path), source=str(path))
    assert (mask[:, :10] == 1).all()
    assert (mask[:, 10:20] == 255).all()
    assert (mask[:, 20:] == 2).all()


def test_the_background_has_a_free_number(tmp_path):
    assert coco_masks.free_numbers({3: "car"}) == (0, 4)
    assert coco_masks.free_numbers({0: "car", 4: "dog"}) == (5, 6)
    assert coco_masks.free_numbers({0: "car", 4: "background"}) == (4, 5)


@pytest.mark.parametrize(
    ("annotations", "more", "message"),
    [
        ([record(2, 3, [])], {}, "image_id 2 is no image of this file"),
        ([record(1, 4, [])], {}, r"category_id 4 is none of \[3, 18\]"),
        ([record(1, 3, [[1, 2, 3, 4]])], {}, "a polygon is .*; allowed: x, y of 3 or more points"),
        ([record(1, 3, [[1, 2, 3, 4, 5, float("nan")]])], {}, "not finite"),
        ([record(1, 3, "rle")], {}, "'segmentation' is rle; allowed: list or dict"),
        ([{"id": 1, "image_id": 1, "category_id": 3}], {}, "has no 'segmentation'"),
        ([record(1, 3, {"size": [5, 5], "counts": [25]})], {}, r"size is \[5, 5\], its image's \[24, 32\]"),
        ([record(1, 3, {"size": [24, 32], "counts": [5]})], {}, "don't add up to 24 x 32"),
        ([], {"categories": []}, "has no categories"),
        ([], {"categories": [{"id": 1 << 40, "name": "car"}]}, "allowed: at most"),
        ([], {"categories": CATEGORIES * 2}, "the id or name of one before it"),
        ([], {"images": [{"id": 1, "file_name": "../a.jpg", "height": 2, "width": 2}]}, "not one below"),
        ([], {"images": [{"id": 1, "file_name": "a.jpg", "height": 0, "width": 2}]}, "no picture's size"),
    ],
)
def test_flaws_of_coco(tmp_path, annotations, more, message):
    coco_file(tmp_path, annotations, **more)
    with pytest.raises(DataError, match=message) as error:
        coco_masks.scan(tmp_path, folder="val")
    assert "instances_val.json" in str(error.value)


def test_coco_files_that_miss_or_differ(tmp_path):
    coco_file(tmp_path, [], "train")
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 24, "width": 32} for n in (1, 2)]
    path = coco_file(tmp_path, [record(1, 3, [])], images=images)
    save_picture(tmp_path / "val/1.jpg")
    listing = coco_masks.scan(tmp_path, folder="val")
    assert listing.labels_without_image == [f"{path}: {tmp_path / 'val/2.jpg'}"]
    assert listing.images_without_label == [str(tmp_path / "val/a.jpg")]
    with pytest.raises(DataError, match=r"1 images have no mask, 1 masks have no image"):
        first_mask(tmp_path, layout="coco")
    (tmp_path / "val/1.jpg").unlink()
    coco_file(tmp_path, [], categories=[{"id": 3, "name": "dog"}])
    with pytest.raises(DataError, match="declare different classes"):
        first_mask(tmp_path, layout="coco")
    with pytest.raises(DataError, match=r"no such file; there are those of train, val; did you mean 'train'"):
        coco_masks.scan(tmp_path, folder="trian")
    path.write_text(path.read_text()[:60])
    with pytest.raises(DataError, match=r"instances_val.json: not JSON, or a truncated file"):
        first_mask(tmp_path, layout="coco")


def test_a_size_that_is_not_the_pictures(tmp_path):
    for split in ("train", "val"):
        coco_file(tmp_path, [], split, images=[{"id": 1, "file_name": "a.jpg", "height": 10, "width": 32}])
    with pytest.raises(DataError, match=r"the mask is 10 x 32 \(height x width\), its image .* is 24 x 32"):
        first_mask(tmp_path, layout="coco")


def test_changed_annotations_are_looked_at_again(tmp_path):
    for split in ("train", "val"):
        coco_file(tmp_path, [record(1, 3, [[2, 3, 12, 3, 12, 9]])], split)
    before = first_mask(tmp_path, layout="coco")[1].statistics
    coco_file(tmp_path, [], "train")
    after = first_mask(tmp_path, layout="coco")[1].statistics
    assert before.class_counts[1] > 0
    assert after.class_counts[1] == 0


# ------------------------------------------------------------------------------------ COCO, panoptic

SEGMENTS = {70_000: 3, 70_001: 3, 5: 18}


def panoptic(root: Path, split: str, *, numbers: np.ndarray | None = None, **more: Any) -> Path:
    """The left of the picture is of one segment, the right of another; a row of a third, a row of none."""
    if numbers is None:
        numbers = np.array([70_000, 70_001, 5, 0])[codes()]
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)
    save_picture(root / split / "a.jpg")
    save(root / f"annotations/panoptic_{split}/a.png", colours)
    infos = [{"id": segment, "category_id": category} for segment, category in SEGMENTS.items()]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{**each, "color": [each["id"], 2, 3], "isthing": 1} for each in CATEGORIES],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": infos}],
    }
    return dump(root / f"annotations/panoptic_{split}.json", content | more)


def test_panoptic(tmp_path):
    for split in ("train2017", "val2017"):
        panoptic(tmp_path, split)
    split = FolderSplit(train="train2017", val="val2017")
    mask, data = first_mask(tmp_path, layout="coco_panoptic", split=split)
    np.testing.assert_array_equal(mask, np.array([0, 0, 1, 255])[codes()])
    assert data.classes.names == ("car", "dog")
    assert data.classes.colours.tolist() == [[3, 2, 3], [18, 2, 3]]
    with pytest.raises(DataError, match=r"'train' has no images; folders with frames: train2017, val2017"):
        first_mask(tmp_path, layout="coco_panoptic")


def annotation(*infos: tuple[int, int], image: int = 1, name: str = "a.png") -> dict[str, Any]:
    """infos: (segment, category)."""
    segments = [{"id": segment, "category_id": category} for segment, category in infos]
    return {"image_id": image, "file_name": name, "segments_info": segments}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"annotations": [annotation(image=9)]}, "image_id 9 is no image"),
        ({"annotations": [annotation(name="/a.png")]}, "not one below"),
        ({"annotations": [annotation((1, 9))]}, r"segments_info\[0\]: category_id 9 is none of"),
        ({"annotations": [annotation((1 << 24, 3))]}, "can't be a colour"),
        ({"annotations": [annotation((5, 3), (5, 3))]}, "a segment is given twice"),
        ({"annotations": [annotation(), annotation()]}, "has an annotation already"),
        ({"categories": [{"id": 3, "name": "car", "color": "red"}, CATEGORIES[1]]}, "color is red"),
        ({"categories": []}, "no categories"),
    ],
)
def test_flaws_of_panoptic_files(tmp_path, more, message):
    panoptic(tmp_path, "val", **more)
    with pytest.raises(DataError, match=message):
        coco_panoptic.scan(tmp_path, folder="val")


def test_flaws_of_panoptic_pictures(tmp_path):
    panoptic(tmp_path, "train")
    panoptic(tmp_path, "val", numbers=np.where(codes() == 2, 77, 5))
    with pytest.raises(
        DataError, match=r"a.png: 32 pixels are of segments that .*panoptic_val.json doesn't have: 77"
    ):
        first_mask(tmp_path, layout="coco_panoptic")
    panoptic(tmp_path, "val", numbers=np.zeros((10, 10), int))
    with pytest.raises(
        DataError, match=r"a.png: is 10 x 10 \(height x width\), but .*panoptic_val.json says 24 x 32"
    ):
        first_mask(tmp_path, layout="coco_panoptic")
    save(tmp_path / "annotations/panoptic_val/a.png", codes())
    with pytest.raises(DataError, match="three channels of 8 bits, not 1 of uint8"):
        first_mask(tmp_path, layout="coco_panoptic")
    (tmp_path / "annotations/panoptic_val/a.png").unlink()
    save(tmp_path / "annotations/panoptic_val/b.png", codes())
    listing = coco_panoptic.scan(tmp_path)
    assert listing.images_without_label == [str(tmp_path / "val/a.jpg")]
    assert listing.labels_without_image == [str(tmp_path / "annotations/panoptic_val/b.png")]
    with pytest.raises(DataError, match="no folder of its PNGs; looked for"):
        coco_panoptic.scan(tmp_path, labels="masks", folder="val")


# ------------------------------------------------------------------------------------ COCO-Stuff


def test_stuff(tmp_path):
    stored = np.array([0, 181, 91, 255], np.uint8)[codes()]
    for split in ("train2017", "val2017"):
        save_picture(tmp_path / f"{split}/a.jpg")
        save(tmp_path / f"stuffthingmaps/{split}/a.png", stored)
    split = FolderSplit(train="train2017", val="val2017")
    mask, data = first_mask(tmp_path, layout="coco_stuff", split=split)
    assert len(data.classes) == 171
    names = np.array([*data.classes.names, *["-"] * 84, "ignored"])[mask]
    np.testing.assert_array_equal(names, np.array(["person", "wood", "banner", "ignored"])[codes()])
    assert not set(coco_stuff.LEGENDS["index"].names.values()) & {11, 25, 90}


def test_a_model_keeps_its_classes_where_the_files_are_gone(tmp_path):
    data = CameraFrameDataModule(tmp_path / "gone", layout="coco", size=SIZE, workers=0)
    data.set_class_names(("background", "car"), [(1, 2, 3), (4, 5, 6)])
    assert data.classes.names == ("background", "car")
    assert data.classes.colours.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_other_classes_than_the_models_are_refused(tmp_path):
    for split in ("train", "val"):
        coco_file(tmp_path, [record(1, 3, [[2, 3, 12, 3, 12, 9]])], split)
    data = CameraFrameDataModule(tmp_path, layout="coco", workers=0)
    data.set_class_names(("background", "car"))
    with pytest.raises(
        DataError, match="declare the classes background, car, dog, but the model has background, car"
    ):
        data.scan()
