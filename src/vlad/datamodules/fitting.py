"""The arithmetic from a decoded image to what a method sees: resized, cut, normalised."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from vlad.types import Preprocess

__all__ = ["fit_image", "fitted_size", "normalised", "seen_part"]


def fitted_size(height: int, width: int, wanted: Preprocess) -> tuple[int, int]:
    """Returns the height and width that an image of a size gets.

    Examples:
        >>> fitted_size(96, 128, Preprocess(98, (), (), aspect="keep", multiple=14))
        (98, 126)
        >>> fitted_size(96, 128, Preprocess(98, (), ()))
        (98, 98)
        >>> fitted_size(96, 128, Preprocess(98, (), (), aspect="whole"))
        (96, 128)
    """
    if wanted.aspect == "whole":
        return height, width
    if wanted.aspect == "squash":
        return wanted.size, wanted.size
    rows, columns = (side // wanted.multiple * wanted.multiple for side in _resized(height, width, wanted.size))
    return rows, columns


def _resized(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns height and width where the shorter side becomes ``size`` and the aspect ratio is kept."""
    short = min(height, width)
    rows, columns = (size if side == short else int(size * side / short) for side in (height, width))
    return rows, columns


def seen_part(height: int, width: int, wanted: Preprocess) -> tuple[float, float]:
    """Returns the height and width of the part of an image that the method sees: all but what is cut off."""
    if wanted.aspect != "keep":
        return height, width
    kept = fitted_size(height, width, wanted)
    resized = _resized(height, width, wanted.size)
    return height * kept[0] / resized[0], width * kept[1] / resized[1]


def fit_image(image: Image.Image, filter_: Image.Resampling, wanted: Preprocess) -> Image.Image:
    """Resizes an image to the size that the method wants."""
    if wanted.aspect == "whole":
        return image
    if wanted.aspect == "squash":
        return image.resize((wanted.size, wanted.size), filter_)
    height, width = _resized(image.height, image.width, wanted.size)
    rows, columns = fitted_size(image.height, image.width, wanted)
    return image.resize((width, height), filter_).crop((0, 0, columns, rows))


def normalised(image: Image.Image, wanted: Preprocess) -> torch.Tensor:
    """Returns an RGB image as the method sees it: (3, h, w), float32; with ``whole`` as it is, uint8."""
    pixels = torch.from_numpy(np.array(fit_image(image, Image.Resampling.BICUBIC, wanted))).permute(2, 0, 1)
    if wanted.aspect == "whole":
        return pixels.contiguous()
    mean, std = _constants(wanted)
    return torch.empty(pixels.shape).copy_(pixels).div_(255).sub_(mean).div_(std)


@lru_cache(maxsize=8)
def _constants(wanted: Preprocess) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode(False):
        return torch.tensor(wanted.mean).view(3, 1, 1), torch.tensor(wanted.std).view(3, 1, 1)
