"""The camera data module: every layout from disk to batches, and what bad input gets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.augment import Augment
from datamodules.camera import CameraFrameDataModule
from datamodules.classes import ClassSpec
from datamodules.datamodule import SegmentationDataModule
from datamodules.errors import DataError
from datamodules.sampling import SampleKey
from datamodules.splits import DriveSplit, FolderSplit, ListSplit, PlaceSplit, SceneSplit

CLASSES = (ClassSpec("ground", (0,)), ClassSpec("thing", (1,)), ClassSpec("rare", (2,)))
PAIRS = {"images": "images/{split}/*.png", "labels": "masks/{split}/{name}.png", "classes": CLASSES}
SPLITS = {"train": 5, "val": 2, "test": 2}
SHAPE = (24, 32)


def codes(seed: int) -> np.ndarray:
    """(24, 32) in blocks of 8: 0, 1; rarely 2; the first row is 9."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice([0, 1], (3, 4)).astype(np.uint8)
    mask = np.kron(blocks, np.ones((8, 8), np.uint8))
    mask[12:14, 16:18] = 2
    mask[0] = 9
    return mask


def picture(mask: np.ndarray) -> np.ndarray:
    """Tells its mask: red is 50 times the code."""
    ramp = np.arange(mask.size).reshape(mask.shape) % 256
    return np.dstack([np.minimum(mask, 4) * 50, 255 - ramp, ramp])


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    seed = 0
    for split, count in SPLITS.items():
        for _ in range(count):
            seed += 1
            name = f"drive{seed % 3}_{seed:03d}.png"
            write(tmp_path / "data/masks" / split / name, codes(seed))
            write(tmp_path / "data/images" / split / name, picture(codes(seed)))
    return tmp_path / "data"


def make(root: Path, **options) -> CameraFrameDataModule:
    given = {**PAIRS, "ignore": (9,), "workers": 0, "batch_size": 2, **options}
    data = CameraFrameDataModule(root, **given)
    data.set_normalisation((0.5,) * 3, (0.25,) * 3)
    return data


def first_of(root: Path, folder: str = "masks/train") -> Path:
    return sorted((root / folder).glob("*"))[0]


def test_batches(root):
    data = make(root)
    data.setup()
    assert isinstance(data, SegmentationDataModule)
    assert {name: len(items) for name, items in data.items.items()} == SPLITS
    assert (data.chip, data.bands, data.dtype) == (SHAPE, ("red", "green", "blue"), np.uint8)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, *SHAPE)
    assert batch["image"].dtype == torch.float32
    assert batch["mask"].shape == batch["valid"].shape == (2, *SHAPE)
    assert len(list(data.train_dataloader())) == 2
    assert [len(batch["item"]) for batch in data.test_dataloader()] == [2]


def test_evaluation_shows_whole_frames_in_order_as_they_are(root):
    data = make(root)
    batch = next(iter(data.val_dataloader()))
    assert [item.id for item in batch["item"]] == sorted(item.id for item in batch["item"])
    for image, mask, item in zip(batch["image"], batch["mask"], batch["item"], strict=True):
        raw = np.asarray(Image.open(item.image)).transpose(2, 0, 1)
        np.testing.assert_allclose(image * 0.25 + 0.5, raw / 255, atol=1e-6)
        stored = np.asarray(Image.open(item.label)).astype(int)
        np.testing.assert_array_equal(mask, np.where(stored == 9, 255, stored))
    assert batch["valid"].all()


