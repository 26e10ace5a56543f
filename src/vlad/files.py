"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlad.errors import OutputError

__all__ = ["cache_folder", "output_errors", "write_atomic", "write_json", "write_text"]

_FIXES = {
    errno.ENOSPC: "free some space, or write elsewhere (--output)",
    errno.EDQUOT: "free some space, or write elsewhere (--output)",
    errno.EROFS: "write elsewhere (--output)",
    errno.EACCES: "write elsewhere (--output), or change the folder's permissions",
    errno.EPERM: "write elsewhere (--output), or change the folder's permissions",
    errno.ENOTDIR: "a file has the name of the folder; write elsewhere (--output)",
    errno.EEXIST: "a file has the name of the folder; write elsewhere (--output)",
    errno.ENAMETOOLONG: "the name is too long for the file system; write elsewhere (--output)",
    errno.EIO: "the disk fails; write elsewhere (--output)",
}


@contextmanager
def output_errors(place: Path) -> Iterator[None]:
    """Turns the failure to write into one error that names the place and the fix.

    Raises:
        OutputError: The disk is full, the folder read-only, and the like.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FIXES:
            raise
        raise OutputError(f"cannot write {place}: {error.strerror}; {_FIXES[error.errno]}") from error


def cache_folder() -> Path:
    """Returns where vlad keeps what it can make again: ``VLAD_CACHE``, or ``~/.cache/vlad``."""
    return Path(os.environ.get("VLAD_CACHE") or Path.home() / ".cache" / "vlad")


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Calls ``write`` with a temporary path beside the target, then renames it; makes the folder if missing.

    Raises:
        OutputError: The disk is full, the folder read-only, and the like.
    """
    partial = path.with_name(f".{os.getpid()}.{path.name[-60:]}.part")  # a name may be as long as names can be
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    return write_atomic(path, write)


def write_json(path: Path, value: Any) -> Path:
    """Writes indented JSON; NaN is not JSON and must be None by now."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
