"""Selection: which pretrained backbone to fine-tune, judged on the user's own data and machine before any training.

Each candidate is frozen and probed (`visionsft.preparation.probing`), and priced as the model that the configuration
would make of it (`visionsft.preparation.pricing`). Among those within the user's limits, the recommended one is the
fastest of all that are not worse than the best: whose difference from it, on the same samples, has an interval that
reaches 0.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from backbones import Backbone, BackboneError, WeightsError, create_backbone
from datamodules import DataModule
from visionsft import build
from visionsft.config import Config
from visionsft.errors import ConfigError, TrainingError, WriteError, first_line
from visionsft.evaluation.evaluating import progress
from visionsft.evaluation.intervals import LEVEL, RESAMPLES, Ends
from visionsft.files import atomic_path, write_text
from visionsft.loading import load_config
from visionsft.models.inference import compute_maps
from visionsft.preparation import pricing, probing
from visionsft.preparation.candidates import (
    Candidate,
    Provenance,
    find_candidates,
    find_provenance,
)
from visionsft.preparation.pricing import Price, draw_batch, measure_price
from visionsft.preparation.probing import Probing, Samples, choose_samples, probe
from visionsft.runs import describe_environment
from visionsft.training.precision import DTYPES

SAMPLES = 1000
"""To learn from, and to judge, at most."""
FILES = ("selection.csv", "selection.json", "selection.png")

_REFUSALS = (BackboneError, WeightsError, ConfigError, TrainingError, RuntimeError)
"""How a model says that it can't be built, loaded or run here; torch's RuntimeError: for want of memory, say."""


@dataclass(frozen=True)
class Limits:
    """What a model may cost; None: anything."""

    params: float | None = None
    """Parameters of the whole model."""
    ms: float | None = None
    """Of a forward pass of one image."""
    memory_mb: float | None = None
    """10^6 bytes at the peak of training."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not value > 0:
                raise ConfigError(f"max_{each.name} is {value:g}; allowed: above 0")

    def exceeded(self, price: Price) -> list[str]:
        """Which limits a model doesn't keep; a memory that isn't known keeps every limit."""
        pairs = (
            ("parameters", price.parameters, self.params),
            ("ms an image", price.inference_ms, self.ms),
            ("MB", price.memory_mb, self.memory_mb),
        )
        return [
            f"{value:,.0f} {what} > {limit:,.0f}"
            for what, value, limit in pairs
            if limit is not None and value is not None and value > limit
        ]

    def describe(self) -> str:
        """The limits in words; '' without any."""
        words = {"params": "{:,.0f} parameters", "ms": "{:g} ms an image", "memory_mb": "{:,.0f} MB"}
        given = [words[each.name].format(getattr(self, each.name)) for each in fields(self)
                 if getattr(self, each.name) is not None]  # fmt: skip
        return ", ".join(given)


@dataclass(frozen=True)
class Assessment:
    """What was found of one candidate."""

    candidate: Candidate
    provenance: Provenance
    probing: Probing
    price: Price
    missing: int
    """Tensors that the weights lack: left at random."""

    @property
    def score(self) -> float:
        return self.probing.judgement.value

    @property
    def ends(self) -> Ends | None:
        return self.probing.judgement.ends


