"""Self-attention whose backward pass isn't slow on a CPU.

PyTorch's fused attention takes 4 to 6 times as long backwards as the matrix products that it consists of (measured
in bfloat16, batch 8, 6 heads, 325 tokens: 40 ms against 10 to 12; forwards both take 8). It saves the memory of
the (tokens x tokens) probabilities, which matters for long sequences only.
"""

from __future__ import annotations

from timm.layers import Attention
from torch import Tensor, nn

from backbones.gradients import wants_gradient

TOKENS = 640
"""Up to so many (384 x 384 pixels in patches of 16) the probabilities are kept: 5 MB an image and block of 6 heads."""


class _Attention(Attention):
    """timm's Attention that `accelerate_attention` has changed; the parameters are the same."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x: (B, tokens, C) -> (B, tokens, C)."""
        apart = x.device.type == "cpu" and x.shape[1] <= TOKENS and wants_gradient(self, x)
        self.fused_attn = not apart  # type: ignore[misc]
        return super().forward(x, attn_mask, is_causal)  # type: ignore[no-any-return]


def accelerate_attention(model: nn.Module) -> int:
    """Change the attention of plain ViTs in `model` in place; parameters and keys stay. Returns how many."""
    changed = 0
    for module in model.modules():
        if type(module) is Attention and module.fused_attn:
            module.__class__ = _Attention
            changed += 1
    return changed
