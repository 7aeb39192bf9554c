"""Pages: the report of a run of any task."""

from __future__ import annotations

from visionsft.evaluation.box_page import BoxPage
from visionsft.evaluation.facts import Facts
from visionsft.evaluation.label_page import LabelPage
from visionsft.evaluation.map_page import MapPage
from visionsft.evaluation.page import Page

_PAGES: dict[str, type[Page]] = {
    "segmentation": MapPage,
    "detection": BoxPage,
    "instance_segmentation": BoxPage,
    "classification": LabelPage,
}
"""By task."""


def page_of(facts: Facts) -> Page:
    """The page of the run's task."""
    return _PAGES[facts.task](facts)
