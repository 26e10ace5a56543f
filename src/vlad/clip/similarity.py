"""Patch-text similarity, shared by all methods: logits → grid → upsampled map → smoothed map."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["normalize", "restrict", "restrict_patches", "smooth", "to_grid", "upsample", "zero_to_one"]


def normalize(x: Tensor) -> Tensor:
    """Scales vectors (..., D) to length 1."""
    return F.normalize(x, dim=-1)


def to_grid(values: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Lays out one value per patch on the patch grid, row by row.

    Args:
        values: Values (B, n).
        grid: Rows and columns (h, w); None for a square grid.

    Returns:
        Values (B, h, w).

    Raises:
        ValueError: n is not a square number and no grid is given.
    """
    count = values.shape[-1]
    if grid is None:
        side = round(count**0.5)
        if side * side != count:
            raise ValueError(f"{count} patches are no square grid; give its rows and columns")
        grid = (side, side)
    return values.unflatten(-1, grid)


def upsample(maps: Tensor, size: int | tuple[int, int], *, align_corners: bool) -> Tensor:
    """Enlarges maps (B, h, w) to (B, H, W) bilinearly, in float32.

    Args:
        maps: Maps on the patch grid.
        size: Output height and width in pixels; one number for both.
        align_corners: Papers differ; see the method's source.
    """
    size = (size, size) if isinstance(size, int) else size
    return F.interpolate(maps.float().unsqueeze(1), size=size, mode="bilinear", align_corners=align_corners).squeeze(1)


@lru_cache(maxsize=16)
def _gaussian_matrix(size: int, sigma: float, truncate: float) -> Tensor:
    """Returns the (size, size) matrix of a one-dimensional Gaussian filter with symmetric borders."""
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    columns = (np.arange(size)[:, None] + offsets[None, :]) % (2 * size)
    columns = np.where(columns >= size, 2 * size - 1 - columns, columns)  # the border pixel is repeated
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None].repeat(len(offsets), 1), columns), weights[None, :])
    with torch.inference_mode(False):  # what is remembered must serve training too
        return torch.from_numpy(matrix.astype(np.float32))


def smooth(maps: Tensor, sigma: float, *, truncate: float = 4.0) -> Tensor:
    """Smooths maps with a Gaussian, as ``scipy.ndimage.gaussian_filter`` does with its defaults.

    Two matrix products with the filter's matrix, which includes the symmetric borders; runs on any device, in
    float32 even under autocast.

    Args:
        maps: Anomaly maps (B, H, W).
        sigma: Standard deviation in pixels; 0 leaves the maps unchanged.
        truncate: Filter radius in units of ``sigma``.

    Returns:
        Smoothed maps (B, H, W), float32.

    Examples:
        >>> maps = torch.zeros(1, 5, 5)
        >>> maps[0, 2, 2] = 1
        >>> round(float(smooth(maps, 1.0)[0, 2, 2]), 4)
        0.1592
    """
    maps = maps.float()
    if sigma <= 0:
        return maps
    rows = _gaussian_matrix(maps.shape[-2], float(sigma), truncate).to(maps.device)
    columns = _gaussian_matrix(maps.shape[-1], float(sigma), truncate).to(maps.device)
    with torch.autocast(maps.device.type, enabled=False):
        return rows @ maps @ columns.T


def restrict(maps: Tensor, roi: Tensor | None) -> Tensor:
    """Sets the pixels outside a region of interest to the lowest value inside.

    Args:
        maps: Anomaly maps (B, H, W).
        roi: Pixels that are inspected (B, H, W), bool, at least one in each image; None for all.

    Examples:
        >>> restrict(torch.tensor([[[1.0, 2.0, 9.0]]]), torch.tensor([[[True, True, False]]]))
        tensor([[[1., 2., 1.]]])
    """
    if roi is None:
        return maps
    lowest = maps.masked_fill(~roi, torch.inf).amin((1, 2), keepdim=True)
    return torch.where(roi, maps, lowest)


def restrict_patches(values: Tensor, roi: Tensor | None) -> Tensor:
    """Sets the patches without an inspected pixel to the lowest value of the others.

    Args:
        values: Values on the patch grid (B, h, w).
        roi: Pixels that are inspected (B, H, W), as in :func:`restrict`.
    """
    if roi is None:
        return values
    return restrict(values, F.adaptive_max_pool2d(roi[:, None].float(), values.shape[-2:])[:, 0] > 0)


def zero_to_one(scores: Tensor) -> Tensor:
    """Rescales scores (N, ...) to [0, 1] over the first axis; a constant column gives 0.

    Published evaluations (CLIP-AD, APRIL-GAN) do this over all test images of a category before adding the
    parts of an image score; it needs the whole test set.
    """
    low, high = scores.amin(0), scores.amax(0)
    spread = torch.where(high > low, high - low, torch.ones_like(high))
    return (scores - low) / spread
