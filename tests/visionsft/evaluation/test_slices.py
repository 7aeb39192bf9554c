"""Slices: how samples are told apart, the order and the widening, and metadata that doesn't fit."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from datamodules import DataError
from datamodules.batch import Item
from visionsft.evaluation.counts import Counts
from visionsft.evaluation.intervals import segmentation_intervals
from visionsft.evaluation.map_slices import slice_counts
from visionsft.evaluation.metrics import summarise
from visionsft.evaluation.slices import Metadata, choose_kinds, label

CLASSES = ("road", "car")


def make_counts(samples: int = 48, drives: int = 12) -> Counts:
    """Frames of drives; the model is better in brighter frames."""
    rng = np.random.default_rng(0)
    paths = [f"images/d{i % drives}_{i:03}.png" for i in range(samples)]
    items = tuple(
        Item(id=path, group=f"d{i % drives}", image=f"/data/{path}") for i, path in enumerate(paths)
    )
    right = np.linspace(0.2, 0.9, samples) + rng.normal(0, 0.02, samples)
    hits = (1000 * right).astype(int)
    confusions = np.stack([np.stack([hits, 1000 - hits], 1), np.stack([1000 - hits, hits], 1)], 1)
    return Counts(items, CLASSES, confusions, np.linspace(10, 200, samples))


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def metadata(tmp_path: Path, counts: Counts, name: str = "stem") -> Metadata:
    """Weather and hour of every frame, and of one that isn't in the split."""
    names = [getattr(Path(item.image), name) for item in counts.items]
    rows = [[each, "rain" if i % 4 else "sun", str(i)] for i, each in enumerate(names)]
    return Metadata.read(
        write_csv(tmp_path / "meta.csv", [["frame", "weather", "hour"], *rows, ["other", "", "0"]])
    )


def test_a_slice_has_the_scores_of_its_samples_alone_the_worst_first() -> None:
    counts = make_counts()
    slices = slice_counts(counts, ["brightness"])
    assert slices is not None
    assert [row.value.split(" (")[0] for row in slices.rows] == [
        "lowest quarter", "second quarter", "third quarter", "highest quarter"
    ]  # fmt: skip
    assert slices.rows[0].value == "lowest quarter (10 to 54.47)"
    for k, row in enumerate(slices.rows):
        alone = summarise(counts.confusions[12 * k : 12 * (k + 1)].sum(axis=0), CLASSES)
        assert (row.found.score, row.found.counted) == (alone.mean_iou, alone.pixels)
        assert row.as_dict()["recall"] == {each.name: each.recall for each in alone.per_class}
        assert (row.samples, row.groups) == (12, 12)


def test_intervals_are_widened_by_the_number_of_slices() -> None:
    counts = make_counts()
    slices = slice_counts(counts, ["brightness", "name:_0(.)"])
    assert slices is not None
    assert len(slices.rows) == 4 + 5
    assert "9 slices were looked at: each interval is widened to 99.44%" in slices.note
    row = next(row for row in slices.rows if row.value.startswith("lowest"))
    alone = segmentation_intervals(counts.confusions[:12], counts.groups[:12], CLASSES, level=1 - 0.05 / 9)
    assert row.found.interval == alone.metrics["mean_iou"]


def test_a_slice_of_one_group_is_resampled_by_image_and_says_so() -> None:
    slices = slice_counts(make_counts(), ["group"])
    assert slices is not None
    assert {row.found.note for row in slices.rows} == {"only 1 group"}  # of four images
    slices = slice_counts(make_counts(drives=4), ["group"])
    assert slices is not None
    assert {row.found.note for row in slices.rows} == {"only 1 group: by image, too narrow"}
    assert all(
        row.found.interval and row.found.interval[0] < row.found.score < row.found.interval[1] for row in slices.rows
    )


def test_metadata_names_samples_by_id_file_or_stem(tmp_path: Path) -> None:
    counts = make_counts()
    expected = ["rain" if i % 4 else "sun" for i in range(48)]
    for name in ("stem", "name"):
        table = metadata(tmp_path, counts, name)
        assert label("weather", counts.items, table) == expected
    hours = label("hour", counts.items, table)  # a number of many values: in quarters
    assert hours[::12] == [
        "lowest quarter (0 to 11)", "second quarter (12 to 23)", "third quarter (24 to 35)",
        "highest quarter (36 to 47)",
    ]  # fmt: skip
    assert choose_kinds([], counts.items, table) == ("weather", "hour")
    assert choose_kinds(["group"], counts.items, table) == ("group", "weather", "hour")
    assert choose_kinds(["hour", "hour", "group"], counts.items, table) == ("hour", "group")
    slices = slice_counts(counts, ["weather"], metadata=table)
    assert slices is not None
    assert slices.note.endswith("1 rows of meta.csv are of no sample here, e.g. 'other'")


def test_what_metadata_leaves_open_is_unknown(tmp_path: Path) -> None:
    items = make_counts().items
    rows = [
        [Path(item.image).name, "" if i < 3 else "sun", "" if i < 3 else str(i)]
        for i, item in enumerate(items)
    ]
    table = Metadata.read(write_csv(tmp_path / "meta.csv", [["frame", "weather", "hour"], *rows]))
    assert label("weather", items, table)[:4] == ["unknown", "unknown", "unknown", "sun"]
    assert label("hour", items, table)[1:4] == ["unknown", "unknown", "lowest quarter (3 to 14)"]


