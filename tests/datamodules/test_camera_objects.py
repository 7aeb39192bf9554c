"""Frames with objects: from KITTI, VOC, COCO and DOTA files to batches, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from datamodules.augment import Augment
from datamodules.camera_objects import CameraDetectionDataModule
from datamodules.classes import ClassSpec
from datamodules.errors import DataError
from datamodules.sampling import SampleKey
from datamodules.splits import DriveSplit, FolderSplit, ListSplit, PlaceSplit, SceneSplit

CLASSES = (ClassSpec("car", ("Car",)), ClassSpec("person", ("Pedestrian",)))
COLOURS = {"Car": (200, 20, 20), "Pedestrian": (20, 200, 20), "Van": (20, 20, 200), "DontCare": (150, 150, 150)}
FRAMES: dict[str, tuple[tuple[int, int], list[tuple[str, tuple[int, int, int, int]]]]] = {
    "a_0": ((40, 120), [("Car", (10, 5, 40, 25)), ("Pedestrian", (60, 5, 66, 35))]),
    "a_1": ((40, 120), [("Car", (70, 10, 110, 30)), ("Van", (0, 0, 30, 20))]),
    "a_2": ((40, 120), [("DontCare", (0, 0, 30, 20))]),
    "b_0": ((60, 90), []),
    "b_1": ((40, 120), [("Car", (20, 4, 60, 24))]),
    "c_0": ((40, 120), [("Car", (0, 0, 50, 30))]),
}


def picture(size: tuple[int, int], objects: list[tuple[str, tuple[int, int, int, int]]]) -> np.ndarray:
    """Blocks of their classes' colours on black, as BGR."""
    image = np.zeros((*size, 3), np.uint8)
    for name, (x1, y1, x2, y2) in objects:
        image[y1:y2, x1:x2] = COLOURS[name][::-1]
    return image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """KITTI's layout."""
    folder = tmp_path / "data/training"
    (folder / "image_2").mkdir(parents=True)
    (folder / "label_2").mkdir()
    for name, (size, objects) in FRAMES.items():
        cv2.imwrite(str(folder / f"image_2/{name}.png"), picture(size, objects))
        lines = [f"{each} 0.00 0 0 {' '.join(map(str, box))} 1 1 1 1 1 1 0" for each, box in objects]
        (folder / f"label_2/{name}.txt").write_text("\n".join(lines))
    return tmp_path / "data"


@pytest.fixture
def lists(tmp_path: Path) -> ListSplit:
    (tmp_path / "train.txt").write_text("a_0\na_1\na_2\nb_0")
    (tmp_path / "val.txt").write_text("b_1\nc_0")
    return ListSplit(tmp_path / "train.txt", tmp_path / "val.txt")


def module(root: Path, split: Any = None, **options: Any) -> CameraDetectionDataModule:
    settings: dict[str, Any] = {
        "layout": "kitti",
        "classes": CLASSES,
        "ignore": ("Van",),
        "split": SceneSplit() if split is None else split,
        "normalise": "weights",
        "augment": Augment("none"),
        "batch_size": 2,
        "workers": 0,
    }
    made = CameraDetectionDataModule(root, **settings | options)
    made.set_normalisation((0.0,) * 3, (1.0,) * 3)
    return made


def truth(made: CameraDetectionDataModule, name: str) -> Any:
    items = [item for group in made.items.values() for item in group if Path(item.image).stem == name]
    return made.objects_of(items[0])


def test_objects_have_their_classes_and_ignored_regions_none(root, lists):
    made = module(root, lists)
    made.scan()
    assert truth(made, "a_0").boxes.tolist() == [[10, 5, 40, 25], [60, 5, 66, 35]]
    assert truth(made, "a_0").labels.tolist() == [0, 1]
    assert truth(made, "a_1").ignored.tolist() == [False, True]
    assert truth(made, "a_2").ignored.all()
    assert len(truth(made, "b_0")) == 0


def test_card_counts_objects_regions_and_empty_frames(root, lists):
    made = module(root, lists)
    made.setup("test")
    card = made.data_card()
    assert card["class_objects"] == {"car": 2, "person": 1}
    assert card["objects"] == {"train": 3, "val": 2, "test": 0}
    assert card["ignored_regions"] == {"train": 2, "val": 0, "test": 0}
    assert card["images_without_objects"] == {"train": 1, "val": 0, "test": 0}
    assert card["images_all_ignored"] == {"train": 1, "val": 0, "test": 0}
    assert card["box_sizes"]["0"] == pytest.approx(np.sqrt(6 * 30))
    assert card["box_sizes"]["1"] == pytest.approx(np.sqrt(40 * 20))
    assert card["box_aspect_ratios"]["1"] == pytest.approx(2)
    assert json.loads(json.dumps(card)) == card
    assert sorted(made.training_boxes().tolist()) == [[6, 30], [30, 20], [40, 20]]


