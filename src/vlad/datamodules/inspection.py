"""Whether a file can be read as an image, told without decoding it where its header and its end tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any, NamedTuple

from PIL import ImageFile, UnidentifiedImageError

from vlad.datamodules.image_files import printable
from vlad.datamodules.images import image_size, load_image
from vlad.datamodules.intensity import told_maximum
from vlad.datamodules.opening import BROKEN, PLAIN, Reading, check_pixels, identify, naming, source
from vlad.datamodules.orientation import seen_size
from vlad.datamodules.pages import numbers_of_pages, opened_page
from vlad.datamodules.video import VIDEO_SUFFIXES
from vlad.errors import DataError

__all__ = ["ImageFacts", "inspect_image"]


class ImageFacts(NamedTuple):
    """What the header of an image tells.

    Attributes:
        size: Width and height as a viewer shows it; (0, 0) where they are not known.
        pages: Number of pages; 1 for a video.
        problem: Why it cannot be read, in one printable line without its path; "" where nothing speaks against it.
    """

    size: tuple[int, int] = (0, 0)
    pages: int = 1
    problem: str = ""


def inspect_image(
    path: str,
    *,
    frame: int = -1,
    reader: str = "",
    reading: Reading = PLAIN,
    content: bytes | None = None,
) -> ImageFacts:
    """Looks at an image's header and at its end, to check many files ahead.

    What looks cut off or damaged is decoded, and so are the kinds whose range of values has to be known: nothing is
    called bad that :func:`vlad.datamodules.decode.load_image` reads. What is damaged in the middle is not found.

    Args:
        path: The file.
        frame: Page that is wanted; of a video, frames are not looked at.
        reader: As for :func:`vlad.datamodules.decode.load_image`.
        reading: The rules of the run.
        content: The file's bytes, where they have been read already.
    """
    size, pages = (0, 0), 1
    try:
        with naming("image", path):
            try:
                with source(path, content) as file:
                    image = identify(file, path)
                    pages, suspect = _turn_to(image, frame)
                    size = seen_size(image)
                    check_pixels(image, path, reading)
                    suspect = suspect or _has_open_range(image, reading) or _looks_cut(image, file)
            except UnidentifiedImageError:
                if path.lower().endswith(tuple(VIDEO_SUFFIXES)):
                    return ImageFacts(image_size(path, frame=max(frame, 0)))
                suspect = True
            if frame >= pages:
                with opened_page(path, frame, reading, content):
                    pass  # raises
        if suspect:
            size = load_image(path, frame=frame, reader=reader, reading=reading, content=content).size
    except DataError as error:
        return ImageFacts(size, pages, str(error).replace(f" {printable(path)}", "", 1))
    return ImageFacts(size, pages)


def _turn_to(image: ImageFile.ImageFile, frame: int) -> tuple[int, bool]:
    """Goes to a page, if there is one; returns the number of pages, and whether the file is damaged among them."""
    try:
        numbers = numbers_of_pages(image)
        if 0 < frame < len(numbers) and image.format == "TIFF":  # the pages of other formats are of one size
            image.seek(numbers[frame])
    except BROKEN:
        return 1, True
    return len(numbers), False


def _has_open_range(image: ImageFile.ImageFile, reading: Reading) -> bool:
    """Whether only the values tell if their range has to be given."""
    if reading.intensity_range is not None or image.format in {"PNG", "PPM"} or told_maximum(image):
        return False
    return image.mode in {"F", "I"}


def _looks_cut(image: ImageFile.ImageFile, file: IO[bytes]) -> bool:
    """Whether a file may lack its end, or is of a kind whose end tells nothing."""
    length = file.seek(0, 2)
    try:
        check = _CHECKS.get(image.format or "")
        return check is None or not check(image, file, length)
    except BROKEN:
        return True


def _jpeg_ends(image: ImageFile.ImageFile, file: IO[bytes], length: int) -> bool:
    """Whether the mark of the end follows the pixels; a preview in the metadata has one of its own."""
    file.seek(max(0, length - 2))
    if file.read(2) == b"\xff\xd9":
        return True
    file.seek(0)
    data = file.read()
    place = 2
    while data[place : place + 1] == b"\xff":
        kind = data[place + 1]
        if kind == 0xDA:
            return data.find(b"\xff\xd9", place) > 0
        place += 1 if kind == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def _png_ends(image: ImageFile.ImageFile, file: IO[bytes], length: int) -> bool:
    """Whether all parts are there, each with its right checksum."""
    image.verify()
    return True


def _tiff_ends(image: Any, file: IO[bytes], length: int) -> bool:
    """Whether all strips or tiles lie within the file."""
    offsets, counts = ((273, 279), (324, 325))[324 in image.tag_v2]
    starts, sizes = (_as_tuple(image.tag_v2[tag]) for tag in (offsets, counts))
    return len(starts) == len(sizes) and max(map(int.__add__, starts, sizes)) <= length


def _as_tuple(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _gif_ends(image: ImageFile.ImageFile, file: IO[bytes], length: int) -> bool:
    file.seek(max(0, length - 64))
    return file.read().rstrip(b"\0").endswith(b";")


def _webp_ends(image: ImageFile.ImageFile, file: IO[bytes], length: int) -> bool:
    file.seek(4)
    return int.from_bytes(file.read(4), "little") + 8 <= length


def _raw_ends(image: ImageFile.ImageFile, file: IO[bytes], length: int) -> bool:
    """Whether a file without compression is as long as its header says."""
    tile = image.tile[0]
    decoder, start, args = tile[0], tile[2], tile[3]
    stride = args[1] if isinstance(args, tuple) and len(args) > 1 else 0
    row = stride or (image.width * len(image.getbands()) if image.mode in {"L", "RGB"} else 0)
    return decoder == "raw" and row > 0 and start + row * image.height <= length


def _jpeg2000_ends(image: ImageFile.ImageFile, file: IO[bytes], length: int) -> bool:
    file.seek(max(0, length - 16))
    return file.read().rstrip(b"\0").endswith(b"\xff\xd9")


_CHECKS: dict[str, Callable[[Any, IO[bytes], int], bool]] = {
    "JPEG": _jpeg_ends,
    "MPO": _jpeg_ends,
    "PNG": _png_ends,
    "TIFF": _tiff_ends,
    "GIF": _gif_ends,
    "WEBP": _webp_ends,
    "BMP": _raw_ends,
    "PPM": _raw_ends,
    "JPEG2000": _jpeg2000_ends,
}