def test_a_name_is_sliced_by_the_first_group_or_the_whole_match_in_file_name_or_id() -> None:
    items = [Item(id=f"{site}/{name}", group=name, image=f"/root/{site}/{name}")
             for site, name in (("north", "a1.png"), ("north", "b.png"), ("south", "b2.png"))]  # fmt: skip
    assert label(r"name:^([ab])\d?", items, None) == ["a", "b", "b"]
    assert label(r"name:\d", items, None) == ["1", "unknown", "2"]
    assert label(r"name:^[ab](\d)?", items, None) == ["1", "unknown", "2"]
    assert label("name:^(north|south)/", items, None) == ["north", "north", "south"]


def test_a_window_has_its_scenes_metadata(tmp_path: Path) -> None:
    items = [
        Item(id=f"a/scene.tif@0,{col}", group="a/scene.tif", image="/data/a/scene.tif") for col in (0, 512)
    ]
    table = Metadata.read(write_csv(tmp_path / "meta.csv", [["scene", "sensor"], ["a/scene.tif", "S2"]]))
    assert label("sensor", items, table) == ["S2", "S2"]


def test_metadata_that_does_not_fit_is_refused_with_the_nearest_row(tmp_path: Path) -> None:
    items = make_counts().items
    rows = [["frame", "weather"], *([Path(item.image).stem.replace("_", "-"), "sun"] for item in items[:40])]
    table = Metadata.read(write_csv(tmp_path / "meta.csv", rows))
    with pytest.raises(
        DataError, match=r"48 of 48 samples have no row, e\.g\. .*'images/d0_000.png' \(nearest row: 'd"
    ):
        choose_kinds([], items, table)
    twins = [Item(id=f"{side}/1.png", group="a", image=f"/{side}/1.png") for side in ("left", "right")]
    table = Metadata.read(write_csv(tmp_path / "meta.csv", [["frame", "weather"], ["1.png", "sun"]]))
    with pytest.raises(DataError, match=r"row '1.png' could mean /left/1.png or /right/1.png"):
        table.match(twins)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["frame", "weather"]], "needs a header line, rows below it"),
        ([["frame"], ["1"]], "a column beside the sample's name"),
        ([["frame", "weather"], ["1", "sun"], ["2"]], "row 3 has 1 fields, the header 2"),
        ([["frame", "weather"], ["1", "sun"], ["", "rain"]], "row 3 names no sample"),
        ([["frame", "weather"], ["1", "sun"], ["1", "rain"]], "1 samples have several rows, e.g. '1'"),
    ],
)
def test_a_metadata_file_that_is_none_is_refused(tmp_path: Path, rows: list[list[str]], said: str) -> None:
    with pytest.raises(DataError, match=rf"meta.csv: .*{said}"):
        Metadata.read(write_csv(tmp_path / "meta.csv", rows))
    with pytest.raises(DataError, match=r"nothing.csv: no such file"):
        Metadata.read(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("wether", r"can't slice by 'wether' \(nearest: weather\); allowed: group, brightness, name:REGEX"),
        ("name:(", "'\\(' is no regular expression"),
        ("name:^drive", "matches none of 48 names, e.g. 'images/d0_000.png'"),
    ],
)
def test_what_cannot_be_sliced_by_is_refused(tmp_path: Path, kind: str, said: str) -> None:
    counts = make_counts()
    with pytest.raises(DataError, match=said):
        choose_kinds(["brightness", kind], counts.items, metadata(tmp_path, counts))


def test_too_many_slices_are_no_summary() -> None:
    counts = make_counts(60, drives=60)
    assert choose_kinds([], counts.items, None) == ()
    with pytest.raises(DataError, match=r"60 different values in 60 samples, .*; at most 50"):
        slice_counts(counts, ["group"])
    assert choose_kinds([], make_counts(drives=1).items, None) == ()
    assert choose_kinds([], make_counts(drives=2).items, None) == ("group",)


def test_a_slice_without_labels_comes_last_and_is_null(tmp_path: Path) -> None:
    counts = make_counts(drives=3)
    counts.confusions[1::3] = 0
    slices = slice_counts(counts, ["group"])
    assert slices is not None
    assert [row.value for row in slices.rows][-1] == "d1"
    assert math.isnan(slices.rows[-1].found.score)
    found = slices.rows[-1].as_dict()
    assert (found["mean_iou"], found["interval"], found["recall"]) == (
        None,
        None,
        {"road": None, "car": None},
    )
    slices.write_csv(tmp_path / "slices.csv")
    with open(tmp_path / "slices.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == [row.value for row in slices.rows]
    assert float(rows[0]["recall[car]"]) == slices.rows[0].as_dict()["recall"]["car"]
    assert float(rows[0]["low"]) < float(rows[0]["mean_iou"]) < float(rows[0]["high"])
    assert rows[-1]["mean_iou"] == rows[-1]["low"] == ""
