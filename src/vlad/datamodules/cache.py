"""Indices remembered between runs, and thrown away as soon as a file comes, goes or is renamed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vlad.datamodules.index import COLUMNS
from vlad.errors import VladError
from vlad.files import cache_folder, read_plain, write_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["cached", "fingerprint"]

_LISTS = {".csv", ".tsv", ".json", ".jsonl", ".txt"}


def fingerprint(root: Path) -> str:
    """Returns a digest of a tree: the time of change of every folder and of every list in it.

    A folder's time changes when a file in it comes, goes or is renamed; what is inside an image does not matter
    to an index, but what is inside a mask may: their folders' masks replaced in place go unseen.
    """
    digest = hashlib.sha256()
    seen: set[tuple[int, int]] = set()
    stack = [root]
    while stack:
        folder = stack.pop()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        digest.update(f"{folder}\0{status.st_mtime_ns}\0{len(entries)}\0".encode(errors="surrogateescape"))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    stack.append(Path(entry.path))
                elif Path(entry.name).suffix.lower() in _LISTS:
                    status = entry.stat()
                    text = f"{entry.path}\0{status.st_mtime_ns}\0{status.st_size}\0"
                    digest.update(text.encode(errors="surrogateescape"))
            except OSError:  # a link that leads nowhere, or to itself
                continue
    return digest.hexdigest()


def _digest(table: str) -> str:
    return hashlib.sha256(table.encode()).hexdigest()


def cached(key: str, root: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Returns an index from the cache where the tree is as it was, else makes it and remembers it.

    The cache holds a digest of the index: one that was damaged or edited is made anew.

    Args:
        key: Everything that the index depends on but the tree.
        root: The tree.
        make: Makes the index.
    """
    import pandas as pd

    state = fingerprint(root)
    name = hashlib.sha256(f"{key}\0{root.resolve()}".encode()).hexdigest()[:24]
    try:
        file = cache_folder() / "index" / f"{name}.csv"
    except VladError:  # a user without a home
        return make()
    try:
        text = read_plain(file, 1 << 30).decode()  # a text file's line ends would be changed
        head, _, table = text.partition("\n")
        if head == f"{state} {_digest(table)}":
            frame = pd.read_csv(io.StringIO(table), dtype=str, keep_default_na=False)
            if tuple(frame.columns) == COLUMNS:
                numbers = ("label", "mask_threshold", "frame")
                frame = frame.astype(dict.fromkeys(numbers, "int64"))
                frame["has_mask"] = frame["has_mask"] == "True"
                return frame
    except (OSError, ValueError):
        pass  # no cache, or a damaged one
    frame = make()
    with suppress(VladError, OSError, UnicodeEncodeError):  # without the cache it is only slower
        table = frame.to_csv(index=False, lineterminator="\n")
        write_text(file, f"{state} {_digest(table)}\n{table}")
    return frame