def test_statistics_are_those_of_the_training_frames(root):
    data = make(root)
    images = np.stack([np.asarray(Image.open(item.image)) for item in scanned(data).items["train"]])
    masks = np.stack([np.asarray(Image.open(item.label)) for item in data.items["train"]])
    np.testing.assert_allclose(data.statistics.mean, images.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(data.statistics.std, images.std(axis=(0, 1, 2)))
    assert data.statistics.class_counts.tolist() == [int((masks == k).sum()) for k in range(3)]
    assert data.data_card()["samples"] == SPLITS


def scanned(data: CameraFrameDataModule) -> CameraFrameDataModule:
    data.scan()
    return data


def test_training_samples_are_repeatable_and_aligned(root):
    data = make(root, augment=Augment("driving", scale=(0.7, 1.5)), crop=(16, 20))
    dataset = data.training_dataset()
    assert len(dataset) == 5
    one, again = dataset[SampleKey(0, 3, 1)], dataset[SampleKey(0, 3, 1)]
    assert torch.equal(one["image"], again["image"])
    assert not torch.equal(one["image"], dataset[SampleKey(0, 4, 1)]["image"])
    for index in range(5):
        sample = dataset[SampleKey(0, 0, index)]
        red = (sample["image"][0] * 0.25 + 0.5) * 255
        labelled = sample["mask"] != 255
        pure = (torch.abs(red - red.div(50).round() * 50) < 1) & labelled
        assert pure.sum() > 0.5 * labelled.sum()
        assert (red[pure].div(50).round() == sample["mask"][pure]).float().mean() > 0.95
        assert (sample["image"][:, ~sample["valid"]] == 0).all()


def test_an_epoch_shows_every_frame_once(root):
    dataset = make(root).training_dataset()
    seen = {dataset[SampleKey(0, 0, index)]["item"].image for index in range(len(dataset))}
    assert len(seen) == 5


def test_rare_class_crops_show_the_rare_class(root):
    options = {"crop": (8, 8), "augment": Augment("driving")}

    def share(**more):
        dataset = make(root, **options, **more).training_dataset()
        masks = [dataset[SampleKey(0, epoch, i)]["mask"] for epoch in range(12) for i in range(5)]
        return np.mean([bool((mask == 2).any()) for mask in masks])

    assert share(rare_class_crops=1.0) > share() + 0.2


def test_rare_class_crops_that_can_do_nothing_are_refused(root):
    with pytest.raises(DataError, match="rare_class_crops does nothing"):
        scanned(make(root, rare_class_crops=0.5))
    assert scanned(make(root, rare_class_crops=0.5, augment=Augment("driving", scale=(1, 2)))).items


def test_size_resizes_frames_and_masks(root):
    data = make(root, size=(12, 16))
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (2, 3, 12, 16)
    assert batch["mask"].shape == (2, 12, 16)
    assert data.chip == (12, 16)
    assert data.notes == []
    assert "1.25 times as wide" in scanned(make(root, size=(12, 20))).notes[0]


def test_workers_don_t_change_the_samples(root):
    def epoch(workers):
        data = make(root, workers=workers, augment=Augment("driving", scale=(0.8, 1.2), photometric=0.5))
        return torch.cat([batch["image"] for batch in data.train_dataloader()])

    assert torch.equal(epoch(0), epoch(1))


def test_prediction(root):
    data = make(root, size=(12, 16))
    paths = [first_of(root, "images/test"), str(first_of(root, "images/val"))]
    samples = data.prediction_dataset(paths)
    assert len(samples) == 2
    assert samples[0]["image"].shape == (3, 12, 16)
    assert (samples[0]["mask"] == 255).all()
    assert samples[1]["item"].image == paths[1]
    assert make(root).prediction_dataset(paths)[0]["image"].shape == (3, *SHAPE)
    with pytest.raises(DataError, match="no such file"):
        data.prediction_dataset(["/nowhere.png"])


def test_the_module_and_its_datasets_can_be_pickled(root):
    data = scanned(make(root))
    dataset = pickle.loads(pickle.dumps(data.training_dataset()))
    assert torch.equal(
        dataset[SampleKey(0, 0, 0)]["image"], data.training_dataset()[SampleKey(0, 0, 0)]["image"]
    )


# ------------------------------------------------------------------------------------- splits


def test_split_by_drive_scene_and_list(root, tmp_path):
    by_drive = scanned(make(root, split=DriveSplit(val=0.3, test=0.3)))
    groups = [{item.group for item in items} for items in by_drive.items.values()]
    assert sorted(map(len, groups)) == [1, 1, 1]
    assert set.union(*groups) == {"drive0", "drive1", "drive2"}
    by_scene = scanned(make(root, split=SceneSplit(val=0.2, test=0.2), drive_pattern="^([^_]+)"))
    assert sum(map(len, by_scene.items.values())) == 9
    assert {item.group for item in by_scene.items["train"]} <= {"drive0", "drive1", "drive2"}
    for name, lines in {"train": ("drive1_001", "drive2_002"), "val": ("images/val/drive0_006.png",)}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    by_list = scanned(make(root, split=ListSplit(tmp_path / "train.txt", tmp_path / "val.txt")))
    assert [len(items) for items in by_list.items.values()] == [2, 1, 0]


def test_val_held_out_by_whole_drives(root):
    data = scanned(make(root, split=FolderSplit(val=None, val_fraction=0.3), drive_pattern="^([^_]+)"))
    train, val = ({item.group for item in data.items[name]} for name in ("train", "val"))
    assert val
    assert not train & val


def test_two_patterns_for_drives(root):
    split = DriveSplit(pattern="(drive.)", val=0.3, test=0.3)
    assert scanned(make(root, split=split)).items["train"]
    assert scanned(make(root, split=split, drive_pattern="(drive.)")).items["train"]
    with pytest.raises(DataError, match="two patterns"):
        scanned(make(root, split=split, drive_pattern="^(.+)_"))


def test_a_wrong_folder_is_named_with_the_right_ones(root):
    with pytest.raises(DataError, match="did you mean 'train'"):
        scanned(make(root, split=FolderSplit(train="trian")))
    with pytest.raises(DataError, match="val split's folder 'vla'"):
        scanned(make(root, split=FolderSplit(val="vla")))


def test_a_missing_usual_folder_is_noted(root):
    for folder in ("images", "masks"):
        (root / folder / "test").rename(root / folder / "other")
    data = scanned(make(root))
    assert data.items["test"] == []
    assert "the test split is empty" in data.notes[0]


def test_places_and_missing_folders_are_refused(root):
    with pytest.raises(DataError, match="georeferenced"):
        scanned(make(root, split=PlaceSplit(block=1000)))
    with pytest.raises(DataError, match="no split folders"):
        scanned(make(root, images="images/train/*.png", labels="masks/train/{name}.png"))


# ------------------------------------------------------------------------------------ layouts


def test_camvid(shared, tmp_path):
    data = CameraFrameDataModule(shared / "data/camvid", layout="camvid", workers=0, cache_dir=tmp_path)
    data.scan()
    assert {name: len(items) for name, items in data.items.items()} == {"train": 367, "val": 101, "test": 233}
    assert {item.group for item in data.items["val"]} == {"0016E5"}
    assert (data.chip, data.skipped, data.unmatched) == ((360, 480), [], [])


def cityscapes_frame(root: Path, frame: str) -> None:
    mask = np.full(SHAPE, 7)
    mask[:8] = 23
    mask[:, :4] = 1
    write(root / f"leftImg8bit/{frame}_leftImg8bit.png", np.full((*SHAPE, 3), 60))
    write(root / f"gtFine/{frame}_gtFine_labelIds.png", mask)
    colours = {7: (128, 64, 128), 23: (70, 130, 180), 1: (0, 0, 0)}
    write(root / f"gtFine/{frame}_gtFine_color.png", np.array([[colours[v] for v in row] for row in mask]))

    def box(label, top, bottom, left=0, right=31):
        return {"label": label, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]]}

    shapes = [box("road", 0, 23), box("sky", 0, 7), box("ego vehicle", 0, 23, 0, 3)]
    text = json.dumps({"imgHeight": SHAPE[0], "imgWidth": SHAPE[1], "objects": shapes})
    (root / f"gtFine/{frame}_gtFine_polygons.json").write_text(text)


