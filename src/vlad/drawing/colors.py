"""Colours of maps and overlays; all of it reads in grey and with colour-blind eyes too."""

from __future__ import annotations

import numpy as np

from vlad.drawing.scale import Scale

__all__ = ["FOUND", "TRUTH", "blend", "color_map", "colorize", "draw_line", "hatch", "outline"]

# Dark to light: black, purple, red, orange, yellow.
_ANCHORS = np.array(
    [
        (0, 0, 4),
        (31, 12, 72),
        (85, 15, 109),
        (136, 34, 106),
        (186, 54, 85),
        (227, 89, 51),
        (249, 140, 10),
        (249, 201, 50),
        (252, 255, 164),
    ],
    dtype=float,
)
_PALETTE = np.stack(
    [np.interp(np.linspace(0, len(_ANCHORS) - 1, 256), np.arange(len(_ANCHORS)), channel) for channel in _ANCHORS.T],
    axis=-1,
).astype(np.uint8)
_USUAL = 0.4
"""Share of the palette, its dark end, for what is usual: from ``floor`` to ``low``."""
_OPAQUE = 0.8
"""Weight of the strongest colour over the image."""
FOUND, TRUTH = (255, 255, 255), (86, 220, 255)
"""Colours of the lines around found regions (unbroken) and around the ground truth (dashed)."""


def colorize(positions: np.ndarray) -> np.ndarray:
    """Maps positions on the palette in [0, 1] (H, W) to RGB (H, W, 3), uint8; outside they take the end colours."""
    return _PALETTE.take((np.clip(positions, 0, 1) * 255).astype(np.uint8), axis=0)  # several times faster than [...]


def color_map(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Returns the colours (H, W, 3), uint8, of scores (H, W): dark what is usual, bright what is not."""
    return colorize(_USUAL * scale.depth(values) + (1 - _USUAL) * scale.strength(values))


def blend(image: np.ndarray, values: np.ndarray, scale: Scale) -> np.ndarray:
    """Lays the colours of scores over an image.

    Args:
        image: The image (H, W, 3), uint8.
        values: Scores (H, W).
        scale: What the colours mean.

    Returns:
        The overlay (H, W, 3), uint8, a new one: the image itself wherever scores are not above ``scale.low``.
    """
    overlay = image.copy()
    colored = np.nonzero(values > scale.low)  # mostly few
    above = values[colored]
    weight = (_OPAQUE * scale.strength(above) ** 0.6)[:, None]
    overlay[colored] = np.rint(image[colored] * (1 - weight) + color_map(above, scale) * weight).astype(np.uint8)
    return overlay


def hatch(image: np.ndarray, inspected: np.ndarray) -> np.ndarray:
    """Greys and hatches what was not inspected.

    Args:
        image: RGB (H, W, 3), uint8.
        inspected: Where there are scores (H, W), bool.

    Returns:
        RGB (H, W, 3), uint8.
    """
    if inspected.all():
        return image
    rows, columns = np.indices(inspected.shape)
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.4 + 90
    grey[(rows + columns) % 8 == 0] = 215
    return np.where(inspected[..., None], image, grey.astype(np.uint8))


def outline(mask: np.ndarray) -> np.ndarray:
    """Returns the pixels of a mask that touch its outside (H, W), bool."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _grown(mask: np.ndarray) -> np.ndarray:
    """Returns a mask and the eight neighbours of each of its pixels (H, W), bool."""
    padded = np.pad(mask, ((0, 0), (1, 1)))
    wide = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    padded = np.pad(wide, ((1, 1), (0, 0)))
    return padded[:-2] | padded[1:-1] | padded[2:]


def draw_line(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], *, dashed: bool = False) -> None:
    """Draws the outline of a mask into an image, with a dark rim so that it shows on any ground.

    Args:
        image: RGB (H, W, 3), uint8; changed.
        mask: What to draw around (H, W), bool.
        color: Colour of the line.
        dashed: Whether every other stretch of the line is left out.
    """
    if not mask.any():
        return
    # Only what the mask and its rim take up is worked on.
    top, bottom, left, right = (int(place) for axis in (1, 0) for place in np.flatnonzero(mask.any(axis))[[0, -1]])
    height, width = mask.shape
    area = np.s_[max(0, top - 1) : min(bottom + 2, height), max(0, left - 1) : min(right + 2, width)]
    part = mask[area]
    line = outline(part)
    rim = _grown(line) & ~part
    if dashed:
        rows, columns = np.ogrid[area]
        shown = (rows + columns) % 8 < 5
        line, rim = line & shown, rim & shown
    image[area][rim] = (0, 0, 0)
    image[area][line] = color