@pytest.mark.parametrize(
    ("option", "wide", "high"),
    [({"longest": 60}, (20, 60), (40, 60)), ({"size": (30, 60)}, (20, 60), (30, 45)), ({}, (40, 120), (60, 90))],
)
def test_frames_keep_their_proportions_and_boxes_follow(root, lists, option, wide, high):
    made = module(root, lists, **option)
    made.scan()
    dataset = made.training_dataset()
    for index in range(len(dataset)):
        sample = dataset[SampleKey(0, 0, index)]
        stem = Path(sample["item"].image).stem
        assert tuple(sample["valid"].shape) == (high if stem == "b_0" else wide)
        if stem == "a_0":
            scale = wide[1] / 120
            assert sample["target"]["boxes"].tolist() == [[each * scale for each in box] for box in
                                                          ([10, 5, 40, 25], [60, 5, 66, 35])]  # fmt: skip


def test_batches_of_frames_of_several_sizes_are_padded(root, lists):
    made = module(root, lists)
    made.setup("fit")
    batch = next(iter(module_loader(made, 4)))
    assert batch["image"].shape == (4, 3, 60, 120)
    assert sorted(batch["sizes"]) == [(40, 120)] * 3 + [(60, 90)]
    for i, (height, width) in enumerate(batch["sizes"]):
        assert batch["valid"][i, :height, :width].all()
        assert int(batch["valid"][i].sum()) == height * width


def module_loader(made: CameraDetectionDataModule, batch_size: int) -> Any:
    made.batch_size = batch_size
    return made.train_dataloader()


@pytest.mark.parametrize("options", [{}, {"crop": (32, 48)}])
def test_augmented_boxes_lie_on_their_pixels(root, lists, options):
    augment = Augment("driving", scale=(0.7, 1.4))
    made = module(root, lists, augment=augment, min_visible=0.5, **options)
    made.scan()
    dataset = made.training_dataset()
    seen = 0
    for epoch in range(20):
        for index in range(len(dataset)):
            sample = dataset[SampleKey(0, epoch, index)]
            image, target = sample["image"].numpy() * 255, sample["target"]
            if options:
                assert image.shape == (3, 32, 48)
            for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
                channel, other = (0, 1) if label == 0 else (1, 0)
                rows, cols = np.nonzero((image[channel] > 110) & (image[other] < 110))
                assert np.abs(np.array([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]) - box).max() <= 1.01
                seen += 1
    assert seen > 30


def test_little_seen_objects_become_ignored_regions(root, lists):
    made = module(root, lists, crop=(40, 30), min_visible=0.9)
    made.scan()
    dataset = made.training_dataset()
    index = next(i for i, item in enumerate(made.items["train"]) if Path(item.image).stem == "a_0")
    found = [dataset[SampleKey(0, epoch, index)]["target"] for epoch in range(60)]
    whole = [box for target in found for box in target["boxes"].tolist()]
    cut = [box for target in found for box in target["ignored"].tolist()]
    assert whole
    assert cut
    assert all((x2 - x1) * (y2 - y1) >= 0.9 * 6 * 30 for x1, y1, x2, y2 in whole)
    assert all((x2 - x1) * (y2 - y1) < 0.9 * 30 * 20 for x1, y1, x2, y2 in cut)
    assert all(0 <= x1 < x2 <= 30 for x1, _, x2, _ in cut)


def test_evaluation_is_whole_and_in_order(root, lists):
    made = module(root, lists, crop=(20, 20))
    made.scan()
    samples = [sample for batch in made.val_dataloader() for sample in zip(batch["item"], batch["target"], strict=True)]
    assert [Path(item.image).stem for item, _ in samples] == ["b_1", "c_0"]
    assert samples[0][1]["boxes"].tolist() == [[20, 4, 60, 24]]
    assert made.evaluation_regions("val") == [(item, 1) for item in made.items["val"]]


def epoch(made: CameraDetectionDataModule, workers: int) -> dict[str, bytes]:
    made.workers = workers
    loader = made.train_dataloader()
    loader.sampler.set_epoch(3)
    return {
        item.id: batch["image"][i, :, : batch["sizes"][i][0], : batch["sizes"][i][1]].contiguous().numpy().tobytes()
        + batch["target"][i]["boxes"].numpy().tobytes()
        for batch in loader
        for i, item in enumerate(batch["item"])
    }


def test_samples_do_not_depend_on_the_number_of_workers(root, lists):
    augment = Augment("driving", scale=(0.5, 2), photometric=0.5, blur=0.5, erase=0.5)
    made = module(root, lists, augment=augment, crop=(32, 48))
    made.setup("fit")
    alone = epoch(made, 0)
    assert len(alone) == 4
    assert alone == epoch(made, 1) == epoch(made, 2)


