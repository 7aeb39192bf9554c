"""Evaluation: the numbers, remade from the files with scikit-learn, and the files of a split."""

from __future__ import annotations

import csv
import errno
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk
from torch import Tensor, nn
from typer.testing import CliRunner

from datamodules import CameraFrameDataModule, ClassSpec, DataError
from visionsft.cli import app
from visionsft.config import Backbone, CameraData, SegmentationConfig
from visionsft.errors import RunError, WriteError
from visionsft.evaluation import evaluate, load_counts
from visionsft.evaluation.metrics import mean_iou
from visionsft.evaluation.operating import describe_owner
from visionsft.evaluation.temperature import Temperature, store_temperature
from visionsft.models.inference import compute_logits
from visionsft.runs import Run

GREYS = (40, 128, 216)
"""Of the classes 'low', 'middle' and 'high'; the fourth, 'never', is in no mask."""
SIZE = (24, 36)
VIEWS = {"scales": (1.0,), "symmetry": "none"}
FILES = {
    "scores.json", "table.txt", "confusion.csv", "confusion.png", "per_sample.npz", "reliability.png", "worst.png",
    "slices.csv", "gallery",
}  # fmt: skip


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
    config = SegmentationConfig(
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
        logits = partial(compute_logits, model, precision=None, channels_last=True)
        return SimpleNamespace(model=model, data=make_data(frames), logits=logits, views=VIEWS)

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


def test_what_was_counted_is_read_back(run: Run) -> None:
    evaluation = evaluate(run)
    counts = load_counts(run.evaluation("test"))
    assert (counts.ids, counts.groups, counts.classes) == (
        evaluation.counts.ids,
        evaluation.counts.groups,
        ("low", "middle", "high", "never"),
    )
    assert np.array_equal(counts.confusions, evaluation.counts.confusions)
    for item, brightness in zip(counts.items, counts.brightness, strict=True):
        with Image.open(item.image) as picture:
            assert brightness == pytest.approx(np.asarray(picture).mean(), rel=1e-5)


def test_counts_that_are_missing_or_old_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"per_sample.npz does not exist: evaluate the run first"):
        load_counts(tmp_path)
    np.savez(tmp_path / "per_sample.npz", ids=[], groups=[], classes=[], confusions=[])
    with pytest.raises(RunError, match=r"has no brightness, images: .* evaluate it again"):
        load_counts(tmp_path)


def test_two_drives_give_no_interval_and_their_slices(run: Run) -> None:
    evaluate(run)
    report = json.loads((run.path / "evaluation" / "test" / "scores.json").read_text())
    intervals = report["intervals"]
    assert (intervals["unit"], intervals["groups"], intervals["note"]) == ("group", 2, "only 2 groups")
    assert intervals["metrics"]["mean_iou"] is intervals["per_class"]["low"]["iou"] is None
    assert intervals["per_class"]["low"]["note"] == "only 2 groups"
    assert intervals["by_image"] is None  # four images
    assert [(row["by"], row["value"]) for row in report["slices"]] == [
        ("group", "drive1"),
        ("group", "drive0"),
    ]
    assert "2 slices were looked at" in report["slices_note"]


def test_few_drives_of_many_images_give_intervals_that_are_called_too_narrow(run: Run, frames: Path) -> None:
    for index in range(4, 12):
        for kind, pixels in zip(("images", "masks"), make_frame(index, wrong_rows=index), strict=True):
            Image.fromarray(pixels).save(frames / kind / "test" / f"{index}_drive{index % 2}.png")
    evaluation = evaluate(run, slice_by=["brightness", r"name:_(\w+)\."])
    report = json.loads((run.path / "evaluation" / "test" / "scores.json").read_text())
    by_image = report["intervals"]["by_image"]
    assert by_image["note"] == "too narrow: the 12 images are from 2 groups, and those of one group are alike"
    low, high = by_image["metrics"]["mean_iou"]
    assert low < evaluation.scores.mean_iou < high
    assert {row["by"] for row in report["slices"]} == {"brightness", r"name:_(\w+)\."}
    table = evaluation.table()
    assert "no 95% intervals, 2,000 resamples of 2 groups: only 2 groups" in table
    assert f"[{low:.3f}, {high:.3f}]" in table
    chosen = evaluate(run, group_by="image")
    assert chosen.by_image is None
    assert chosen.intervals.as_dict() == by_image


