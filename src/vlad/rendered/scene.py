"""One image: a part or a tissue, its light and background, and perhaps a defect."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlad.rendered.defects import DEFECTS, LESIONS, Canvas
from vlad.rendered.draw import Array, Draw, grid, rotate, smoothstep
from vlad.rendered.parts import COLORS, SHAPES, TEXTURES
from vlad.rendered.tissue import TISSUES

__all__ = ["Look", "RenderedImage", "render"]


class Look(NamedTuple):
    """What is in an image: a part by shape, texture and colour, or a tissue.

    Attributes:
        shape: One of :data:`SHAPES`, or of :data:`TISSUES`.
        texture: One of :data:`TEXTURES`; "" for tissue.
        color: One of :data:`COLORS`; "" for tissue.
    """

    shape: str
    texture: str = ""
    color: str = ""


class RenderedImage(NamedTuple):
    """A rendered image.

    Attributes:
        image: Red, green, blue (S, S, 3), uint8.
        mask: True where the defect is (S, S), bool.
    """

    image: Array
    mask: Array


def render(look: Look, defect: str = "", *, seed: tuple[int, ...], size: int = 128) -> RenderedImage:
    """Renders an image, the same on every machine for one seed.

    Args:
        look: What is in it.
        defect: One of :data:`DEFECTS`, for tissue one of :data:`LESIONS`; "" for none.
        seed: Whole numbers, at least 0.
        size: Side S in pixels.

    Examples:
        >>> image, mask = render(Look("gear", "brushed", "teal"), "hole", seed=(0,), size=64)
        >>> image.shape, mask.dtype, bool(mask.any())
        ((64, 64, 3), dtype('bool'), True)
    """
    for attempt in range(8):
        draw = Draw(*seed, attempt)
        canvas = _tissue(draw, look, size) if look.shape in TISSUES else _part(draw, look, size)
        if defect:
            (LESIONS if look.shape in TISSUES else DEFECTS)[defect](canvas, draw)
        mask = canvas.mask > 0.5
        if not defect or mask.sum() >= 3e-3 * size * size:  # rarely, a defect falls beside a narrow part
            break
    image = draw.grain((3, size, size))
    image *= 0.012 * 255
    image += canvas.image * 255
    image += 0.5
    np.clip(image, 0, 255, out=image)
    return RenderedImage(np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0)), mask)


def _background(draw: Draw, size: int) -> Array:
    x, _ = rotate(*grid(size), draw.between(0, 2 * np.pi))
    tone = draw.between(0.08, 0.85)
    tint = tone + np.array([draw.between(-0.05, 0.05) for _ in range(3)])
    light = 1 + draw.between(0, 0.15) * x + draw.between(0, 0.08) * draw.noise(size, 3)
    return tint.astype(np.float32)[:, None, None] * light


def _part(draw: Draw, look: Look, size: int) -> Canvas:
    x, y = grid(size)
    scale = draw.between(0.66, 0.82)
    fills = look.shape == "surface"
    dx, dy = (0.0, 0.0) if fills else (draw.between(-0.13, 0.13), draw.between(-0.13, 0.13))
    turn = draw.between(-0.15, 0.15) if fills else draw.between(0, 2 * np.pi)
    u, v = (axis / scale for axis in rotate(x - dx, y - dy, turn))
    depth = SHAPES[look.shape](u, v) * scale
    background = _background(draw, size)

    color = np.array(COLORS[look.color]) + np.array([draw.between(-0.04, 0.04) for _ in range(3)])
    if abs(float(background.mean() - color.mean())) < 0.13:  # a part must be seen
        background = background * 0.45 if color.mean() > 0.3 else background + 0.3
    tone = TEXTURES[look.texture](draw, u.astype(np.float64), v.astype(np.float64)) * draw.between(0.14, 0.22)
    part = color.astype(np.float32)[:, None, None] * (1 + tone.astype(np.float32))

    angle = draw.between(0, 2 * np.pi)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    toward = cos * x + sin * y
    light = draw.between(0.88, 1.08) * (1 + draw.between(0.03, 0.16) * toward)
    if not fills:
        slope_y, slope_x = np.gradient(depth)
        facing = (cos * slope_x + sin * slope_y) * (size / 2)
        light = light + 0.22 * np.clip(facing, -1, 1) * smoothstep(-0.09, 0.0, depth)
        away = rotate(np.array(0.07 * cos, np.float32), np.array(0.07 * sin, np.float32), turn)
        shadow = SHAPES[look.shape](u + away[0], v + away[1]) * scale
        background = background * (1 - 0.35 * smoothstep(0.05, -0.05, shadow))
    cover = np.clip(0.5 - depth * size / 2, 0, 1)
    image = background + cover * (part * light - background)
    return Canvas(np.clip(image, 0, 1), np.clip(background, 0, 1), depth, np.zeros_like(depth))


def _tissue(draw: Draw, look: Look, size: int) -> Canvas:
    image, depth = TISSUES[look.shape](draw, size)
    image = np.clip(image * draw.between(0.85, 1.1), 0, 1).astype(np.float32)
    return Canvas(image, np.full_like(image, 0.05), depth.astype(np.float32), np.zeros((size, size), np.float32))
