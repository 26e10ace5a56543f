"""Crops regions of an image to the tower's size, and pastes their maps back into the image.

A box is (top, left, bottom, right) in fractions of the image's height and width. Cropping and pasting are products
with matrices from the same coordinates, so that they agree to a fraction of a pixel and run on any device for many
boxes at once. The box (0, 0, 1, 1) is the whole image.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

__all__ = ["crop_regions", "find_regions", "full_boxes", "paste_maps"]


def full_boxes(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns boxes that cover the whole image (count, 4)."""
    return torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).expand(count, 4)


def _cubic(x: Tensor) -> Tensor:
    """Pillow's bicubic kernel, a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _crop_matrix(low: Tensor, high: Tensor, source: int, target: int) -> Tensor:
    """Returns matrices (n, target, source) that resize an interval of a line as Pillow does, antialiased."""
    line = torch.arange(source, device=low.device) + 0.5
    step = ((high - low) * source / target)[:, None]
    middle = low[:, None] * source + (torch.arange(target, device=low.device) + 0.5) * step
    weight = _cubic((line - middle[..., None]) / step.clamp(min=1)[..., None])
    return weight / weight.sum(-1, keepdim=True)


def crop_regions(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crops regions, resized with Pillow's bicubic filter.

    Args:
        images: Images (n, C, S, S), one for each box.
        boxes: Regions (n, 4), at least a pixel high and wide.
        size: Output side in pixels.

    Returns:
        Regions (n, C, size, size), float32; they may overshoot the range of values a little, as bicubic does.
    """
    with torch.autocast(images.device.type, enabled=False):
        images, boxes = images.float(), boxes.float()
        rows = _crop_matrix(boxes[:, 0], boxes[:, 2], images.shape[-2], size)
        columns = _crop_matrix(boxes[:, 1], boxes[:, 3], images.shape[-1], size)
        return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def _paste_matrix(low: Tensor, high: Tensor, source: int, target: int) -> Tensor:
    """Returns matrices (n, target, source) that resize a line linearly into an interval of another; 0 outside of it."""
    line = (torch.arange(target, device=low.device) + 0.5) / target
    inside = (line >= low[:, None]) & (line < high[:, None])
    place = (line - low[:, None]) / (high - low)[:, None] * source - 0.5
    place = place.clamp(0, source - 1)[..., None]
    weight = (1 - (place - torch.arange(source, device=low.device)).abs()).clamp(min=0)
    return weight * inside[..., None]


def paste_maps(maps: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pastes maps of regions into the image, resized bilinearly.

    Args:
        maps: Maps on the patch grid (n, g, g).
        boxes: Their boxes in the image (n, 4).
        size: Side of the image in pixels.

    Returns:
        Maps (n, S, S), float32, 0 outside the boxes; and 1 inside the boxes, 0 outside (n, S, S).
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps, boxes = maps.float(), boxes.float()
        rows = _paste_matrix(boxes[:, 0], boxes[:, 2], maps.shape[-2], size)
        columns = _paste_matrix(boxes[:, 1], boxes[:, 3], maps.shape[-1], size)
        cover = (rows.sum(-1) > 0)[:, :, None] & (columns.sum(-1) > 0)[:, None, :]
        return rows @ maps @ columns.transpose(-1, -2), cover.float()


def find_regions(
    maps: Tensor, *, count: int = 3, threshold: float = 0.5, margin: float = 1.5, min_side: float = 1 / 3
) -> tuple[Tensor, Tensor]:
    """Finds the boxes of the highest connected components of a map.

    Args:
        maps: Probabilities on the patch grid (B, g, g).
        count: Largest number of components per image, highest peaks first.
        threshold: A component is above this share of the map's maximum.
        margin: Size of the square boxes relative to the component.
        min_side: Smallest side of a box.

    Returns:
        Which image each region is of (n,), int64, and the boxes (n, 4), inside the image.
    """
    numbers, boxes = [], []
    for image, values in enumerate(maps.detach().float().cpu().numpy()):
        side = values.shape[0]
        parts, labels, extents, _ = cv2.connectedComponentsWithStats(
            (values > threshold * values.max()).astype(np.uint8), connectivity=8
        )
        peaks = sorted(range(1, parts), key=lambda part: -values[labels == part].max())[:count]
        for part in peaks:
            left, top, width, height = (int(v) for v in extents[part][:4])
            length = min(1.0, max(min_side, margin * max(width, height) / side))
            middle = (np.array([top + height / 2, left + width / 2]) / side).clip(length / 2, 1 - length / 2)
            numbers.append(image)
            boxes.append([*(middle - length / 2), *(middle + length / 2)])
    index = torch.tensor(numbers, dtype=torch.long, device=maps.device)
    return index, torch.tensor(boxes, dtype=torch.float32, device=maps.device).reshape(-1, 4)
