"""Which way up an image is: its EXIF orientation, which cameras write in place of turning the pixels."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageFile

from vlad.datamodules.opening import BROKEN

__all__ = ["orientation", "seen_size", "upright"]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_SIDEWAYS = {5, 6, 7, 8}


def orientation(image: ImageFile.ImageFile, *, loaded: bool = True) -> int:
    """Returns how an image has to be turned, as EXIF numbers it; 1 is not at all.

    Pillow turns TIFFs when it loads them, and forgets their orientation then; their size is the turned one from the
    start.

    Args:
        image: The image.
        loaded: Whether its pixels are; they are not loaded for this.
    """
    if image.format == "TIFF" and loaded:
        return 1
    try:
        if loaded or image.format != "PNG" or "exif" in image.info:
            found = image.getexif().get(0x0112, 1)
        else:
            found = _late_orientation(image)
    except BROKEN:  # damaged metadata around a sound image
        return 1
    return found if found in _TURNS else 1


def _late_orientation(image: ImageFile.ImageFile) -> int:
    """Returns the orientation that a PNG states behind its pixels, where Pillow looks only after decoding them."""
    file = image.fp
    if file is None:
        return 1
    before = file.tell()
    try:
        place = 8
        file.seek(place)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                exif = Image.Exif()
                exif.load(file.read(length))
                return int(exif.get(0x0112, 1))
            place += 12 + length
            file.seek(place)
    finally:
        file.seek(before)
    return 1


def upright(image: Image.Image, turned: int) -> Image.Image:
    """Turns an image as a viewer would show it."""
    return image if turned not in _TURNS else image.transpose(_TURNS[turned])


def seen_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Returns the width and height of an image that is not loaded, as a viewer shows it."""
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})  # whether the size is the turned one depends on Pillow's version
        size, turned = (tags.get(256), tags.get(257)), tags.get(0x0112, 1)
        width, height = size if all(isinstance(side, int) for side in size) else image.size
    else:
        (width, height), turned = image.size, orientation(image, loaded=False)
    return (height, width) if turned in _SIDEWAYS else (width, height)
