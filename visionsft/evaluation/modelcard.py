"""The model card: a run in the Hugging Face format, a Markdown page under a YAML head that machines read."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from visionsft.evaluation.facts import Facts
from visionsft.evaluation.summary import METRICS, intervals_of, mistakes, words


def model_card(facts: Facts) -> str:
    """The text of model_card.md: https://huggingface.co/docs/hub/model-cards."""
    head = yaml.safe_dump(_head(facts), sort_keys=False, allow_unicode=True)
    environment = Environment(
        loader=PackageLoader("visionsft.evaluation"),
        autoescape=False,  # Markdown is no HTML: `_plain` escapes what comes from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    environment.filters["words"] = words
    page = environment.get_template("model_card.md").render(
        facts=facts,
        scores=facts.scores["scores"],
        intervals=intervals_of(facts),
        metrics=METRICS,
        mistakes=mistakes(facts)[:5],
        trainable=sum(part.trainable for part in facts.parts),
        parameters=sum(part.parameters for part in facts.parts),
    )
    return f"---\n{head}---\n\n{page}"


def _head(facts: Facts) -> dict[str, Any]:
    kind, backbone, weights, task = (
        json.loads(facts.settings.get(key, "null"))
        for key in ("data.kind", "backbone.name", "backbone.weights", "task.kind")
    )
    scores = facts.scores["scores"]
    dataset = {"name": PurePath(facts.data["root"]).name, "type": kind, "split": facts.split}
    result = {
        "task": {"type": "image-segmentation"},
        "dataset": dataset,
        "metrics": [
            {"type": name, "value": scores[name], "name": words(name)}
            for name in METRICS
            if scores[name] is not None
        ],
    }
    return {
        "license": "other",
        "license_name": "not-stated",  # that of weights and data is the owner's to say
        "library_name": "visionsft",
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", "timm", str(backbone), str(kind), str(task), f"weights:{weights}"],
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
