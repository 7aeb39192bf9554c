"""The segmentation task with a plain lightning.Trainer, and the same parts in a plain PyTorch loop."""

from __future__ import annotations

from pathlib import Path

import lightning
import torch

from backbones import create_backbone
from datamodules import CameraFrameDataModule, ClassSpec
from visionsft.models import create_model
from visionsft.models.losses import build_loss
from visionsft.training.tasks import SegmentationModule


def make_data(frames: Path) -> CameraFrameDataModule:
    return CameraFrameDataModule(
        frames,
        images="images/{split}/*.png",
        labels="masks/{split}/{name}.png",
        classes=[ClassSpec("dark", (0,)), ClassSpec("bright", (1,))],
        normalise="data",
        batch_size=3,
        workers=0,
    )


def test_plain_trainer(frames: Path) -> None:
    data = make_data(frames)
    model = create_model(create_backbone("test_resnet", weights="none"), 2, head="linear")
    task = SegmentationModule(model, torch.nn.CrossEntropyLoss(ignore_index=255), class_names=["dark", "bright"])
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(task, datamodule=data)
    assert 0 <= float(trainer.callback_metrics["val/mean_iou"]) <= 1


def test_plain_loop_learns(frames: Path) -> None:
    data = make_data(frames)
    data.setup("fit")
    torch.manual_seed(0)
    model = create_model(create_backbone("test_resnet", weights="none"), 2, head="linear")
    loss_of = build_loss([{"name": "cross_entropy"}], class_counts=torch.ones(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = data.train_dataloader()
    losses = []
    for epoch in range(8):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            loss = loss_of(model(batch["image"]), batch["mask"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
