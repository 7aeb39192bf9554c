"""visionsft: fine-tune pretrained timm backbones on satellite and driving imagery, from data to evidence.

>>> import visionsft
>>> run = visionsft.fit("configs/demo.yaml")
>>> print(visionsft.evaluate(run.path, split="test").table())

Names are imported when they are first used, so that ``import visionsft`` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionsft.config import Config
    from visionsft.errors import ConfigError, RunError, WriteError
    from visionsft.evaluation import evaluate
    from visionsft.evaluation.facts import read_facts
    from visionsft.evaluation.reporting import report
    from visionsft.loading import dump_config, load_config
    from visionsft.models import create_model
    from visionsft.prediction import export_onnx, predict, predict_scene, scene_bands
    from visionsft.preparation.auditing import audit
    from visionsft.preparation.embedding import embed
    from visionsft.preparation.exploring import draw_map, find_neighbours
    from visionsft.preparation.selection import select
    from visionsft.preparation.suggestion import suggest
    from visionsft.runs import Run
    from visionsft.training.fitting import fit
    from visionsft.training.loading import load_model
    from visionsft.training.tuning import tune

_HOMES = {
    "Config": "visionsft.config",
    "ConfigError": "visionsft.errors",
    "Run": "visionsft.runs",
    "RunError": "visionsft.errors",
    "WriteError": "visionsft.errors",
    "audit": "visionsft.preparation.auditing",
    "create_model": "visionsft.models",
    "draw_map": "visionsft.preparation.exploring",
    "dump_config": "visionsft.loading",
    "embed": "visionsft.preparation.embedding",
    "evaluate": "visionsft.evaluation",
    "export_onnx": "visionsft.prediction",
    "find_neighbours": "visionsft.preparation.exploring",
    "fit": "visionsft.training.fitting",
    "load_config": "visionsft.loading",
    "load_model": "visionsft.training.loading",
    "predict": "visionsft.prediction",
    "predict_scene": "visionsft.prediction",
    "read_facts": "visionsft.evaluation.facts",
    "report": "visionsft.evaluation.reporting",
    "scene_bands": "visionsft.prediction",
    "select": "visionsft.preparation.selection",
    "suggest": "visionsft.preparation.suggestion",
    "tune": "visionsft.training.tuning",
}

__all__ = [
    "Config",
    "ConfigError",
    "Run",
    "RunError",
    "WriteError",
    "audit",
    "create_model",
    "draw_map",
    "dump_config",
    "embed",
    "evaluate",
    "export_onnx",
    "find_neighbours",
    "fit",
    "load_config",
    "load_model",
    "predict",
    "predict_scene",
    "read_facts",
    "report",
    "scene_bands",
    "select",
    "suggest",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'visionsft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
