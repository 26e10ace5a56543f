"""Seamless blending of rectangles: the Poisson equation with fixed borders, solved directly and for a whole batch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["blend", "solve_poisson"]


@lru_cache(maxsize=64)
def _sines(count: int) -> Tensor:
    """Returns the discrete sine transform of the first kind (count, count), its own inverse."""
    n = torch.arange(1, count + 1, dtype=torch.float64)
    matrix = (2 / (count + 1)) ** 0.5 * torch.sin(torch.pi * n[:, None] * n[None, :] / (count + 1))
    return matrix.float()


def solve_poisson(right: Tensor) -> Tensor:
    """Solves Δu = f on rectangles, u being 0 all around them; the five-point Laplacian.

    Args:
        right: Right-hand sides f (..., h, w).

    Returns:
        Solutions u (..., h, w).
    """
    rows, columns = (_sines(n).to(right.device) for n in right.shape[-2:])
    values = [
        2 * torch.cos(torch.pi * torch.arange(1, n + 1, device=right.device) / (n + 1)) - 2 for n in right.shape[-2:]
    ]
    spectrum = rows @ right @ columns / (values[0][:, None] + values[1][None, :])
    return rows @ spectrum @ columns


def _laplacian_parts(patch: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a patch's differences down (..., h + 1, w) and to the right (..., h, w + 1), of its inner part."""
    return patch[..., 1:, 1:-1] - patch[..., :-1, 1:-1], patch[..., 1:-1, 1:] - patch[..., 1:-1, :-1]


def blend(target: Tensor, source: Tensor, mixed: Tensor) -> Tensor:
    """Blends one patch into another seamlessly: its gradients, the other's border (Pérez et al., 2003).

    Args:
        target: What is blended into (B, C, h + 2, w + 2), border included.
        source: What is blended in, of the same shape.
        mixed: Whether the steeper of both gradients is kept at each pixel (B,), bool; else the source's.

    Returns:
        The inner part of the blended patches (B, C, h, w); not confined to [0, 1].
    """
    fields = []
    for own, other in zip(_laplacian_parts(target), _laplacian_parts(source), strict=True):
        keep = mixed[:, None, None, None] & (own.abs() > other.abs())
        fields.append(torch.where(keep, own, other) - own)
    right = fields[0].diff(dim=-2) + fields[1].diff(dim=-1)
    return target[..., 1:-1, 1:-1] + solve_poisson(right)
