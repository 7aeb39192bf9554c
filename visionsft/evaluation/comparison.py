"""Comparison: two runs side by side on the same samples: how far apart, where, and what else differs between them."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules import DataError
from visionsft.errors import RunError
from visionsft.evaluation.differences import METHOD, Difference, differences, holm
from visionsft.evaluation.intervals import Unit
from visionsft.evaluation.metrics.segmentation import without_nan
from visionsft.evaluation.paired import Change, Samples
from visionsft.evaluation.samples import check_comparable, read_samples
from visionsft.files import atomic_path, write_text
from visionsft.runs import Run, flatten_values

CHANGED = 8
"""Samples named, and drawn, as those that changed most."""
_TIE = 1e-12
"""Differences below are rounding."""


@dataclass(frozen=True)
class Pair:
    """The first run, A, against another, B."""

    first: str
    second: str
    """Paths of the runs."""
    split: str
    unit: Unit
    """What was resampled and exchanged: "group" (a scene or drive) or "image"."""
    samples: int
    differences: tuple[Difference, ...]
    shown: tuple[str, ...]
    """Class metrics in the text table."""
    permutations: int
    """That were drawn, at most."""
    group_score: str
    """What is told of a group..."""
    groups: tuple[Change, ...]
    """...the largest loss first."""
    sample_score: str
    """What is told of a sample..."""
    changed: tuple[Change, ...]
    """...those that changed most."""
    setup: dict[str, dict[str, tuple[str | None, str | None]]]
    """What differs in config, data, weights and code: values of A and B as JSON by dotted key."""
    pictures: str | None = None
    """File of the samples that changed most; None if they couldn't be drawn..."""
    problem: str | None = None
    """...for this reason."""

    def table(self) -> str:
        """What the command line prints."""
        what = f"split {self.split} · {self.samples:,} samples, {len(self.groups):,} {self.unit}s"
        parts = [[f"A {self.first}   B {self.second} · {what}"], self._rows(), self._group_lines()]
        parts += [self._changed_lines(), self._setup_lines()]
        return "\n\n".join("\n".join(part) for part in parts)

    def _rows(self) -> list[str]:
        width = max(len(_name(row)) for row in self.differences)
        lines = [f"{'':{width}}       A       B    B - A    95 % interval         p  p_holm"]
        for row in self.differences:
            ends = "too few groups" if row.ends is None else f"[{row.ends[0]:+.4f}, {row.ends[1]:+.4f}]"
            if row.of is None or row.metric in self.shown:  # the others are in compare.json
                numbers = f"{_number(row.first)}  {_number(row.second)}  {_number(row.difference, '+.4f'):>7}"
                chances = f"{_number(row.p)}  {_number(row.p_holm)}"
                lines.append(f"{_name(row):{width}}  {numbers}  {ends:18}  {chances}")
        return lines + self._cautions()

    def _cautions(self) -> list[str]:
        """What limits the intervals and p-values."""
        least = 2.0 ** (1 - len(self.groups))
        few = f"with {len(self.groups)} {self.unit}s no p can be below {least:g}"
        images = "images of one scene or drive share their errors: intervals and p are too optimistic"
        return [few] if least > 0.05 else [images] if self.unit == "image" else []

    def _group_lines(self) -> list[str]:
        gaps = [group.difference for group in self.groups]
        wins, losses = (sum(sign * gap > _TIE for gap in gaps) for sign in (1, -1))
        counts = f"B better in {wins}, worse in {losses}, of {len(gaps)}"
        lines = [f"{self.group_score} by {self.unit}: {counts}; the largest losses and gains:"]
        shown = self.groups if len(self.groups) <= 6 else (*self.groups[:3], *self.groups[-3:])
        return lines + [f"  {group.line()}" for group in shown]

    def _changed_lines(self) -> list[str]:
        where = self.pictures or f"no pictures: {self.problem}"
        lines = [f"  {change.line()}" for change in self.changed]
        return [f"samples changed most by their {self.sample_score} ({where}):", *lines]

    def _setup_lines(self) -> list[str]:
        lines = []
        for part, keys in self.setup.items():
            lines.append(f"{part}: {f'{len(keys)} differ' if keys else 'the same'}")
            lines += [
                f"  {key}: {_or_unset(one)} in A, {_or_unset(other)} in B"
                for key, (one, other) in keys.items()
            ]
        return lines


def _name(row: Difference) -> str:
    return f"{row.metric}[{row.of}]" if row.of else row.metric


def _number(value: float, form: str = ".4f") -> str:
    return f"{'-':>6}" if math.isnan(value) else format(value, form)


def _or_unset(text: str | None) -> str:
    return "not set" if text is None else text


# ------------------------------------------------------------------------------------- comparing


