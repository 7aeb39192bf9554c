"""The report: what stands on the page, that it stands alone, and that hostile names stay text."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from visionsft.cli import app
from visionsft.errors import RunError
from visionsft.evaluation import evaluate
from visionsft.evaluation.comparison import compare
from visionsft.evaluation.facts import read_facts
from visionsft.evaluation.pages import page_of
from visionsft.evaluation.reporting import report

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and a check that tags are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(make_run, evidence) -> Page:
    return Page(report(make_run("one", **evidence)))


def test_the_page_stands_alone(page):
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "base"}
        for key in ("src", "href", "srcset", "xlink:href", "action"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), f"{tag} {key}={value}"
    policy = next(each["content"] for each in page.all("meta") if "http-equiv" in each)
    assert policy.startswith("default-src 'none'")
    assert "url(" not in re.sub(r"url\(#", "", page.text)


def test_names_from_outside_stay_text(page):
    assert len(page.all("script")) == 1
    assert "<script>document.title='pwned'</script>" in page.text
    for text in ("/data/<b>streets</b>", "images/<b>0</b>.png", "<i>rain</i>", "a <b>CPU</b>", "<u>leaks</u>"):
        assert text in page.text
    assert not {"b", "i", "u"} & {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)


def test_the_page_is_accessible(page):
    assert page.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    assert all(each.get("scope") in ("col", "row") for each in page.all("th"))
    assert all(each.get("alt") for each in page.all("img"))
    charts = [each for each in page.all("svg") if each.get("aria-hidden") != "true"]  # boxes are told in words
    assert all(each.get("aria-label") and each["role"] == "img" for each in charts)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {each["href"] for each in page.all("a")} | {f"#{each['aria-labelledby']}" for each in page.all("section")}
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_all_evidence_is_shown(page):
    words = re.sub("[ \n]+", " ", page.text)
    for text in (
        "95\u00a0% interval 0.123 to 0.877",
        "percentile bootstrap, resampled by drive (2), 2,000 resamples",
        "1 of 2 requirements is met",
        "mean_iou >= 0.7",
        "only one drive has it",
        "two bins of equal width.",
        "2 pixels wide.",
        "temperature of 1.234, fitted on val",
        "Two slices.",
        "64 and more",
        "a census of chosen scenes",
        "1.75 million pixels a second",
        "−0.111a white veil",
        "0.2345",
        "98.76",  # of a key that nobody told the report about
    ):
        assert text in words, text
    assert "Not in this evaluation" not in words
    charts = {each["aria-label"].split(":")[0] for each in page.all("svg")}
    assert charts == {"Line chart", "Map", "Dot chart", "Histogram", "Reliability curve", "Small curves"}


def test_what_is_absent_is_said_with_its_command(make_run):
    run = make_run("one")
    words = " ".join(Page(report(run)).text.split())
    missing = words.partition("Not in this evaluation")[2].partition("Where it fails")[0]
    for command in ("evaluate", "robustness"):
        assert f"visionsft {command} {run.path} --split test" in missing
    for option in ("--slice-by group", "--boundaries", "--efficiency", "--gates"):
        assert option in missing
    assert "drive a" in words  # the table of drives in place of a map
    assert "interval 0." not in words


def test_an_interrupted_run_and_one_without_pictures_say_so(make_run):
    run = make_run("one")
    (run.path / "finished.json").unlink()
    (run.path / "metrics.csv").unlink()
    (run.evaluation("test") / "gallery" / "index.json").unlink()
    words = " ".join(Page(report(run)).text.split())
    assert "has not finished" in words
    assert "No pictures are stored" in words


def test_the_gallery_stops_at_its_budget(make_run):
    page = page_of(read_facts(make_run("one")))
    everything = page.gallery().samples
    assert [each["id"] for each in everything] == [f"images/<b>{i}</b>.png" for i in range(8)]
    sizes = [sum(map(len, each["pictures"].values())) for each in everything]
    few = page.gallery(budget=sum(sizes[:3]))
    assert (len(few.samples), few.left_out) == (3, 5)


def test_report_json_follows_its_schema(make_run, evidence):
    schema = json.loads((resources.files("visionsft.evaluation") / "templates/report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for run in (make_run("bare"), make_run("full", **evidence)):
        values = json.loads(report(run).with_name("report.json").read_text())
        jsonschema.validate(values, schema)
        assert values["headline"]["value"] == read_facts(run).scores["scores"]["mean_iou"]


def test_two_runs_side_by_side(make_run, evidence):
    runs = make_run("one", **evidence), make_run("two", seed=1, epochs=5)
    target = report(*runs)
    assert target.name == "one-two.html"
    page = Page(target)
    words = " ".join(page.text.split())
    first, second = (read_facts(run).scores["scores"]["mean_iou"] for run in runs)
    assert f"The difference is {second - first:+.3f}".replace("-", "−") in words
    assert re.search(r"trainer\.epochs ?3 ?5", words)
    assert "backbone.name" not in words  # the same in both
    assert len(page.all("script")) == 1


@pytest.fixture(scope="module")
def box_page(make_box_run, box_evidence) -> Page:
    return Page(report(make_box_run("boxes", extra=box_evidence)))


@pytest.fixture(scope="module")
def label_page(label_run) -> Page:
    evaluate(label_run)
    return Page(report(label_run))


@pytest.fixture(params=["box_page", "label_page"])
def other_page(request) -> Page:
    return request.getfixturevalue(request.param)


def test_pages_of_other_tasks_stand_alone_and_are_accessible(other_page):
    test_the_page_stands_alone(other_page)
    test_the_page_is_accessible(other_page)
    assert len(other_page.all("script")) == 1
    assert not {"b", "i", "u"} & {tag for tag, _ in other_page.tags}


def test_evidence_of_a_detector_is_shown(box_page):
    words = re.sub("[ \n]+", " ", box_page.text)
    for text in (
        "12 objects",
        "50\u00a0% of the objects are found",
        "Most is lost to missed objects: without them AP50 would be 0.700 in place of 0.400",
        "1,234",
        "site: <i>north</i>",
        "0.310 to 0.620",
        "Can its scores be believed?",
        "with a validation mAP of 0.250",
        "1.75 million pixels a second",
        "taken for a|b & $c$",
        "with a box that fits badly",
    ):
        assert text in words, text
    kinds = {"false alarm", "bad fit", "wrong label", "miss"}
    assert kinds <= set(re.findall("false alarm|bad fit|wrong label|miss", words))
    assert {each["aria-label"].split(":")[0] for each in box_page.all("svg") if "aria-label" in each} == {
        "Line chart", "Dot chart", "Histogram", "Small curves", "Reliability curve", "Bar chart"
    }  # fmt: skip
    missing = words.partition("Not in this evaluation")[2].partition("Where it fails")[0]
    assert "--gates" in missing
    assert "robustness" in missing
    assert "--boundaries" not in missing


def test_evidence_of_a_classifier_is_shown(label_page):
    words = re.sub("[ \n]+", " ", label_page.text)
    assert "100\u00a0% of the images get their class" in words
    assert "Always answering the most frequent class would reach 50\u00a0%" in words
    assert "What is taken for what" in words
    assert "is bright, said ✓ bright" in words


def test_report_json_of_other_tasks_follows_the_schema(make_box_run, label_run):
    schema = json.loads((resources.files("visionsft.evaluation") / "templates/report.schema.json").read_text())
    evaluate(label_run)
    for run, task in ((make_box_run("x"), "detection"), (label_run, "classification")):
        values = json.loads(report(run).with_name("report.json").read_text())
        jsonschema.validate(values, schema)
        assert values["task"] == task
        assert values["worst_samples"]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**values, "task": "segmentation"}, schema)


def test_two_detectors_side_by_side_with_what_compare_found(make_box_run):
    runs = make_box_run("one"), make_box_run("two", seed=3)
    assert "its answer then stands here" in Page(report(*runs)).text
    (pair,) = compare(runs)
    page = Page(report(*runs))
    test_the_page_is_accessible(page)
    words = " ".join(page.text.split())
    assert f"(p = {pair.differences[0].p:.4f})" in words
    layers = [each["data-layer"] for each in page.all("button") if "data-layer" in each]
    assert layers == ["image", "truth", "A", "B", "all"]
    names = {each["class"] for each in page.all("g") if each.get("class", "").startswith("mark-")}
    assert names == {"mark-truth", "mark-A", "mark-B"}


def test_two_classifiers_side_by_side(label_run, tmp_path):
    evaluate(label_run)
    shutil.copytree(label_run.path, tmp_path / "other")
    words = " ".join(Page(report(label_run, tmp_path / "other")).text.split())
    assert re.search(r"A said ✓ (bright|dark) \d\.\d\d", words)
    assert "the same" in words


def test_a_detector_is_not_laid_beside_a_map(make_run, make_box_run):
    with pytest.raises(RunError, match="have different tasks, segmentation and detection"):
        report(make_run("one"), make_box_run("two"))


def test_runs_that_were_asked_different_things_are_refused(make_run):
    run = make_run("one")
    with pytest.raises(RunError, match=r"different classes.*only in the second: tram"):
        report(run, make_run("two", names=("road", "tram")))
    with pytest.raises(RunError, match=r"different classes \(in another order\)"):
        report(make_run("b", names=("tram", "road")), make_run("c", names=("road", "tram")))
    with pytest.raises(RunError, match=r"different data.*0123456789ab and ffff"):
        report(run, make_run("three", fingerprint="ffff"))


def test_command(make_run, tmp_path):
    run = make_run("one")
    result = CliRunner().invoke(app, ["report", str(run.path), "--out", str(tmp_path / "x" / "page.html")])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"page.html", "model_card.md", "report.json"}
    refused = CliRunner().invoke(app, ["report", str(run.path), "--split", "val"])
    assert refused.exit_code == 2
    assert "visionsft evaluate" in refused.output
