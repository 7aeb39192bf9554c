"""Configurations of detection: which views `evaluate` and `predict` look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionsft import build
from visionsft.config import DetectionConfig
from visionsft.errors import ConfigError
from visionsft.loading import load_config


def load(folder: Path, kind: str, *overrides: str) -> DetectionConfig:
    text = f"task: {{kind: {kind}}}\ndata: {{kind: camera, root: data, layout: coco}}\n"
    (folder / "job.yaml").write_text(text + "backbone: {name: test_resnet, weights: none}\n")
    config = load_config(folder / "job.yaml", overrides)
    assert isinstance(config, DetectionConfig)
    return config


def test_views_of_a_detector(tmp_path: Path) -> None:
    plain = load(tmp_path, "detection")
    assert (build.views(plain), build.merge(plain)) == ({"scales": (1.0,), "symmetry": "none"}, "nms")
    config = load(tmp_path, "detection", "inference={symmetry: d4, scales: [1, 1.5], merge: wbf, tile: 64}")
    assert (build.views(config), build.merge(config)) == ({"scales": (1.0, 1.5), "symmetry": "d4"}, "wbf")
    assert build.tiles(config) == {"tile": 64, "overlap": None}


@pytest.mark.parametrize("override", ["symmetry=left_right", "scales=[2.0]"])
def test_outlines_have_one_view(tmp_path: Path, override: str) -> None:
    assert build.views(load(tmp_path, "instance_segmentation"))["symmetry"] == "none"
    with pytest.raises(ConfigError, match=r"inference\.\w+: is for boxes: outlines of several views aren't merged"):
        load(tmp_path, "instance_segmentation", f"inference.{override}")
