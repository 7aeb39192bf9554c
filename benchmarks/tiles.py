"""Tiles: what their size, their overlap and blending cost and bring, on a real scene with a trained run.

    python benchmarks/tiles.py runs/landsat ../shared/data/landsat/LC08_224078_20200518.tif [--quick]

The reference is the scene in one piece (at most 4096 x 4096 pixels): `differ` is the share of its measured pixels
that get another class in tiles, `repeated` what is computed for each pixel of the scene. 'crop' takes each pixel
from the nearer tile instead of blending the two.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from visionsft.prediction import SceneOptions, ScenePredictor
from visionsft.prediction.blending import Axis
from visionsft.runs import Run
from visionsft.training.loading import load_run

WHOLE = 4096
Ramp = Callable[[Axis], Tensor]


def crop(axis: Axis) -> Tensor:
    """Each pixel of an overlap from the nearer tile."""
    return (torch.arange(axis.overlap) >= axis.overlap / 2).float()


WAYS: dict[str, Ramp] = {"blend": Axis.ramp, "crop": crop}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("scene")
    parser.add_argument("--quick", action="store_true", help="tiles of 512 only; under 50 s")
    given = parser.parse_args()
    loaded = load_run(Run.open(given.run), "best")
    whole, _ = predict(ScenePredictor(loaded, SceneOptions(tile=WHOLE, backend="torch")), given.scene)
    rows = []
    for tile in (512,) if given.quick else (256, 512, 1024):
        for overlap in (0, 32, 64, 128):
            predictor = ScenePredictor(loaded, SceneOptions(tile=tile, overlap=overlap, backend="torch"))
            row: dict[str, object] = {"tile": tile, "overlap": overlap}
            for name, ramp in WAYS.items() if overlap else [("blend", Axis.ramp)]:
                with patch.object(Axis, "ramp", ramp):
                    classes, repeated = predict(predictor, given.scene)
                row[name] = round(float((classes != whole)[whole != 255].mean()), 4)
            rows.append({**row, "repeated": round(repeated, 3)})
            print(rows[-1], flush=True)
    print(
        json.dumps(
            {
                "differ": rows,
                "scene": whole.shape,
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
            }
        )
    )


def predict(predictor: ScenePredictor, path: str) -> tuple[np.ndarray, float]:
    """(H, W) class map, and pixels computed for each of its own."""
    source = predictor.open(path)
    grid = predictor.plan(source)
    classes = np.concatenate([band.classes for band in predictor.bands(source, grid)])
    return classes, grid.pixels / classes.size


if __name__ == "__main__":
    main()
