"""Textures of a folder, such as DTD's, for methods that paint pseudo-anomalies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlad.datamodules.decode import load_image
from vlad.datamodules.image_files import IMAGE_SUFFIXES, list_files
from vlad.errors import DataError

__all__ = ["TexturePool"]


class TexturePool:
    """Images of a folder and its sub-folders, one of which goes with every training image.

    Each is decoded where it is drawn, in the processes that read the training images.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        """Lists the images.

        Args:
            folder: The folder.
            size: Side S that textures are resized to, in pixels.

        Raises:
            DataError: No such folder, or no image in it.
        """
        root = Path(folder)
        if not root.is_dir():
            raise DataError(f"texture folder {folder} does not exist; give a folder of images, such as DTD's images")
        self.files = [root / file for file in list_files(root)]
        if not self.files:
            raise DataError(f"texture folder {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.size = size

    def draw(self, random: np.random.Generator) -> Tensor:
        """Returns a texture (3, S, S), uint8, drawn at random."""
        file = self.files[random.integers(len(self.files))]
        image = load_image(str(file)).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
