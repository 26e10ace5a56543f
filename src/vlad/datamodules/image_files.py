"""Which files are images, and all of them below a folder."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "list_files"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})


def list_files(root: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """Returns all image files below a folder, as sorted POSIX paths relative to it; hidden ones are skipped."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()  # linked folders are followed, each once: links may go in circles
    stack = [""]
    while stack:
        relative = stack.pop()
        folder = root / relative
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue  # a broken link, or no permission
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    stack.append(relative + entry.name + "/")
                elif entry.is_file() and Path(entry.name).suffix.lower() in suffixes:
                    found.append(relative + entry.name)
            except OSError:
                continue
    return sorted(found)
