"""Fetching archives and unpacking them: resumable, checked, and never outside their folder."""

from __future__ import annotations

import hashlib
import lzma
import os
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from vlad.datamodules.record import Download
from vlad.errors import DataError
from vlad.files import open_plain, scratch_folder
from vlad.names import safe_name

__all__ = ["fetch", "unpack"]

_BLOCK = 1 << 20
_GROWTH, _FREE, _MEMBERS = 30, 256 << 20, 5_000_000
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


def fetch(file: Download, folder: Path) -> Path:
    """Downloads a file; what an earlier try has left is continued.

    Args:
        file: What to fetch.
        folder: Where to; made if missing.

    Returns:
        The file, whose checksum is right.

    Raises:
        DataError: No connection, or another checksum than published; the message says what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / safe_name(file.url.rsplit("/", 1)[-1].split("?")[0])
    if target.is_file() and _checksum(target, file.checksum):
        return target
    partial = target.with_name(target.name + ".part")
    try:
        _transfer(file, partial)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        kept = f"; {partial} is kept and continued next time" if partial.exists() else ""
        raise DataError(f"cannot download {file.url}: {reason}{kept}") from error
    if not _checksum(partial, file.checksum):
        partial.unlink()
        raise DataError(
            f"{file.url} has another checksum than the published {file.checksum}: it was damaged on the way or "
            "the file has changed; try again, or download it by hand"
        )
    partial.replace(target)
    return target


def _transfer(file: Download, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(file.url, headers={"User-Agent": "vlad"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send
            return
        raise
    with response:
        if have and getattr(response, "status", 200) != 206:
            have = 0  # the server starts anew
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else file.size
        with os.fdopen(open_plain(partial, os.O_WRONLY | (os.O_APPEND if have else os.O_TRUNC)), "wb") as stream:
            while block := response.read(_BLOCK):
                stream.write(block)
                have += len(block)
                _progress(partial.stem, have, total)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if length and have != total:
        raise OSError(f"the connection broke after {have} of {total} bytes")


def _progress(name: str, have: int, total: int) -> None:
    if sys.stderr.isatty():
        share = f"{100 * have / total:3.0f} %" if total else ""
        print(f"\r{name}: {have / 1e6:,.0f} MB {share}", end="", file=sys.stderr, flush=True)


def _checksum(path: Path, expected: str) -> bool:
    kind, _, value = expected.partition(":")
    digest = hashlib.new(kind)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == value


def unpack(archives: Sequence[Path], target: Path) -> Path:
    """Unpacks .tar(.gz, .xz) or .zip files into one folder, which appears whole or not at all.

    Where everything lies in a single folder of an archive, its content is what the new folder holds.

    Args:
        archives: The files.
        target: Folder to make; must not exist or be empty.

    Raises:
        DataError: Broken archive, a member that would lie outside the folder, a link or a device, or a target
            that holds something already. Nothing is written then.
    """
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} exists and is not empty; remove it first")
    archive = Path()
    try:
        with scratch_folder(target) as partial:
            for archive in archives:
                _unpack(archive, partial)
            top = [path for path in partial.iterdir() if path.name not in {"__MACOSX", ".DS_Store"}]
            whole = top[0] if len(archives) == len(top) == 1 and top[0].is_dir() else partial
            if target.exists():
                target.rmdir()
            whole.chmod(0o755)
            whole.replace(target)
    except (*_DAMAGED, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot unpack {archive}: {str(error) or type(error).__name__}") from error
    return target


class _Room:
    """How much an archive may still unpack to: images hardly shrink, and a bomb grows a thousandfold."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.most = self.left = _GROWTH * archive.stat().st_size + _FREE
        self.members = _MEMBERS

    def copy(self, source: IO[bytes], place: Path) -> None:
        """Writes a member.

        Raises:
            DataError: The archive is larger than a data set's.
        """
        self.members -= 1
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as stream:
            while block := source.read(_BLOCK):
                self.left -= len(block)
                if self.left < 0 or self.members < 0:
                    raise DataError(
                        f"{self.archive} unpacks to more than {self.most:,} bytes or {_MEMBERS:,} files: it is not "
                        "unpacked; if you trust it, unpack it by hand"
                    )
                stream.write(block)


def _unpack(archive: Path, folder: Path) -> None:
    if not archive.is_file():  # a FIFO would be waited for
        raise DataError(f"{archive} is no file: there is no archive")
    room = _Room(archive)
    if zipfile.is_zipfile(archive):
        _unzip(archive, folder, room)
    elif tarfile.is_tarfile(archive):
        _untar(archive, folder, room)
    else:
        raise DataError(f"{archive} is neither a tar nor a zip archive (or it is damaged)")


def _inside(folder: Path, name: str, archive: Path) -> Path:
    """Returns where a member goes; refuses one that leaves the folder."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or (parts and parts[0].endswith(":")) or "\0" in name:
        raise DataError(f"{archive} holds '{name}', which would lie outside its folder: it is not unpacked")
    return folder.joinpath(*[part for part in parts if part not in {"", "."}])


def _unzip(archive: Path, folder: Path, room: _Room) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            place = _inside(folder, member.filename, archive)
            if (member.external_attr >> 16) & 0o170000 == 0o120000:
                raise DataError(f"{archive} holds the link '{member.filename}': it is not unpacked")
            if member.is_dir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            with file.open(member) as source:
                room.copy(source, place)


def _untar(archive: Path, folder: Path, room: _Room) -> None:
    with tarfile.open(archive) as file:
        for member in file:
            place = _inside(folder, member.name, archive)
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                source = file.extractfile(member)
                assert source is not None
                with source:
                    room.copy(source, place)
                os.utime(place, (member.mtime, member.mtime))
            else:
                raise DataError(f"{archive} holds the link or device '{member.name}': it is not unpacked")
        while file.fileobj is not None and file.fileobj.read(_BLOCK):
            pass  # the checksum of a compressed archive is at its very end
