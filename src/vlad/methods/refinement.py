"""Anomaly region refinement: three readings of CLIP-ADA's "anomaly region refinement strategy", one interface.

The paper's abstract names the strategy and does not say what it does. A refinement is called with a first map and
gives a better one; another reading can be dropped in by adding it to :data:`REFINEMENTS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.regions import find_regions, paste_maps
from vlad.errors import MethodError, nearest

__all__ = ["REFINEMENTS", "Head", "Look", "NoRefinement", "Refinement", "Zoom", "build_refinement"]

Look = Callable[[Tensor, Tensor], Tensor]
"""(images (n, 3, S, S), boxes (n, 4)) → logits of each level on the patch grid (L, n, g, g)."""


class Refinement(Protocol):
    """What a refinement is."""

    def __call__(self, logits: Tensor, levels: Tensor, images: Tensor, look: Look) -> Tensor:
        """Refines maps.

        Args:
            logits: The first maps (B, S, S).
            levels: The same before they were fused and enlarged (L, B, g, g).
            images: The images (B, 3, S, S), normalised.
            look: Compares regions of images with the prompt.

        Returns:
            Refined maps (B, S, S).
        """
        ...


class NoRefinement:
    """Leaves the map as it is."""

    def __call__(self, logits: Tensor, levels: Tensor, images: Tensor, look: Look) -> Tensor:
        """Returns the first map."""
        return logits


class Zoom:
    """Looks again, closer: suspicious regions are cut from the full image and compared with the same prompt (R1).

    All regions of a batch run through the tower together. Every image is looked at, normal or not.
    """

    def __init__(
        self,
        *,
        count: int = 3,
        threshold: float = 0.5,
        margin: float = 1.5,
        min_side: float = 1 / 3,
        merge: Literal["mean", "fine"] = "mean",
        steps: int = 1,
    ) -> None:
        """Chooses the regions; the first four arguments as for :func:`vlad.clip.regions.find_regions`.

        Args:
            count: Regions per image at most.
            threshold: Share of the maximum that a region is above.
            margin: Size of a box in units of the region's.
            min_side: Smallest side of a box.
            merge: ``mean`` of first and closer look, or the closer (``fine``) alone.
            steps: How many times.
        """
        self.count, self.threshold, self.margin, self.min_side = count, threshold, margin, min_side
        self.merge, self.steps = merge, steps

    def __call__(self, logits: Tensor, levels: Tensor, images: Tensor, look: Look) -> Tensor:
        """Returns the map with what the closer look saw merged in."""
        grid = levels.mean(0)
        for step in range(self.steps):
            if step:
                grid = F.adaptive_avg_pool2d(logits, grid.shape[-1])
            index, boxes = find_regions(
                grid.sigmoid(),
                count=self.count,
                threshold=self.threshold,
                margin=self.margin,
                min_side=self.min_side,
            )
            if len(index):
                logits = self.merge_in(logits, look(images[index], boxes).mean(0), index, boxes)
        return logits

    def merge_in(self, logits: Tensor, fine: Tensor, index: Tensor, boxes: Tensor) -> Tensor:
        """Merges maps of regions into maps of images, in float32.

        Args:
            logits: Maps of the images (B, S, S).
            fine: Maps of the regions on the patch grid (n, g, g).
            index: Which image each is of (n,).
            boxes: Where (n, 4).
        """
        logits = logits.float()
        maps, cover = paste_maps(fine, boxes, logits.shape[-1])
        total = torch.zeros_like(logits).index_add_(0, index, maps)
        times = torch.zeros_like(logits).index_add_(0, index, cover)
        mean = total / times.clamp(min=1)
        merged = 0.5 * (logits + mean) if self.merge == "mean" else mean
        return torch.where(times > 0, merged, logits)


class Head(nn.Module):
    """A small trained decoder of the maps with the image beside them (R3); it begins as the identity."""

    def __init__(self, levels: int, width: int = 32) -> None:
        """Builds the decoder.

        Args:
            levels: Number of levels L.
            width: Channels.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(levels + 3, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
        )
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, logits: Tensor, levels: Tensor, images: Tensor, look: Look | None = None) -> Tensor:
        """Returns the map and what the decoder adds, found at four times the patch grid."""
        size = 4 * levels.shape[-1]
        maps = F.interpolate(levels.transpose(0, 1), (size, size), mode="bilinear", align_corners=False)
        picture = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        more = self.last(self.layers(torch.cat([0.1 * maps, picture], dim=1)))
        return logits + F.interpolate(more, logits.shape[-2:], mode="bilinear", align_corners=False)[:, 0].float()


REFINEMENTS: dict[str, type[Refinement]] = {"none": NoRefinement, "zoom": Zoom, "head": Head}
"""Refinements by name; the arguments of their constructors are settings of the method."""


def build_refinement(name: str, **settings: Any) -> Refinement:
    """Builds a refinement by name with those of the settings that it wants.

    Raises:
        MethodError: Unknown name.
    """
    if name not in REFINEMENTS:
        raise MethodError(f"no refinement is named '{name}'; {nearest(name, REFINEMENTS)}")
    wanted = inspect.signature(REFINEMENTS[name]).parameters
    return REFINEMENTS[name](**{key: value for key, value in settings.items() if key in wanted})
