"""From normal images to pseudo-anomalous ones with exact masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlad.errors import MethodError, nearest
from vlad.pseudo_anomalies.foreground import foreground
from vlad.pseudo_anomalies.random import Random
from vlad.pseudo_anomalies.recipes import RECIPES, Scene
from vlad.pseudo_anomalies.textures import TEXTURES, Textures, given_textures

__all__ = ["Synthesizer"]

_TRIES = 12


@dataclass
class Synthesizer:
    """Makes pseudo-anomalies in normal images.

    Outside the masks images are what they were, to the last bit; inside they are visibly changed. Results depend on
    the images and the source of random numbers alone, on any device.

    Attributes:
        recipe: ``perlin``, ``cutpaste``, ``poisson``, ``region``, or ``mixed``: one of them for each image.
        probability: Share of the images that are changed.
        keep_to_part: Whether only the part is changed, never a plain background.
        textures: What the recipes blend in: ``procedural``, or other ``images`` of the batch. Textures of a folder are
            read by the data module (``data.textures``) and given with the images.
        min_area: Smallest area of a mask, as a share of the image.
        min_change: Smallest mean change inside a mask, of values in [0, 1].

    Raises:
        MethodError: Unknown recipe.

    Examples:
        >>> images = torch.rand(2, 3, 64, 64)
        >>> changed, mask = Synthesizer("cutpaste")(images, Random(0))
        >>> mask.shape, bool(torch.where(mask[:, None], images, changed).equal(images))
        (torch.Size([2, 64, 64]), True)
    """

    recipe: str = "perlin"
    probability: float = 1.0
    keep_to_part: bool = False
    textures: Literal["procedural", "images"] = "procedural"
    min_area: float = 5e-4
    min_change: float = 0.03

    def __post_init__(self) -> None:
        """Refuses unknown recipes and textures."""
        if self.recipe not in {"mixed", *RECIPES}:
            raise MethodError(f"no recipe is named '{self.recipe}'; {nearest(self.recipe, ['mixed', *RECIPES])}")
        if self.textures not in TEXTURES:
            raise MethodError(
                f"no textures are named '{self.textures}'; {nearest(self.textures, TEXTURES)} (a folder of textures is "
                "given to the data: data.textures)"
            )

    @torch.no_grad()
    def __call__(self, images: Tensor, random: Random, textures: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Changes images.

        Args:
            images: Normal images (B, 3, S, S) in [0, 1].
            random: Source of random numbers, on the images' device.
            textures: What is blended in (n, 3, S, S), uint8, drawn from at random; by default what ``textures`` names.

        Returns:
            Changed images (B, 3, S, S) in [0, 1], and masks (B, S, S), bool: True where anomalous. An image in which
            twelve tries left nothing visible stays normal.
        """
        source: Textures = TEXTURES[self.textures] if textures is None else given_textures(textures)
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            changed, masks = images.clone(), torch.zeros_like(images[:, 0], dtype=torch.bool)
            allowed = foreground(images) if self.keep_to_part else torch.ones_like(masks)
            left = random.chance(self.probability, len(images)).nonzero()[:, 0]
            for _ in range(_TRIES):
                if not len(left):
                    break
                new, mask = self._apply(Scene(images, left, allowed[left], source, random))
                good = self._visible(images[left], new, mask)
                changed[left[good]], masks[left[good]] = new[good], mask[good]
                left = left[~good]
        return changed, masks

    def _apply(self, scene: Scene) -> tuple[Tensor, Tensor]:
        if self.recipe != "mixed":
            return RECIPES[self.recipe](scene)
        changed, mask = scene.chosen, torch.zeros_like(scene.allowed)
        kind = scene.random.whole(0, len(RECIPES) - 1, len(scene.rows))
        for number, recipe in enumerate(RECIPES.values()):
            rows = (kind == number).nonzero()[:, 0]
            if len(rows):
                part = Scene(scene.images, scene.rows[rows], scene.allowed[rows], scene.textures, scene.random)
                changed[rows], mask[rows] = recipe(part)
        return changed, mask

    def _visible(self, before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
        """Returns which changes are large and strong enough to be seen (n,)."""
        area = mask.sum((1, 2))
        change = ((after - before).abs().mean(1) * mask).sum((1, 2)) / area.clamp(min=1)
        return (area >= self.min_area * mask[0].numel()) & (area > 0) & (change >= self.min_change)
