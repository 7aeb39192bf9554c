"""Configurations of classification: what they take, and mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionsft.config import CameraLabels, ClassificationConfig, GeoTiffLabels
from visionsft.errors import ConfigError
from visionsft.loading import dump_config, load_config

TEXT = """
task: {kind: classification}
data: {kind: camera, root: data}
backbone: {name: test_resnet, weights: none}
"""


def load(folder: Path, *overrides: str) -> ClassificationConfig:
    (folder / "job.yaml").write_text(TEXT)
    config = load_config(folder / "job.yaml", overrides)
    assert isinstance(config, ClassificationConfig)
    return config


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert isinstance(config.data, CameraLabels)
    assert config.head.name == "linear"
    assert not config.task.multi_label
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_patches_have_bands(tmp_path: Path) -> None:
    config = load(tmp_path, "data={kind: geotiff, root: d, bands: [a, b], use_bands: [b]}")
    assert isinstance(config.data, GeoTiffLabels)
    assert config.data.augment.pipeline == "nadir"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("head.name=fpn", r"head.name: 'fpn' is not allowed; allowed: linear, mlp, or a class of your own"),
        (
            "head={name: linear, hidden: 3}",
            r"head.hidden: unknown key for name 'linear'; it belongs to name 'mlp'",
        ),
        (
            "data.split={by: place, block: 100}",
            r"data.split.by: 'place' is not allowed; allowed: folder, list, scene",
        ),
        ("data.annotations=a.csv", r"data.annotations: is for layout 'csv' only; the layout is 'folders'"),
        ("data.layout=csvs", r"data.layout: 'csvs' is not allowed; allowed: folders, csv; nearest: csv"),
        ("data.balance=1.5", r"data.balance: given 1.5"),
        (
            "data.augment={pipeline: nadir, rare_class_crops: 0.5}",
            r"data.augment.rare_class_crops: unknown key",
        ),
        (
            "inference.tile=64",
            r"inference.tile: unknown key for this task; it belongs to task.kind segmentation",
        ),
        ("gates=[acuracy >= 1]", r"gates.0: given 'acuracy >= 1'; must name a metric; 'acuracy' is none; nearest"),
        ("gates=[mean_iou >= 0.5]", r"gates.0: given 'mean_iou >= 0.5'; must name a metric; 'mean_iou' is none"),
        ("task.multi_lable=true", r"task.multi_lable: unknown key; nearest: multi_label"),
        ("task.kind=clasification", r"task.kind: 'clasification' is not allowed.*nearest: classification"),
    ],
)
def test_mistakes(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, override)


@pytest.mark.parametrize("frozen", ["kind: feature_based, cache: ram", "kind: layerwise, last: 1, views: 3"])
def test_mixed_images_are_not_cached(tmp_path: Path, frozen: str) -> None:
    load(tmp_path, f"strategy={{{frozen}}}")
    with pytest.raises(ConfigError, match=r"strategy.(cache|views): is for features, which task.mixup doesn't mix"):
        load(tmp_path, f"strategy={{{frozen}}}", "task.mixup=0.2")
