"""TIFFs that Pillow refuses, and depths that it cuts off."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from PIL import UnidentifiedImageError

__all__ = ["TIFF_MARKS", "Tags", "decode_deep", "is_deep", "read_strips", "tiff_tags"]

TIFF_MARKS = {b"II*\0", b"MM\0*"}
Tags = Mapping[int, tuple[int, ...]]


def tiff_tags(data: bytes) -> Tags:
    """Returns the whole numbers that the first page of a TIFF says of itself, by tag.

    Raises:
        UnidentifiedImageError: It is no TIFF.
        struct.error: It is damaged.
    """
    if data[:4] not in TIFF_MARKS:
        raise UnidentifiedImageError("no known image format")
    order = "<" if data[:2] == b"II" else ">"
    sizes = {1: "B", 3: "H", 4: "I"}
    tags: dict[int, tuple[int, ...]] = {}
    (at,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, at)
    for entry in range(at + 2, at + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", data, entry)
        if kind in sizes and count <= 65536:
            width = struct.calcsize(order + sizes[kind]) * count
            place = entry + 8 if width <= 4 else struct.unpack_from(order + "I", data, entry + 8)[0]
            tags[tag] = struct.unpack_from(f"{order}{count}{sizes[kind]}", data, place)
    return tags


def read_strips(data: bytes, tags: Tags, *, red: bool) -> np.ndarray:
    """Reads an uncompressed 8-bit TIFF of three samples that calls itself grey; Pillow refuses these.

    Raises:
        UnidentifiedImageError: The file is nothing of the kind.
        OSError: It is cut off.
    """
    columns, rows = tags.get(256, (0,))[0], tags.get(257, (0,))[0]
    plain = tags.get(259, (1,)) == (1,) and tags.get(277) == (3,) and set(tags.get(258, (8,))) == {8}
    if not plain or tags.get(284, (1,)) != (1,) or not columns * rows:
        raise UnidentifiedImageError("no known image format")
    pixels = b"".join(data[start : start + size] for start, size in zip(tags[273], tags[279], strict=True))
    if len(pixels) < rows * columns * 3:
        raise OSError(f"image file is truncated: {len(pixels)} of {rows * columns * 3} bytes")
    image = np.frombuffer(pixels, np.uint8, rows * columns * 3).reshape(rows, columns, 3)
    return np.repeat(image[..., :1], 3, axis=2) if red else image


def is_deep(tags: Tags) -> bool:
    """Whether a TIFF holds samples of 16, 32 or 64 bits."""
    return bool(tags.get(258)) and set(tags[258]) <= {16, 32, 64}


def decode_deep(data: bytes, page: int = 0) -> np.ndarray:
    """Decodes an image at its full depth, as it is stored: not turned.

    Args:
        data: The file: a PNG or TIFF.
        page: Which page of it, from 0.

    Returns:
        Grey (H, W) or RGB (H, W, 3), of the file's own type; alpha is dropped.

    Raises:
        OSError: OpenCV cannot read it.
    """
    import cv2

    buffer = np.frombuffer(data, np.uint8)
    try:
        if page:
            found, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
            values = pages[0] if found else None
        else:
            values = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise OSError("this kind of image cannot be read at its full depth") from error
    if values is None:
        raise OSError("this kind of image cannot be read at its full depth")
    if values.ndim == 3 and values.shape[2] >= 3:
        return np.ascontiguousarray(values[..., 2::-1])
    return values if values.ndim == 2 else values[..., 0]
