"""Medical-like images: smooth ellipses and tissue. Nothing here resembles a patient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vlad.rendered.draw import Array, Draw, grid, rotate, segment_distance, smoothstep

__all__ = ["TISSUES"]


def _ellipse(u: Array, v: Array, cu: float, cv: float, a: float, b: float) -> Array:
    return (np.sqrt(((u - cu) / a) ** 2 + ((v - cv) / b) ** 2) - 1) * min(a, b)


def _grey(tone: Array) -> Array:
    return np.repeat(tone[None], 3, axis=0)


def _tint(tone: Array, color: tuple[float, float, float]) -> Array:
    return tone * np.array(color)[:, None, None]


def _head(draw: Draw, size: int) -> tuple[Array, Array]:
    u, v = rotate(*grid(size), draw.between(-0.25, 0.25))
    a, b = draw.between(0.62, 0.72), draw.between(0.78, 0.88)
    skull = _ellipse(u, v, 0, 0, a, b)
    tone = 0.42 + 0.05 * draw.noise(size, 5) + 0.04 * draw.noise(size, 14)
    for side in (-1, 1):
        hollow = _ellipse(u, v, side * draw.between(0.11, 0.15), draw.between(-0.08, 0.02), 0.07, 0.24)
        tone = tone - 0.25 * smoothstep(0.02, -0.02, hollow)
    tone = tone - 0.1 * smoothstep(0.02, 0.0, np.abs(u))
    tone = np.where(skull > -0.07, 0.85, tone) * smoothstep(0.01, -0.01, skull) + 0.03
    return _grey(tone), skull + 0.1


def _skin(draw: Draw, size: int) -> tuple[Array, Array]:
    tone = 0.8 + 0.05 * draw.noise(size, 4) + 0.04 * draw.noise(size, 24) + draw.between(-0.12, 0.1)
    image = _tint(tone, (1.0, draw.between(0.72, 0.8), draw.between(0.6, 0.7)))
    x, y = grid(size)
    for _ in range(draw.whole(0, 4)):
        ax, ay, angle, bend = draw.between(-1, 1), draw.between(-1, 1), draw.between(0, 6.3), draw.between(-0.3, 0.3)
        points = [(ax + t * np.cos(angle + bend * t), ay + t * np.sin(angle + bend * t)) for t in (0.0, 0.3, 0.6)]
        image *= 1 - 0.4 * smoothstep(0.02, 0.006, segment_distance(x, y, points))
    return image, np.full((size, size), -1.0)


def _ultrasound(draw: Draw, size: int) -> tuple[Array, Array]:
    _, y = rotate(*grid(size), draw.between(-0.2, 0.2))
    layers = 0.12 * np.sin(draw.between(5, 8) * (y + 0.08 * draw.noise(size, 3)) + draw.between(0, 6))
    tone = (0.38 + layers - 0.12 * y) * (1 + 0.35 * draw.noise(size, size / 3) + 0.15 * draw.grain((size, size)))
    return _grey(np.clip(tone, 0.02, 1)), np.full((size, size), -1.0)


def _retina(draw: Draw, size: int) -> tuple[Array, Array]:
    x, y = grid(size)
    field = np.sqrt(x * x + y * y) - 0.93
    tone = 0.72 + 0.06 * draw.noise(size, 3) - 0.15 * (x * x + y * y)
    image = _tint(tone, (1.0, 0.5, 0.25))
    side = draw.sign()
    cx, cy = side * draw.between(0.35, 0.5), draw.between(-0.1, 0.1)
    for start in (0.5, 1.0, 2.1, 2.6, -0.5, -1.0, -2.1, -2.6):
        angle = start + draw.between(-0.2, 0.2)
        points = [(cx + t * np.cos(angle - 0.3 * t), cy + t * np.sin(angle + 0.3 * t)) for t in (0.05, 0.4, 0.8)]
        image *= 1 - 0.35 * smoothstep(0.035, 0.01, segment_distance(x, y, points))
    disc = smoothstep(0.17, 0.12, np.sqrt((x - cx) ** 2 + (y - cy) ** 2))
    image = image * (1 - disc) + disc * np.array((1.0, 0.85, 0.55))[:, None, None]
    return image * smoothstep(0.0, -0.04, field), field + 0.08


def _mucosa(draw: Draw, size: int) -> tuple[Array, Array]:
    x, y = rotate(*grid(size), draw.between(0, 6.3))
    fold = np.sin(draw.between(4, 6) * (y + 0.25 * draw.noise(size, 2)) + draw.between(0, 6))
    tone = 0.72 + 0.12 * fold + 0.05 * draw.noise(size, 8) - 0.12 * (x * x + y * y)
    return _tint(np.clip(tone, 0, 1), (1.0, 0.56, 0.5)), np.full((size, size), -1.0)


def _thorax(draw: Draw, size: int) -> tuple[Array, Array]:
    u, v = rotate(*grid(size), draw.between(-0.1, 0.1))
    tone = 0.62 + 0.05 * draw.noise(size, 4)
    inside = np.full(u.shape, 1.0)
    for side in (-1, 1):
        lung = _ellipse(u, v, side * draw.between(0.4, 0.46), 0.0, draw.between(0.3, 0.35), draw.between(0.68, 0.78))
        tone = tone - 0.42 * smoothstep(0.05, -0.05, lung)
        inside = np.minimum(inside, lung)
    ribs = np.sin(draw.between(13, 15) * (v + 0.35 * u * u) + draw.between(0, 6))
    return _grey(np.clip(tone + 0.05 * ribs, 0, 1)), inside + 0.08


TISSUES: dict[str, Callable[[Draw, int], tuple[Array, Array]]] = {
    "head_scan": _head,
    "skin": _skin,
    "ultrasound": _ultrasound,
    "retina": _retina,
    "mucosa": _mucosa,
    "thorax": _thorax,
}
"""Tissue → image (3, S, S) and where lesions may lie (S, S), negative inside."""
