"""Accelerated attention against timm's own."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import Attention

from backbones import accelerate_attention, attention


def pair(**options: bool) -> tuple[Attention, Attention]:
    torch.manual_seed(0)
    plain = Attention(32, num_heads=4, **options)
    fast = copy.deepcopy(plain)
    assert accelerate_attention(fast) == 1
    return plain, fast


@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": True, "qk_norm": True, "norm_layer": torch.nn.LayerNorm}]
)
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_gradients_are_timms(
    options: dict[str, bool], masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On either side of the number of tokens up to which it is not fused."""
    plain, fast = pair(**options)
    x = torch.randn(2, 11, 32)
    mask = torch.rand(11, 11) < 0.7 if masked else None
    if mask is not None:
        mask.fill_diagonal_(True)
    slope = torch.randn(x.shape)
    for tokens, fused in [(11, False), (10, True)]:
        monkeypatch.setattr(attention, "TOKENS", tokens)
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        plain.zero_grad()
        fast.zero_grad()
        expected, found = plain(one, attn_mask=mask), fast(other, attn_mask=mask)
        assert fast.fused_attn is fused
        torch.testing.assert_close(found, expected)
        expected.backward(slope)
        found.backward(slope)
        torch.testing.assert_close(other.grad, one.grad)
        for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_what_does_not_train_stays_fused() -> None:
    _, fast = pair()
    x = torch.randn(2, 11, 32)
    fast(x)
    assert not fast.fused_attn
    with torch.no_grad():
        fast(x)
    assert fast.fused_attn
    fast.requires_grad_(False)
    fast(x)
    assert fast.fused_attn
    fast(x.requires_grad_())  # an adapter before it, say
    assert not fast.fused_attn


def test_model_keeps_keys_and_outputs() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0).eval()
    fast = copy.deepcopy(model)
    assert accelerate_attention(fast) == len(model.blocks)
    assert accelerate_attention(fast) == 0
    assert list(model.state_dict()) == list(fast.state_dict())
    image = torch.randn(1, 3, *model.default_cfg["input_size"][1:])
    with torch.no_grad():
        assert torch.equal(model(image), fast(image))
    torch.testing.assert_close(fast(image), model(image))
    copy.deepcopy(fast)
