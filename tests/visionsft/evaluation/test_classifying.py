"""Classification runs judged: numbers, files, intervals, thresholds, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn import metrics as sk
from typer.testing import CliRunner

from datamodules import DataError
from datamodules.batch import Item
from visionsft.cli import app
from visionsft.errors import ConfigError, RunError
from visionsft.evaluation import Answers, calibrate, choose_label_thresholds, evaluate, label_intervals
from visionsft.evaluation.classifying import ClassificationEvaluation
from visionsft.evaluation.gates import judge
from visionsft.evaluation.label_calibration import LabelCalibration, temper
from visionsft.evaluation.metrics import one_hot, summarise_labels
from visionsft.evaluation.reporting import report
from visionsft.evaluation.robustness import measure_robustness
from visionsft.evaluation.temperature import read_temperature
from visionsft.gate import parse
from visionsft.prediction import export_onnx, predict
from visionsft.runs import Run


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.path, folder / run.name)
    return Run.open(folder / run.name)


def make(
    probabilities: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None = None
) -> ClassificationEvaluation:
    """An evaluation of images 0, 1, 2..., each its own group."""
    names = tuple("abc"[: probabilities.shape[1]])
    items = tuple(Item(str(index), str(index), "") for index in range(len(labels)))
    groups = [item.group for item in items]
    return ClassificationEvaluation(
        run="r", split="test", checkpoint="best", skipped=0, folder=Path("nowhere"),
        scores=summarise_labels(probabilities, labels, names, thresholds=thresholds),
        intervals=label_intervals(probabilities, labels, groups, names, thresholds=thresholds),
        answers=Answers(items, names, probabilities, labels, np.zeros(len(labels))), thresholds=thresholds,
        calibration=LabelCalibration.of(
            probabilities, one_hot(labels, len(names)), groups, several=thresholds is not None
        ),
    )  # fmt: skip


class TestOneClass:
    def test_files(self, label_run: Run) -> None:
        evaluation = evaluate(label_run)
        folder = label_run.path / "evaluation" / "test"
        names = {path.name for path in folder.iterdir()}
        assert names == {
            "scores.json",
            "table.txt",
            "per_sample.npz",
            "confusion.csv",
            "confusion.png",
            "reliability.png",
            "worst.png",
            "gallery",
            "slices.csv",
        }
        assert (folder / "table.txt").read_text() == evaluation.table() + "\n"
        scores = json.loads((folder / "scores.json").read_text())
        assert scores["scores"]["accuracy"] == 1.0
        assert scores["samples"] == 12
        assert scores["confusion"] == [[6, 0], [0, 6]]
        assert scores["scores"]["per_class"][0]["images"] == 6
        low, high = scores["intervals"]["metrics"]["accuracy"]
        assert 0.5 < low < high == 1.0
        assert all(cv2.imread(str(folder / name)) is not None for name in ("confusion.png", "worst.png"))

    def test_numbers_can_be_remade_from_the_folder(self, label_run: Run) -> None:
        evaluation = evaluate(label_run, split="val")
        kept = np.load(label_run.path / "evaluation" / "val" / "per_sample.npz")
        again = summarise_labels(kept["probabilities"], kept["labels"], kept["classes"].tolist())
        assert again == evaluation.scores
        np.testing.assert_allclose(kept["probabilities"].sum(1), 1, rtol=1e-5)
        assert kept["ids"].tolist()[0] == "val/bright/bright0.png"

    def test_a_split_that_is_no_evidence_says_so(self, label_run: Run) -> None:
        table = evaluate(label_run, split="train").table()
        assert table.startswith("!! TRAINING SPLIT")

    def test_efficiency(self, label_run: Run) -> None:
        evaluation = evaluate(label_run, efficiency=True)
        assert evaluation.efficiency is not None
        assert "multiply-accumulates" in evaluation.table()

    def test_the_confusion_matrix_is_scikit_learns(self) -> None:
        rng = np.random.default_rng(0)
        probabilities, labels = rng.random((40, 3)), rng.integers(0, 3, 40)
        evaluation = make(probabilities, labels)
        np.testing.assert_array_equal(
            evaluation.confusion, sk.confusion_matrix(labels, probabilities.argmax(1))
        )

    def test_the_worst_are_the_surest_mistakes(self) -> None:
        probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.99, 0.01], [0.2, 0.8]])
        evaluation = make(probabilities, np.array([1, 1, 1, 0]))
        assert evaluation.worst(3) == [2, 0, 3]
        assert evaluation.describe(2) == "2\nis b\nsaid a 0.99"

    def test_options_of_maps_are_refused(self, label_run: Run, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"boundaries: for segmentation; the task of .* is classification"
        ):
            evaluate(label_run, boundaries=True)
        with pytest.raises(DataError, match="can't slice by 'object_size'"):
            evaluate(label_run, slice_by=["object_size"])
        with pytest.raises(DataError, match=r"m\.csv: no such file"):
            evaluate(label_run, metadata=tmp_path / "m.csv")
        with pytest.raises(DataError, match="nearest: test"):
            evaluate(label_run, split="tets")
        with pytest.raises(RunError, match="needs no thresholds"):
            choose_label_thresholds(label_run)

    def test_robustness_begins_with_the_scores_of_the_evaluation(self, label_run: Run) -> None:
        found = measure_robustness(label_run)
        assert found.clean == evaluate(label_run).scores
        darkest = next(each for each in found.conditions if each.strength == "x 0.25")
        assert darkest.drop > 0.2  # brightness is all that tells these classes apart
        assert darkest.hit
        report = json.loads((label_run.path / "evaluation" / "test" / "robustness.json").read_text())
        assert report["metric"] == "accuracy"
        assert report["clean"]["accuracy"] == found.value
        assert measure_robustness(label_run, limit=4).samples == 4

    def test_commands_for_maps_are_refused(self, label_run: Run, tmp_path: Path) -> None:
        evaluate(label_run)
        with pytest.raises(RunError, match="is for segmentation"):
            export_onnx(label_run, tmp_path / "model.onnx")

    def test_gates(self, label_run: Run, tmp_path: Path) -> None:
        run, gates = copied(label_run, tmp_path), tmp_path / "gates.txt"
        command = ["evaluate", str(run.path), "--gates-file", str(gates), "--slice-by", "brightness"]
        texts = ["accuracy.lower >= 0.5", "ece <= 1", "macro_f1 >= .8", "slice(brightness).accuracy.min >= 1"]
        gates.write_text(
            "\n".join([*texts, f"recall[dark].upper drop_vs {label_run.path} <= 0.02", "parameters <= 1e9"])
        )
        evaluate(label_run)
        answer = CliRunner().invoke(app, command)
        assert answer.exit_code == 0, answer.stderr
        assert "gates: 6 of 6 passed" in answer.stdout
        with open(gates, "a") as file:
            file.write("\nprecision[dark] < 0.9\n")
        answer = CliRunner().invoke(app, command)
        assert answer.exit_code == 3
        assert "FAIL  precision[dark] < 0.9" in answer.stdout
        kept = json.loads((run.path / "evaluation/test/gates.json").read_text())
        assert [gate["passed"] for gate in kept["gates"]] == [True] * 6 + [False]
        evaluate(run)  # new scores, which nobody has judged
        assert not (run.path / "evaluation/test/gates.json").exists()

    @pytest.mark.parametrize(
        ("gate", "said"),
        [
            ("acuracy >= 0.9", "'acuracy' is none; nearest: accuracy"),
            ("recall[drk] >= 0.9", "no class 'drk'; nearest: dark"),
            ("slice(brightnes).accuracy.min >= 0.9", "no slice 'brightnes'; nearest: brightness"),
            ("slice(object_size).accuracy.min >= 0.9", "no slice 'object_size'"),
            ("top_k.3 >= 0.9", "there are 2 classes: the first 2 are always right"),
            ("accuracy drop_vs nowhere <= 0.1", "baseline nowhere: no such run folder"),
        ],
    )
    def test_meaningless_gates_are_refused_before_anything_else(
        self, label_run: Run, tmp_path: Path, gate: str, said: str
    ) -> None:
        run, gates = copied(label_run, tmp_path), tmp_path / "gates.txt"
        gates.write_text(gate)
        (run.path / "checkpoints" / "best.ckpt").unlink()  # evaluating would stumble over it
        answer = CliRunner().invoke(app, ["evaluate", str(run.path), "--gates-file", str(gates)])
        assert answer.exit_code == 2
        assert said in answer.stderr

    def test_a_drop_on_other_labels_fails(self, label_run: Run, tmp_path: Path) -> None:
        evaluate(label_run)
        run = copied(label_run, tmp_path)
        file = run.path / "evaluation/test/per_sample.npz"
        kept = dict(np.load(file))
        kept["labels"][3] = 1 - kept["labels"][3]
        np.savez(file, **kept)
        (verdict,) = judge(run, [parse(f"accuracy drop_vs {label_run.path} <= 1", "classification")]).verdicts
        assert not verdict.passed
        assert "were scored with other labels in 1 (" in verdict.note

    def test_a_class_folder_that_came_later_is_named(
        self, label_values: dict[str, Any], label_run: Run, tmp_path: Path
    ) -> None:
        """The model's classes stay; they aren't those that the folders happen to have today."""
        root = tmp_path / "data"
        shutil.copytree(label_values["data"]["root"], root)
        (root / "test" / "dark").rename(root / "test" / "darker")
        run = copied(label_run, tmp_path)
        text = (run.path / "config.yaml").read_text().replace(label_values["data"]["root"], str(root))
        (run.path / "config.yaml").write_text(text)
        with pytest.raises(DataError, match="'darker' is none of the classes, nearest: dark"):
            evaluate(Run.open(run.path))


    def test_a_temperature_is_fitted_stored_and_used(self, label_run: Run, tmp_path: Path) -> None:
        run = copied(label_run, tmp_path)
        before = evaluate(run)
        assert "without a temperature" in before.table()
        table = calibrate(run).table()
        assert "fitted on 8 of 8 answers of split val" in table
        assert "the end of the range" in table  # there are no mistakes
        value = read_temperature(run)
        assert value is not None
        after = evaluate(run)
        wanted = temper(before.answers.probabilities, value.value, several=False)
        np.testing.assert_allclose(after.answers.probabilities, wanted, rtol=1e-5)
        assert after.scores.accuracy == before.scores.accuracy
        assert after.calibration.ece <= before.calibration.ece
        stored = json.loads((after.folder / "scores.json").read_text())["calibration"]
        assert stored["temperature"]["value"] == value.value
        assert stored["temperature"]["ece_before"] == pytest.approx(before.scores.ece, abs=1e-6)
        assert measure_robustness(run, limit=4).clean.ece == pytest.approx(after.scores.ece, abs=0.1)
        pictures = sorted((Path(run.config.data.root) / "test" / "dark").iterdir())[:1]
        (csv_file,) = predict(run, pictures, tmp_path / "out")
        row = next(csv.DictReader(csv_file.open()))
        index = [item.id for item in after.answers.items].index("test/dark/" + pictures[0].name)
        assert float(row["probability"]) == pytest.approx(after.answers.probabilities[index].max(), rel=1e-4)
        page = report(run)
        assert "A temperature of" in page.read_text()


class TestSeveralClasses:
    def test_thresholds_mean_the_same_with_another_temperature(self, labels_run: Run, tmp_path: Path) -> None:
        run = copied(labels_run, tmp_path)
        choose_label_thresholds(run)
        before = evaluate(run)
        fitted = calibrate(run)
        assert fitted.temperature.fitted_on["answers"] == 8 * 3
        after = evaluate(run)
        assert before.thresholds is not None
        assert after.thresholds is not None
        np.testing.assert_array_equal(after.decided, before.decided)
        wanted = temper(before.thresholds, fitted.temperature.value, several=True)
        np.testing.assert_allclose(after.thresholds, wanted, rtol=1e-5)
        assert after.scores.macro_f1 == before.scores.macro_f1
        assert after.calibration.temperature is not None

    def test_thresholds_are_chosen_stored_and_used(self, labels_run: Run, tmp_path: Path) -> None:
        run = copied(labels_run, tmp_path)
        before = evaluate(run)
        assert before.thresholds is not None
        assert before.thresholds.tolist() == [0.5] * 3
        chosen = choose_label_thresholds(run)
        assert "macro F1" in chosen.table()
        assert chosen.tuned.macro_f1 == 1.0 >= chosen.plain.macro_f1
        after = evaluate(run)
        assert after.thresholds is not None
        assert after.thresholds.tolist() == list(chosen.values.values())
        assert after.scores.mean_average_precision == before.scores.mean_average_precision == 1.0
        assert after.scores.macro_f1 >= before.scores.macro_f1
        shutil.copy(run.checkpoint("last"), run.checkpoint("best"))
        with pytest.warns(UserWarning, match=r"another checkpoint than best.ckpt"):
            other = evaluate(run)
        assert other.thresholds is not None
        assert other.thresholds.tolist() == [0.5] * 3
        rows = list(csv.reader((other.folder / "confusion.csv").open()))
        assert rows[0] == ["class", "right without", "wrongly given", "missed", "right with"]
        assert all(sum(map(int, row[1:])) == 12 for row in rows[1:])

    def test_counts_of_each_class_are_scikit_learns(self) -> None:
        rng = np.random.default_rng(0)
        probabilities, truth = rng.random((30, 3)), (rng.random((30, 3)) < 0.4).astype(np.float32)
        thresholds = np.array([0.5, 0.4, 0.7])
        evaluation = make(probabilities, truth, thresholds)
        wanted = sk.multilabel_confusion_matrix(truth > 0, probabilities >= thresholds)
        np.testing.assert_array_equal(evaluation.confusion, wanted)

    def test_commands(self, labels_run: Run, label_run: Run, tmp_path: Path) -> None:
        run = copied(labels_run, tmp_path)
        answer = CliRunner().invoke(app, ["thresholds", str(run.path)])
        assert answer.exit_code == 0, answer.output
        assert "written:" in answer.stdout
        answer = CliRunner().invoke(app, ["thresholds", str(run.path), "recall[dark] >= 0.9"])
        assert answer.exit_code == 2
        answer = CliRunner().invoke(app, ["evaluate", str(run.path)])
        assert answer.exit_code == 0, answer.output
        assert "mean average precision" in answer.stdout


class TestIntervals:
    def test_they_hold_the_estimate_and_shrink_with_more_images(self) -> None:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 3, 400)
        probabilities = rng.random((400, 3)) + 0.6 * (labels[:, None] == np.arange(3))
        widths = []
        for count in (50, 400):
            found = make(probabilities[:count], labels[:count])
            for name, value in found.scores.totals().items():
                low, high = found.intervals.metrics[name] or (1.0, 0.0)
                assert low < value < high
            low, high = found.intervals.metrics["accuracy"] or (0.0, 0.0)
            widths.append(high - low)
        assert widths[1] < widths[0] / 2
        p = found.scores.accuracy
        normal = 2 * 1.96 * np.sqrt(p * (1 - p) / 400)  # Wald's interval of independent images
        assert widths[1] == pytest.approx(normal, rel=0.1)

    def test_images_of_one_group_share_their_errors(self) -> None:
        """Each image ten times in a group of its own says no more than once."""
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 3, 60)
        probabilities = rng.random((60, 3)) + 0.6 * (labels[:, None] == np.arange(3))
        names, groups = ("a", "b", "c"), [str(index) for index in range(60)]
        once = label_intervals(probabilities, labels, groups, names)
        tenfold = label_intervals(
            probabilities.repeat(10, 0), labels.repeat(10), np.repeat(groups, 10).tolist(), names
        )
        for name, ends in once.metrics.items():
            assert tenfold.metrics[name] == pytest.approx(ends)

    def test_too_few_groups_have_none(self) -> None:
        found = label_intervals(np.eye(3), np.arange(3), ["x", "y", "z"], ("a", "b", "c"))
        assert found.note == "only 3 groups"
        assert "no 95% intervals" in found.table(summarise_labels(np.eye(3), np.arange(3), ("a", "b", "c")))
