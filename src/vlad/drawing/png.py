"""Panels as PNG, in half of the time that Pillow takes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from vlad.files import write_atomic

__all__ = ["encode_png", "write_png"]

_UP = 2  # a pixel is kept as its difference from the one above it


def encode_png(image: np.ndarray, *, level: int = 1) -> bytes:
    """Returns the bytes of a PNG file, lossless.

    Pillow tries five filters on every row, which takes longer than compressing; this takes one for all. Files of
    panels are a few per cent larger than Pillow's.

    Args:
        image: RGB (H, W, 3), uint8, not empty.
        level: Of zlib, 0 to 9.
    """
    height, width, _ = image.shape
    pixels = image.reshape(height, -1)
    rows = np.empty((height, 1 + pixels.shape[1]), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])  # modulo 256, as the format wants it
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, level)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)


def write_png(path: Path, image: Image.Image) -> Path:
    """Writes an RGB image; the file is whole or not there.

    Raises:
        OutputError: It cannot be written.
    """
    content = encode_png(np.asarray(image))

    def write(partial: Path) -> None:
        partial.write_bytes(content)

    return write_atomic(path, write)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))
