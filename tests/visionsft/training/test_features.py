"""The feature cache: the training of uncached views, found again by later runs, and what bad disks get."""

from __future__ import annotations

import csv
import errno
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from datamodules import Item
from visionsft import build, files
from visionsft.config import Config
from visionsft.runs import Run
from visionsft.training import features, fitting
from visionsft.training.features import CachedData, CacheError
from visionsft.training.fitting import fit
from visionsft.training.loading import load_model

Make = Callable[..., Config]


def config_of(make: Make, values: dict[str, Any], name: str = "run", **strategy: Any) -> Config:
    frozen = {"kind": "feature_based", "lr": 0.01, "cache": "disk", "views": 2, **strategy}
    return make({**values, "name": name, "strategy": frozen})


def assemble(config: Config) -> CachedData:
    task, data, _ = fitting._assemble(config, pretrained=True)
    cached = build.build_cache(config, task, data)
    assert isinstance(cached, CachedData)
    return cached


def losses(run: Run) -> list[float]:
    return [float(row["train/loss"]) for row in csv.DictReader((run.path / "metrics.csv").open())]


def scored(run: Run) -> list[float]:
    return [float(row["val/accuracy"]) for row in csv.DictReader((run.path / "metrics.csv").open())]


def shards_of(values: dict[str, Any]) -> list[Path]:
    return sorted((values["runs"] / ".features").rglob("*.bin"))


@pytest.mark.parametrize("storage", ["disk", "ram"])
@pytest.mark.parametrize("part", [{}, {"kind": "layerwise", "last": 2, "backbone_lr_factor": 1.0}])
def test_trains_as_uncached_on_the_same_views(
    values: dict[str, Any], make: Make, storage: str, part: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cached = fit(config_of(make, values, "cached", cache=storage, **part))
    assert "feature cache: 0.00 GB for 6 samples x 2 views" in capsys.readouterr().out
    plain = fit(config_of(make, values, "plain", **{**part, "cache": "off", "views": None}))
    # two epochs, two views: the same samples, features rounded to float16
    assert losses(cached) == pytest.approx(losses(plain), rel=2e-2)
    one, other = load_model(cached).state_dict(), load_model(plain).state_dict()
    assert one.keys() == other.keys()
    frozen = load_model(plain).backbone.model.conv_stem.weight  # type: ignore[union-attr]
    assert torch.equal(load_model(cached).backbone.model.conv_stem.weight, frozen)  # type: ignore[arg-type, union-attr]


def test_views_rotate_and_a_view_repeats_exactly(values: dict[str, Any], make: Make) -> None:
    loader = assemble(config_of(make, values)).train
    assert loader.sampler is not None
    seen = []
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        order = [key.index for key in loader.sampler]
        rows = torch.cat([batch["features"][0] for batch in loader])
        seen.append(rows[torch.tensor(order).argsort()])
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_features_keep_channels_last(values: dict[str, Any], make: Make) -> None:
    batch = next(iter(assemble(config_of(make, values)).train))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in batch["features"])


