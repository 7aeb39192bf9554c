"""`visionsft select` and `visionsft embed`: what they print and how they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from visionsft.cli import app


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def config_file(label_values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump({**label_values, "runs": str(tmp_path / "runs")}))
    return path


def test_select(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionsft.evaluation.efficiency.REPEATS", 1)
    asked = ["select", config_file, "--backbones", "test_efficientnet=none", "test_reznet=none", "--samples", 6]
    answer = invoke(*asked, "--max-params", "1e9", "--max-ms", "1e6")
    assert answer.exit_code == 0, answer.output
    assert "recommended within 1,000,000,000 parameters, 1e+06 ms an image: test_efficientnet=none" in answer.stdout
    assert "failed: test_reznet=none" in answer.stdout
    assert "learned from 6 of 16 training samples, judged on 6 of 8 validation samples" in answer.stdout
    folder = tmp_path / "runs" / "labels-selection"
    assert sorted(path.name for path in folder.iterdir()) == ["selection.csv", "selection.json", "selection.png"]
    again = invoke(*asked)
    assert again.exit_code == 2
    assert again.stderr.strip() == f"{folder / 'selection.csv'}: exists; --overwrite replaces it"


def test_select_without_a_candidate(config_file: Path) -> None:
    answer = invoke("select", config_file, "--backbones", "test_reznet*")
    assert answer.exit_code == 2
    assert "no pretrained model of timm matches 'test_reznet*'; nearest: test_resnet" in answer.stderr
    assert invoke("select", config_file).exit_code == 2


def test_embed_then_look(config_file: Path, labelled_pictures: Path, tmp_path: Path) -> None:
    out, drawn = tmp_path / "rows.parquet", tmp_path / "map.png"
    answer = invoke("embed", config_file, "--split", "train", "--out", out, "--picture", drawn)
    assert answer.exit_code == 0, answer.output
    assert f"{out}: 16 embeddings of" in answer.stdout
    assert drawn.is_file()
    query = labelled_pictures / "test" / "dark" / "dark0.png"
    found = invoke("embed", config_file, "--out", out, "--query", query, "--top", 2)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.split()[1] == "dark" for line in lines)


def test_embed_refuses(config_file: Path, tmp_path: Path, label_run: Any) -> None:
    nothing = invoke("embed", config_file, "--out", tmp_path / "rows.parquet")
    assert nothing.exit_code == 2
    assert "nothing to do" in nothing.stderr
    changed = invoke("embed", label_run.path, "--set", "seed=1", "--split", "val", "--out", tmp_path / "rows.npz")
    assert changed.exit_code == 2
    gone = invoke("embed", config_file, "--out", tmp_path / "gone.npz", "--query", "x")
    assert gone.exit_code == 2
    assert "gone.npz: no such file" in gone.stderr


def test_embed_of_a_run_is_of_its_own_weights(label_run: Any, config_file: Path, tmp_path: Path) -> None:
    answers = [
        invoke("embed", source, "--split", "val", "--out", tmp_path / f"{name}.npz")
        for name, source in (("tuned", label_run.path), ("random", config_file))
    ]
    assert [answer.exit_code for answer in answers] == [0, 0]
    query = "val/dark/dark0.png"
    compared = invoke("embed", label_run.path, "--out", tmp_path / "tuned.npz", "--query", query, "--top", 1)
    assert compared.exit_code == 0, compared.output
    other = label_run.config.data.root / query
    refused = invoke("embed", label_run.path, "--out", tmp_path / "random.npz", "--query", other)
    assert refused.exit_code == 2
    assert "was made by another model" in refused.stderr
