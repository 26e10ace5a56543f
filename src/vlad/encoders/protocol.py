"""What a frozen encoder of images must offer a method; any object that offers it can be given as ``backbone``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from vlad.errors import BackboneError
from vlad.types import Features

if TYPE_CHECKING:
    from vlad.clip.text import TextTower

__all__ = ["Encoder", "patch_grid"]


def patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Returns the rows and columns of patches of an image.

    Raises:
        BackboneError: The patch does not divide the size; the message names sizes that fit.
    """
    if height % patch or width % patch:
        down = max(patch, min(height, width) // patch * patch)
        raise BackboneError(
            f"image_size {height}x{width} is no multiple of the patch size {patch}; use {down} or {down + patch}"
        )
    return height // patch, width // patch


@runtime_checkable
class Encoder(Protocol):
    """A frozen image encoder: a ``torch.nn.Module`` without gradients that stays in evaluation mode.

    Attributes:
        name: The name it was asked for by.
        pretrained: The tag or file of its weights, ``random``, or None where the name says it all.
        mean: Normalisation mean of the images, 3 values for RGB in [0, 1].
        std: Normalisation standard deviation.
        patch_size: Side of a patch in pixels.
        native_size: Image side the weights were made for.
        depth: Number of blocks; intermediate layers are numbered from 1 to ``depth``.
        width: Width W of the patch tokens.
        text: The text tower of a CLIP, else None.
    """

    name: str
    pretrained: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_size: int
    native_size: int
    depth: int
    width: int
    text: TextTower | None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of patches of an image.

        Raises:
            BackboneError: The patch does not divide the size.
        """
        ...

    def encode(self, images: Tensor, layers: Sequence[int]) -> Features:
        """Encodes images.

        Args:
            images: Normalised images (B, 3, H, W), any size the patch divides.
            layers: Intermediate layers to read, from 1.

        Returns:
            Patch tokens (B, h, w, W) and class token (B, W) of each layer asked for, in that order, and the image
            embedding (B, D).
        """
        ...

    def fingerprint(self) -> str:
        """Returns a short hash of the weights, so that a checkpoint can tell which encoder it was trained on."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Of ``torch.nn.Module``: frozen encoders are left as they are."""
        ...
