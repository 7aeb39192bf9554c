"""Evaluation: the numbers, remade from the files with scikit-learn, and the files of a split."""

from __future__ import annotations

import csv
import errno
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk
from torch import Tensor, nn

from datamodules import CameraFrameDataModule, ClassSpec, DataError
from visionsft.config import Backbone, CameraData, Config
from visionsft.errors import RunError, WriteError
from visionsft.evaluation import evaluate
from visionsft.evaluation.metrics import mean_iou
from visionsft.runs import Run

GREYS = (40, 128, 216)
"""Of the classes 'low', 'middle' and 'high'; the fourth, 'never', is in no mask."""
SIZE = (24, 36)
VIEWS = {"scales": (1.0,), "symmetry": "none"}
FILES = {"scores.json", "table.txt", "confusion.csv", "confusion.png", "per_sample.npz", "worst.png", "gallery"}


class NearestGrey(nn.Module):
    """image normalised to -1..1 -> logits: minus the distance to each class's grey."""

    def __init__(self) -> None:
        super().__init__()
        self.greys = nn.Parameter(torch.tensor([*GREYS, 10_000.0]))

    def forward(self, image: Tensor) -> Tensor:
        grey = (image.mean(1, keepdim=True) + 1) * 127.5
        return -(grey - self.greys[:, None, None]).abs()


def make_frame(index: int, *, wrong_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) and its mask, which the model gets wrong in so many rows; a column has no label."""
    truth = np.random.default_rng(index).integers(0, 3, SIZE).astype(np.uint8)
    seen = truth.copy()
    seen[:wrong_rows] = (truth[:wrong_rows] + 1) % 3
    truth[:, -1] = 9
    return np.repeat(np.array(GREYS, np.uint8)[seen][..., None], 3, axis=2), truth


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Frames in folders train, val and test; frame i of each is wrong in i rows."""
    for split, count in {"train": 2, "val": 1, "test": 4}.items():
        for index in range(count):
            picture, mask = make_frame(index, wrong_rows=index)
            for kind, pixels in (("images", picture), ("masks", mask)):
                folder = tmp_path / "data" / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{index}_drive{index % 2}.png")
    return tmp_path / "data"


def make_data(root: Path) -> CameraFrameDataModule:
    data = CameraFrameDataModule(
        root,
        images="images/{split}/*.png",
        labels="masks/{split}/{name}.png",
        classes=[ClassSpec(name, (i,)) for i, name in enumerate(("low", "middle", "high", "never"))],
        ignore=(9,),
        drive_pattern="(drive.)",
        batch_size=3,
        workers=0,
    )
    data.set_normalisation((0.5,) * 3, (0.5,) * 3)
    data.scan()
    return data


