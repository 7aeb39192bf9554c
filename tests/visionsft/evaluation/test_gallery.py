"""The gallery: pictures that show the samples, and an index that says what is wrong in them."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from datamodules.batch import Item
from visionsft.evaluation.gallery import LAYERS, describe_sample, write_gallery
from visionsft.evaluation.pictures import RIGHT, WRONG, Example

COLOURS = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)


def write(folder, height, width):
    truth = np.zeros((height, width), np.uint8)
    truth[:, width // 2 :] = 1
    prediction = np.zeros_like(truth)
    prediction[: height // 2, width // 2 :] = 1
    example = Example("x", np.full((height, width, 3), 77, np.uint8), truth, prediction)
    confusion = np.array([[[height * width // 2, 0], [height * width // 4, height * width // 4]]])
    item = Item("../a/b.png", "drive", "")
    write_gallery(folder, [example], items=[item], confusions=confusion, names=("a", "b"), colours=COLOURS)
    (entry,) = json.loads((folder / "index.json").read_text())["samples"]
    return entry, {layer: np.asarray(Image.open(folder / entry["files"][layer])) for layer in LAYERS}


def test_pictures_have_the_classes_colours_and_the_errors(tmp_path):
    entry, pictures = write(tmp_path / "g", 20, 40)
    assert {path.name for path in (tmp_path / "g").iterdir()} == {"index.json", *entry["files"].values()}
    assert np.abs(pictures["image"].astype(int) - 77).max() <= 2
    assert pictures["truth"][0, 0].tolist() == [10, 20, 30]
    assert pictures["truth"][-1, -1].tolist() == [200, 100, 50]
    assert pictures["prediction"][-1, -1].tolist() == [10, 20, 30]
    assert pictures["error"][-1, -1].tolist() == list(WRONG)
    assert pictures["error"][0, -1].tolist() == list(RIGHT)


def test_large_pictures_are_reduced_without_new_colours(tmp_path):
    _, pictures = write(tmp_path / "g", 700, 2000)
    assert {picture.shape for picture in pictures.values()} == {(179, 512, 3)}
    assert len(np.unique(pictures["truth"].reshape(-1, 3), axis=0)) == 2


def test_an_old_gallery_is_replaced(tmp_path):
    write(tmp_path / "g", 20, 40)
    (tmp_path / "g" / "07-image.jpg").write_bytes(b"")
    write(tmp_path / "g", 20, 40)
    assert not (tmp_path / "g" / "07-image.jpg").exists()


def test_a_sample_is_described_by_its_matrix():
    confusion = np.array([[6, 0, 2], [0, 0, 0], [4, 0, 8]])
    found = describe_sample(confusion, ("a", "b", "c"))
    assert found["iou"] == {"a": 6 / 12, "b": None, "c": 8 / 14}
    assert found["mean_iou"] == (6 / 12 + 8 / 14) / 2
    assert (found["pixels"], found["pixel_accuracy"]) == (20, 14 / 20)
    assert found["present"] == ["a", "c"]
    assert [(each["truth"], each["prediction"], each["pixels"]) for each in found["confusions"]] == [
        ("c", "a", 4),
        ("a", "c", 2),
    ]
