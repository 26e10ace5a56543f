"""Random numbers, noise and the small functions of the image plane that all images are made of.

An image is the same on every machine: random numbers are drawn from [0, 1) alone, whose streams are fixed;
planes are float32 and made by additions, products and roots, which IEEE 754 fixes to the last bit; sines, which
it does not, are taken in float64 and rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import TypeVar

import numpy as np

__all__ = ["Array", "Draw", "blob", "grid", "rotate", "segment_distance", "smoothstep"]

Array = np.ndarray
T = TypeVar("T")


class Draw:
    """A seeded source of numbers.

    Examples:
        >>> draw = Draw(0, 1)
        >>> 2 <= draw.between(2, 3) < 3, draw.one_of("ab") in "ab"
        (True, True)
    """

    def __init__(self, *seed: int) -> None:
        self.random = np.random.default_rng(list(seed)).random

    def between(self, low: float, high: float) -> float:
        """Returns a number in [low, high)."""
        return low + (high - low) * float(self.random())

    def whole(self, low: int, high: int) -> int:
        """Returns a whole number from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def sign(self) -> int:
        """Returns -1 or 1."""
        return 1 if self.random() < 0.5 else -1

    def chance(self, probability: float) -> bool:
        """Returns True with a probability."""
        return bool(self.random() < probability)

    def one_of(self, choices: Sequence[T]) -> T:
        """Returns one of several, all alike likely."""
        return choices[int(self.random() * len(choices))]

    def grain(self, shape: tuple[int, ...]) -> Array:
        """Returns white noise of mean 0 and deviation 1, evenly spread."""
        noise = self.random(shape, dtype=np.float32)
        noise -= 0.5
        noise *= 12**0.5
        return noise

    def noise(self, size: int, cells: float, stretch: float = 1.0) -> Array:
        """Returns smooth noise (size, size), about within [-1, 1].

        Args:
            size: Side in pixels.
            cells: Waves along the side.
            stretch: Ratio of the columns' cells to the rows'.
        """
        rows, columns = max(2, round(cells) + 3), max(2, round(cells * stretch) + 3)
        knots = 2 * self.random((rows, columns)) - 1
        return (1.4 * (_weights(size, rows) @ knots @ _weights(size, columns).T)).astype(np.float32)


@cache
def _weights(size: int, knots: int) -> Array:
    """Returns cubic B-spline weights (size, knots)."""
    place = (np.arange(size) + 0.5) / size * (knots - 3) + 1
    distance = np.abs(place[:, None] - np.arange(knots)[None])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)


@cache
def grid(size: int) -> tuple[Array, Array]:
    """Returns the x and y of pixel centres (size, size) in [-1, 1]; not to be edited."""
    line = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def rotate(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Returns coordinates in axes turned by an angle in radians."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def smoothstep(low: float, high: float, x: Array) -> Array:
    """Returns 0 below low, 1 above high and a smooth rise between."""
    t = (x - low) * (1 / (high - low))
    np.clip(t, 0, 1, out=t)
    return t * t * (3 - 2 * t)


def segment_distance(x: Array, y: Array, points: Sequence[tuple[float, float]]) -> Array:
    """Returns the distance of every pixel to a line through points."""
    best = np.full_like(x, np.inf)
    for (ax, ay), (bx, by) in pairwise(points):
        dx, dy = bx - ax, by - ay
        length = max(dx * dx + dy * dy, 1e-12)
        from_x, from_y = x - ax, y - ay
        t = np.clip(from_x * (dx / length) + from_y * (dy / length), 0, 1)
        from_x -= t * dx
        from_y -= t * dy
        from_x *= from_x
        from_y *= from_y
        from_x += from_y
        np.minimum(best, from_x, out=best)
    return np.sqrt(best)


def blob(draw: Draw, x: Array, y: Array, center: tuple[float, float], radius: float, rough: float = 0.35) -> Array:
    """Returns about the signed distance to a round, uneven patch: negative inside."""
    dx, dy = rotate(x - center[0], y - center[1], draw.between(0, np.pi))
    dy *= draw.between(0.8, 1.6)
    distance = np.sqrt(dx * dx + dy * dy)
    distance += 1e-9
    dx /= distance  # cosine and sine of the direction; those of its multiples follow without trigonometry
    dy /= distance
    double_x, double_y = dx * dx - dy * dy, 2 * dx * dy
    triple_x, triple_y = double_x * dx - double_y * dy, double_x * dy + double_y * dx
    fifth_x, fifth_y = triple_x * double_x - triple_y * double_y, triple_x * double_y + triple_y * double_x
    for wave, cos, sin in ((2, double_x, double_y), (3, triple_x, triple_y), (5, fifth_x, fifth_y)):
        size, phase = rough / wave * draw.between(-1, 1) * radius, draw.between(0, 2 * np.pi)
        distance -= size * float(np.cos(phase)) * cos
        distance -= size * float(np.sin(phase)) * sin
    distance -= radius
    return distance
