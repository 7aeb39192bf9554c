"""Images with labels: class folders and tables, one label or several, splits, sizes, balance, and mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from datamodules import (
    Augment,
    CameraClassificationDataModule,
    ClassSpec,
    DataError,
    DriveSplit,
    GeoTiffClassificationDataModule,
    ListSplit,
    PlaceSplit,
    SampleKey,
    SceneSplit,
)

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 40, 50)}


def write_picture(path: Path, colour: str, *, size: tuple[int, int] = (20, 24), seed: int = 0) -> Path:
    """Noise around a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 10, (*size, 3))
    picture = (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """{train,val,test}/{blue,green,red}/*.png: 6, 2 and 2 of each class, but only two red ones to train on."""
    root = tmp_path / "folders"
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for colour in COLOURS:
            for index in range(2 if colour == "red" and split == "train" else count):
                write_picture(root / split / colour / f"{colour}{index}.png", colour, seed=index)
    return root


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """pictures/*.png, which no table names yet."""
    root = tmp_path / "table"
    for colour in COLOURS:
        for index in range(3):
            write_picture(root / "pictures" / f"{colour}_{index}.png", colour, seed=index)
    return root


def camera(root: Path, **options: Any) -> CameraClassificationDataModule:
    module = CameraClassificationDataModule(
        root,
        **{"normalise": "data", "workers": 0, "batch_size": 2, "cache_dir": root.parent / "cache", **options},
    )
    module.scan()
    return module


def write_rows(root: Path, *rows: str, name: str = "labels.csv") -> Path:
    (root / name).write_text("\n".join(rows) + "\n")
    return root


def all_rows(root: Path) -> list[str]:
    return [f"pictures/{p.name},{p.name.split('_')[0]}" for p in sorted((root / "pictures").iterdir())]


def named(module: Any, split: str) -> list[tuple[str, str]]:
    """(id, class) of every item."""
    return [(item.id, module.classes.names[module.label(item)]) for item in module.items[split]]


class TestFolders:
    def test_every_image_has_its_folder_for_label(self, folders: Path) -> None:
        module = camera(folders)
        assert module.classes.names == ("blue", "green", "red")
        assert {split: len(items) for split, items in module.items.items()} == {
            "train": 14,
            "val": 6,
            "test": 6,
        }
        for split in module.items:
            assert all(Path(id).parent.name == name for id, name in named(module, split))
        assert module.statistics.class_counts.tolist() == [6, 6, 2]
        assert module.data_card()["class_images"] == {"blue": 6, "green": 6, "red": 2}

    def test_given_classes_have_their_own_order_and_merge(self, folders: Path) -> None:
        module = camera(folders, classes=[ClassSpec("warm", ("red",)), ClassSpec("cold", ("blue", "green"))])
        assert module.classes.names == ("warm", "cold")
        assert module.statistics.class_counts.tolist() == [2, 12]

    def test_images_of_ignored_classes_are_left_out_and_counted(self, folders: Path) -> None:
        module = camera(folders, ignore=["red"])
        assert module.classes.names == ("blue", "green")
        assert sum(len(items) for items in module.items.values()) == 26 - 6
        assert any("6 images have an ignored label" in note for note in module.notes)

    def test_a_folder_that_is_no_class_names_the_nearest(self, folders: Path) -> None:
        specs = [ClassSpec("blue", ("blue",)), ClassSpec("gren", ("gren",)), ClassSpec("red", ("red",))]
        with pytest.raises(DataError, match="'green' is none of the classes, nearest: gren"):
            camera(folders, classes=specs)
        module = camera(folders, classes=specs, on_error="skip")
        assert len(module.skipped) == 10
        assert module.statistics.class_counts.tolist() == [6, 0, 2]

    def test_an_empty_class_folder(self, folders: Path) -> None:
        (folders / "train" / "yellow").mkdir()
        with pytest.raises(DataError, match="train/yellow: this class folder has no image"):
            camera(folders)

    def test_a_picture_outside_of_the_class_folders(self, folders: Path) -> None:
        write_picture(folders / "train" / "stray.png", "red")
        with pytest.raises(DataError, match=r"1 images have no label.*\n.*stray.png"):
            camera(folders)
        assert camera(folders, on_error="skip").unmatched == [str(folders / "train" / "stray.png")]

    def test_an_unreadable_picture(self, folders: Path) -> None:
        broken = folders / "val" / "red" / "red0.png"
        broken.write_bytes(broken.read_bytes()[:60])
        with pytest.raises(DataError, match=r"red0.png: not a picture"):
            camera(folders)
        assert [path for path, _ in camera(folders, on_error="skip").skipped] == [str(broken)]

    def test_class_folders_without_split_folders(self, folders: Path) -> None:
        module = camera(folders / "train", split=SceneSplit(val=0.2, test=0.2))
        assert sum(len(items) for items in module.items.values()) == 14
        with pytest.raises(DataError, match="the train split's folder 'train' has no images"):
            camera(folders / "train")

    def test_split_by_list_and_drive(self, folders: Path, tmp_path: Path) -> None:
        for name, index in (("train", 0), ("val", 1)):
            (tmp_path / f"{name}.txt").write_text("\n".join(f"{c}/{c}{index}" for c in COLOURS))
        split = ListSplit(tmp_path / "train.txt", tmp_path / "val.txt")
        module = camera(folders / "train", split=split)
        assert [id for id, _ in named(module, "val")] == [
            "blue/blue1.png",
            "green/green1.png",
            "red/red1.png",
        ]
        module = camera(folders / "train", split=DriveSplit(r"(\d)$", val=0.2, test=0.2))
        groups = [{item.group for item in items} for items in module.items.values()]
        assert all(one.isdisjoint(other) for one in groups for other in groups if one is not other)

    def test_split_by_place_is_refused(self, folders: Path) -> None:
        with pytest.raises(DataError, match="allowed: folder, list, scene, drive"):
            camera(folders, split=PlaceSplit(block=100))


class TestTable:
    def test_every_image_has_the_label_of_its_line(self, table: Path) -> None:
        turned = [f"{label},x,{image}" for image, label in (row.split(",") for row in all_rows(table))]
        write_rows(table, "label,note,image", *turned)
        module = camera(table, layout="csv", split=SceneSplit(0.2, 0.2))
        pairs = [pair for split in module.items for pair in named(module, split)]
        assert len(pairs) == 9
        assert all(Path(id).name.startswith(name) for id, name in pairs)

    def test_a_table_for_each_split_over_shared_pictures(self, table: Path) -> None:
        rows = [row.removeprefix("pictures/") for row in all_rows(table)]
        write_rows(table, "image,label", *rows[:6], *rows[7:], name="train.csv")
        write_rows(table, "image,label", rows[6], name="val.csv")
        module = camera(table, layout="csv", images="pictures")
        assert named(module, "val") == [("pictures/red_0.png", "red")]
        assert len(module.items["train"]) == 8
        assert not module.unmatched
        assert module.items["test"] == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda rows: [row.replace(",red", ",rde") for row in rows],
                "line 8: the label 'rde'.*nearest: red",
            ),
            (lambda rows: [*rows, rows[0]], "line 11: pictures/blue_0.png is named again, first in line 2"),
            (lambda rows: [*rows, "pictures/none.png,red"], "1 labels have no image"),
            (lambda rows: rows[1:], r"1 images have no label"),
            (
                lambda rows: [*rows[1:], "pictures/blue_0.png,blue;red"],
                "line 10: 2 labels, blue; red; an image",
            ),
            (lambda rows: [*rows[1:], "pictures/blue_0.png,"], "line 10: 0 labels, none"),
            (
                lambda rows: [*rows, "../away.png,red"],
                "line 11: the file name '../away.png' is not one below",
            ),
            (lambda rows: [*rows, "pictures/blue_0.png"], "line 11: 1 fields, but 2 columns"),
        ],
    )
    def test_mistakes(self, table: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
        write_rows(table, "image,label", *change(all_rows(table)))
        specs = [ClassSpec(name, (name,)) for name in COLOURS]
        with pytest.raises(DataError, match=message):
            camera(table, layout="csv", images="", classes=specs, split=SceneSplit(0.2, 0.2))

    @pytest.mark.parametrize(("header", "missing"), [("image,class", "label"), ("file,label", "image")])
    def test_a_missing_column(self, table: Path, header: str, missing: str) -> None:
        write_rows(table, header, *all_rows(table))
        with pytest.raises(
            DataError, match=f"no column {missing}; its first line is {header.replace(',', ', ')}"
        ):
            camera(table, layout="csv", split=SceneSplit(0.2, 0.2))

    def test_annotations_are_for_tables(self, folders: Path) -> None:
        with pytest.raises(DataError, match="annotations is for layout 'csv'"):
            camera(folders, annotations="labels.csv")
        with pytest.raises(DataError, match="did you mean 'folders'"):
            camera(folders, layout="folder")


class TestSeveralLabels:
    def test_names_and_columns_say_the_same(self, table: Path) -> None:
        names = [f"pictures/{p.name}" for p in sorted((table / "pictures").iterdir())]
        sets = [
            ("blue",),
            ("blue", "red"),
            (),
            ("green",),
            ("green", "red"),
            ("red",),
            ("red",),
            ("blue",),
            ("blue",),
        ]
        write_rows(table, "image,label", *(f"{n},{'; '.join(s)}" for n, s in zip(names, sets, strict=True)))
        by_name = camera(table, layout="csv", multi_label=True, split=SceneSplit(0.2, 0.2))
        flags = [[str(int(name in each)) for name in ("blue", "green", "red")] for each in sets]
        rows = [",".join([name, *row]) for name, row in zip(names, flags, strict=True)]
        write_rows(table, "image,blue,green,red", *rows)
        by_column = camera(table, layout="csv", multi_label=True, split=SceneSplit(0.2, 0.2))
        wanted = dict(zip(names, sets, strict=True))
        for module in (by_name, by_column):
            assert module.classes.names == ("blue", "green", "red")
            for item in (item for items in module.items.values() for item in items):
                label = module.label(item)
                assert isinstance(label, np.ndarray)
                assert [n for n, on in zip(module.classes.names, label, strict=True) if on] == list(
                    wanted[item.id]
                )

    def test_batches_hold_a_number_for_each_class(self, table: Path) -> None:
        write_rows(table, "image,label", *(f"{row};all" for row in all_rows(table)))
        module = camera(table, layout="csv", multi_label=True, split=SceneSplit(0.2, 0.2))
        batch = next(iter(module.train_dataloader()))
        assert batch["label"].dtype == torch.float32
        assert batch["label"].shape == (2, 4)
        assert (batch["label"].sum(1) == 2).all()
        assert batch["label"][:, 0].all()

    def test_flags_are_0_or_1(self, table: Path) -> None:
        write_rows(table, "image,blue,red", "pictures/blue_0.png,1,2")
        with pytest.raises(DataError, match="line 2: column 'red' holds '2'; allowed: 0 or 1"):
            camera(table, layout="csv", multi_label=True, split=SceneSplit(0.2, 0.2))


class TestSamples:
    def test_batches(self, folders: Path) -> None:
        module = camera(folders, size=(16, 18), crop=(12, 12))
        batch = next(iter(module.train_dataloader()))
        assert batch["image"].shape == (2, 3, 12, 12)
        assert batch["image"].dtype == torch.float32
        assert batch["label"].shape == (2,)
        assert batch["label"].dtype == torch.int64
        batch = next(iter(module.val_dataloader()))
        assert batch["image"].shape == (2, 3, 16, 18)
        assert batch["valid"].all()
        assert [item.id for item in batch["item"]] == ["val/blue/blue0.png", "val/blue/blue1.png"]

    def test_the_label_belongs_to_the_image(self, folders: Path) -> None:
        """The brightest band tells the class, however the sample was drawn and augmented."""
        module = camera(folders, augment=Augment("nadir", scale=(0.7, 1.4), photometric=0.1), balance=0.5)
        brightest = {"blue": 2, "green": 1, "red": 0}
        dataset = module.training_dataset()
        for index in range(len(dataset)):
            sample = dataset[SampleKey(0, 3, index)]
            mean, std = (torch.tensor(each) for each in (module.normalisation.mean, module.normalisation.std))
            raw = sample["image"].mean((1, 2)) * std + mean
            assert brightest[module.classes.names[int(sample["label"])]] == int(raw.argmax())
            assert sample["item"].id.split("/")[1] == module.classes.names[int(sample["label"])]

    def test_without_balance_an_epoch_shows_every_image_once(self, folders: Path) -> None:
        dataset = camera(folders).training_dataset()
        ids = [dataset[SampleKey(0, 0, index)]["item"].id for index in range(len(dataset))]
        assert len(set(ids)) == len(ids) == 14

    def test_balance_draws_classes_uniformly_and_again_the_same(self, folders: Path) -> None:
        dataset = camera(folders, balance=1.0).training_dataset()
        keys = [SampleKey(0, epoch, index) for epoch in range(40) for index in range(len(dataset))]
        plan = dataset.images.plan
        drawn = [plan.draw(key, key.rng())[0].id for key in keys]
        assert drawn == [plan.draw(key, key.rng())[0].id for key in keys]
        shares = Counter(id.split("/")[1] for id in drawn)
        expected = len(keys) / 3
        assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in shares.values()), shares

    def test_pictures_of_other_sizes_need_a_size(self, folders: Path) -> None:
        write_picture(folders / "train" / "red" / "large.png", "red", size=(40, 40))
        with pytest.raises(DataError, match=r"large.png: 40 x 40 .*`size` resizes all to one"):
            camera(folders)
        module = camera(folders, size=(20, 20))
        assert {tuple(s["image"].shape) for s in module.evaluation_loader("train").dataset} == {(3, 20, 20)}  # type: ignore[attr-defined]
        with pytest.raises(DataError, match="crop 30 x 30 is larger"):
            camera(folders, size=(20, 20), crop=(30, 30))

    def test_prediction_needs_no_labels(self, folders: Path) -> None:
        module = camera(folders, size=(16, 16))
        paths = sorted(folders.glob("test/*/*.png"))
        dataset = module.prediction_dataset(paths)
        for index, path in enumerate(paths):
            sample = dataset[index]
            assert sample["item"].image == str(path)
            assert torch.equal(sample["image"], module.evaluation_loader("test").dataset[index]["image"])

    def test_a_trained_models_classes_stay_in_its_order(self, folders: Path) -> None:
        module = CameraClassificationDataModule(folders, normalise="data", cache_dir=folders.parent / "cache")
        module.set_class_names(["red", "green", "blue"])
        module.scan()
        assert module.classes.names == ("red", "green", "blue")
        assert module.statistics.class_counts.tolist() == [2, 6, 6]

    def test_a_changed_label_changes_the_fingerprint(self, table: Path) -> None:
        def fingerprint(rows: list[str]) -> str:
            write_rows(table, "image,label", *rows)
            return camera(table, layout="csv", split=SceneSplit(0.2, 0.2)).statistics.fingerprint

        rows = all_rows(table)
        changed = [row.replace(",blue", ",red") for row in rows]
        assert fingerprint(rows) == fingerprint(rows) != fingerprint(changed)


