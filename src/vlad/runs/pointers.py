"""Names of run folders, and how one run points to another: ``latest``, and from a test to its fit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from vlad.errors import WeightsError
from vlad.files import read_plain

__all__ = [
    "LATEST",
    "RECORD",
    "checkpoint_of",
    "data_name",
    "newest_first",
    "resolve_run",
    "run_name",
    "slug",
    "write_latest",
]

LATEST = "latest"
"""Name of the text file that holds the relative path of the newest run."""

RECORD = "run.json"
"""Name of the file in a run folder that says what the run was."""

_LENGTH = 40  # characters of the data's name in a folder's
_said: set[str] = set()


def slug(text: str) -> str:
    """Returns a text as a short part of a file name: ASCII letters, digits, ``.``, ``_``, ``+`` and ``-``.

    Examples:
        >>> slug("Prüfteile (März)/cam 1")
        'Prufteile-Marz-cam-1'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", plain).strip("-._+")[:_LENGTH].rstrip("-._+")


def data_name(given: Any) -> str:
    """Returns what the data of a run are called in its folder's name.

    Args:
        given: What ``data.train``, ``data.test``, ``data.val`` or ``data.predict`` were set to: a name, a path, a
            mapping with ``name`` or ``root``, or several of them.

    Returns:
        The first one's name, with ``+n`` where there are n more; "" where nothing of it can be spelled in ASCII.

    Examples:
        >>> data_name("parts/photos/"), data_name(["mvtec_ad", {"name": "visa"}]), data_name("in/*.png")
        ('photos', 'mvtec_ad+1', 'in')
    """
    if given is None or isinstance(given, str | os.PathLike) or not isinstance(given, Sequence):
        given = [given]
    first = given[0] if given else None
    if not isinstance(first, str | os.PathLike | None):
        get = first.get if hasattr(first, "get") else lambda key: getattr(first, key, None)
        first = get("name") or get("root")
    if not first:
        return ""
    parts = [part for part in Path(first).parts if not re.search(r"[*?\[\]]", part)]
    path = Path(*parts) if parts else Path()
    name = path.resolve().name if path.name in {"", ".."} else (path.stem if path.suffix else path.name)
    more = f"+{len(given) - 1}" if len(given) > 1 else ""
    return f"{slug(name)[: _LENGTH - len(more)]}{more}" if slug(name) else ""


def run_name(verb: str, data: str = "") -> str:
    """Returns the name of a run folder: date, verb, data, such as ``2026-11-25_predict_photos``."""
    return "_".join(part for part in (date.today().isoformat(), slug(verb), data) if part)


def numbered(name: str) -> Iterator[str]:
    """Returns a name, and where it is taken the same with ``_2``, ``_3``, …."""
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


# -- the newest run --------------------------------------------------------------------------------------------


def write_latest(root: Path, folder: Path) -> None:
    """Makes ``root/latest`` name a run folder, by its path from there; of runs that do so at once, one is named."""
    partial = root / f".{LATEST}.{secrets.token_hex(4)}.part"  # their own: the runs may be on several machines
    try:
        partial.write_text(Path(os.path.relpath(folder, root)).as_posix() + "\n", encoding="utf-8")
        partial.replace(root / LATEST)
    finally:
        partial.unlink(missing_ok=True)


def resolve_run(path: str | Path) -> Path:
    """Returns the run folder that a ``latest`` file names, and says on stderr which it is; other paths as they are.

    Raises:
        WeightsError: The run that it names is gone, or it names none.
    """
    path = Path(path)
    if path.name != LATEST or not path.is_file():
        return path
    try:
        named = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    folder = Path(os.path.normpath(path.parent / named))
    if not named or "\n" in named or not folder.is_dir():
        raise WeightsError(f"{path} names the run {named[:200] or '(none)'}, which is not there: give a run folder")
    if str(path) not in _said and os.environ.get("LOCAL_RANK", "0") == "0":
        _said.add(str(path))
        print(f"{path}: {folder}", file=sys.stderr, flush=True)
    return folder


def newest_first(folder: Path) -> list[Path]:
    """Returns the checkpoints of a run folder, the newest first."""
    files = folder.glob("checkpoints/*.ckpt")
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)


# -- from a test to its fit ------------------------------------------------------------------------------------


def point_to(file: str | Path, folder: Path) -> dict[str, str]:
    """Returns what a run's record says of the checkpoint that the run was given.

    Args:
        file: The checkpoint.
        folder: The run folder that the record is of; a path from there still holds when both were moved.
    """
    file = Path(file)
    link = {"file": Path(os.path.relpath(file, folder)).as_posix(), "path": str(file.absolute())}
    if file.is_file():
        with file.open("rb") as stream:
            link["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
    run = file.parent.parent
    return {**link, "run": Path(os.path.relpath(run, folder)).as_posix()} if file.parent.name == "checkpoints" else link


def read_record(folder: Path) -> Mapping[str, Any]:
    """Returns a run folder's record; an empty one where there is none or it cannot be read."""
    try:
        content = json.loads(read_plain(folder / RECORD))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def checkpoint_of(folder: str | Path) -> Path | None:
    """Returns the checkpoint that a test, validation or prediction was given; None where it was given none.

    Raises:
        WeightsError: It was given one that is not there any more.
    """
    folder = Path(folder)
    record = read_record(folder)
    link = record.get("checkpoint")
    if not isinstance(link, dict) or record.get("verb") == "fit":
        return None
    near, far = Path(os.path.normpath(folder / str(link.get("file", "")))), Path(str(link.get("path", "")))
    for file in (near, far):
        if file.is_file():
            return file
    raise WeightsError(f"run folder {folder} was given the checkpoint {far}, which is gone; give another checkpoint")
