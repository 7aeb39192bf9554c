"""Gates as text: what is understood, what is refused, and that nothing nonsensical gets through."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionsft.errors import ConfigError
from visionsft.gate import EFFICIENCY, METRICS, PER_CLASS, SLICED, TOTALS, Gate, parse
from visionsft.loading import load_config

CONFIG = """\
data: {kind: geotiff, root: scenes}
backbone: {name: resnet18}
gates:
  - mean_iou >= 0.70
  - recal[car].lower >= 0.55
  - ece <= 5
"""


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("mean_iou >= 0.70", Gate("mean_iou", ">=", 0.7)),
        ("recall[Pedestrian].lower >= 0.55", Gate("recall", ">=", 0.55, of="Pedestrian", end="lower")),
        (
            "iou[water] drop_vs runs/baseline <= 0.02",
            Gate("iou", "<=", 0.02, of="water", baseline="runs/baseline"),
        ),
        (
            "slice(drive).recall[Car].min >= 0.6",
            Gate("recall", ">=", 0.6, of="Car", by="group", extreme="min"),
        ),
        ("ece<=.05", Gate("ece", "<=", 0.05)),
        ("throughput.mpx_s > 1", Gate("throughput.mpx_s", ">", 1.0)),
        (
            "iou[water].upper drop_vs runs/a <= 0.02",
            Gate("iou", "<=", 0.02, of="water", end="upper", baseline="runs/a"),
        ),
        ("  parameters<5e6 ", Gate("parameters", "<", 5e6)),
        ("f1[a ]b >= 0.1].upper >= 0.2", Gate("f1", ">=", 0.2, of="a ]b >= 0.1", end="upper")),
        ("mean_iou drop_vs my runs/a b < -0.1", Gate("mean_iou", "<", -0.1, baseline="my runs/a b")),
    ],
)
def test_gates_are_understood(text: str, gate: Gate) -> None:
    assert parse(text) == gate


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mean_io >= 0.7", "'mean_io' is none; nearest: mean_iou"),
        ("mean_iou.lowr >= 0.7", "nearest: mean_iou.lower"),
        ("zebra >= 0.7", "allowed: mean_iou, frequency_weighted_iou"),
        ("mean_iou = 0.7", "one of >= <= > < and a number"),
        ("mean_iou >= high", "one of >= <= > < and a number"),
        ("mean_iou >= 70", "limit from 0 to 1; given 70"),
        ("mean_iou >= 1e999", "limit from 0 to 1"),
        ("parameters <= 1e999", "finite"),
        ("mean_iou drop_vs runs/a <= 2", "limit from -1 to 1; given 2"),
        ("recall >= 0.5", "must say the class, for example 'recall[car]'"),
        ("mean_iou[car] >= 0.5", "must not name a class"),
        ("recall[car].lowest >= 0.5", "must end in .lower, .upper, .min, .max"),
        ("recall[car].lower.upper >= 0.5", "one of .lower, .upper at most"),
        ("slice(drive).mean_iou >= 0.5", "must have .min or .max with slices"),
        ("mean_iou.min >= 0.5", "must have .min or .max with slices"),
        ("slice(drive).mean_iou.lower.min >= 0.1", "must not combine slice() with"),
        ("slice(drive).mean_iou.min drop_vs runs/a >= 0.1", "must not combine slice() with"),
        ("ece.lower <= 0.1", "must not have .lower: ece is one number"),
        ("slice(drive).ece.max <= 0.1", "must not have slice()"),
        (
            "slice(drive).f1[car].max <= 0.1",
            "slices have mean_iou, pixel_accuracy, mean_recall, iou, recall, not f1",
        ),
        ("throughput.mpx_s drop_vs runs/a <= 0.1", "must not have drop_vs"),
        ("[car] >= 0.5", "must name a metric before its comparison"),
        ("", "must be a value"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="must") as caught:
        parse(text)
    assert said in str(caught.value)


names = st.text(st.characters(blacklist_characters="]", blacklist_categories=("C", "Z")), min_size=1)


@st.composite
def gates(draw: st.DrawFn) -> Gate:
    metric = draw(st.sampled_from(METRICS))
    of = draw(names) if metric in PER_CLASS else None
    comparison = draw(st.sampled_from([">=", "<=", ">", "<"]))
    limit = draw(st.floats(0, 1e9 if metric in EFFICIENCY else 1))
    kinds = ["", "end", "drop"] if metric in (*TOTALS, *PER_CLASS) else [""]
    kinds += ["slice"] if metric in SLICED else []
    kind = draw(st.sampled_from(kinds))
    if kind == "end":
        return Gate(metric, comparison, limit, of, end=draw(st.sampled_from(["lower", "upper"])))
    if kind == "slice":
        by = draw(st.sampled_from(["group", "object size", r"name:(\d)\."]))
        extreme = draw(st.sampled_from(["min", "max"]))
        return Gate(metric, comparison, limit, of, by=by, extreme=extreme)
    end = draw(st.sampled_from([None, "lower", "upper"])) if kind else None
    return Gate(metric, comparison, limit, of, end=end, baseline="runs/base line" if kind else None)


@given(gates())
def test_a_gates_text_is_parsed_to_an_equal_gate(gate: Gate) -> None:
    assert parse(str(gate)) == gate


@given(st.text() | st.text(alphabet="mean_iou[]()sliceofrecall. <>=0.7drop_vs"))
def test_nonsense_is_never_taken_for_a_gate(text: str) -> None:
    """What is accepted names a known metric, and says the same when it is written out."""
    try:
        gate = parse(text)
    except ValueError:
        return
    assert gate.metric in METRICS
    assert math.isfinite(gate.limit)
    assert parse(str(gate)) == gate


@pytest.mark.parametrize(
    ("text", "passing", "failing"),
    [
        ("ece >= 0.5", (0.5, 0.6), (0.4,)),
        ("ece <= 0.5", (0.5, 0.4), (0.6,)),
        ("ece > 0.5", (0.6,), (0.5, 0.4)),
    ],
)
def test_limits(text: str, passing: tuple[float, ...], failing: tuple[float, ...]) -> None:
    gate = parse(text)
    assert all(gate.admits(value) for value in passing)
    assert not any(gate.admits(value) for value in (*failing, math.nan))


def test_a_bad_gate_is_a_mistake_of_the_configuration_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(CONFIG)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).splitlines() == [
        f"{path}:5: gates.1: given 'recal[car].lower >= 0.55'; must name a metric; 'recal' is none; nearest: recall",
        f"{path}:6: gates.2: given 'ece <= 5'; must have a limit from 0 to 1; given 5",
    ]