@pytest.mark.parametrize("form", ["index", "polygons", "colour"])
def test_cityscapes_forms_give_the_same_masks(tmp_path, form):
    for frame in ("train/aachen/aachen_000000_000019", "val/ulm/ulm_000000_000019"):
        cityscapes_frame(tmp_path / "c", frame)
    data = CameraFrameDataModule(tmp_path / "c", layout="cityscapes", label_form=form, workers=0)
    data.set_normalisation((0.5,) * 3, (0.25,) * 3)
    mask = next(iter(data.val_dataloader()))["mask"][0]
    assert len(data.classes) == 19
    assert (mask[:, :4] == 255).all()
    assert (mask[:8, 4:] == data.classes.names.index("sky")).all()
    assert (mask[8:, 4:] == data.classes.names.index("road")).all()
    assert [item.group for item in data.items["train"]] == ["aachen"]


def test_bdd100k_and_kitti(tmp_path):
    for index in range(4):
        mask = np.full(SHAPE, 255)
        mask[:9] = 10
        write(tmp_path / f"bdd/images/10k/train/{index}.jpg", np.full((*SHAPE, 3), 60))
        write(tmp_path / f"bdd/labels/sem_seg/masks/train/{index}.png", mask)
        write(tmp_path / f"kitti/training/image_2/00000{index}_10.png", np.full((*SHAPE, 3), 60))
        write(tmp_path / f"kitti/training/semantic/00000{index}_10.png", np.where(mask == 10, 23, 0))
    for layout in ("bdd100k", "kitti"):
        root = tmp_path / layout[:5].removesuffix("10")
        data = CameraFrameDataModule(root, layout=layout, split=SceneSplit(0.25, 0.25), workers=0)
        data.set_normalisation((0.5,) * 3, (0.25,) * 3)
        mask = next(iter(data.test_dataloader()))["mask"][0]
        assert data.classes.names[int(mask[0, 0])] == "sky"
        assert (mask[9:] == 255).all()
    with pytest.raises(DataError, match="no split folders"):
        scanned(CameraFrameDataModule(tmp_path / "kitti", layout="kitti", workers=0))


