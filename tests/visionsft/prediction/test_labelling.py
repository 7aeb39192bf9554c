"""Classes of new images as a table: its lines, what can't be used, and options that don't apply."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from datamodules import DataError
from visionsft.cli import app
from visionsft.errors import ConfigError, WriteError
from visionsft.evaluation import choose_label_thresholds, evaluate
from visionsft.prediction import FrameOptions, LabelOptions, SceneOptions, predict, predict_all
from visionsft.runs import Run


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_a_line_an_image_as_evaluation_has_it(label_run: Run, labelled_pictures: Path, tmp_path: Path) -> None:
    files = predict(label_run, labelled_pictures / "test" / "dark", tmp_path)
    assert files == [tmp_path / "predictions.csv"]
    found = rows(files[0])
    assert list(found[0]) == ["file", "class", "probability", "class_2", "probability_2"]
    assert [Path(row["file"]).name for row in found] == [f"dark{index}.png" for index in range(6)]
    assert all(row["class"] == "dark" and row["class_2"] == "bright" for row in found)
    known = evaluate(label_run).answers
    by_id = {item.id: values for item, values in zip(known.items, known.probabilities, strict=True)}
    for row in found:
        wanted = by_id[f"test/dark/{Path(row['file']).name}"]
        assert [float(row["probability_2"]), float(row["probability"])] == pytest.approx(wanted, abs=1e-4)
    assert not list(tmp_path.glob(".*"))


def test_top_and_globs(label_run: Run, labelled_pictures: Path, tmp_path: Path) -> None:
    pattern = str(labelled_pictures / "test" / "*" / "*0.png")
    found = rows(predict(label_run, pattern, tmp_path, labels=LabelOptions(top=1))[0])
    assert list(found[0]) == ["file", "class", "probability"]
    assert [row["class"] for row in found] == ["bright", "dark"]
    with pytest.raises(ConfigError, match="top is 0"):
        LabelOptions(top=0)


def test_several_classes_have_a_column_each(labels_run: Run, labelled_pictures: Path, tmp_path: Path) -> None:
    chosen = choose_label_thresholds(labels_run)
    found = rows(predict(labels_run, labelled_pictures / "test" / "bright", tmp_path)[0])
    assert list(found[0]) == ["file", "classes", "bright", "dark", "picture"]
    for row in found:
        given = [name for name, limit in chosen.values.items() if float(row[name]) >= limit]
        assert row["classes"] == ";".join(given)
    with pytest.raises(ConfigError, match="every class has its column"):
        predict(labels_run, labelled_pictures / "test" / "bright", tmp_path / "b", labels=LabelOptions(top=1))


def test_what_can_not_be_used_is_named_and_the_rest_is_done(
    label_run: Run, labelled_pictures: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    good = labelled_pictures / "test" / "dark" / "dark0.png"
    predictions = predict_all(label_run, [broken, good], tmp_path / "out")
    assert list(predictions.failed) == [str(broken)]
    assert [row["file"] for row in rows(predictions.files[0])] == [str(good)]
    assert "dark 0." in predictions.table() or "dark 1." in predictions.table()
    with pytest.raises(DataError, match="1 of 2 inputs can't be predicted"):
        predictions.check()
    with pytest.raises(DataError, match="nothing was written"):
        predict(label_run, broken, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_nothing_is_replaced_unasked(label_run: Run, labelled_pictures: Path, tmp_path: Path) -> None:
    inputs = labelled_pictures / "test" / "dark"
    predict(label_run, inputs, tmp_path)
    with pytest.raises(WriteError, match=r"predictions.csv: exists; --overwrite"):
        predict(label_run, inputs, tmp_path)
    predict(label_run, labelled_pictures / "test" / "bright", tmp_path, overwrite=True)
    assert {row["class"] for row in rows(tmp_path / "predictions.csv")} == {"bright"}


def test_options_of_maps_are_refused(label_run: Run, labelled_pictures: Path, tmp_path: Path) -> None:
    inputs = labelled_pictures / "test" / "dark"
    with pytest.raises(ConfigError, match="resume, overlay: for maps"):
        predict(label_run, inputs, tmp_path, resume=True, overlay=True)
    with pytest.raises(ConfigError, match="tile, every: for maps"):
        predict(label_run, inputs, tmp_path, scenes=SceneOptions(tile=64), frames=FrameOptions(every=2))
    with pytest.raises(ConfigError, match="engine: for maps"):
        predict(label_run, inputs, tmp_path, engine="ray")


def test_the_command(label_run: Run, labelled_pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    inputs = str(labelled_pictures / "test" / "dark")
    answer = CliRunner().invoke(app, ["predict", str(label_run.path), inputs, "--out", str(out), "--top", "2"])
    assert answer.exit_code == 0, answer.output
    assert "1 results in" in answer.stdout
    for row in rows(out / "predictions.csv"):
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=1e-4)
    answer = CliRunner().invoke(app, ["predict", str(label_run.path), inputs, "--out", str(out), "--layer", "entropy"])
    assert answer.exit_code == 2
    assert "layers: for maps" in answer.stderr
