"""The model card: a YAML head that machines read, and Markdown that names from outside can't break."""

from __future__ import annotations

import re

import pytest
import yaml

from visionsft.evaluation.facts import read_facts
from visionsft.evaluation.modelcard import model_card
from visionsft.evaluation.page import Page
from visionsft.evaluation.pages import page_of


@pytest.fixture
def page(make_run, evidence) -> Page:
    return page_of(read_facts(make_run("one", **evidence)))


def test_the_head_has_the_hubs_keys_and_the_runs_numbers(page):
    head = yaml.safe_load(model_card(page).split("---\n")[1])
    assert {"license", "library_name", "pipeline_tag", "tags", "datasets", "model-index"} <= head.keys()
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert {"task", "dataset", "metrics"} == result.keys()
    assert {"name", "type", "split"} == result["dataset"].keys()
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found["mean_iou"] == page.facts.scores["scores"]["mean_iou"]


def test_names_from_outside_make_no_tag_and_no_column(page):
    text = model_card(page).split("---\n", 2)[2]
    assert not re.search(r"<\w", text)
    table = [line for line in text.splitlines() if line.startswith("|")]
    columns = [line.count("|") for line in table]
    assert columns == [5] * 6 + [7] * 5  # four metrics and three classes, each under two lines of head


def test_the_limits_are_said(page):
    text = model_card(page)
    assert "MISSED: mean_iou &gt;= 0.7 (reached 0.5000)" in text
    assert "train 9 samples, val 2 samples, test 8 samples" in text
    assert "0.1234 to 0.8768" in text
    assert "group 'x' &lt;u&gt;leaks" in text
