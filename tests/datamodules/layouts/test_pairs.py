"""Pairs: images find the masks of their names, split by split, and what has no partner is reported."""

from __future__ import annotations

import pytest

from datamodules.errors import DataError
from datamodules.layouts import pairs

IMAGES, LABELS = "images/{split}/*.jpg", "masks/{split}/{name}.png"


@pytest.fixture
def root(tmp_path):
    for split, names in (("train", "cab"), ("val", "d")):
        for name in names:
            touch(tmp_path / "images" / split / f"{name}.jpg")
            touch(tmp_path / "masks" / split / f"{name}.png")
    return tmp_path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def names(listing):
    return [item.id for item in listing.items]


def test_one_split(root):
    listing = pairs.scan(root, images=IMAGES, labels=LABELS, folder="train")
    assert names(listing) == [f"images/train/{name}.jpg" for name in "abc"]
    assert listing.items[0].label == str(root / "masks/train/a.png")
    assert listing.unmatched == []


def test_all_splits_when_none_is_asked_for(root):
    touch(root / "images" / "extra" / "e.jpg")  # no such folder of masks
    assert names(pairs.scan(root, images=IMAGES, labels=LABELS)) == [
        *(f"images/train/{name}.jpg" for name in "abc"),
        "images/val/d.jpg",
    ]


def test_unmatched_on_both_sides(root):
    (root / "masks/train/b.png").unlink()
    touch(root / "masks/train/z.png")
    listing = pairs.scan(root, images=IMAGES, labels=LABELS)
    assert len(listing.items) == 3
    assert listing.unmatched == [str(root / "images/train/b.jpg"), str(root / "masks/train/z.png")]


def test_no_split_folders(tmp_path):
    touch(tmp_path / "a.jpg")
    touch(tmp_path / "a_mask.png")
    listing = pairs.scan(tmp_path, images="*.jpg", labels="{name}_mask.png")
    assert names(listing) == ["a.jpg"]


def test_split_inside_a_folder_name(tmp_path):
    for split in ("train", "val"):
        touch(tmp_path / f"{split}_images" / "a.jpg")
        touch(tmp_path / f"{split}_masks" / "a.png")
    found = pairs.split_folders(tmp_path, images="{split}_images/*.jpg", labels="{split}_masks/{name}.png")
    assert found == ["train", "val"]
    listing = pairs.scan(tmp_path, images="{split}_images/*.jpg", labels="{split}_masks/{name}.png")
    assert names(listing) == ["train_images/a.jpg", "val_images/a.jpg"]


def test_labels_without_name_are_refused(root):
    with pytest.raises(DataError, match=r"\{name\}"):
        pairs.scan(root, images=IMAGES, labels="masks/{split}/*.png")


def test_first_present_names_what_it_looked_for(root):
    variants = [("a/{split}/*.jpg", "b/{split}/{name}.png"), (IMAGES, LABELS)]
    assert pairs.first_present(root, variants, layout="x") == (IMAGES, LABELS)
    with pytest.raises(DataError, match=r"a/\{split\}"):
        pairs.first_present(root, variants[:1], layout="x")
