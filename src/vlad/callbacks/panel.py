"""One panel per image: image | anomaly map | mask | overlay, with its score and a colour bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Panel", "colorize", "draw_contact_sheet", "draw_panel"]

# A dark-to-light scale that also reads in grey and with colour-blind eyes (black, purple, red, orange, yellow).
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
_CONTOUR = (0, 230, 118)
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


@dataclass(frozen=True)
class Panel:
    """What a panel shows.

    Attributes:
        title: First line of text: which image.
        caption: Second line: score and label.
        image: The image, RGB.
        anomaly_map: Its map (H, W), any size.
        mask: Ground truth (H, W), bool, or None where it is not known.
        earlier: Earlier maps by name (H, W), where a method refines its map.
    """

    title: str
    caption: str
    image: Image.Image
    anomaly_map: np.ndarray
    mask: np.ndarray | None = None
    earlier: Mapping[str, np.ndarray] = field(default_factory=dict)


def colorize(values: np.ndarray) -> np.ndarray:
    """Maps values in [0, 1] (H, W) to RGB (H, W, 3), uint8; outside values take the end colours."""
    return _PALETTE[(np.clip(values, 0, 1) * 255).astype(np.uint8)]


def _contour(mask: np.ndarray) -> np.ndarray:
    """Returns the pixels of a mask that touch its outside (H, W), bool."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shortens text from the left until it fits."""
    while len(text) > 4 and font.getlength(text) > width:
        text = "…" + text[2:]
    return text


def draw_panel(panel: Panel, low: float, high: float, *, height: int = 256) -> Image.Image:
    """Draws a panel.

    Args:
        panel: What to show.
        low: Score that gets the darkest colour; the same for all panels of a run.
        high: Score that gets the lightest colour.
        height: Height of a tile in pixels; its width follows the image's proportions.

    Returns:
        An RGB image.
    """
    aspect = panel.image.width / panel.image.height
    size = (round(height * min(max(aspect, 1 / 3), 3)), height)
    original = np.asarray(panel.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))

    def strength_of(values: np.ndarray) -> np.ndarray:
        resized = np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        return np.clip((resized - low) / max(high - low, 1e-12), 0, 1)

    strength = strength_of(panel.anomaly_map)
    colors = colorize(strength)
    weight = (0.75 * np.sqrt(strength))[..., None]
    overlay = (original * (1 - weight) + colors * weight).astype(np.uint8)
    tiles = [("image", original), ("anomaly map", colors)]
    tiles[1:1] = [(f"{name} map", colorize(strength_of(values))) for name, values in panel.earlier.items()]
    if panel.mask is not None:
        mask = np.asarray(Image.fromarray(panel.mask).resize(size, Image.Resampling.NEAREST))
        tiles.append(("mask", np.where(mask[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)))
        overlay = overlay.copy()
        overlay[_contour(mask)] = _CONTOUR
    tiles.append(("overlay", overlay))
    return _compose(panel, tiles, size, low, high)


def _compose(
    panel: Panel, tiles: list[tuple[str, np.ndarray]], size: tuple[int, int], low: float, high: float
) -> Image.Image:
    font = ImageFont.load_default(13)
    gap, head, foot, bar = 6, 42, 20, 72
    width = len(tiles) * (size[0] + gap) + gap + bar
    canvas = Image.new("RGB", (width, head + size[1] + foot), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, 4), _fit(panel.title, font, width - 2 * gap), _INK, font)
    draw.text((gap, 21), _fit(panel.caption, font, width - 2 * gap), _INK, font)
    for position, (name, tile) in enumerate(tiles):
        x = gap + position * (size[0] + gap)
        canvas.paste(Image.fromarray(tile), (x, head))
        draw.text((x, head + size[1] + 2), name, _INK, font)
    x = gap + len(tiles) * (size[0] + gap)
    scale = colorize(np.linspace(1, 0, size[1])[:, None].repeat(12, axis=1))
    canvas.paste(Image.fromarray(scale), (x, head))
    draw.text((x + 15, head - 2), f"{high:.3g}", _INK, font)
    draw.text((x + 15, head + size[1] - 15), f"{low:.3g}", _INK, font)
    return canvas


def draw_contact_sheet(panels: Sequence[Image.Image], *, columns: int = 2, width: int = 640) -> Image.Image:
    """Puts panels on one sheet, row by row.

    Args:
        panels: At least one panel, any sizes.
        columns: Panels side by side.
        width: Width of a column in pixels; panels are shrunk to it.

    Returns:
        An RGB image.
    """
    small = []
    for panel in panels:
        scale = min(1.0, width / panel.width)
        small.append(panel.resize((round(panel.width * scale), round(panel.height * scale)), Image.Resampling.LANCZOS))
    rows = [small[i : i + columns] for i in range(0, len(small), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    sheet = Image.new("RGB", (columns * width, sum(heights)), _PAPER)
    for row, bottom in zip(rows, np.cumsum(heights), strict=True):
        for column, panel in enumerate(row):
            sheet.paste(panel, (column * width, int(bottom) - max(p.height for p in row)))
    return sheet
