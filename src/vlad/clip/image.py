"""The image tower: embed at any size, run, project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.blocks import Tokens, run_blocks
from vlad.errors import BackboneError

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer

    from vlad.clip.numerics import Numerics

__all__ = ["ImageTower", "resize_positions"]


def resize_positions(positions: Tensor, grid: tuple[int, int], *, mode: str, antialias: bool) -> Tensor:
    """Interpolates a square position embedding to another grid; the class token's row is kept.

    Args:
        positions: Position embedding (1 + g², W), class token first.
        grid: Rows and columns wanted.
        mode: ``"bicubic"`` or ``"bilinear"``; corners are not aligned.
        antialias: Whether torch's antialiased kernel is used. It changes the numbers even when enlarging.

    Returns:
        Position embedding (1 + rows · columns, W).
    """
    side = round((positions.shape[0] - 1) ** 0.5)
    if grid == (side, side):
        return positions
    patch = positions[1:].T.reshape(1, -1, side, side)
    patch = F.interpolate(patch.float(), size=grid, mode=mode, align_corners=False, antialias=antialias)
    return torch.cat([positions[:1], patch.flatten(2)[0].T.to(positions.dtype)])


class ImageTower(nn.Module):
    """Drives the vision transformer of an open_clip model.

    Attributes:
        depth: Number of blocks.
        width: Width W of the tokens.
        embed_dim: Dimension D of the joint space.
        patch_size: Side of a patch in pixels.
        native_size: Image side the weights were made for.
    """

    def __init__(self, visual: VisionTransformer, numerics: Numerics) -> None:
        super().__init__()
        self.visual = visual
        self.numerics = numerics
        self.depth = len(visual.transformer.resblocks)
        self.width = int(visual.conv1.out_channels)
        self.embed_dim = int(visual.proj.shape[1])
        self.patch_size = int(visual.patch_size[0])
        self.native_size = int(visual.image_size[0])
        self._positions: dict[tuple[int, int], Tensor] = {}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of patches of an image.

        Raises:
            BackboneError: The patch does not divide the size; the message names sizes that fit.
        """
        patch = self.patch_size
        if height % patch or width % patch:
            down = max(patch, min(height, width) // patch * patch)
            raise BackboneError(
                f"image_size {height}x{width} is no multiple of the patch size {patch}; use {down} or {down + patch}"
            )
        return height // patch, width // patch

    def embed(self, images: Tensor) -> Tensor:
        """Embeds images as tokens, class token first, up to and including ``ln_pre``.

        Args:
            images: Normalised images (B, 3, H, W), any size the patch divides.

        Returns:
            Tokens (B, 1 + rows · columns, W).
        """
        visual = self.visual
        grid = self.grid(images.shape[-2], images.shape[-1])
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        return visual.ln_pre(x + self._positions_of(grid).to(x.dtype))

    @torch.no_grad()
    def _positions_of(self, grid: tuple[int, int]) -> Tensor:
        """Returns the position embedding of a grid, resized once: the tower is frozen."""
        own = self.visual.positional_embedding
        found = self._positions.get(grid)
        if found is None or (found.device, found.dtype) != (own.device, own.dtype):
            resize, antialias = self.numerics.position_resize, self.numerics.position_antialias
            found = self._positions[grid] = resize_positions(own, grid, mode=resize, antialias=antialias)
        return found

    def run(self, x: Tensor, **wanted: Any) -> Tokens:
        """Runs embedded tokens through the blocks; arguments as :func:`vlad.clip.blocks.run_blocks`."""
        return run_blocks(self.visual.transformer.resblocks, x, **wanted)

    def project(self, tokens: Tensor, *, norm: bool = True) -> Tensor:
        """Maps tokens (..., W) to the joint space (..., D).

        Args:
            tokens: Tokens of any block.
            norm: Whether the tower's ``ln_post`` comes first. AnomalyCLIP's image feature omits it.
        """
        visual = self.visual
        return (visual.ln_post(tokens) if norm else tokens) @ visual.proj

    def encode(self, images: Tensor) -> Tensor:
        """Computes CLIP's ordinary image embedding (B, D), not normalised; equals ``encode_image``."""
        return self.encode_tokens(self.embed(images))

    def encode_tokens(self, x: Tensor) -> Tensor:
        """Computes the image embedding (B, D) from embedded tokens (B, 1 + n, W).

        Only the class token of the last block is computed.
        """
        return self.project(self.run(x, class_token_only=True).last[:, 0])
