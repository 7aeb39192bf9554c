"""Strategies: which parts of a pretrained model train, from when on, and how fast."""

from visionsft.training.strategies.freezing import (
    FeatureBasedStrategy,
    FullStrategy,
    GradualStrategy,
    LayerwiseStrategy,
    LoraStrategy,
    Strategy,
)
from visionsft.training.strategies.groups import Rates, parameter_groups, trainable_table
from visionsft.training.strategies.schedules import Schedule

STRATEGIES: dict[str, type[Strategy]] = {
    "full": FullStrategy,
    "feature_based": FeatureBasedStrategy,
    "layerwise": LayerwiseStrategy,
    "gradual": GradualStrategy,
    "lora": LoraStrategy,
}

__all__ = [
    "STRATEGIES",
    "FeatureBasedStrategy",
    "FullStrategy",
    "GradualStrategy",
    "LayerwiseStrategy",
    "LoraStrategy",
    "Rates",
    "Schedule",
    "Strategy",
    "parameter_groups",
    "trainable_table",
]
