"""Anomaly region refinement: readings of CLIP-ADA's "anomaly region refinement strategy", one interface.

The paper's abstract names the strategy and does not say what it does. A refinement makes a better map of an initial
one; another reading is a dataclass derived from :class:`Refinement`, named by its class path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.regions import find_regions, paste_maps
from vlad.errors import MethodError

__all__ = ["Head", "HeadDecoder", "Look", "NoRefinement", "Refinement", "Zoom"]

Look = Callable[[Tensor, Tensor], Tensor]
"""(images (n, 3, S, S), boxes (n, 4)) → logits of each level on the patch grid (n, L, g, g)."""


class Refinement:
    """Options of a refinement. As it is, it leaves the map alone."""

    def build(self, levels: int) -> nn.Module | None:
        """Returns the module that it trains, for L levels; None where it has nothing to train."""
        return None

    def refine(self, logits: Tensor, levels: Tensor, images: Tensor, look: Look, module: nn.Module | None) -> Tensor:
        """Refines maps.

        Args:
            logits: The initial maps (B, S, S).
            levels: The same before they were fused and enlarged (B, L, g, g).
            images: The images (B, 3, S, S), normalised.
            look: Compares regions of images with the prompt.
            module: What :meth:`build` returned.

        Returns:
            Refined maps (B, S, S).
        """
        return logits


@dataclass
class NoRefinement(Refinement):
    """Leaves the map as it is."""


@dataclass
class Zoom(Refinement):
    """Looks again, closer: suspicious regions are cropped from the full image and compared with the same prompt (R1).

    All regions of a batch run through the tower together. Every image is looked at, normal or not.

    Attributes:
        count: Regions per image at most.
        threshold: Share of the map's maximum that a region is above.
        box_scale: Size of a box in units of the region's.
        min_side: Smallest side of a box as a share of the image's; None: a region is not enlarged beyond the pixels
            that the image has.
        merge: ``mean`` of initial map and closer look, or the closer (``fine``) alone.
        steps: How many times.
    """

    count: int = 3
    threshold: float = 0.5
    box_scale: float = 1.5
    min_side: float | None = None
    merge: Literal["mean", "fine"] = "mean"
    steps: int = 1

    def __post_init__(self) -> None:
        """Refuses shares out of range."""
        if not (0 < self.threshold < 1 and (self.min_side is None or 0 < self.min_side <= 1)):
            raise MethodError("zoom: threshold and min_side are shares: between 0 and 1")

    def refine(self, logits: Tensor, levels: Tensor, images: Tensor, look: Look, module: nn.Module | None) -> Tensor:
        """Returns the map with the closer look merged in."""
        grid = levels.mean(1)
        for step in range(self.steps):
            if step:
                grid = F.adaptive_avg_pool2d(logits, grid.shape[-1])
            index, boxes = find_regions(
                grid.sigmoid(),
                count=self.count,
                threshold=self.threshold,
                margin=self.box_scale,
                min_side=self.min_side or 1 / 3,
            )
            if len(index):
                logits = self.merge_in(logits, look(images[index], boxes).mean(1), index, boxes)
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


@dataclass
class Head(Refinement):
    """A small trained decoder of the maps with the image beside them (R3).

    Attributes:
        width: Channels.
    """

    width: int = 32

    def build(self, levels: int) -> nn.Module:
        """Returns the decoder."""
        return HeadDecoder(levels, self.width)

    def refine(self, logits: Tensor, levels: Tensor, images: Tensor, look: Look, module: nn.Module | None) -> Tensor:
        """Returns the decoder's maps."""
        assert module is not None
        return module(logits, levels, images)


class HeadDecoder(nn.Module):
    """A convolutional decoder of maps and image; it begins as the identity."""

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

    def forward(self, logits: Tensor, levels: Tensor, images: Tensor) -> Tensor:
        """Returns the map and what the decoder adds, found at four times the patch grid.

        Args:
            logits: Maps (B, S, S).
            levels: Maps of each level on the patch grid (B, L, g, g).
            images: Images (B, 3, S, S), normalised.
        """
        size = 4 * levels.shape[-1]
        maps = F.interpolate(levels, (size, size), mode="bilinear", align_corners=False)
        small = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        more = self.last(self.layers(torch.cat([0.1 * maps, small], dim=1)))
        return logits + F.interpolate(more, logits.shape[-2:], mode="bilinear", align_corners=False)[:, 0].float()
