"""Recipes of pseudo-anomalies: each changes some region of every image and says exactly which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.pseudo_anomalies.perlin import perlin_masks
from vlad.pseudo_anomalies.poisson import blend
from vlad.pseudo_anomalies.random import Random
from vlad.pseudo_anomalies.textures import Textures, each_by_kind, image_textures

__all__ = ["RECIPES", "Scene", "cutpaste", "perlin", "poisson", "region"]


@dataclass
class Scene:
    """What a recipe works on.

    Attributes:
        images: All images of the batch (B, 3, S, S) in [0, 1].
        rows: Those to change (n,), int64.
        allowed: Where they may be changed (n, S, S), bool.
        textures: Source of textures.
        random: Source of random numbers.
    """

    images: Tensor
    rows: Tensor
    allowed: Tensor
    textures: Textures
    random: Random

    @property
    def chosen(self) -> Tensor:
        """The images to change (n, 3, S, S)."""
        return self.images[self.rows]

    def places(self) -> Tensor:
        """Draws a place where each image may be changed: row and column (n, 2), int64."""
        count = self.allowed.flatten(1).cumsum(1)
        size = self.allowed.shape[-1]
        wanted = (self.random.uniform(0, 1, len(count), 1) * count[:, -1:]).long() + 1
        index = torch.searchsorted(count, wanted)[:, 0].clamp(max=size * size - 1)
        return torch.stack([index // size, index % size], dim=1)


Recipe = Callable[[Scene], tuple[Tensor, Tensor]]
"""Scene → changed images (n, 3, S, S) and their masks (n, S, S), bool. Outside the mask nothing may be changed."""


def _three_changes(textures: Tensor, random: Random) -> Tensor:
    """Changes each texture by three of nine photographic steps, as DRAEM does."""
    from kornia import enhance

    def factor(x: Tensor, low: float, high: float) -> Tensor:
        return random.uniform(low, high, len(x), 1, 1, 1)

    def autocontrast(x: Tensor) -> Tensor:
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return (x - low) / (high - low).clamp(min=1e-3)

    steps: list[Callable[[Tensor], Tensor]] = [
        lambda x: x ** factor(x, 0.5, 2.0),
        lambda x: (x * factor(x, 0.8, 1.2) + factor(x, -0.12, 0.12)).clamp(0, 1),
        lambda x: enhance.adjust_saturation(x, factor(x, 0.2, 1.8).flatten()),
        lambda x: enhance.adjust_hue(x, factor(x, -0.2, 0.2).flatten() * 2 * torch.pi),
        lambda x: torch.where(x > factor(x, 0.3, 0.8), 1 - x, x),  # solarise
        lambda x: (x * 8).floor() / 8,  # posterise
        lambda x: 1 - x,
        autocontrast,
        lambda x: x.rot90(1, (-2, -1)),
    ]
    for step, use in zip(steps, random.subsets(len(textures), len(steps), 3).T, strict=True):
        rows = use.nonzero()[:, 0]
        if len(rows):
            textures[rows] = step(textures[rows])
    return textures


def perlin(scene: Scene) -> tuple[Tensor, Tensor]:
    """Blends a texture into Perlin blotches (DRAEM, Zavrtanik et al., 2021; DeSTSeg, Zhang et al., 2023).

    x (1 − M) + ((1 − β) A + β x) M, the share β of the image drawn from [0, 0.8).
    """
    chosen, random = scene.chosen, scene.random
    texture = _three_changes(scene.textures(scene.images, scene.rows, random), random)
    share = random.uniform(0, 0.8, len(chosen), 1, 1, 1)
    mask = perlin_masks(len(chosen), chosen.shape[-1], random) & scene.allowed
    return torch.where(mask[:, None], texture + share * (chosen - texture), chosen), mask


def cutpaste(scene: Scene) -> tuple[Tensor, Tensor]:
    """Pastes a piece of the image elsewhere: a rectangle, or a thin turned scar (CutPaste, Li et al., 2021).

    Rectangles cover 2 to 15 % of the image, sides 0.3 to 3.3; scars are 1 to 6 % of the side wide and 4 to 10 %
    long, turned by up to 45°. Colours are jittered by up to a tenth, as published.
    """
    from kornia import enhance

    chosen, random = scene.chosen, scene.random
    n, size = len(chosen), chosen.shape[-1]
    area, aspect = random.uniform(0.02, 0.15, n), 3.3 ** random.uniform(-1, 1, n)
    scar = random.chance(0.5, n)
    height = torch.where(scar, random.uniform(0.01, 0.06, n), (area / aspect).sqrt()) * size
    width = torch.where(scar, random.uniform(0.04, 0.10, n), (area * aspect).sqrt()) * size
    angle = torch.where(scar, random.uniform(-torch.pi / 4, torch.pi / 4, n), torch.zeros_like(area))

    target = scene.places().float() + 0.5
    line = torch.arange(size, device=chosen.device) + 0.5
    y, x = line[None, :, None] - target[:, 0, None, None], line[None, None, :] - target[:, 1, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    v, u = cos * y - sin * x, sin * y + cos * x  # in the axes of the piece
    mask = (v.abs() <= height[:, None, None] / 2) & (u.abs() <= width[:, None, None] / 2) & scene.allowed
    # The piece is cut upright about another place, as far inside the image as it fits.
    extent = torch.stack([height, width], dim=1)
    source = torch.minimum(random.uniform(0, 1, n, 2) * size, (size - extent / 2).clamp(min=0))
    source = torch.maximum(source, (extent / 2).clamp(max=size)).floor() + 0.5
    places = torch.stack([u + source[:, 1, None, None], v + source[:, 0, None, None]], dim=-1) * (2 / size) - 1
    piece = F.grid_sample(chosen, places, padding_mode="border", align_corners=False)
    piece = enhance.adjust_saturation(piece.clamp(0, 1), random.uniform(0.9, 1.1, n))
    piece = enhance.adjust_hue(piece, random.uniform(-0.1, 0.1, n) * 2 * torch.pi)
    piece = (piece * random.uniform(0.9, 1.1, n, 1, 1, 1) + random.uniform(-0.1, 0.1, n, 1, 1, 1)).clamp(0, 1)
    return torch.where(mask[:, None], piece, chosen), mask


def poisson(scene: Scene) -> tuple[Tensor, Tensor]:
    """Blends a piece of another image in seamlessly (after NSA, Schlüter et al., 2022).

    The pieces of one call have one size; places and sources differ. What differs from the image by less than 6 of
    255 grey levels is left as it was and does not count.
    """
    chosen, random = scene.chosen, scene.random
    n, size = len(chosen), chosen.shape[-1]
    sides = (random.uniform(0.06, 0.35, 2) * size).long().clamp(4, size - 2).tolist()
    other = image_textures(scene.images, scene.rows, random)

    def window(middle: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rows (n, h + 2, 1) and columns (n, 1, w + 2) of pieces about places, moved inside."""
        spans = []
        for axis, side in enumerate(sides):
            start = (middle[:, axis] - side // 2 - 1).clamp(0, size - side - 2)
            spans.append(start[:, None] + torch.arange(side + 2, device=chosen.device))
        return spans[0][:, :, None], spans[1][:, None, :]

    each = torch.arange(n, device=chosen.device)[:, None, None]
    rows, columns = window(scene.places())
    from_rows, from_columns = window(random.whole(0, size - 1, n, 2))
    target = chosen.permute(0, 2, 3, 1)[each, rows, columns].permute(0, 3, 1, 2)
    source = other.permute(0, 2, 3, 1)[each, from_rows, from_columns].permute(0, 3, 1, 2)
    inner = blend(target, source, random.chance(0.5, n)).clamp(0, 1)

    changed, mask = chosen.clone(), torch.zeros_like(scene.allowed)
    rows, columns = rows[:, 1:-1], columns[:, :, 1:-1]
    differs = (inner - target[..., 1:-1, 1:-1]).abs().amax(1) > 6 / 255
    differs = F.max_pool2d(-F.max_pool2d(-differs.float(), 3, 1, 1), 3, 1, 1) > 0.5  # without lone pixels
    differs &= scene.allowed[each, rows, columns]
    mask[each, rows, columns] = differs
    kept = chosen.permute(0, 2, 3, 1)[each, rows, columns]
    changed.permute(0, 2, 3, 1)[each, rows, columns] = torch.where(differs[..., None], inner.permute(0, 2, 3, 1), kept)
    return changed, mask


def region(scene: Scene) -> tuple[Tensor, Tensor]:
    """Changes the look of Perlin blotches: brightness, contrast, colour, blur or noise."""
    from kornia import enhance, filters

    chosen, random = scene.chosen, scene.random
    n, size = len(chosen), chosen.shape[-1]
    mask = perlin_masks(n, size, random) & scene.allowed
    sign = 2.0 * random.chance(0.5, n, 1, 1, 1) - 1
    width = random.uniform(0.01, 0.03, n, 1).expand(-1, 2) * size
    more, contrast = sign * random.uniform(0.1, 0.4, n, 1, 1, 1), 3 ** (sign * random.uniform(0.5, 1, n, 1, 1, 1))
    hue, tint = random.uniform(0.15, 0.5, n) * 2 * torch.pi, random.uniform(-0.2, 0.2, n, 3, 1, 1)
    noise = random.uniform(0.08, 0.25, n, 1, 1, 1) * random.normal(n, 1, size, size)

    def contrasted(x: Tensor, factor: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return mean + (x - mean) * factor

    looks: list[Callable[[Tensor], Tensor]] = [
        lambda i: chosen[i] + more[i],
        lambda i: contrasted(chosen[i], contrast[i]),
        lambda i: enhance.adjust_hue(chosen[i], hue[i]) + tint[i],
        lambda i: filters.gaussian_blur2d(chosen[i], (int(size / 16) * 2 + 1,) * 2, width[i]),
        lambda i: chosen[i] + noise[i],
    ]
    look = each_by_kind(looks, random.whole(0, len(looks) - 1, n), chosen).clamp(0, 1)
    return torch.where(mask[:, None], look, chosen), mask


RECIPES: dict[str, Recipe] = {"perlin": perlin, "cutpaste": cutpaste, "poisson": poisson, "region": region}
"""Recipes by name."""