def test_bdd100k_fixture_pictures_are_no_pictures(shared, tmp_path):
    root = shared / "data/layouts/BDD100K"
    data = CameraFrameDataModule(root, layout="bdd100k", split=FolderSplit(test=None), cache_dir=tmp_path)
    with pytest.raises(DataError, match="2 of 2 frames can't be used"):
        data.scan()


def test_colour_masks(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / f"d/i/{split}/a.png", np.full((*SHAPE, 3), 60))
        coloured = np.zeros((*SHAPE, 3))
        coloured[5:] = (255, 0, 128)
        write(tmp_path / f"d/m/{split}/a.png", coloured)
    specs = (ClassSpec("sky", ("#000000",)), ClassSpec("road", ("#FF0080",)))
    options = {"images": "i/{split}/*.png", "labels": "m/{split}/{name}.png", "classes": specs, "ignore": ()}
    for form in (None, "colour"):
        data = make(tmp_path / "d", **options, label_form=form)
        mask = next(iter(data.val_dataloader()))["mask"][0]
        assert (mask[:5] == 0).all()
        assert (mask[5:] == 1).all()
        assert data.classes.colours.tolist() == [[0, 0, 0], [255, 0, 128]]
    with pytest.raises(DataError, match="label_form is 'index'"):
        make(tmp_path / "d", **options, label_form="index")


# ---------------------------------------------------------------------------------- bad input


def flawed(root: Path, kind: str) -> str:
    """Damages one training frame; what the error must name."""
    mask, image = first_of(root), first_of(root, "images/train")
    if kind == "truncated":
        image.write_bytes(image.read_bytes()[:-200])
        return image.name
    if kind == "no picture":
        mask.write_text("I am no PNG")
        return mask.name
    if kind == "mask size":
        write(mask, codes(1)[:, :-1])
        return "24 x 31 .* 24 x 32"
    if kind == "label value":
        write(mask, np.where(codes(1) == 2, 77, codes(1)))
        return r"label 77 \(4 pixels\).*ground 0"
    if kind == "colour mask":
        write(mask, picture(codes(1)))
        return "3 channels"
    assert kind == "frame size"
    write(mask, codes(1)[:-1])
    write(image, picture(codes(1)[:-1]))
    return "23 x 32 .* 24 x 32.*size"


