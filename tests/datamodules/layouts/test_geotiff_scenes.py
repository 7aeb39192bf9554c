"""Scenes and labels are paired by name, in whatever folders they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import DataError
from datamodules.layouts.geotiff import scan


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_pairs_by_name_and_never_by_order(tmp_path):
    touch(
        tmp_path,
        "images/a.tif",
        "images/b.tif",
        "images/c.tif",
        "labels/b.tif",
        "labels/c.tif",
        "labels/d.tif",
    )
    found = scan(tmp_path, images="images/*.tif", labels="labels/{name}.tif")
    assert [(item.id, Path(item.label).name) for item in found.items] == [
        ("images/b.tif", "b.tif"),
        ("images/c.tif", "c.tif"),
    ]
    assert [Path(path).name for path in found.unmatched] == ["a.tif", "d.tif"]
    assert found.items[0].group == found.items[0].id


def test_folders_of_splits(tmp_path):
    touch(
        tmp_path, *(f"{split}/{kind}/a.tif" for split in ("train", "test") for kind in ("images", "labels"))
    )
    where = {"images": "{split}/images/*.tif", "labels": "{split}/labels/{name}.tif"}
    assert [item.id for item in scan(tmp_path, folder="train", **where).items] == ["train/images/a.tif"]
    assert len(scan(tmp_path, **where).items) == 2
    assert scan(tmp_path, folder="val", **where).items == []


def test_labels_beside_their_images(tmp_path):
    touch(tmp_path, "a.tif", "a_mask.tif", "b.tif", "b_mask.tif")
    found = scan(tmp_path, images="*.tif", labels="{name}_mask.tif")
    assert [item.id for item in found.items] == ["a.tif", "b.tif"]
    assert found.unmatched == []


def test_vector_files_beside_or_for_all_images(tmp_path):
    touch(tmp_path, "a.tif", "a.gpkg", "b.tif", "all.gpkg", "train/c.tif", "test/d.tif")
    found = scan(tmp_path, images="*.tif", labels="{name}.gpkg")
    assert [item.id for item in found.items] == ["a.tif"]
    assert [Path(path).name for path in found.unmatched] == ["b.tif", "all.gpkg"]
    found = scan(tmp_path, images="*.tif", labels="all.gpkg")
    assert [(item.id, Path(item.label).name) for item in found.items] == [
        ("a.tif", "all.gpkg"),
        ("b.tif", "all.gpkg"),
    ]
    assert found.unmatched == []
    assert len(scan(tmp_path, images="{split}/*.tif", labels="all.gpkg").items) == 2
    assert len(scan(tmp_path, images="{split}/*.tif", labels="all.gpkg", folder="test").items) == 1
    assert len(scan(tmp_path, images="*.tif", labels="none.gpkg").images_without_label) == 2


def test_what_cannot_be_paired_is_refused(tmp_path):
    touch(tmp_path, "one/a.tif", "two/a.tif", "labels/a.tif")
    with pytest.raises(DataError, match=r"have the same name, so the label .*a.tif fits both"):
        scan(tmp_path, images="*/a.tif", labels="labels/{name}.tif")
    with pytest.raises(DataError, match=r"has no '\{name\}'"):
        scan(tmp_path, images="one/*.tif", labels="labels/a.tif")
    with pytest.raises(DataError, match="below root"):
        scan(tmp_path, images="/one/*.tif", labels="labels/{name}.tif")
    with pytest.raises(DataError, match="not a folder"):
        scan(tmp_path / "no", images="*.tif", labels="{name}_mask.tif")
