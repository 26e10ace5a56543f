"""Lines of JSON that are appended while a run goes on, and survive its end, however it ends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlad.files import output_errors

__all__ = ["Journal", "read_journals"]


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
        """Appends rows of plain JSON values."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        with output_errors(self.path):
            if self._descriptor < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
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
    """Yields the rows of journals, the first of each value of ``key``; lines that were cut off are left out.

    Memory holds eight bytes of each key, not the rows.
    """
    known: set[int] = set()
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                row: Any = None
                with suppress(ValueError):
                    row = json.loads(line)
                if isinstance(row, dict) and hash(row[key]) not in known:
                    known.add(hash(row[key]))
                    yield row