class TestGeoTiff:
    @pytest.fixture
    def patches(self, tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
        """{field,water}/*.tif: 4 bands, uint16; water is dark in the fourth."""
        rng = np.random.default_rng(0)
        for name, near_infrared in (("field", 3000), ("water", 300)):
            for index in range(5):
                values = rng.normal(1000, 50, (4, 16, 16))
                values[3] += near_infrared
                write_raster(tmp_path / "patches" / name / f"{name}{index}.tif", values.astype(np.uint16),
                             names=("blue", "green", "red", "nir"))  # fmt: skip
        return tmp_path / "patches"

    def module(self, root: Path, **options: Any) -> GeoTiffClassificationDataModule:
        usual = {
            "normalise": "data",
            "workers": 0,
            "split": SceneSplit(0.2, 0.2),
            "cache_dir": root.parent / "c",
        }
        module = GeoTiffClassificationDataModule(root, **{**usual, **options})
        module.scan()
        return module

    def test_bands_and_labels(self, patches: Path) -> None:
        module = self.module(patches, use_bands=["nir", "red"], size=(12, 12))
        assert module.bands == ("nir", "red")
        assert module.classes.names == ("field", "water")
        for split in module.items:
            for sample in module.evaluation_loader(split).dataset:  # type: ignore[attr-defined]
                assert sample["image"].shape == (2, 12, 12)
                assert (float(sample["image"][0].mean()) > 0) == (
                    module.classes.names[int(sample["label"])] == "field"
                )

    def test_nodata_is_invalid(self, patches: Path, write_raster: Callable[..., Path]) -> None:
        values = np.full((4, 16, 16), 1000, np.uint16)
        values[:, :8] = 0
        path = write_raster(
            patches / "field" / "half.tif", values, names=("blue", "green", "red", "nir"), nodata=0
        )
        module = self.module(patches)
        sample = module.prediction_dataset([path])[0]
        assert sample["valid"].float().mean() == 0.5
        assert not sample["image"][:, :8].any()

    def test_other_sizes_and_unreadable_files(self, patches: Path, write_raster: Callable[..., Path]) -> None:
        small = np.ones((4, 8, 8), np.uint16)
        odd = write_raster(patches / "field" / "odd.tif", small, names=("blue", "green", "red", "nir"))
        with pytest.raises(DataError, match=r"odd.tif: 8 x 8"):
            self.module(patches)
        assert [path for path, _ in self.module(patches, on_error="skip").skipped] == [str(odd)]
        odd.write_bytes(odd.read_bytes()[:100])
        with pytest.raises(DataError, match=r"odd.tif"):
            self.module(patches, size=(16, 16))
        assert len(self.module(patches, size=(16, 16), on_error="skip").skipped) == 1

    def test_a_table(self, patches: Path) -> None:
        rows = [f"{p.relative_to(patches)},{p.parent.name}" for p in sorted(patches.rglob("*.tif"))]
        write_rows(patches, "image,label", *rows)
        module = self.module(patches, layout="csv")
        assert sum(len(items) for items in module.items.values()) == 10
        write_rows(patches, "image,label", *rows[1:], rows[0].replace(",field", ",feild"))
        with pytest.raises(DataError, match="'feild' is none of the classes, nearest: field"):
            self.module(
                patches,
                layout="csv",
                classes=[ClassSpec("field", ("field",)), ClassSpec("water", ("water",))],
            )
