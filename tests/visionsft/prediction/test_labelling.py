"""Classes of new images as a table: its lines, what can't be used, and options that don't apply."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import from_origin
from typer.testing import CliRunner

from datamodules import DataError
from visionsft.cli import app
from visionsft.config import ClassificationConfig
from visionsft.errors import ConfigError, WriteError
from visionsft.evaluation import choose_label_thresholds, evaluate
from visionsft.prediction import FrameOptions, LabelOptions, SceneOptions, predict, predict_all
from visionsft.runs import Run
from visionsft.training.fitting import fit


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_a_line_an_image_as_evaluation_has_it(
    label_run: Run, labelled_pictures: Path, tmp_path: Path
) -> None:
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
    with pytest.raises(ConfigError, match="operating_point: an image has one class here"):
        predict(label_run, pattern, tmp_path / "b", operating_point=True)


def test_several_classes_have_a_column_each(labels_run: Run, labelled_pictures: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(labels_run.path, tmp_path / "run"))  # others look at this one's thresholds
    chosen = choose_label_thresholds(run)
    found = rows(predict(run, labelled_pictures / "test" / "bright", tmp_path)[0])
    assert list(found[0]) == ["file", "classes", "bright", "dark", "picture"]
    for row in found:
        given = [name for name, limit in chosen.values.items() if float(row[name]) >= limit]
        assert row["classes"] == ";".join(given)
    assert not (tmp_path / "predictions_operating_point.json").exists()
    pictures = labelled_pictures / "test" / "bright"
    predict(run, pictures, tmp_path, operating_point=True, overwrite=True)
    kept = json.loads((tmp_path / "predictions_operating_point.json").read_text())
    assert kept["thresholds"] == chosen.values
    with pytest.raises(ConfigError, match="every class has its column"):
        predict(run, labelled_pictures / "test" / "bright", tmp_path / "b", labels=LabelOptions(top=1))


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
    answer = CliRunner().invoke(
        app, ["predict", str(label_run.path), inputs, "--out", str(out), "--top", "2"]
    )
    assert answer.exit_code == 0, answer.output
    assert "1 results in" in answer.stdout
    for row in rows(out / "predictions.csv"):
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=1e-4)
    answer = CliRunner().invoke(
        app, ["predict", str(label_run.path), inputs, "--out", str(out), "--layer", "entropy"]
    )
    assert answer.exit_code == 2
    assert "layers: for maps" in answer.stderr


def test_patches_from_training_to_the_table(label_values: dict[str, Any], tmp_path: Path) -> None:
    """uint16 GeoTIFFs of four bands, told apart by the fourth; a new file has its bands in another order."""
    rng = np.random.default_rng(0)

    def write(path: Path, near_infrared: int, names: tuple[str, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: rng.normal(1000, 50, (32, 32)) for name in names}
        values["nir"] += near_infrared
        place = from_origin(5e5, 5e6, 10, 10)
        with rasterio.open(path, "w", driver="GTiff", count=4, height=32, width=32, dtype="uint16",
                           crs="EPSG:32632", transform=place) as file:  # fmt: skip
            for index, name in enumerate(names, start=1):
                file.write(values[name].astype(np.uint16), index)
                file.set_band_description(index, name)

    names = ("blue", "green", "red", "nir")
    for label, level in (("field", 3000), ("water", 100)):
        for index in range(24):
            write(tmp_path / "data" / label / f"{label}{index}.tif", level, names)
        write(tmp_path / "new" / f"{label}.tif", level, names[::-1])
    data = {
        **label_values["data"],
        "kind": "geotiff",
        "root": str(tmp_path / "data"),
        "split": {"by": "scene", "val": 0.2, "test": 0.2},
        "use_bands": ["nir", "red", "green"],
    }
    run = fit(ClassificationConfig.model_validate({**label_values, "runs": tmp_path / "runs", "data": data}))
    assert evaluate(run).scores.accuracy == 1.0
    found = rows(predict(run, tmp_path / "new", tmp_path / "out")[0])
    assert [row["class"] for row in found] == ["field", "water"]


def test_mistakes_in_the_data_are_said_in_plain_lines(
    label_values: dict[str, Any], labelled_pictures: Path, tmp_path: Path
) -> None:
    """Through the command line: exit code 2, the place, the nearest right name, and no run folder."""
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(
        f"{path},{name}\n" for path, name in (("a.png", "dark"), ("b.png", "bright"), ("c.png", "brigth"))
    ))  # fmt: skip
    for name in "abc":
        shutil.copy(labelled_pictures / "train" / "dark" / "dark0.png", tmp_path / f"{name}.png")
    classes = [{"name": name, "values": name} for name in ("dark", "bright")]
    split = {"by": "scene", "val": 0.3, "test": 0.3}
    data = {
        **label_values["data"],
        "root": str(tmp_path),
        "layout": "csv",
        "classes": classes,
        "split": split,
    }
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**label_values, "runs": str(tmp_path / "runs"), "data": data}))
    answer = CliRunner().invoke(app, ["fit", str(job)])
    assert answer.exit_code == 2
    assert "labels.csv, line 4: the label 'brigth' is none of the classes, nearest: bright" in answer.stderr
    assert not (tmp_path / "runs").exists()
