"""Parameter groups: which parameter trains at which rate, and the table that says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from visionsft.models import SegmentationModel


@dataclass(frozen=True)
class Rates:
    """Learning rates by depth and weight decay by kind of parameter."""

    lr: float = 1e-3
    """Of the head (and the pyramid before it)."""
    backbone_lr_factor: float = 0.1
    """Rate of the backbone's last stage, as a factor of `lr`."""
    layer_decay: float = 1.0
    """Factor from each stage to the one before it (Clark et al. 2020)."""
    weight_decay: float = 0.01
    """Of weights; norms and biases have none."""

    def of_stage(self, position: int, stages: int) -> float:
        """Learning rate of stage `position` (0 is next to the input) of `stages`."""
        return self.lr * self.backbone_lr_factor * self.layer_decay ** (stages - 1 - position)


Part = tuple[str, float, list[tuple[str, nn.Parameter]]]


def parts(model: SegmentationModel, rates: Rates) -> Iterator[Part]:
    """(name, learning rate, parameters) of the head and of each stage, from output to input."""
    stages = model.backbone.stages()  # type: ignore[operator]
    own = dict(model.backbone.named_parameters())
    yield "head", rates.lr, [*model.neck.named_parameters(), *model.head.named_parameters()]
    for position in reversed(range(len(stages))):
        stage = stages[position]
        named = [(name, own[name]) for name in stage.parameters]
        yield stage.name, rates.of_stage(position, len(stages)), named


def parameter_groups(
    model: SegmentationModel, rates: Rates, *, known: set[int] | None = None
) -> list[dict[str, Any]]:
    """Optimizer groups of everything that trains, except the parameters whose id() is in `known`.

    One group for weights and one for norms and biases of each part: {"params", "name", "lr", "base_lr",
    "weight_decay"}. A part's groups don't move when a part nearer to the input is unfrozen later.
    """
    groups = []
    for name, lr, named in parts(model, rates):
        trains = [(key, p) for key, p in named if p.requires_grad and id(p) not in (known or set())]
        for kind, decay in (("weights", rates.weight_decay), ("norms and biases", 0.0)):
            chosen = [p for key, p in trains if (kind == "weights") == _decays(key, p)]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "name": f"{name}: {kind}",
                        "lr": lr,
                        "base_lr": lr,
                        "weight_decay": decay,
                    }
                )
    return groups


def trainable_table(model: SegmentationModel, rates: Rates) -> str:
    """What trains, part by part from input to output, as text."""
    lines = [f"{'part':<24}{'parameters':>12}{'trainable':>12}{'learning rate':>16}"]
    total = training = 0
    for name, lr, named in reversed(list(parts(model, rates))):
        size = sum(p.numel() for _, p in named)
        trains = sum(p.numel() for _, p in named if p.requires_grad)
        total, training = total + size, training + trains
        rate = f"{lr:.3g}" if trains else "frozen"
        lines.append(f"{name:<24}{size:>12,}{trains:>12,}{rate:>16}")
    lines.append(f"{'all':<24}{total:>12,}{training:>12,}")
    return "\n".join(lines) + "\n"


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay spares norms and biases, and position embeddings and tokens, as timm does."""
    spared = ("pos_embed", "cls_token", "reg_token", "dist_token", "relative_position_bias_table")
    return parameter.ndim > 1 and not any(word in name for word in spared)
