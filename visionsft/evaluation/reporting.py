"""The report: a run's evidence as one HTML page, with a model card and a machine-readable JSON beside it.

Everything comes from the run folder; nothing is computed here that its files don't say, and what they don't have
is named with the command that adds it. The page holds its pictures, style and script, and asks for nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

from visionsft import plots
from visionsft.errors import RunError
from visionsft.evaluation.charts import inline_svg
from visionsft.evaluation.facts import Facts, read_facts
from visionsft.evaluation.metrics import mean_iou
from visionsft.evaluation.modelcard import model_card
from visionsft.evaluation.summary import intervals_of, mistakes, summary, words
from visionsft.files import write_text
from visionsft.runs import Run

PICTURE_BUDGET = 7_500_000
"""Bytes of the gallery's pictures inside the page; with the rest it stays below 10 MB."""

_GROUPS_SHOWN, _SLICES_SHOWN = 40, 200
_SECTIONS = {
    "intervals": ("how far the numbers may move", "visionsft evaluate {run} --split {split}"),
    "slices": ("parts of the data", "visionsft evaluate {run} --split {split} --slice-by group"),
    "calibration": ("confidence", "visionsft evaluate {run} --split {split}"),
    "boundaries": ("edges and objects", "visionsft evaluate {run} --split {split} --boundaries"),
    "area": ("areas on the ground", "visionsft evaluate {run} --split {split}, of georeferenced scenes"),
    "efficiency": ("costs", "visionsft evaluate {run} --split {split} --efficiency"),
}
"""Keys of scores.json that may be missing: what they tell, and the command that stores them."""
_FILES = {
    "gates": ("requirements", "visionsft evaluate {run} --split {split} --gates"),
    "robustness": ("worse conditions", "visionsft robustness {run} --split {split}"),
    "thresholds": ("operating point", "visionsft thresholds {run} 'recall[CLASS] >= 0.9'"),
}
"""The same of files."""
_CORE = frozenset(
    {"run", "split", "warning", "checkpoint", "samples", "groups", "classes", "scores", "definitions", "confusion",
     "data", "environment", "slices_note"}
)  # fmt: skip
"""Keys of every scores.json; what is in neither set is shown as it stands."""


def report(
    run: Run | str | Path,
    other: Run | str | Path | None = None,
    *,
    split: str = "test",
    out: str | Path | None = None,
) -> Path:
    """Write the report of an evaluated run, or of two side by side; returns the page's path.

    out: the page; default ``<run>/report/index.html``, of two runs ``<run>/report/<run>-<other>.html``. The
    report of one run also writes ``model_card.md`` and ``report.json`` beside the page.
    """
    facts = read_facts(run, split=split)
    if other is not None:
        second = read_facts(other, split=split)
        check_comparable(facts, second)
        target = Path(out or facts.path / "report" / f"{facts.name}-{second.name}.html")
        write_text(target, render_comparison(facts, second))
        return target
    target = Path(out or facts.path / "report" / "index.html")
    write_text(target.with_name("model_card.md"), model_card(facts))
    write_text(target.with_name("report.json"), json.dumps(summary(facts), indent=2, ensure_ascii=False) + "\n")
    write_text(target, render(facts))
    return target


def check_comparable(first: Facts, second: Facts) -> None:
    """Two runs are laid side by side only where they were asked the same."""
    both = f"{first.path} and {second.path}"
    if first.classes != second.classes:
        pairs = ((first, second), (second, first))
        only = [", ".join(name for name in a.classes if name not in b.classes) for a, b in pairs]
        how = f"only in the first: {only[0] or 'none'}; only in the second: {only[1] or 'none'}"
        raise RunError(f"{both}: have different classes ({how if any(only) else 'in another order'})")
    prints = [facts.scores["data"]["fingerprint"][:12] for facts in (first, second)]
    if prints[0] != prints[1]:
        what = f"fingerprints of the {first.split} split: {prints[0]} and {prints[1]}"
        raise RunError(f"{both}: were evaluated on different data ({what})")


# ------------------------------------------------------------------------------------------------- one run


def render(facts: Facts) -> str:
    """The page of one run."""
    samples = embed_gallery(facts)
    wrong = mistakes(facts)
    return render_template(
        "report.html",
        facts=facts,
        path=shlex.quote(str(facts.path)),
        scores=facts.scores["scores"],
        interval=intervals_of(facts),
        classes=_class_rows(facts),
        best=_ranked(facts)[:1],
        weakest=_ranked(facts)[-1:],
        mistakes=wrong[:8],
        wrong_pixels=sum(each.pixels for each in wrong),
        confusion=_confusion_rows(facts),
        groups=_group_rows(facts),
        slices=_worst_first(facts.scores.get("slices", ()))[:_SLICES_SHOWN],
        charts=_charts(facts),
        gallery=samples,
        left_out=len((facts.gallery or {}).get("samples", ())) - len(samples),
        colours=(facts.gallery or {}).get("colours", {}),
        definitions=facts.scores["definitions"],
        extras={key: value for key, value in facts.scores.items() if key not in _CORE | _SECTIONS.keys()},
        missing=_missing(facts),
        commands=commands(facts),
        settings=_by_section(facts.settings),
    )