def test_what_cannot_be_sliced_by_is_said_before_the_model_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(NearestGrey, "forward", None)
    with pytest.raises(DataError, match=r"can't slice by 'groups' \(nearest: group\)"):
        evaluate(run, slice_by=["groups"])
    (tmp_path / "meta.csv").write_text("frame,weather\n0_drive0,sun\n")
    with pytest.raises(DataError, match=r"meta.csv: 3 of 4 samples have no row"):
        evaluate(run, metadata=tmp_path / "meta.csv")


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
    assert left == {
        "table.txt",
        "confusion.csv",
        "per_sample.npz",
        "slices.csv",
    }  # scores.json stands for a complete set


@pytest.fixture
def judged(run: Run, tmp_path: Path) -> Callable[..., Any]:
    """judged(*gates, **options): `visionsft evaluate RUN` with the gates in a file."""
    run.write_json("data.json", {"classes": ["low", "middle", "high", "never"]})

    def invoke(*gates: str) -> Any:
        file = tmp_path / "gates.txt"
        file.write_text("\n".join(gates))
        return CliRunner().invoke(app, ["evaluate", str(run.path), "--gates-file", str(file)])

    return invoke


def test_gates_decide_over_the_exit_code(run: Run, judged: Callable[..., Any]) -> None:
    passing, failing = "mean_iou >= 0.5", "recall[never] >= 0"
    result = judged(passing)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "gates: 1 of 1 passed" in result.stdout

    result = judged(passing, failing)
    assert result.exit_code == 3
    assert "FAIL  recall[never] >= 0.0  not defined: no pixel of 'never' in truth" in result.stdout
    report = json.loads((run.path / "evaluation" / "test" / "gates.json").read_text())
    assert [gate["passed"] for gate in report["gates"]] == [True, False]

    evaluate(run)  # the gates were judged by the scores before these
    assert not (run.path / "evaluation" / "test" / "gates.json").exists()


def test_a_gate_without_a_meaning_stops_before_evaluating(run: Run, judged: Callable[..., Any]) -> None:
    result = judged("recall[midle] >= 0.5")
    assert result.exit_code == 2
    assert "no class 'midle'; nearest: middle" in result.stderr
    assert not (run.path / "evaluation").exists()


def test_a_gate_on_efficiency_has_it_measured(run: Run, judged: Callable[..., Any]) -> None:
    result = judged("parameters <= 4", "throughput.mpx_s > 0", "peak_memory_mb > 10", "gmacs_per_mpx <= 0")
    assert result.exit_code == 0, result.stdout
    efficiency = json.loads((run.path / "evaluation" / "test" / "scores.json").read_text())["efficiency"]
    assert efficiency["throughput"]["shape"] == [3, 3, *SIZE]
    assert evaluate(run).efficiency is None


