"""What heads and losses cost in a training step, beside the backbone that they train.

    python benchmarks/heads.py [--quick]

For every built-in head on tf_efficientnet_lite0 (random weights), camera frames of 480x360 in batches of 8,
11 classes, bfloat16 autocast and channels_last: seconds of a whole step (forward, loss, backward, SGD), of
the head alone on feature maps, and of the backbone alone (both forward and backward). For every loss: seconds
forward and backward on full-size logits, beside PyTorch's or segmentation_models_pytorch's (smp's not with
--quick). Each figure is the best of several repetitions. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import create_backbone
from backbones.depthwise import accelerate_depthwise
from visionsft.models import HEADS, build_loss, create_model

BACKBONE, SIZE, CLASSES = "tf_efficientnet_lite0", (360, 480), 11


def best(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one to warm up."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def backward(outputs: list[Tensor]) -> None:
    """Backward pass with a gradient of ones."""
    torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])


def measure_heads(image: Tensor, mask: Tensor, repeats: int) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds of the backbone alone, and for each head its figures."""
    backbone = create_backbone(BACKBONE, weights="none")
    accelerate_depthwise(backbone)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @autocast()
    def extract() -> list[Tensor]:
        return backbone(image)

    backbone_seconds = best(lambda: backward(extract()), repeats)
    features = [f.detach().requires_grad_() for f in extract()]
    print(f"backbone alone: {backbone_seconds:.3f} s; maps {[tuple(f.shape) for f in features]}")
    figures = {}
    for name in HEADS:
        model = create_model(backbone, CLASSES, head=name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        figures[name] = measure_head(model.head, features, repeats)
        figures[name]["step_s"] = best(step_of(model, image, mask), repeats)
        figures[name]["share"] = figures[name]["head_s"] / (figures[name]["head_s"] + backbone_seconds)
        values = "  ".join(f"{key} {value:.4g}" for key, value in figures[name].items())
        print(f"{name:10} {values}", flush=True)
    return backbone_seconds, figures


def measure_head(head: nn.Module, features: list[Tensor], repeats: int) -> dict[str, float]:
    """Parameters of a head and seconds of its forward and backward pass on feature maps."""

    @autocast()
    def classify() -> list[Tensor]:
        return [head(features)]

    seconds = best(lambda: backward(classify()), repeats)
    return {"parameters": sum(p.numel() for p in head.parameters()), "head_s": seconds}


def step_of(model: nn.Module, image: Tensor, mask: Tensor) -> Callable[[], object]:
    """A whole training step."""
    loss = build_loss([{"name": "cross_entropy"}], class_counts=torch.ones(CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        with autocast():
            logits = model(image)
        loss(logits, mask).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_losses(mask: Tensor, repeats: int, *, peers: bool) -> dict[str, float]:
    """Seconds forward and backward of each loss, and of what it is compared with."""
    low = torch.randn(len(mask), CLASSES, SIZE[0] // 4, SIZE[1] // 4)
    logits = F.interpolate(low, size=SIZE, mode="bilinear").requires_grad_()
    counts = torch.ones(CLASSES)
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        name: build_loss([{"name": name}], class_counts=counts)
        for name in ("cross_entropy", "dice", "focal", "lovasz")
    }
    losses["cross_entropy+lovasz"] = build_loss(
        [{"name": "cross_entropy"}, {"name": "lovasz"}], class_counts=counts
    )
    losses["torch cross_entropy"] = nn.CrossEntropyLoss(ignore_index=255)
    if peers:
        losses["smp dice"] = smp.losses.DiceLoss("multiclass", ignore_index=255)
        losses["smp focal"] = smp.losses.FocalLoss("multiclass", ignore_index=255)
        losses["smp lovasz"] = smp.losses.LovaszLoss("multiclass", ignore_index=255)
    figures = {}
    for name, loss in losses.items():
        figures[name] = best(lambda loss=loss: loss(logits, mask).backward(), repeats)  # type: ignore[misc]
        print(f"{name:22} {figures[name]:.3f} s", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="What heads and losses cost in a training step.")
    parser.add_argument(
        "--quick", action="store_true", help="under 50 s: batches of 2, one repetition, no smp losses"
    )
    quick = parser.parse_args().quick
    batch, repeats = (2, 1) if quick else (8, 5)
    torch.manual_seed(0)
    image = torch.randn(batch, 3, *SIZE).contiguous(memory_format=torch.channels_last)
    mask = torch.randint(0, CLASSES, (batch, *SIZE))
    mask[:, :8] = 255
    backbone_seconds, heads = measure_heads(image, mask, repeats)
    losses = measure_losses(mask, repeats, peers=not quick)
    result = {
        "backbone": BACKBONE, "batch": batch, "size": SIZE, "classes": CLASSES, "repeats": repeats,
        "backbone_s": backbone_seconds, "heads": heads, "losses_s": losses,
        "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, "timm": timm.__version__, "smp": smp.__version__,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
