"""Text in any language: each letter in a font of this machine that has it, else as its code point."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Font", "escaped", "fit", "measure", "write"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SIZE = 13
_PREFERRED = (
    "notosans-regular",
    "dejavusans.",
    "arialuni",
    "arial.",
    "segoeui.",
    "notosanscjk-regular",
    "sourcehansans",
    "pingfang",
    "hiragino",
    "msyh.",
    "yugothr",
    "msgothic",
    "malgun.",
    "wqy",
    "droidsansfallback",
    "notosans",
    "nirmala",
)
_NO_LETTER = ("\uffff", "\U0010ffff")  # code points that are none: what a font shows for them it shows for unknown ones
_lock = Lock()  # fonts are looked for by several threads


def _folders() -> Iterator[Path]:
    """Yields where this machine keeps its fonts."""
    home = Path(os.path.expanduser("~"))  # "~" itself, which is not there, for a user without a home
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"
        yield Path(os.environ.get("LOCALAPPDATA", home)) / "Microsoft" / "Windows" / "Fonts"
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts")
    else:
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        yield from (Path(folder) / "fonts" for folder in shared.split(":") if folder)
        yield from (Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "fonts", home / ".fonts")


@cache
def _system_fonts() -> tuple[Path, ...]:
    """Returns the font files of this machine, those for running text in many scripts first."""
    found = []
    for folder in _folders():
        for place, _, names in os.walk(folder):
            found += [Path(place) / name for name in names if name.lower().endswith((".ttf", ".otf", ".ttc"))]

    def rank(path: Path) -> tuple[int, bool, str]:
        name = path.name.lower()
        place = next((i for i, start in enumerate(_PREFERRED) if name.startswith(start)), len(_PREFERRED))
        return place, any(word in name for word in ("bold", "italic", "oblique", "mono", "serif")), name

    return tuple(sorted(found, key=rank))


@cache
def _load(path: Path | None) -> Font | None:
    """Opens a font, Pillow's own for None; None where it cannot be drawn with."""
    try:
        return ImageFont.load_default(SIZE) if path is None else ImageFont.truetype(str(path), SIZE)
    except OSError:  # damaged, or of bitmaps of one size only
        return None


def _picture(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@cache
def _unknown_pictures(path: Path | None) -> tuple[tuple[tuple[int, int], bytes], ...]:
    font = _load(path)
    return tuple(_picture(font, letter) for letter in _NO_LETTER) if font else ()


def _has(path: Path | None, letter: str) -> bool:
    """Returns whether a font has a letter: whether it looks other than what the font shows for no letter at all."""
    font = _load(path)
    if font is None:
        return False
    return letter.isspace() or _picture(font, letter) not in _unknown_pictures(path)


@lru_cache(maxsize=8192)
def _font_of(letter: str) -> tuple[Path | None] | None:
    """Returns the font to draw a letter with, as a tuple of its file; None where no font has it."""
    if unicodedata.category(letter) in {"Cc", "Cs", "Cn", "Co"}:  # nothing to see, or half of a pair
        return None
    with _lock:
        return next(((path,) for path in (None, *_system_fonts()) if _has(path, letter)), None)


def escaped(text: str) -> tuple[str, set[str]]:
    r"""Replaces letters that no font of this machine has by their code points.

    Returns:
        The text that can be drawn, and the letters that cannot.

    Examples:
        >>> escaped("a\x07")
        ('a\\u0007', {'\x07'})
    """
    unknown = {letter for letter in set(text) if _font_of(letter) is None}
    return "".join(_code(letter) if letter in unknown else letter for letter in text), unknown


def _code(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 65536 else f"\\U{ord(letter):08x}"


def _runs(text: str) -> list[tuple[str, Font]]:
    """Cuts text that can be drawn to stretches of one font; blanks and marks stay with the letters before them."""
    runs: list[tuple[str, Path | None]] = []
    for letter in text:
        found = _font_of(letter)
        assert found is not None, "text is escaped first"
        path = found[0]
        if runs and runs[-1][1] != path and (letter.isspace() or unicodedata.category(letter).startswith("M")):
            with _lock:
                path = runs[-1][1] if _has(runs[-1][1], letter) else path
        if runs and runs[-1][1] == path:
            runs[-1] = (runs[-1][0] + letter, path)
        else:
            runs.append((letter, path))
    return [(run, font) for run, path in runs if (font := _load(path)) is not None]


def _pieces(text: str) -> Iterator[tuple[str, Font]]:
    """Cuts text to what is drawn at a time: letters of Pillow's own font, which moves none for its neighbour."""
    for run, font in _runs(text):
        yield from ((letter, font) for letter in run) if font is _load(None) else ((run, font),)


@lru_cache(maxsize=4096)
def _length(piece: str, font: Font) -> float:
    return font.getlength(piece)


def measure(text: str) -> float:
    """Returns the width in pixels of text that can be drawn."""
    return sum(_length(piece, font) for piece, font in _pieces(text))


def fit(text: str, width: float, *, keep_end: bool = False) -> str:
    """Shortens text that can be drawn until it is no wider than ``width`` pixels.

    Args:
        text: The text.
        width: Pixels, at most.
        keep_end: Whether its end is what matters, as of a path.
    """
    if measure(text) <= width:
        return text

    def shortened(letters: int) -> str:
        return f"…{text[len(text) - letters :]}" if keep_end else f"{text[:letters]}…"

    least, most = 0, len(text)  # letters that are kept
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if measure(shortened(middle)) <= width else (least, middle - 1)
    return shortened(least)


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: tuple[int, int, int]) -> None:
    """Writes text that can be drawn, its upper left corner at ``place``, which is not left of or above the picture."""
    x, y = place
    for piece, font in _pieces(text):
        left, top, matte = _drawn(piece, font, x % 1, y % 1)
        if matte is not None:
            draw.bitmap((int(x) + left, int(y) + top), matte, color)
        x += _length(piece, font)


@lru_cache(maxsize=1024)
def _drawn(piece: str, font: Font, x: float, y: float) -> tuple[int, int, Image.Image | None]:
    """Draws a piece of text, of which panels repeat the most; kept, since that takes longer than the rest of a panel.

    Args:
        piece: What to draw.
        font: Its font.
        x: Where in a pixel it begins, in [0, 1).
        y: Likewise.

    Returns:
        How far its matte lies right of and below that pixel; the matte, None where there is nothing to see.
    """
    margin = 2 * SIZE  # letters stick out of their line
    matte = Image.new("L", (math.ceil(_length(piece, font)) + 2 * margin, SIZE + 2 * margin))
    draw = ImageDraw.Draw(matte)
    if isinstance(font, ImageFont.FreeTypeFont):
        draw.text((x + margin, y + margin + 11), piece, 255, font, anchor="ls")  # 11: the base line, where fonts meet
    else:
        draw.text((x + margin, y + margin), piece, 255, font)
    box = matte.getbbox()
    return (0, 0, None) if box is None else (box[0] - margin, box[1] - margin, matte.crop(box))
