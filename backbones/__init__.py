"""Backbones: timm models as image -> feature maps, for any number of bands, with stages, freezing, LoRA."""

from __future__ import annotations

from backbones.attention import accelerate_attention
from backbones.backbone import Backbone
from backbones.catalogue import BackboneRow, LayerRow, describe_layers, list_backbones
from backbones.cutting import Cut, cut_backbone
from backbones.depthwise import accelerate_depthwise
from backbones.errors import BackboneError, WeightsError
from backbones.factory import create_backbone
from backbones.layers import at_layer, map_layers
from backbones.lora import add_lora, merge_lora
from backbones.stages import Stage
from backbones.weights import WeightsReport

__all__ = [
    "Backbone",
    "BackboneError",
    "BackboneRow",
    "Cut",
    "LayerRow",
    "Stage",
    "WeightsError",
    "WeightsReport",
    "accelerate_attention",
    "accelerate_depthwise",
    "add_lora",
    "at_layer",
    "create_backbone",
    "cut_backbone",
    "describe_layers",
    "list_backbones",
    "map_layers",
    "merge_lora",
]
