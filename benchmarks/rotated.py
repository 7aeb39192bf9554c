"""What the overlap of turned boxes costs and errs, here and in its peers.

    python benchmarks/rotated.py [--quick]

Boxes with sides of 5 to 60 pixels, on a square of 1000: all pairs' IoU here, by torchvision (compiled) and by
shapely, which is the reference for `error` and, because it is slow, sees a tenth of them. `near_error` is for each box
and itself turned by 1e-7, the rounding of float32 angles. `vs_shapely` is our seconds over its, bound: 0.1. The
suppression is that of one class, with 40 objects found many times, and of boxes anywhere. One thread; the last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import shapely
import torch
from torch import Tensor
from torchvision.ops import box_iou

from visionsft.models.rotated import rotated_iou, rotated_nms, to_corners


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1000 boxes instead of 4000; under 50 s")
    count = 1000 if parser.parse_args().quick else 4000
    torch.set_num_threads(1)
    torch.manual_seed(0)
    first, second = make_boxes(count), make_boxes(count)
    result: dict[str, Any] = {"boxes": count}
    expected, seconds = timed(lambda: shapely_iou(first[: count // 10], second))
    result["shapely_seconds"] = round(10 * seconds, 3)
    turned = first + torch.tensor([0, 0, 0, 0, 1e-7], dtype=torch.float64)
    near = torch.stack([shapely_iou(a[None], b[None])[0, 0] for a, b in zip(first, turned, strict=True)])
    for name, function in (("own", rotated_iou), ("torchvision", torchvision_iou)):
        function(first[:10], second[:10])
        found, seconds = timed(lambda: function(first, second))  # noqa: B023
        result[f"{name}_seconds"] = round(seconds, 3)
        result[f"{name}_error"] = float((found[: count // 10] - expected).abs().max())
        result[f"{name}_near_error"] = float((function(first, turned).diag() - near).abs().max())
        print(f"{name:<12} {seconds:8.3f} s   error {result[f'{name}_error']:.1e}", flush=True)
    scores, labels = torch.rand(count), torch.zeros(count, dtype=torch.int64)
    often = first[:40].repeat(count // 40, 1) + torch.randn(count, 5) * torch.tensor([1, 1, 1, 1, 0.03])
    for name, boxes in (("anywhere", first), ("often", often)):
        kept, seconds = timed(lambda: rotated_nms(boxes, scores, labels, 0.3))  # noqa: B023
        result[f"nms_{name}_seconds"] = round(seconds, 4)
        print(f"nms {name:<10} {seconds:8.4f} s   {len(kept)} of {count} stay")
    result["vs_shapely"] = round(result["own_seconds"] / result["shapely_seconds"], 4)
    result["vs_torchvision"] = round(result["own_seconds"] / result["torchvision_seconds"], 4)
    result["versions"] = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "shapely")},
    }
    print(json.dumps(result))


def make_boxes(count: int) -> Tensor:
    """(N, 5) float64"""
    parts = torch.rand(count, 2) * 1000, 5 * 12 ** torch.rand(count, 2), torch.rand(count, 1) * 3.14 - 1.57
    return torch.cat(parts, 1).double()


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    value = work()
    return value, time.perf_counter() - start


def shapely_iou(first: Tensor, second: Tensor) -> Tensor:
    a, b = shapely.polygons(to_corners(first)[:, None].numpy()), shapely.polygons(to_corners(second).numpy())
    common = shapely.area(shapely.intersection(a, b))
    return torch.from_numpy(common / (shapely.area(a) + shapely.area(b) - common))


def torchvision_iou(first: Tensor, second: Tensor) -> Tensor:
    degrees = (torch.cat([each[:, :4], -each[:, 4:].rad2deg()], 1) for each in (first, second))
    return box_iou(*degrees, fmt="cxcywhr")


if __name__ == "__main__":
    main()
