"""The study report: what a search came to, as a page, two files for machines, a table and the best configuration."""

from __future__ import annotations

import csv
import io
import json
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from visionsft import plots
from visionsft.config import Config
from visionsft.errors import RunError
from visionsft.evaluation.charts import inline_svg
from visionsft.evaluation.reporting import render_page
from visionsft.files import write_text
from visionsft.loading import dump_config
from visionsft.runs import describe_environment
from visionsft.training import studies
from visionsft.training.search_space import Space, describe
from visionsft.training.trials import folder_of, outcome

_FEWEST = 8
"""Trials with a score from which importance is estimated."""
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class StudyResult:
    """What `visionsft.tune` returns."""

    path: Path
    """Folder of the study."""
    name: str
    monitor: str
    """The figure by which trials are judged, on the validation split: the higher, the better."""
    total: int
    storage: str
    identity: Mapping[str, Any]
    """Space, settings and fingerprints of the data."""
    trials: tuple[Mapping[str, Any], ...]
    """{"number", "state", "score", "epochs", "best_epoch", "seconds", "ended" (in words), "folder", "values" by key}"""
    importance: Mapping[str, float]
    """Share of each key in what decides whether a trial is among the best; empty for a few trials."""
    best: Mapping[str, Any] | None
    """The best of `trials`."""
    best_config: Config | None
    """Named to be fitted beside the study."""

    @property
    def counts(self) -> dict[str, int]:
        """Trials by how they ended, those that don't count among them as 'not counted'."""
        return dict(Counter(trial["state"] for trial in self.trials))

    @property
    def done(self) -> int:
        """Trials that count and have ended."""
        return sum(trial["state"] in ("complete", "pruned", "failed") for trial in self.trials)

    def require_score(self) -> None:
        """Refuse a study in which every trial has failed."""
        failed = [trial["ended"] for trial in self.trials if trial["state"] == "failed"]
        if self.best is None and failed:
            lines = [f"  {count} x {reason}" for reason, count in Counter(failed).most_common(5)]
            where = f"what they printed is in {self.path / 'trials'}"
            raise RunError("\n".join([f"{self.path}: no trial has ended with a score; {where}", *lines]))

    def table(self) -> str:
        """The result as text."""
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        lines = [f"study {self.name}: {self.done} of {self.total} trials ({counts})"]
        if self.best is None:
            return "\n".join([*lines, "no trial has ended with a score yet"])
        lines += [f"best: trial {self.best['number']:04d}, {self.monitor} {self.best['score']:.4f}"]
        lines += [f"  {key:<28}{describe(value)}" for key, value in self.best["values"].items()]
        if start := self.start:
            lines += [f"the configuration as it stands (trial 0000): {start['score']:.4f}"]
        if self.importance:
            shares = ", ".join(f"{key} {share:.0%}" for key, share in self.importance.items())
            lines += [f"importance (PED-ANOVA): {shares}"]
        return "\n".join([*lines, *self._next()])

    @property
    def start(self) -> Mapping[str, Any] | None:
        """Trial 0, which has the configuration's own values where the space holds them."""
        first = self.trials[0] if self.trials else None
        return first if first and first["state"] == "complete" and first is not self.best else None

    def _next(self) -> list[str]:
        assert self.best_config is not None
        best = shlex.quote(str(self.path / "best.yaml"))
        run = shlex.quote(str(self.best_config.runs / str(self.best_config.name)))
        return [
            f"written: {self.path / 'report' / 'index.html'}, trials.csv, study.json, best.yaml",
            f"next: visionsft fit {best}\n      visionsft evaluate {run}",
        ]


def summarise(
    study: Study, config: Config, space: Space, folder: Path, *, storage: str, total: int
) -> StudyResult:
    """What `study` has come to by now."""
    trials = study.get_trials(deepcopy=False)
    best = studies.best_trial(trials)
    best_config = None
    if best is not None:
        name = f"{str(config.name)[:90]}_best"
        best_config = space.config(studies.chosen_of(best), name=name, runs=config.runs)
    return StudyResult(
        path=folder,
        name=study.study_name,
        monitor=next((t.user_attrs["monitor"] for t in trials if "monitor" in t.user_attrs), "score"),
        total=total,
        storage=storage,
        identity=study.user_attrs.get("identity", {}),
        trials=tuple(_row(trial, folder, space) for trial in trials),
        importance=_importance(study),
        best=None if best is None else _row(best, folder, space),
        best_config=best_config,
    )


