"""The model card: a YAML head that machines read, and Markdown that names from outside can't break."""

from __future__ import annotations

import re

import pytest
import yaml

from visionsft.evaluation.facts import Facts, read_facts
from visionsft.evaluation.modelcard import model_card


@pytest.fixture
def facts(make_run, evidence) -> Facts:
    return read_facts(make_run("one", **evidence))


def test_the_head_has_the_hubs_keys_and_the_runs_numbers(facts):
    head = yaml.safe_load(model_card(facts).split("---\n")[1])
    assert {"license", "library_name", "pipeline_tag", "tags", "datasets", "model-index"} <= head.keys()
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert {"task", "dataset", "metrics"} == result.keys()
    assert {"name", "type", "split"} == result["dataset"].keys()
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found["mean_iou"] == facts.scores["scores"]["mean_iou"]


def test_names_from_outside_make_no_tag_and_no_column(facts):
    page = model_card(facts).split("---\n", 2)[2]
    assert not re.search(r"<\w", page)
    table = [line for line in page.splitlines() if line.startswith("|")]
    columns = [line.count("|") for line in table]
    assert columns == [5] * 6 + [6] * 5  # four metrics and three classes, each under two lines of head


def test_the_limits_are_said(facts):
    page = model_card(facts)
    assert "MISSED: mean_iou &gt;= 0.7 (reached 0.5000)" in page
    assert "train 9 samples, val 2 samples, test 8 samples" in page
    assert "0.1234 to 0.8768" in page
    assert "group 'x' &lt;u&gt;leaks" in page
