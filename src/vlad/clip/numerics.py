"""Differences in how published detectors run CLIP that change the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Numerics"]


@dataclass(frozen=True)
class Numerics:
    """Options in which published detectors run CLIP differently; each changes the numbers.

    Attributes:
        activation: ``"pretrained"`` uses the activation the weights were trained with. ``"gelu"`` and
            ``"quick_gelu"`` force one: AdaCLIP and APRIL-GAN run OpenAI's QuickGELU weights with GELU.
        position_resize: Interpolation of the position embedding at other image sizes.
        position_antialias: Whether that interpolation is antialiased (open_clip from 2.20 on: yes; AdaCLIP
            and AnomalyCLIP: no).
    """

    activation: Literal["pretrained", "gelu", "quick_gelu"] = "pretrained"
    position_resize: Literal["bicubic", "bilinear"] = "bicubic"
    position_antialias: bool = True
