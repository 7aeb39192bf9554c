"""Detection data modules on real data: KITTI, neon_trees and s2_ships as they are."""

from __future__ import annotations

from typing import Any

import pytest

from datamodules.augment import Augment
from datamodules.camera_objects import CameraDetectionDataModule
from datamodules.classes import ClassSpec
from datamodules.detection import DetectionDataModule
from datamodules.errors import DataError
from datamodules.geotiff_objects import GeoTiffDetectionDataModule
from datamodules.labels import VectorOptions
from datamodules.sampling import SampleKey
from datamodules.splits import DriveSplit, SceneSplit


def total(made: DetectionDataModule) -> int:
    return sum(made.data_card()["objects"].values())


def check_samples(made: DetectionDataModule) -> None:
    dataset: Any = made.training_dataset()
    for index in range(min(len(dataset), 40)):
        sample = dataset[SampleKey(0, 0, index)]
        height, width = sample["valid"].shape
        for x1, y1, x2, y2 in sample["target"]["boxes"].tolist():
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height


@pytest.mark.slow
def test_kitti(shared, tmp_path):
    classes = [ClassSpec(name, (name,)) for name in ("Car", "Pedestrian", "Cyclist")]
    made = CameraDetectionDataModule(
        shared / "data/kitti", layout="kitti", classes=classes, split=SceneSplit(), crop=(288, 640), longest=960,
        ignore=("Van", "Truck", "Tram", "Misc", "Person_sitting"), normalise="data", cache_dir=tmp_path,
        augment=Augment("driving", scale=(0.7, 1.5), photometric=0.5, erase=0.3),
    )  # fmt: skip
    made.setup()
    assert total(made) == 303 + 47 + 18
    assert sum(made.data_card()["ignored_regions"].values()) == 34 + 14 + 12 + 6 + 5 + 237
    check_samples(made)


@pytest.mark.slow
def test_neon_trees(shared, tmp_path):
    options: dict[str, Any] = {
        "layout": "voc", "images": "images/*.tif", "labels": "annotations/{name}.xml",
        "split": DriveSplit(r"^([A-Z]+)", val=0.25, test=0.25), "normalise": "data", "cache_dir": tmp_path,
    }  # fmt: skip
    with pytest.raises(DataError, match="12 boxes are named"):
        GeoTiffDetectionDataModule(shared / "data/neon_trees", classes=[ClassSpec("Tree", ("Tree",))], **options).scan()
    trees = [ClassSpec("Tree", ("Tree", "Tree\\"))]
    made = GeoTiffDetectionDataModule(
        shared / "data/neon_trees", classes=trees, ignore=("",), on_error="skip", **options
    )
    made.setup()
    card = made.data_card()
    assert sum(card["ignored_regions"].values()) == 11
    assert total(made) in (1100 - 11 - 1, 1100 - 11)  # one lies outside of its picture
    assert [len(groups) for groups in card["group_samples"].values()] == [1, 1, 2]
    check_samples(made)


@pytest.mark.slow
@pytest.mark.parametrize("form", [{}, {"masks": True}, {"turned": True}])
def test_ships(shared, tmp_path, form):
    made = GeoTiffDetectionDataModule(
        shared / "data/s2_ships", images="*.tif", labels="{name}_labels.geojson", vector=VectorOptions(column="labels"),
        classes=[ClassSpec("Boat", ("Boat",))], split=SceneSplit(), chip=64, normalise="data",
        cache_dir=tmp_path, **form,
    )  # fmt: skip
    made.setup()
    assert total(made) == 77
    assert made.in_chans == 12
    check_samples(made)