def test_later_runs_find_the_shards(values: dict[str, Any], make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assemble(config_of(make, values))
    written = {path: path.stat().st_mtime_ns for path in shards_of(values)}
    capsys.readouterr()
    assemble(config_of(make, values, "other", lr=0.1))
    assert "0 shards computed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in shards_of(values)} == written


@pytest.mark.parametrize("change", [{"seed": 1}, {"backbone": {"name": "test_resnet", "weights": "none"}}])
def test_other_seeds_and_weights_have_their_own(
    values: dict[str, Any], make: Make, change: dict[str, Any]
) -> None:
    assemble(config_of(make, values))
    before = len(shards_of(values))
    assemble(config_of(make, {**values, **change}))
    assert len(shards_of(values)) == 2 * before


@pytest.mark.parametrize("damage", ["bit", "short", "foreign", "empty"])
def test_damaged_shards_are_built_anew(
    values: dict[str, Any], make: Make, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(make, values)
    assemble(config)
    first, second = shards_of(values)[:2]
    whole = first.read_bytes()
    broken = bytearray(whole)
    broken[-100] ^= 1
    first.write_bytes(
        {"bit": bytes(broken), "short": whole[:-64], "foreign": second.read_bytes(), "empty": b""}[damage]
    )
    capsys.readouterr()
    assemble(config)
    assert "1 shards computed" in capsys.readouterr().out
    assert first.read_bytes() == whole


def test_a_full_disk_trains_without_cache(
    values: dict[str, Any], make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        with files.atomic_path(Path(values["runs"]) / "shard.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(features.FeatureCache, "_write", fail)
    run = fit(config_of(make, values))
    assert "note: training without feature cache: can't write" in capsys.readouterr().out
    assert len(losses(run)) == 2
    assert not shards_of(values)


def test_too_little_space_is_said_before_the_first_shard(
    values: dict[str, Any], make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda folder: 1000)
    config = config_of(make, values)
    task, data, _ = fitting._assemble(config, pretrained=True)
    assert build.build_cache(config, task, data) is data
    assert "0.00 GB are free" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(
    values: dict[str, Any], make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    values["runs"].mkdir(parents=True)
    (values["runs"] / ".features").write_text("a file is in the way; root may write to read-only folders")
    fit(config_of(make, values))
    assert "note: training without feature cache: can't write" in capsys.readouterr().out


def test_the_limit_is_kept(values: dict[str, Any], make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(make, values, cache_limit=1e-5)
    task, data, _ = fitting._assemble(config, pretrained=True)
    assert build.build_cache(config, task, data) is data
    assert "strategy.cache_limit is 1e-05 GB" in capsys.readouterr().out
    assert not shards_of(values)


def test_the_limit_counts_other_caches_and_removes_the_unused(
    values: dict[str, Any], make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    first = assemble(config_of(make, values))
    (old,) = {path.parent for path in shards_of(values)}
    size = sum(path.stat().st_size for path in shards_of(values))
    limit = 1.5 * size / 1e9
    config = config_of(make, {**values, "seed": 1}, cache_limit=limit)
    task, data, _ = fitting._assemble(config, pretrained=True)
    assert build.build_cache(config, task, data) is data
    assert "of others that are in use; strategy.cache_limit is" in capsys.readouterr().out
    assert first.held is not None
    first.held.close()
    assemble(config)
    assert f"feature cache: removed {old} (" in capsys.readouterr().out
    assert not old.exists()
    assert len(shards_of(values)) == 3


def test_auto_repeats_no_sample_unasked(values: dict[str, Any], make: Make) -> None:
    config = config_of(make, values, cache="auto", views=None)
    task, data, _ = fitting._assemble(config, pretrained=True)
    assert build.build_cache(config, task, data) is data
    assert isinstance(assemble(config_of(make, values, cache="auto", views=1)), CachedData)


def test_two_processes_may_fill_it_at_once(values: dict[str, Any], make: Make) -> None:
    config = config_of(make, values)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=assemble, args=(config,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    written = {path: path.read_bytes() for path in shards_of(values)}
    assert len(written) == 3
    assert not list((values["runs"] / ".features").rglob("*.partial*"))
    assemble(config)
    assert {path: path.read_bytes() for path in shards_of(values)} == written


def test_features_beyond_float16_are_refused() -> None:
    layout = features.Layout((2, 2), ((1, 2, 2),), torch.float16, ())
    shard = features.Shard(np.zeros(layout.places(1)[1], np.uint8), [Item("a", "a", "a")], layout)
    with pytest.raises(CacheError, match="beyond the range"):
        shard.fill(0, [torch.full((1, 1, 2, 2), 1e6)], {"item": [Item("a", "a", "a")]})


def test_resumed_runs_go_on_as_uninterrupted_ones(
    values: dict[str, Any], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(config_of(make, values, "whole"))
    config = config_of(make, values, "parts")
    from visionsft.training.callbacks import Checkpoints

    save = Checkpoints.on_train_epoch_end

    def stop(self: Any, trainer: Any, module: Any) -> None:
        save(self, trainer, module)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(config)
    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", save)
    resumed = fit(config, resume=True)
    one, other = (load_model(run, "last").state_dict() for run in (whole, resumed))
    assert all(torch.equal(one[key], other[key]) for key in one)


# ---------------------------------------------------------------- image labels


@pytest.fixture
def labels(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The configuration of a classification of small pictures, dark and bright."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name, level in (("bright", 190), ("dark", 60)):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                image = rng.normal(level, 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{split}{index}.png"), image)
    augment = {"pipeline": "driving", "scale": [0.8, 1.3]}
    data = {"kind": "camera", "root": tmp_path / "pictures", "batch_size": 4, "workers": 0, "normalise": "data"}
    return {
        **values,
        "task": {"kind": "classification"},
        "data": {**data, "split": {"by": "folder"}, "augment": augment},
        "head": {"name": "linear", "dropout": 0.2},
    }


@pytest.mark.parametrize("part", [{}, {"kind": "layerwise", "last": 2, "backbone_lr_factor": 1.0}])
def test_image_labels_train_as_uncached(labels: dict[str, Any], make: Make, part: dict[str, Any]) -> None:
    cached = fit(config_of(make, labels, "cached", **part))
    assert shards_of(labels)
    plain = fit(config_of(make, labels, "plain", **{**part, "cache": "off", "views": None}))
    assert losses(cached) == pytest.approx(losses(plain), rel=2e-2)
    assert scored(cached) == pytest.approx(scored(plain), abs=1e-6)


def test_changed_labels_are_not_found_in_the_cache(
    labels: dict[str, Any], make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assemble(config_of(make, labels))
    root = labels["data"]["root"]
    for split in ("train", "val"):
        (root / split / "dark").rename(root / split / "aside")
        (root / split / "bright").rename(root / split / "dark")
        (root / split / "aside").rename(root / split / "bright")
    capsys.readouterr()
    batch = next(iter(assemble(config_of(make, labels)).train))
    assert "0 shards computed" not in capsys.readouterr().out
    assert batch["label"].dtype == torch.int64


def test_several_labels_are_kept(labels: dict[str, Any], make: Make) -> None:
    root = labels["data"]["root"]
    for split in ("train", "val"):
        names = sorted(str(path.relative_to(root)) for path in (root / split).rglob("*.png"))
        text = "\n".join(["image,a,b", *(f"{name},{int('dark' in name)},1" for name in names)])
        (root / f"{split}.csv").write_text(text)
    data = {**labels["data"], "layout": "csv", "images": ""}
    task = {"kind": "classification", "multi_label": True}
    batch = next(iter(assemble(config_of(make, {**labels, "data": data, "task": task})).train))
    dark = torch.tensor(["dark" in item.image for item in batch["item"]])
    assert torch.equal(batch["label"], torch.stack([dark, torch.ones(4)], 1).float())
