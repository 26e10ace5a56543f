"""The image tower: embed at any size, run, project."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlad.clip.blocks import Tokens, run_blocks
from vlad.encoders.positions import PositionCache, resize_positions
from vlad.encoders.protocol import patch_grid

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer

    from vlad.clip.numerics import Numerics

__all__ = ["ImageTower"]


class ImageTower(nn.Module):
    """Drives the vision transformer of an open_clip model.

    Attributes:
        depth: Number of blocks.
        width: Width W of the tokens.
        embed_dim: Dimension D of the joint space.
        patch_size: Side of a patch in pixels.
        native_size: Image side that the weights were trained at.
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
        resize, antialias = numerics.position_resize, numerics.position_antialias
        self._positions = PositionCache(partial(resize_positions, mode=resize, antialias=antialias))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of patches of an image.

        Raises:
            BackboneError: The size is not divisible by the patch size; the message names sizes that fit.
        """
        return patch_grid(height, width, self.patch_size)

    def embed(self, images: Tensor) -> Tensor:
        """Embeds images as tokens, class token first, up to and including ``ln_pre``.

        Args:
            images: Normalised images (B, 3, H, W), any size divisible by the patch size.

        Returns:
            Tokens (B, 1 + rows · columns, W).
        """
        visual = self.visual
        grid = self.grid(images.shape[-2], images.shape[-1])
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        return visual.ln_pre(x + self._positions.of(visual.positional_embedding, grid).to(x.dtype))

    def run(self, x: Tensor, **wanted: Any) -> Tokens:
        """Runs embedded tokens through the blocks; arguments as :func:`vlad.clip.blocks.run_blocks`."""
        return run_blocks(self.visual.transformer.resblocks, x, **wanted)

    def project(self, tokens: Tensor, *, norm: bool = True) -> Tensor:
        """Maps tokens (..., W) to the joint space (..., D).

        Args:
            tokens: Tokens of any block.
            norm: Whether to apply the tower's ``ln_post`` first. AnomalyCLIP's image feature omits it.
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
