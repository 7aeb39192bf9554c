"""Strategies: which stages of the backbone are frozen in which epoch. The head always trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from backbones import Backbone, add_lora


class Strategy(ABC):
    """Decides what trains; `prepare` once on a new model, `freeze` at the start of every epoch."""

    def prepare(self, backbone: Backbone) -> None:  # noqa: B027 (most strategies change nothing)
        """Change the backbone's layers where the strategy needs it; call once, before loading a checkpoint."""

    def freeze(self, backbone: Backbone, epoch: int) -> bool:
        """Bring the frozen stages to what they are in this epoch (from 0); True if that changed anything."""
        frozen = self.frozen([stage.name for stage in backbone.stages()], epoch)
        if frozenset(frozen) == backbone.frozen:
            return False
        backbone.freeze(frozen)
        return True

    @abstractmethod
    def frozen(self, stages: Sequence[str], epoch: int) -> Sequence[str]:
        """Those of the backbone's stages (ordered from input to output) that don't train in this epoch."""


class FullStrategy(Strategy):
    """Every parameter trains."""

    def frozen(self, stages: Sequence[str], epoch: int) -> Sequence[str]:
        return ()


class FeatureBasedStrategy(Strategy):
    """The backbone is frozen as a whole."""

    def frozen(self, stages: Sequence[str], epoch: int) -> Sequence[str]:
        return stages


@dataclass(frozen=True)
class LayerwiseStrategy(Strategy):
    """Named stages, or the last N, train; the others are frozen."""

    stages: tuple[str, ...] | None = None
    last: int | None = None

    def prepare(self, backbone: Backbone) -> None:
        if self.stages is not None:
            backbone.freeze(self.stages)  # refuses names that don't exist, with the ones that do
            backbone.freeze(())

    def frozen(self, stages: Sequence[str], epoch: int) -> Sequence[str]:
        if self.last is not None:
            return stages[: max(0, len(stages) - self.last)]
        assert self.stages is not None
        return [name for name in stages if name not in self.stages]


@dataclass(frozen=True)
class GradualStrategy(Strategy):
    """Gradual unfreezing (Howard & Ruder 2018): from epoch `start` on, one more stage every `every` epochs."""

    every: int = 1
    start: int = 1

    def frozen(self, stages: Sequence[str], epoch: int) -> Sequence[str]:
        thawed = 0 if epoch < self.start else 1 + (epoch - self.start) // self.every
        return stages[: max(0, len(stages) - thawed)]


@dataclass(frozen=True)
class LoraStrategy(Strategy):
    """Low-rank adapters (Hu et al. 2021) train; the backbone's own parameters don't."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None

    def prepare(self, backbone: Backbone) -> None:
        add_lora(backbone, rank=self.rank, alpha=self.alpha, dropout=self.dropout, targets=self.targets)

    def freeze(self, backbone: Backbone, epoch: int) -> bool:
        return False  # add_lora has frozen all but the adapters

    def frozen(self, stages: Sequence[str], epoch: int) -> Sequence[str]:
        return stages
