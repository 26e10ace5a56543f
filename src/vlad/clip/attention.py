"""Attention over open_clip's own weights: query-key and value-value (and relatives), always fused.

Every function takes the ``nn.MultiheadAttention`` of an open_clip block and only reads its weights, so one
projection of q, k and v serves several attention branches.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LocalAttention", "attend", "local_attention", "project_out", "project_qkv"]

LocalAttention = Literal["vv", "kk", "qq", "qq+kk+vv"]


def project_qkv(attention: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Projects tokens to queries, keys and values.

    Args:
        attention: An open_clip block's attention module.
        x: Normalised tokens (B, N, W).

    Returns:
        Three tensors (B, heads, N, W / heads).
    """
    batch, count, width = x.shape
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    qkv = qkv.view(batch, count, 3, attention.num_heads, width // attention.num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes softmax(q kᵀ / √d + mask) v with the fused kernel and merges the heads.

    Args:
        q: Queries (B, heads, M, d).
        k: Keys (B, heads, N, d).
        v: Values (B, heads, N, d).
        mask: Optional additive mask, broadcast to (B, heads, M, N).

    Returns:
        Attended values (B, M, heads · d), before the output projection.
    """
    if mask is not None:
        mask = mask.to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def local_attention(kind: LocalAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes a self-self attention, which keeps patch tokens local.

    Args:
        kind: ``"vv"`` (CLIP Surgery, CLIP-AD, AnomalyCLIP), ``"kk"`` or ``"qq"``: which projection is
            compared with itself; ``"qq+kk+vv"``: the sum of the three, not their mean (Crane). The scale is that of
            the ordinary attention.
        q: Queries (B, heads, N, d).
        k: Keys (B, heads, N, d).
        v: Values (B, heads, N, d).

    Returns:
        Attended values (B, N, heads · d), before the output projection.
    """
    if kind == "qq+kk+vv":
        return attend(q, q, v) + attend(k, k, v) + attend(v, v, v)
    same = {"vv": v, "kk": k, "qq": q}[kind]
    return attend(same, same, v)


def project_out(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Applies the attention module's output projection to (B, N, W)."""
    return F.linear(x, attention.out_proj.weight, attention.out_proj.bias)
