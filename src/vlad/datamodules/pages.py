"""Images of several pages: TIFF stacks, animated GIF, PNG, WebP and AVIF."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from PIL import ImageFile

from vlad.datamodules.image_files import printable
from vlad.datamodules.opening import Reading, check_pixels, identify, naming, source
from vlad.errors import DataError

__all__ = ["numbers_of_pages", "opened_page", "page_count"]

_MOST = 10_000  # pages of a file
_ONE_PICTURE = {"MPO", "PSD", "ICO", "ICNS", "CUR"}
"""Formats whose further pages are previews, depth maps, layers or sizes of the first one."""


def page_count(path: str | os.PathLike[str], content: bytes | None = None) -> int:
    """Returns how many pages an image has; frames of an animation are pages.

    Smaller copies in a TIFF, and what phones and cameras store beside a JPEG, are no pages of their own.

    Args:
        path: The file.
        content: Its bytes, where they have been read already.

    Raises:
        DataError: It cannot be read as an image.
    """
    path = os.fspath(path)
    with naming("image", path), source(path, content) as file:
        return len(numbers_of_pages(identify(file, path)))


def numbers_of_pages(image: ImageFile.ImageFile) -> list[int]:
    """Returns where in a file its pages are, by the numbers that Pillow seeks.

    Raises:
        OSError: There are, or the header says that there are, more than 10,000.
    """
    count = 1 if image.format in _ONE_PICTURE else int(getattr(image, "n_frames", 1))
    if count > _MOST:
        raise OSError(f"it has {count:,} pages, more than {_MOST:,}")
    if count == 1 or image.format != "TIFF":
        return list(range(count))
    found = []
    for number in range(count):
        image.seek(number)
        kind, old = _plain(image, 254), _plain(image, 255)
        if not kind & 0b101 and old != 2:  # neither a smaller copy nor a mask of transparency
            found.append(number)
    image.seek(0)
    return found or list(range(count))


def _plain(image: Any, tag: int) -> int:
    value = image.tag_v2.get(tag, 0)
    return value if isinstance(value, int) else 0


class _Last(threading.local):
    """The file of pages that a thread read last, still open: to go on to the next page costs one page."""

    key: tuple[object, ...] = ()
    files: ExitStack = ExitStack()
    image: Any = None
    numbers: tuple[int, ...] = ()


_last = _Last()


@contextmanager
def opened_page(path: str, page: int, reading: Reading, content: bytes | None = None) -> Iterator[ImageFile.ImageFile]:
    """Opens one page of an image; its pixels are not loaded yet.

    Raises:
        UnidentifiedImageError: It is no image.
        OSError: It is one, and damaged.
        DataError: It has no such page, or too many pixels.
    """
    key: tuple[object, ...] = (path, hash(content), len(content)) if content is not None else _state(path)
    key += (os.getpid(),)  # a forked process shares the place in the file with its parent
    if key != _last.key:
        _forget()
        try:
            _last.image = identify(_last.files.enter_context(source(path, content)), path)
            check_pixels(_last.image, path, reading)
            _last.numbers = tuple(numbers_of_pages(_last.image))
            _last.key = key
        except BaseException:
            _forget()
            raise
    if page >= len(_last.numbers):
        pages = "1 page" if len(_last.numbers) == 1 else f"{len(_last.numbers)} pages"
        raise DataError(f"image {printable(path)} has {pages}: there is no frame {page}, counted from 0")
    try:
        _last.image.seek(_last.numbers[page])
        check_pixels(_last.image, path, reading)
        yield _last.image
    except BaseException:
        _forget()
        raise
    if len(_last.numbers) == 1:
        _forget()


def _state(path: str) -> tuple[object, ...]:
    status = os.stat(path)
    return path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _forget() -> None:
    files, _last.key, _last.files, _last.image, _last.numbers = _last.files, (), ExitStack(), None, ()
    files.close()
