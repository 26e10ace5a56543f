"""Defects, painted on an image with their exact masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlad.rendered.draw import Array, Draw, blob, grid, rotate, segment_distance, smoothstep
from vlad.rendered.parts import COLORS

__all__ = ["DEFECTS", "LESIONS", "Canvas"]


@dataclass
class Canvas:
    """An image without defect.

    Attributes:
        image: Red, green, blue in [0, 1] (3, S, S); edited in place.
        background: What shows where the part is missing (3, S, S).
        depth: About the signed distance to the part's outline (S, S), negative inside; the frame is 2 wide.
        mask: Coverage of the defects (S, S), in [0, 1].
    """

    image: Array
    background: Array
    depth: Array
    mask: Array

    @property
    def pixel(self) -> float:
        """Width of a pixel."""
        return 2 / self.depth.shape[0]

    def cover(self, distance: Array, softness: float = 1.0) -> Array:
        """Returns how far a figure of a signed distance covers each pixel of the part; softness in pixels."""
        pixel = self.pixel
        return np.clip(0.5 - distance * (1 / (pixel * softness)), 0, 1) * np.clip(0.5 - self.depth * (1 / pixel), 0, 1)

    def paint(self, alpha: Array, color: Array | float) -> None:
        """Paints a colour, or an image, and counts it as defect."""
        if isinstance(color, np.ndarray) and color.ndim == 1:
            color = color.astype(np.float32)[:, None, None]
        self.image += alpha * (color - self.image)
        np.maximum(self.mask, alpha, out=self.mask)

    def place(self, draw: Draw, margin: float) -> tuple[float, float]:
        """Returns a place on the part, at least the margin away from its outline where it is wide enough."""
        inside = np.flatnonzero((self.depth < -margin).ravel())
        if not len(inside):
            inside = np.flatnonzero((self.depth <= self.depth.min() * 0.7).ravel())
        x, y = grid(self.depth.shape[0])
        chosen = inside[int(draw.random() * len(inside))]
        # Not too near the frame: surfaces and tissue fill it.
        return tuple(float(np.clip(axis.flat[chosen], -0.82, 0.82)) for axis in (x, y))  # type: ignore[return-value]

    def color_at(self, center: tuple[float, float]) -> Array:
        """Returns the mean colour about a place (3,)."""
        size = self.depth.shape[0]
        column, row = (int((c + 1) / 2 * size) for c in center)
        return self.image[:, max(0, row - 4) : row + 5, max(0, column - 4) : column + 5].mean((1, 2), dtype=np.float64)

    def ink(self, draw: Draw, center: tuple[float, float]) -> Array:
        """Returns a dark or a light tone that stands out there (3,)."""
        here = float(self.color_at(center).mean())
        light = here < 0.32 or (here < 0.55 and draw.chance(0.4))
        tone = min(1.0, here + draw.between(0.35, 0.5)) if light else max(0.0, here - draw.between(0.35, 0.5))
        return np.clip(tone + np.array([draw.between(-0.06, 0.06) for _ in range(3)]), 0, 1)


def _walk(draw: Draw, start: tuple[float, float], step: float, steps: int, turn: float) -> list[tuple[float, float]]:
    angle = draw.between(0, 2 * np.pi)
    points = [start]
    for _ in range(steps):
        x, y = points[-1]
        points.append((x + step * float(np.cos(angle)), y + step * float(np.sin(angle))))
        angle += draw.between(-turn, turn)
    return points


def _line(canvas: Canvas, points: list[tuple[float, float]]) -> Array:
    return segment_distance(*grid(canvas.depth.shape[0]), points)


def _blob(canvas: Canvas, draw: Draw, center: tuple[float, float], radius: float, rough: float = 0.35) -> Array:
    return blob(draw, *grid(canvas.depth.shape[0]), center, radius, rough)


def _dot(canvas: Canvas, center: tuple[float, float], radius: float, angle: float) -> Array:
    dx, dy = grid(canvas.depth.shape[0])
    dx, dy = rotate(dx - center[0], dy - center[1], angle)
    dx *= 1.4 if angle else 1.0
    return np.sqrt(dx * dx + dy * dy) - radius


def scratch(canvas: Canvas, draw: Draw) -> None:
    """A thin, nearly straight line."""
    center = canvas.place(draw, 0.12)
    points = _walk(draw, center, draw.between(0.14, 0.26), draw.whole(2, 3), 0.25)
    canvas.paint(canvas.cover(_line(canvas, points) - draw.between(0.018, 0.032)), canvas.ink(draw, center))


def crack(canvas: Canvas, draw: Draw) -> None:
    """A dark jagged line with a branch."""
    center = canvas.place(draw, 0.08)
    points = _walk(draw, center, draw.between(0.07, 0.12), draw.whole(4, 7), 1.1)
    branch = _walk(draw, points[len(points) // 2], 0.08, draw.whole(2, 3), 1.0)
    distance = np.minimum(_line(canvas, points), _line(canvas, branch) + 0.006)
    canvas.paint(canvas.cover(distance - draw.between(0.016, 0.028)), canvas.color_at(center) * draw.between(0.1, 0.3))


def hole(canvas: Canvas, draw: Draw) -> None:
    """A round dark hole with a lit rim."""
    center = canvas.place(draw, 0.15)
    distance = _blob(canvas, draw, center, draw.between(0.07, 0.15), 0.12)
    color = canvas.color_at(center)
    canvas.paint(canvas.cover(np.abs(distance) - 0.02), np.minimum(color * 1.5, 1))
    canvas.paint(canvas.cover(distance), color * draw.between(0.05, 0.25))


def stain(canvas: Canvas, draw: Draw) -> None:
    """An uneven, half transparent dark patch: the texture shows through."""
    center = canvas.place(draw, 0.1)
    alpha = canvas.cover(_blob(canvas, draw, center, draw.between(0.13, 0.24), 0.6), 4)
    tint = np.array([draw.between(0.25, 0.6), draw.between(0.25, 0.5), draw.between(0.2, 0.45)])
    canvas.paint(alpha, canvas.image * tint.astype(np.float32)[:, None, None])


def contamination(canvas: Canvas, draw: Draw) -> None:
    """A cluster of foreign particles."""
    center = canvas.place(draw, 0.1)
    ink, distance = canvas.ink(draw, center), np.full_like(canvas.depth, np.inf)
    for _ in range(draw.whole(5, 10)):
        near = (center[0] + draw.between(-0.17, 0.17), center[1] + draw.between(-0.17, 0.17))
        distance = np.minimum(distance, _dot(canvas, near, draw.between(0.02, 0.05), draw.between(0, np.pi)))
    canvas.paint(canvas.cover(distance), ink)


def missing_part(canvas: Canvas, draw: Draw) -> None:
    """A piece broken off the rim; on a surface without a rim, a notch from the frame's edge."""
    x, y = grid(canvas.depth.shape[0])
    rim = np.flatnonzero((np.abs(canvas.depth) < 0.04).ravel())
    if len(rim):
        chosen = rim[int(draw.random() * len(rim))]
        center = (float(x.flat[chosen]), float(y.flat[chosen]))
    else:
        along = draw.between(-0.7, 0.7)
        center = (along, float(draw.sign())) if draw.chance(0.5) else (float(draw.sign()), along)
    distance = _blob(canvas, draw, center, draw.between(0.17, 0.28), 0.5)
    canvas.paint(canvas.cover(distance), canvas.background)


