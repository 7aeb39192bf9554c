"""The model card: a run in the Hugging Face format, a Markdown page under a YAML head that machines read."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from visionsft.evaluation.page import Page
from visionsft.evaluation.summary import words


def model_card(page: Page) -> str:
    """The text of model_card.md: https://huggingface.co/docs/hub/model-cards."""
    facts = page.facts
    head = yaml.safe_dump(_head(page), sort_keys=False, allow_unicode=True)
    environment = Environment(
        loader=PackageLoader("visionsft.evaluation"),
        autoescape=False,  # Markdown is no HTML: `_plain` escapes what comes from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    environment.filters["words"] = words
    text = environment.get_template("model_card.md").render(
        page=page,
        facts=facts,
        scores=page.scores,
        trainable=sum(part.trainable for part in facts.parts),
        parameters=sum(part.parameters for part in facts.parts),
    )
    return f"---\n{head}---\n\n{text}"


def _head(page: Page) -> dict[str, Any]:
    facts = page.facts
    kind, backbone, weights, task = (
        json.loads(facts.settings.get(key, "null"))
        for key in ("data.kind", "backbone.name", "backbone.weights", "task.kind")
    )
    dataset = {"name": PurePath(facts.data["root"]).name, "type": kind, "split": facts.split}
    result = {
        "task": {"type": page.pipeline},
        "dataset": dataset,
        "metrics": [
            {"type": name, "value": page.value(name), "name": words(name)}
            for name in page.metrics
            if page.value(name) is not None
        ],
    }
    return {
        "license": "other",
        "license_name": "not-stated",  # that of weights and data is the owner's to say
        "library_name": "visionsft",
        "pipeline_tag": page.pipeline,
        "tags": [page.pipeline, "timm", str(backbone), str(kind), str(task), f"weights:{weights}"],
        "datasets": [dataset["name"]],
        "model-index": [{"name": facts.name, "results": [result]}],
    }


def _plain(value: Any) -> Any:
    """Text from outside as Markdown shows it: no table cell, tag or line is opened or closed by it."""
    if not isinstance(value, str):
        return value
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;")):
        value = value.replace(mark, entity)
    return " ".join(value.split())