def test_erased_objects_are_ignored(root, lists):
    made = module(root, lists, augment=Augment("none", erase=1.0), min_visible=0.95)
    made.scan()
    dataset = made.training_dataset()
    index = next(i for i, item in enumerate(made.items["train"]) if Path(item.image).stem == "a_0")
    for key in (SampleKey(0, epoch, index) for epoch in range(30)):
        sample = dataset[key]
        for kind in ("boxes", "ignored"):
            for x1, y1, x2, y2 in sample["target"][kind].int().tolist():
                share = sample["valid"][y1:y2, x1:x2].float().mean()
                assert (share >= 0.95) == (kind == "boxes")


def test_prediction_has_no_objects(root, lists):
    made = module(root, lists, longest=60)
    made.setup("fit")
    paths = sorted((root / "training/image_2").glob("*.png"))
    dataset = made.prediction_dataset(paths)
    samples = [dataset[index] for index in range(len(dataset))]
    assert [sample["item"].image for sample in samples] == [str(path) for path in paths]
    assert all(len(sample["target"]["boxes"]) == 0 for sample in samples)
    assert samples[0]["image"].shape == (3, 20, 60)
    with pytest.raises(DataError, match="no such file"):
        made.prediction_dataset(["nowhere.png"])


def test_drives_are_not_divided(root):
    made = module(root, DriveSplit(val=0.3, test=0.2))
    made.scan()
    drives = {name: {item.group for item in items} for name, items in made.items.items()}
    assert drives == {"train": {"a"}, "val": {"b"}, "test": {"c"}}


def test_classes_of_the_layout(root):
    made = module(root, classes=None, ignore=("Tram", "Misc"))
    made.scan()
    assert made.classes.names == ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "kiti"}, "no layout 'kiti'.*did you mean 'kitti'"),
        ({"images": "*.png"}, "layout 'kitti' has no option images"),
        ({"size": (10, 10), "longest": 20}, "choose one"),
        ({"min_visible": 2}, "min_visible is 2; allowed: 0 to 1"),
        ({"masks": True, "turned": True}, "choose one"),
        ({"masks": True}, "no label file has outlines"),
        ({"turned": True}, "no label file has turned"),
        ({"crop": (400, 20)}, "crop 400 x 20 is larger than the frames, at most 40 x 120"),
        ({"ignore": ()}, "named 'Van'"),
        ({"split": FolderSplit()}, "no split folders"),
        ({"split": PlaceSplit(block=10)}, "georeferenced"),
        ({"classes": (ClassSpec("van", ("Van",)),), "ignore": ("Car", "Pedestrian"), "seed": 1}, "has no object"),
    ],
)
def test_wrong_options_are_named(root, lists, options, message):
    with pytest.raises(DataError, match=message):
        module(root, **{"split": ListSplit(lists.val, lists.train)} | options).scan()


def test_damaged_frames_stop_or_are_left_out(root, lists):
    path = root / "training/image_2/a_0.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"a_0\.png: not a picture"):
        module(root, lists).scan()
    made = module(root, lists, on_error="skip")
    made.scan()
    assert [Path(path).name for path, _ in made.skipped] == ["a_0.png"]
    assert len(made.items["train"]) == 3


def test_unreadable_labels_stop_or_leave_their_frames_out(root, lists):
    (root / "training/label_2/a_0.txt").write_text("Car 0 0")
    with pytest.raises(DataError, match=r"1 label files can't be read.*a_0.txt, line 1: 3 fields"):
        module(root).scan()
    (root.parent / "train.txt").write_text("a_1\na_2")
    made = module(root, lists, on_error="skip")
    made.scan()
    assert [Path(path).name for path, _ in made.skipped] == ["a_0.png"]


def test_frames_without_a_label_file_are_named(root, lists):
    (root / "training/label_2/a_0.txt").unlink()
    with pytest.raises(DataError, match="1 images have no label, 0 labels have no image"):
        module(root, lists).scan()


def test_yolo_frames_without_a_file_may_be_empty(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"yolo/images/{split}").mkdir(parents=True)
        (tmp_path / f"yolo/labels/{split}").mkdir(parents=True)
        for index in range(3):
            cv2.imwrite(str(tmp_path / f"yolo/images/{split}/{index}.png"), np.full((20, 40, 3), 80, np.uint8))
        (tmp_path / f"yolo/labels/{split}/0.txt").write_text("1 0.5 0.5 0.25 0.5")
    (tmp_path / "yolo/classes.txt").write_text("cat\ndog\n")
    options = {"layout": "yolo", "split": FolderSplit(), "classes": (ClassSpec("dog", ()),), "ignore": ()}
    with pytest.raises(DataError, match="2 images have no label"):
        module(tmp_path / "yolo", **options).scan()
    made = module(tmp_path / "yolo", **options, empty_without_label=True, longest=80)
    made.setup("test")
    card = made.data_card()
    assert card["images_without_objects"] == {"train": 2, "val": 2, "test": 0}
    assert made.training_boxes().tolist() == [[20, 20]]
    assert any("no folder 'test'" in note for note in made.notes)


