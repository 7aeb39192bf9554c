"""What trains, when and at which rate."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from backbones import BackboneError, create_backbone
from visionsft.models import SegmentationModel, create_model
from visionsft.training.strategies import (
    FeatureBasedStrategy,
    FullStrategy,
    GradualStrategy,
    LayerwiseStrategy,
    LoraStrategy,
    Rates,
    Schedule,
    Strategy,
    parameter_groups,
    trainable_table,
)
from visionsft.training.tasks import Optimization, SegmentationModule

NAMES = ["test_efficientnet", "test_convnext", "test_vit"]


def build(name: str, strategy: Strategy) -> SegmentationModel:
    torch.manual_seed(0)
    backbone = create_backbone(name, weights="none", drop_path_rate=0.3)
    strategy.prepare(backbone)
    model = create_model(backbone, 3)
    strategy.freeze(backbone, epoch=0)
    return model


def ids(groups: list[dict]) -> set[int]:
    return {id(p) for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "strategy", [FeatureBasedStrategy(), LayerwiseStrategy(last=2), LoraStrategy(rank=2)]
)
def test_frozen_parts_do_not_change_by_a_bit(name: str, strategy: Strategy) -> None:
    """Training steps in train mode, through the task's own optimizer: parameters and buffers both."""
    model = build(name, strategy)
    task = SegmentationModule(
        model, nn.CrossEntropyLoss(), class_names="abc", optimization=Optimization(strategy, Rates(lr=0.1))
    )
    optimizer = task.configure_optimizers()
    trained = ids(optimizer.param_groups)
    kept = {key: p.detach().clone() for key, p in model.backbone.named_parameters() if id(p) not in trained}
    assert kept
    buffers = frozen_buffers(model)
    before = copy.deepcopy(buffers)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        task.loss(task(torch.randn(2, 3, 64, 64)), torch.randint(0, 3, (2, 64, 64))).backward()
        optimizer.step()
    now = dict(model.backbone.named_parameters())
    for key, tensor in kept.items():
        assert torch.equal(now[key], tensor), key
        assert now[key].grad is None
    for key, tensor in frozen_buffers(model).items():
        assert torch.equal(tensor, before[key]), key


def frozen_buffers(model: SegmentationModel) -> dict[str, Tensor]:
    """Buffers beside parameters none of which trains."""
    found = {}
    for name, module in model.backbone.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            found.update({f"{name}.{key}": value for key, value in module.named_buffers(recurse=False)})
    return found


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_each_trained_parameter_once(name: str) -> None:
    model = build(name, FullStrategy())
    groups = parameter_groups(model, Rates())
    flat = [id(p) for group in groups for p in group["params"]]
    assert sorted(flat) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in groups:
        assert group["weight_decay"] == 0 or all(p.ndim > 1 for p in group["params"])
        assert group["lr"] == group["base_lr"]


def test_rates_fall_from_head_to_stem() -> None:
    model = build("test_efficientnet", FullStrategy())
    rates = Rates(lr=1.0, backbone_lr_factor=0.5, layer_decay=0.9)
    groups = {group["name"].split(":")[0]: group["lr"] for group in parameter_groups(model, rates)}
    stages = [stage.name for stage in model.backbone.stages()]
    assert groups["head"] == 1.0
    for index, stage in enumerate(stages):
        if stage in groups:
            assert groups[stage] == pytest.approx(0.5 * 0.9 ** (len(stages) - 1 - index))


@pytest.mark.parametrize("name", NAMES)
def test_gradual_unfreezes_from_the_output(name: str) -> None:
    strategy = GradualStrategy(every=2, start=1)
    model = build(name, strategy)
    stages = [stage.name for stage in model.backbone.stages()]
    assert model.backbone.frozen == frozenset(stages)
    known = ids(parameter_groups(model, Rates()))
    assert strategy.freeze(model.backbone, epoch=1)
    assert not strategy.freeze(model.backbone, epoch=2)
    assert model.backbone.frozen == frozenset(stages[:-1])
    new = parameter_groups(model, Rates(), known=known)
    assert ids(new) == {
        id(p) for n, p in model.backbone.named_parameters() if n in model.backbone.stages()[-1].parameters
    }
    strategy.freeze(model.backbone, epoch=1000)
    assert not model.backbone.frozen


def test_layerwise_refuses_an_unknown_stage() -> None:
    with pytest.raises(BackboneError, match=r"blocks\.4"):
        build("test_efficientnet", LayerwiseStrategy(stages=("blocks.44",)))


def test_schedule_warms_up_and_ends_at_zero() -> None:
    schedule = Schedule("cosine", warmup=0.1)
    factors = [schedule.factor(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(factors) == 1.0
    assert factors[100] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert Schedule("constant", warmup=0).factor(99, 100) == 1.0


def test_table_counts_what_trains() -> None:
    table = trainable_table(build("test_efficientnet", LayerwiseStrategy(last=1)), Rates())
    assert "frozen" in table
    assert table.splitlines()[-1].startswith("all")
