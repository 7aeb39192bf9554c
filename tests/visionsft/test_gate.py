"""Gates as text: what is understood, what is refused, and that nothing nonsensical gets through."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionsft.errors import ConfigError
from visionsft.gate import EFFICIENCY, VOCABULARIES, Gate, parse
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
        ("ece.upper <= 0.05", Gate("ece", "<=", 0.05, end="upper")),
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
        ("ece drop_vs runs/a <= 0.1", "must not have drop_vs: ece is one number"),
        ("slice(drive).ece.max <= 0.1", "must not have slice()"),
        (
            "slice(drive).f1[car].max <= 0.1",
            "slices have mean_iou, pixel_accuracy, mean_recall, iou[CLASS], recall[CLASS], not f1[car]",
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
def gates(draw: st.DrawFn, task: str) -> Gate:
    words = VOCABULARIES[task]
    metric = draw(st.sampled_from(words.metrics))
    of = draw(names) if metric not in (*words.totals, "ece", *EFFICIENCY) else None
    if metric in words.totals and metric in words.per_class:
        of = draw(st.none() | names)
    comparison = draw(st.sampled_from([">=", "<=", ">", "<"]))
    limit = draw(st.floats(0, 1e9 if metric in EFFICIENCY else 1))
    kinds = ["", "drop"] if metric in (*words.totals, *words.per_class) else [""]
    kinds += ["end"] if words.has_interval(metric, of) else []
    kinds += ["slice"] if words.is_sliced(metric, of) else []
    kind = draw(st.sampled_from(kinds))
    if kind == "end":
        return Gate(metric, comparison, limit, of, end=draw(st.sampled_from(["lower", "upper"])))
    if kind == "slice":
        by = draw(st.sampled_from(["group", "object size", r"name:(\d)\."]))
        extreme = draw(st.sampled_from(["min", "max"]))
        return Gate(metric, comparison, limit, of, by=by, extreme=extreme)
    ends = [None, "lower", "upper"] if words.has_interval(metric, of) else [None]
    end = draw(st.sampled_from(ends)) if kind else None
    return Gate(metric, comparison, limit, of, end=end, baseline="runs/base line" if kind else None)


@pytest.mark.parametrize("task", VOCABULARIES)
@given(data=st.data())
def test_a_gates_text_is_parsed_to_an_equal_gate(task: str, data: st.DataObject) -> None:
    gate = data.draw(gates(task))
    assert parse(str(gate), task) == gate


@pytest.mark.parametrize(
    ("task", "text", "gate"),
    [
        ("detection", "map50 >= 0.5", Gate("ap50", ">=", 0.5)),
        ("detection", "ap50[Car].lower >= 0.6", Gate("ap50", ">=", 0.6, of="Car", end="lower")),
        ("detection", "recall >= 0.5", Gate("recall", ">=", 0.5)),
        ("detection", "recall_at_fppi.0.1 >= 0.5", Gate("recall_at_fppi.0.1", ">=", 0.5)),
        ("instance_segmentation", "mask_map50.upper < 0.5", Gate("mask_ap50", "<", 0.5, end="upper")),
        ("classification", "accuracy.lower >= 0.9", Gate("accuracy", ">=", 0.9, end="lower")),
        ("classification", "top_k.3.lower >= 0.9", Gate("top_k.3", ">=", 0.9, end="lower")),
        ("segmentation", "boundary_iou[road] >= .5", Gate("boundary_iou", ">=", 0.5, of="road")),
    ],
)
def test_gates_of_other_tasks_are_understood(task: str, text: str, gate: Gate) -> None:
    assert parse(text, task) == gate


@pytest.mark.parametrize(
    ("task", "text", "said"),
    [
        ("detection", "mean_iou >= 0.5", "'mean_iou' is none"),
        ("detection", "mask_map >= 0.5", "'mask_map' is none; allowed: map, ap50"),
        ("detection", "recal[Car] >= 0.5", "nearest: recall"),
        ("detection", "ap[Car].lower >= 0.5", "intervals are of map, ap50, recall, ap50[CLASS], recall[CLASS], not ap"),
        ("detection", "ap >= 0.5", "must say the class, for example 'ap[car]'"),
        ("detection", "map[Car] >= 0.5", "must not name a class"),
        ("classification", "acuracy >= 0.9", "nearest: accuracy"),
        ("classification", "accuracy >= 90", "limit from 0 to 1"),
        ("classification", "recall >= 0.9", "must say the class"),
        ("segmentation", "object_recall >= 50", "limit from 0 to 1"),
    ],
)
def test_what_other_tasks_refuse(task: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match="must") as caught:
        parse(text, task)
    assert said in str(caught.value)


@given(st.text() | st.text(alphabet="mean_iou[]()sliceofrecall. <>=0.7drop_vs"))
def test_nonsense_is_never_taken_for_a_gate(text: str) -> None:
    """What is accepted names a known metric, and says the same when it is written out."""
    try:
        gate = parse(text)
    except ValueError:
        return
    assert gate.metric in VOCABULARIES["segmentation"].metrics
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