def test_bdd100k_has_no_labels_of_its_test_split(tmp_path):
    (tmp_path / "labels").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"images/100k/{split}").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / f"images/100k/{split}/a.png"), picture((40, 60), [("Car", (5, 5, 20, 15))]))
        box = {"category": "car", "box2d": {"x1": 5, "y1": 5, "x2": 20, "y2": 15}}
        content = [{"name": "a.png", "labels": [box]}]
        (tmp_path / f"labels/bdd100k_labels_images_{split}.json").write_text(json.dumps(content))
    made = module(tmp_path, FolderSplit(), layout="bdd100k", classes=(ClassSpec("car", ()),), ignore=())
    made.scan()
    assert {split: len(items) for split, items in made.items.items()} == {"train": 1, "val": 1, "test": 0}
    assert made.objects("val")[0][1].boxes.tolist() == [[5, 5, 20, 15]]


def test_statistics_follow_the_classes_given(root, lists, tmp_path):
    first = module(root, lists, cache_dir=tmp_path / "cache")
    other = module(root, lists, cache_dir=tmp_path / "cache", classes=(ClassSpec("any", ("Car", "Pedestrian")),))
    for made, counts in ((first, [2, 1]), (other, [3]), (first, [2, 1])):
        assert made.statistics.class_counts.tolist() == counts


def write_voc(folder: Path, name: str, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    cv2.imwrite(str(folder / f"images/{name}.png"), picture((40, 60), [("Car", box)]))
    edges = "".join(f"<{edge}>{at}</{edge}>" for edge, at in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    (folder / f"annotations/{name}.xml").write_text(
        f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>"
        f"<object><name>Car</name><bndbox>{edges}</bndbox></object></annotation>"
    )


def test_another_size_than_the_labels_say_is_an_error_naming_both(tmp_path):
    for index in range(4):
        write_voc(tmp_path / "voc", f"f{index}", (40, 60) if index else (80, 120), (5, 5, 20, 15))
    with pytest.raises(DataError, match=r"f0.xml: 120 x 80 pixels, but.* 60 x 40 pixels"):
        module(tmp_path / "voc", layout="voc", ignore=()).scan()



@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two splits of frames with triangles."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", 3), ("val", 2)):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            cv2.imwrite(str(root / f"{split}/{index}.png"), np.full((30, 40, 3), 90, np.uint8))
            images.append({"id": index, "file_name": f"{index}.png", "height": 30, "width": 40})
            corners = [10, 5, 30, 5, 10, 25]
            annotations.append(
                {"id": index, "image_id": index, "category_id": 7, "bbox": [10, 5, 20, 20], "area": 200,
                 "iscrowd": 0, "segmentation": [corners]}
            )  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "sail"}]}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def test_masks_of_coco_outlines_follow_their_boxes(coco):
    made = module(coco, FolderSplit(), layout="coco", classes=None, ignore=(), masks=True,
                  augment=Augment("driving", scale=(0.7, 1.5)), crop=(24, 32))  # fmt: skip
    made.scan()
    assert made.classes.names == ("sail",)
    assert made.items["test"] == []
    dataset = made.training_dataset()
    for epoch in range(30):
        target = dataset[SampleKey(0, epoch, 0)]["target"]
        assert target["masks"].shape == (len(target["boxes"]), 24, 32)
        for mask, box in zip(target["masks"], target["boxes"].tolist(), strict=True):
            rows, cols = torch.nonzero(mask, as_tuple=True)
            tight = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
            assert max(abs(float(a) - b) for a, b in zip(tight, box, strict=True)) <= 1.5


def test_turned_boxes_are_fitted_to_outlines(coco):
    made = module(coco, FolderSplit(), layout="coco", classes=None, ignore=(), turned=True)
    made.scan()
    objects = made.objects_of(made.items["train"][0])
    assert objects.shapes is None
    assert objects.turned is not None
    assert objects.turned[0, 2] * objects.turned[0, 3] == pytest.approx(400, rel=1e-3)


def test_batches_move_with_their_targets(root, lists):
    made = module(root, lists)
    made.setup()
    batch = next(iter(made.val_dataloader()))
    moved = made.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["image"].device.type == moved["target"][0]["boxes"].device.type == "meta"
    assert moved["item"] == batch["item"]