def write_report(result: StudyResult) -> None:
    """Write best.yaml, trials.csv, study.json and the page into the study's folder."""
    write_text(result.path / "trials.csv", _csv(result))
    facts = {
        "name": result.name, "monitor": result.monitor, "split": "val", "trials": result.total, "done": result.done,
        "counts": result.counts, "best": result.best, "importance": result.importance, "storage": result.storage,
        **result.identity, "environment": describe_environment(),
    }  # fmt: skip
    write_text(result.path / "study.json", json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n")
    if result.best is not None and result.best_config is not None:
        header = (
            f"# Written by visionsft tune: trial {result.best['number']:04d} of the study '{result.name}', "
            f"{result.monitor} {result.best['score']:.4f}.\n"
        )
        write_text(result.path / "best.yaml", header + dump_config(result.best_config))
    write_text(result.path / "report" / "index.html", _page(result))


# ---------------------------------------------------------------------------------------- numbers


def _row(trial: FrozenTrial, folder: Path, space: Space) -> dict[str, Any]:
    chosen = studies.chosen_of(trial)
    reported = trial.intermediate_values
    score = trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    ended = trial.datetime_complete
    seconds = (ended - trial.datetime_start).total_seconds() if ended and trial.datetime_start else None
    return {
        "number": trial.number,
        "state": "not counted" if "void" in trial.user_attrs else _STATES[trial.state],
        "score": score,
        "epochs": max(reported, default=None),
        "best_epoch": trial.user_attrs.get("best_epoch"),
        "seconds": None if seconds is None else round(seconds, 1),
        "ended": outcome(trial),
        "folder": str(folder_of(folder, trial.number)),
        "values": {key: chosen[key] for key in space.dimensions if key in chosen},
    }


def _importance(study: Study) -> dict[str, float]:
    """By PED-ANOVA (Watanabe et al. 2023): which keys set the better trials apart from the others."""
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    if len(finished) < _FEWEST or len({trial.value for trial in finished}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some regimes for parameter")  # the page says how far to believe it
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _csv(result: StudyResult) -> str:
    """A row a trial, with a column a key."""
    keys = list(dict.fromkeys(key for trial in result.trials for key in trial["values"]))
    plain = ("number", "state", "score", "epochs", "best_epoch", "seconds", "ended", "folder")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *keys])
    for trial in result.trials:
        values = [trial["values"].get(key, "") for key in keys]
        cells = [json.dumps(value) if isinstance(value, dict | list) else value for value in values]
        writer.writerow([*(trial[name] for name in plain), *cells])
    return text.getvalue()


# ------------------------------------------------------------------------------------------- page


def _page(result: StudyResult) -> str:
    keys = list(dict.fromkeys(key for trial in result.trials for key in trial["values"]))
    ranked = sorted(result.trials, key=lambda trial: (trial["score"] is None, -(trial["score"] or 0)))
    return render_page(
        "study.html",
        result=result,
        keys=keys,
        trials=ranked,
        charts={name: inline_svg(figure, name=name, alt=alt) for name, figure, alt in _figures(result)},
        describe=describe,
        fit=shlex.join(["visionsft", "fit", str(result.path / "best.yaml")]),
    )


def _figures(result: StudyResult) -> list[tuple[str, Any, str]]:
    """(name, figure, what it shows in words)"""
    scored = [{**trial, "values": _labels(trial["values"])} for trial in result.trials if trial["score"] is not None]
    if not scored:
        return []
    table = "the table has its numbers"
    drawn = [
        ("history", plots.study_history(scored), f"Dot chart: scores of {len(scored)} trials in order; {table}."),
        ("parallel", plots.study_parallel(scored), f"Parallel coordinates: the values of {len(scored)} trials."),
    ]
    if result.importance:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in result.importance.items())
        drawn.append(("importance", plots.study_importance(result.importance), f"Bar chart: {shares}."))
    return drawn


def _labels(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as they are, everything else as text."""
    return {key: value if type(value) in (int, float) else describe(value) for key, value in values.items()}