@dataclass(frozen=True)
class Selection:
    """The result of `select`."""

    assessments: tuple[Assessment, ...]
    """Best first."""
    failed: dict[str, str]
    """Why a candidate, or a pattern, could not be judged, by its text."""
    limits: Limits
    task: str
    samples: Samples
    seed: int
    folder: Path

    @property
    def metric(self) -> str:
        """By which candidates are ranked: a key of `visionsft.preparation.probing.DEFINITIONS`."""
        return self.assessments[0].probing.judgement.metric

    @property
    def allowed(self) -> list[Assessment]:
        """Those within the limits, best first."""
        return [each for each in self.assessments if not self.limits.exceeded(each.price)]

    @property
    def tied(self) -> list[Assessment]:
        """Those within the limits that are not worse than the best of them, best first."""
        return [each for each in self.allowed if self._ties(each, self.allowed[0])]

    @property
    def recommended(self) -> Assessment | None:
        """The fastest of the tied; None if nothing is within the limits."""
        return min(self.tied, key=lambda each: each.price.inference_ms, default=None)

    def _ties(self, one: Assessment, best: Assessment) -> bool:
        if one is best:
            return True
        ends = one.probing.judgement.behind(best.probing.judgement)
        return ends is not None and ends[0] <= 0

    def advice(self) -> str:
        """The recommendation in words."""
        chosen, said = self.recommended, self.limits.describe()
        within = f" within {said}" if said else ""
        if chosen is None:
            return f"recommended: none; no candidate is{within}"
        best, others = self.allowed[0], len(self.tied) - 1
        if chosen is not best:
            ends = chosen.probing.judgement.behind(best.probing.judgement)
            assert ends is not None
            why = (
                f"{best.candidate.label} scores {best.score - chosen.score:.4f} more, which may be chance "
                f"([{ends[0]:.3f}, {ends[1]:.3f}] on the same samples), and takes "
                f"{best.price.inference_ms / chosen.price.inference_ms:.1f} times as long an image"
            )
        elif len(self.allowed) == 1:
            why = "the only candidate" + within
        elif others:
            why = f"best score, and faster than the {others} that may be as good"
        else:
            why = "best score, and no other candidate may be as good"
        return f"recommended{within}: {chosen.candidate.label}\n  {why}"

    def table(self) -> str:
        """What the command line prints."""
        lines = [
            f"{len(self.assessments)} candidates for {self.task}; {self.samples.describe()} (seed {self.seed})",
            "",
            *_aligned([_HEAD, *(self._row(rank, each) for rank, each in enumerate(self.assessments, start=1))]),
            "",
            f"probe: {self.metric.replace('_', ' ')} of a linear probe of the frozen backbone, with its {LEVEL:.0%} "
            "interval; kNN, LogME: beside it",
            "M params: with the head; step: of training, everything trained; MB: peak of training; all measured once "
            "an architecture",
            *self._remarks(),
            *(f"failed: {text}: {reason}" for text, reason in self.failed.items()),
            "",
            self.advice(),
        ]
        return "\n".join(lines)

    def _row(self, rank: int, each: Assessment) -> list[str]:
        low, high = each.ends or (None, None)
        mark = "*" if each is self.recommended else ("-" if self.limits.exceeded(each.price) else "")
        found, price = each.probing, each.price
        return [
            f"{rank}{mark}", each.candidate.short, f"{each.score:.4f}",
            "-" if low is None else f"[{low:.3f}, {high:.3f}]",
            "-" if found.neighbours is None else f"{found.neighbours:.4f}", f"{found.evidence:.3f}",
            f"{price.parameters / 1e6:.2f}", f"{price.gmacs:.2f}", f"{price.inference_ms:.1f}", f"{price.step_ms:.0f}",
            "-" if price.memory_mb is None else f"{price.memory_mb:,.0f}",
            each.provenance.data, each.provenance.licence,
        ]  # fmt: skip

    def _remarks(self) -> list[str]:
        judgement = self.assessments[0].probing.judgement
        lines = []
        if judgement.note:
            lines.append(f"no intervals: {judgement.note}; then only the best score counts, and nothing ties")
        elif judgement.unit == "image":
            groups = len({item.group for item in self.samples.judged_items})
            lines.append(f"intervals are over single images ({groups} groups are too few), so they are too narrow")
        over = [each for each in self.assessments if self.limits.exceeded(each.price)]
        lines += [f"-: {each.candidate.label}: {'; '.join(self.limits.exceeded(each.price))}" for each in over]
        lines += [
            f"{each.candidate.label}: its weights lack {each.missing} tensors, which are random"
            for each in self.assessments if each.missing
        ]  # fmt: skip
        return [*lines, *(["*: recommended"] if self.recommended else [])]

    def figure(self) -> Figure:
        """Score against time of an image, with intervals."""
        from visionsft import plots

        return plots.candidates(self.rows(), metric=self.metric, limit=self.limits.ms)

    def rows(self) -> list[dict[str, Any]]:
        """Plain values of every candidate, best first."""
        return [self._values(rank, each) for rank, each in enumerate(self.assessments, start=1)]

    def _values(self, rank: int, each: Assessment) -> dict[str, Any]:
        low, high = each.ends or (None, None)
        found = each.probing
        return {
            "rank": rank,
            "candidate": each.candidate.label,
            "label": each.candidate.short,
            "name": each.candidate.name,
            "weights": each.candidate.weights,
            self.metric: each.score,
            "low": low,
            "high": high,
            "neighbours": found.neighbours,
            "logme": found.evidence,
            "features": found.features,
            "penalty": found.strength,
            **{name: value for name, value in asdict(each.price).items() if name != "machine"},
            "within_limits": not self.limits.exceeded(each.price),
            "tied": each in self.tied,
            "recommended": each is self.recommended,
            "pretraining": each.provenance.data,
            "licence": each.provenance.licence,
            "tag": each.provenance.tag,
            "missing_tensors": each.missing,
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        judgement = self.assessments[0].probing.judgement
        return {
            "task": self.task,
            "metric": self.metric,
            "definitions": {
                self.metric: probing.DEFINITIONS[self.metric],
                "neighbours": "the same metric of the vote of the 10 nearest training samples by cosine",
                "logme": "You et al. 2021: log evidence a sample of a linear model",
                **pricing.DEFINITIONS,
            },
            "samples": self.samples.describe(),
            "learned": len(self.samples.learned),
            "judged": len(self.samples.judged),
            "seed": self.seed,
            "interval": {"level": LEVEL, "resamples": RESAMPLES, "unit": judgement.unit, "groups": judgement.groups,
                         "note": judgement.note},
            "limits": asdict(self.limits),
            "machine": self.assessments[0].price.machine,
            "candidates": self.rows(),
            "failed": self.failed,
            "recommended": None if self.recommended is None else self.recommended.candidate.label,
            "advice": self.advice(),
            "environment": describe_environment(),
        }  # fmt: skip


_HEAD = ["rank", "candidate", "probe", "interval", "kNN", "LogME", "M params", "GMAC", "ms", "step ms", "MB",
         "pretraining", "licence"]  # fmt: skip


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def select(
    config: Config | str | Path,
    backbones: Sequence[str],
    *,
    samples: int | None = SAMPLES,
    limits: Limits = Limits(),
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Selection:
    """Rank `backbones` on the data of `config` and write ``selection.csv``, ``.json`` and ``.png`` into `out`.

    backbones: timm names, patterns, or either with weights, see `find_candidates`. samples: to learn from and to
    judge, at most; None: all. out: default ``<runs>/<name>-selection``. A candidate that can't be built, loaded or
    run is among the failed ones; if all are, a ConfigError has their reasons.
    """
    config = config if isinstance(config, Config) else load_config(config)
    folder = Path(out) if out is not None else config.runs / f"{config.name}-selection"
    if not overwrite and (there := [name for name in FILES if (folder / name).exists()]):
        raise WriteError(f"{folder / there[0]}: exists; --overwrite replaces it")
    if samples is not None and samples < 1:
        raise ConfigError(f"samples is {samples}; allowed: 1 or more")
    candidates, failed = find_candidates(backbones)
    data = build.build_data(config)
    data.scan()
    bench = _Bench(config, data)
    found: list[Assessment] = []
    for candidate in progress(candidates, "judging candidates"):
        try:
            found.append(bench.assess(candidate, count=samples))
        except _REFUSALS as error:
            failed[candidate.label] = first_line(error)
    if not found:
        reasons = "".join(f"\n  {text}: {reason}" for text, reason in failed.items())
        raise ConfigError(f"none of {len(failed)} candidates can be judged:{reasons}")
    assert bench.samples is not None
    found.sort(key=lambda each: -each.score)
    selection = Selection(
        tuple(found), failed, limits, str(config.task.kind), bench.samples, config.seed, folder
    )
    _write(selection)
    return selection


class _Bench:
    """Where candidates are judged one after another, all on the same samples."""

    def __init__(self, config: Config, data: DataModule) -> None:
        self.config = config
        self.data = data
        self.samples: Samples | None = None
        self._batch: Any = None
        self._image: Tensor | None = None
        self._prices: dict[str, Price] = {}
        """By architecture: what its weights are doesn't matter, and timings differ by chance."""

    def assess(self, candidate: Candidate, *, count: int | None) -> Assessment:
        """Probe and price one candidate."""
        torch.manual_seed(self.config.seed)
        config = self._config_of(candidate)
        backbone = self._build(config, None)
        self.data.set_normalisation(backbone.mean, backbone.std)
        if self.samples is None:
            self.samples = choose_samples(self.data, count=count, seed=self.config.seed)
            self._batch = draw_batch(self.data)
            self._image = next(iter(self.samples.judging()))["image"][:1]
        assert self._image is not None
        backbone = self._fit_size(config, backbone, self._image)
        device = build.choose_device(config)
        compute = partial(
            compute_maps, backbone.to(device).eval(), precision=DTYPES[build.build_precision(config)],
            channels_last=config.trainer.channels_last,
        )  # fmt: skip
        found = probe(backbone, self.samples, compute, seed=self.config.seed)
        missing = len(backbone.weights_report.missing)
        architecture = candidate.name.partition(".")[0]
        if architecture not in self._prices:
            price = measure_price(config, backbone, self.data, batch=self._batch, image=self._image)
            self._prices[architecture] = price
        return Assessment(candidate, find_provenance(candidate), found, self._prices[architecture], missing)

    def _config_of(self, candidate: Candidate) -> Config:
        """The configuration with the candidate's backbone; what was chosen for another model stays behind."""
        wanted = self.config.backbone
        if candidate.name.partition(".")[0] != wanted.name.partition(".")[0]:
            wanted = wanted.model_copy(update={"indices": None, "drop_path_rate": 0.0})
        chosen = wanted.model_copy(update={"name": candidate.name, "weights": candidate.weights})
        return self.config.model_copy(update={"backbone": chosen})

    def _build(self, config: Config, size: tuple[int, int] | None) -> Backbone:
        wanted = config.backbone
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "weights .*; missing, left at random")  # the table says it
            return create_backbone(
                wanted.name, weights=wanted.weights, in_chans=len(self.data.bands), bands=self.data.bands,
                indices=wanted.indices, img_size=size or wanted.img_size, drop_path_rate=wanted.drop_path_rate,
            )  # fmt: skip

    def _fit_size(self, config: Config, backbone: Backbone, image: Tensor) -> Backbone:
        """Built anew for the data's size where it takes one size only, which is too small."""
        limit, batch = backbone.geometry.size, self._batch["image"].shape
        needed = (max(image.shape[2], batch[2]), max(image.shape[3], batch[3]))
        if limit is None or (needed[0] <= limit[0] and needed[1] <= limit[1]):
            return backbone
        return self._build(config, needed)


def _write(selection: Selection) -> None:
    rows = selection.rows()
    with atomic_path(selection.folder / "selection.csv") as path, open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    write_text(
        selection.folder / "selection.json", json.dumps(selection.as_dict(), indent=2, ensure_ascii=False) + "\n"
    )
    with atomic_path(selection.folder / "selection.png") as path:
        selection.figure().savefig(path, dpi=150)
