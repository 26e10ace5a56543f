"""Finds connected anomalous regions of a map, in pixels of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Region", "find_regions"]


class Region(NamedTuple):
    """A connected component of the map at or above the pixel threshold.

    Attributes:
        x: Left edge of its box, in pixels of the image.
        y: Upper edge.
        w: Width of the box, at least 1.
        h: Height of the box, at least 1.
        area: Number of image pixels in the region, at least 1.
        score: Maximum of the map in the region.
    """

    x: int
    y: int
    w: int
    h: int
    area: int
    score: float


def find_regions(
    anomaly_map: np.ndarray, threshold: float, seen_size: Sequence[int], *, min_area: float = 0.0
) -> tuple[list[Region], int]:
    """Finds the 8-connected regions of a map, highest score first.

    Args:
        anomaly_map: Map (H, W), float32; NaN is below every threshold.
        threshold: Smallest value that belongs to a region.
        seen_size: Height and width, in pixels of the image, of the part that the map covers, from the top left.
        min_area: Smallest area of a region, as a share of the map's pixels, in [0, 1).

    Returns:
        The regions, and their total area in pixels of the image.

    Examples:
        >>> part = np.zeros((4, 4), np.float32)
        >>> part[1, 1:3] = 0.75
        >>> find_regions(part, 0.5, (8, 40))
        ([Region(x=10, y=2, w=20, h=2, area=40, score=0.75)], 40)
    """
    import cv2

    inside = anomaly_map >= threshold
    if not inside.any():
        return [], 0
    height, width = anomaly_map.shape
    seen_height, seen_width = (int(side) for side in seen_size)
    down, across = seen_height / height, seen_width / width
    count, found_labels, stats, _ = cv2.connectedComponentsWithStats(inside.view(np.uint8), connectivity=8)
    labels = np.asarray(found_labels, np.int32)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, labels[inside], anomaly_map[inside])
    found, pixels = [], 0
    for label in range(1, count):
        left, top, columns, rows, size = (int(value) for value in stats[label])
        if size < min_area * height * width:
            continue
        pixels += size
        x, y = math.floor(left * across), math.floor(top * down)
        right, bottom = math.ceil((left + columns) * across), math.ceil((top + rows) * down)
        found.append(
            Region(
                x,
                y,
                max(1, min(right, seen_width) - x),
                max(1, min(bottom, seen_height) - y),
                max(1, round(size * across * down)),
                float(peaks[label]),
            )
        )
    found.sort(key=lambda region: (-region.score, region.y, region.x))
    return found, max(1, round(pixels * across * down)) if found else 0