@pytest.fixture
def run(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run folder over `frames` that loads as NearestGrey."""
    config = Config(
        name="tiny",
        runs=tmp_path / "runs",
        data=CameraData(kind="camera", root=frames),
        backbone=Backbone(name="test_resnet", weights="none"),
    )
    run = Run.create(config)
    run.checkpoints.mkdir()
    torch.save({}, run.checkpoints / "best.ckpt")

    def load_run(run: Run, checkpoint: str) -> SimpleNamespace:
        model = NearestGrey().eval()
        return SimpleNamespace(model=model, data=make_data(frames), precision=None, channels_last=True, views=VIEWS)

    loading = SimpleNamespace(load_run=load_run)
    monkeypatch.setitem(sys.modules, "visionsft.training.loading", loading)
    return run


def truth_and_prediction() -> tuple[np.ndarray, np.ndarray]:
    """All labelled pixels of the test split, from how the frames are made."""
    truth, prediction = [], []
    for index in range(4):
        _, mask = make_frame(index, wrong_rows=index)
        seen = mask.copy()
        seen[:index] = (mask[:index] + 1) % 3
        truth.append(mask[mask != 9])
        prediction.append(seen[mask != 9])
    return np.concatenate(truth), np.concatenate(prediction)


def test_the_numbers_are_scikit_learns(run: Run) -> None:
    evaluation = evaluate(run)
    truth, prediction = truth_and_prediction()
    assert np.array_equal(evaluation.confusion, sk.confusion_matrix(truth, prediction, labels=range(4)))
    assert evaluation.scores.mean_iou == pytest.approx(sk.jaccard_score(truth, prediction, average="macro"))
    assert evaluation.scores.pixels == len(truth)
    assert [item.id for item in evaluation.counts.items] == [
        f"images/test/{i}_drive{i % 2}.png" for i in range(4)
    ]


def test_every_number_can_be_remade_from_the_files(run: Run) -> None:
    evaluation = evaluate(str(run.path), split="test", checkpoint="best")
    folder = run.path / "evaluation" / "test"
    assert {path.name for path in folder.iterdir()} == FILES
    gallery = json.loads((folder / "gallery" / "index.json").read_text())
    assert [each["id"] for each in gallery["samples"]] == [evaluation.counts.items[i].id for i in evaluation.worst()]
    assert gallery["samples"][0]["mean_iou"] == mean_iou(evaluation.counts.confusions).min()

    report = json.loads((folder / "scores.json").read_text(), parse_constant=pytest.fail)
    assert report["scores"]["mean_iou"] == evaluation.scores.mean_iou
    assert report["scores"]["per_class"][3]["iou"] is None  # never in truth, never predicted
    assert (report["samples"], report["groups"]) == (4, 2)
    assert report["classes"] == ["low", "middle", "high", "never"]
    assert "one confusion matrix over the whole split" in report["definitions"]["mean_iou"]
    assert report["warning"] is None
    assert len(report["data"]["fingerprint"]) == len(report["checkpoint"]["sha256"]) == 64
    assert report["environment"]["versions"]["torch"].startswith(torch.__version__.split("+")[0])

    with np.load(folder / "per_sample.npz") as kept:
        assert kept["confusions"].shape == (4, 4, 4)
        assert kept["groups"].tolist() == ["drive0", "drive1", "drive0", "drive1"]
        total = kept["confusions"].sum(axis=0)
    with open(folder / "confusion.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == [row[0] for row in rows[1:]] == report["classes"]
    assert np.array_equal(np.array([row[1:] for row in rows[1:]], int), total)
    assert report["confusion"] == total.tolist()

    assert (folder / "table.txt").read_text() == evaluation.table() + "\n"
    assert "3 of 4 classes" in evaluation.table()
    for name in ("confusion.png", "worst.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200


def test_the_worst_come_first(run: Run) -> None:
    evaluation = evaluate(run)
    assert evaluation.worst() == [3, 2, 1, 0]
    assert evaluation.worst(2) == [3, 2]


def test_the_training_split_is_no_evidence(run: Run) -> None:
    evaluation = evaluate(run, split="train")
    assert evaluation.table().startswith("!! TRAINING SPLIT, NO EVIDENCE")
    report = json.loads((run.path / "evaluation" / "train" / "scores.json").read_text())
    assert "NO EVIDENCE" in report["warning"]
    assert report["samples"] == 2
    assert "optimistic" in evaluate(run, split="val").table()


def test_a_split_without_samples_is_named_with_those_that_have_some(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        DataError, match=r"split 'tset' does not exist \(nearest: test\); .*train \(2 samples\)"
    ):
        evaluate(run, split="tset")

    def load_without_test(run: Run, checkpoint: str) -> SimpleNamespace:
        loaded = load_run(run, checkpoint)
        loaded.data.items["test"] = []
        return loaded

    loading = sys.modules["visionsft.training.loading"]
    load_run = loading.load_run
    monkeypatch.setattr(loading, "load_run", load_without_test)
    with pytest.raises(
        DataError, match=r"split 'test' has no samples; with samples: train .*val \(1 samples\)"
    ):
        evaluate(run)
    assert not (run.path / "evaluation" / "test").exists()


def test_a_split_without_labels_is_refused(run: Run, frames: Path) -> None:
    for path in (frames / "masks" / "test").iterdir():
        Image.fromarray(np.full((24, 36), 9, np.uint8)).save(path)
    with pytest.raises(DataError, match="no pixel of the test split is labelled"):
        evaluate(run)


def test_a_model_that_gives_nan_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        NearestGrey, "forward", lambda self, image: image.repeat(1, 2, 1, 1)[:, :4] * torch.nan
    )
    with pytest.raises(RunError, match="not a number"):
        evaluate(run)


def test_a_full_disk_leaves_no_half_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(WriteError, match=r"confusion\.png"):
        evaluate(run)
    left = {path.name for path in (run.path / "evaluation" / "test").iterdir()}
    assert left == {"table.txt", "confusion.csv", "per_sample.npz"}  # scores.json stands for a complete set