KINDS = ("truncated", "no picture", "mask size", "label value", "colour mask", "frame size")


@pytest.mark.parametrize("kind", KINDS)
def test_a_flawed_frame_stops_or_is_skipped_by_name(root, kind):
    wanted = flawed(root, kind)
    with pytest.raises(DataError, match=wanted) as caught:
        scanned(make(root))
    assert "1 of 9 frames can't be used" in str(caught.value)
    data = scanned(make(root, on_error="skip"))
    assert len(data.items["train"]) == 4
    assert len(data.skipped) == 1
    assert Path(data.skipped[0][0]).name == first_of(root).name
    assert len(list(data.train_dataloader())) == 2


def test_all_flaws_are_told_at_once(root):
    for mask in sorted((root / "masks/train").glob("*"))[:3]:
        mask.write_text("no")
    with pytest.raises(DataError) as caught:
        scanned(make(root))
    assert str(caught.value).count("\n") == 3
    for mask in (root / "masks/train").glob("*"):
        mask.write_text("no")
    with pytest.raises(DataError, match="no training frame can be used"):
        scanned(make(root, on_error="skip"))


def test_a_repaired_frame_is_looked_at_again(root):
    mask = first_of(root)
    good = mask.read_bytes()
    mask.write_text("no")
    with pytest.raises(DataError):
        scanned(make(root))
    mask.write_bytes(good)
    assert len(scanned(make(root)).items["train"]) == 5


def test_frames_of_several_sizes_need_size(root):
    flawed(root, "frame size")
    data = scanned(make(root, size=(12, 16)))
    assert len(data.items["train"]) == 5
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 12, 16)


def test_files_without_a_partner_stop_or_are_listed(root):
    first_of(root).unlink()
    first_of(root, "images/val").unlink()
    with pytest.raises(DataError, match="1 images have no mask, 0 masks have no image"):
        scanned(make(root))
    data = scanned(make(root, on_error="skip"))
    assert [Path(path).parent.name for path in data.unmatched] == ["train", "val"]
    assert [len(items) for items in data.items.values()] == [4, 1, 2]


def test_a_split_without_any_mask(root):
    for mask in (root / "masks/test").glob("*"):
        mask.unlink()
    with pytest.raises(DataError, match="set its folder to null"):
        scanned(make(root))


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="no images"):
        scanned(make(tmp_path))
    with pytest.raises(DataError, match="not a folder"):
        scanned(make(tmp_path / "nowhere"))


def test_a_class_that_never_occurs_is_told(root):
    data = make(root, classes=(*CLASSES, ClassSpec("unicorn", (5,))))
    assert any("unicorn" in warning for warning in data.data_card()["warnings"])


def test_16_bit_frames_need_a_scale(root):
    for path in root.glob("images/*/*.png"):
        cv2.imwrite(
            str(path), np.full((*SHAPE, 3), 3000, np.uint16) + np.arange(32, dtype=np.uint16)[:, None] * 100
        )
    data = make(root)
    with pytest.raises(DataError, match="scale"):
        data.setup()
    wide = make(root, scale=10000)
    wide.setup()
    assert wide.dtype == np.uint16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "camvit"}, "did you mean 'camvid'"),
        ({"layout": "camvid"}, "has no option `images`"),
        ({"images": None}, "needs `images`"),
        ({"classes": None}, "no classes of its own"),
        ({"label_form": "polygons"}, "there are index, colour"),
        ({"crop": (25, 32)}, "crop 25 x 32 is larger"),
        ({"drive_pattern": "drive"}, "no group"),
    ],
)
def test_wrong_options(root, options, message):
    with pytest.raises(DataError, match=message):
        scanned(make(root, **options))
