"""Detection step: a training step of visionsft's detectors beside torchvision's own detector classes.

    python benchmarks/detection_step.py [--quick]

Both have the same backbone, pyramid, head layers, anchors, weights, images, objects and precision, and torchvision's
is spared the resizing (`_skip_resize`). The weights don't change and samples are drawn from the same seed, so that both
look at the same proposals, of which there would be more with one than with the other otherwise; that the losses agree
is checked. Of a pair of steps ours is the first one or the second one by turns; figures are medians of CPU seconds,
which other processes disturb less than they do the clock, and ratios the medians over the pairs: `ratio` is that of
CPU seconds, `clock` that of those on the clock.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from backbones import create_backbone
from datamodules.objects import Target
from visionsft.models import create_detector

NAME, CLASSES, SIZE, BATCH, OBJECTS, WIDTH = "tf_efficientnet_lite0", 8, 256, 2, 12, 128
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16}
HEADS = ("fcos", "retinanet", "faster_rcnn", "mask_rcnn")
"""Those that torchvision has, too."""
Step = Callable[[], float]
Losses = Callable[[], dict[str, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps; under 50 s")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--pairs", type=int, default=20, help="of steps")
    given = parser.parse_args()
    quick, steps = given.quick, 3 if given.quick else given.pairs
    figures: dict[str, dict[str, float]] = {}
    for head in given.heads:
        for precision, dtype in PRECISIONS.items():
            if quick and (head == "mask_rcnn" or (dtype and head != "fcos")):
                continue
            figures[f"{head} {precision}"] = measure(head, dtype, steps)
            print(f"{head:<12} {precision:<11} {describe(figures[f'{head} {precision}'])}", flush=True)
    ratios = {name: found["ratio"] for name, found in figures.items()}
    print(
        json.dumps(
            {
                "vs_torchvision": round(statistics.median(ratios.values()), 3),
                "ratios": ratios,
                "figures": figures,
                "model": NAME,
                "width": WIDTH,
                "batch": BATCH,
                "size": SIZE,
                "objects": OBJECTS,
                "steps": steps,
                "threads": torch.get_num_threads(),
                "versions": {"python": platform.python_version(), "torch": torch.__version__,
                             "torchvision": torchvision.__version__, "timm": timm.__version__},
            }
        )
    )  # fmt: skip


def describe(found: dict[str, float]) -> str:
    return (
        f"visionsft {found['step_s']:.3f} s   torchvision {found['torchvision_s']:.3f} s   "
        f"ratio {found['ratio']:.3f}   by the clock {found['clock']:.3f}"
    )


def measure(head: str, dtype: torch.dtype | None, pairs: int) -> dict[str, float]:
    """Median CPU seconds a step of either, and the median ratios of neighbouring steps."""
    image, targets = make_batch()
    model, losses = make_ours(head, image, targets)
    ours = make_step(model, losses, dtype)
    theirs = make_step(*make_torchvision(head, image, targets, model), dtype)
    own_loss, other_loss = ours(), theirs()
    assert abs(own_loss - other_loss) < 0.02 * other_loss, f"losses {own_loss:.4f} and {other_loss:.4f}"
    rows: dict[Step, list[tuple[float, float]]] = {ours: [], theirs: []}
    for turn in range(pairs):
        for step in (ours, theirs) if turn % 2 else (theirs, ours):
            rows[step].append(timed(step))
    own, other = rows[ours], rows[theirs]
    ratios = [[a / b for a, b in zip(*each, strict=True)] for each in zip(own, other, strict=True)]
    cpu, clock = (statistics.median(column) for column in zip(*ratios, strict=True))
    seconds = (statistics.median(cpu for cpu, _ in each) for each in (own, other))
    return {
        **dict(zip(("step_s", "torchvision_s"), (round(each, 4) for each in seconds), strict=True)),
        "ratio": round(cpu, 3),
        "clock": round(clock, 3),
        "loss": round(own_loss, 4),
        "torchvision_loss": round(other_loss, 4),
    }


def timed(step: Step) -> tuple[float, float]:
    """CPU seconds, and seconds."""
    cpu, clock = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu, time.perf_counter() - clock


def make_step(model: nn.Module, losses: Losses, dtype: torch.dtype | None) -> Step:
    """A step that changes nothing, but takes as long as one that does; it returns the loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step() -> float:
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = torch.stack([each.float() for each in losses().values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def make_ours(head: str, image: Tensor, targets: list[Target]) -> tuple[nn.Module, Losses]:
    torch.manual_seed(0)
    backbone = create_backbone(NAME, weights="none")
    model = create_detector(backbone, CLASSES, head=head, options={"width": WIDTH})
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sizes = [(SIZE, SIZE)] * len(image)
    return model, lambda: model.losses(image, sizes, targets)


class PyramidBackbone(nn.Module):
    """The backbone and pyramid as torchvision's detectors want them."""

    def __init__(self, first: int, extra: Any) -> None:
        super().__init__()
        self.body = create_backbone(NAME, weights="none")
        self.first, self.out_channels = first, WIDTH
        self.fpn = FeaturePyramidNetwork(list(self.body.channels[first:]), WIDTH, extra)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: (B, 3, H, W) -> levels by name."""
        named = OrderedDict((str(i), each) for i, each in enumerate(self.body(image)[self.first :]))
        levels: dict[str, Tensor] = self.fpn(named)
        return levels


def make_torchvision(
    head: str, image: Tensor, targets: list[Target], ours: nn.Module
) -> tuple[nn.Module, Losses]:
    """With the weights of ours."""
    one_stage = head in ("fcos", "retinanet")
    options: Any = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "_skip_resize": True}
    if one_stage:
        backbone = PyramidBackbone(1, LastLevelP6P7(WIDTH, WIDTH))
    else:
        backbone = PyramidBackbone(0, LastLevelMaxPool())
        sizes = tuple((8 * stride,) for stride in (4, 8, 16, 32, 64))
        options["rpn_anchor_generator"] = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    if head == "mask_rcnn":
        options["mask_head"] = MaskRCNNHeads(WIDTH, (WIDTH,) * 4, 1)
    cls: Any = {"fcos": FCOS, "retinanet": RetinaNet, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}[head]
    model = cls(backbone, CLASSES + (not one_stage), **options)
    if head == "mask_rcnn":  # its own would be 256 wide, and can't be given together with the classes' number
        model.roi_heads.mask_predictor = MaskRCNNPredictor(WIDTH, WIDTH, CLASSES + 1)
    model.load_state_dict({_name(name): values for name, values in ours.state_dict().items()})
    model.train().to(memory_format=torch.channels_last)
    images = list(image)
    plain = [{**target, "labels": target["labels"] + (not one_stage)} for target in targets]
    return model, lambda: model(images, plain)


def _name(name: str) -> str:
    """Of a parameter of ours in torchvision's model."""
    for own, other in (("head.pyramid.fpn.", "backbone.fpn."), ("head.detector.", ""), ("head.", "")):
        if name.startswith(own):
            return other + name.removeprefix(own)
    return name.replace("backbone.", "backbone.body.", 1)


def make_batch() -> tuple[Tensor, list[Target]]:
    """Noise, and objects of 10 to 100 pixels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator).to(memory_format=torch.channels_last)
    return image, [make_target(generator) for _ in range(BATCH)]


def make_target(generator: torch.Generator) -> Target:
    sides = 10 + 90 * torch.rand(OBJECTS, 2, generator=generator)
    corners = (SIZE - sides) * torch.rand(OBJECTS, 2, generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=1)
    rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)
    x1, y1, x2, y2 = boxes[..., None, None].unbind(1)
    return Target(
        boxes=boxes,
        labels=torch.randint(0, CLASSES, (OBJECTS,), generator=generator),
        ignored=torch.empty(0, 4),
        masks=(columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2),
    )


if __name__ == "__main__":
    main()
