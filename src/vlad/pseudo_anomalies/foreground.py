"""Where the part is: what differs from the colour along the image's border."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["foreground"]


def foreground(images: Tensor) -> Tensor:
    """Finds the part in images of a part before a plain background.

    Where the border is not plain, or nothing or nearly everything stands out, the whole image counts: textures and
    close-ups have no background.

    Args:
        images: Images (B, 3, S, S) in [0, 1].

    Returns:
        True on the part (B, S, S), bool.
    """
    size = images.shape[-1]
    rim = max(1, size // 32)
    border = torch.ones(size, size, dtype=torch.bool, device=images.device)
    border[rim:-rim, rim:-rim] = False
    color = images[:, :, border].median(dim=2).values
    away = (images - color[:, :, None, None]).abs().amax(1)
    spread = away[:, border].quantile(0.9, dim=1)
    part = (away > (1.5 * spread).clamp(min=0.08)[:, None, None]).float()
    reach = max(1, size // 64)
    part = F.max_pool2d(part, 2 * reach + 1, 1, reach)
    part = -F.max_pool2d(-part, 2 * reach + 1, 1, reach)  # closed: dark spots on the part belong to it
    share = part.mean((1, 2))
    plain = (spread < 0.25) & (share > 0.03) & (share < 0.95)
    return (part > 0.5) | ~plain[:, None, None]
