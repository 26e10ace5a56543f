"""The thumbnails of an image that a report holds inline: the image, its anomaly map, its ground truth."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["LEVELS", "Media", "encode_media"]

LEVELS = 120
"""Levels of a map: code 0 says that nothing was inspected there, 1 to 120 go from its lowest score to its highest."""

_IMAGE, _MAP = 144, 64  # longest side in pixels


class Media(NamedTuple):
    """The thumbnails of one image, as base64.

    Attributes:
        image: WebP, RGB.
        map: PNG, 8-bit grey, codes of :data:`LEVELS`; "" where the map has no finite value.
        low: Score of code 1.
        step: Score from one code to the next.
        mask: PNG, 1 bit: the ground truth; "" where it is not known or empty.
        seen: Height and width of the part that the map covers, from the top left, as shares of the image's.
    """

    image: str
    map: str
    low: float
    step: float
    mask: str
    seen: tuple[float, float]


def encode_media(
    preview: np.ndarray, values: Tensor, mask: np.ndarray | None, seen: tuple[float, float] = (1.0, 1.0)
) -> Media:
    """Makes an image's thumbnails.

    Args:
        preview: The part of the image that was seen (h, w, 3), uint8.
        values: Its anomaly map (H, W), float32; minus infinity where nothing was inspected.
        mask: Ground truth (h, w), bool, or None.
        seen: Height and width of that part, as shares of the image's.

    Returns:
        The thumbnails, a few kB together. A map keeps its maximum, so that no region gets lost.
    """
    height, width = preview.shape[:2]
    image = Image.fromarray(preview).resize(_bounded(width, height, _IMAGE), Image.Resampling.BOX)
    truth = ""
    if mask is not None and mask.any():
        columns, rows = _bounded(width, height, _MAP)
        grown = F.adaptive_max_pool2d(torch.tensor(mask, dtype=torch.float32)[None], (rows, columns))[0]
        truth = _encoded(Image.fromarray(grown.numpy() > 0), "PNG")
    codes, low, step = _codes(values, (height, width))
    thumbnail = "" if codes is None else _encoded(Image.fromarray(codes), "PNG", optimize=True)
    return Media(_encoded(image, "WEBP", quality=62, method=2), thumbnail, low, step, truth, seen)


def _bounded(width: int, height: int, longest: int) -> tuple[int, int]:
    share = min(1.0, longest / max(width, height))
    return max(1, round(width * share)), max(1, round(height * share))


def _codes(values: Tensor, size: tuple[int, int]) -> tuple[np.ndarray | None, float, float]:
    """Returns a map's codes (h, w), uint8, in the aspect of its image, with the score of code 1 and the step."""
    columns, rows = _bounded(size[1], size[0], min(_MAP, max(values.shape)))
    small = F.adaptive_max_pool2d(values[None], (rows, columns))[0].double().cpu().numpy()
    finite = np.isfinite(small)
    if not finite.any():
        return None, 0.0, 0.0
    low, high = float(small[finite].min()), float(small[finite].max())
    step = (high - low) / (LEVELS - 1)
    shares = np.where(finite, small - low, 0) / (step or 1.0)
    return np.where(finite, 1 + np.rint(shares), 0).astype(np.uint8), low, step


def _encoded(image: Image.Image, format: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
