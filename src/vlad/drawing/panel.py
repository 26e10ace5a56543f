"""One panel per image: image | anomaly map | ground truth | overlay, with its score and a colour bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from vlad.drawing.colors import FOUND, TRUTH, blend, color_map, draw_line, hatch
from vlad.drawing.scale import Scale
from vlad.drawing.text import escaped, fit, measure, write

__all__ = ["Box", "Panel", "draw_contact_sheet", "draw_panel"]

_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
_GAP, _HEAD, _FOOT, _BAR = 6, 42, 20, 72  # pixels between tiles, above and below them, and for the colour bar
_LEAST_WIDTH, _LEAST_BAR = 420, 64

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels of a tile."""


@dataclass(frozen=True)
class Panel:
    """What a panel shows.

    Attributes:
        title: First line of text: which image.
        caption: Second line: score, label, decision.
        image: The image, RGB; tiles have its size.
        anomaly_map: Its map (H, W), any size; minus infinity where nothing was inspected, else finite.
        mask: Ground truth (H, W), bool, or None where it is not known.
        earlier: Earlier maps by name (H, W), where a method refines its map.
        regions: Boxes of the regions that a decision found: no line is drawn outside of them; None to draw a line
            wherever the map reaches the scale's contour.
    """

    title: str
    caption: str
    image: Image.Image
    anomaly_map: np.ndarray
    mask: np.ndarray | None = None
    earlier: Mapping[str, np.ndarray] = field(default_factory=dict)
    regions: Sequence[Box] | None = None


def draw_panel(panel: Panel, scale: Scale) -> Image.Image:
    """Draws a panel.

    Args:
        panel: What to show.
        scale: What the colours mean; the same for all panels of a run.

    Returns:
        An RGB image; its tiles are as large as the panel's image, one below the other where that is wide.
    """
    size = panel.image.size
    original = np.asarray(panel.image.convert("RGB"))
    final, inspected = _resize(panel.anomaly_map, size, scale)
    tiles = [("image", original)]
    for name, values in panel.earlier.items():
        early, seen = _resize(values, size, scale)
        tiles.append((f"{name} map", hatch(color_map(early, scale), seen)))
    tiles.append(("anomaly map", hatch(color_map(final, scale), inspected)))
    overlay = hatch(blend(original, final, scale), inspected)  # may be drawn into: blend gives a new one
    legend = "overlay"
    if panel.mask is not None:
        mask = np.asarray(Image.fromarray(panel.mask).resize(size, Image.Resampling.NEAREST))
        tiles.append(("ground truth", np.where(mask[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)))
        draw_line(overlay, mask, TRUTH, dashed=True)
        legend += ", - - truth" if mask.any() else ""
    if scale.contour is not None:
        found = (final >= scale.contour) & inspected & _inside(panel.regions, size)
        draw_line(overlay, found, FOUND)
        legend += ", — found" if found.any() else ""
    tiles.append((legend, overlay))
    return _compose(panel, tiles, size, scale)


def _resize(values: np.ndarray, size: tuple[int, int], scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Returns a map at the size (width, height) of a tile, and where it was inspected, bool."""
    seen = np.isfinite(values)
    filled = values.astype(np.float32) if seen.all() else np.where(seen, values, scale.floor).astype(np.float32)
    resized = np.asarray(Image.fromarray(filled).resize(size, Image.Resampling.BILINEAR))
    inspected = np.asarray(Image.fromarray(seen).resize(size, Image.Resampling.NEAREST))
    return resized, inspected


def _inside(boxes: Sequence[Box] | None, size: tuple[int, int]) -> np.ndarray:
    """Returns where a tile (width, height) is inside one of the boxes (H, W), bool; everywhere for None."""
    inside = np.full(size[::-1], boxes is None)
    for x, y, w, h in boxes or ():
        inside[max(0, int(y) - 1) : int(y + h) + 2, max(0, int(x) - 1) : int(x + w) + 2] = True
    return inside


def _compose(panel: Panel, tiles: list[tuple[str, np.ndarray]], size: tuple[int, int], scale: Scale) -> Image.Image:
    wide = [max(size[0], round(measure(name))) + _GAP for name, _ in tiles]  # a narrow tile has its name's width
    if size[0] > 2 * size[1]:  # one below the other
        places = [(_GAP, _HEAD + number * (size[1] + _FOOT)) for number in range(len(tiles))]
        right, bar = _GAP + max(wide), len(tiles) * (size[1] + _FOOT) - _FOOT
    else:
        places = [(_GAP + sum(wide[:number]), _HEAD) for number in range(len(tiles))]
        right, bar = _GAP + sum(wide), max(size[1], _LEAST_BAR)
    width = max(right + _BAR, _LEAST_WIDTH)
    canvas = Image.new("RGB", (width, _HEAD + bar + _FOOT), _PAPER)
    draw = ImageDraw.Draw(canvas)
    room = width - 2 * _GAP
    write(draw, (_GAP, 4), fit(escaped(panel.title)[0], room, keep_end=True), _INK)
    write(draw, (_GAP, 21), fit(escaped(panel.caption)[0], room), _INK)
    for (name, tile), (x, y) in zip(tiles, places, strict=True):
        canvas.paste(Image.fromarray(tile), (x, y))
        write(draw, (x, y + size[1] + 2), name, _INK)
    _draw_bar(canvas, draw, (right, _HEAD), bar, scale)
    return canvas


def _draw_bar(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], height: int, scale: Scale
) -> None:
    """Draws the colour bar, from ``floor`` at its foot to ``high``, with the scores that matter beside it."""
    x, y = place
    values = np.linspace(scale.high, scale.floor, height)[:, None].repeat(12, axis=1)
    canvas.paste(Image.fromarray(color_map(values, scale)), place)
    marks = [(scale.high, _INK), (scale.floor, _FAINT), (scale.low, _FAINT)]
    if scale.contour is not None:
        marks.insert(0, (scale.contour, _INK))
    taken: list[float] = []
    for score, color in marks:
        share = min(1.0, max(0.0, (scale.high - score) / (scale.high - scale.floor)))
        if score == scale.contour:
            level = y + round(share * (height - 1))
            draw.line((x, level, x + 12, level), FOUND, 1)
        at = min(max(y - 3 + share * height - 4, y - 2), y + height - 15)
        if all(abs(at - other) >= 13 for other in taken):  # the more important ones come first
            taken.append(at)
            write(draw, (x + 15, at), f"{score:.3g}", color)


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
        size = (max(1, round(panel.width * scale)), max(1, round(panel.height * scale)))
        small.append(panel.resize(size, Image.Resampling.LANCZOS))
    rows = [small[i : i + columns] for i in range(0, len(small), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    sheet = Image.new("RGB", (columns * width, sum(heights)), _PAPER)
    for row, height, bottom in zip(rows, heights, np.cumsum(heights), strict=True):
        for column, panel in enumerate(row):
            sheet.paste(panel, (column * width, int(bottom) - height))
    return sheet