def dent(canvas: Canvas, draw: Draw) -> None:
    """A hollow, seen by its light and shade alone."""
    center, radius = canvas.place(draw, 0.15), draw.between(0.13, 0.22)
    distance = _blob(canvas, draw, center, radius, 0.15)
    x, y = grid(canvas.depth.shape[0])
    angle = draw.between(0, 2 * np.pi)
    slope = ((x - center[0]) * float(np.cos(angle)) + (y - center[1]) * float(np.sin(angle))) / radius
    shade = 1 + draw.between(0.55, 0.75) * np.clip(slope, -1, 1)
    canvas.paint(canvas.cover(distance, 2), np.clip(canvas.image * shade, 0, 1))


def color_spot(canvas: Canvas, draw: Draw) -> None:
    """A patch of another colour."""
    center = canvas.place(draw, 0.1)
    here = canvas.color_at(center)
    others = [color for color in COLORS.values() if float(np.abs(np.array(color) - here).sum()) > 0.6]
    color = np.array(draw.one_of(others)) * draw.between(0.85, 1.1)
    canvas.paint(canvas.cover(_blob(canvas, draw, center, draw.between(0.09, 0.19), 0.4), 1.5), np.clip(color, 0, 1))


def burn(canvas: Canvas, draw: Draw) -> None:
    """A mark that darkens towards its middle."""
    center, radius = canvas.place(draw, 0.1), draw.between(0.12, 0.22)
    distance = _blob(canvas, draw, center, radius, 0.3)
    char = np.array([0.13, 0.09, 0.06], np.float32)[:, None, None]
    depth = smoothstep(0.0, -0.7 * radius, distance)
    canvas.paint(canvas.cover(distance, 3), canvas.image * (0.55 - 0.4 * depth) + char * depth * 0.6)


