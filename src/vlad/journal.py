"""Lines of JSON that are appended while a run goes on, and survive its end, however it ends.

Each line ends with its own checksum, ``"crc": "…"``: a line that was cut off or damaged since is as if it were not
there.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlad.files import open_plain, output_errors, write_atomic

__all__ = ["Journal", "join_journals", "open_line", "read_journals", "seal"]

_SEAL = re.compile(rb', "crc": "([0-9a-f]{8})"}\n\Z')


def seal(row: Mapping[str, Any]) -> str:
    """Returns a row of plain JSON values, not empty, as a line with its checksum.

    Examples:
        >>> print(seal({"name": "a"}), end="")
        {"name": "a", "crc": "59c974e7"}
    """
    text = json.dumps(row, allow_nan=False)
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'


def open_line(line: bytes) -> dict[str, Any] | None:
    """Returns the row of a line that :func:`seal` made; None where it was cut off or damaged."""
    match = _SEAL.search(line)
    if match is None:
        return None
    text = line[: match.start()] + b"}"
    if zlib.crc32(text) != int(match[1], 16):
        return None
    row: dict[str, Any] = json.loads(text)
    return row


class Journal:
    """A file of lines that one process appends to; what was appended is there even if the process is killed."""

    def __init__(self, path: Path) -> None:
        """Makes nothing yet.

        Args:
            path: The file; no other process appends to it.
        """
        self.path = path
        self._descriptor = -1

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows of plain JSON values.

        Raises:
            OutputError: The disk is full, and the like.
        """
        text = "".join(map(seal, rows))
        with output_errors(self.path):
            if self._descriptor < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = open_plain(self.path, os.O_RDWR | os.O_APPEND)
                size = os.fstat(self._descriptor).st_size
                if size and os.pread(self._descriptor, 1, size - 1) != b"\n":  # a kill cut the last line off
                    text = "\n" + text
            content = memoryview(text.encode())
            while content:
                content = content[os.write(self._descriptor, content) :]

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def read_journals(paths: Iterable[Path], key: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of journals, the first of each value of ``key``; damaged lines are left out.

    Memory holds eight bytes of each key, not the rows.
    """
    known: set[int] = set()
    for path in paths:
        if not path.is_file():  # a FIFO would be waited for
            continue
        with path.open("rb") as file:
            for line in file:
                row = open_line(line)
                if row is not None and hash(row[key]) not in known:
                    known.add(hash(row[key]))
                    yield row


def join_journals(paths: Iterable[Path], target: Path, key: str) -> None:
    """Writes the rows of journals into one, the first of each value of ``key``; the file is whole or not there."""

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(map(seal, read_journals(paths, key)))

    write_atomic(target, write)
