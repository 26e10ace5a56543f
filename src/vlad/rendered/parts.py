"""What manufactured things look like here: shapes, textures, colours. Each is a function of the part's own plane."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vlad.rendered.draw import Array, Draw, smoothstep

__all__ = ["COLORS", "SHAPES", "TEXTURES"]


def _box(u: Array, v: Array, half_u: float, half_v: float, corner: float = 0.08) -> Array:
    du, dv = np.abs(u) - half_u + corner, np.abs(v) - half_v + corner
    outside = np.sqrt(np.maximum(du, 0) ** 2 + np.maximum(dv, 0) ** 2)
    return outside + np.minimum(np.maximum(du, dv), 0) - corner


def _radius(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v)


def _hexagon(u: Array, v: Array, radius: float) -> Array:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(v, 0.8660254037844386 * u + 0.5 * v) - radius


def _fivefold(u: Array, v: Array, r: Array) -> Array:
    """Returns the cosine of five times the direction."""
    cos = u / (r + 1e-9)
    square = cos * cos
    return cos * (square * (16 * square - 20) + 5)


def _gear(u: Array, v: Array) -> Array:
    r = _radius(u, v)
    teeth = np.clip(4 * _fivefold(u, v, r) ** 2 - 2, -1, 1)
    return np.maximum(r - 0.84 - 0.11 * teeth, 0.24 - r)


def _bracket(u: Array, v: Array) -> Array:
    return np.minimum(_box(u + 0.55, v, 0.3, 0.9), _box(u, v - 0.6, 0.85, 0.3))


def _star(u: Array, v: Array) -> Array:
    r = _radius(u, v)
    return r - 0.74 - 0.22 * _fivefold(u, v, r)


def _triangle(u: Array, v: Array) -> Array:
    return np.maximum(0.8660254037844386 * np.abs(u) + 0.5 * (v - 0.15), -(v - 0.15)) - 0.5


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: _radius(u, v) - 0.92,
    "ring": lambda u, v: np.abs(_radius(u, v) - 0.68) - 0.26,
    "gear": _gear,
    "pill": lambda u, v: _box(u, v, 1.0, 0.46, 0.45),
    "bar": lambda u, v: _box(u, v, 1.05, 0.34),
    "plate": lambda u, v: _box(u, v, 0.82, 0.82, 0.15),
    "nut": lambda u, v: np.maximum(_hexagon(u, v, 0.85), 0.36 - _radius(u, v)),
    "star": _star,
    "cross": lambda u, v: np.minimum(_box(u, v, 0.98, 0.34), _box(u, v, 0.34, 0.98)),
    "bracket": _bracket,
    "crescent": lambda u, v: np.maximum(_radius(u, v) - 0.95, 0.62 - _radius(u - 0.48, v)),
    "triangle": _triangle,
    "surface": lambda u, v: np.full_like(u, -1.0),
}
"""Shape → about the signed distance (S, S) to its outline, negative inside; a part reaches about 1 from its middle."""


def _stripes(draw: Draw, u: Array, v: Array) -> Array:
    return np.clip(2.5 * np.sin(draw.between(11, 15) * u + draw.between(0, 6)), -1, 1)


def _checks(draw: Draw, u: Array, v: Array) -> Array:
    k = draw.between(9, 12)
    return np.clip(4 * np.sin(k * u + draw.between(0, 6)) * np.sin(k * v + draw.between(0, 6)), -1, 1)


def _weave(draw: Draw, u: Array, v: Array) -> Array:
    k = draw.between(15, 19)
    a, b = np.sin(k * u), np.sin(k * v)
    return np.where(a * b > 0, np.abs(a), -np.abs(b)) * 0.9


def _grain(draw: Draw, u: Array, v: Array) -> Array:
    n = u.shape[0]
    return 0.8 * np.sin(draw.between(9, 12) * (v + 0.12 * draw.noise(n, 3)) + 3 * u * draw.between(-0.3, 0.3))


def _brush(draw: Draw, u: Array, v: Array) -> Array:
    lines = 2 * draw.random(256) - 1
    lines = lines + np.roll(lines, 1)
    return 0.6 * lines[((v + 4) * 24).astype(np.int64) % 256]


def _speckle(draw: Draw, u: Array, v: Array) -> Array:
    n = u.shape[0]
    return smoothstep(0.35, 0.7, draw.noise(n, n / 3)) * 1.5 - 0.3


def _dots(draw: Draw, u: Array, v: Array) -> Array:
    k = draw.between(10, 13)
    return smoothstep(0.9, 1.5, np.sin(k * u) + np.sin(k * v)) * 1.6 - 0.4


def _marble(draw: Draw, u: Array, v: Array) -> Array:
    n = u.shape[0]
    return 1 - 2.6 * np.sqrt(np.abs(draw.noise(n, 4)) + 0.01)


def _ribs(draw: Draw, u: Array, v: Array) -> Array:
    wave = (draw.between(3.2, 4.4) * v + draw.between(0, 1)) % 1
    return 1.4 * wave - 0.7


TEXTURES: dict[str, Callable[[Draw, Array, Array], Array]] = {
    "plain": lambda draw, u, v: np.zeros_like(u),
    "striped": _stripes,
    "checked": _checks,
    "woven": _weave,
    "grained": _grain,
    "brushed": _brush,
    "speckled": _speckle,
    "dotted": _dots,
    "marbled": _marble,
    "ribbed": _ribs,
}
"""Texture → tone (S, S) about within [-1, 1], 0 being the part's own colour."""

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.72, 0.18, 0.16),
    "orange": (0.85, 0.50, 0.15),
    "yellow": (0.85, 0.76, 0.25),
    "green": (0.25, 0.58, 0.28),
    "teal": (0.18, 0.58, 0.58),
    "blue": (0.22, 0.36, 0.74),
    "purple": (0.50, 0.30, 0.64),
    "brown": (0.48, 0.32, 0.20),
    "grey": (0.55, 0.56, 0.58),
    "white": (0.85, 0.85, 0.82),
}
"""Colour → red, green, blue in [0, 1]."""
