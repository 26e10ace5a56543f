"""The rows of a prediction, written as they come: whatever kills the run, what was written stays and is found again.

A folder of results holds ``parts/``: ``settings.json`` tells what its scores depend on, ``rows-….jsonl`` hold one line
per image, one file per process and run. A line that was cut off by a kill is not read. ``rows.jsonl`` holds those of
finished runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlad.errors import VladError
from vlad.files import open_plain, output_errors, write_atomic, write_json
from vlad.journal import Journal, open_line
from vlad.table import write_table

__all__ = ["COLUMNS", "FileState", "RowStore", "StoreError", "table_line"]

COLUMNS = (
    "path",
    "image_id",
    "category",
    "class_name",
    "image_score",
    "map_max",
    "p_value",
    "threshold",
    "decision",
    "anomalous_area",
    "regions",
    "error",
)
"""Columns of ``predictions.csv``."""

_FORMAT = 1


class StoreError(VladError):
    """A folder of results cannot be continued."""


class FileState(NamedTuple):
    """How an image file was when it was scored.

    Attributes:
        size: Bytes.
        mtime_ns: Time of change, in ns.
        digest: SHA-256 of the bytes, or "".
        failed: Whether it could not be scored.
    """

    size: int
    mtime_ns: int
    digest: str
    failed: bool


@dataclass(frozen=True)
class _Place:
    file: Path
    offset: int


class RowStore:
    """Rows of one folder of results.

    Examples:
        >>> import tempfile
        >>> store = RowStore(Path(tempfile.mkdtemp()))
        >>> store.append([{"key": "a", "size": 1, "mtime_ns": 2, "digest": "", "error": ""}])
        >>> store.close()
        >>> list(RowStore(store.folder).states())
        ['a']
    """

    def __init__(self, folder: Path) -> None:
        """Looks at a folder; nothing is made before the first row.

        Args:
            folder: Folder of results.
        """
        self.folder = folder
        self.parts = folder / "parts"
        self._journal = Journal(self.parts / f"rows-{os.getpid()}-{secrets.token_hex(4)}.jsonl")
        self._lock = -1

    # -- one user at a time, with one setting ------------------------------------------------------------------

    def lock(self) -> None:
        """Takes the folder for this process; the lock ends with it, however it ends.

        Raises:
            StoreError: Another process is writing there.
        """
        if self._lock >= 0:
            return
        with output_errors(self.parts):
            self.parts.mkdir(parents=True, exist_ok=True)
            descriptor = open_plain(self.parts / "lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise StoreError(
                f"another run is writing to {self.folder}: wait for it, or choose another --output"
            ) from error
        self._lock = descriptor

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuses to add to results that were made otherwise.

        Args:
            settings: What scores depend on (:func:`vlad.identity.scoring_identity`) and how they are decided.

        Raises:
            StoreError: The folder holds other things, or results of other settings; the message names what differs.
        """
        from vlad.identity import differences

        file = self.parts / "settings.json"
        if not file.is_file():
            entries = self.folder.iterdir() if self.folder.is_dir() else ()
            strange = [path.name for path in entries if path.name != "parts"]
            if strange or any(self.parts.glob("rows*.jsonl")):
                raise StoreError(
                    f"{self.folder} holds no results of vlad predict that can be continued "
                    f"({strange[0] if strange else 'no settings'}): choose another --output"
                )
            return
        try:
            recorded = json.loads(file.read_text(encoding="utf-8"))
            version, before = recorded["format"], recorded["settings"]
        except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
            raise StoreError(f"{file} is damaged: choose another --output, or delete {self.folder}") from error
        if version != _FORMAT:
            raise StoreError(f"{self.folder} was written by another version of vlad: choose another --output")
        found = differences(before, json.loads(json.dumps(settings)))
        if found:
            raise StoreError(
                f"{self.folder} holds results made otherwise: {'; '.join(found)}; give the same options, or another "
                "--output"
            )

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Records what scores depend on, where that is not recorded yet."""
        if not (self.parts / "settings.json").is_file():
            write_json(self.parts / "settings.json", {"format": _FORMAT, "settings": settings})

    # -- writing -----------------------------------------------------------------------------------------------

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes rows; they are in the file when this returns.

        Args:
            rows: Plain values with ``key``, ``size``, ``mtime_ns``, ``digest`` and the :data:`COLUMNS`.
        """
        found = list(rows)
        if found:
            self._journal.append(found)

    def close(self) -> None:
        """Closes the file of rows and gives the folder back."""
        self._journal.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    # -- reading -----------------------------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        """Returns the files of rows, older ones first: of two rows of an image the later one counts."""
        files = [self.parts / "rows.jsonl", *self.parts.glob("rows-*.jsonl")]
        files = [file for file in files if file.is_file()]
        return sorted(files, key=lambda file: (file.name != "rows.jsonl", file.stat().st_mtime_ns, file.name))

    def _lines(self) -> Iterator[tuple[_Place, dict[str, Any]]]:
        for file in self._files():
            offset = 0
            with file.open("rb") as opened:
                for line in opened:
                    row = open_line(line)
                    if row is not None:
                        yield _Place(file, offset), row
                    offset += len(line)

    def states(self) -> dict[str, FileState]:
        """Returns how the file of each image was, by key."""
        return {
            row["key"]: FileState(row["size"], row["mtime_ns"], row["digest"], bool(row["error"]))
            for _, row in self._lines()
        }

    def places(self) -> dict[str, _Place]:
        """Returns where the row of each image is, by key: rows are read one by one, not kept."""
        return {row["key"]: place for place, row in self._lines()}

    def rows(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yields the rows of images, in the order of their keys; images without a row are left out."""
        places = self.places()
        with contextlib.ExitStack() as stack:
            opened = {file: stack.enter_context(file.open("rb")) for file in self._files()}
            for key in keys:
                place = places.get(key)
                if place is not None:
                    opened[place.file].seek(place.offset)
                    row = open_line(opened[place.file].readline())
                    if row is not None:
                        yield row

    # -- the end -----------------------------------------------------------------------------------------------

    def write_table(self, keys: Iterable[str], table: Path, visit: Callable[[dict[str, Any]], None]) -> None:
        """Writes the rows of images as a CSV table.

        Args:
            keys: Keys of the images, in the order of the table.
            table: The file.
            visit: Is called with every row.
        """

        def lines() -> Iterator[list[Any]]:
            for row in self.rows(keys):
                visit(row)
                yield table_line(row)

        write_table(table, COLUMNS, lines())

    def join(self) -> None:
        """Joins the parts of all processes to one file; rows that a later one replaced are left out."""
        merged = self.parts / "rows.jsonl"
        files = self._files()
        if files in ([], [merged]):
            return
        places = self.places()

        def write(partial: Path) -> None:
            with partial.open("wb") as joined, contextlib.ExitStack() as stack:
                opened = {file: stack.enter_context(file.open("rb")) for file in files}
                for place in places.values():
                    opened[place.file].seek(place.offset)
                    joined.write(opened[place.file].readline())

        write_atomic(merged, write)
        for file in files:
            if file != merged:
                file.unlink(missing_ok=True)


def table_line(row: Mapping[str, Any]) -> list[Any]:
    """Returns a row's values, in the order of :data:`COLUMNS`; None where nothing is known.

    Examples:
        >>> table_line({"path": "a.png", "image_score": 0.5})[:5]
        ['a.png', None, None, None, 0.5]
    """
    return [row.get(column) for column in COLUMNS]
