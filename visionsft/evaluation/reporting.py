"""The report: a run's evidence as one HTML page, with a model card and a machine-readable JSON beside it.

Everything comes from the run folder; nothing is computed here that its files don't say, and what they don't have
is named with the command that adds it. The page holds its pictures, style and script, and asks for nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from visionsft import plots
from visionsft.errors import RunError
from visionsft.evaluation.charts import inline_svg
from visionsft.evaluation.facts import Facts, read_facts
from visionsft.evaluation.modelcard import model_card
from visionsft.evaluation.page import SLICES_SHOWN, Page
from visionsft.evaluation.pages import page_of
from visionsft.evaluation.summary import summary, words
from visionsft.files import write_text
from visionsft.runs import Run


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
    page = page_of(read_facts(run, split=split))
    facts = page.facts
    if other is not None:
        second = page_of(read_facts(other, split=split))
        check_comparable(facts, second.facts)
        target = Path(out or facts.path / "report" / f"{facts.name}-{second.facts.name}.html")
        write_text(target, render_comparison(page, second))
        return target
    target = Path(out or facts.path / "report" / "index.html")
    write_text(target.with_name("model_card.md"), model_card(page))
    write_text(target.with_name("report.json"), json.dumps(summary(page), indent=2, ensure_ascii=False) + "\n")
    write_text(target, render(page))
    return target


def check_comparable(first: Facts, second: Facts) -> None:
    """Two runs are laid side by side only where they were asked the same."""
    both = f"{first.path} and {second.path}"
    if first.task != second.task:
        raise RunError(f"{both}: have different tasks, {first.task} and {second.task}")
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


def render(page: Page) -> str:
    """The page of one run."""
    facts = page.facts
    slices, ranked = page.slices(), page.ranked()
    return render_page(
        page.template,
        page=page,
        facts=facts,
        path=shlex.quote(str(facts.path)),
        scores=page.scores,
        interval=page.intervals,
        classes=page.classes(),
        best=ranked[:1],
        weakest=ranked[-1:],
        groups=page.groups(),
        slices=slices[:SLICES_SHOWN],
        slices_in_all=len(slices),
        charts=_charts(page),
        gallery=page.gallery(),
        colours=(facts.gallery or {}).get("colours", {}),
        definitions=facts.scores["definitions"],
        extras=page.extras(),
        missing=_missing(page),
        commands=commands(facts),
        settings=_by_section(facts.settings),
        **page.context(),
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


def _missing(page: Page) -> list[tuple[str, str]]:
    """What could be told, but hasn't been measured, and the command that does."""
    run = shlex.quote(str(page.facts.path))
    return [(what, command.format(run=run, split=page.facts.split)) for what, command in page.missing()]


def _by_section(settings: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Dotted keys by their first part; those without a dot are 'run'."""
    sections: dict[str, dict[str, str]] = {}
    for key, value in settings.items():
        section, _, rest = key.partition(".") if "." in key else ("run", "", key)
        sections.setdefault(section, {})[rest] = value
    return sections


# ------------------------------------------------------------------------------------------------- charts


def _charts(page: Page, *, prefix: str = "") -> dict[str, Markup]:
    """The figures that the run folder has numbers for; prefix: of their ids, where a page has two of each."""
    return {name: inline_svg(figure, name=prefix + name, alt=alt) for name, figure, alt in page.figures()}


# ---------------------------------------------------------------------------------------------- comparison


def render_comparison(first: Page, second: Page) -> str:
    """The page of two runs side by side."""
    pages, metric = (first, second), first.marked[0]
    runs = [page.facts for page in pages]
    names = (runs[0].name, runs[1].name)
    figure = plots.class_differences(runs[0].scores, runs[1].scores, names=names, metric=metric)
    alt = f"Dot chart: {words(metric)} by class of {names[0]} and {names[1]}; the table has its numbers."
    pairs = zip(first.classes(), second.classes(), strict=True)
    charts = [_charts(page, prefix=f"{letter}-") for letter, page in zip("ab", pages, strict=True)]
    return render_page(
        first.comparison,
        page=first,
        pages=pages,
        runs=runs,
        paths=shlex.join([str(each.path) for each in runs]),
        tested=read_tests(*runs),
        classes=[{"name": one["name"], "runs": (one, two)} for one, two in pairs],
        chart_svg=inline_svg(figure, name="differences", alt=alt),
        charts=charts,
        gallery=first.pair_gallery(second),
        settings=_differences(runs[0].settings, runs[1].settings),
        origins=_differences(_origins(runs[0]), _origins(runs[1])),
        colours=(runs[0].gallery or runs[1].gallery or {}).get("colours", {}),
        definitions=runs[0].scores["definitions"],
    )


def read_tests(first: Facts, second: Facts) -> dict[str, dict[str, Any]]:
    """What `compare` found of two runs: by 'metric' or 'metric[class]'; empty if they weren't compared."""
    for path in sorted(first.folder.glob("compare-*/compare.json")):
        for pair in json.loads(path.read_text(encoding="utf-8"))["pairs"]:
            if [Path(pair[key]).resolve() for key in ("first", "second")] == [
                each.path.resolve() for each in (first, second)
            ]:
                return {
                    row["metric"] if row["of"] is None else f"{row['metric']}[{row['of']}]": row
                    for row in pair["differences"]
                }
    return {}


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


def render_page(template: str, **values: Any) -> str:
    """A page that stands alone, from one of our templates."""
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
    return f"{text[:1].upper()}{text[1:].rstrip('.')}{'' if text.endswith('?') else '.'}"


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
