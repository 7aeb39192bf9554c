"""CamVid, BDD100K and KITTI: the folder structures of the real releases are found and read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.layouts import bdd100k, camvid, cityscapes, kitti


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def drive(pattern: str, item_id: str) -> str:
    found = re.search(pattern, Path(item_id).stem)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("module", [camvid, bdd100k, kitti, cityscapes])
def test_a_folder_in_another_layout_is_refused(module, tmp_path):
    touch(tmp_path, "pictures/a.jpg")
    with pytest.raises(DataError, match=f"not in the layout '{module.__name__.rpartition('.')[2]}'"):
        module.scan(tmp_path)


@pytest.mark.parametrize("module", [camvid, bdd100k, kitti, cityscapes])
def test_default_classes_are_consistent(module):
    for legend in module.LEGENDS.values():
        classes = Classes(legend.classes, legend=legend)
        assert len(classes) == (11 if module is camvid else 19)
        assert set(legend.names) >= set(classes.names)
        assert len({tuple(colour) for colour in classes.colours.tolist()}) == len(classes)


def test_camvid_in_both_arrangements(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    touch(one, "images/train/0001TP_1.jpg", "labels/train/0001TP_1.png", "images/val/0016E5_2.jpg")
    touch(one, "labels/val/0016E5_2.png")
    touch(two, "train/0001TP_1.png", "trainannot/0001TP_1.png", "val/0016E5_2.png", "valannot/0016E5_2.png")
    for root in (one, two):
        assert [drive(camvid.DRIVE_PATTERN, item.id) for item in camvid.scan(root).items] == [
            "0001TP",
            "0016E5",
        ]
        assert len(camvid.scan(root, folder="val").items) == 1
        assert camvid.scan(root).unmatched == []


def test_real_camvid_counts(shared):
    root = shared / "data" / "camvid"
    found = {split: camvid.scan(root, folder=split) for split in ("train", "val", "test")}
    assert [len(each.items) for each in found.values()] == [367, 101, 233]
    assert all(each.unmatched == [] for each in found.values())
    assert len(camvid.scan(root).items) == 701
    assert {drive(camvid.DRIVE_PATTERN, item.id) for item in found["val"].items} == {"0016E5"}


@pytest.mark.parametrize("above", ["", "bdd100k/"])
@pytest.mark.parametrize(
    ("image", "index", "colour"),
    [
        (
            "images/10k/train/a-1.jpg",
            "labels/sem_seg/masks/train/a-1.png",
            "labels/sem_seg/colormaps/train/a-1.png",
        ),
        (
            "seg/images/train/a-1.jpg",
            "seg/labels/train/a-1_train_id.png",
            "seg/color_labels/train/a-1_train_color.png",
        ),
    ],
)
def test_bdd100k_releases(tmp_path, above, image, index, colour):
    touch(tmp_path, above + image, above + index, above + colour)
    for form, label in (("index", index), ("colour", colour)):
        listing = bdd100k.scan(tmp_path, folder="train", label_form=form)
        assert [item.label for item in listing.items] == [str(tmp_path / (above + label))]
        assert len(bdd100k.scan(tmp_path, label_form=form).items) == 1


def test_bdd100k_training_ids():
    classes = Classes(bdd100k.CLASSES, legend=bdd100k.LEGENDS["index"])
    mask = classes.lookup(np.array([[0, 13, 18, 255]], np.uint8), source="a")
    assert mask.tolist() == [[0, 13, 18, 255]]
    assert [classes.names[i] for i in (0, 13, 18)] == ["road", "car", "bicycle"]


def test_bdd100k_fixture(shared):
    root = shared / "data" / "layouts" / "BDD100K"
    listing = bdd100k.scan(root)
    assert [item.id for item in listing.items] == ["seg/images/train/1004.jpg", "seg/images/val/1005.jpg"]
    assert len(bdd100k.scan(root, folder="val", label_form="colour").items) == 1


def test_kitti(tmp_path):
    for name in ("000000_10", "000001_10"):
        touch(
            tmp_path, *(f"training/{folder}/{name}.png" for folder in ("image_2", "semantic", "semantic_rgb"))
        )
    listing = kitti.scan(tmp_path)
    assert [item.id for item in listing.items] == [f"training/image_2/00000{i}_10.png" for i in (0, 1)]
    assert listing.items[0].label == str(tmp_path / "training/semantic/000000_10.png")
    assert kitti.scan(tmp_path, label_form="colour").items[1].label.endswith("semantic_rgb/000001_10.png")
