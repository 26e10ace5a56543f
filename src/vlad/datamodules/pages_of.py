"""Which of many files may have several pages, by a glance at each."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from vlad.datamodules.image_files import looks_like
from vlad.datamodules.pages import page_count
from vlad.errors import DataError

__all__ = ["pages_of", "several_pages"]

_PAGED = {"TIFF", "GIF", "WEBP", "AVIF"}


def pages_of(path: Path) -> int:
    """Returns how many pages an image has; 1 where it cannot be read, which is told where it is decoded.

    Only formats that can hold several are opened as images, so that a glance at many files is cheap.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return 1
        with open(path, "rb", buffering=0) as file:
            head = file.read(1024)
    except OSError:
        return 1
    kind = looks_like(head[:16])
    if kind not in _PAGED and not (kind == "PNG" and b"acTL" in head):
        return 1
    try:
        return max(1, page_count(path))
    except DataError:
        return 1


def several_pages(paths: Iterable[Path]) -> dict[Path, int]:
    """Returns the images of several pages, and how many each has."""
    counts = ((path, pages_of(path)) for path in paths)
    return {path: count for path, count in counts if count > 1}