def test_two_runs_are_compared_with_pictures(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = sys.modules["visionsft.training.loading"]
    load_run = loading.load_run

    def load(run: Run, checkpoint: str) -> SimpleNamespace:
        loaded = load_run(run, checkpoint)
        if run.name == "blind":
            loaded.model.greys.data[:2] = torch.tensor([128.0, 40.0])  # takes low for middle and back
        return loaded

    monkeypatch.setattr(loading, "load_run", load)
    run.write_json("data.json", {"classes": ["low", "middle", "high", "never"]})
    run.write_environment({"weights": {}})
    shutil.copytree(run.path, run.path.parent / "blind")
    paths = [str(run.path), str(run.path.parent / "blind")]
    assert "no scores of split 'test'" in CliRunner().invoke(app, ["compare", *paths]).stderr
    for path in paths:
        evaluate(path)
    result = CliRunner().invoke(app, ["compare", *paths])
    assert result.exit_code == 0, result.output
    assert "B better in 0, worse in 2, of 2" in result.stdout
    with Image.open(run.path / "evaluation" / "test" / "compare-blind" / "changed-1-blind.png") as picture:
        assert min(picture.size) > 200


def test_robustness_begins_with_the_scores_of_the_evaluation(run: Run) -> None:
    result = CliRunner().invoke(app, ["robustness", str(run.path)])
    assert result.exit_code == 0, result.output
    folder = run.path / "evaluation" / "test"
    assert (folder / "robustness.txt").read_text() == result.stdout
    report = json.loads((folder / "robustness.json").read_text(), parse_constant=pytest.fail)
    assert report["clean"] == evaluate(run).scores.as_dict()
    assert (report["samples"], report["samples_in_split"]) == (4, 4)
    assert set(report["left_out"]) == {"dropout 4 band(s)"}
    by_name = {row["strength"]: row["drop"] for row in report["conditions"]}
    assert by_name["sigma 4 px"] > 0.3  # every pixel is of a class of its own
    assert by_name["x 0.25"] > 0.3  # high becomes middle, and middle low


def test_a_quick_look_at_robustness_says_so(run: Run) -> None:
    result = CliRunner().invoke(app, ["robustness", str(run.path), "--limit", "2"])
    assert "2 samples of 4, evenly spaced: a quick look" in result.stdout
    report = json.loads((run.path / "evaluation" / "test" / "robustness.json").read_text())
    assert report["clean"]["pixels"] == 2 * SIZE[0] * (SIZE[1] - 1)
    assert CliRunner().invoke(app, ["robustness", str(run.path), "--split", "tset"]).exit_code == 2


# ------------------------------------------------------------------------------ calibration and boundaries


def read_scores(run: Run, split: str = "test") -> dict[str, Any]:
    return json.loads((run.path / "evaluation" / split / "scores.json").read_text(), parse_constant=pytest.fail)


def test_calibration_is_counted_on_a_lattice_and_kept_by_sample(run: Run) -> None:
    evaluate(run)
    found = read_scores(run)["calibration"]
    # NearestGrey is certain of everything, so its error is its share of mistakes: row 0 of the lattice's six, of
    # frames 1 to 3; no pixel of the unlabelled last column is on the lattice
    assert found["pixels"] == 4 * 6 * 9
    assert found["ece"] == pytest.approx(3 * 9 / (4 * 6 * 9))
    assert found["bins"][-1]["pixels"] == found["pixels"]
    assert found["temperature"] is None
    with np.load(run.path / "evaluation" / "test" / "per_sample.npz") as kept:
        pixels, confidence, right = kept["reliability"][:, 0].sum(axis=1).T
    assert pixels.tolist() == [54] * 4
    assert right.tolist() == [54, 45, 45, 45]
    np.testing.assert_allclose(confidence, pixels)


def test_the_price_of_the_runs_thresholds_is_shown(run: Run) -> None:
    assert evaluate(run).details.price(evaluate(run).scores) is None
    rows = [{"class": "middle", "threshold": 0.0}]  # which every pixel reaches
    run.write_json("thresholds.json", {"rule": "r", "temperature": 1.0, "thresholds": rows,
                                       **describe_owner(run, "best")})  # fmt: skip
    evaluation = evaluate(run)
    scores = json.loads((evaluation.folder / "scores.json").read_text())
    low, middle = scores["operating_point"]["per_class"][:2]
    assert (low["threshold"], middle["threshold"]) == (None, 0.0)
    assert middle["recall"][1] == 1.0
    assert low["recall"] == [scores["scores"]["per_class"][0]["recall"], 0.0]
    assert "operating point" in (evaluation.folder / "table.txt").read_text()
    torch.save({"trained": "on"}, run.checkpoint("best"))
    with pytest.warns(UserWarning, match="another checkpoint"):
        assert evaluate(run).details.point is None


def test_boundaries_are_counted_where_they_are_wanted(run: Run) -> None:
    evaluate(run)
    assert "boundaries" not in read_scores(run)
    evaluation = evaluate(run, boundaries=True)
    found = read_scores(run)["boundaries"]
    assert 0 < found["mean_boundary_iou"] < 1
    assert found["boundary_iou"]["never"] is None
    assert [row["distance"] for row in found["trimap"]] == [1, 2, 4, 8, 16, 32]
    assert found["trimap"][-1]["pixels"] == evaluation.scores.pixels
    assert "boundary IoU" in evaluation.table()
    with np.load(run.path / "evaluation" / "test" / "per_sample.npz") as kept:
        assert kept["boundary_regions"].shape == (4, 4, 2)
        assert kept["boundary_trimap"][0].sum() == 3 * kept["confusions"][0].sum()  # right, true and predicted


def test_a_temperature_is_used_and_changes_no_class(run: Run) -> None:
    before = evaluate(run)
    temperature = Temperature(40.0, {"split": "val"}, {})
    store_temperature(run, "best", temperature)
    after = evaluate(run)
    np.testing.assert_array_equal(before.confusion, after.confusion)
    found = read_scores(run)["calibration"]
    assert found["temperature"]["value"] == 40.0
    assert found["temperature"]["ece_before"] == before.details.ece
    assert found["temperature"]["ece_after"] == found["ece"] == after.details.ece
    # mean probability of the best class: its logit is 0, the others' -88 and -88 or -176
    assert found["bins"][-2]["confidence"] == pytest.approx(1 / (1 + np.exp(-2.2) + np.exp(-4.4)), abs=0.02)
    assert "with temperature 40.000" in after.table()
