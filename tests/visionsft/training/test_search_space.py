"""The search space: what of it is wrong before the first trial, and which keys a trial has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from visionsft.config import Config
from visionsft.errors import ConfigError
from visionsft.loading import dump_config, load_config
from visionsft.training import search_space
from visionsft.training.search_space import Space, check

BASE = """\
data: {kind: geotiff, root: scenes}
backbone: {name: resnet18}
strategy: {kind: feature_based, cache: disk, views: 4}
"""


def load(folder: Path, tune: str, base: str = BASE) -> Config:
    path = folder / "demo.yaml"
    path.write_text(base + tune)
    return load_config(path, check=check)


def mistakes(folder: Path, tune: str, base: str = BASE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, tune, base)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_a_space_without_mistakes(tmp_path: Path) -> None:
    space = Space.of(load(tmp_path, GOOD))
    # those on which others hang (or might) come first
    assert list(space.dimensions)[:3] == ["head", "strategy.kind", "backbone.name"]
    assert len(space.contexts()) == 12


GOOD = """\
tune:
  study: {trials: 3, pruner: median, first_rung: 1, seed: 2}
  strategy.lr: {log: [1e-5, 1e-2]}
  strategy.kind: [feature_based, layerwise]
  strategy.last: {int: [1, 3]}
  head: [{name: linear}, {name: fpn}, {name: unet, widths: [8, 8]}]
  head.width: [64, 128]
  backbone.name: [resnet18, resnet34]
  backbone.indices: [[1, 2, 3, 4], null]
  trainer.epochs: {int: [5, 20]}
  trainer.early_stopping.patience: [3]
  task.loss: [{name: dice}, [{name: cross_entropy}, {name: lovasz, weight: 0.5}]]
"""

MISTAKEN = """\
tune:
  study: {trails: 3}
  strategy.lr: {log: [1e-5, 1e-2]}
  strategy.kind: [feature_based, layerwise, full, fool]
  strategy.last: {int: [0, 3]}
  strategy.optimizer: [adamw, sgd]
  strategy.momentum: {uniform: [0.5, .9]}
  head: [{name: linear}, {name: fpn, wdth: 3}, {name: fpn, width: 12}]
  head.width: [64, 128]
  x: [3]
  seed: [1, 2, a]
  trainer.epochs: {int: [5, 20]}
  trainer.epochs.x: [1]
  data.root: [a, b]
  data: [{kind: geotiff}]
  strategy.lrr: [1]
  task.loss.1.weight: [1]
  head.dropout: {unifrom: [0, 1]}
  strategy: {lr: [1]}
  tune.study.trials: [1]
