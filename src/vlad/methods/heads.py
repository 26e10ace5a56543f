"""Trained linear layers whose outputs are compared with text by cosine: SDP+, APRIL-GAN and their like."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.similarity import normalize

__all__ = ["cosine_margin"]


def cosine_margin(layer: nn.Module, tokens: Tensor, toward: Tensor) -> Tensor:
    """Projects tokens by a linear layer, scales them to length 1 and multiplies them with a vector of their image.

    Gradients reach the layer, and the tokens where they ask for them; not ``toward``. The scaled projections are never
    written down, neither on the way forward nor back: beside the layer's own two products it costs a few passes over
    its output, where normalising under autograd costs as much again as those products.

    Args:
        layer: A ``torch.nn.Linear`` from W to D.
        tokens: Tokens (B, …, W).
        toward: A vector per image (B, D), float32.

    Returns:
        Products (B, …), float32.
    """
    kind = tokens.device.type
    if torch.is_autocast_enabled(kind):
        projected = normalize(layer(tokens).float())
        with torch.autocast(kind, enabled=False):
            return torch.einsum("b...d,bd->b...", projected, toward)
    assert isinstance(layer, nn.Linear)
    flat = tokens.flatten(1, -2)
    return _CosineMargin.apply(flat, layer.weight, layer.bias, toward).unflatten(1, tokens.shape[1:-1])


class _CosineMargin(torch.autograd.Function):
    """m = ⟨y, t⟩ / ‖y‖ with y = W x + b, whose gradient by y is t / ‖y‖ − m y / ‖y‖²."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, toward: Tensor) -> Tensor:
        y = F.linear(x, weight, bias).float()
        norm = torch.linalg.vector_norm(y, dim=-1).clamp_min(1e-12)
        margin = (y @ toward[..., None])[..., 0] / norm
        ctx.save_for_backward(x, weight, y, norm, margin, toward)
        return margin

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y, norm, margin, toward = ctx.saved_tensors
        along = grad / norm
        radial = y * (along * margin / norm)[..., None]
        by_weight = toward.T @ torch.bmm(along[:, None], x.float())[:, 0] - radial.flatten(0, 1).T @ x.flatten(0, 1)
        by_bias = (along.sum(1, keepdim=True) * toward).sum(0) - radial.sum((0, 1))
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = (along[..., None] * toward[:, None] - radial) @ weight.float()
        return by_x, by_weight, by_bias, None