def wear(canvas: Canvas, draw: Draw) -> None:
    """A rubbed place: pale, the texture gone."""
    center = canvas.place(draw, 0.1)
    distance = _blob(canvas, draw, center, draw.between(0.13, 0.22), 0.5)
    here = canvas.color_at(center)
    pale = here + (0.95 - here) * draw.between(0.45, 0.65) if here.mean() < 0.6 else here * draw.between(0.5, 0.65)
    canvas.paint(0.92 * canvas.cover(distance, 3), pale)


def thread(canvas: Canvas, draw: Draw) -> None:
    """A long curved fibre with its shadow."""
    center = canvas.place(draw, 0.08)
    bend = draw.between(0.15, 0.45) * draw.sign()
    angle, step = draw.between(0, 2 * np.pi), draw.between(0.09, 0.13)
    points = [center]
    for _ in range(8):
        points.append((points[-1][0] + step * float(np.cos(angle)), points[-1][1] + step * float(np.sin(angle))))
        angle += bend
    distance, color = _line(canvas, points), np.array(draw.one_of(list(COLORS.values())))
    if float(np.abs(color - canvas.color_at(center)).sum()) < 0.5:
        color = canvas.ink(draw, center)
    canvas.image *= 1 - 0.25 * smoothstep(0.06, 0.02, distance)
    canvas.paint(canvas.cover(distance - draw.between(0.02, 0.032)), color)


DEFECTS: dict[str, Callable[[Canvas, Draw], None]] = {
    defect.__name__: defect
    for defect in (
        scratch,
        crack,
        hole,
        stain,
        contamination,
        missing_part,
        dent,
        color_spot,
        burn,
        wear,
        thread,
    )
}
"""Defects of parts by name."""


def mass(canvas: Canvas, draw: Draw) -> None:
    """A soft bright or dark round growth."""
    center = canvas.place(draw, 0.15)
    here, radius = canvas.color_at(center), draw.between(0.1, 0.22)
    gain = draw.between(0.2, 0.35) * (1 if here.mean() < 0.6 else -1)
    alpha = canvas.cover(_blob(canvas, draw, center, radius, 0.35), 5)
    canvas.paint(alpha, np.clip(canvas.image + gain, 0, 1))


def lesion(canvas: Canvas, draw: Draw) -> None:
    """An uneven patch of another tint."""
    center = canvas.place(draw, 0.15)
    alpha = canvas.cover(_blob(canvas, draw, center, draw.between(0.12, 0.24), 0.6), 3)
    tint = np.array([draw.between(0.4, 0.75), draw.between(0.3, 0.6), draw.between(0.3, 0.65)])
    if float(np.ptp(canvas.color_at(center))) < 0.03:
        tint[:] = tint[0]  # a scan without colour
    canvas.paint(alpha, canvas.image * tint.astype(np.float32)[:, None, None])


def nodules(canvas: Canvas, draw: Draw) -> None:
    """Several small round growths, close together."""
    center = canvas.place(draw, 0.15)
    distance, here = np.full_like(canvas.depth, np.inf), canvas.color_at(center)
    for _ in range(draw.whole(3, 6)):
        near = (center[0] + draw.between(-0.2, 0.2), center[1] + draw.between(-0.2, 0.2))
        distance = np.minimum(distance, _dot(canvas, near, draw.between(0.04, 0.07), 0.0))
    gain = draw.between(0.25, 0.4) * (1 if here.mean() < 0.6 else -1)
    canvas.paint(canvas.cover(distance, 2), np.clip(canvas.image + gain, 0, 1))


LESIONS: dict[str, Callable[[Canvas, Draw], None]] = {"mass": mass, "lesion": lesion, "nodules": nodules}
"""Lesions of tissue by name."""