def compare(
    runs: Sequence[Run | str | Path],
    *,
    split: str = "test",
    group_by: Unit = "group",
    out: str | Path | None = None,
) -> tuple[Pair, ...]:
    """Compare evaluated runs with the first of them; writes table.txt, compare.json and a picture a pair.

    group_by: what is resampled and exchanged as a whole. out: folder; default
    ``<first run>/evaluation/<split>/compare-<names of the others>``.
    """
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    if len({run.path.resolve() for run in opened}) < max(2, len(opened)):
        paths = ", ".join(str(run.path) for run in opened)
        raise RunError(f"two different runs are needed at least, and none twice; given {paths}")
    samples = [read_samples(run, split, unit=group_by) for run in opened]
    for other in samples[1:]:
        check_comparable(samples[0], other)
    names = "-".join(run.name for run in opened[1:])
    folder = Path(out) if out else opened[0].evaluation(split) / f"compare-{names}"
    pairs = _correct([_compare_pair(samples[0], other, split, group_by) for other in samples[1:]])
    for index, other in enumerate(samples[1:]):
        picture = folder / f"changed-{index + 1}-{other.run.name}.png"
        pairs[index] = _draw(pairs[index], samples[0], other, picture)
    _write(pairs, folder)
    return tuple(pairs)


def _compare_pair(first: Samples, second: Samples, split: str, unit: Unit) -> Pair:
    groups = _changes(first.group_names, first.group_scores(), second.group_scores())
    changed = _changes(first.ids, first.sample_scores(), second.sample_scores())
    changed = [change for change in changed if change.difference]
    return Pair(
        first=str(first.run.path),
        second=str(second.run.path),
        split=split,
        unit=unit,
        samples=len(first.ids),
        differences=differences(first, second),
        shown=first.shown,
        permutations=first.permutations,
        group_score=first.group_score,
        groups=tuple(sorted(groups, key=lambda group: group.difference)),
        sample_score=first.sample_score,
        changed=tuple(sorted(changed, key=lambda change: -abs(change.difference))[:CHANGED]),
        setup=what_differs(first.run, second.run, split),
    )


def _changes(names: Sequence[str], first: NDArray[np.float64], second: NDArray[np.float64]) -> list[Change]:
    """Those that have a score in both runs."""
    rows = zip(names, first.tolist(), second.tolist(), strict=True)
    return [Change(name, *pair) for name, *pair in rows if not any(map(math.isnan, pair))]


def _correct(pairs: Sequence[Pair]) -> list[Pair]:
    """Fill in p_holm, within each metric over all pairs; over all classes or by class, these are two."""
    rows = [(index, row) for index, pair in enumerate(pairs) for row in pair.differences]
    corrected: list[list[Difference]] = [[] for _ in pairs]
    for kind in dict.fromkeys((row.metric, row.of is None) for _, row in rows):
        family = [(index, row) for index, row in rows if (row.metric, row.of is None) == kind]
        for (index, row), p in zip(family, holm([row.p for _, row in family]), strict=True):
            corrected[index].append(replace(row, p_holm=p))
    return [replace(pair, differences=tuple(each)) for pair, each in zip(pairs, corrected, strict=True)]


# -------------------------------------------------------------------------------- what else differs


def what_differs(first: Run, second: Run, split: str) -> dict[str, dict[str, tuple[str | None, str | None]]]:
    """Dotted keys whose values differ between two runs' configurations, data, weights and code."""
    one, other = (_setup(run, split) for run in (first, second))
    return {part: _unlike(flatten_values(one[part]), flatten_values(other[part])) for part in one}


def _setup(run: Run, split: str) -> dict[str, dict[str, Any]]:
    scores, environment = run.scores(split), run.read_json("environment.json")
    weights = environment.pop("weights", {})
    config = run.config.model_dump(mode="json", exclude={"name", "runs"})
    test = {key: value for key, value in scores.get("data", {}).items() if key != "skipped"}
    return {
        "config": config,
        "data": {"training": run.read_json("data.json"), split: test},
        "weights": {"pretrained": weights, "checkpoint": scores.get("checkpoint", {})},
        "code": environment,
    }


def _unlike(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    keys = dict.fromkeys((*first, *second))
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


# ------------------------------------------------------------------------------------------ files


def _draw(pair: Pair, first: Samples, second: Samples, target: Path) -> Pair:
    """The pair with a picture of the samples that changed most, where both models and their data still load."""
    if not pair.changed:
        return replace(pair, problem="no sample changed")
    title = f"A {pair.first} · B {pair.second} · split {pair.split}\nrule: largest change of {pair.sample_score}"
    try:
        figure = first.draw(second, pair.split, pair.changed, title=title)
    except (RunError, DataError) as error:
        return replace(pair, problem=str(error))
    with atomic_path(target) as path:
        figure.savefig(path)
    return replace(pair, pictures=str(target))


def _write(pairs: Sequence[Pair], folder: Path) -> None:
    write_text(folder / "table.txt", table(pairs) + "\n")
    report = {"method": _method(pairs), "permutations": pairs[0].permutations, "pairs": list(map(asdict, pairs))}
    text = json.dumps(without_nan(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / "compare.json", text + "\n")


def table(pairs: Sequence[Pair]) -> str:
    """All pairs, and what the numbers mean."""
    return "\n\n".join([*(pair.table() for pair in pairs), textwrap.fill(_method(pairs), 100)])


def _method(pairs: Sequence[Pair]) -> str:
    return METHOD.format(permutations=pairs[0].permutations)
