"""Charts: SVG that stands in a page with others and takes its colours."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from visionsft import plots
from visionsft.evaluation.charts import inline_svg

BINS = [{"confidence": 0.2, "accuracy": 0.3, "pixels": 3}, {"confidence": 0.9, "accuracy": 0.8, "pixels": 9}]
SCORES = {"scores": {"per_class": [{"name": "<script>1</script> & co", "iou": 0.5, "recall": None}]}}


@pytest.fixture(scope="module")
def charts() -> list[str]:
    return [
        inline_svg(plots.reliability(BINS), name="first", alt='reliability of "this"'),
        inline_svg(plots.reliability(BINS), name="second", alt="the same again"),
        inline_svg(plots.class_scores(SCORES), name="third", alt="classes"),
    ]


def test_no_id_is_used_twice_and_every_reference_resolves(charts):
    ids = re.findall(r'\bid="([^"]+)"', "".join(charts))
    assert len(ids) == len(set(ids)) > 30
    for chart in charts:
        references = re.findall(r'(?:url\(#|href="#)([^)"]+)', chart)
        assert references
        assert set(references) <= set(re.findall(r'\bid="([^"]+)"', chart))


def test_text_stays_text_and_is_escaped(charts):
    texts = [element.text for element in ElementTree.fromstring(charts[2]).iter("text")]
    assert "<script>1</script> & co" in texts
    assert "<script" not in "".join(charts)
    assert ElementTree.fromstring(charts[0]).get("aria-label") == 'reliability of "this"'


def test_colours_are_the_pages_and_nothing_is_outside(charts):
    for chart in charts:
        assert "var(--ink)" in chart
        assert not re.search("|".join((plots.INK, plots.MUTED, plots.RULE, plots.BLUE)), chart)
        assert not re.search(r"https?://|<style|<metadata|font-family", chart)
