"""Which gates a run is asked, and the mistakes that are found before anything slow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from visionsft.acceptance import gates_of, read_gates
from visionsft.config import Backbone, CameraData, SegmentationConfig
from visionsft.errors import ConfigError
from visionsft.gate import parse
from visionsft.runs import Run


def make_run(folder: Path, name: str, *, gates: tuple[str, ...] = (), scored: bool = False) -> Run:
    data, backbone = CameraData(kind="camera", root=folder), Backbone(name="resnet18", weights="none")
    run = Run.create(SegmentationConfig(name=name, runs=folder, data=data, backbone=backbone, gates=gates))
    classes: dict[str, Any] = {"classes": ["road", "Pedestrian"]}
    run.write_json("data.json", classes)
    if scored:
        (run.evaluation("test") / "scores.json").write_text(json.dumps(classes))
    return run


def test_gates_come_from_the_configuration_or_a_file(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", gates=("mean_iou >= 0.7",))
    assert gates_of(run) == (parse("mean_iou >= 0.7"),)
    file = tmp_path / "gates.txt"
    file.write_text("# of the customer\n\niou[road] >= 0.5  # agreed in May\n")
    assert gates_of(run, file=file) == (parse("iou[road] >= 0.5"),)


def test_without_any_gates_there_is_nothing_to_judge(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml: has no gates; .*--gates-file"):
        gates_of(make_run(tmp_path, "run"))
    (tmp_path / "gates.txt").write_text("# none yet\n")
    with pytest.raises(ConfigError, match=r"gates\.txt: has no gate"):
        read_gates(tmp_path / "gates.txt")
    with pytest.raises(ConfigError, match=r"nothing\.txt: can't be read: No such file"):
        read_gates(tmp_path / "nothing.txt")


def test_every_mistake_of_a_file_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "gates.txt"
    file.write_text("mean_iou >= 0.7\nmean_io >= 0.7\n\nece <= 5\n")
    with pytest.raises(ConfigError) as caught:
        read_gates(file)
    assert str(caught.value).splitlines() == [
        f"{file}:2: given 'mean_io >= 0.7'; must name a metric; 'mean_io' is none; nearest: mean_iou",
        f"{file}:4: given 'ece <= 5'; must have a limit from 0 to 1; given 5",
    ]


def test_every_gate_without_a_meaning_for_the_run_is_named(tmp_path: Path) -> None:
    baseline, bare = make_run(tmp_path, "base", scored=True), make_run(tmp_path, "bare")
    gates = (
        "recall[Pedestrain] >= 0.5",
        "slice(groups).mean_iou.min >= 0.5",
        f"iou[road] drop_vs {baseline.path} <= 0.02",
        f"iou[road] drop_vs {bare.path} <= 0.02",
        f"iou[road] drop_vs {tmp_path / 'bas'} <= 0.02",
    )
    with pytest.raises(ConfigError) as caught:
        gates_of(make_run(tmp_path, "run", gates=gates))
    said = [re.sub(r"^.*config\.yaml: ", "", line) for line in str(caught.value).splitlines()]
    assert said == [
        "recall[Pedestrain] >= 0.5: no class 'Pedestrain'; nearest: Pedestrian",
        "slice(groups).mean_iou.min >= 0.5: no slice 'groups'; nearest: group",
        f"{gates[3]}: baseline {bare.path}: has no scores of split 'test'; "
        f"`visionsft evaluate {bare.path} --split test` makes them",
        f"{gates[4]}: baseline {tmp_path / 'bas'}: no such run folder; nearest: {baseline.path}",
    ]


def test_columns_of_the_metadata_can_be_sliced_by(tmp_path: Path) -> None:
    metadata = tmp_path / "weather.csv"
    metadata.write_text("sample,weather,site\na.png,rain,north\n")
    run = make_run(tmp_path, "run", gates=("slice(weathr).mean_iou.min >= 0.5",))
    with pytest.raises(ConfigError, match="no slice 'weathr'; nearest: weather"):
        gates_of(run, metadata=metadata)
    good = tmp_path / "gates.txt"
    good.write_text(r"slice(site).mean_iou.min >= 0.5" + "\n" + r"slice(name:(\d+)_).mean_iou.min >= 0.5")
    assert [gate.by for gate in gates_of(run, file=good, metadata=metadata)] == ["site", r"name:(\d+)_"]
    with pytest.raises(ConfigError, match=r"nothing\.csv: can't be read"):
        gates_of(run, metadata=tmp_path / "nothing.csv")
