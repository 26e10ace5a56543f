"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlad.errors import OutputError

__all__ = [
    "cache_folder",
    "open_plain",
    "output_errors",
    "read_plain",
    "scratch_folder",
    "write_atomic",
    "write_json",
    "write_text",
]

_FIXES = {
    errno.ENOSPC: "free some space, or write elsewhere (--output)",
    errno.EDQUOT: "free some space, or write elsewhere (--output)",
    errno.EROFS: "write elsewhere (--output)",
    errno.EACCES: "write elsewhere (--output), or change the folder's permissions",
    errno.EPERM: "write elsewhere (--output), or change the folder's permissions",
    errno.ENOTDIR: "a file has the name of the folder; write elsewhere (--output)",
    errno.EEXIST: "a file has the name of the folder; write elsewhere (--output)",
    errno.EISDIR: "a folder has the name of the file; remove it, or write elsewhere (--output)",
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
    """Returns where vlad keeps what it can make again: ``VLAD_CACHE``, or ``~/.cache/vlad``.

    Raises:
        OutputError: Neither is there: the user has no home.
    """
    given = os.environ.get("VLAD_CACHE")
    try:
        return Path(given) if given else Path.home() / ".cache" / "vlad"
    except RuntimeError as error:
        raise OutputError("this user has no home folder: set VLAD_CACHE to a folder that can be written") from error


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Calls ``write`` with a temporary path beside the target, then renames it; makes the folder if missing.

    The temporary file is new and its name cannot be foreseen, so that no link waits there; it is locked while it is
    written. What a killed process has left in the folder goes with the first file that another writes there.

    Raises:
        OutputError: The disk is full, the folder read-only, and the like.
    """
    partial = path.with_name(_partial_name(path.name))
    descriptor = -1
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep_once(path.parent)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o666)
            _lock(descriptor)
            write(partial)
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if descriptor >= 0:
            os.close(descriptor)
    return path


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Makes a hidden folder beside a target, to be filled and renamed to it; what is left of it goes at the end.

    As for :func:`write_atomic`, it is locked meanwhile, and what killed processes have left beside the target goes.

    Raises:
        OutputError: The disk is full, the folder read-only, and the like.
    """
    partial = target.with_name(_partial_name(target.name))
    descriptor = -1
    try:
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target.parent)
            partial.mkdir()
            descriptor = os.open(partial, os.O_RDONLY)
            _lock(descriptor)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


def open_plain(path: Path, flags: int) -> int:
    """Opens a file of a foreseeable name to write it: made if missing, never through a link, regular files alone.

    Args:
        path: The file.
        flags: Beside ``O_CREAT``, as for ``os.open``.

    Returns:
        The descriptor.

    Raises:
        OutputError: A link, FIFO or device has the name, or it cannot be opened.
    """
    try:
        with output_errors(path):
            descriptor = os.open(path, flags | os.O_CREAT | _NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENXIO}:
            raise
        raise OutputError(f"cannot write {path}: it is a link or a device; remove it") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OutputError(f"cannot write {path}: it is no regular file; remove it")
    return descriptor


def read_plain(path: str | os.PathLike[str], most: int = 256 << 20) -> bytes:
    """Returns the bytes of a regular file, and of nothing else: a FIFO would be waited for, a device has no end.

    Args:
        path: The file.
        most: More bytes are refused.

    Raises:
        OSError: It is not there, no regular file, or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, more than {most:,}", os.fspath(path))
        return file.read()


# -- what killed processes leave ------------------------------------------------------------------------------------

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_PARTIAL = re.compile(r"\.[0-9a-f]{16}\..*\.part", re.DOTALL)
_YOUNG = 2.0  # seconds: another process may be about to lock it
_swept: set[Path] = set()


def _partial_name(name: str) -> str:
    """Returns a name that cannot be foreseen, hidden, and not too long for the file system."""
    ending = name.encode(errors="surrogateescape")[-120:].decode(errors="ignore")
    return f".{secrets.token_hex(8)}.{ending}.part"


def _lock(descriptor: int) -> None:
    with suppress(OSError):  # not every file system has locks; nothing is swept there
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep_once(folder: Path) -> None:
    if folder not in _swept:
        _swept.add(folder)
        _sweep(folder)


def _sweep(folder: Path) -> None:
    """Removes what processes that are no more have left half-written in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        found = [entry.path for entry in entries if _PARTIAL.fullmatch(entry.name)]
        for path in found:
            _remove_if_left(path)


def _remove_if_left(path: str) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | _NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if time.time() - status.st_mtime < _YOUNG:
                return
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where its writer lives
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    return write_atomic(path, write)


def write_json(path: Path, value: Any) -> Path:
    """Writes indented JSON; NaN is not JSON and must be None by now."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
