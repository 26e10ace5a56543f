"""Position embeddings at other grids than they were learned for."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PositionCache", "resize_positions"]


def resize_positions(
    positions: Tensor, grid: tuple[int, int], *, mode: str, antialias: bool, offset: float = 0.0, prefix: int = 1
) -> Tensor:
    """Interpolates a square position embedding to another grid; the rows of class token and registers are kept.

    Args:
        positions: Position embedding (prefix + g², W), class token first.
        grid: Rows and columns wanted.
        mode: ``"bicubic"`` or ``"bilinear"``; corners are not aligned.
        antialias: Whether torch's antialiased kernel is used. It changes the numbers even when enlarging.
        offset: Added to rows and columns for the scale, which moves the sampling points: 0.1 in DINOv2 without
            registers.
        prefix: Rows that belong to no patch.

    Returns:
        Position embedding (prefix + rows · columns, W).
    """
    side = round((positions.shape[0] - prefix) ** 0.5)
    if grid == (side, side):
        return positions
    patch = positions[prefix:].T.reshape(1, -1, side, side).float()
    if offset:
        scale = ((grid[0] + offset) / side, (grid[1] + offset) / side)
        patch = F.interpolate(patch, scale_factor=scale, mode=mode, align_corners=False, antialias=antialias)
    else:
        patch = F.interpolate(patch, size=grid, mode=mode, align_corners=False, antialias=antialias)
    assert tuple(patch.shape[-2:]) == grid
    return torch.cat([positions[:prefix], patch.flatten(2)[0].T.to(positions.dtype)])


class PositionCache:
    """Position embeddings by grid, each resized once: the tower is frozen."""

    def __init__(self, resize: Callable[[Tensor, tuple[int, int]], Tensor]) -> None:
        self.resize = resize
        self._found: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def of(self, own: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the embedding of a grid, in the dtype and on the device of the tower's own."""
        found = self._found.get(grid)
        if found is None or (found.device, found.dtype) != (own.device, own.dtype):
            with torch.inference_mode(False):  # what is remembered must serve training too
                found = self.resize(own, grid)
            if not torch.compiler.is_compiling():  # a tracer's tensors have no values
                self._found[grid] = found
        return found
