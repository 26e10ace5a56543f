"""Weights for machines without a network: a folder of downloaded files with their digests, in place of the hubs.

``vlad weights get METHOD --output DIR`` fills it where there is a network; ``--weights-dir DIR`` (``VLAD_WEIGHTS``)
uses it where there is none. With it nothing is downloaded: what the folder lacks is an error that names the command.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlad.errors import WeightsError
from vlad.files import read_plain, write_atomic, write_json

__all__ = ["MANIFEST", "VARIABLE", "check_folder", "collecting", "fetched", "read_manifest", "save"]

MANIFEST = "weights.json"
VARIABLE = "VLAD_WEIGHTS"
_FORMAT = 1
_collected: list[dict[str, Path]] = []


def fetched(key: str, download: Callable[[], Path]) -> Path:
    """Returns a published weights file: of the folder that ``VLAD_WEIGHTS`` names, else downloaded.

    Args:
        key: What the file is, whoever asks: ``open_clip:ViT-L-14-336:openai``, an address.
        download: Downloads it; not called where there is a folder.

    Raises:
        WeightsError: The folder lacks it, or holds another file than it was given.
    """
    folder = os.environ.get(VARIABLE)
    path = _of_folder(Path(folder), key) if folder else download()
    for one in _collected:
        one[key] = path
    return path


@contextmanager
def collecting() -> Iterator[dict[str, Path]]:
    """Gives the files, by key, that are asked for meanwhile."""
    found: dict[str, Path] = {}
    _collected.append(found)
    try:
        yield found
    finally:
        _collected.remove(found)


def _of_folder(folder: Path, key: str) -> Path:
    entry = read_manifest(folder).get(key)
    if entry is None:
        raise WeightsError(
            f"{folder} holds no {key}, and with {VARIABLE} or --weights-dir nothing is downloaded; on a machine with a "
            f"network: vlad weights get METHOD --output {folder.name}"
        )
    path = folder / entry["file"]
    _verify(path, entry["sha256"])
    return path


def read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    """Returns what a folder holds: key of a weights file to ``file`` and ``sha256``.

    Raises:
        WeightsError: It is no folder that ``vlad weights get`` made.
    """
    try:
        content: Any = json.loads(read_plain(folder / MANIFEST))
        files: Any = content["files"] if content["format"] == _FORMAT else None
        sound = all(Path(one["file"]).name == one["file"] and isinstance(one["sha256"], str) for one in files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{folder} is no folder of weights: {MANIFEST} is missing or damaged; make one with: vlad weights get "
            "METHOD --output DIR"
        ) from error
    if not sound:
        raise WeightsError(f"{folder / MANIFEST} names files outside its folder; make it anew with: vlad weights get")
    return dict(files)


@lru_cache  # a file of 1.7 GB is read once in a process
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_of(path: Path) -> str:
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


def _verify(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise WeightsError(f"weights file {path} is not there, though {MANIFEST} names it; copy the folder again")
    if _digest_of(path) != sha256:
        raise WeightsError(f"weights file {path} is not the one that {MANIFEST} tells of: it is damaged; copy it again")


def check_folder(folder: Path) -> int:
    """Reads every file of a folder and compares its digest; returns how many there are.

    Raises:
        WeightsError: No such folder, or a file is missing or damaged.
    """
    entries = read_manifest(folder)
    for entry in entries.values():
        _verify(folder / entry["file"], entry["sha256"])
    return len(entries)


def save(found: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Copies weights files to a folder, beside those that it holds, and writes its manifest.

    Returns:
        The copies by key.

    Raises:
        WeightsError: The folder's manifest is damaged.
        OutputError: It cannot be written.
    """
    entries = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    copies = {}
    for key, path in found.items():
        digest = _digest_of(path)
        target = folder / f"{digest[:12]}-{path.name}"  # two hubs call different files alike
        if not (target.is_file() and _digest_of(target) == digest):
            write_atomic(target, lambda partial, path=path: shutil.copyfile(path, partial))  # type: ignore[misc]
        entries[key] = {"file": target.name, "sha256": digest}
        copies[key] = target
    write_json(folder / MANIFEST, {"format": _FORMAT, "files": dict(sorted(entries.items()))})
    return copies