def commands(facts: Facts) -> list[str]:
    """How to make the run again, beside itself."""
    again = str(facts.path.with_name(f"{facts.name}-again"))
    config, checkpoint = str(facts.path / "config.yaml"), facts.scores["checkpoint"]["name"]
    name = f"name={facts.name}-again"
    return [
        shlex.join(["visionsft", "fit", config, "--set", name]),
        shlex.join(["visionsft", "evaluate", again, "--split", facts.split, "--checkpoint", checkpoint]),
        shlex.join(["visionsft", "report", again, "--split", facts.split]),
    ]


def _missing(facts: Facts) -> list[tuple[str, str]]:
    """What could be told, but hasn't been measured, and the command that does."""
    asked = [told for key, told in _SECTIONS.items() if not facts.scores.get(key)]
    asked += [told for key, told in _FILES.items() if getattr(facts, key) is None]
    run = shlex.quote(str(facts.path))
    return [(what, command.format(run=run, split=facts.split)) for what, command in asked]


def _class_rows(facts: Facts) -> list[dict[str, Any]]:
    """A row a class: its scores, their intervals, and its share of the training labels."""
    intervals = facts.scores.get("intervals", {}).get("per_class", {})
    trained = facts.data["class_shares"]
    return [
        {**row, "interval": intervals.get(row["name"], {}), "trained": trained.get(row["name"])}
        for row in facts.scores["scores"]["per_class"]
    ]


def _ranked(facts: Facts) -> list[dict[str, Any]]:
    """The classes that have true pixels, best first."""
    rows = [row for row in facts.scores["scores"]["per_class"] if row["pixels"]]
    return sorted(rows, key=lambda row: -row["iou"])


def _confusion_rows(facts: Facts) -> list[dict[str, Any]]:
    """Rows of the matrix as (pixels, share of the row's pixels); None for a class without true pixels."""
    rows = []
    for name, counts in zip(facts.classes, facts.confusion.tolist(), strict=True):
        total = sum(counts)
        rows.append({"name": name, "cells": [(n, n / total) for n in counts] if total else None})
    return rows


def _group_rows(facts: Facts) -> list[dict[str, Any]]:
    """Scores of each scene or drive, the worst first; nothing where each sample is its own group."""
    sizes = Counter(facts.samples.groups)
    if len(sizes) < 2 or max(sizes.values()) == 1:
        return []
    scored = {group: scores for group, scores in facts.group_scores().items() if scores.pixels}
    worst = sorted(scored, key=lambda group: scored[group].mean_iou)[:_GROUPS_SHOWN]
    return [{"name": group, "samples": sizes[group], "scores": scored[group]} for group in worst]


