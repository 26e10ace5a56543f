"""What is blended in: textures made on the spot, of other images, or given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlad.pseudo_anomalies.perlin import perlin_noise, plane
from vlad.pseudo_anomalies.random import Random

__all__ = ["TEXTURES", "Textures", "each_by_kind", "given_textures", "image_textures", "procedural_textures"]

Textures = Callable[[Tensor, Tensor, Random], Tensor]
"""(images (B, 3, S, S), rows that need a texture (n,), random) → textures (n, 3, S, S) in [0, 1]."""


def procedural_textures(images: Tensor, rows: Tensor, random: Random) -> Tensor:
    """Makes textures: clouds, marble, stripes, checks, dots and grain, in two colours each."""
    count, size = len(rows), images.shape[-1]
    clouds = torch.zeros(count, size, size, device=images.device)
    for octave, weight in enumerate((0.6, 0.3, 0.2)):
        clouds += weight * perlin_noise(size, 2 ** random.whole(1 + octave, 2 + octave, count, 2), random)
    angle = random.uniform(0, torch.pi, count, 1, 1)
    waves = 2 ** random.uniform(1, 5, count, 1, 1)
    y, x = plane(size, images.device)
    u = waves * (angle.cos() * x + angle.sin() * y) + 0.3 * clouds
    v = waves * (angle.cos() * y - angle.sin() * x) + 0.3 * clouds
    grain = torch.nn.functional.interpolate(random.uniform(-1, 1, count, 1, -(-size // 2), -(-size // 2)), (size, size))
    radius = random.uniform(0.2, 0.4, count, 1, 1)

    def sharp(x: Tensor) -> Tensor:
        return 4 * (2 * torch.pi * x).sin()

    def from_center(u: Tensor, v: Tensor) -> Tensor:
        return ((u % 1 - 0.5).square() + (v % 1 - 0.5).square()).sqrt()

    kinds: list[Callable[[Tensor], Tensor]] = [
        lambda i: 0.5 + 0.7 * clouds[i],
        lambda i: 0.5 + 0.5 * (2 * torch.pi * (0.5 * u[i] + 2 * clouds[i])).sin(),
        lambda i: 0.5 + 0.5 * sharp(u[i]),
        lambda i: 0.5 + 0.5 * sharp(u[i]) * (2 * torch.pi * v[i]).sin().sign(),
        lambda i: 0.5 + 8 * (radius[i] - from_center(u[i], v[i])),
        lambda i: 0.5 + 0.4 * clouds[i] + 0.4 * grain[i, 0],
    ]
    value = each_by_kind(kinds, random.whole(0, len(kinds) - 1, count), clouds).clamp(0, 1)
    low, high = (random.uniform(0, 1, count, 3, 1, 1) for _ in range(2))
    return (low + (high - low) * value[:, None] + 0.05 * grain).clamp(0, 1)


def each_by_kind(kinds: Sequence[Callable[[Tensor], Tensor]], chosen: Tensor, like: Tensor) -> Tensor:
    """Computes each row by one of several functions.

    Args:
        kinds: Functions of row numbers (m,) that give these rows' values (m, …).
        chosen: Which function each row wants (n,).
        like: A tensor of the result's shape (n, …).
    """
    result = torch.empty_like(like)
    for number, kind in enumerate(kinds):
        rows = (chosen == number).nonzero()[:, 0]
        if len(rows):
            result[rows] = kind(rows)
    return result


def image_textures(images: Tensor, rows: Tensor, random: Random) -> Tensor:
    """Takes other images of the batch, turned by quarters and mirrored; an image alone takes itself, moved."""
    step = random.whole(1, max(1, len(images) - 1), len(rows))
    taken = images[(rows + step) % len(images)]
    shift = random.whole(images.shape[-1] // 4, images.shape[-1] * 3 // 4, 2).tolist()
    taken = taken.roll(shift, (-2, -1)) if len(images) == 1 else taken
    turns = random.whole(0, 3, len(rows))
    turned = torch.stack([taken.rot90(k, (-2, -1)) for k in range(4)])
    taken = turned[turns, torch.arange(len(rows), device=images.device)]
    return torch.where(random.chance(0.5, len(rows), 1, 1, 1), taken.flip(-1), taken)


def given_textures(pool: Tensor) -> Textures:
    """Draws from textures that are there already.

    Args:
        pool: Textures (n, 3, S, S), uint8, of the images' size.
    """

    def draw(images: Tensor, rows: Tensor, random: Random) -> Tensor:
        chosen = random.whole(0, len(pool) - 1, len(rows)).to(pool.device)
        return pool[chosen].to(images.device).float() / 255

    return draw


TEXTURES: dict[str, Textures] = {"procedural": procedural_textures, "images": image_textures}
"""Textures that need no files, by name."""