"""


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    same = "it says what is scored, on what, and where it is kept"
    forms = "{log: [from, to]}, {uniform: [from, to]}, {int: [from, to]}"
    assert mistakes(tmp_path, MISTAKEN) == [
        "demo.yaml:5: tune.study.trails: unknown key; nearest: trials",
        "demo.yaml:7: tune.'strategy.kind'.2: full: strategy.cache: unknown key for kind 'full'; it belongs to kind "
        "'feature_based'",
        "demo.yaml:7: tune.'strategy.kind'.2: full: strategy.views: unknown key for kind 'full'; it belongs to kind "
        "'feature_based'",
        "demo.yaml:7: tune.'strategy.kind'.3: 'fool' is not allowed; allowed: full, feature_based, layerwise, gradual, "
        "lora",
        "demo.yaml:8: tune.'strategy.last': given 0; must be greater than 0 (with strategy.kind: layerwise)",
        "demo.yaml:10: tune.'strategy.momentum': is for optimizer 'sgd' only; the optimizer is 'adamw'",
        "demo.yaml:11: tune.head.1: head.wdth: unknown key; nearest: width",
        "demo.yaml:12: tune.'head.width': is searched, and given by choices of head, too; leave it out of one",
        "demo.yaml:13: tune.x.0: unknown key; allowed: name, runs, seed, task, data, backbone, head, strategy, "
        "trainer, gates, tune, inference",
        "demo.yaml:14: tune.seed.2: given 'a'; must be a valid integer",
        "demo.yaml:16: tune.'trainer.epochs.x': can't be searched, since trainer.epochs is, by values that have no "
        "keys",
        f"demo.yaml:17: tune.'data.root': must be the same in all trials, since data.root is: {same}",
        f"demo.yaml:18: tune.data: must be the same in all trials, since data.kind is: {same}",
        "demo.yaml:19: tune.'strategy.lrr'.0: unknown key; nearest: lr",
        "demo.yaml:20: tune.'task.loss.1.weight'.0: 1: task.loss.1: unknown key; allowed: name, weight, "
        "class_weights, label_smoothing",
        f"demo.yaml:21: tune.'head.dropout': given a mapping; must be a list of values, or a range: {forms}; "
        "'unifrom' is none of them, nearest: uniform",
        f"demo.yaml:22: tune.strategy: given a mapping; must be a list of values, or a range: {forms}; "
        "'lr' is none of them",
        f"demo.yaml:23: tune.'tune.study.trials': must be the same in all trials, since tune is: {same}",
    ]


def test_the_mistakes_of_the_rest_are_among_them(tmp_path: Path) -> None:
    base = BASE.replace("resnet18}", "resnet18, wieghts: none}")
    assert mistakes(tmp_path, "tune: {strategy.lr: [-1]}\n", base) == [
        "demo.yaml:2: backbone.wieghts: unknown key; nearest: weights",
        "demo.yaml:4: tune.'strategy.lr'.0: given -1; must be greater than 0",
    ]


@pytest.mark.parametrize(
    ("tune", "line"),
    [
        ("", "demo.yaml: tune: missing section; it needs at least one key to search"),
        ("tune: {study: {trials: 3}}\n", "demo.yaml:4: tune: missing section"),
        ("tune: {strategy.last: [1]}\n", "demo.yaml:4: tune.'strategy.last': unknown key for kind 'feature_based'"),
        ("tune: {strategy.kind: [layerwise]}\n", "demo.yaml:4: tune.'strategy.kind'.0: layerwise: strategy.st"),
        ("tune: {'strategy..lr': [1]}\n", "demo.yaml:4: tune.'strategy..lr': must be a key of the configuration"),
        ("tune: {task.kind: [detection]}\n", "demo.yaml:4: tune.'task.kind': must be the same in all trials"),
        ("tune: [1]\n", "demo.yaml:4: tune: given [1]; must be a mapping"),
    ],
)
def test_single_mistakes(tmp_path: Path, tune: str, line: str) -> None:
    (only,) = mistakes(tmp_path, tune)
    assert only.startswith(line)


def test_two_values_that_exclude_each_other(tmp_path: Path) -> None:
    """Neither is wrong alone, and neither is the first of its key."""
    tune = "tune: {strategy.start: [1, 7], trainer.epochs: [9, 5]}\n"
    (line,) = mistakes(tmp_path, tune, BASE.replace("feature_based, cache: disk, views: 4", "gradual"))
    assert "epoch 7 is never reached: trainer.epochs is 5" in line
    assert "(with trainer.epochs: 5)" in line


def test_too_many_combinations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_space, "MOST_CHECKS", 20)
    (line,) = mistakes(tmp_path, "tune: {seed: [1, 2, 3, 4, 5], trainer.epochs: [1, 2, 3, 4, 5, 6]}\n")
    assert line.endswith("more than 20 combinations, too many to check them; give fewer choices")


def test_a_key_is_searched_where_its_kind_is_chosen(tmp_path: Path) -> None:
    space = Space.of(load(tmp_path, GOOD))
    assert space.is_active("strategy.last", {"strategy.kind": "layerwise"})
    assert not space.is_active("strategy.last", {"strategy.kind": "feature_based"})
    assert space.is_active("head.width", {"head": {"name": "fpn"}})
    assert not space.is_active("head.width", {"head": {"name": "linear"}})
    assert space.is_active("trainer.early_stopping.patience", {})


def test_the_configuration_of_a_trial(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    chosen: dict[str, Any] = {
        "strategy.kind": "layerwise", "strategy.last": 2, "head": {"name": "fpn"}, "head.width": 64,
        "strategy.lr": 1e-3, "task.loss": [{"name": "dice"}],
    }  # fmt: skip
    trial = Space.of(config).config(chosen, name="0007", runs=Path("runs/demo/trials"))
    strategy = trial.strategy.model_dump()
    assert strategy["kind"] == "layerwise"
    assert strategy["last"] == 2
    assert strategy["views"] == 4  # of the configuration
    assert trial.head.width == 64
    assert trial.tune is None
    assert trial.name == "0007"
    path = tmp_path / "trial.yaml"
    path.write_text(dump_config(trial))
    assert load_config(path) == trial
    with pytest.raises(ConfigError, match=r"strategy\.stages: neither is given"):
        Space.of(config).config({"strategy.kind": "layerwise"}, name="0007", runs=Path("runs"))


def test_the_space_survives_its_file(tmp_path: Path) -> None:
    """A process that runs trials reads the study's configuration; defaults must stay defaults."""
    config = load(tmp_path, GOOD)
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config, defaults=False))
    assert Space.of(load_config(again, check=check)) == Space.of(config)


def test_where_a_study_starts(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert Space.of(config).start(config) == {
        "strategy.kind": "feature_based",
        "strategy.lr": 1e-3,
        "backbone.name": "resnet18",
        "backbone.indices": None,
        "trainer.epochs": 20,
        "head.width": 128,  # of the default head; used where its kind is drawn
    }
