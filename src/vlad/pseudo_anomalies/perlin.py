"""Perlin noise for whole batches, at any size: the blotches that pseudo-anomalies are made in.

The published recipe (DRAEM, DeSTSeg) builds the noise by repeating lattice cells, so that the image's side must be
divisible by their number: 336 fails at 32 cells, 518 at 4 and above. Here the noise is a function of the place, which
is looked up at every pixel; of large images at every pixel of a smaller one, as the noise is smooth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.pseudo_anomalies.random import Random

__all__ = ["MAX_CELLS", "perlin_masks", "perlin_noise", "plane"]

MAX_CELLS = 32
_FINE = 10 * MAX_CELLS  # pixels a side that noise is computed at: ten in the smallest cell


def plane(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the rows' and columns' pixel centres (S, 1) and (1, S), in [0, 1]."""
    line = (torch.arange(size, device=device) + 0.5) / size
    return line[:, None], line[None, :]


def perlin_noise(size: int, cells: Tensor, random: Random, *, turn: Tensor | None = None) -> Tensor:
    """Draws Perlin noise.

    Args:
        size: Side S in pixels.
        cells: Lattice cells along rows and columns (B, 2), int64, from 1 to 32.
        random: Source of the lattice's gradients.
        turn: Angle in radians that the noise is turned by (B,); beyond its edges it is 0.

    Returns:
        Noise (B, S, S), about within [-1, 1].
    """
    noise = _noise(min(size, _FINE), cells, random, turn)
    if size <= _FINE:
        return noise
    return F.interpolate(noise[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]


def _noise(size: int, cells: Tensor, random: Random, turn: Tensor | None) -> Tensor:
    """Looks the noise up at every pixel."""
    batch = len(cells)
    angle = random.uniform(0, 2 * torch.pi, batch, MAX_CELLS + 1, MAX_CELLS + 1)
    y, x = (axis[None] for axis in plane(size, cells.device))
    inside = None
    if turn is not None:
        cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
        y, x = 0.5 + cos * (y - 0.5) - sin * (x - 0.5), 0.5 + sin * (y - 0.5) + cos * (x - 0.5)
        inside = (y >= 0) & (y < 1) & (x >= 0) & (x < 1)
        y, x = y.clamp(0, 1 - 1e-6), x.clamp(0, 1 - 1e-6)
    y, x = (axis.expand(batch, size, size) * n[:, None, None] for axis, n in zip((y, x), cells.T, strict=True))
    row, column = y.floor(), x.floor()
    down, right = y - row, x - column
    side = MAX_CELLS + 1
    place = (row * side + column).int() + torch.arange(batch, dtype=torch.int32, device=y.device)[
        :, None, None
    ] * side**2
    gradients = torch.stack([angle.sin(), angle.cos()], dim=-1).view(-1, 2)

    def corner(dy: int, dx: int) -> Tensor:
        slope = F.embedding(place + (dy * side + dx), gradients)
        return slope[..., 0] * (down - dy) + slope[..., 1] * (right - dx)

    fade_y, fade_x = (t * t * t * (t * (6 * t - 15) + 10) for t in (down, right))
    top = corner(0, 0).lerp(corner(0, 1), fade_x)
    bottom = corner(1, 0).lerp(corner(1, 1), fade_x)
    noise = 2**0.5 * top.lerp(bottom, fade_y)
    return noise if inside is None else noise * inside


def perlin_masks(count: int, size: int, random: Random, *, threshold: float = 0.5) -> Tensor:
    """Draws masks as DRAEM does: noise of 1 to 32 cells along each side, turned by up to 90°, cut at a threshold.

    Args:
        count: Number of masks B.
        size: Side S in pixels.
        random: Source.
        threshold: Where the noise is cut.

    Returns:
        Masks (B, S, S), bool; some are empty.
    """
    cells = 2 ** random.whole(0, 5, count, 2)
    turn = random.uniform(-torch.pi / 2, torch.pi / 2, count)
    return perlin_noise(size, cells, random, turn=turn) > threshold
