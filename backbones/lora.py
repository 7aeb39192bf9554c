"""LoRA: low-rank adapters beside a backbone's layers, which train in their stead and can be merged into them.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021 (arXiv:2106.09685), through peft.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from backbones.backbone import Backbone
from backbones.errors import BackboneError
from backbones.geometry import ceil_to, features
from backbones.weights import first_convolutions


def add_lora(
    backbone: Backbone,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
) -> None:
    """Give layers of the backbone adapters and freeze all else, in place.

    rank: inner width of each adapter, whose output is scaled by alpha / rank; it begins at zero.
    dropout: before the adapters only. targets: layer names, whole ("blocks.0.attn.qkv") or from a dot on
    ("qkv", "attn.proj"). Default: every linear layer and every ungrouped convolution after the first, which
    are qkv, proj, fc1 and fc2 of each block of a plain ViT.
    """
    _check(backbone, rank, alpha, dropout)
    available = _adaptable(backbone)
    layers = available if targets is None else _matching(available, targets)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise BackboneError("LoRA needs peft: pip install 'visionsft[lora]'") from error
    backbone.freeze()
    # peft scales by lora_alpha / r
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers)  # type: ignore[arg-type]
    inject_adapter_in_model(config, backbone.model)
    backbone.train(backbone.training)


def merge_lora(backbone: Backbone) -> None:
    """Add the adapters' products to the layers' weights and take the adapters out; all stays frozen."""
    if not backbone.has_adapters:
        raise BackboneError("the backbone has no LoRA adapters to merge")
    from peft.tuners.lora import LoraLayer

    model = backbone.model
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)  # type: ignore[attr-defined]
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config  # peft's own note of what it has put in
    backbone.train(backbone.training)


def _check(backbone: Backbone, rank: int, alpha: float, dropout: float) -> None:
    if backbone.has_adapters:
        raise BackboneError("the backbone has LoRA adapters already; merge_lora(backbone) first")
    if rank < 1:
        raise BackboneError(f"LoRA rank {rank}: expected 1 or more")
    if alpha <= 0:
        raise BackboneError(f"LoRA alpha {alpha}: expected more than 0")
    if not 0 <= dropout < 1:
        raise BackboneError(f"LoRA dropout {dropout}: expected at least 0 and less than 1")


def _adaptable(backbone: Backbone) -> list[str]:
    """Names of the layers that an adapter can stand beside: called in the forward pass, with a plain product.

    Left out: grouped convolutions, subclasses that change the weight or the padding (an adapter would not do
    the same), layers whose weight is used without calling them (BEiT's qkv), and what sees the image.
    """
    called: set[str] = set()
    model = copy.deepcopy(backbone.model).to("meta").eval()
    for name, layer in model.named_modules():
        plain = type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
        if plain and name not in first_convolutions(model):
            layer.register_forward_hook(partial(_note, called, name))
    geometry = backbone.geometry
    size = geometry.size or (ceil_to(2 * max(geometry.strides), geometry.multiple),) * 2
    with torch.no_grad():
        features(
            model,
            torch.empty(1, len(backbone.mean), *size, device="meta"),
            geometry.indices,
            norm=geometry.norm,
            final=geometry.final,
        )
    return [name for name, _ in model.named_modules() if name in called]


def _note(called: set[str], name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    called.add(name)


def _matching(available: Sequence[str], targets: Sequence[str]) -> list[str]:
    leaves = sorted({name.rpartition(".")[2] for name in available})
    chosen: set[str] = set()
    for target in targets:
        found = [name for name in available if name == target or name.endswith(f".{target}")]
        if not found:
            near = difflib.get_close_matches(target, [*leaves, *available], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BackboneError(
                f"no layer for LoRA is named {target!r}{hint} (last parts of names: {', '.join(leaves)})"
            )
        chosen.update(found)
    return sorted(chosen)