def _worst_first(slices: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(slices, key=lambda row: math.inf if row["mean_iou"] is None else row["mean_iou"])


def _by_section(settings: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Dotted keys by their first part; those without a dot are 'run'."""
    sections: dict[str, dict[str, str]] = {}
    for key, value in settings.items():
        section, _, rest = key.partition(".") if "." in key else ("run", "", key)
        sections.setdefault(section, {})[rest] = value
    return sections


# ------------------------------------------------------------------------------------------------- charts


def _charts(facts: Facts) -> dict[str, Markup]:
    """The figures that the run folder has numbers for."""
    drawn = chain(_training_figures(facts), _score_figures(facts))
    return {name: inline_svg(figure, name=name, alt=alt) for name, figure, alt in drawn}


def _training_figures(facts: Facts) -> Iterator[tuple[str, Figure, str]]:
    """(name, figure, what it shows in words)"""
    rows, epochs = facts.metrics, f"by epoch, {len(facts.metrics)} in all"
    if rows:
        yield "losses", plots.losses(rows), f"Line chart: loss {epochs}.{_last(facts, 'loss')}"
    if any(row.get("val/mean_iou") is not None for row in rows):
        alt = f"Line chart: validation scores {epochs}.{_last(facts, 'mean_iou')}"
        yield "validation", plots.validation_scores(rows), alt
    if outlines := facts.data.get("outlines"):
        yield "map", plots.footprints(outlines), _say_map(outlines)


def _score_figures(facts: Facts) -> Iterator[tuple[str, Figure, str]]:
    """(name, figure, what it shows in words)"""
    scores, table = facts.scores, "the table has its numbers"
    yield "classes", plots.class_scores(scores), f"Dot chart: IoU and recall by class; {table}."
    singles = mean_iou(facts.samples.confusions)
    yield "singles", plots.sample_scores(singles), _say_singles(singles)
    if slices := scores.get("slices"):
        yield "slices", plots.slices(slices), f"Dot chart: mean IoU by slice; {table}."
    if calibration := scores.get("calibration"):
        alt = f"Reliability curve: accuracy by confidence; {table}."
        yield "reliability", plots.reliability(calibration["bins"]), alt
        bins, names = calibration["bins_per_class"], ", ".join(calibration["bins_per_class"])
        yield "class_reliability", plots.class_reliability(bins), f"Small curves: reliability of {names}."
        yield "precision_recall", plots.precision_recall(bins), f"Small curves: precision and recall of {names}."
    if trimap := scores.get("boundaries", {}).get("trimap"):
        yield "trimap", plots.trimap(trimap), f"Line chart: scores by distance to the true edge; {table}."


def _last(facts: Facts, what: str) -> str:
    """The last values of the columns of that name, in words."""
    found = [
        f" Last {key.replace('/', ' ').replace('_', ' ')}: {value:.3f}."
        for key, value in facts.metrics[-1].items()
        if key.endswith(f"/{what}") and value is not None
    ]
    return "".join(found)


def _say_map(outlines: Sequence[Mapping[str, Any]]) -> str:
    west, south, east, north = plots.bounds(outlines)
    where = f"longitude {west:.3f} to {east:.3f}, latitude {south:.3f} to {north:.3f}"
    return f"Map: outlines of {len(outlines)} scenes, coloured by split; {where} degrees."


def _say_singles(scores: np.ndarray) -> str:
    low, median, high = np.nanquantile(scores, (0.1, 0.5, 0.9))
    return f"Histogram: mean IoU of single samples. Median {median:.3f}; 80 % of them from {low:.3f} to {high:.3f}."


# ------------------------------------------------------------------------------------------------ gallery


def embed_gallery(facts: Facts, *, budget: int = PICTURE_BUDGET) -> list[dict[str, Any]]:
    """The gallery's samples with their pictures as data URIs, the worst first, as many as fit in `budget` bytes."""
    samples: list[dict[str, Any]] = []
    for entry in (facts.gallery or {}).get("samples", ()):
        pictures = {layer: _data_uri(facts.folder / "gallery" / name) for layer, name in entry["files"].items()}
        budget -= sum(map(len, pictures.values()))
        if budget < 0:
            break
        known = {name: iou for name, iou in entry["iou"].items() if iou is not None}
        samples.append({**entry, "pictures": pictures, "weakest": min(known, key=lambda name: known[name])})
    return samples


def _data_uri(path: Path) -> str:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# ---------------------------------------------------------------------------------------------- comparison


def render_comparison(first: Facts, second: Facts) -> str:
    """The page of two runs side by side."""
    names = (first.name, second.name)
    figure = plots.class_differences(first.scores, second.scores, names=names)
    alt = f"Dot chart: IoU by class of {names[0]} and {names[1]}; the table has its numbers."
    pairs = zip(_class_rows(first), _class_rows(second), strict=True)
    return render_template(
        "comparison.html",
        runs=(first, second),
        paths=shlex.join([str(first.path), str(second.path)]),
        intervals=(intervals_of(first), intervals_of(second)),
        classes=[{"name": one["name"], "runs": (one, two)} for one, two in pairs],
        chart_svg=inline_svg(figure, name="differences", alt=alt),
        settings=_differences(first.settings, second.settings),
        origins=_differences(_origins(first), _origins(second)),
        colours=(first.gallery or second.gallery or {}).get("colours", {}),
        definitions=first.scores["definitions"],
    )


def _differences(first: Mapping[str, str], second: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(key, value, value) of what differs, but for where the runs are."""
    keys = [key for key in dict.fromkeys([*first, *second]) if key not in ("name", "runs")]
    both = [(key, first.get(key, "not set"), second.get(key, "not set")) for key in keys]
    return [(key, one, two) for key, one, two in both if one != two]


def _origins(facts: Facts) -> dict[str, str]:
    """What a result depends on besides the configuration."""
    environment = facts.environment
    return {
        "training data": str(environment.get("data_fingerprint")),
        **{f"weights: {key}": str(environment.get("weights", {}).get(key)) for key in ("source", "sha256")},
        "code": str(environment.get("commit")),
        "Python": str(environment.get("python")),
        "CPU": str(environment.get("cpu")),
        **{name: str(version) for name, version in environment.get("versions", {}).items()},
    }


# ------------------------------------------------------------------------------------------------ template


def render_template(template: str, **values: Any) -> str:
    """The page of that name in ``templates/``, with its style and script inside."""
    environment = Environment(
        loader=PackageLoader("visionsft.evaluation"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    script, style = (_source(environment, name) for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        script=script, style=style, script_hash=f"sha256-{digest}", **values
    )


def _source(environment: Environment, name: str) -> Markup:
    """A file of our own, as it stands."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _score(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.3f}"


def _percent(value: float | None) -> str:
    """A share: whole per cents, or as many digits as a small one needs."""
    if value is None or np.isnan(value):
        return "–"
    digits = 2 if 0 < value < 0.00995 else 0 if 0.0995 <= value < 0.995 or value in (0, 1) else 1
    return f"{value:.{digits}%}".replace("%", "\u00a0%")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _number(value: Any) -> str:
    """A value of an unknown section of scores.json."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


_FILTERS = {
    "number": _number,
    "percent": _percent,
    "score": _score,
    "sentence": _sentence,
    "signed": _signed,
    "words": words,
}
"""What the templates write values with."""
