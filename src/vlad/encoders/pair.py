"""Two frozen encoders as one, for methods that look at an image through both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vlad.encoders.protocol import Encoder
from vlad.types import Features

__all__ = ["EncoderPair"]


class EncoderPair(nn.Module):
    """A frozen encoder with a second one beside it; whatever is asked of it, the first answers.

    As a method's ``backbone`` both stay out of its checkpoints, and both are in the fingerprint that tells which
    encoders they belong to.

    Attributes:
        first: The encoder whose size, normalisation, layers and text count.
        second: The other one; a method calls it by this name.
    """

    def __init__(self, first: Encoder, second: Encoder) -> None:
        """Takes two frozen encoders."""
        super().__init__()
        self.first: Any = first
        self.second: Any = second
        self.name, self.pretrained, self.text = first.name, first.pretrained, first.text
        self.mean, self.std = first.mean, first.std
        self.patch_size, self.native_size = first.patch_size, first.native_size
        self.depth, self.width = first.depth, first.width
        self.source = getattr(first, "source", None)
        self.requires_grad_(False)
        self.eval()

    @property
    def image(self) -> Any:
        """The image tower of the first encoder, a CLIP."""
        return self.first.image

    def train(self, mode: bool = True) -> EncoderPair:
        """Stays in evaluation mode: frozen encoders have no training mode."""
        return super().train(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of patches of an image, for the first encoder."""
        return self.first.grid(height, width)

    def encode(self, images: Tensor, layers: Sequence[int]) -> Features:
        """Encodes images with the first encoder."""
        return self.first.encode(images, layers)

    def fingerprint(self) -> str:
        """Returns a short hash of the weights of both."""
        both = f"{self.first.fingerprint()} {self.second.fingerprint()}"
        return hashlib.sha256(both.encode()).hexdigest()[:16]
